"""Windows as seen from their origins: location, scale and spread; targets and their weights in these units."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from forecast.models.inputs.batch import Batch
from forecast.models.inputs.shape import NetworkShape


class Frame(NamedTuple):
    """Windows as seen from some of their origins: all that is not the network."""

    location: Float[Tensor, "batch origin"]
    divisor: Float[Tensor, "batch origin"]
    """Scale, or 1 where it is 0."""
    scale: Float[Tensor, "batch origin"]
    """0 where all values in sight are equal: the forecast is then the location, with certainty."""
    begun: Bool[Tensor, "batch origin"]
    """Whether the origin sees any observation."""
    window: Float[Tensor, "batch origin context"]
    """Normalised values of the context, oldest first; 0 where not observed. Of classes the codes, -1 where not."""
    spread: Float[Tensor, "batch origin horizon"]
    """How far the target of each step may be off, roughly, in units of `divisor`: what the network says is in units
    of it."""
    smooth: Float[Tensor, "batch origin horizon"]
    """What exponential smoothing forecasts, in units of `divisor` around `location`; 0 without it."""


def gather_windows(
    values: Shaped[Tensor, "batch time *features"], first: Int[Tensor, " stretch"], length: int
) -> Shaped[Tensor, "batch stretch {length} *features"]:
    """Return the `length` steps from each of `first` on."""
    if torch.onnx.is_in_onnx_export():  # There a view would be a copy of all stretches there are.
        return values[:, first[:, None] + torch.arange(length)]
    return values.unfold(1, length, 1)[:, first].movedim(-1, 2)


def targets(batch: Batch, frame: Frame, origins: Tensor, shape: NetworkShape) -> tuple[Tensor, Tensor]:
    """Return the targets after each origin in the frame's units, and which are observed, [batch, origin, horizon]."""
    first = origins + shape.context_length
    outcome, present = batch.target, batch.observed
    if batch.outcome is not None:
        outcome, present = batch.outcome.nan_to_num(0.0), torch.isfinite(batch.outcome)
    values, observed = (gather_windows(part, first, shape.horizon) for part in (outcome, present))
    scaled = (values - frame.location[..., None]) / frame.divisor[..., None]
    return scaled * observed, observed & frame.begun[..., None]


def loss_weights(
    target: Float[Tensor, "batch origin horizon"],
    observed: Bool[Tensor, "batch origin horizon"],
    frame: Frame,
    shape: NetworkShape,
) -> Float[Tensor, "batch origin horizon"]:
    """Return the weight of each target: 0 where it or the window tells nothing, less after a quiet stretch.

    What follows a stretch that varies less than the context before it may be large in units of its scale. The weight
    depends on what is known at the origin only: one that fell with the outcome would lower every mean.
    """
    if shape.n_classes:
        return observed.to(target.dtype)
    usable = observed & (frame.scale > 0)[..., None]
    return usable / frame.window.square().mean(-1, keepdim=True).sqrt().clamp(min=1.0)
