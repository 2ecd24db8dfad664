"""Frames: location, scale and spread of a window at an origin; targets and loss weights in these units."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from forecast.models.inputs.batch import Batch
from forecast.models.inputs.shape import NetworkShape


class Frame(NamedTuple):
    """Normalised windows of some origins, with location, scale and spread."""

    location: Float[Tensor, "batch origin"]
    divisor: Float[Tensor, "batch origin"]
    """Scale, or 1 where it is 0."""
    scale: Float[Tensor, "batch origin"]
    """0 where all values up to the origin are equal: the forecast is then the location, with certainty."""
    begun: Bool[Tensor, "batch origin"]
    """Whether there is any observation up to the origin."""
    window: Float[Tensor, "batch origin context"]
    """Normalised values of the context, oldest first; 0 where not observed. For classes: codes, -1 where not."""
    spread: Float[Tensor, "batch origin horizon"]
    """Rough size of the forecast error of each step, in units of `divisor`: the unit of the network's parameters."""
    smooth: Float[Tensor, "batch origin horizon"]
    """Forecast of exponential smoothing, in units of `divisor` around `location`; 0 without smoothing."""


def gather_windows(
    values: Shaped[Tensor, "batch time *features"], first: Int[Tensor, " stretch"], length: int
) -> Shaped[Tensor, "batch stretch {length} *features"]:
    """Return the windows of `length` steps that begin at each of `first`."""
    if torch.onnx.is_in_onnx_export():  # Here `unfold` would copy all windows.
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


def target_weights(batch: Batch, origins: Tensor, shape: NetworkShape) -> Tensor | None:
    """Return the weights that the panel gives the targets after each origin, [batch, origin, horizon]; None without."""
    return None if batch.weight is None else gather_windows(batch.weight, origins + shape.context_length, shape.horizon)


def loss_weights(
    target: Float[Tensor, "batch origin horizon"],
    observed: Bool[Tensor, "batch origin horizon"],
    frame: Frame,
    shape: NetworkShape,
    weight: Float[Tensor, "batch origin horizon"] | None = None,
) -> Float[Tensor, "batch origin horizon"]:
    """Return the weight of each target: 0 if it is missing or the window is constant, less after a quiet window.

    It is multiplied by `weight`, that of `target_weights`. Targets after steps that vary less than the context before
    them may be large in units of the scale. This weight depends on the window only: a weight that fell with the outcome
    would bias means downwards.
    """
    if shape.n_classes:
        result = observed.to(target.dtype)
    else:
        usable = observed & (frame.scale > 0)[..., None]
        result = usable / frame.window.square().mean(-1, keepdim=True).sqrt().clamp(min=1.0)
    return result if weight is None else result * weight
