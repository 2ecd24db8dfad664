"""Statistics of a panel that a network stores: scales of its series, means and deviations of its covariates."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from forecast.data.panel import FloatArray, IntArray, Panel
from forecast.data.windows import WindowIndex
from forecast.models.inputs.batch import PanelTensors
from forecast.models.inputs.scaling import FEW, running_statistics
from forecast.models.inputs.shape import NetworkShape
from forecast.models.linear.ridge import Samples
from forecast.models.network.forecaster import RecurrentForecaster
from forecast.models.network.losses import validation_batches

# Most windows of a statistic.
_CHECKS = 4_096
# Share of zeros from which targets that are never below 0 count as amounts.
_ZEROS = 1e-3
# Entries of a panel's buffer in one block.
_BLOCK = 1 << 20


def cold_scale_of(shape: NetworkShape, data: PanelTensors, windows: WindowIndex, limit: Tensor) -> Float[Tensor, " 2"]:
    """Return the scale of the panel: relative to the level of a series, and absolute (`scaling.cold_start_scale`).

    It is relative if the ratios of scale to level differ less between series than the scales do. The windows are those
    with enough observations for a scale of their own, or all that vary if none has.
    """
    parts = []
    for series, cutoff, _ in validation_batches(windows[:: max(1, len(windows) // _CHECKS)], 512):
        series, cutoff = series.to(data.device), cutoff.to(data.device)
        end = shape.context_length
        batch = data.gather(series, cutoff, limit[series], context=end, span=1, horizon=shape.horizon)
        statistics = running_statistics(batch.target[:, :end], batch.observed[:, :end], shape.scale_length)
        parts.append(torch.stack([statistics.level, statistics.scale, statistics.n_observed])[:, :, -1])
    level, scale, count = torch.cat(parts, dim=1) if parts else torch.zeros(3, 0)
    varied = scale > 0
    enough = varied & (count >= min(FEW, shape.scale_length))
    level, scale = (values[enough if enough.any() else varied] for values in (level.abs(), scale))
    if not len(scale):
        return torch.zeros(2)
    absolute = len(scale) > 1 and (scale / level).log().std() >= scale.log().std()
    if shape.unit or not (level > 0).all() or absolute:
        return torch.stack([torch.zeros_like(scale[0]), scale.median()])
    return torch.stack([(scale / level).median(), scale.quantile(0.1)])


def is_nonnegative(panel: Panel, limits: IntArray) -> bool:
    """Return whether targets are amounts: none of the first `limits` steps of each series, [S], is below 0.

    Some of them must be 0: values that stay far above 0, such as summer temperatures, do not show a bound at 0.
    """
    zeros, count = 0, 0
    for target in panel.observed_targets(limits):
        if (target < 0).any():
            return False
        zeros, count = zeros + int((target == 0).sum()), count + len(target)
    return zeros > _ZEROS * count


def standardise_scales(network: RecurrentForecaster, samples: Samples) -> None:
    """Set mean and deviation of the logarithm of the scales, which is an input of the network."""
    logs = samples.divisor.log()
    if len(logs) > 1:
        network.log_scale.copy_(torch.stack([logs.mean(), logs.std().clamp(min=0.1)]))


def standardise(network: RecurrentForecaster, panel: Panel, limits: IntArray) -> None:
    """Set mean and scale of the covariates from the training steps, `limits`, [S]. Those of codes are not used."""
    begin = panel.offsets[:-1]
    all_rows = np.zeros(1, dtype=np.int64), np.array([panel.n_series])
    moments = [
        *_moments(panel.past, begin, limits),
        *_moments(panel.known, begin + panel.horizon * np.arange(panel.n_series), limits),
        *_moments(panel.static_numbers.T, *all_rows),
    ]
    for row, (count, mean, squares) in enumerate(moments):
        if count:
            network.covariate_mean[row] = mean
            network.covariate_scale[row] = max((squares / count) ** 0.5, 1e-6 * abs(mean), 1e-12)


def _moments(values: FloatArray, begin: IntArray, limits: IntArray) -> list[tuple[int, float, float]]:
    """Return count, mean and squared deviations of the finite values of each row ([row, entry]).

    A series begins at entry `begin`, and its first `limits` entries count. Blocks of entries are combined as in Chan,
    Golub & LeVeque (1983), so that a panel on disk is read once and never held in memory.
    """
    moments = [(0, 0.0, 0.0)] * len(values)
    for first in range(0, values.shape[1] if len(values) else 0, _BLOCK):
        last = min(first + _BLOCK, values.shape[1])
        series = slice(np.searchsorted(begin, first, side="right") - 1, np.searchsorted(begin, last))
        inside = np.diff(np.append(np.maximum(begin[series], first), last))
        usable = np.arange(first, last) < np.repeat(begin[series] + limits[series], inside)
        for row, entries in enumerate(values[:, first:last]):
            part = entries[usable]
            part = part[np.isfinite(part)].astype(np.float64)
            if not len(part):
                continue
            count, mean, squares = moments[row]
            total, change = count + len(part), float(part.mean()) - mean
            squares += float(np.square(part - part.mean()).sum()) + change**2 * count * (len(part) / total)
            moments[row] = total, mean + change * (len(part) / total), squares
    return moments
