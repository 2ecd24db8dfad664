"""Rows to the steps of a grid, by arithmetic: nothing is sorted or joined, so rows may come in any order."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import polars as pl

from forecast.data.panel import FloatArray, IntArray

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Runs:
    """The series of each row, as runs of consecutive rows of one series: few when a table is sorted by series."""

    series: IntArray
    """[runs], number of the series; -1 where series_id is null."""
    length: IntArray
    """[runs], rows."""

    @classmethod
    def of(cls, series_id: pl.Series) -> tuple[Self, pl.Series]:
        """Return the runs of a column, and the names of its series, sorted."""
        runs = series_id.rle().struct.unnest()
        names = runs["value"].drop_nulls().unique().sort()
        series = runs["value"].cast(pl.Enum(names)).to_physical().cast(pl.Int64).fill_null(-1)
        return cls(series.to_numpy(), runs["len"].cast(pl.Int64).to_numpy()), names

    def rows(self, per_series: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return, for each row, the value of its series."""
        return np.repeat(per_series[self.series], self.length)

    def each(self) -> IntArray:
        """Return the series of each row."""
        return np.repeat(self.series, self.length)

    def keep(self, rows: BoolArray) -> "Runs":
        """Return the runs of some rows."""
        series = self.each()[rows]
        first = np.flatnonzero(np.diff(series, prepend=-2))
        return Runs(series[first], np.diff(first, append=len(series)))

    def reduce(self, function: np.ufunc, values: npt.NDArray[Any], initial: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return, for each series, `function` of the values of its rows and `initial`."""
        result = initial.copy()
        if len(self.series):
            starts = np.cumsum(self.length) - self.length
            function.at(result, self.series, function.reduceat(values, starts))
        return result


@dataclass(frozen=True)
class Rows:
    """Rows with a series and a place on the grid; column by column, in the order of the table."""

    runs: Runs
    index: IntArray
    target: npt.NDArray[np.float64]
    """NaN where nothing was observed."""
    past: Sequence[FloatArray]
    known: Sequence[FloatArray]
    after: BoolArray | None
    """Rows after data.until, None if there are none; their target and past covariates are NaN."""

    def __len__(self) -> int:
        return len(self.index)

    def keep(self, rows: BoolArray) -> "Rows":
        """Return some of the rows."""
        return Rows(
            self.runs.keep(rows),
            self.index[rows],
            self.target[rows],
            [column[rows] for column in self.past],
            [column[rows] for column in self.known],
            None if self.after is None else self.after[rows],
        )


def span(runs: Runs, index: IntArray, n_series: int) -> tuple[IntArray, IntArray]:
    """Return first and last index of each series; first > last where it has no row."""
    limits = np.iinfo(np.int64)
    first = runs.reduce(np.minimum, index, np.full(n_series, limits.max // 2))
    return first, runs.reduce(np.maximum, index, np.full(n_series, limits.min // 2))


def duplicates(rows: Rows, first: IntArray, last: IntArray) -> tuple[BoolArray, BoolArray] | None:
    """Return which rows repeat one that is kept, and which differ from another row of their key; None if none do."""
    width = np.maximum(last - first + 1, 0)
    position = rows.runs.rows(np.cumsum(width) - width - first)
    position += rows.index
    seen = np.zeros(width.sum(), dtype=np.bool_)
    seen[position] = True
    if np.count_nonzero(seen) == len(rows):
        return None
    repeated = np.flatnonzero(np.bincount(position)[position] > 1)
    columns: list[npt.NDArray[np.floating]] = [rows.target, *rows.past, *rows.known]
    table = pl.DataFrame([position[repeated], *(column[repeated] for column in columns)])
    key, *values = table.columns
    differs = table.select(pl.any_horizontal(pl.col(values).n_unique().over(key) > 1)).to_series().to_numpy()
    again = table.select(pl.int_range(pl.len()).over(key) > 0).to_series().to_numpy()
    same, different = np.zeros(len(rows), dtype=np.bool_), np.zeros(len(rows), dtype=np.bool_)
    same[repeated], different[repeated] = again & ~differs, differs
    return same, different


@dataclass(frozen=True)
class Steps:
    """The series that were observed, step by step."""

    series: IntArray
    """[S], their numbers among all series."""
    start: IntArray
    offsets: IntArray
    target: FloatArray
    past: FloatArray
    known: FloatArray
    unobserved: BoolArray | None
    """Rows of a series without any observed target, None if there are none."""
    future: BoolArray | None
    """Rows without a target after the last observed one of their series, None if there are none."""


def regularise(rows: Rows, n_series: int, horizon: int) -> Steps:
    """Return the steps of each series from its first to its last observed target, NaN where there is no value."""
    runs, observed = rows.runs, ~np.isnan(rows.target)
    complete = bool(observed.all())
    if complete:
        first, last = span(runs, rows.index, n_series)
    else:
        seen = runs.keep(observed)
        first, last = span(seen, rows.index[observed], n_series)
    length = np.maximum(last - first + 1, 0)
    offsets = np.cumsum(length) - length
    n_steps = int(length.sum())
    position = runs.rows(offsets - first)
    position += rows.index

    inside, unobserved, future = observed, None, None
    if not complete:
        behind = rows.index > runs.rows(last)
        inside = ~behind & (rows.index >= runs.rows(first))
        unobserved = runs.rows(length == 0)
        future = behind & ~unobserved

    kept = length > 0
    target = _scatter(n_steps, position, [rows.target], observed)[0]
    past = _scatter(n_steps, position, rows.past, inside)
    if rows.known:
        # Series s has s more horizons before it than in the other buffers.
        position += runs.rows(horizon * (np.cumsum(kept) - kept))
        near = runs.rows(kept) & (rows.index >= runs.rows(first)) & (rows.index <= runs.rows(last + horizon))
        known = _scatter(n_steps + horizon * int(kept.sum()), position, rows.known, near)
    else:
        known = np.empty((0, n_steps + horizon * int(kept.sum())), dtype=np.float32)
    return Steps(
        series=np.flatnonzero(kept),
        start=first[kept],
        offsets=np.append(offsets[kept], n_steps),
        target=target,
        past=past,
        known=known,
        unobserved=unobserved,
        future=future,
    )


def _scatter(size: int, position: IntArray, columns: Sequence[npt.NDArray[Any]], rows: BoolArray) -> FloatArray:
    """Return [columns, size], NaN where no row is."""
    buffers = np.full((len(columns), size), np.nan, dtype=np.float32)
    everywhere = bool(rows.all())
    for buffer, column in zip(buffers, columns, strict=True):
        if everywhere:
            buffer[position] = column
        else:
            buffer[position[rows]] = column[rows]
    return buffers
