"""Scores per window: of quantile forecasts, of distributions given by points, and of classes."""

from collections.abc import Sequence

import numpy as np

from forecast.metrics.seasonal_naive import Array

SCORE_COLUMNS = (
    *("mase", "smape", "rmsse", "abs_error", "square_error", "pinball", "abs_target", "error", "covered", "width"),
    "n_steps",
)
"""Columns of `score_windows`."""


def score_windows(
    actual: Array,
    quantiles: Array,
    *,
    levels: Sequence[float],
    scale: Array,
    root_scale: Array,
    mean: Array | None = None,
) -> dict[str, Array]:
    """Return per-window scores of forecasts [n, horizon, level] of `actual` [n, horizon] (NaN: not observed), each [n].

    `scale` and `root_scale` are those of `seasonal_naive_errors`. `mean` is the mean forecast, [n, horizon], q50 where
    None.

    mase        mean |y - q50| / scale, scale = in-sample mean |y[t] - y[t - season]| (Hyndman & Koehler 2006, "Another
                look at measures of forecast accuracy", IJF 22); NaN where scale is 0
    smape       mean 200 |y - q50| / (|y| + |q50|), 0 where both are 0 (Makridakis, Spiliotis & Assimakopoulos 2020,
                "The M4 Competition", IJF 36)
    rmsse       sqrt(mean (y - q50)^2) / root_scale, root_scale^2 = in-sample mean (y[t] - y[t - season])^2 (Makridakis,
                Spiliotis & Assimakopoulos 2022, "M5 accuracy competition", IJF 38, there with season 1); NaN where it
                is 0
    pinball     sum over steps of the mean over levels of 2 max(level e, (level - 1) e), e = y - q
    covered     steps with the actual inside the outermost interval; `width` the sum of its widths
    error       sum of mean - y; abs_error, square_error, abs_target sums of |y - q50|, (y - q50)^2 and |y|
    """
    observed = np.isfinite(actual)
    count = observed.sum(1)
    target = np.where(observed, actual, 0.0)
    median = quantiles[..., list(levels).index(0.5)]
    abs_error = np.where(observed, np.abs(target - median), 0.0)
    size = np.abs(target) + np.abs(median)
    relative_error = np.divide(200.0 * abs_error, size, out=np.zeros_like(abs_error), where=size > 0)
    deviation = target[..., None] - quantiles
    weights = np.asarray(levels)
    loss = 2.0 * np.maximum(weights * deviation, (weights - 1.0) * deviation).mean(-1)
    lower, upper = quantiles[..., 0], quantiles[..., -1]
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "mase": np.where(scale > 0, abs_error.sum(1) / count / scale, np.nan),
            "smape": relative_error.sum(1) / count,
            "rmsse": np.where(root_scale > 0, np.sqrt((abs_error**2).sum(1) / count) / root_scale, np.nan),
            "abs_error": abs_error.sum(1),
            "square_error": (abs_error**2).sum(1),
            "pinball": (loss * observed).sum(1),
            "abs_target": np.abs(target).sum(1),
            "error": np.where(observed, (median if mean is None else mean) - target, 0.0).sum(1),
            "covered": ((target >= lower) & (target <= upper) & observed).sum(1),
            "width": ((upper - lower) * observed).sum(1),
            "n_steps": count,
        }


def midpoints(count: int) -> tuple[float, ...]:
    """Return the levels in the middle of `count` equal shares.

    >>> midpoints(2)
    (0.25, 0.75)
    """
    return tuple((k + 0.5) / count for k in range(count))


def score_points(actual: Array, points: Array) -> Array:
    """Return the sum over steps of the CRPS of forecasts represented by `points` [n, horizon, point], per window, [n].

    crps        mean over the points of 2 max(level e, (level - 1) e), e = y - point, whose levels (k - 1/2) / K are the
                midpoints of K equal shares: the integral of the pinball loss over all levels, which is the continuous
                ranked probability score (Gneiting & Raftery 2007, JASA 102; Laio & Tamea 2007, HESS 11). For counts it
                is the ranked probability score. It is defined for any distribution (for a point mass it is the absolute
                error) and has the units of the target, so that models of all heads and seasonal naive compare.
    """
    observed = np.isfinite(actual)
    deviation = np.where(observed, actual, 0.0)[..., None] - points
    levels = np.array(midpoints(points.shape[-1]))
    loss = 2.0 * np.maximum(levels * deviation, (levels - 1.0) * deviation).mean(-1)
    total: Array = (loss * observed).sum(1)
    return total


def score_classes(actual: Array, probabilities: Array) -> dict[str, Array]:
    """Return per-window scores of probabilities [n, horizon, class] of the codes `actual` [n, horizon], each [n].

    log_loss    sum over steps of -log p of the actual class (the logarithmic score, Good 1952)
    brier       sum over steps of the sum over classes of (p - [is the actual class])^2 (Brier 1950)
    correct     number of steps at which the most probable class is the actual one
    """
    observed = np.isfinite(actual)
    code = np.where(observed, actual, 0).astype(np.int64)
    likelihood = np.take_along_axis(probabilities, code[..., None], -1)[..., 0]
    tiny = np.finfo(np.float32).tiny
    brier = np.square(probabilities).sum(-1) + 1.0 - 2.0 * likelihood
    return {
        "log_loss": (-np.log(np.maximum(likelihood, tiny)) * observed).sum(1),
        "brier": (brier * observed).sum(1),
        "correct": ((probabilities.argmax(-1) == code) & observed).sum(1),
        "n_steps": observed.sum(1),
    }
