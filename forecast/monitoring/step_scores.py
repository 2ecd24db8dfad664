"""Scores of single steps: sums by series, age and time, and the metrics that they make."""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import polars as pl

from forecast.artifact import Artifact
from forecast.data.panel import IntArray, Panel
from forecast.data.sources.frames import column
from forecast.metrics.scores import score_windows
from forecast.metrics.seasonal_naive import seasonal_naive_errors
from forecast.monitoring.cutoffs import Cutoff, Part, no_part
from forecast.monitoring.drift import Span
from forecast.monitoring.labels import AGE, ALL, FORECAST, HISTORY, RECENT, TIME
from forecast.names import MODEL, SERIES_ID, SOURCE_SEASONAL_NAIVE
from forecast.prediction.naive import naive_forecasts

SUMS: Final = pl.col("^(scaled|n_scaled|abs_error|pinball|abs_target|error|n_steps|covered_.*)$")
TABLES: Final[dict[str, tuple[list[str], list[str]]]] = {
    "scores": ([SERIES_ID, "window", AGE, MODEL], [FORECAST, SOURCE_SEASONAL_NAIVE]),
    "days": ([SERIES_ID, "window", "day", AGE], [FORECAST]),
    TIME: ([TIME, MODEL], [FORECAST, SOURCE_SEASONAL_NAIVE]),
}
"""What is kept of all cutoffs: sums by these keys, of these models."""


def bands(levels: Sequence[float]) -> list[tuple[float, int, int]]:
    """Return the coverage that central intervals should have, widest first, and the places of their levels."""
    named = {round(level, 6): place for place, level in enumerate(levels)}
    pairs = [(low, place, named.get(round(1 - low, 6))) for low, place in named.items() if low < 0.5]
    return [(round(1 - 2 * low, 6), below, above) for low, below, above in pairs if above is not None]


class Evaluation(NamedTuple):
    """What is the same for all cutoffs."""

    artifact: Artifact
    """The model whose seasonal naive forecasts are compared with."""
    span: Span
    levels: Sequence[float]
    """Quantile levels."""
    season: int
    ages: Mapping[str, int]
    """The last step of each group of ages, by its name."""
    by: str
    """What is over time: day or cutoff."""


def score_steps(part: Part, cutoff: Cutoff, evaluation: Evaluation) -> pl.DataFrame:
    """Return a row for each observed step and model: the columns that tables are made by, and what is summed."""
    artifact, span, levels, season, ages, by = evaluation
    horizon = part.actual.shape[1]
    row, step = np.nonzero(np.isfinite(part.actual))
    actual = part.actual[row, step][:, None]
    scale, root = seasonal_naive_errors(part.panel, part.windows, season)
    naive = naive_forecasts(artifact, part.panel, part.windows, season=season, horizon=horizon, levels=levels)
    at = cutoff.place + 1 + np.arange(horizon)
    moments, now = (_wall(part.panel, index) for index in (at, np.array([cutoff.place])))
    day = moments.dt.truncate("1d")
    age = np.searchsorted(np.array(list(ages.values())), np.arange(1, horizon + 1))
    keys = {
        SERIES_ID: part.series_id.gather(row),
        "window": pl.Series(np.where(at >= span.recent, RECENT, HISTORY).tolist()).gather(step),
        AGE: pl.Series(age).gather(step),
        TIME: day.gather(step) if by == "day" else now.gather(np.zeros(len(step), dtype=np.int64)),
        "day": day.gather(step),
    }
    frames = []
    for model, quantiles, means in ((FORECAST, part.quantiles, part.mean), (SOURCE_SEASONAL_NAIVE, naive, None)):
        stated = quantiles[row, step]
        there = np.isfinite(stated).all(1)
        scored = score_windows(
            actual,
            stated[:, None],
            levels=levels,
            scale=scale[row],
            root_scale=root[row],
            mean=None if means is None else means[row, step][:, None],
        )
        values = {
            "scaled": np.nan_to_num(scored["mase"]),
            "n_scaled": np.isfinite(scored["mase"]).astype(np.int64),
            **{name: scored[name] for name in ("abs_error", "pinball", "abs_target", "error", "n_steps")},
            **{
                f"covered_{100 * band:.6g}": (
                    (actual[:, 0] >= stated[:, low]) & (actual[:, 0] <= stated[:, high])
                ).astype(np.int64)
                for band, low, high in bands(levels)
            },
        }
        frames.append(
            pl.DataFrame(keys | {MODEL: pl.repeat(model, len(row), eager=True)} | values).filter(pl.Series(there))
        )
    return pl.concat(frames)


def no_steps(panel: Panel, evaluation: Evaluation) -> pl.DataFrame:
    """Return the table of `score_steps` without a row."""
    return score_steps(no_part(panel, len(evaluation.levels)), Cutoff(panel.last_index, {}), evaluation)


def _wall(panel: Panel, index: IntArray) -> pl.Series:
    """Return the timestamps of grid indices as the clock on the wall has them."""
    return panel.grid.timestamps(index).dt.replace_time_zone(None)


def age_groups(given: Sequence[int] | None, horizon: int) -> dict[str, int]:
    """Return the last step of each group of ages, by its name; the groups hold the whole horizon.

    >>> age_groups(None, 12), age_groups((1, 3), 4)
    ({'1-3': 3, '4-6': 6, '7-9': 9, '10-12': 12}, {'1': 1, '2-3': 3, '4': 4})
    """
    quarters = [-(-horizon * quarter // 4) for quarter in (1, 2, 3, 4)]
    last = sorted({min(step, horizon) for step in given or quarters} | {horizon})
    first = [1, *(step + 1 for step in last[:-1])]
    return {f"{low}-{high}" if low < high else f"{high}": high for low, high in zip(first, last, strict=True)}


def metrics_by_group(
    scores: pl.DataFrame, time: pl.DataFrame, segments: pl.DataFrame, ages: Sequence[str]
) -> pl.DataFrame:
    """Return the metrics over all series, and by age, time and segment, for both windows and models."""
    keys = ["group", "value", "window", MODEL]
    ordered = scores.with_columns(pl.col(AGE).cast(pl.Enum(ages))).sort(AGE, maintain_order=True)
    parts = [
        scores.with_columns(group=pl.lit(ALL), value=pl.lit("")),
        ordered.with_columns(group=pl.lit(AGE), value=pl.col(AGE).cast(pl.String)),
        time.sort(TIME, MODEL).with_columns(
            group=pl.lit(TIME), value=pl.col(TIME).dt.to_string("%Y-%m-%d %H:%M:%S"), window=pl.lit(ALL)
        ),
    ]
    joined = scores.join(segments, on=SERIES_ID, maintain_order="left")
    parts += [
        joined.sort(column(name), maintain_order=True).with_columns(group=pl.lit(name), value=column(name))
        for name in segments.columns
        if name != SERIES_ID
    ]
    return pl.concat([summarised(part, keys) for part in parts], how="diagonal")


def summarised(sums: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
    """Return metrics from sums over steps, by `keys`; null where they are not defined.

    mase            mean |y - q50| / scale over the steps of series with a scale, the mean seasonal difference up to the
                    cutoff (`metrics.score_windows`, a step at a time)
    wql, wape, bias sums of pinball loss, |y - q50| and mean - y over the sum of |y|; bias is that of the mean forecast
    coverage_80     share of steps inside the interval that should hold 80 %; likewise the others
    """
    series = [pl.col(SERIES_ID).n_unique().alias("n_series")] if SERIES_ID in sums.columns else []
    grouped = sums.group_by(keys, maintain_order=True).agg(SUMS.sum(), *series)
    size, steps = pl.col("abs_target"), pl.col("n_steps")
    made = {
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
    finite = [pl.when(value.is_finite()).then(value).alias(name) for name, value in made.items()]
    return grouped.select(*keys, *finite, "n_steps", *(["n_series"] if series else []))
