"""The gate that pools the evidence: empirical Bayes over the series of a panel.

A few windows of one series say little about the gain of a change; the windows of all series show how gains are
distributed. The model is that of a random-effects meta-analysis (DerSimonian & Laird 1986): the gain of series i is
theta_i ~ N(mu, tau^2), the mean over its windows is y_i ~ N(theta_i, v_i), and the posterior mean is an average of y_i
and mu, weighted by v_i and tau^2. A series has too few windows for a variance estimate of its own: it is moderated by
the typical variance of the panel (Smyth 2004).
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

# Gains are shares of the base's loss. The gain on one window is clipped to this.
_CLIP = 1.0
# Priors: the standard deviation of a panel's mean gain around 0, that of its series around the mean, and that of a
# shock common to all series of a window. The last two have the weight of this many series and windows.
_MEAN, _SPREAD, _SHOCK = 0.02, 0.05, 0.01
_SPREAD_COUNT, _SHOCK_COUNT = 2.0, 1.0
# Standard deviation of later gains around those in the period of the gate windows, however small the variance between
# these is: of a series, and of a panel.
_DRIFT, _PANEL_DRIFT = 0.01, 0.01
# Priors of variances: the typical variance of a panel has the weight of this many windows in that of a series, itself
# estimated with a weight of this many series; the mean square of the series (the variance if nothing is gained) has
# the weight of this many in the typical variance.
_PRIOR_FREEDOM, _FREEDOM_COUNT = 4.0, 4.0
_SQUARE_COUNT = 1.0
_MAX_FREEDOM = 100.0
_MIN_VARIANCE = 1e-8
_MIN_GAIN = 0.002
_ROUNDS = 50


class Posterior(NamedTuple):
    """The posterior gain of each series given the evidence of all series, as a share of its base loss."""

    mean: Array
    """[S]."""
    deviation: Array
    """[S], standard deviation."""


def choose_pooled(
    base: Array, candidates: Array, cluster: IntArray, eligible: BoolArray, settings: FinetuneSettings
) -> Choice:
    """Return, per series, the best candidate by the evidence of all series, and whether it clears the gate.

    `base` and `candidates` are losses as in `gate.choose_strict`; `cluster` numbers the period of each window
    [S, windows], because series in the same period are no independent evidence. Series that are not `eligible` [S],
    have no loss, or have observations on fewer than half of the windows keep the base and are left out of the evidence.

    The best candidate has the largest lower bound of its posterior gain: the quantile at `max_harm`. It is accepted if
    that bound is above 0 and the posterior gain is at least 0.2 %.
    """
    observed = ~np.isnan(base)
    total, n_windows = np.where(observed, base, 0.0).sum(1), observed.sum(1)
    rows = np.flatnonzero(eligible & (total > 0) & (2 * n_windows >= base.shape[1]))
    strength = np.zeros(len(base), dtype=np.int64)
    bound, mean, deviation = (np.full(len(base), start) for start in (-np.inf, np.nan, np.nan))
    level = (total[rows] / n_windows[rows])[:, None]
    distance = max(0.0, float(ndtri(1.0 - settings.max_harm)))
    for number in range(candidates.shape[2] if len(rows) else 0):
        losses = candidates[rows, :, number]
        finite = np.isfinite(losses)
        saved = np.where(finite, (base[rows] - np.where(finite, losses, 0.0)) / level, -_CLIP)
        gains = posterior(saved.clip(-_CLIP, _CLIP), observed[rows], cluster[rows])
        lower = np.where((finite | ~observed[rows]).all(1), gains.mean - distance * gains.deviation, -np.inf)
        better = lower > bound[rows]
        improved = rows[better]
        strength[improved], bound[improved] = number, lower[better]
        mean[improved], deviation[improved] = gains.mean[better], gains.deviation[better]
    losses = np.where(observed, candidates[np.arange(len(base)), :, strength], 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        gain = np.where(total > 0, 1.0 - losses.sum(1) / total, 0.0)
        harm = ndtr(-mean / deviation)
    return Choice(strength, gain, (bound > 0) & (mean >= _MIN_GAIN), mean, harm)


def posterior(saved: Array, observed: BoolArray, cluster: IntArray) -> Posterior:
    """Return the posterior gains of one candidate from its saved shares of the loss on each window, [S, windows].

    Each series is `observed` on one window at least; values elsewhere are ignored.
    """
    saved, count = np.where(observed, saved, 0.0), observed.sum(1)
    observed_gain = saved.sum(1) / count
    squares = (np.square(saved - observed_gain[:, None]) * observed).sum(1)
    variance = _variances(squares, count - 1, np.square(saved).sum(1) / count) / count + _DRIFT**2
    spread = _SPREAD**2
    for _ in range(_ROUNDS):
        before, weight = spread, 1.0 / (variance + spread)
        mean = float((weight * observed_gain).sum() / weight.sum())
        squared = np.square(weight).sum()
        excess = (np.square(weight) * (np.square(observed_gain - mean) - variance)).sum() / squared
        # Less its standard error: differences between series that chance explains count as none.
        excess = max(0.0, excess - np.sqrt(2 * np.square(weight).sum()) / squared)
        freedom = len(observed_gain) - 1
        spread = (freedom * float(excess) + _SPREAD_COUNT * _SPREAD**2) / (freedom + _SPREAD_COUNT)
        spread = max(spread, _MIN_VARIANCE)
        if abs(spread - before) < 1e-3 * before:
            break
    weight = 1.0 / (variance + spread)
    mean = float((weight * observed_gain).sum() / weight.sum())
    error = _error(saved - mean, observed, cluster, weight / count) + _PANEL_DRIFT**2
    # With few series or windows the panel's mean is uncertain: it is shrunk towards no gain.
    trust = _MEAN**2 / (_MEAN**2 + error)
    own_weight = spread / (spread + variance)
    return Posterior(
        own_weight * observed_gain + (1 - own_weight) * trust * mean,
        np.sqrt(own_weight * variance + np.square(1 - own_weight) * trust * error),
    )


def _variances(squares: Array, freedom: IntArray, mean_square: Array) -> Array:
    """Return the variance of each series between windows, moderated by the variances of the panel (Smyth 2004).

    Variances are scaled inverse chi-square around a typical one; the prior's degrees of freedom follow from the
    variance of their logarithms.
    """
    repeated = freedom > 0
    typical, prior = float(np.median(mean_square)), _PRIOR_FREEDOM
    if repeated.any():
        least = 1e-4 * float(np.median(mean_square)) + _MIN_VARIANCE
        half = freedom[repeated] / 2
        logs = np.log(np.maximum(squares[repeated] / freedom[repeated], least)) - digamma(half) + np.log(half)
        n = len(logs)
        between = np.square(logs - logs.mean()).sum() - (n - 1) / n * polygamma(1, half).sum()
        between = (between + _FREEDOM_COUNT * polygamma(1, _PRIOR_FREEDOM / 2)) / (n - 1 + _FREEDOM_COUNT)
        prior = _inverse_trigamma(float(between))
        pooled = float(np.exp(logs.mean() + digamma(prior / 2) - np.log(prior / 2)))
        weight = float(freedom.sum())
        typical = (weight * pooled + _SQUARE_COUNT * typical) / (weight + _SQUARE_COUNT)
    return np.maximum((squares + prior * typical) / (freedom + prior), _MIN_VARIANCE)


def _inverse_trigamma(value: float) -> float:
    """Return the degrees of freedom d with trigamma(d / 2) = `value`, clipped to between 1 and _MAX_FREEDOM."""
    low, high = 0.5, _MAX_FREEDOM / 2
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if polygamma(1, middle) > value else (low, middle)
    return low + high


def _error(residual: Array, observed: BoolArray, cluster: IntArray, weight: Array) -> float:
    """Return the variance of a panel's weighted mean, robust to correlation of series within a cluster."""
    _, number = np.unique(cluster[observed], return_inverse=True)
    total = float((weight * observed.sum(1)).sum())
    sums = np.bincount(number, (residual * weight[:, None])[observed]) / total
    freedom = len(sums) - 1
    # The share of each cluster in the evidence.
    share = np.bincount(number, np.broadcast_to(weight[:, None], residual.shape)[observed]) / total
    spread = float(np.square(sums).sum())
    robust = spread * len(sums) / freedom if freedom else 0.0
    shock = _SHOCK**2 * float(np.square(share).sum())
    robust = (freedom * robust + _SHOCK_COUNT * shock) / (freedom + _SHOCK_COUNT)
    return max(robust, 1.0 / total)
