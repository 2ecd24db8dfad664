"""Causal normalisation: location and scale at each step, from observations up to that step only."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

# A scale below this share of the level is within the rounding of float32 values.
_RESOLUTION = 1e-6
# From so many observations on, a series has a scale of its own.
FEW = 9


class Statistics(NamedTuple):
    """Running statistics of each step's recent past, itself included."""

    level: Float[Tensor, "batch time"]
    """Mean of the observed values."""
    last: Float[Tensor, "batch time"]
    """Latest observed value."""
    scale: Float[Tensor, "batch time"]
    """Standard deviation around the level; exactly 0 where all observed values are equal."""
    any_observed: Bool[Tensor, "batch time"]
    """Whether anything was observed yet; where not, the others are 0."""
    n_observed: Float[Tensor, "batch time"]
    """Number of observations that level and scale are taken over."""


class RunningSums(NamedTuple):
    """What statistics need of all steps so far to go on from there."""

    sums: Float[Tensor, "batch sum"]
    """Number of observations, and the sums of their distances from `first` and of the squares of these; float64."""
    first: Float[Tensor, " batch"]
    last: Float[Tensor, " batch"]
    """First and latest observed value, float64, 0 where there is none."""
    varied: Bool[Tensor, " batch"]
    """Whether any two observed values differ."""

    def relative_to(self, level: Float[Tensor, " batch"] | None) -> "RunningSums":
        """Return the totals of values that `level` was taken off."""
        return self if level is None else self._shifted(-level)

    def absolute(self, level: Float[Tensor, " batch"] | None) -> "RunningSums":
        """Return what `relative_to` took."""
        return self if level is None else self._shifted(level)

    def _shifted(self, by: Float[Tensor, " batch"]) -> "RunningSums":
        present = self.sums[:, 0] > 0
        return self._replace(
            first=torch.where(present, self.first + by, 0.0), last=torch.where(present, self.last + by, 0.0)
        )


def running_statistics(
    target: Float[Tensor, "batch time"], observed: Bool[Tensor, "batch time"], length: int
) -> Statistics:
    """Return statistics over the last `length` steps, or over all steps so far where those hold no observation.

    Sums are taken in float64 around the first observed value, so that a level much larger than the scale does no harm.
    """
    return continued_statistics(target, observed, length)[0]


def continued_statistics(
    target: Float[Tensor, "batch time"],
    observed: Bool[Tensor, "batch time"],
    length: int,
    before: RunningSums | None = None,
    lead: int = 0,
) -> tuple[Statistics, RunningSums]:
    """Return `running_statistics` and the totals of all steps, those before the window included.

    `before` are the totals up to the first `lead` steps of the window, these included; the statistics of these, which
    begin in the middle, are not to be read. Those of later ones are as if the window were the whole past, if `lead` is
    `length` - 1 or more.
    """
    time = target.shape[1]
    steps = torch.arange(time, device=target.device)
    latest = torch.where(observed, steps, -1).cummax(dim=1).values
    begun = latest >= 0
    last = target.gather(1, latest.clamp(min=0)).masked_fill(~begun, 0.0)
    reference = target.gather(1, observed.int().argmax(dim=1, keepdim=True))
    if before is None:
        empty = torch.zeros_like(target[:, 0])
        before = RunningSums(empty.double()[:, None].expand(-1, 3), empty, empty, empty.bool())
    first_before, last_before = before.first.to(target.dtype), before.last.to(target.dtype)
    started = before.sums[:, :1] > 0
    last = torch.where(begun, last, last_before[:, None])
    reference = torch.where(started, first_before[:, None], reference)
    begun = begun | started

    centred = (target.double() - reference).masked_fill(~observed, 0.0)
    previous = torch.cat([last_before[:, None], last[:, :-1]], dim=1)
    was_begun = torch.cat([started, begun[:, :-1]], dim=1)
    changed = observed & (target != previous) & was_begun
    sums = torch.stack([observed.double(), centred, centred.square()]).cumsum(dim=-1)
    recent = sums - functional.pad(sums, (length, 0))[..., :time]
    sums = sums + before.sums.T[..., None] - (sums[..., lead - 1 : lead] if lead else 0.0)
    seen = recent[0] > 0
    count, total, squares = torch.where(seen, recent, sums)
    # Of the latest change, the observation before it: if that is not within the stretch, the change is none there.
    earlier = functional.pad(latest, (1, 0), value=-1)[:, :-1]
    changed_from = torch.where(changed, earlier, -1).cummax(dim=1).values
    varied = before.varied[:, None] | (changed.int().cumsum(dim=1) > 0)
    within = changed_from >= (steps - length + 1).clamp(min=0)
    constant = ~((seen & within) | (~seen & varied)) | ~begun

    count = count.clamp(min=1)
    mean = total / count
    variance = (squares / count - mean.square()).clamp(min=0)
    level = torch.where(constant, last, reference + mean)
    scale = torch.maximum(variance.sqrt(), _RESOLUTION * level.abs()).masked_fill(constant, 0.0)
    first = reference[:, 0].masked_fill(~begun[:, -1], 0.0)
    totals = RunningSums(sums[..., -1].T, first.double(), last[:, -1].double(), varied[:, -1])
    n_observed = (count * begun).to(target.dtype)
    return Statistics(level.to(target.dtype), last, scale.to(target.dtype), begun, n_observed), totals


def cold_start_scale(
    statistics: Statistics, relative: Float[Tensor, ""], absolute: Float[Tensor, ""], length: int
) -> Float[Tensor, "batch time"]:
    """Return the scale, in which that of the panel takes the place of one from too few observations.

    The panel's scale at a level is `relative` times its size, and `absolute` at least; a level that is itself the mean
    of n observations is off by 1 / n of the variance. This scale is a lower bound up to `FEW` observations, or the
    `length` steps that statistics are taken over: whole for one observation, and less for each further one. 0 in place
    of both leaves the scale as it is.
    """
    count = statistics.n_observed.clamp(min=1)
    usual = torch.maximum(relative * statistics.level.abs(), absolute) * (1 + 1 / count).sqrt()
    few = max(min(FEW, length), 2)
    share = ((few - count) / (few - 1)).clamp(0, 1) * statistics.any_observed
    return torch.lerp(statistics.scale, torch.maximum(statistics.scale, usual), share)
