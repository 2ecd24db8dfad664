"""Strengths of trend and season."""

from typing import Final

import numpy as np
import numpy.typing as npt

from forecast.data.panel import IntArray, Panel

Array = npt.NDArray[np.float64]

# Steps of the moving average that is the trend of a series without season.
_WINDOW: Final = 5


def sum_per_series(values: Array, begin: IntArray) -> Array:
    """Return the sum of each series, [S]."""
    sums: Array = np.add.reduceat(values, begin)
    return sums


def count_per_series(values: npt.NDArray[np.bool_], begin: IntArray) -> IntArray:
    """Return how many values of each series are true, [S]."""
    counts: IntArray = np.add.reduceat(values, begin, dtype=np.int64)
    return counts


def strengths(
    panel: Panel, standard: Array, season_length: int, wanted: npt.NDArray[np.bool_], rounding: Array
) -> tuple[Array, Array]:
    """Return the strengths of season and trend, [S] each, of standardised values ([N], NaN: missing).

    The series is decomposed as y = T + S + R by moving averages: T over a season (2 x m for an even one; _WINDOW steps
    without season), continued at both ends along the line between its own ends, and S the mean of y - T at each place
    of the season on the local clock. Strengths are max(0, 1 - var(R) / var(S + R)) and max(0, 1 - var(R) / var(T + R))
    (Wang, Smith & Hyndman, "Characteristic-based clustering for time series data", DMKD 13, 2006, in the form of
    Hyndman & Athanasopoulos, FPP3, 4.3). Unlike there, each variance has the divisor that makes it unbiased for white
    noise: else the m means of a few short seasons explain noise, and it would look seasonal.

    NaN for series that are not `wanted`, are shorter than two seasons (windows), or have too few values; seasonality
    also if the season is one step. A variance not above `rounding`, what float32 leaves of a value, is taken for 0.
    """
    window = season_length if season_length > 1 else _WINDOW
    season, trend = np.full((2, panel.n_series), np.nan)
    long = np.flatnonzero(wanted & (panel.lengths >= 2 * window))
    if not len(long):
        return season, trend
    lengths = panel.lengths[long]
    begin = np.cumsum(lengths) - lengths
    step = np.arange(lengths.sum()) - np.repeat(begin, lengths)
    if len(long) < panel.n_series:
        standard = standard[np.repeat(panel.offsets[long], lengths) + step]
    rest = standard - _moving_average(standard, begin, lengths, step, window)
    there = np.isfinite(rest)
    count = count_per_series(there, begin)
    if season_length > 1:
        phase = step % season_length
        if panel.clock_shift.any():
            phase = (step + panel.clock_shift_at(np.repeat(panel.start[long], lengths) + step)) % season_length
        place = np.repeat(np.arange(len(long)) * season_length, lengths) + phase
        size = len(long) * season_length
        counts = np.bincount(place[there], minlength=size)
        means = np.bincount(place[there], rest[there], minlength=size) / np.maximum(counts, 1)
        places = np.count_nonzero(counts.reshape(-1, season_length), axis=1)
        pattern = means[place]
    else:
        places, pattern = np.ones(len(long), dtype=np.int64), np.zeros(1)
    # The moving average takes this share of the variance of noise with it: 2 w(0) - sum of w^2.
    odd = window % 2
    taken = 1 / window if odd else 2 / window - (window - 0.5) / window**2
    spare = np.maximum(count * (1 - taken) - (places - 1), 0.0)
    remainder, detrended, deseasonalised = (
        _squares(np.where(there, part, 0.0), count, begin) for part in (rest - pattern, rest, standard - pattern)
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        noise = np.where(spare >= 0.5, remainder / spare, np.nan)
        for strength, squares, free in (
            (season, detrended, count * (1 - taken)),
            (trend, deseasonalised, count - places),
        ):
            share = np.clip(1 - noise / (squares / free), 0.0, 1.0)
            share[(squares <= count * rounding[long]) & ~np.isnan(noise)] = 0.0
            strength[long] = share
    if season_length == 1:
        season[:] = np.nan
    return season, trend


def _squares(values: Array, count: IntArray, begin: IntArray) -> Array:
    """Return the sum of squares about the mean of each series, [S]; values that don't count are 0."""
    total: Array = sum_per_series(values**2, begin) - sum_per_series(values, begin) ** 2 / np.maximum(count, 1)
    return np.maximum(total, 0.0)


def _moving_average(values: Array, begin: IntArray, lengths: IntArray, step: IntArray, window: int) -> Array:
    """Return the centred moving average over what was observed, [N]; at both ends of a series a line continues it.

    The line has the slope between the first and the last full window. Running sums are safe here: standardised values
    are all of one size, and those of a series add up to 0.
    """
    half = window // 2
    there = np.isfinite(values)
    weight = np.zeros(len(values))
    average = np.zeros(len(values))
    inside = slice(half, len(values) - half)
    for terms, into in ((there, weight), (np.where(there, values, 0.0), average)):
        running = np.append(0.0, np.cumsum(terms, dtype=np.float64))
        sums = running[window:] - running[:-window]
        into[inside] = sums[: len(values) - 2 * half] + sums[len(sums) - (len(values) - 2 * half) :]
    with np.errstate(invalid="ignore", divide="ignore"):
        average = np.where(weight > 0.5, average / weight, np.nan)
    nearest = np.clip(step, half, np.repeat(lengths - half - 1, lengths))
    low, high = average[begin + half], average[begin + lengths - half - 1]
    slope = (high - low) / np.maximum(lengths - 2 * half - 1, 1)
    beyond = step - nearest
    ends = np.flatnonzero(beyond)
    average[ends] = average[ends - beyond[ends]] + (np.repeat(slope, lengths) * beyond)[ends]
    return average
