"""Settings chosen after training: the soft threshold and the widths; and the gap of quantiles before it."""

import torch

from forecast.data.windows import WindowIndex
from forecast.models.inputs.batch import PanelTensors
from forecast.models.network.forecaster import RecurrentForecaster
from forecast.models.network.losses import validation_loss
from forecast.models.postprocess.interval_scale import interval_scale_of

_LEAST_TRAINED_GAP = 0.03
# Changes of the location (the median of quantiles), in units of spread, that may be too small to be worth making; the
# last one keeps the skip's.
_THRESHOLDS = (0.02, 0.05, 0.1, 0.2, 1e6)


def select_soft_threshold(
    network: RecurrentForecaster, data: PanelTensors, validation: WindowIndex, loss: float
) -> float:
    """Set the soft threshold of the network's changes to the one that validates best.

    Where most steps repeat the last season exactly, many small corrections cost more than they gain. Returns the loss.
    """
    losses = {0.0: loss}
    # Means that are shrunk towards those of the skip are biased.
    for threshold in () if network.head.estimates_mean else _THRESHOLDS:
        network.threshold.fill_(threshold)
        losses[threshold] = validation_loss(network, data, validation)
    best = min(losses, key=losses.__getitem__)
    network.threshold.fill_(best)
    return losses[best]


def scale_intervals(network: RecurrentForecaster, data: PanelTensors, validation: WindowIndex, loss: float) -> float:
    """Scale the intervals by validation, and return the loss, which was `loss` before."""
    scale = interval_scale_of(network, data, validation)
    network.interval_scale.fill_(scale)
    return loss if scale == 1 else validation_loss(network, data, validation)


def enforce_min_gap(network: RecurrentForecaster) -> None:
    """Separate equal quantiles of the closed-form solution, which gradient steps would hardly part."""
    with torch.no_grad():
        network.output_bias.copy_(network.head.enforce_min_gap(network.output_bias, _LEAST_TRAINED_GAP))
