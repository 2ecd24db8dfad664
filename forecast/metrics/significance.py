"""A paired test of two forecasts over cutoffs.

Series share their dates, and forecasts from close cutoffs share target steps, so the unit is the cutoff: differences
are summed over all series of a cutoff. The result is a short time series that is autocorrelated where targets overlap.
Its long-run variance is estimated by the mean square of its lowest cosine coefficients, and Student's t has their
number as degrees of freedom (Lazarus, Lewis, Stock & Watson 2018, JBES; for forecasts Coroneo & Iacone 2020, Journal of
Applied Econometrics).
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_LEAST_FREQUENCIES = 4


class PairedTest(NamedTuple):
    """Test that a mean difference over cutoffs is below 0."""

    p_value: float
    """One-sided; NaN with fewer than two blocks, or without any difference."""
    blocks: int
    """Number of periods that share no target."""


def count_blocks(begin: IntArray, end: IntArray) -> int:
    """Return the largest number of intervals (begin, end] that do not overlap.

    >>> count_blocks(np.array([0, 1, 2, 3]), np.array([2, 3, 4, 4]))
    2
    """
    count, last = 0, None
    order = np.lexsort((begin, end))
    for low, high in zip(begin[order].tolist(), end[order].tolist(), strict=True):
        if last is None or low >= last:
            count, last = count + 1, high
    return count


def paired_test(total: Array, weight: Array, begin: IntArray, end: IntArray) -> PairedTest:
    """Return the test that sum(total) / sum(weight) is below 0, from n cutoffs, the earliest first.

    `total` is the sum of the differences at each cutoff, over series and steps, `weight` their number; (begin, end] are
    the steps of its observed targets. The number of frequencies is that of the blocks less one, and at most n^(2/3), so
    that autocorrelated cutoffs do not count as independent.

    If targets overlap, variance and degrees of freedom are corrected for an independent effect of each step on all
    forecasts of it (Satterthwaite 1946). For independent effects of each cutoff the test is then conservative.
    """
    n, blocks = len(total), count_blocks(begin, end)
    if blocks < 2:
        return PairedTest(float("nan"), blocks)
    count = min(blocks - 1, max(_LEAST_FREQUENCIES, int(np.ceil(n ** (2 / 3)))))
    frequency = np.arange(1, count + 1)[:, None] / n
    cosines = np.sqrt(2 / n) * np.cos(np.pi * frequency * (np.arange(n) + 0.5))
    share = n / weight.sum()
    mean = float(total.sum() / weight.sum())
    coefficients = cosines @ ((total - mean * weight) * share)
    scale, freedom = _overlap(cosines, weight, begin, end)
    variance = scale * float((coefficients**2).mean()) / n
    if variance == 0:
        return PairedTest(0.0 if mean < 0 else float("nan"), blocks)
    from scipy.special import stdtr

    return PairedTest(float(stdtr(freedom, mean / np.sqrt(variance))), blocks)


def _overlap(cosines: Array, weight: Array, begin: IntArray, end: IntArray) -> tuple[float, float]:
    """Return the factor that corrects the variance for effects of steps, at least 1, and the degrees of freedom."""
    n = len(weight)
    edges = np.unique(np.concatenate([begin, end]))
    covered = (begin[:, None] <= edges[:-1]) & (edges[1:] <= end[:, None])
    length = np.diff(edges) / max(1, int(edges[-1] - edges[0]))
    effect = covered * np.sqrt(length) * (weight / (end - begin))[:, None]
    mean = effect.sum(0) / weight.sum()
    parts = cosines @ ((effect - weight[:, None] * mean) * (n / weight.sum()))
    spectrum = np.linalg.eigvalsh(parts @ parts.T)
    scale = n * float(mean @ mean) / float(spectrum.mean())
    return max(1.0, scale), float(spectrum.sum() ** 2 / (spectrum**2).sum())
