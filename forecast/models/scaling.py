"""Causal normalisation: location and scale at each step, from observations up to that step only."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

# A scale below this share of the level is within the rounding of float32 values.
_RESOLUTION = 1e-6


class Statistics(NamedTuple):
    """Running statistics of each step's recent past, itself included."""

    level: Float[Tensor, "batch time"]
    """Mean of the observed values."""
    last: Float[Tensor, "batch time"]
    """Latest observed value."""
    scale: Float[Tensor, "batch time"]
    """Standard deviation around the level; exactly 0 where all observed values are equal."""
    begun: Bool[Tensor, "batch time"]
    """Whether anything was observed yet; where not, the others are 0."""


def running_statistics(
    target: Float[Tensor, "batch time"], observed: Bool[Tensor, "batch time"], length: int
) -> Statistics:
    """Return statistics over the last `length` steps, or over all steps so far where those hold no observation.

    Sums are taken in float64 around the first observed value, so that a level much larger than the scale does no harm.
    """
    time = target.shape[1]
    steps = torch.arange(time, device=target.device)
    latest = torch.where(observed, steps, -1).cummax(dim=1).values
    begun = latest >= 0
    last = target.gather(1, latest.clamp(min=0)).masked_fill(~begun, 0.0)

    reference = target.gather(1, observed.int().argmax(dim=1, keepdim=True))
    centred = (target.double() - reference).masked_fill(~observed, 0.0)
    before = torch.roll(last, 1, dims=1)
    changed = observed & (target != before) & torch.roll(begun, 1, dims=1) & (steps > 0)
    sums = torch.stack([observed.double(), centred, centred.square()]).cumsum(dim=-1)
    recent = sums - functional.pad(sums, (length, 0))[..., :time]
    seen = recent[0] > 0
    count, total, squares = torch.where(seen, recent, sums)
    # Of the latest change, the observation before it: if that is not within the stretch, the change is none there.
    changed_from = torch.where(changed, torch.roll(latest, 1, dims=1), -1).cummax(dim=1).values
    constant = (changed_from < (steps - length + 1).clamp(min=0) * seen) | ~begun

    count = count.clamp(min=1)
    mean = total / count
    variance = (squares / count - mean.square()).clamp(min=0)
    level = torch.where(constant, last, reference + mean)
    scale = torch.maximum(variance.sqrt(), _RESOLUTION * level.abs()).masked_fill(constant, 0.0)
    return Statistics(level.to(target.dtype), last, scale.to(target.dtype), begun)
