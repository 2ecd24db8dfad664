"""Drift of a panel's columns: what is recent against the same part of the cycles before."""

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
"""Values that a window needs: of fewer, the index is mostly chance (its mean is about bins / values)."""
_DISCRETE: Final = 12
"""Distinct values up to which a column is compared value by value."""
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
    """The windows that are compared, by grid index: each is `length` steps from its first."""

    recent: int
    before: tuple[int, ...]
    """The same part of earlier cycles, the latest first; empty where the panel has none."""
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
    apart = -(-length // cycle) * cycle
    first = span.last - length + 1
    count = max(1, (span.recent - span.first) // recent)
    begin = int(panel.start.min()) if panel.n_series else first
    before = (first - number * apart for number in range(1, count + 1))
    return Cycles(first, tuple(at for at in before if at >= begin), length)


class _Window(NamedTuple):
    """What there is of a column in a window."""

    series: IntArray
    """[values], the number of the series of each observed value."""
    value: Array
    """[values]"""
    step: IntArray
    """[values], grid indices."""
    expected: int
    """Steps at which a value should be: all since the first one of each series."""

    def between(self, first: int, last: int) -> "_Window":
        """Return the values from one grid index to another; what is expected of these is not known."""
        inside = (self.step >= first) & (self.step <= last)
        return _Window(self.series[inside], self.value[inside], self.step[inside], 0)

    @property
    def missing(self) -> float:
        return 1 - len(self.value) / self.expected if self.expected else float("nan")


def drift(panel: Panel, data: DataConfig, categories: Mapping[str, Sequence[str]], windows: Cycles) -> pl.DataFrame:
    """Return a row for the target and for each past and known covariate.

    psi             population stability index, sum (p - q) ln(p / q) over bins (Siddiqi 2006, Credit Risk Scorecards):
                    the values of a column of a few values or categories, else tenths of the history; counts + 1/2
    psi_chance      what psi reaches in one of a hundred looks without drift, by how the windows of the history differ
                    among each other; where they are fewer than three, by how their steps differ
    ks              largest distance of the two distribution functions (Kolmogorov & Smirnov); null of categories
    missing         share of the steps, since a series began, that have no value; `_before` in the history
    unseen          share of the values that training has not seen; null where they are no categories
    values          observed values

    Numbers of more than a few values are in standard deviations of their series around its mean, both of all steps from
    the first window of the history up to the recent one. psi and ks are null if a window has fewer than 100 values, or
    if the panel has no earlier cycle.
    """
    columns: list[tuple[str, str, Callable[[Panel], TargetArray], int]] = [
        (data.columns.target, TARGET, lambda shard: shard.target, 0)
    ]
    for role, names in (("past", data.past_covariates), ("known", data.known_covariates)):
        for row, name in enumerate(names):
            columns.append((name, role, _row(role, row), panel.horizon if role == "known" else 0))
    rows = []
    for name, role, values, beyond in columns:
        now = _window(panel, values, beyond, windows.recent, windows.last(windows.recent))
        coded = name in categories
        first = min(windows.before, default=windows.recent)
        past = _window(panel, values, beyond, first, windows.recent - 1)
        parts = [past.between(at, windows.last(at)) for at in windows.before]
        expected = sum(_expected(panel, at, windows.last(at)) for at in windows.before)
        n_before = sum(len(part.value) for part in parts)
        psi, chance, ks = _distances(past, parts, now, coded)
        rows.append(
            {
                "column": name,
                "role": role,
                "psi": psi,
                "psi_chance": chance,
                "ks": ks,
                "missing": now.missing,
                "missing_before": 1 - n_before / expected if expected else None,
                "unseen": _unseen([now]) if coded else None,
                "unseen_before": _unseen(parts) if coded else None,
                "values": len(now.value),
                "values_before": n_before,
            }
        )
    return pl.DataFrame(rows, schema=_SCHEMA).with_columns(pl.col(pl.Float64).fill_nan(None))


def _row(role: str, row: int) -> Callable[[Panel], npt.NDArray[np.float32]]:
    return lambda shard: (shard.past if role == "past" else shard.known)[row]


def _window(panel: Panel, values: Callable[[Panel], TargetArray], beyond: int, first: int, last: int) -> _Window:
    """Return the values at grid indices `first` to `last`; a series has `beyond` steps after its end in the buffer."""
    series, found, step, number = [], [], [], 0
    for shard in panel.shards():
        held = shard.lengths + beyond
        begin = np.cumsum(held) - held
        low, high = (np.clip(edge - shard.start, 0, held) for edge in (first, last + 1))
        count = high - low
        each = np.repeat(np.arange(shard.n_series), count)
        at = np.arange(len(each)) + np.repeat(begin + low - (np.cumsum(count) - count), count)
        value = values(shard)[at].astype(np.float64)
        there = ~np.isnan(value)
        series.append(each[there] + number)
        found.append(value[there])
        step.append((shard.start[each] + at - begin[each])[there])
        number += shard.n_series
    return _Window(np.concatenate(series), np.concatenate(found), np.concatenate(step), _expected(panel, first, last))


def _expected(panel: Panel, first: int, last: int) -> int:
    return int(np.clip(last + 1 - np.maximum(panel.start, first), 0, None).sum())


def _unseen(windows: Sequence[_Window]) -> float | None:
    values = np.concatenate([np.zeros(0), *(window.value for window in windows)])
    return float((values == 0).mean()) if len(values) else None


def _distances(
    past: _Window, parts: Sequence[_Window], now: _Window, coded: bool
) -> tuple[float | None, float | None, float | None]:
    """Return psi, what it reaches by chance, and ks."""
    nothing = None, None, None
    if min(sum(len(part.value) for part in parts), len(now.value)) < _FEW:
        return nothing
    old, new = [part.value for part in parts], now.value
    distinct = np.unique(np.concatenate([*old, new]))
    if coded or len(distinct) <= _DISCRETE:
        edges = (distinct[:-1] + distinct[1:]) / 2
    else:
        mean, std = _units(past)
        begun = now.series[now.series < len(mean)]
        old = [(part.value - mean[part.series]) / std[part.series] for part in parts]
        new = (now.value[: len(begun)] - mean[begun]) / std[begun]
        new = new[np.isfinite(new)]
        if len(new) < _FEW:
            return nothing
        edges = np.unique(np.quantile(np.concatenate(old), np.linspace(0, 1, _BINS + 1)[1:-1]))
    counts = np.stack([_counts(values, edges) for values in old])
    recent = _counts(new, edges)
    steps = _by_step(parts, old, edges)
    chance = _chance_of_windows(counts, steps) if len(parts) > 2 else _chance_of_steps(steps, recent.sum())
    psi = _psi(counts.sum(0), recent)
    if coded:
        return psi, chance, None
    joint = np.concatenate(old)
    every = np.sort(np.concatenate([joint, new]))
    below = (np.searchsorted(np.sort(values), every, side="right") / len(values) for values in (joint, new))
    return psi, chance, float(np.abs(np.subtract(*below)).max())


def _counts(values: Array, edges: Array) -> Array:
    """Return the values in each bin."""
    return np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1).astype(np.float64)


def _psi(before: Array, now: Array) -> float:
    p, q = ((counts + 0.5) / (counts + 0.5).sum() for counts in (before, now))
    return float(((q - p) * np.log(q / p)).sum())


def _by_step(parts: Sequence[_Window], values: Sequence[Array], edges: Array) -> Array:
    """Return how many values each step of the history has in each bin, [step, bin], without bins that have none."""
    step = np.unique(np.concatenate([part.step for part in parts]), return_inverse=True)[1]
    n_bins = len(edges) + 1
    place = step * n_bins + np.searchsorted(edges, np.concatenate(values), side="right")
    table = np.bincount(place, minlength=n_bins * (int(step.max()) + 1)).reshape(-1, n_bins).astype(np.float64)
    return table[:, table.sum(0) > 0]


def _chance_of_windows(counts: Array, steps: Array) -> float:
    """Return what psi reaches by chance, from that of each window [window, bin] of the history against the others.

    It is compared with their mean as by an F test, with as many degrees of freedom as the steps vary in directions.
    """
    total, n = counts.sum(0), len(counts)
    mean = float(np.mean([_psi(total - own, own) for own in counts]))
    directions = _spread(steps)[1]
    return mean * (1 + 1 / n) / (1 + 1 / (n - 1)) * _f_quantile(directions, directions * (n - 1))


def _chance_of_steps(steps: Array, n_recent: float) -> float:
    """Return what psi reaches by chance, from the sizes of both windows (Yurdakul 2018).

    Each value counts less the more the steps differ by what series share (Rao & Scott 1981).
    """
    variance, directions = _spread(steps)
    noise = variance * (1 / n_recent + 1 / float(steps.sum()))
    return noise * _f_quantile(directions, directions * max(1, len(steps) - 1))


def _spread(steps: Array) -> tuple[float, float]:
    """Return by how much the shares of bins vary from step to step, and in how many directions.

    The first is bins - 1 where values are independent of each other, and not less.
    """
    size, share = steps.sum(1, keepdims=True), steps.sum(0) / steps.sum()
    deviation = (steps - size * share) / np.sqrt(size * share)
    spectrum = np.linalg.eigvalsh(deviation.T @ deviation / max(1, len(steps) - 1)).clip(0)
    directions = float(spectrum.sum() ** 2 / (spectrum**2).sum()) if spectrum.any() else 1.0
    return max(float(spectrum.sum()), len(share) - 1.0), directions


def _f_quantile(between: float, within: float) -> float:
    from scipy.special import fdtri

    return float(fdtri(between, within, 1 - _CHANCE))


def _units(past: _Window) -> tuple[Array, Array]:
    """Return mean and standard deviation of each series, [series]; NaN where it has no value."""
    n = 1 + int(past.series.max())
    count = np.bincount(past.series, minlength=n)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.bincount(past.series, past.value, n) / count
        deviation = past.value - mean[past.series]
        std = np.sqrt(np.bincount(past.series, deviation**2, n) / count)
    pooled = float(np.sqrt((deviation**2).mean())) or 1.0
    return mean, np.where(std > 0, std, pooled)
