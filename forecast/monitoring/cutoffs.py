"""Cutoffs by their place on the grid of a panel, and their forecasts beside the observations."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
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
from forecast.monitoring.forecasts import Written
from forecast.monitoring.labels import IN_SAMPLE, OUT_OF_SAMPLE, UNKNOWN
from forecast.names import CUTOFF, MEAN, SERIES_ID, STEP, TIMESTAMP, quantile_column
from forecast.scoring.manifests import cutoff_moment, in_utc, training_end

Array = npt.NDArray[np.floating]

_BLOCK: Final = 1 << 20
"""Steps that are scored at once."""


class Cutoff(NamedTuple):
    """A cutoff of a folder, by its place on the grid."""

    place: int
    content: Mapping[str, Any]

    @property
    def horizon(self) -> int:
        """Steps of its forecasts."""
        return int(self.content["horizon"])

    @property
    def version(self) -> str:
        """The version that made them."""
        return str(self.content["model_version"])

    def sample(self, panel: Panel) -> str:
        """Return whether its version was trained on steps after it: IN_SAMPLE, OUT_OF_SAMPLE or UNKNOWN."""
        until = training_end(self.content)
        if until is None:
            return UNKNOWN
        if panel.grid.time_zone is None:
            until = until.replace(tzinfo=None)
        return IN_SAMPLE if self.place < panel.grid.floor(until) else OUT_OF_SAMPLE


class Part(NamedTuple):
    """Forecasts of n series that are in the panel, and what came."""

    panel: Panel
    """A shard that has them."""
    windows: WindowIndex
    quantiles: Array
    """[n, horizon, level]"""
    actual: Array
    """[n, horizon], NaN where nothing was observed, or may be seen."""
    mean: Array | None = None
    """[n, horizon], the mean forecasts."""

    @property
    def series_id(self) -> pl.Series:
        """Ids of the series, [n]."""
        return pl.Series(self.panel.series_id[self.windows.series].tolist(), dtype=pl.String)


def no_part(panel: Panel, n_levels: int) -> Part:
    """Return the forecasts of no series, one step ahead."""
    nothing = WindowIndex(np.zeros(0, np.int64), np.zeros(0, np.int64))
    return Part(panel.rows(0, 1), nothing, np.zeros((0, 1, n_levels)), np.zeros((0, 1)))


def placed(written: Written, panel: Panel) -> list[Cutoff]:
    """Return the cutoffs by grid index. Raises DataError for those that are on another grid."""
    moments = [cutoff_moment(content) for content in written.contents]
    zoned = {moment.tzinfo is not None for moment in moments}
    if zoned != {panel.grid.time_zone is not None}:
        theirs = "have" if True in zoned else "have no"
        raise DataError(
            f"{written.path}: the cutoffs of these forecasts {theirs} time zone, unlike the table; give the table that "
            "they were made from (data.path)"
        )
    dtype = pl.Datetime("us", "UTC" if True in zoned else None)
    index = panel.grid.index(pl.Series([in_utc(moment) for moment in moments]).cast(dtype))
    off = [moment for moment, at in zip(moments, index.to_list(), strict=True) if at is None]
    if off:
        raise DataError(
            f"{written.path}: {len(off):,} of {len(moments):,} cutoffs are not at the steps of the table, which are "
            f"every {panel.grid.frequency}: {listing(off)}; give the table that they were made from (data.path)"
        )
    return [Cutoff(at, content) for at, content in zip(index.to_list(), written.contents, strict=True)]


def samples(cutoffs: Sequence[Cutoff], panel: Panel) -> pl.DataFrame:
    """Return the cutoffs with the version that forecast, the end of its training (null: unknown), sample and rows."""
    ends = [training_end(each.content) for each in cutoffs]
    return pl.DataFrame(
        {
            CUTOFF: panel.grid.timestamps(np.array([each.place for each in cutoffs], dtype=np.int64)),
            "model_version": pl.Series([each.version for each in cutoffs], dtype=pl.String),
            "trained_until": pl.Series([end and end.isoformat() for end in ends], dtype=pl.String),
            "sample": pl.Series([each.sample(panel) for each in cutoffs], dtype=pl.String),
            "rows": pl.Series([each.content["rows"]["written"] for each in cutoffs], dtype=pl.Int64),
        }
    )


def visible(written: Written, panel: Panel, as_of: datetime | None) -> list[Cutoff]:
    """Return the cutoffs that may be looked at. Raises DataError if there is none."""
    cutoffs = placed(written, panel)
    seen = cutoffs if as_of is None else [each for each in cutoffs if each.place <= panel.grid.floor(as_of)]
    if not seen:
        raise DataError(
            f"monitor.as_of={as_of} is before the first of {len(cutoffs):,} cutoffs in {written.path}, "
            f"{cutoff_moment(cutoffs[0].content)}; set a later one"
        )
    return seen


def maker(written: Written, panel: Panel, as_of: datetime | None) -> str:
    """Return the version that has made the latest forecasts that may be looked at. Raises DataError as `monitor`."""
    return visible(written, panel, as_of)[-1].version


def within(
    cutoffs: Sequence[Cutoff], span: Span, panel: Panel, written: Written, *, empty: bool = False
) -> list[Cutoff]:
    """Return the cutoffs with a step in the windows or after them.

    Raises DataError if there is none, unless it may be `empty`.
    """
    kept = [each for each in cutoffs if each.place + each.horizon >= span.first]
    if not kept and not empty:
        last, begin = cutoff_moment(cutoffs[-1].content), panel.grid.timestamps(np.array([span.first]))[0]
        raise DataError(
            f"{written.path}: the latest of {len(cutoffs):,} cutoffs is {last}, whose forecasts end before {begin}, "
            "where what is looked at begins; score later cutoffs, or raise monitor.history"
        )
    return kept


def observed_parts(
    written: Written,
    cutoff: Cutoff,
    panel: Panel,
    span: Span,
    levels: Sequence[float],
    counts: Counter[str],
    unknown: set[str],
) -> Iterator[Part]:
    """Yield the forecasts of a cutoff beside what came, and count where its rows go; gather series not in the panel."""
    horizon, columns = cutoff.horizon, [quantile_column(level) for level in levels]
    at = cutoff.place + np.arange(1, horizon + 1)
    inside, seen = at >= span.first, at <= span.last
    for frame in written.rows(cutoff.content):
        _check_steps(frame, cutoff, panel, written.path)
        ids = frame[SERIES_ID].gather_every(horizon)
        place = pl.Series(panel.series_id.tolist(), dtype=pl.String).search_sorted(ids).to_numpy()
        place = np.minimum(place, panel.n_series - 1)
        known = panel.series_id[place] == ids.to_numpy()
        unknown.update(ids.filter(pl.Series(~known)).to_list())
        n_unknown = int((~known).sum())
        counts["rows"] += len(ids) * int(inside.sum())
        counts["rows_not_yet_observed"] += len(ids) * int((inside & ~seen).sum())
        counts["rows_missing"] += n_unknown * int((inside & seen).sum())
        quantiles = frame.select(columns).to_numpy().reshape(len(ids), horizon, len(levels)).astype(np.float64)
        mean = frame[MEAN].to_numpy().reshape(len(ids), horizon).astype(np.float64)
        rows, size = np.flatnonzero(known), max(1, _BLOCK // horizon)
        for block in (rows[first : first + size] for first in range(0, len(rows), size)):
            begin = int(place[block].min())
            shard = panel.rows(begin, int(place[block].max()) + 1)
            windows = WindowIndex(place[block] - begin, cutoff.place - shard.start[place[block] - begin])
            actual = future_values(shard, windows, horizon)
            actual[:, ~(inside & seen)] = np.nan
            there = np.isfinite(actual)
            counts["rows_scored"] += int(there.sum())
            counts["rows_missing"] += int((~there[:, inside & seen]).sum())
            counts["rows_recent"] += int(there[:, at >= span.recent].sum())
            yield Part(shard, windows, quantiles[block], actual, mean[block])


def _check_steps(frame: pl.DataFrame, cutoff: Cutoff, panel: Panel, path: str) -> None:
    """Raise DataError for forecasts that are not of each step of the grid after the cutoff."""
    horizon = cutoff.horizon
    step = pl.int_range(pl.len()).mod(horizon) + 1
    whole = frame.height % horizon == 0 and frame.select((pl.col(STEP) == step).all()).item()
    if not whole:
        raise DataError(
            f"{path}: the forecasts of the cutoff {cutoff.content[CUTOFF]} are not {horizon:,} steps of each series; "
            f"score it again (score.cutoff={cutoff.content[CUTOFF]} score.force=true)"
        )
    index = panel.grid.index(frame[TIMESTAMP])
    wrong = int((index != frame[STEP].cast(pl.Int64) + cutoff.place).fill_null(value=True).sum())
    if wrong:
        raise DataError(
            f"{path}: {wrong:,} of {frame.height:,} forecasts of the cutoff {cutoff.content[CUTOFF]} are at other "
            f"moments than the steps of the table, which are every {panel.grid.frequency}; give the table that they "
            "were made from (data.path)"
        )
