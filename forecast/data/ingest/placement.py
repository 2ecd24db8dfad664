"""Placement of rows on the grid, with the rejection of rows that break a rule."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from forecast.config import DataConfig
from forecast.data.ingest import aggregate, validate
from forecast.data.ingest.extent import common_end, distant_rows, observed_rows
from forecast.data.ingest.regularise import Steps
from forecast.data.ingest.rejects import DISTANT, LATE, Counts, Rejects, check_steps
from forecast.data.ingest.rows import BoolArray, Rows, duplicates
from forecast.data.ingest.timestamps import ResolvedTime, Times, on_clock
from forecast.data.time.grid import Grid
from forecast.names import MAX_MAGNITUDE


def hide_rows(values: npt.NDArray[Any], rows: BoolArray | None) -> npt.NDArray[Any]:
    """Return values with NaN in some rows."""
    return values if rows is None else np.where(rows, np.nan, values).astype(values.dtype, copy=False)


@dataclass(frozen=True)
class RowPlacer:
    """Places the rows of a table on the grid and rejects those that break a rule."""

    resolved: ResolvedTime
    names: pl.Series
    rejects: Rejects
    categories: validate.Categories
    complete: bool
    """Whether the rows are those of all series, so that they determine the end of the panel."""

    def __call__(self, rows: Rows, times: Times, labels: Sequence[str], table: str = "") -> Rows:
        """Return one row per series and step; `labels` name the columns of values, `table` begins the reasons."""
        data, grid, finer = self.resolved.data, self.resolved.grid, self.resolved.finer
        if data.aggregate is None:
            index, on_grid = grid.place(times.clock)
        elif finer is not None:
            assert times.instant is not None
            index, on_grid = finer.place(on_clock(times.instant, finer))
        else:
            assert times.instant is not None
            index, on_grid = times.instant, np.ones(len(rows), dtype=np.bool_)
        rows = replace(rows, index=index)
        rejected = np.zeros(len(rows), dtype=np.bool_)
        for reason, mask, value in _faults(rows, times, on_grid, labels, data):
            new_rejects = mask & ~rejected
            if new_rejects.any():
                valid = pl.Series(times.valid[new_rejects])
                clock = pl.select(pl.when(valid).then(pl.Series(times.clock[new_rejects]))).to_series()
                self.rejects.add(
                    table + reason, series=rows.runs.series_by_row()[new_rejects], clock=clock, value=value[new_rejects]
                )
                rejected |= new_rejects
        if rejected.any():
            rows = rows.keep(~rejected)
        if data.aggregate is None or finer is not None:
            rows = self._reject_duplicates(self._reject_distant(rows, table), finer or grid, table)
        if data.aggregate is None:
            return self._reject_late_steps(rows)
        assert rows.instant is not None
        rows = replace(rows, index=grid.floor_of(on_clock(rows.instant, grid)))
        return self._aggregate(self._reject_distant(rows, table))

    def _reject_distant(self, rows: Rows, table: str) -> Rows:
        """Return the rows without those that are far from the rest of their series."""
        is_distant = distant_rows(rows, len(self.names)) if self.resolved.data.end_share else None
        if is_distant is None:
            return rows
        self._reject(table + DISTANT, rows, is_distant)
        return rows.keep(~is_distant)

    def _reject_late_steps(self, rows: Rows) -> Rows:
        """Return the rows without those that are observed beyond the end of the panel."""
        if not self.complete or not self.resolved.data.end_share or not len(rows):
            return rows
        first, last, observed = observed_rows(rows, len(self.names))
        if not len(last):
            return rows
        late = (rows.index > common_end(first, last, observed, self.resolved.data.end_share)) & ~np.isnan(rows.target)
        if not late.any():
            return rows
        self._reject(LATE, rows, late)
        return rows.keep(~late)

    def _reject_duplicates(self, rows: Rows, grid: Grid, table: str) -> Rows:
        """Return one row for each series and time."""
        if not len(rows):
            return rows
        first, last = rows.limits(len(self.names))
        longest = int(np.argmax(last - first))
        n_steps = int(np.maximum(last - first + 1, 0).sum())
        check_steps(n_steps, len(rows), grid, self.names[longest], first[longest], last[longest])
        repeats = duplicates(rows, first, last)
        if repeats is None:
            return rows
        for reason, mask in zip(("duplicate key", "duplicate key with different values"), repeats, strict=True):
            self._reject(table + reason, rows, mask)
        return rows.keep(~(repeats[0] | repeats[1]))

    def _aggregate(self, rows: Rows) -> Rows:
        rejected = np.zeros(len(rows), dtype=np.bool_)
        if len(rows):
            for reason, mask in aggregate.faults(rows, self.resolved, len(self.names)):
                self._reject(reason, rows, mask)
                rejected |= mask
        rows = self._reject_late_steps(rows.keep(~rejected) if rejected.any() else rows)
        return aggregate.aggregate_rows(rows, self.resolved.data, self.categories)

    def _reject(self, reason: str, rows: Rows, mask: BoolArray) -> None:
        grid = self.resolved.grid
        clock = grid.clock(rows.index[mask]) if rows.instant is None else on_clock(rows.instant[mask], grid)
        self.rejects.add(
            reason, series=rows.runs.series_by_row()[mask], clock=pl.Series(clock), value=rows.target[mask]
        )


def _faults(
    rows: Rows, times: Times, on_grid: BoolArray, labels: Sequence[str], data: DataConfig
) -> Iterator[tuple[str, BoolArray, npt.NDArray[np.floating]]]:
    """Yield the rules that a row can break by itself: reason, mask of rows that break it, and the values at fault."""
    if (rows.runs.series < 0).any():
        yield "null series_id", np.repeat(rows.runs.series < 0, rows.runs.length), rows.target
    for reason, mask in times.faults:
        yield reason, mask, rows.target
    yield "off-grid timestamp", ~on_grid, rows.target
    for name, value in zip(labels, rows.columns()[len(rows.columns()) - len(labels) :], strict=True):
        if max(np.fmax.reduce(value, initial=0), -np.fmin.reduce(value, initial=0)) > MAX_MAGNITUDE:
            yield f"{name} not finite", np.isinf(value), value
            yield f"{name} beyond {MAX_MAGNITUDE:g}", (value > MAX_MAGNITUDE) | (value < -MAX_MAGNITUDE), value
        if name == data.weight and len(value) and np.fmin.reduce(value) < 0:
            yield f"{name} negative", value < 0, value
    if rows.available is not None:
        yield f"{data.available} neither 0 nor 1", (rows.available != 0) & (rows.available != 1), rows.available


def count_rows(rows_in: int, series_in: int, rows: Rows, steps: Steps) -> Counts:
    """Return the counts of all rows, from the remaining rows and their steps."""
    after = np.zeros(len(rows), dtype=np.bool_) if rows.after is None else rows.after
    n_after = rows.count(after)
    n_future = 0 if steps.future is None else rows.count(steps.future & ~after)
    n_unobserved = 0 if steps.unobserved is None else rows.count(steps.unobserved & ~after)
    return Counts(
        rows_in=rows_in,
        rows_kept=rows.count() - n_after - n_future - n_unobserved,
        rows_rejected=rows_in - rows.count() + n_unobserved,
        rows_future=n_future,
        rows_after_until=n_after,
        steps_filled=int(np.count_nonzero(np.isnan(steps.target))),
        series_in=series_in,
        series_kept=len(steps.series),
        series_rejected=series_in - len(steps.series),
    )
