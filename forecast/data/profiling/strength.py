"""Strengths of trend and season, from a decomposition by moving averages."""

from typing import Final

import numpy as np
import numpy.typing as npt

from forecast.data.panel import IntArray, Panel

Array = npt.NDArray[np.float64]

# Steps of the moving average that gives the trend of a series without season.
_WINDOW: Final = 5


def sum_per_series(values: Array, begin: IntArray) -> Array:
    """Return the sum of each series, [S]."""
    sums: Array = np.add.reduceat(values, begin)
    return sums


def count_per_series(values: npt.NDArray[np.bool_], begin: IntArray) -> IntArray:
    """Return the number of true values of each series, [S]."""
    counts: IntArray = np.add.reduceat(values, begin, dtype=np.int64)
    return counts


def strengths(
    panel: Panel, standard: Array, season_length: int, eligible: npt.NDArray[np.bool_], rounding: Array
) -> tuple[Array, Array]:
    """Return the strengths of season and trend, [S] each, of standardised values ([N], NaN: missing).

    The series is decomposed as y = T + S + R by moving averages: T over a season (2 x m for an even one; _WINDOW steps
    without season), continued at both ends along the line between its own ends, and S the mean of y - T at each place
    of the season on the local clock. Strengths are max(0, 1 - var(R) / var(S + R)) and max(0, 1 - var(R) / var(T + R))
    (Wang, Smith & Hyndman, "Characteristic-based clustering for time series data", DMKD 13, 2006, in the form of
    Hyndman & Athanasopoulos, FPP3, 4.3). Unlike there, each variance has the divisor that makes it unbiased for white
    noise: else the m means of a few short seasons explain noise, and it would look seasonal.

    NaN for series that are not `eligible`, are shorter than two seasons (windows), or have too few values; seasonality
    also if the season is one step. A variance up to `rounding`, the rounding error of float32, counts as 0.
    """
    window = season_length if season_length > 1 else _WINDOW
    season, trend = np.full((2, panel.n_series), np.nan)
    usable = np.flatnonzero(eligible & (panel.lengths >= 2 * window))
    if not len(usable):
        return season, trend
    lengths = panel.lengths[usable]
    begin = np.cumsum(lengths) - lengths
    step = np.arange(lengths.sum()) - np.repeat(begin, lengths)
    if len(usable) < panel.n_series:
        standard = standard[np.repeat(panel.offsets[usable], lengths) + step]
    residual = standard - _moving_average(standard, begin, lengths, step, window)
    observed = np.isfinite(residual)
    count = count_per_series(observed, begin)
    if season_length > 1:
        phase = step % season_length
        if panel.clock_shift.any():
            phase = (step + panel.clock_shift_at(np.repeat(panel.start[usable], lengths) + step)) % season_length
        cell = np.repeat(np.arange(len(usable)) * season_length, lengths) + phase
        size = len(usable) * season_length
        counts = np.bincount(cell[observed], minlength=size)
        means = np.bincount(cell[observed], residual[observed], minlength=size) / np.maximum(counts, 1)
        n_places = np.count_nonzero(counts.reshape(-1, season_length), axis=1)
        pattern = means[cell]
    else:
        n_places, pattern = np.ones(len(usable), dtype=np.int64), np.zeros(1)
    # The moving average removes this share of the variance of noise: 2 w(0) - sum of w^2.
    odd = window % 2
    noise_share = 1 / window if odd else 2 / window - (window - 0.5) / window**2
    degrees = np.maximum(count * (1 - noise_share) - (n_places - 1), 0.0)
    remainder, detrended, deseasonalised = (
        _squares(np.where(observed, component, 0.0), count, begin)
        for component in (residual - pattern, residual, standard - pattern)
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        noise = np.where(degrees >= 0.5, remainder / degrees, np.nan)
        for strength, squares, degrees_of_freedom in (
            (season, detrended, count * (1 - noise_share)),
            (trend, deseasonalised, count - n_places),
        ):
            share = np.clip(1 - noise / (squares / degrees_of_freedom), 0.0, 1.0)
            share[(squares <= count * rounding[usable]) & ~np.isnan(noise)] = 0.0
            strength[usable] = share
    if season_length == 1:
        season[:] = np.nan
    return season, trend


def _squares(values: Array, count: IntArray, begin: IntArray) -> Array:
    """Return the sum of squares about the mean of each series, [S]; missing values are 0."""
    total: Array = sum_per_series(values**2, begin) - sum_per_series(values, begin) ** 2 / np.maximum(count, 1)
    return np.maximum(total, 0.0)


def _moving_average(values: Array, begin: IntArray, lengths: IntArray, step: IntArray, window: int) -> Array:
    """Return the centred moving average of observed values, [N], extended linearly at both ends of a series.

    The line has the slope between the first and the last full window. Running sums are safe here: standardised values
    are all of one size, and those of a series add up to 0.
    """
    half = window // 2
    observed = np.isfinite(values)
    weight = np.zeros(len(values))
    average = np.zeros(len(values))
    inside = slice(half, len(values) - half)
    for terms, buffer in ((observed, weight), (np.where(observed, values, 0.0), average)):
        running = np.append(0.0, np.cumsum(terms, dtype=np.float64))
        sums = running[window:] - running[:-window]
        buffer[inside] = sums[: len(values) - 2 * half] + sums[len(sums) - (len(values) - 2 * half) :]
    with np.errstate(invalid="ignore", divide="ignore"):
        average = np.where(weight > 0.5, average / weight, np.nan)
    nearest = np.clip(step, half, np.repeat(lengths - half - 1, lengths))
    low, high = average[begin + half], average[begin + lengths - half - 1]
    slope = (high - low) / np.maximum(lengths - 2 * half - 1, 1)
    beyond = step - nearest
    ends = np.flatnonzero(beyond)
    average[ends] = average[ends - beyond[ends]] + (np.repeat(slope, lengths) * beyond)[ends]
    return average
