"""Scores of single steps, summed by series, age and time, and the metrics computed from the sums."""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import polars as pl

from forecast.artifact import Artifact
from forecast.data.panel import IntArray, Panel
from forecast.data.sources.frames import column
from forecast.metrics.scores import score_windows
from forecast.metrics.seasonal_naive import Array, future_weights
from forecast.monitoring.cutoffs import Cutoff, Part, no_part
from forecast.monitoring.drift import Span
from forecast.monitoring.labels import AGE, ALL, FORECAST, HISTORY, RECENT, TIME
from forecast.names import MODEL, SERIES_ID, SOURCE_SEASONAL_NAIVE
from forecast.prediction.naive import naive_forecasts

SUMS: Final = pl.col("^(scaled|n_scaled|abs_error|pinball|abs_target|error|n_steps|covered_.*|w_.*)$")
_WEIGHTED: Final = ("scaled", "n_scaled", "pinball", "abs_target")
"""Sums that have a weighted one beside them, with data.weight."""
TABLES: Final[dict[str, tuple[list[str], list[str]]]] = {
    "scores": ([SERIES_ID, "window", AGE, MODEL], [FORECAST, SOURCE_SEASONAL_NAIVE]),
    "days": ([SERIES_ID, "window", "day", AGE], [FORECAST]),
    TIME: ([TIME, MODEL], [FORECAST, SOURCE_SEASONAL_NAIVE]),
}
"""Tables of sums over all cutoffs: their keys and their models."""


def bands(levels: Sequence[float]) -> list[tuple[float, int, int]]:
    """Return the nominal coverage of the central intervals, widest first, with the indices of their quantile levels."""
    index_of = {round(level, 6): index for index, level in enumerate(levels)}
    pairs = [(low, index, index_of.get(round(1 - low, 6))) for low, index in index_of.items() if low < 0.5]
    return [(round(1 - 2 * low, 6), below, above) for low, below, above in pairs if above is not None]


class Evaluation(NamedTuple):
    """Settings shared by all cutoffs."""

    artifact: Artifact
    """Model that makes the seasonal naive forecasts for comparison."""
    span: Span
    levels: Sequence[float]
    """Quantile levels."""
    season: int
    ages: Mapping[str, int]
    """The last step of each group of ages, by its name."""
    by: str
    """Unit of the time axis: day or cutoff."""


def score_steps(part: Part, cutoff: Cutoff, evaluation: Evaluation, scales: tuple[Array, Array]) -> pl.DataFrame:
    """Return a row for each observed step and model, with the keys of TABLES and the columns of SUMS.

    `scales` are those of `seasonal_naive_errors`, [n] both.
    """
    artifact, span, levels, season, ages, by = evaluation
    horizon = part.actual.shape[1]
    row, step = np.nonzero(np.isfinite(part.actual))
    actual = part.actual[row, step][:, None]
    scale, root = scales
    naive = naive_forecasts(artifact, part.panel, part.windows, season=season, horizon=horizon, levels=levels)
    steps = cutoff.position + 1 + np.arange(horizon)
    moments, cutoff_time = (_wall(part.panel, index) for index in (steps, np.array([cutoff.position])))
    day = moments.dt.truncate("1d")
    age = np.searchsorted(np.array(list(ages.values())), np.arange(1, horizon + 1))
    keys = {
        SERIES_ID: part.series_id.gather(row),
        "window": pl.Series(np.where(steps >= span.recent, RECENT, HISTORY).tolist()).gather(step),
        AGE: pl.Series(age).gather(step),
        TIME: day.gather(step) if by == "day" else cutoff_time.gather(np.zeros(len(step), dtype=np.int64)),
        "day": day.gather(step),
    }
    weight = future_weights(part.panel, part.windows, horizon)[row, step] if len(part.panel.weight) else None
    frames = []
    for model, quantiles, means in ((FORECAST, part.quantiles, part.mean), (SOURCE_SEASONAL_NAIVE, naive, None)):
        predicted = quantiles[row, step]
        is_valid = np.isfinite(predicted).all(1)
        scored = score_windows(
            actual,
            predicted[:, None],
            levels=levels,
            scale=scale[row],
            root_scale=root[row],
            mean=None if means is None else means[row, step][:, None],
        )
        values: dict[str, Array] = {
            "scaled": np.nan_to_num(scored["mase"]),
            "n_scaled": np.isfinite(scored["mase"]).astype(np.int64),
            **{name: scored[name] for name in ("abs_error", "pinball", "abs_target", "error", "n_steps")},
            **{
                f"covered_{100 * band:.6g}": (
                    (actual[:, 0] >= predicted[:, low]) & (actual[:, 0] <= predicted[:, high])
                ).astype(np.int64)
                for band, low, high in bands(levels)
            },
        }
        if weight is not None:
            values |= {f"w_{name}": values[name] * weight for name in _WEIGHTED}
        frames.append(
            pl.DataFrame(keys | {MODEL: pl.repeat(model, len(row), eager=True)} | values).filter(pl.Series(is_valid))
        )
    return pl.concat(frames)


def no_steps(panel: Panel, evaluation: Evaluation) -> pl.DataFrame:
    """Return an empty table of `score_steps`."""
    none = np.zeros(0)
    return score_steps(no_part(panel, len(evaluation.levels)), Cutoff(panel.last_index, {}), evaluation, (none, none))


def _wall(panel: Panel, index: IntArray) -> pl.Series:
    """Return the timestamps of grid indices as naive local times."""
    return panel.grid.timestamps(index).dt.replace_time_zone(None)


def age_groups(last_steps: Sequence[int] | None, horizon: int) -> dict[str, int]:
    """Return the last step of each group of ages, by its name; the groups cover the whole horizon.

    >>> age_groups(None, 12), age_groups((1, 3), 4)
    ({'1-3': 3, '4-6': 6, '7-9': 9, '10-12': 12}, {'1': 1, '2-3': 3, '4': 4})
    """
    quarters = [-(-horizon * quarter // 4) for quarter in (1, 2, 3, 4)]
    last = sorted({min(step, horizon) for step in last_steps or quarters} | {horizon})
    first = [1, *(step + 1 for step in last[:-1])]
    return {f"{low}-{high}" if low < high else f"{high}": high for low, high in zip(first, last, strict=True)}


def sums_by_group(scores: pl.DataFrame, segments: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """Return the sums and the number of series by value, window and model: over all series, by age and by segment.

    `scores` has the sums of some series. A group has the sums of other series added by `metrics_by_group`.
    """
    named = {ALL: scores.with_columns(value=pl.lit("")), AGE: scores.with_columns(value=pl.col(AGE))}
    joined = scores.join(segments, on=SERIES_ID, maintain_order="left")
    named |= {name: joined.with_columns(value=column(name)) for name in segments.columns if name != SERIES_ID}
    n_series = pl.col(SERIES_ID).n_unique().alias("n_series")
    return {
        name: rows.group_by("value", "window", MODEL, maintain_order=True).agg(SUMS.sum(), n_series)
        for name, rows in named.items()
    }


def metrics_by_group(
    blocks: Sequence[Mapping[str, pl.DataFrame]], time: pl.DataFrame, ages: Sequence[str]
) -> pl.DataFrame:
    """Return the metrics over all series, and by age, time and segment, for both windows and models.

    `blocks` are the `sums_by_group` of blocks of series; `time` has the sums of all series by time.
    """
    value, rank = pl.col("value"), pl.col("value").cast(pl.Enum(ages))
    groups = {
        name: pl.concat([block[name] for block in blocks]).sort(rank if name == AGE else value, maintain_order=True)
        for name in blocks[0]
    }
    moment = pl.col(TIME).dt.to_string("%Y-%m-%d %H:%M:%S")
    groups[TIME] = time.sort(TIME, MODEL).with_columns(value=moment, window=pl.lit(ALL))
    names = [ALL, AGE, TIME, *(name for name in groups if name not in (ALL, AGE, TIME))]
    keys = ["group", "value", "window", MODEL]
    return pl.concat(
        [summarised(groups[name].with_columns(group=pl.lit(name)), keys) for name in names], how="diagonal"
    )


def summarised(sums: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
    """Return metrics from sums over steps, by `keys`; null where undefined.

    mase            mean |y - q50| / scale over the steps of series with a scale, the mean seasonal difference up to the
                    cutoff (`metrics.score_windows`, a step at a time)
    wql, wape, bias sums of pinball loss, |y - q50| and mean - y over the sum of |y|; bias is that of the mean forecast
    w_mase, w_wql   the same with the steps counted by data.weight, if the panel has weights
    coverage_80     share of steps inside the interval with a nominal coverage of 80 %; likewise the others
    """
    n_series = ["n_series"] if "n_series" in sums.columns else []
    grouped = sums.group_by(keys, maintain_order=True).agg(SUMS.sum(), pl.col(n_series).sum())
    size, steps = pl.col("abs_target"), pl.col("n_steps")
    metrics = {
        "mase": pl.col("scaled") / pl.col("n_scaled"),
        "wql": pl.col("pinball") / size,
        "wape": pl.col("abs_error") / size,
        "bias": pl.col("error") / size,
        **{
            name.replace("covered", "coverage"): pl.col(name) / steps
            for name in grouped.columns
            if name.startswith("covered_")
        },
    }
    if "w_pinball" in grouped.columns:
        metrics["w_mase"] = pl.col("w_scaled") / pl.col("w_n_scaled")
        metrics["w_wql"] = pl.col("w_pinball") / pl.col("w_abs_target")
    finite = [pl.when(value.is_finite()).then(value).alias(name) for name, value in metrics.items()]
    return grouped.select(*keys, *finite, "n_steps", *n_series)
