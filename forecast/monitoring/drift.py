"""Drift of the columns of a panel: the recent window against the same part of earlier cycles."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from forecast.config import DataConfig
from forecast.data.panel import Panel, TargetArray
from forecast.data.time.frequency import DAY
from forecast.monitoring.stability import (
    bin_counts,
    chance_of_steps,
    chance_of_windows,
    counts_by_step,
    stability_index,
)
from forecast.names import TARGET

Array = npt.NDArray[np.float64]

_BINS: Final = 10
_FEW: Final = 100
"""Values that a window needs: with fewer, the index is mostly chance (its mean is about bins / values)."""
_DISCRETE: Final = 12
"""A column with at most this many distinct values is compared value by value."""
_SHARD: Final = 1 << 20
"""Steps of the panel read at a time."""
_MAX_VALUES: Final = 1 << 25
"""Steps in all windows above which psi and ks are of a sample of the series."""
_SCHEMA: Final = {
    "column": pl.String,
    "role": pl.String,
    "psi": pl.Float64,
    "psi_chance": pl.Float64,
    "ks": pl.Float64,
    "missing": pl.Float64,
    "missing_before": pl.Float64,
    "unseen": pl.Float64,
    "unseen_before": pl.Float64,
    "values": pl.Int64,
    "values_before": pl.Int64,
}


class Span(NamedTuple):
    """Two windows, by grid index: history is [first, recent), the recent one [recent, last]."""

    first: int
    recent: int
    last: int


class Cycles(NamedTuple):
    """The compared windows, by the grid index of their first step; each has `length` steps."""

    recent: int
    before: tuple[int, ...]
    """The same part of earlier cycles, the latest first; empty if the panel does not reach back that far."""
    length: int

    def last(self, first: int) -> int:
        """Return the last step of a window."""
        return first + self.length - 1


def cycles(panel: Panel, data: DataConfig, span: Span) -> Cycles:
    """Return the windows of a span in whole cycles, so that a weekday or a month is compared with its like.

    Steps of a day or less are compared by whole weeks: the recent window is lengthened to one. Longer ones have a cycle
    of a year, and are compared with the same steps of the years before. A longer data.season_length is the cycle. There
    are as many windows as the history is longer than the recent one, as far as the panel reaches back.
    """
    frequency = panel.grid.frequency
    if frequency.base == "microsecond":
        week = 7 * DAY // math.gcd(frequency.size, 7 * DAY)
    elif frequency.base == "day" and frequency.size < 7:
        week = 7 // math.gcd(frequency.size, 7)
    else:
        week = frequency.season_length if frequency.base == "business day" else 0
    cycle = week or frequency.season_length
    cycle *= -(-max(data.season_length or 1, 1) // cycle)
    recent = span.last - span.recent + 1
    length = -(-recent // week) * week if week else recent
    spacing = -(-length // cycle) * cycle
    first = span.last - length + 1
    count = max(1, (span.recent - span.first) // recent)
    panel_start = int(panel.start.min()) if panel.n_series else first
    before = (first - number * spacing for number in range(1, count + 1))
    return Cycles(first, tuple(start for start in before if start >= panel_start), length)


class _Window(NamedTuple):
    """The observed values of a column in a window, [values] all."""

    series: npt.NDArray[np.int32]
    """The index of the series of each value."""
    value: TargetArray
    step: npt.NDArray[np.int32]
    """Steps since the beginning of the window."""

    def between(self, first: int, last: int) -> "_Window":
        """Return the values between two steps."""
        inside = (self.step >= first) & (self.step <= last)
        return _Window(self.series[inside], self.value[inside], self.step[inside])


class _Counts(NamedTuple):
    """Numbers of values in a window."""

    values: int
    zeros: int
    """Of a categorical column, the values absent from training."""
    expected: int
    """Steps at which a value is expected: all since the first one of each series."""


class _Column(NamedTuple):
    """A column of a panel in its buffers."""

    name: str
    role: str
    values: Callable[[Panel], TargetArray]
    n_ahead: int
    """Steps in the buffer after each series."""

    def windows(self, panel: Panel, first: int, last: int) -> Iterator[_Window]:
        """Yield the values at grid indices `first` to `last`, some series at a time."""
        first_series = 0
        for shard in panel.shards(_SHARD):
            sizes = shard.lengths + self.n_ahead
            begin = np.cumsum(sizes) - sizes
            low, high = (np.clip(edge - shard.start, 0, sizes) for edge in (first, last + 1))
            count = high - low
            owner = np.repeat(np.arange(shard.n_series), count)
            position = np.arange(len(owner)) + np.repeat(begin + low - (np.cumsum(count) - count), count)
            value = self.values(shard)[position]
            observed = ~np.isnan(value)
            step = (shard.start[owner] + position - begin[owner])[observed] - first
            yield _Window((owner[observed] + first_series).astype(np.int32), value[observed], step.astype(np.int32))
            first_series += shard.n_series

    def window(self, panel: Panel, first: int, last: int) -> _Window:
        """Return the values at grid indices `first` to `last`."""
        series, value, step = zip(*self.windows(panel, first, last), strict=True)
        return _Window(np.concatenate(series), np.concatenate(value), np.concatenate(step))

    def counts(self, panel: Panel, first: int, last: int) -> _Counts:
        """Return the number of values at grid indices `first` to `last`."""
        counts = [(len(part.value), int((part.value == 0).sum())) for part in self.windows(panel, first, last)]
        values, zeros = np.sum(counts, axis=0).tolist()
        expected = np.clip(last + 1 - np.maximum(panel.start, first), 0, None).sum()
        return _Counts(values, zeros, int(expected))


def drift(panel: Panel, data: DataConfig, categories: Mapping[str, Sequence[str]], windows: Cycles) -> pl.DataFrame:
    """Return a row for the target and for each past and known covariate.

    psi             population stability index, sum (p - q) ln(p / q) over bins (Siddiqi 2006, Credit Risk Scorecards):
                    the values of a column of a few values or categories, else tenths of the history; counts + 1/2
    psi_chance      99th percentile of psi without drift, estimated from the differences between the windows of the
                    history; with fewer than three windows, from the differences between their steps
    ks              largest distance of the two distribution functions (Kolmogorov & Smirnov); null of categories
    missing         share of the steps, since a series began, that have no value; `_before` in the history
    unseen          share of the values absent from training; null for columns that are not categorical
    values          observed values

    Numeric columns with many distinct values are standardised by series, with the mean and standard deviation of all
    steps from the first window of the history up to the recent one. psi and ks are null if a window has fewer than 100
    values, or if the panel has no earlier cycle. With more than 2^25 steps in all windows they are of every nth series.
    """
    sample = _sample(panel, windows) if windows.before else panel
    rows = []
    for column in _columns(panel, data):
        is_coded = column.name in categories
        recent = column.counts(panel, windows.recent, windows.last(windows.recent))
        before = [column.counts(panel, first, windows.last(first)) for first in windows.before]
        psi, chance, ks = _distances(column, sample, windows, is_coded) if before else (None, None, None)
        rows.append(
            {
                "column": column.name,
                "role": column.role,
                "psi": psi,
                "psi_chance": chance,
                "ks": ks,
                "missing": _missing([recent]),
                "missing_before": _missing(before),
                "unseen": _unseen([recent]) if is_coded else None,
                "unseen_before": _unseen(before) if is_coded else None,
                "values": recent.values,
                "values_before": sum(counts.values for counts in before),
            }
        )
    return pl.DataFrame(rows, schema=_SCHEMA)


def _columns(panel: Panel, data: DataConfig) -> list[_Column]:
    columns = [_Column(data.columns.target, TARGET, lambda shard: shard.target, 0)]
    columns += [_Column(name, "past", _row("past", row), 0) for row, name in enumerate(data.past_covariates)]
    known = enumerate(data.known_covariates)
    return columns + [_Column(name, "known", _row("known", row), panel.horizon) for row, name in known]


def _row(role: str, row: int) -> Callable[[Panel], npt.NDArray[np.float32]]:
    return lambda shard: (shard.past if role == "past" else shard.known)[row]


def _sample(panel: Panel, windows: Cycles) -> Panel:
    """Return every nth series of a panel, so that they have at most _MAX_VALUES steps in all windows."""
    steps = panel.n_series * (windows.last(windows.recent) - min(windows.before) + 1)
    spacing = -(-steps // _MAX_VALUES)
    return panel if spacing == 1 else panel.take(np.arange(0, panel.n_series, spacing))


def _missing(windows: Sequence[_Counts]) -> float | None:
    expected = sum(counts.expected for counts in windows)
    return 1 - sum(counts.values for counts in windows) / expected if expected else None


def _unseen(windows: Sequence[_Counts]) -> float | None:
    values = sum(counts.values for counts in windows)
    return sum(counts.zeros for counts in windows) / values if values else None


def _distances(
    column: _Column, panel: Panel, windows: Cycles, is_coded: bool
) -> tuple[float | None, float | None, float | None]:
    """Return psi, its chance level, and ks."""
    undefined = None, None, None
    begin = min(windows.before)
    history = column.window(panel, begin, windows.recent - 1)
    parts = [history.between(first - begin, windows.last(first) - begin) for first in windows.before]
    recent = column.window(panel, windows.recent, windows.last(windows.recent))
    old: list[TargetArray] = [part.value for part in parts]
    new = recent.value
    if min(sum(map(len, old)), len(new)) < _FEW:
        return undefined
    distinct = np.unique(np.concatenate([*old, new])).astype(np.float64)
    if is_coded or len(distinct) <= _DISCRETE:
        edges = (distinct[:-1] + distinct[1:]) / 2
    else:
        mean, std = _units(history)
        started = recent.series[recent.series < len(mean)]
        old = [(part.value - mean[part.series]) / std[part.series] for part in parts]
        new = (recent.value[: len(started)] - mean[started]) / std[started]
        new = new[np.isfinite(new)]
        if len(new) < _FEW:
            return undefined
        edges = np.unique(np.quantile(np.concatenate(old), np.linspace(0, 1, _BINS + 1)[1:-1]))
    counts = np.stack([bin_counts(values, edges) for values in old])
    recent_counts = bin_counts(new, edges)
    steps = counts_by_step([part.step for part in parts], old, edges)
    chance = chance_of_windows(counts, steps) if len(parts) > 2 else chance_of_steps(steps, recent_counts.sum())
    psi = stability_index(counts.sum(0), recent_counts)
    if is_coded:
        return psi, chance, None
    joint = np.concatenate(old)
    all_values = np.sort(np.concatenate([joint, new]))
    below = (np.searchsorted(np.sort(values), all_values, side="right") / len(values) for values in (joint, new))
    return psi, chance, float(np.abs(np.subtract(*below)).max())


def _units(history: _Window) -> tuple[Array, Array]:
    """Return mean and standard deviation of each series, [series]; NaN where it has no value."""
    n = 1 + int(history.series.max())
    count = np.bincount(history.series, minlength=n)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.bincount(history.series, history.value, n) / count
        deviation = history.value - mean[history.series]
        std = np.sqrt(np.bincount(history.series, deviation**2, n) / count)
    pooled_std = float(np.sqrt((deviation**2).mean())) or 1.0
    return mean, np.where(std > 0, std, pooled_std)
