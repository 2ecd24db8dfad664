"""Seasonal naive: its forecasts, and its in-sample errors, which scale MASE and RMSSE."""

from collections.abc import Iterator, Sequence
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from forecast.data.panel import IntArray, Panel
from forecast.data.windows import WindowIndex

Array = npt.NDArray[np.floating]


def _by_shard(panel: Panel, windows: WindowIndex) -> Iterator[tuple[IntArray, Panel, WindowIndex]]:
    """Yield the shards that hold series of the windows: numbers of the windows, the shard, and its windows."""
    order = np.argsort(windows.series, kind="stable")
    sorted_series, first = windows.series[order], 0
    for shard in panel.shards():
        last = first + shard.n_series
        numbers = order[slice(*np.searchsorted(sorted_series, [first, last]))]
        if len(numbers):
            yield numbers, shard, WindowIndex(windows.series[numbers] - first, windows.cutoff[numbers])
        first = last


def _seasonal_differences(panel: Panel, season: int) -> Array:
    """Return y[t] - y[t - season] at each step of the flat buffer, [N]; NaN where either is missing."""
    target = panel.target.astype(np.float64)
    step = np.arange(len(target)) - np.repeat(panel.offsets[:-1], panel.lengths)
    lagged = np.full_like(target, np.nan)
    lagged[season:] = target[: len(target) - season]
    lagged[step < season] = np.nan
    return target - lagged


def _up_to(panel: Panel, windows: WindowIndex, values: Array) -> Array:
    """Return the sum of `values` ([N]) from the start of each window's series up to its cutoff, [n].

    Cumulative sums over the buffer are avoided: small series would lose digits next to large ones.
    """
    begin = panel.offsets[windows.series]
    end = begin + np.clip(windows.cutoff + 1, 0, panel.lengths[windows.series])
    edges = np.stack([begin, end], axis=1).ravel()
    sums = np.add.reduceat(np.append(values, 0.0), edges)[::2]
    return np.where(end > begin, sums, 0.0)


def seasonal_naive_errors(panel: Panel, windows: WindowIndex, season: int) -> tuple[Array, Array]:
    """Return mean absolute and root mean square seasonal difference up to each cutoff, [n] both; NaN without any."""
    absolute, square = np.full((2, len(windows)), np.nan)
    for numbers, shard, shard_windows in _by_shard(panel, windows):
        differences = _seasonal_differences(shard, season)
        observed = np.isfinite(differences)
        values = np.where(observed, differences, 0.0)
        count = _up_to(shard, shard_windows, observed.astype(np.float64))
        with np.errstate(invalid="ignore", divide="ignore"):
            absolute[numbers] = _up_to(shard, shard_windows, np.abs(values)) / count
            square[numbers] = _up_to(shard, shard_windows, values**2) / count
    return absolute, np.sqrt(square)


SEASONS_BACK = 4
"""Number of past seasons in which seasonal naive looks for a value."""


def seasonal_naive(panel: Panel, windows: WindowIndex, *, horizon: int, season: int, levels: Sequence[float]) -> Array:
    """Return the last season repeated, with normal quantiles, [n, horizon, level]; NaN for a series without any value.

    One season back means the same time on the local clock. A missing value of the last season is taken from the season
    before (up to SEASONS_BACK), then from the last observed value. The standard deviation of step h is sigma *
    sqrt(seasons ahead), sigma the root mean square seasonal difference (Hyndman & Athanasopoulos, FPP3, 5.5).
    """
    point = _last_season(panel, windows, horizon, season)
    _, sigma = seasonal_naive_errors(panel, windows, season)
    deviates = np.array([NormalDist().inv_cdf(level) for level in levels])
    seasons_ahead = -(-np.arange(1, horizon + 1) // season)
    spread = np.nan_to_num(sigma)[:, None] * np.sqrt(seasons_ahead)[None]
    quantiles: Array = point[..., None] + spread[..., None] * deviates
    return quantiles


def seasonal_naive_classes(panel: Panel, windows: WindowIndex, *, horizon: int, season: int, n_classes: int) -> Array:
    """Return probabilities around the class of the last season, [n, horizon, class]; NaN for a series without any.

    That class has the share of steps up to the cutoff that equal the class one season before, (hits + 1) / (steps + 2).
    The remaining probability is divided among the other classes in proportion to their frequency, (count + 1) / (steps
    + classes). No class has probability 0.
    """
    point = _last_season(panel, windows, horizon, season)
    hit, count = np.empty(len(windows)), np.empty((len(windows), n_classes))
    for numbers, shard, shard_windows in _by_shard(panel, windows):
        differences = _seasonal_differences(shard, season)
        hits, steps = (
            _up_to(shard, shard_windows, values) for values in (differences == 0.0, np.isfinite(differences))
        )
        hit[numbers] = (hits + 1) / (steps + 2)
        for code in range(n_classes):
            count[numbers, code] = _up_to(shard, shard_windows, shard.target == code)
    frequency = (count + 1) / (count.sum(1, keepdims=True) + n_classes)
    has_class = np.isfinite(point)
    is_point = np.arange(n_classes) == point[..., None]
    remaining = np.where(is_point, 0.0, frequency[:, None])
    remaining *= (1 - hit)[:, None, None] / remaining.sum(-1, keepdims=True)
    return np.where(has_class[..., None], np.where(is_point, hit[:, None, None], remaining), np.nan)


def _last_season(panel: Panel, windows: WindowIndex, horizon: int, season: int) -> Array:
    """Return the point forecast of seasonal naive, [n, horizon]."""
    ahead = np.arange(1, horizon + 1)
    seasons_ahead = -(-ahead // season)
    offset, series_start = panel.offsets[windows.series], panel.start[windows.series][:, None]
    last = np.minimum(windows.cutoff, panel.lengths[windows.series] - 1)

    point = np.full((len(windows), horizon), np.nan)
    for back in range(SEASONS_BACK):
        step = windows.cutoff[:, None] + (ahead - season * (seasons_ahead + back))[None]
        step += panel.clock_shift_at(series_start + windows.cutoff[:, None] + ahead) - panel.clock_shift_at(
            series_start + step
        )
        inside = (step >= 0) & (step <= last[:, None])
        values = panel.target[np.where(inside, offset[:, None] + step, 0)]
        point = np.where(np.isnan(point) & inside, values, point)
    return np.where(np.isnan(point), last_values(panel, windows)[:, None], point)


def last_values(panel: Panel, windows: WindowIndex) -> Array:
    """Return the last observed value up to each cutoff, [n]; NaN without any."""
    values = np.full(len(windows), np.nan, dtype=np.float32)
    for numbers, shard, shard_windows in _by_shard(panel, windows):
        observed = np.isfinite(shard.target)
        latest = np.maximum.accumulate(np.where(observed, np.arange(len(observed)), -1))
        first = shard.offsets[shard_windows.series]
        end = first + np.minimum(shard_windows.cutoff, shard.lengths[shard_windows.series] - 1)
        index = latest[np.maximum(end, 0)]
        values[numbers] = np.where((end >= first) & (index >= first), shard.target[index], np.nan)
    return values


def future_weights(panel: Panel, windows: WindowIndex, horizon: int) -> Array:
    """Return the weights of the steps after each cutoff (data.weight), [n, horizon]; 0 outside the series."""
    step = windows.cutoff[:, None] + np.arange(1, horizon + 1)
    inside = (step >= 0) & (step < panel.lengths[windows.series][:, None])
    entries = np.where(inside, panel.offsets[windows.series][:, None] + step, 0)
    return np.where(inside, np.nan_to_num(panel.weight[0, entries]), 0.0).astype(np.float64)


def future_values(panel: Panel, windows: WindowIndex, horizon: int) -> Array:
    """Return the targets after each cutoff, [n, horizon]; NaN where not observed."""
    step = windows.cutoff[:, None] + np.arange(1, horizon + 1)
    inside = (step >= 0) & (step < panel.lengths[windows.series][:, None])
    values = panel.target[np.where(inside, panel.offsets[windows.series][:, None] + step, 0)]
    return np.where(inside, values, np.nan).astype(np.float64)
