"""The population stability index and the level that it reaches by chance, from counts of values in bins."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from forecast.data.panel import TargetArray

Array = npt.NDArray[np.float64]

_CHANCE: Final = 0.01


def bin_counts(values: TargetArray, edges: Array) -> Array:
    """Return the number of values in each bin, [bin]."""
    return np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1).astype(np.float64)


def stability_index(reference: Array, recent: Array) -> float:
    """Return sum (p - q) ln(p / q) over bins, of counts + 1/2 (Siddiqi 2006, Credit Risk Scorecards)."""
    p, q = ((counts + 0.5) / (counts + 0.5).sum() for counts in (reference, recent))
    return float(((q - p) * np.log(q / p)).sum())


def counts_by_step(steps: Sequence[npt.NDArray[np.integer]], values: Sequence[TargetArray], edges: Array) -> Array:
    """Return the number of values of each step of the history in each bin, [step, bin], without empty bins."""
    step = np.unique(np.concatenate(steps), return_inverse=True)[1]
    n_bins = len(edges) + 1
    cell = step * n_bins + np.searchsorted(edges, np.concatenate(values), side="right")
    table = np.bincount(cell, minlength=n_bins * (int(step.max()) + 1)).reshape(-1, n_bins).astype(np.float64)
    return table[:, table.sum(0) > 0]


def chance_of_windows(counts: Array, steps: Array) -> float:
    """Return the chance level of psi, from psi of each window of the history against the others.

    `counts` is [window, bin]. The level follows an F test against the mean, whose degrees of freedom are the effective
    directions in which steps vary.
    """
    total, n = counts.sum(0), len(counts)
    mean = float(np.mean([stability_index(total - window, window) for window in counts]))
    directions = _spread(steps)[1]
    return mean * (1 + 1 / n) / (1 + 1 / (n - 1)) * _f_quantile(directions, directions * (n - 1))


def chance_of_steps(steps: Array, n_recent: float) -> float:
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
