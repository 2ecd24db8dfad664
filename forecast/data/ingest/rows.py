"""Rows of a table by column, with the series of each row as runs of consecutive rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
import polars as pl

from forecast.data.ingest.validate import ROWS
from forecast.data.panel import FloatArray, IntArray
from forecast.names import SERIES_ID

BoolArray = npt.NDArray[np.bool_]

# Rows processed at a time, so that intermediate arrays stay in the cache.
BLOCK: Final = 1 << 17


@dataclass(frozen=True)
class Runs:
    """The series of each row, as runs of consecutive rows of one series: few when a table is sorted by series."""

    series: IntArray
    """[runs], number of the series; -1 where series_id is null."""
    length: IntArray
    """[runs], rows."""

    @classmethod
    def of(cls, runs: pl.DataFrame, names: pl.Series | None = None) -> tuple[Self, pl.Series]:
        """Return the runs of a table, from `validate.run_lengths`, and the names of its series, sorted.

        Where `names` are given, rows of other series have the number -1.
        """
        series_id = runs[SERIES_ID]
        if names is None:
            names = series_id.drop_nulls().unique().sort()
        series = series_id.cast(pl.Enum(names), strict=False).to_physical().cast(pl.Int64).fill_null(-1)
        return cls(series.to_numpy(), runs[ROWS].to_numpy()), names

    @classmethod
    def of_numbers(cls, series: IntArray) -> Self:
        """Return the runs of rows, given the number of the series of each."""
        begins = np.ones(len(series), dtype=np.bool_)
        np.not_equal(series[1:], series[:-1], out=begins[1:])
        begin = np.flatnonzero(begins)
        return cls(series[begin], np.diff(begin, append=len(series)))

    def rows(self, per_series: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return, for each row, the value of its series."""
        return np.repeat(per_series[self.series], self.length)

    def series_by_row(self) -> IntArray:
        """Return the series of each row."""
        return np.repeat(self.series, self.length)

    def keep(self, rows: BoolArray) -> "Runs":
        """Return the runs of the rows in a mask."""
        return Runs.of_numbers(self.series_by_row()[rows])

    def reduce(self, function: np.ufunc, values: npt.NDArray[Any], initial: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return, for each series, `function` of the values of its rows and `initial`."""
        result = initial.copy()
        if len(self.series):
            starts = np.cumsum(self.length) - self.length
            function.at(result, self.series, function.reduceat(values, starts))
        return result


@dataclass(frozen=True)
class Rows:
    """Rows with a series and a grid index; column by column, in the order of the table."""

    runs: Runs
    index: IntArray
    target: npt.NDArray[np.float64]
    """[rows], NaN if unobserved."""
    past: Sequence[FloatArray]
    known: Sequence[FloatArray]
    after: BoolArray | None
    """Rows after data.until, None if there are none; their target and past covariates are NaN."""
    instant: IntArray | None = None
    """[rows], the instant of each row, if rows are to be aggregated."""
    merged: IntArray | None = None
    """[rows], how many rows of the table each row aggregates; None: one."""
    available: FloatArray | None = None
    """[rows], 0 where nothing could be sold, else 1; None without data.available."""

    def __len__(self) -> int:
        return len(self.index)

    def keep(self, rows: BoolArray) -> "Rows":
        """Return the rows in a mask."""
        return Rows(
            self.runs.keep(rows),
            self.index[rows],
            self.target[rows],
            [column[rows] for column in self.past],
            [column[rows] for column in self.known],
            None if self.after is None else self.after[rows],
            None if self.instant is None else self.instant[rows],
            None if self.merged is None else self.merged[rows],
            None if self.available is None else self.available[rows],
        )

    @cached_property
    def dense(self) -> bool:
        """Whether the rows of each series follow one another step by step, as in a sorted table without gaps."""
        # A series may have several consecutive runs, where its static covariates change.
        runs = self.runs
        changes = np.flatnonzero(runs.series[1:] != runs.series[:-1]) + 1
        if not len(self) or len(changes) >= runs.series.max() + 1:
            return False
        starts_of_series = np.append(0, changes)
        if np.bincount(runs.series[starts_of_series]).max() > 1:
            return False
        starts = (np.cumsum(runs.length) - runs.length)[changes]
        n_consecutive = sum(
            int(
                np.count_nonzero(
                    self.index[begin + 1 : begin + 1 + BLOCK]
                    - self.index[begin : begin + BLOCK][: len(self) - 1 - begin]
                    == 1
                )
            )
            for begin in range(0, len(self) - 1, BLOCK)
        )
        between = int(np.count_nonzero(self.index[starts] - self.index[starts - 1] == 1))
        return n_consecutive - between == len(self) - len(starts_of_series)

    def count(self, rows: BoolArray | None = None) -> int:
        """Return the number of table rows that the rows in a mask (all when None) aggregate."""
        if self.merged is None:
            return len(self) if rows is None else int(np.count_nonzero(rows))
        return int(self.merged.sum() if rows is None else self.merged[rows].sum())

    def limits(self, n_series: int) -> tuple[IntArray, IntArray]:
        """Return first and last index of each series, as `span`."""
        if n_series not in self._spans:
            self._spans[n_series] = span(self.runs, self.index, n_series)
        return self._spans[n_series]

    def observed_limits(self, n_series: int) -> tuple[IntArray, IntArray]:
        """Return first and last index with a target of each series; first > last where it has none."""
        if self.complete:
            return self.limits(n_series)
        key = -1 - n_series
        if key not in self._spans:
            observed, ends = ~np.isnan(self.target), np.iinfo(np.int64)
            no_first, no_last = np.full(n_series, ends.max // 2), np.full(n_series, ends.min // 2)
            first = self.runs.reduce(np.minimum, np.where(observed, self.index, ends.max // 2), no_first)
            last = self.runs.reduce(np.maximum, np.where(observed, self.index, ends.min // 2), no_last)
            self._spans[key] = first, last
        return self._spans[key]

    @cached_property
    def complete(self) -> bool:
        """Whether every row has a target."""
        return not np.isnan(self.target).any()

    @cached_property
    def _spans(self) -> dict[int, tuple[IntArray, IntArray]]:
        return {}

    def columns(self) -> list[npt.NDArray[np.floating]]:
        """Return target, past and known covariates."""
        return [self.target, *self.past, *self.known]

    def ahead(self) -> list[FloatArray]:
        """Return the columns that reach over the horizon: known covariates, then availability if there is any."""
        return [*self.known, *([] if self.available is None else [self.available])]


def span(runs: Runs, index: IntArray, n_series: int) -> tuple[IntArray, IntArray]:
    """Return first and last index of each series; first > last where it has no row."""
    limits = np.iinfo(np.int64)
    first = runs.reduce(np.minimum, index, np.full(n_series, limits.max // 2))
    return first, runs.reduce(np.maximum, index, np.full(n_series, limits.min // 2))


def cells(rows: Rows, first: IntArray, last: IntArray) -> tuple[IntArray, int]:
    """Return the position of each row among the steps `first` to `last` of all series, and the number of steps."""
    width = np.maximum(last - first + 1, 0)
    position: IntArray = rows.runs.rows(np.cumsum(width) - width - first)
    position += rows.index
    return position, int(width.sum())


def duplicates(rows: Rows, first: IntArray, last: IntArray) -> tuple[BoolArray, BoolArray] | None:
    """Return masks of rows that repeat an earlier row, and of rows that contradict one of the same key; or None."""
    if rows.dense:
        return None
    position, size = cells(rows, first, last)
    occupied = np.zeros(size, dtype=np.bool_)
    occupied[position] = True
    if np.count_nonzero(occupied) == len(rows):
        return None
    repeated = np.flatnonzero(np.bincount(position)[position] > 1)
    columns: list[npt.NDArray[np.floating]] = [rows.target, *rows.past, *rows.ahead()]
    table = pl.DataFrame([position[repeated], *(column[repeated] for column in columns)])
    key, *values = table.columns
    differs = table.select(pl.any_horizontal(pl.col(values).n_unique().over(key) > 1)).to_series().to_numpy()
    is_repeat = table.select(pl.int_range(pl.len()).over(key) > 0).to_series().to_numpy()
    same, different = np.zeros(len(rows), dtype=np.bool_), np.zeros(len(rows), dtype=np.bool_)
    same[repeated], different[repeated] = is_repeat & ~differs, differs
    return same, different
