"""How wide intervals must be to hold what they say: from errors of windows that nothing was fitted on."""

import math
from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from forecast.data.windows import WindowIndex
from forecast.models.heads.gaussian import NormalHead
from forecast.models.heads.quantile import QuantileHead
from forecast.models.inputs.batch import PanelTensors
from forecast.models.network.ensemble import Forecaster
from forecast.models.network.losses import HeldOutForecasts, held_out_forecasts

# What intervals may be multiplied by.
_LEAST, _MOST = 0.8, 4.0
# Nominal coverage of the narrowest interval that is looked at: narrower ones say little about its scale.
_NARROWEST = 0.3
# Parts that the series are taken in for a standard error; and the deviation of the scale's logarithm from one horizon
# to the next, where validation holds only one.
_PARTS, _USUAL_DEVIATION = 8, 0.15


def interval_scale_of(network: Forecaster, data: PanelTensors, windows: WindowIndex) -> float:
    """Return what `interval_scale_from` does, of the forecasts that a network makes at `windows`."""
    return interval_scale_from(held_out_forecasts(network, data, windows), network, windows)


@torch.inference_mode()
def interval_scale_from(forecasts: Iterable[HeldOutForecasts], network: Forecaster, windows: WindowIndex) -> float:
    """Return the factor that the distances of quantiles from the median need; 1 where nothing is sure.

    `windows` are those of validation: no weight was fitted on them. Each target has a factor by which an interval must
    grow to hold it. The scale of an interval of coverage c is the ceil((n + 1) c)-th of the n factors of all steps
    (split conformal prediction: Papadopoulos et al. 2002; Romano, Patterson & Candes 2019). The result is the geometric
    mean over intervals, drawn to 1: at z standard errors from 1 it keeps the share 1 - 1 / z^2 of its logarithm, none
    below one standard error (the positive part of James & Stein 1961). The standard error is that over horizons and
    over parts of the series.
    """
    levels = network.head.levels.double().tolist()
    pairs = [
        (k, levels[-1 - k] - level)
        for k, level in enumerate(levels[: len(levels) // 2])
        if abs(level + levels[-1 - k] - 1) < 1e-6 and levels[-1 - k] - level >= _NARROWEST
    ]
    if not isinstance(network.head, QuantileHead | NormalHead) or network.n_paths > 1 or not pairs or not len(windows):
        return 1.0
    factors, observed, series = _factors(forecasts, [k for k, _ in pairs])
    coverages = [coverage for _, coverage in pairs]
    log_scale = _log_scale(factors, observed, coverages)
    if log_scale is None:
        return 1.0
    blocks = _blocks(windows, network.shape.horizon)
    variance = _variance(factors, observed, coverages, torch.from_numpy(blocks))
    variance_of_parts = _variance(factors, observed, coverages, series % _PARTS)
    if variance_of_parts is None and variance is None:
        return 1.0
    # A single horizon may have been a calm one: it narrows nothing.
    least = 1.0 if variance is None else _LEAST
    variance = (_USUAL_DEVIATION**2 if variance is None else variance) + (variance_of_parts or 0.0)
    share = max(0.0, 1.0 - variance / max(log_scale**2, 1e-12))
    return float(np.clip(math.exp(log_scale * share), least, _MOST))


def after_refit(scale: float, share: float) -> float:
    """Return the scale of a line that is solved on 1 / `share` times as many windows as the one it was measured on.

    With q coefficients per independent window, the variance of errors is 1 - q within the windows of the fit and
    1 + q beyond them, so scale^2 = (1 + q) / (1 - q). More windows lower q.

    >>> round(after_refit(2.0, 0.8), 3), after_refit(1.0, 0.5), after_refit(0.9, 0.5)
    (1.687, 1.0, 0.9)
    """
    if scale <= 1:
        return scale
    q = share * (scale**2 - 1) / (scale**2 + 1)
    return math.sqrt((1 + q) / (1 - q))


def _factors(
    forecasts: Iterable[HeldOutForecasts], outer: list[int]
) -> tuple[Float[Tensor, "window horizon pair"], Bool[Tensor, "window horizon"], Int[Tensor, " window"]]:
    """Return by what factor each interval must be wider to hold each target, where targets are observed, and series."""
    parts: list[tuple[Tensor, ...]] = []
    for series, output, target, observed, _ in forecasts:
        quantiles = output.quantiles[:, 0]
        middle = quantiles[..., [quantiles.shape[-1] // 2]]
        error = target[..., None] - middle
        lower, upper = quantiles[..., outer], quantiles[..., [quantiles.shape[-1] - 1 - k for k in outer]]
        width = torch.where(error < 0, middle - lower, upper - middle)
        parts.append((error.abs() / width.clamp(min=1e-9), observed & (width > 0).all(-1), series))
    factors, observed, series = (torch.cat(column).cpu() for column in zip(*parts, strict=True))
    return factors, observed, series


def _log_scale(
    factors: Float[Tensor, "window horizon pair"], observed: Bool[Tensor, "window horizon"], coverages: list[float]
) -> float | None:
    """Return the logarithm of the conformal scale; None where there are too few errors."""
    errors = factors[observed].double().sort(dim=0).values
    ranks = [math.ceil(round((len(errors) + 1) * coverage, 9)) for coverage in coverages]
    if max(ranks) > len(errors):
        return None
    scales = [float(errors[rank - 1, k].clamp(min=1e-3).log()) for k, rank in enumerate(ranks)]
    return float(np.mean(scales))


def _variance(
    factors: Float[Tensor, "window horizon pair"],
    observed: Bool[Tensor, "window horizon"],
    coverages: list[float],
    group: Int[Tensor, " window"],
) -> float | None:
    """Return the variance of the mean of the logarithm over groups of windows; None if there are fewer than two."""
    each = [_log_scale(factors[group == number], observed[group == number], coverages) for number in group.unique()]
    scales = [scale for scale in each if scale is not None]
    return float(np.var(scales, ddof=1)) / len(scales) if len(scales) > 1 else None


def _blocks(windows: WindowIndex, horizon: int) -> np.ndarray:
    """Return how many horizons before the last window of its series each window ends."""
    last = np.zeros(int(windows.series.max()) + 1, dtype=np.int64)
    np.maximum.at(last, windows.series, windows.cutoff)
    blocks: np.ndarray = (last[windows.series] - windows.cutoff) // horizon
    return blocks
