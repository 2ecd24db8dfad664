"""The gate that pools the evidence: empirical Bayes over the series of a panel.

A few windows of one series say little about what a change gains there; those of all series say how its gains are
distributed. The model is that of a random-effects meta-analysis (DerSimonian & Laird 1986): the gain of series i is
theta_i ~ N(mu, tau^2), its windows show y_i ~ N(theta_i, v_i), and the posterior mean lies between y_i and mu, by v_i
and tau^2. A series has too few windows for a variance of its own: it is moderated by the typical one of the panel
(Smyth 2004).
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import digamma, ndtr, ndtri, polygamma

from forecast.config import FinetuneSettings
from forecast.finetuning.gate import Choice

Array = npt.NDArray[np.floating]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]

# Gains are shares of the base's loss. One window counts for this much at most.
_CLIP = 1.0
# What is assumed before any evidence: the deviation of a panel's mean gain from 0, that of its series from the mean,
# and that of all its series at once from one window to the next. The last two count for so many series and windows.
_MEAN, _SPREAD, _SHOCK = 0.02, 0.05, 0.01
_SPREAD_COUNT, _SHOCK_COUNT = 2.0, 1.0
# Deviation of what is gained later from what is gained on the stretch of time that the gate windows are of, however
# alike these are: of a series, and of a panel.
_DRIFT, _PANEL_DRIFT = 0.01, 0.01
# Before any evidence the typical variance of a panel counts for so many windows in that of a series, and the mean
# square of a series, its variance if nothing is gained, for so many in the typical one. Both by so many series.
_PRIOR_FREEDOM, _FREEDOM_COUNT = 4.0, 4.0
_SQUARE_COUNT = 1.0
_MOST_FREEDOM = 100.0
_LEAST_VARIANCE = 1e-8
_LEAST_GAIN = 0.002
_ROUNDS = 50


class Posterior(NamedTuple):
    """The gain of each series by the evidence of all of them, as a share of its base loss."""

    mean: Array
    """[S]."""
    deviation: Array
    """[S]."""


def choose_pooled(
    base: Array, candidates: Array, cluster: IntArray, judged: BoolArray, settings: FinetuneSettings
) -> Choice:
    """Return, per series, the best candidate by the evidence of all series, and whether it clears the gate.

    `base` and `candidates` are losses as in `gate.choose`; `cluster` numbers the stretch of time of each window
    [S, windows], because series that share their time are no independent evidence. Series that are not `judged` [S],
    have no loss, or an observation on fewer than half of the windows keep the base, and are no evidence.

    The best candidate has the largest lower bound of its posterior gain, which it falls short of with probability
    `max_harm`. A series leaves the base if that bound is above 0 and the posterior gain is at least 0.2 %.
    """
    observed = ~np.isnan(base)
    total, n_windows = np.where(observed, base, 0.0).sum(1), observed.sum(1)
    rows = np.flatnonzero(judged & (total > 0) & (2 * n_windows >= base.shape[1]))
    strength = np.zeros(len(base), dtype=np.int64)
    bound, mean, deviation = (np.full(len(base), start) for start in (-np.inf, np.nan, np.nan))
    level = (total[rows] / n_windows[rows])[:, None]
    distance = max(0.0, float(ndtri(1.0 - settings.max_harm)))
    for number in range(candidates.shape[2] if len(rows) else 0):
        losses = candidates[rows, :, number]
        finite = np.isfinite(losses)
        saved = np.where(finite, (base[rows] - np.where(finite, losses, 0.0)) / level, -_CLIP)
        found = posterior(saved.clip(-_CLIP, _CLIP), observed[rows], cluster[rows])
        lower = np.where((finite | ~observed[rows]).all(1), found.mean - distance * found.deviation, -np.inf)
        better = lower > bound[rows]
        place = rows[better]
        strength[place], bound[place] = number, lower[better]
        mean[place], deviation[place] = found.mean[better], found.deviation[better]
    losses = np.where(observed, candidates[np.arange(len(base)), :, strength], 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        gain = np.where(total > 0, 1.0 - losses.sum(1) / total, 0.0)
        harm = ndtr(-mean / deviation)
    return Choice(strength, gain, (bound > 0) & (mean >= _LEAST_GAIN), mean, harm)


def posterior(saved: Array, observed: BoolArray, cluster: IntArray) -> Posterior:
    """Return the posterior gains of one candidate from what it saves on each window, as shares [S, windows].

    Each series is `observed` on one window at least; what stands elsewhere does not count.
    """
    saved, count = np.where(observed, saved, 0.0), observed.sum(1)
    shown = saved.sum(1) / count
    squares = (np.square(saved - shown[:, None]) * observed).sum(1)
    variance = _variances(squares, count - 1, np.square(saved).sum(1) / count) / count + _DRIFT**2
    spread = _SPREAD**2
    for _ in range(_ROUNDS):
        before, weight = spread, 1.0 / (variance + spread)
        mean = float((weight * shown).sum() / weight.sum())
        squared = np.square(weight).sum()
        excess = (np.square(weight) * (np.square(shown - mean) - variance)).sum() / squared
        # Less its standard error: where chance explains the differences between series, they are no reason to differ.
        excess = max(0.0, excess - np.sqrt(2 * np.square(weight).sum()) / squared)
        others = len(shown) - 1
        spread = (others * float(excess) + _SPREAD_COUNT * _SPREAD**2) / (others + _SPREAD_COUNT)
        spread = max(spread, _LEAST_VARIANCE)
        if abs(spread - before) < 1e-3 * before:
            break
    weight = 1.0 / (variance + spread)
    mean = float((weight * shown).sum() / weight.sum())
    error = _error(saved - mean, observed, cluster, weight / count) + _PANEL_DRIFT**2
    # A panel says little of its own mean if it has few series or few windows: it is held against no gain.
    trust = _MEAN**2 / (_MEAN**2 + error)
    own = spread / (spread + variance)
    return Posterior(
        own * shown + (1 - own) * trust * mean, np.sqrt(own * variance + np.square(1 - own) * trust * error)
    )


def _variances(squares: Array, freedom: IntArray, mean_square: Array) -> Array:
    """Return the variance of each series from window to window, by its own windows and by the panel's (Smyth 2004).

    Variances are inverse chi-square around a typical one; how closely is told by the spread of their logarithms.
    """
    several = freedom > 0
    typical, prior = float(np.median(mean_square)), _PRIOR_FREEDOM
    if several.any():
        least = 1e-4 * float(np.median(mean_square)) + _LEAST_VARIANCE
        half = freedom[several] / 2
        logs = np.log(np.maximum(squares[several] / freedom[several], least)) - digamma(half) + np.log(half)
        n = len(logs)
        between = np.square(logs - logs.mean()).sum() - (n - 1) / n * polygamma(1, half).sum()
        between = (between + _FREEDOM_COUNT * polygamma(1, _PRIOR_FREEDOM / 2)) / (n - 1 + _FREEDOM_COUNT)
        prior = _inverse_trigamma(float(between))
        own = float(np.exp(logs.mean() + digamma(prior / 2) - np.log(prior / 2)))
        weight = float(freedom.sum())
        typical = (weight * own + _SQUARE_COUNT * typical) / (weight + _SQUARE_COUNT)
    return np.maximum((squares + prior * typical) / (freedom + prior), _LEAST_VARIANCE)


def _inverse_trigamma(value: float) -> float:
    """Return the degrees of freedom d whose trigamma(d / 2) is `value`, at least 1 and at most so many."""
    low, high = 0.5, _MOST_FREEDOM / 2
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if polygamma(1, middle) > value else (low, middle)
    return low + high


def _error(residual: Array, observed: BoolArray, cluster: IntArray, weight: Array) -> float:
    """Return the variance of a panel's weighted mean, robust to whatever series have in common within a cluster."""
    _, number = np.unique(cluster[observed], return_inverse=True)
    total = float((weight * observed.sum(1)).sum())
    sums = np.bincount(number, (residual * weight[:, None])[observed]) / total
    others = len(sums) - 1
    # Of each cluster, how much it is of the evidence.
    share = np.bincount(number, np.broadcast_to(weight[:, None], residual.shape)[observed]) / total
    spread = float(np.square(sums).sum())
    robust = spread * len(sums) / others if others else 0.0
    shock = _SHOCK**2 * float(np.square(share).sum())
    robust = (others * robust + _SHOCK_COUNT * shock) / (others + _SHOCK_COUNT)
    return max(robust, 1.0 / total)
