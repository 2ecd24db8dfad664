"""Losses of windows, in training and in validation."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.data import DataLoader

from forecast.data.windows import WindowIndex
from forecast.models.inputs.batch import Batch, PanelTensors
from forecast.models.inputs.frame import loss_weights, target_weights, targets
from forecast.models.network.ensemble import Forecaster
from forecast.models.network.output import Output

Indices = tuple[Tensor, Tensor, Tensor]
"""Series and first origin of each window, and the origins (counted from the first) whose loss counts."""


def window_sizes(network: Forecaster, span: int) -> dict[str, int]:
    """Return the sizes that `PanelTensors.gather` needs for windows of `span` origins."""
    return {"context": network.shape.context_length, "span": span, "horizon": network.shape.horizon}


def step_errors(network: Forecaster, batch: Batch, origins: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss at each target and its weight, both [batch, origin, horizon].

    The loss is `Head.errors`; outside of training, a model that samples paths uses `scores`, which samples have too.
    """
    return output_errors(network, batch, origins, network(batch, origins))


def output_errors(network: Forecaster, batch: Batch, origins: Tensor, output: Output) -> tuple[Tensor, Tensor]:
    """Return the loss and weight of each target as `step_errors`, for an output of the network."""
    target, observed = targets(batch, output.frame, origins, network.shape)
    sampled = network.n_paths > 1 and not network.training
    errors = output.head.scores if sampled else network.head.errors
    weight = target_weights(batch, origins, network.shape)
    return errors(output.arguments, target), loss_weights(target, observed, output.frame, network.shape, weight)


def validation_batches(windows: WindowIndex, size: int = 256) -> DataLoader[Indices]:
    """Return batches of windows with one origin each."""
    zero = torch.zeros(1, dtype=torch.long)
    batches = [
        (torch.from_numpy(part.series), torch.from_numpy(part.cutoff), zero)
        for part in (windows[slice(first, first + size)] for first in range(0, len(windows), size))
    ]
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


class HeldOutForecasts(NamedTuple):
    """Forecasts of a batch of windows with one origin, and their targets."""

    series: Int[Tensor, " window"]
    output: Output
    target: Float[Tensor, "window horizon"]
    """In units of the frame."""
    observed: Bool[Tensor, "window horizon"]
    """Whether a target is observed and its window varies."""
    weight: Float[Tensor, "window 1 horizon"] | None = None
    """`target_weights`."""


def held_out_forecasts(network: Forecaster, data: PanelTensors, windows: WindowIndex) -> Iterator[HeldOutForecasts]:
    """Yield forecasts of windows and their targets, batch by batch."""
    for indices in validation_batches(windows):
        series, cutoff, origins = (values.to(data.device) for values in indices)
        batch = data.gather(series, cutoff, cutoff + network.shape.horizon + 1, **window_sizes(network, 1))
        output = network(batch, origins)
        target, observed = targets(batch, output.frame, origins, network.shape)
        usable = (observed & (output.frame.scale > 0)[..., None])[:, 0]
        weight = target_weights(batch, origins, network.shape)
        yield HeldOutForecasts(series, output, target[:, 0], usable, weight)


def forecast_loss(network: Forecaster, forecasts: Iterable[HeldOutForecasts]) -> float:
    """Return the mean loss of existing `forecasts` of `network`, as `validation_loss`."""
    total, mass = 0.0, 0.0
    for _, output, target, observed, data_weight in forecasts:
        weight = loss_weights(target[:, None], observed[:, None], output.frame, network.shape, data_weight)
        total += float((network.head.errors(output.arguments, target[:, None]) * weight).sum())
        mass += float(weight.sum())
    return total / max(mass, 1e-9)


def held_out_error(network: Forecaster, data: PanelTensors, indices: Indices) -> tuple[float, float]:
    """Return summed loss and weight of windows with one origin; inputs end at the cutoff, targets follow it."""
    error, weight = _held_out_errors(network, data, indices)
    return float((error * weight).sum()), float(weight.sum())


def _held_out_errors(network: Forecaster, data: PanelTensors, indices: Indices) -> tuple[Tensor, Tensor]:
    """Return the loss at each target of windows with one origin and its weight, both [window, 1, horizon]."""
    series, cutoff, origins = indices
    limit = cutoff + network.shape.horizon + 1
    batch = data.gather(series, cutoff, limit, **window_sizes(network, 1))
    return step_errors(network, batch, origins)


@torch.inference_mode()
def window_losses(network: Forecaster, data: PanelTensors, windows: WindowIndex) -> Float[Tensor, "window 2"]:
    """Return the summed loss of each window, in float64, and the weight of its targets."""
    parts = [torch.zeros(0, 2, dtype=torch.float64)]
    for series, cutoff, origins in validation_batches(windows):
        indices = series.to(data.device), cutoff.to(data.device), origins.to(data.device)
        error, weight = (values.double().cpu() for values in _held_out_errors(network, data, indices))
        parts.append(torch.stack([(error * weight).sum((1, 2)), weight.sum((1, 2))], 1))
    return torch.cat(parts)


@torch.inference_mode()
def validation_loss(network: Forecaster, data: PanelTensors, windows: WindowIndex) -> float:
    """Return the weighted mean loss of windows with one origin."""
    parts = [
        held_out_error(network, data, tuple(i.to(data.device) for i in indices))
        for indices in validation_batches(windows)
    ]
    return sum(total for total, _ in parts) / max(sum(weight for _, weight in parts), 1e-9)
