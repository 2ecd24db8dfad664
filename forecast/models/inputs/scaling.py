"""Causal normalisation: location and scale at each step, from observations up to this step only."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

# A scale below this share of the level is within the rounding of float32 values.
_RESOLUTION = 1e-6
# Observations from which a series has a scale of its own.
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
    """Whether there is an observation up to the step; if not, the other fields are 0."""
    n_observed: Float[Tensor, "batch time"]
    """Number of observations in level and scale."""


class RunningSums(NamedTuple):
    """Sums over all steps so far, from which running statistics continue."""

    sums: Float[Tensor, "batch sum"]
    """Number of observations, and the sums of their distances from `first` and of the squares of these; float64."""
    first: Float[Tensor, " batch"]
    last: Float[Tensor, " batch"]
    """First and latest observed value, float64, 0 where there is none."""
    varied: Bool[Tensor, " batch"]
    """Whether any two observed values differ."""

    def relative_to(self, level: Float[Tensor, " batch"] | None) -> "RunningSums":
        """Return the sums of values minus `level`."""
        return self if level is None else self._shifted(-level)

    def absolute(self, level: Float[Tensor, " batch"] | None) -> "RunningSums":
        """Return the sums of values plus `level`, the inverse of `relative_to`."""
        return self if level is None else self._shifted(level)

    def _shifted(self, amount: Float[Tensor, " batch"]) -> "RunningSums":
        present = self.sums[:, 0] > 0
        return self._replace(
            first=torch.where(present, self.first + amount, 0.0), last=torch.where(present, self.last + amount, 0.0)
        )


def running_statistics(
    target: Float[Tensor, "batch time"], observed: Bool[Tensor, "batch time"], length: int
) -> Statistics:
    """Return statistics over the last `length` steps, or over all steps so far where these hold no observation.

    Sums are in float64 around the first observed value, so that a level much larger than the scale loses no digits.
    """
    return continued_statistics(target, observed, length)[0]


def continued_statistics(
    target: Float[Tensor, "batch time"],
    observed: Bool[Tensor, "batch time"],
    length: int,
    previous_sums: RunningSums | None = None,
    lead: int = 0,
) -> tuple[Statistics, RunningSums]:
    """Return `running_statistics` and the sums over all steps, those before the window included.

    `previous_sums` are the sums up to and including the first `lead` steps of the window; statistics at these steps are
    not valid. Statistics at later steps equal those of the whole history if `lead` is at least `length` - 1.
    """
    time = target.shape[1]
    steps = torch.arange(time, device=target.device)
    latest = torch.where(observed, steps, -1).cummax(dim=1).values
    any_observed = latest >= 0
    last = target.gather(1, latest.clamp(min=0)).masked_fill(~any_observed, 0.0)
    reference = target.gather(1, observed.int().argmax(dim=1, keepdim=True))
    from_start = previous_sums is None
    if previous_sums is None:
        empty = torch.zeros_like(target[:, 0])
        previous_sums = RunningSums(empty.double()[:, None].expand(-1, 3), empty, empty, empty.bool())
    first_before, last_before = previous_sums.first.to(target.dtype), previous_sums.last.to(target.dtype)
    started = previous_sums.sums[:, :1] > 0
    last = torch.where(any_observed, last, last_before[:, None])
    reference = torch.where(started, first_before[:, None], reference)
    any_observed = any_observed | started

    centred = (target.double() - reference).masked_fill(~observed, 0.0)
    previous = torch.cat([last_before[:, None], last[:, :-1]], dim=1)
    any_before = torch.cat([started, any_observed[:, :-1]], dim=1)
    changed = observed & (target != previous) & any_before
    sums = torch.stack([observed.double(), centred, centred.square()]).cumsum(dim=-1)
    recent = torch.cat([sums[..., :length], sums[..., length:] - sums[..., : max(time - length, 0)]], dim=-1)
    if not from_start:
        sums = sums + previous_sums.sums.T[..., None] - (sums[..., lead - 1 : lead] if lead else 0.0)
    has_recent = recent[0] > 0
    count, total, squares = torch.where(has_recent, recent, sums)
    # The observation before the latest change: if it is not among the last steps, these do not change.
    earlier = functional.pad(latest, (1, 0), value=-1)[:, :-1]
    changed_from = torch.where(changed, earlier, -1).cummax(dim=1).values
    varied = previous_sums.varied[:, None] | (changed.int().cumsum(dim=1) > 0)
    within = changed_from >= (steps - length + 1).clamp(min=0)
    constant = ~((has_recent & within) | (~has_recent & varied)) | ~any_observed

    count = count.clamp(min=1)
    mean = total / count
    variance = (squares / count - mean.square()).clamp(min=0)
    level = torch.where(constant, last, reference + mean)
    scale = torch.maximum(variance.sqrt(), _RESOLUTION * level.abs()).masked_fill(constant, 0.0)
    first = reference[:, 0].masked_fill(~any_observed[:, -1], 0.0)
    totals = RunningSums(sums[..., -1].T, first.double(), last[:, -1].double(), varied[:, -1])
    n_observed = (count * any_observed).to(target.dtype)
    return Statistics(level.to(target.dtype), last, scale.to(target.dtype), any_observed, n_observed), totals


def cold_start_scale(
    statistics: Statistics, relative: Float[Tensor, ""], absolute: Float[Tensor, ""], length: int
) -> Float[Tensor, "batch time"]:
    """Return the scale, with that of the panel as a lower bound for series with few observations.

    The panel's scale at a level is `relative` times its size, and `absolute` at least; a level that is the mean of n
    observations adds 1 / n of the variance. The bound holds in full for one observation and fades out up to `FEW`
    observations, or the `length` steps of the statistics. With 0 for both the scale is unchanged.
    """
    count = statistics.n_observed.clamp(min=1)
    panel_scale = torch.maximum(relative * statistics.level.abs(), absolute) * (1 + 1 / count).sqrt()
    few = max(min(FEW, length), 2)
    share = ((few - count) / (few - 1)).clamp(0, 1) * statistics.any_observed
    return torch.lerp(statistics.scale, torch.maximum(statistics.scale, panel_scale), share)
