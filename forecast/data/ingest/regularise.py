"""From rows to the steps of a grid, by index arithmetic without sorts or joins: rows may be in any order."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from forecast.data.ingest.rows import BoolArray, Rows, cells
from forecast.data.panel import RESOLUTION, FloatArray, IntArray, TargetArray


@dataclass(frozen=True)
class Steps:
    """The series that were observed, step by step."""

    series: IntArray
    """[S], numbers among all series."""
    start: IntArray
    offsets: IntArray
    target: TargetArray
    past: FloatArray
    unobserved: BoolArray | None
    """Rows of a series without any observed target, None if there are none."""
    future: BoolArray | None
    """Rows without a target after the last observed one of their series, None if there are none."""


def regularise(rows: Rows, n_series: int) -> Steps:
    """Return the steps of each series from its first to its last observed target, NaN where there is no value."""
    runs, observed, complete = rows.runs, ~np.isnan(rows.target), rows.complete
    first, last = rows.observed_limits(n_series)
    length = np.maximum(last - first + 1, 0)
    if complete and rows.dense:
        return _dense_steps(rows, first, length, target_type(rows, n_series))
    position, n_steps = cells(rows, first, last)
    inside, unobserved, future = observed, None, None
    if not complete:
        is_after = rows.index > runs.rows(last)
        inside = ~is_after & (rows.index >= runs.rows(first))
        unobserved = runs.rows(length == 0)
        future = is_after & ~unobserved

    is_observed = length > 0
    return Steps(
        series=np.flatnonzero(is_observed),
        start=first[is_observed],
        offsets=np.append(0, np.cumsum(length[is_observed])),
        target=_scatter(n_steps, position, [rows.target], observed, target_type(rows, n_series))[0],
        past=_scatter(n_steps, position, rows.past, inside),
        unobserved=unobserved,
        future=future,
    )


def target_type(rows: Rows, n_series: int) -> npt.DTypeLike:
    """Return float32 for the target, or float64 where rounding would hide much of the variation of some series."""
    if not len(rows):
        return np.float32
    high, low = (rows.runs.reduce(function, rows.target, np.full(n_series, np.nan)) for function in (np.fmax, np.fmin))
    size = np.fmax(np.abs(high), np.abs(low))
    rounding = np.finfo(np.float32).eps * size
    # Rounding a constant does no harm, unless it is a large whole number.
    fine = (rounding <= RESOLUTION * (high - low)) | ((high == low) & (size < 1 / np.finfo(np.float32).eps))
    doubtful = np.flatnonzero(~fine & ~np.isnan(size))
    if not len(doubtful):
        return np.float32
    values = rows.target[np.isin(rows.runs.series_by_row(), doubtful) & ~np.isnan(rows.target)]
    return np.float32 if (values.astype(np.float32) == values).all() else np.float64


def _dense_steps(rows: Rows, first: IntArray, length: IntArray, kind: npt.DTypeLike) -> Steps:
    """Return the steps of rows that are dense and have all targets, without any scatter."""
    series = rows.runs.series
    columns = rows.columns()[: 1 + len(rows.past)]
    if (np.diff(series) < 0).any():
        order = np.argsort(series, kind="stable")
        starts = np.cumsum(rows.runs.length) - rows.runs.length
        entries = ranges(starts[order], rows.runs.length[order])
        columns = [column[entries] for column in columns]
    numbers = np.unique(series)
    past = np.empty((len(rows.past), len(rows)), dtype=np.float32)
    for buffer, column in zip(past, columns[1:], strict=True):
        buffer[:] = column
    return Steps(
        series=numbers,
        start=first[numbers],
        offsets=np.append(0, np.cumsum(length[numbers])),
        target=columns[0].astype(kind),
        past=past,
        unobserved=None,
        future=None,
    )


def ranges(first: IntArray, length: IntArray) -> IntArray:
    """Return first[0], first[0] + 1, ... (length[0] of them), first[1], ..."""
    ends = np.cumsum(length)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(first - ends + length, length)


def known_steps(steps: Steps, rows: Rows, n_series: int, horizon: int) -> FloatArray:
    """Return `Rows.ahead` of each series over its steps and `horizon` more, [columns, N + S * horizon].

    NaN where there is no value. Rows of series that are not in `steps`, or outside their range, are ignored.
    """
    size = len(steps.target) + horizon * len(steps.series)
    columns = rows.ahead()
    if not columns:
        return np.empty((0, size), dtype=np.float32)
    first, last, base = np.zeros((3, n_series), dtype=np.int64)
    last -= 1  # An empty range for series that are not in `steps`.
    first[steps.series] = steps.start
    last[steps.series] = steps.start + np.diff(steps.offsets) - 1 + horizon
    base[steps.series] = steps.offsets[:-1] + horizon * np.arange(len(steps.series)) - steps.start
    inside = (rows.index >= rows.runs.rows(first)) & (rows.index <= rows.runs.rows(last))
    return _scatter(size, rows.runs.rows(base) + rows.index, columns, inside)


def shared_known_steps(steps: Steps, rows: Rows, horizon: int) -> FloatArray:
    """Return the result of `known_steps` for covariates that all series share, given as rows of one series."""
    begin = int(steps.start.min())
    length = np.diff(steps.offsets) + horizon
    columns = rows.ahead()
    shared = np.full((len(columns), int((steps.start + length).max()) - begin), np.nan, dtype=np.float32)
    inside = (rows.index >= begin) & (rows.index < begin + shared.shape[1])
    shared[:, rows.index[inside] - begin] = np.stack(columns)[:, inside]
    ends = np.cumsum(length)
    values = np.empty((len(shared), int(ends[-1])), dtype=np.float32)
    for number, (start, end) in enumerate(zip(steps.start - begin, ends, strict=True)):
        values[:, end - length[number] : end] = shared[:, start : start + length[number]]
    return values


def _scatter(
    size: int,
    position: IntArray,
    columns: Sequence[npt.NDArray[Any]],
    rows: BoolArray,
    kind: npt.DTypeLike = np.float32,
) -> npt.NDArray[Any]:
    """Return columns as [columns, size], NaN at positions without a row."""
    buffers = np.full((len(columns), size), np.nan, dtype=kind)
    all_rows = bool(rows.all())
    for buffer, column in zip(buffers, columns, strict=True):
        if all_rows:
            buffer[position] = column
        else:
            buffer[position[rows]] = column[rows]
    return buffers
