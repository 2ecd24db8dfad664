"""Rows placed on the grid, series by series."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from forecast.data.ingest import aggregate, validate
from forecast.data.ingest.extent import common_end, distant, observed_rows
from forecast.data.ingest.regularise import Steps
from forecast.data.ingest.rejects import DISTANT, LATE, Counts, Rejects, check_steps
from forecast.data.ingest.rows import BoolArray, Rows, duplicates
from forecast.data.ingest.timestamps import Settled, Times, on_clock
from forecast.data.time.grid import Grid
from forecast.names import MAX_MAGNITUDE


def hide_rows(values: npt.NDArray[Any], rows: BoolArray | None) -> npt.NDArray[Any]:
    """Return values with NaN in some rows."""
    return values if rows is None else np.where(rows, np.nan, values).astype(values.dtype, copy=False)


@dataclass(frozen=True)
class Placing:
    """Puts the rows of a table on the grid and refuses those that break a rule."""

    settled: Settled
    names: pl.Series
    rejects: Rejects
    categories: validate.Categories
    whole: bool
    """Whether these are all series of the panel, so that they tell where it ends."""

    def __call__(self, rows: Rows, times: Times, labels: Sequence[str], table: str = "") -> Rows:
        """Return one row per series and step; `labels` name the columns of values, `table` begins the reasons."""
        data, grid, finer = self.settled.data, self.settled.grid, self.settled.finer
        if data.aggregate is None:
            index, on_grid = grid.place(times.clock)
        elif finer is not None:
            assert times.instant is not None
            index, on_grid = finer.place(on_clock(times.instant, finer))
        else:
            assert times.instant is not None
            index, on_grid = times.instant, np.ones(len(rows), dtype=np.bool_)
        rows = replace(rows, index=index)
        bad = np.zeros(len(rows), dtype=np.bool_)
        for reason, mask, value in _faults(rows, times, on_grid, labels):
            fresh = mask & ~bad
            if fresh.any():
                known = pl.Series(times.known[fresh])
                clock = pl.select(pl.when(known).then(pl.Series(times.clock[fresh]))).to_series()
                self.rejects.add(table + reason, series=rows.runs.each()[fresh], clock=clock, value=value[fresh])
                bad |= fresh
        if bad.any():
            rows = rows.keep(~bad)
        if data.aggregate is None or finer is not None:
            rows = self._unique(self._near(rows, table), finer or grid, table)
        if data.aggregate is None:
            return self._up_to_end(rows)
        assert rows.instant is not None
        rows = replace(rows, index=grid.floor_of(on_clock(rows.instant, grid)))
        return self._put_together(self._near(rows, table))

    def _near(self, rows: Rows, table: str) -> Rows:
        """Return the rows without those that are far from the rest of their series."""
        apart = distant(rows, len(self.names)) if self.settled.data.end_share else None
        if apart is None:
            return rows
        self._reject(table + DISTANT, rows, apart)
        return rows.keep(~apart)

    def _up_to_end(self, rows: Rows) -> Rows:
        """Return the rows without those that are observed beyond the end of the panel."""
        if not self.whole or not self.settled.data.end_share or not len(rows):
            return rows
        first, last, observed = observed_rows(rows, len(self.names))
        if not len(last):
            return rows
        late = (rows.index > common_end(first, last, observed, self.settled.data.end_share)) & ~np.isnan(rows.target)
        if not late.any():
            return rows
        self._reject(LATE, rows, late)
        return rows.keep(~late)

    def _unique(self, rows: Rows, grid: Grid, table: str) -> Rows:
        """Return one row for each series and time."""
        if not len(rows):
            return rows
        first, last = rows.limits(len(self.names))
        widest = int(np.argmax(last - first))
        steps = int(np.maximum(last - first + 1, 0).sum())
        check_steps(steps, len(rows), grid, self.names[widest], first[widest], last[widest])
        found = duplicates(rows, first, last)
        if found is None:
            return rows
        for reason, mask in zip(("duplicate key", "duplicate key with different values"), found, strict=True):
            self._reject(table + reason, rows, mask)
        return rows.keep(~(found[0] | found[1]))

    def _put_together(self, rows: Rows) -> Rows:
        bad = np.zeros(len(rows), dtype=np.bool_)
        if len(rows):
            for reason, mask in aggregate.faults(rows, self.settled, len(self.names)):
                self._reject(reason, rows, mask)
                bad |= mask
        rows = self._up_to_end(rows.keep(~bad) if bad.any() else rows)
        return aggregate.put_together(rows, self.settled.data, self.categories)

    def _reject(self, reason: str, rows: Rows, mask: BoolArray) -> None:
        grid = self.settled.grid
        clock = grid.clock(rows.index[mask]) if rows.instant is None else on_clock(rows.instant[mask], grid)
        self.rejects.add(reason, series=rows.runs.each()[mask], clock=pl.Series(clock), value=rows.target[mask])


def _faults(
    rows: Rows, times: Times, on_grid: BoolArray, labels: Sequence[str]
) -> Iterator[tuple[str, BoolArray, npt.NDArray[np.floating]]]:
    """Yield each rule that a row can break by itself: reason, which rows break it, and the value at fault."""
    if (rows.runs.series < 0).any():
        yield "null series_id", np.repeat(rows.runs.series < 0, rows.runs.length), rows.target
    for reason, mask in times.faults:
        yield reason, mask, rows.target
    yield "off-grid timestamp", ~on_grid, rows.target
    for name, value in zip(labels, rows.columns()[-len(labels) :], strict=True):
        if max(np.fmax.reduce(value, initial=0), -np.fmin.reduce(value, initial=0)) > MAX_MAGNITUDE:
            yield f"{name} not finite", np.isinf(value), value
            yield f"{name} beyond {MAX_MAGNITUDE:g}", (value > MAX_MAGNITUDE) | (value < -MAX_MAGNITUDE), value


def count_rows(rows_in: int, series_in: int, rows: Rows, steps: Steps) -> Counts:
    """Return where all rows went, from those that are left and their steps."""
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
