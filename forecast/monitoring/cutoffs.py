"""Cutoffs by their index on the grid of a panel, and their forecasts matched with the observations."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from forecast.data.panel import Panel
from forecast.data.windows import WindowIndex
from forecast.errors import DataError, listing
from forecast.metrics.seasonal_naive import future_values
from forecast.monitoring.drift import Span
from forecast.monitoring.forecasts import Block, ScoredForecasts
from forecast.monitoring.labels import IN_SAMPLE, OUT_OF_SAMPLE, UNKNOWN
from forecast.names import CUTOFF, MEAN, MODEL_MEAN, OVERRIDE_AUTHOR, SERIES_ID, STEP, TIMESTAMP, quantile_column
from forecast.scoring.manifests import cutoff_moment, in_utc, training_end

Array = npt.NDArray[np.floating]

_BLOCK: Final = 1 << 18
"""Steps scored at a time."""


class Cutoff(NamedTuple):
    """A cutoff of a scores folder, with its index on the grid."""

    position: int
    content: Mapping[str, Any]

    @property
    def horizon(self) -> int:
        """Number of steps of its forecasts."""
        return int(self.content["horizon"])

    @property
    def version(self) -> str:
        """Version of the model that forecast it."""
        return str(self.content["model_version"])

    def sample(self, panel: Panel) -> str:
        """Return IN_SAMPLE if the version was trained on later steps, else OUT_OF_SAMPLE; UNKNOWN if not recorded."""
        until = training_end(self.content)
        if until is None:
            return UNKNOWN
        if panel.grid.time_zone is None:
            until = until.replace(tzinfo=None)
        return IN_SAMPLE if self.position < panel.grid.floor(until) else OUT_OF_SAMPLE


class Part(NamedTuple):
    """Forecasts of n series of the panel, with their observations."""

    panel: Panel
    """The shard of the panel that holds the series."""
    windows: WindowIndex
    quantiles: Array
    """[n, horizon, level]"""
    actual: Array
    """[n, horizon], NaN where unobserved, or outside the windows."""
    mean: Array | None = None
    """[n, horizon], the mean forecasts."""
    model_mean: Array | None = None
    """[n, horizon], the mean of the model where a person has overridden it, else NaN; None without any override."""
    author: npt.NDArray[np.object_] | None = None
    """[n, horizon], who has overridden the forecast, else None; None without any override."""

    @property
    def series_id(self) -> pl.Series:
        """Ids of the series, [n]."""
        return pl.Series(self.panel.series_id[self.windows.series].tolist(), dtype=pl.String)

    @property
    def overridden(self) -> npt.NDArray[np.bool_]:
        """Whether a person has overridden the forecast, [n, horizon]."""
        return np.zeros(self.actual.shape, np.bool_) if self.model_mean is None else np.isfinite(self.model_mean)

    def without(self, hidden: npt.NDArray[np.bool_]) -> "Part":
        """Return the part as if the steps in `hidden`, [n, horizon], were not observed."""
        return self._replace(actual=np.where(hidden, np.nan, self.actual)) if hidden.any() else self


@dataclass(frozen=True)
class RowOutcomes:
    """Rows of forecasts by outcome, summed over cutoffs."""

    counts: Counter[str] = field(
        default_factory=lambda: Counter(
            dict.fromkeys(("rows", "rows_scored", "rows_not_yet_observed", "rows_missing", "rows_recent"), 0)
        )
    )
    unknown_series: set[str] = field(default_factory=set)
    """Series that are not in the panel."""


def no_part(panel: Panel, n_levels: int) -> Part:
    """Return a part without series, with a horizon of one step."""
    no_windows = WindowIndex(np.zeros(0, np.int64), np.zeros(0, np.int64))
    return Part(panel.rows(0, 1), no_windows, np.zeros((0, 1, n_levels)), np.zeros((0, 1)))


def cutoffs_on_grid(forecasts: ScoredForecasts, panel: Panel) -> list[Cutoff]:
    """Return the cutoffs with their grid index. Raises DataError for cutoffs that are not on the grid."""
    moments = [cutoff_moment(content) for content in forecasts.contents]
    zoned = {moment.tzinfo is not None for moment in moments}
    if zoned != {panel.grid.time_zone is not None}:
        state = "have" if True in zoned else "have no"
        raise DataError(
            f"{forecasts.path}: the cutoffs of these forecasts {state} time zone, unlike the table; give the table "
            "that they were made from (data.path)"
        )
    dtype = pl.Datetime("us", "UTC" if True in zoned else None)
    index = panel.grid.index(pl.Series([in_utc(moment) for moment in moments]).cast(dtype))
    unmatched = [moment for moment, position in zip(moments, index.to_list(), strict=True) if position is None]
    if unmatched:
        raise DataError(
            f"{forecasts.path}: {len(unmatched):,} of {len(moments):,} cutoffs are not at the steps of the table, "
            f"which are every {panel.grid.frequency}: {listing(unmatched)}; give the table that they were made from "
            "(data.path)"
        )
    return [Cutoff(position, content) for position, content in zip(index.to_list(), forecasts.contents, strict=True)]


def samples(cutoffs: Sequence[Cutoff], panel: Panel) -> pl.DataFrame:
    """Return a row per cutoff: version, end of its training (null: unknown), sample, and rows written."""
    ends = [training_end(cutoff.content) for cutoff in cutoffs]
    return pl.DataFrame(
        {
            CUTOFF: panel.grid.timestamps(np.array([cutoff.position for cutoff in cutoffs], dtype=np.int64)),
            "model_version": pl.Series([cutoff.version for cutoff in cutoffs], dtype=pl.String),
            "trained_until": pl.Series([end and end.isoformat() for end in ends], dtype=pl.String),
            "sample": pl.Series([cutoff.sample(panel) for cutoff in cutoffs], dtype=pl.String),
            "rows": pl.Series([cutoff.content["rows"]["written"] for cutoff in cutoffs], dtype=pl.Int64),
        }
    )


def visible_cutoffs(forecasts: ScoredForecasts, panel: Panel, as_of: datetime | None) -> list[Cutoff]:
    """Return the cutoffs up to `as_of`, all if it is None. Raises DataError if there is none."""
    cutoffs = cutoffs_on_grid(forecasts, panel)
    past_cutoffs = (
        cutoffs if as_of is None else [cutoff for cutoff in cutoffs if cutoff.position <= panel.grid.floor(as_of)]
    )
    if not past_cutoffs:
        raise DataError(
            f"monitor.as_of={as_of} is before the first of {len(cutoffs):,} cutoffs in {forecasts.path}, "
            f"{cutoff_moment(cutoffs[0].content)}; set a later one"
        )
    return past_cutoffs


def latest_version(forecasts: ScoredForecasts, panel: Panel, as_of: datetime | None) -> str:
    """Return the version that made the latest forecasts up to `as_of`. Raises DataError as `visible_cutoffs`."""
    return visible_cutoffs(forecasts, panel, as_of)[-1].version


def cutoffs_in_windows(
    cutoffs: Sequence[Cutoff], span: Span, panel: Panel, forecasts: ScoredForecasts, *, empty: bool = False
) -> list[Cutoff]:
    """Return the cutoffs whose forecasts reach the windows of `span`.

    Raises DataError if there is none, unless `empty` allows that.
    """
    selected = [cutoff for cutoff in cutoffs if cutoff.position + cutoff.horizon >= span.first]
    if not selected and not empty:
        last, begin = cutoff_moment(cutoffs[-1].content), panel.grid.timestamps(np.array([span.first]))[0]
        raise DataError(
            f"{forecasts.path}: the latest of {len(cutoffs):,} cutoffs is {last}, whose forecasts end before {begin}, "
            "where what is looked at begins; score later cutoffs, or raise monitor.history"
        )
    return selected


def observed_parts(
    forecasts: ScoredForecasts,
    cutoff: Cutoff,
    panel: Panel,
    span: Span,
    levels: Sequence[float],
    outcomes: RowOutcomes,
    block: Block,
) -> Iterator[Part]:
    """Yield the forecasts of a block of series of a cutoff with their observations.

    `panel` has the series of the block. Adds the rows to `outcomes`.
    """
    counts = outcomes.counts
    horizon, columns = cutoff.horizon, [quantile_column(level) for level in levels]
    steps = cutoff.position + np.arange(1, horizon + 1)
    inside, due = steps >= span.first, steps <= span.last
    names = pl.Series(panel.series_id.tolist(), dtype=pl.String)
    for frame in forecasts.block(cutoff.content, block):
        _check_steps(frame, cutoff, panel, forecasts.path)
        ids = frame[SERIES_ID].gather_every(horizon)
        series = names.search_sorted(ids).to_numpy()
        series = np.minimum(series, panel.n_series - 1)
        in_panel = panel.series_id[series] == ids.to_numpy()
        outcomes.unknown_series.update(ids.filter(pl.Series(~in_panel)).to_list())
        n_unknown = int((~in_panel).sum())
        counts["rows"] += len(ids) * int(inside.sum())
        counts["rows_not_yet_observed"] += len(ids) * int((inside & ~due).sum())
        counts["rows_missing"] += n_unknown * int((inside & due).sum())
        quantiles = frame.select(columns).to_numpy().reshape(len(ids), horizon, len(levels)).astype(np.float64)
        mean = frame[MEAN].to_numpy().reshape(len(ids), horizon).astype(np.float64)
        model_mean, author = _overrides_in(frame, horizon)
        rows, size = np.flatnonzero(in_panel), max(1, _BLOCK // horizon)
        for chosen in (rows[first : first + size] for first in range(0, len(rows), size)):
            begin = int(series[chosen].min())
            shard = panel.rows(begin, int(series[chosen].max()) + 1)
            windows = WindowIndex(series[chosen] - begin, cutoff.position - shard.start[series[chosen] - begin])
            actual = future_values(shard, windows, horizon)
            actual[:, ~(inside & due)] = np.nan
            observed = np.isfinite(actual)
            counts["rows_scored"] += int(observed.sum())
            counts["rows_missing"] += int((~observed[:, inside & due]).sum())
            counts["rows_recent"] += int(observed[:, steps >= span.recent].sum())
            by_hand = (None, None) if model_mean is None or author is None else (model_mean[chosen], author[chosen])
            yield Part(shard, windows, quantiles[chosen], actual, mean[chosen], *by_hand)


def _overrides_in(frame: pl.DataFrame, horizon: int) -> tuple[Array | None, npt.NDArray[np.object_] | None]:
    """Return the mean of the model and the author of overridden rows, [n, horizon] both; None without any."""
    if MODEL_MEAN not in frame.columns or not frame[MODEL_MEAN].count():
        return None, None
    mean = frame[MODEL_MEAN].cast(pl.Float64).fill_null(np.nan).to_numpy().reshape(-1, horizon)
    return mean, np.array(frame[OVERRIDE_AUTHOR].to_list(), dtype=object).reshape(-1, horizon)


def _check_steps(frame: pl.DataFrame, cutoff: Cutoff, panel: Panel, path: str) -> None:
    """Raise DataError unless the forecasts are exactly the grid steps after the cutoff."""
    horizon = cutoff.horizon
    step = pl.int_range(pl.len()).mod(horizon) + 1
    is_complete = frame.height % horizon == 0 and frame.select((pl.col(STEP) == step).all()).item()
    if not is_complete:
        raise DataError(
            f"{path}: the forecasts of the cutoff {cutoff.content[CUTOFF]} are not {horizon:,} steps of each series; "
            f"score it again (score.cutoff={cutoff.content[CUTOFF]} score.force=true)"
        )
    index = panel.grid.index(frame[TIMESTAMP])
    n_misplaced = int((index != frame[STEP].cast(pl.Int64) + cutoff.position).fill_null(value=True).sum())
    if n_misplaced:
        raise DataError(
            f"{path}: {n_misplaced:,} of {frame.height:,} forecasts of the cutoff {cutoff.content[CUTOFF]} are at "
            f"other moments than the steps of the table, which are every {panel.grid.frequency}; give the table that "
            "they were made from (data.path)"
        )
