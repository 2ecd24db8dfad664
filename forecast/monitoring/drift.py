"""Drift of the columns of a panel: the recent window against the same part of earlier cycles."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from forecast.config import DataConfig
from forecast.data.panel import IntArray, Panel, TargetArray
from forecast.data.time.frequency import DAY
from forecast.names import TARGET

Array = npt.NDArray[np.float64]

_BINS: Final = 10
_FEW: Final = 100
"""Values that a window needs: with fewer, the index is mostly chance (its mean is about bins / values)."""
_DISCRETE: Final = 12
"""A column with at most this many distinct values is compared value by value."""
_CHANCE: Final = 0.01
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
    """The observed values of a column in a window."""

    series: IntArray
    """[values], the index of the series of each observed value."""
    value: Array
    """[values]"""
    step: IntArray
    """[values], grid indices."""
    expected: int
    """Number of steps at which a value is expected: all steps since the first one of each series."""

    def between(self, first: int, last: int) -> "_Window":
        """Return the values between two grid indices; their `expected` is unknown and set to 0."""
        inside = (self.step >= first) & (self.step <= last)
        return _Window(self.series[inside], self.value[inside], self.step[inside], 0)

    @property
    def missing(self) -> float:
        return 1 - len(self.value) / self.expected if self.expected else float("nan")


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
    values, or if the panel has no earlier cycle.
    """
    columns: list[tuple[str, str, Callable[[Panel], TargetArray], int]] = [
        (data.columns.target, TARGET, lambda shard: shard.target, 0)
    ]
    for role, names in (("past", data.past_covariates), ("known", data.known_covariates)):
        for row, name in enumerate(names):
            columns.append((name, role, _row(role, row), panel.horizon if role == "known" else 0))
    rows = []
    for name, role, values, n_ahead in columns:
        recent = _window(panel, values, n_ahead, windows.recent, windows.last(windows.recent))
        is_coded = name in categories
        first = min(windows.before, default=windows.recent)
        history = _window(panel, values, n_ahead, first, windows.recent - 1)
        parts = [history.between(start, windows.last(start)) for start in windows.before]
        expected = sum(_expected(panel, start, windows.last(start)) for start in windows.before)
        n_before = sum(len(part.value) for part in parts)
        psi, chance, ks = _distances(history, parts, recent, is_coded)
        rows.append(
            {
                "column": name,
                "role": role,
                "psi": psi,
                "psi_chance": chance,
                "ks": ks,
                "missing": recent.missing,
                "missing_before": 1 - n_before / expected if expected else None,
                "unseen": _unseen([recent]) if is_coded else None,
                "unseen_before": _unseen(parts) if is_coded else None,
                "values": len(recent.value),
                "values_before": n_before,
            }
        )
    return pl.DataFrame(rows, schema=_SCHEMA).with_columns(pl.col(pl.Float64).fill_nan(None))


def _row(role: str, row: int) -> Callable[[Panel], npt.NDArray[np.float32]]:
    return lambda shard: (shard.past if role == "past" else shard.known)[row]


def _window(panel: Panel, values: Callable[[Panel], TargetArray], n_ahead: int, first: int, last: int) -> _Window:
    """Return the values at grid indices `first` to `last`; the buffer has `n_ahead` steps after each series."""
    series, observed_values, step, first_series = [], [], [], 0
    for shard in panel.shards():
        sizes = shard.lengths + n_ahead
        begin = np.cumsum(sizes) - sizes
        low, high = (np.clip(edge - shard.start, 0, sizes) for edge in (first, last + 1))
        count = high - low
        owner = np.repeat(np.arange(shard.n_series), count)
        position = np.arange(len(owner)) + np.repeat(begin + low - (np.cumsum(count) - count), count)
        value = values(shard)[position].astype(np.float64)
        observed = ~np.isnan(value)
        series.append(owner[observed] + first_series)
        observed_values.append(value[observed])
        step.append((shard.start[owner] + position - begin[owner])[observed])
        first_series += shard.n_series
    return _Window(
        np.concatenate(series), np.concatenate(observed_values), np.concatenate(step), _expected(panel, first, last)
    )


def _expected(panel: Panel, first: int, last: int) -> int:
    return int(np.clip(last + 1 - np.maximum(panel.start, first), 0, None).sum())


def _unseen(windows: Sequence[_Window]) -> float | None:
    values = np.concatenate([np.zeros(0), *(window.value for window in windows)])
    return float((values == 0).mean()) if len(values) else None


def _distances(
    history: _Window, parts: Sequence[_Window], recent: _Window, is_coded: bool
) -> tuple[float | None, float | None, float | None]:
    """Return psi, its chance level, and ks."""
    undefined = None, None, None
    if min(sum(len(part.value) for part in parts), len(recent.value)) < _FEW:
        return undefined
    old, new = [part.value for part in parts], recent.value
    distinct = np.unique(np.concatenate([*old, new]))
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
    counts = np.stack([_counts(values, edges) for values in old])
    recent_counts = _counts(new, edges)
    steps = _by_step(parts, old, edges)
    chance = _chance_of_windows(counts, steps) if len(parts) > 2 else _chance_of_steps(steps, recent_counts.sum())
    psi = _psi(counts.sum(0), recent_counts)
    if is_coded:
        return psi, chance, None
    joint = np.concatenate(old)
    all_values = np.sort(np.concatenate([joint, new]))
    below = (np.searchsorted(np.sort(values), all_values, side="right") / len(values) for values in (joint, new))
    return psi, chance, float(np.abs(np.subtract(*below)).max())


def _counts(values: Array, edges: Array) -> Array:
    """Return the number of values in each bin, [bin]."""
    return np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1).astype(np.float64)


def _psi(reference: Array, recent: Array) -> float:
    p, q = ((counts + 0.5) / (counts + 0.5).sum() for counts in (reference, recent))
    return float(((q - p) * np.log(q / p)).sum())


def _by_step(parts: Sequence[_Window], values: Sequence[Array], edges: Array) -> Array:
    """Return the number of values of each step of the history in each bin, [step, bin], without empty bins."""
    step = np.unique(np.concatenate([part.step for part in parts]), return_inverse=True)[1]
    n_bins = len(edges) + 1
    cell = step * n_bins + np.searchsorted(edges, np.concatenate(values), side="right")
    table = np.bincount(cell, minlength=n_bins * (int(step.max()) + 1)).reshape(-1, n_bins).astype(np.float64)
    return table[:, table.sum(0) > 0]


def _chance_of_windows(counts: Array, steps: Array) -> float:
    """Return the chance level of psi, from psi of each window of the history against the others.

    `counts` is [window, bin]. The level follows an F test against the mean, whose degrees of freedom are the effective
    directions in which steps vary.
    """
    total, n = counts.sum(0), len(counts)
    mean = float(np.mean([_psi(total - window, window) for window in counts]))
    directions = _spread(steps)[1]
    return mean * (1 + 1 / n) / (1 + 1 / (n - 1)) * _f_quantile(directions, directions * (n - 1))


def _chance_of_steps(steps: Array, n_recent: float) -> float:
    """Return the chance level of psi, from the sizes of both windows (Yurdakul 2018).

    Values are down-weighted where steps differ by effects that series share (Rao & Scott 1981).
    """
    variance, directions = _spread(steps)
    noise = variance * (1 / n_recent + 1 / float(steps.sum()))
    return noise * _f_quantile(directions, directions * max(1, len(steps) - 1))


def _spread(steps: Array) -> tuple[float, float]:
    """Return the total variance of bin shares between steps, and the effective number of directions in which they vary.

    The variance is bins - 1 for independent values, and never less.
    """
    size, share = steps.sum(1, keepdims=True), steps.sum(0) / steps.sum()
    deviation = (steps - size * share) / np.sqrt(size * share)
    spectrum = np.linalg.eigvalsh(deviation.T @ deviation / max(1, len(steps) - 1)).clip(0)
    directions = float(spectrum.sum() ** 2 / (spectrum**2).sum()) if spectrum.any() else 1.0
    return max(float(spectrum.sum()), len(share) - 1.0), directions


def _f_quantile(between: float, within: float) -> float:
    from scipy.special import fdtri

    return float(fdtri(between, within, 1 - _CHANCE))


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
