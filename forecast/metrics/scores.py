"""Scores of windows, of point forecasts and of classes."""

from collections.abc import Sequence

import numpy as np

from forecast.metrics.seasonal_naive import Array

SCORE_COLUMNS = (
    *("mase", "smape", "rmsse", "abs_error", "square_error", "pinball", "abs_target", "error", "covered", "width"),
    "n_steps",
)
"""How far seasonal naive looks back."""


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
    truth = np.where(observed, actual, 0.0)
    median = quantiles[..., list(levels).index(0.5)]
    miss = np.where(observed, np.abs(truth - median), 0.0)
    size = np.abs(truth) + np.abs(median)
    relative = np.divide(200.0 * miss, size, out=np.zeros_like(miss), where=size > 0)
    deviation = truth[..., None] - quantiles
    weights = np.asarray(levels)
    loss = 2.0 * np.maximum(weights * deviation, (weights - 1.0) * deviation).mean(-1)
    lower, upper = quantiles[..., 0], quantiles[..., -1]
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "mase": np.where(scale > 0, miss.sum(1) / count / scale, np.nan),
            "smape": relative.sum(1) / count,
            "rmsse": np.where(root_scale > 0, np.sqrt((miss**2).sum(1) / count) / root_scale, np.nan),
            "abs_error": miss.sum(1),
            "square_error": (miss**2).sum(1),
            "pinball": (loss * observed).sum(1),
            "abs_target": np.abs(truth).sum(1),
            "error": np.where(observed, (median if mean is None else mean) - truth, 0.0).sum(1),
            "covered": ((truth >= lower) & (truth <= upper) & observed).sum(1),
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
    """Return the sum over steps of the CRPS of forecasts that are given by `points`, each window, [n].

    crps        mean over the points of 2 max(level e, (level - 1) e), e = y - point, whose levels (k - 1/2) / K are the
                midpoints of K equal shares: the integral of the pinball loss over all levels, which is the continuous
                ranked probability score (Gneiting & Raftery 2007, JASA 102; Laio & Tamea 2007, HESS 11). For counts it
                is the ranked probability score. Defined for any distribution, a certain one included (there it is the
                absolute error), in the units of the target, so that models of all heads and seasonal naive compare.
    """
    observed = np.isfinite(actual)
    deviation = np.where(observed, actual, 0.0)[..., None] - points
    levels = np.array(midpoints(points.shape[-1]))
    loss = 2.0 * np.maximum(levels * deviation, (levels - 1.0) * deviation).mean(-1)
    total: Array = (loss * observed).sum(1)
    return total


def score_classes(actual: Array, probabilities: Array) -> dict[str, Array]:
    """Return per-window scores of probabilities [n, horizon, class] of the codes `actual` [n, horizon], each [n].

    log_loss    sum over steps of -log p of the class that came (the logarithmic score, Good 1952)
    brier       sum over steps of the sum over classes of (p - [it came])^2 (Brier 1950)
    correct     steps at which the most probable class came
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
