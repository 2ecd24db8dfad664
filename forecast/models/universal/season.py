"""The season of a panel where its frequency has none."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from forecast.models.universal.forecasting import CONTEXTS

# Fewest steps of a series that are looked at, and seasons that it must hold.
_LEAST_STEPS, _CYCLES = 12, 3
# Median absolute deviations that a change counts for at most: shocks are no season.
_CLIP = 6.0
# Least autocorrelation, on average over the series, and the share of the highest one that a shorter season needs.
_LEAST, _NEAR = 0.2, 0.9
# Standard errors of the autocorrelation of white noise that a season has to exceed.
_SIGNIFICANCE = 5.0

Array = npt.NDArray[np.float64]


def estimate_season(series: Iterable[npt.NDArray[np.floating]]) -> int:
    """Return the steps after which the changes of series repeat themselves most; 1 if they do not.

    The season is at a peak of the autocorrelation of first differences, averaged over series; of its multiples the
    shortest. Half of the series have to hold three of them. Missing values are NaN.
    """
    each = [pair for values in series if (pair := _autocorrelation(values[-CONTEXTS[-1] :].astype(float))) is not None]
    if not each:
        return 1
    longest = int(np.median([len(correlation) for correlation, _ in each]))
    total, count, steps = np.zeros((3, longest))
    for correlation, observed in each:
        total[: len(correlation)] += correlation[:longest]
        count[: len(correlation)] += 1
        steps[: len(correlation)] += observed
    mean, count = total / np.maximum(count, 1), np.maximum(count, 1)
    # Series may move together: of n series, the square root of n counts.
    least = np.maximum(_LEAST, _SIGNIFICANCE / np.sqrt(np.maximum(steps / np.sqrt(count), 1)))
    lags = np.arange(2, longest - 1)
    peaks = lags[(mean[lags] > mean[lags - 1]) & (mean[lags] >= mean[lags + 1]) & (mean[lags] > least[lags])]
    return int(peaks[mean[peaks] >= _NEAR * mean[peaks].max()][0]) if len(peaks) else 1


def _autocorrelation(values: Array) -> tuple[Array, int] | None:
    """Return the autocorrelation of the changes of a series, [lag], and how many there are; None of a constant."""
    change = np.diff(values)
    observed = np.isfinite(change)
    if observed.sum() < _LEAST_STEPS:
        return None
    deviation = np.where(observed, change - np.median(change[observed]), 0)
    scale = np.median(np.abs(deviation[observed])) or deviation[observed].std()
    if not scale:
        return None
    size, standard = len(change), (deviation / scale).clip(-_CLIP, _CLIP)
    product, pairs = (
        np.fft.irfft(np.abs(np.fft.rfft(part, 2 * size)) ** 2)[: size // _CYCLES + 2]
        for part in (standard, observed.astype(float))
    )
    correlation = product / np.maximum(pairs, 1)
    return correlation / correlation[0], int(observed.sum())
