"""Calibration of means: their sum over a panel equals that of the actuals."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from forecast.data.windows import WindowIndex
from forecast.models.heads import log_quantiles
from forecast.models.heads.base import mean_distance
from forecast.models.heads.mean_fit import location_shift
from forecast.models.heads.quantile import QuantileHead
from forecast.models.inputs.batch import PanelTensors
from forecast.models.inputs.frame import Frame, targets
from forecast.models.inputs.transform import to_data
from forecast.models.network.forecaster import RecurrentForecaster
from forecast.models.network.losses import validation_batches, window_sizes

# Most windows of a sum.
_CHECKS = 4_096
# Fewest groups of windows for a standard error, and the bounds of a shift of means.
_LEAST_GROUPS, _SHIFTS = 8, (-0.5, 1.0)


@torch.no_grad()
def balance_means(network: RecurrentForecaster, data: PanelTensors, windows: WindowIndex, limit: Tensor) -> None:
    """Shift the means so that their sum over training windows equals that of the actuals, in the scale of each series.

    The likelihood is rarely at its maximum when training ends, and the transform that keeps means positive biases
    them. Networks that sample paths are not changed: their means do not depend on the parameters of one step alone.
    """
    if network.n_paths > 1 and network.output.weight.any():
        return
    windows = windows[:: max(1, len(windows) // _CHECKS)]
    origins = torch.zeros(1, dtype=torch.long, device=data.device)
    parts: list[tuple[Tensor, ...]] = []
    for series, cutoff, _ in validation_batches(windows):
        series, cutoff = series.to(data.device), cutoff.to(data.device)
        batch = data.gather(series, cutoff, limit[series], **window_sizes(network, 1))
        reading = network.encode(batch, origins)
        target, observed = targets(batch, reading.frame, origins, network.shape)
        usable = observed & (reading.frame.scale > 0)[..., None]
        bias = network.output_bias.expand(*target.shape, -1)
        parameters = bias if network.n_paths > 1 else network.step_parameters(reading)
        frame = reading.frame._replace(window=reading.frame.window[..., :0])
        columns = (values[:, 0] for values in (parameters, reading.linear, target, usable, *frame))
        parts.append((*columns, series))
    if not parts:
        return
    parameters, linear, target, usable, *fields, series = (torch.cat(part) for part in zip(*parts, strict=True))
    frame = Frame(*fields)
    share = relative_divisor(series, frame.divisor) * usable
    network.output_bias[:, network.head.location_index] += location_shift(
        network.head, parameters, linear, frame, target, share
    )


@torch.no_grad()
def mean_shift_of(network: RecurrentForecaster, data: PanelTensors, windows: WindowIndex, limit: Tensor) -> float:
    """Return the shift of means (`RecurrentForecaster.mean_shift`).

    A few quantiles, or a symmetric distribution, do not determine the tails of skewed targets; on a logarithmic scale,
    uncertainty of level and width raises each mean. With the shift, the sum of means over training windows equals that
    of the actuals, each series in units of its intervals. If the sum is z standard errors off, the shift is shrunk by
    1 - 1 / z^2 for z above 1, else it is 0 (positive-part James & Stein 1961).
    """
    if len(windows) < _LEAST_GROUPS:
        return 0.0
    windows = windows[:: max(1, len(windows) // _CHECKS)]
    origins, unit = torch.zeros(1, dtype=torch.long, device=data.device), network.shape.unit
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for series, cutoff, _ in validation_batches(windows):
        series, cutoff = series.to(data.device), cutoff.to(data.device)
        batch = data.gather(series, cutoff, limit[series], **window_sizes(network, 1))
        output = network(batch, origins)
        target, observed = targets(batch, output.frame, origins, network.shape)
        usable = (observed & (output.frame.scale > 0)[..., None])[:, 0]
        location, divisor = (values.double() for values in output.frame[:2])
        level = None if batch.level is None else batch.level[:, None, None]
        columns = (output.quantiles, target[..., None], output.mean[..., None])
        quantiles, actual, mean = (
            to_data(location[..., None] + divisor[..., None] * values[:, 0], unit, level) for values in columns
        )
        actual, mean = actual[..., 0], mean[..., 0]
        if network.head.nonnegative:
            quantiles = network.head.within_support(quantiles)
            mean = network.head.mean(quantiles) if isinstance(network.head, QuantileHead) else mean
        if unit:
            mean = log_quantiles.mean(quantiles, network.head.levels, unit)
        distance = mean_distance(quantiles, mean, network.head, unit)
        parts.append((((actual - mean) * usable).sum(1), (distance * usable).sum(1), series))
    if not parts:
        return 0.0
    error, width, series = (torch.cat(part) for part in zip(*parts, strict=True))
    total = width.new_zeros(int(series.max()) + 1).index_add(0, series, width)
    reference = total / torch.bincount(series, minlength=len(total)).clamp(min=1)
    error, width = (values / _bounded_scale(reference)[series] for values in (error, width))
    # Windows of a series share their targets: only groups are independent.
    groups = series if len(reference) >= _LEAST_GROUPS else torch.arange(len(series)) * _LEAST_GROUPS // len(series)
    shift = float(error.sum() / width.sum().clamp(min=1e-12))
    residual = error - shift * width
    sums = residual.new_zeros(int(groups.max()) + 1).index_add(0, groups.to(series.device), residual)
    z = float(error.sum().abs() / sums.square().sum().sqrt().clamp(min=1e-12))
    return float(np.clip(shift, *_SHIFTS)) * max(0.0, 1 - 1 / max(z, 1e-12) ** 2)


def relative_divisor(series: Tensor, divisor: Tensor) -> Float[Tensor, "window 1"]:
    """Return the divisors in units of those of their series (`_bounded_scale`)."""
    square, n_series = divisor.double().square(), int(series.max()) + 1
    total = square.new_zeros(n_series).index_add(0, series, square)
    reference = (total / torch.bincount(series, minlength=n_series).clamp(min=1)).sqrt()
    return (divisor / _bounded_scale(reference)[series])[:, None]


def _bounded_scale(scale: Float[Tensor, " series"]) -> Float[Tensor, " series"]:
    """Return the scale of each series in a sum over all, at least twice the median of those that have one.

    So no large series decides alone. Series of similar size count equally: otherwise those that are larger by chance
    would count less, and the mean would be too low.
    """
    least = 2 * scale[scale > 0].median() if (scale > 0).any() else scale.new_ones(())
    return scale.clamp(min=float(least))
