"""Causal normalisation: location and scale at each step, from observations up to this step only."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
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

    def at(self, steps: Int[Tensor, " step"]) -> "Statistics":
        """Return the statistics of some steps, in place of all."""
        return Statistics(*(values[:, steps] for values in self))


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
    steps = torch.arange(target.shape[1], device=target.device)
    nothing = torch.zeros_like(target[:, :1])
    reference = target.gather(1, observed.int().argmax(dim=1, keepdim=True))
    latest = _Latest.of(target, observed, nothing, nothing.bool())
    sums = _sums(target, observed, reference).cumsum(dim=-1)
    gone = sums[..., : max(len(steps) - length, 0)]
    recent = torch.cat([sums[..., :length], sums[..., length:] - gone], dim=-1)
    within = latest.before_change() >= (steps - length + 1).clamp(min=0)
    varied = latest.changed.int().cumsum(dim=1) > 0
    return _statistics(recent, sums, reference, latest, within, varied)


def continued_statistics(
    target: Float[Tensor, "batch time"],
    observed: Bool[Tensor, "batch time"],
    length: int,
    previous_sums: RunningSums,
    lead: int,
) -> tuple[Statistics, RunningSums]:
    """Return `running_statistics` of the steps after the first `lead`, [batch, time - lead], and the sums at the end.

    `previous_sums` are those up to and including the `lead` steps. The statistics equal those of the whole history if
    `lead` is at least `length` - 1.
    """
    # The statistics need no step before the last `length` of the lead.
    target, observed = (values[:, max(lead - length, 0) :] for values in (target, observed))
    lead = min(lead, length)
    time = target.shape[1]
    steps = torch.arange(lead, time, device=target.device)
    first_before, last_before = (
        values.to(target.dtype)[:, None] for values in (previous_sums.first, previous_sums.last)
    )
    started = previous_sums.sums[:, :1] > 0
    reference = target.gather(1, observed.int().argmax(dim=1, keepdim=True))
    reference = torch.where(started, first_before, reference)
    latest = _Latest.of(target, observed, last_before, started)
    terms = _sums(target, observed, reference)
    new = terms[..., lead:]
    gone = functional.pad(terms[..., : max(time - length, 0)], (min(length, time) - lead, 0))
    recent = terms[..., :lead].sum(-1, keepdim=True) + (new - gone).cumsum(dim=-1)
    sums = previous_sums.sums.T[..., None] + new.cumsum(dim=-1)
    within = latest.before_change()[:, lead:] >= (steps - length + 1).clamp(min=0)
    latest = latest.since(lead)
    varied = previous_sums.varied[:, None] | (latest.changed.int().cumsum(dim=1) > 0)
    first = reference[:, 0].masked_fill(~latest.exists[:, -1], 0.0)
    totals = RunningSums(sums[..., -1].T, first.double(), latest.value[:, -1].double(), varied[:, -1])
    return _statistics(recent, sums, reference, latest, within, varied), totals


class _Latest(NamedTuple):
    """The latest observation up to each step."""

    step: Int[Tensor, "batch time"]
    """-1 where there is none in the window."""
    value: Float[Tensor, "batch time"]
    exists: Bool[Tensor, "batch time"]
    changed: Bool[Tensor, "batch time"]
    """Whether the step itself is observed, and differs from the observation before it."""

    @classmethod
    def of(
        cls,
        target: Float[Tensor, "batch time"],
        observed: Bool[Tensor, "batch time"],
        before: Float[Tensor, "batch 1"],
        started: Bool[Tensor, "batch 1"],
    ) -> "_Latest":
        """Return the latest observations in a window, after `before` where the series has `started`."""
        steps = torch.arange(target.shape[1], device=target.device)
        latest = torch.where(observed, steps, -1).cummax(dim=1).values
        value = torch.where(latest >= 0, target.gather(1, latest.clamp(min=0)), before)
        exists = (latest >= 0) | started
        previous = torch.cat([before, value[:, :-1]], dim=1)
        any_before = torch.cat([started, exists[:, :-1]], dim=1)
        return cls(latest, value, exists, observed & (target != previous) & any_before)

    def before_change(self) -> Int[Tensor, "batch time"]:
        """Return the step of the observation before the latest change.

        If it is not among the last steps, the values do not change among these.
        """
        earlier = functional.pad(self.step, (1, 0), value=-1)[:, :-1]
        return torch.where(self.changed, earlier, -1).cummax(dim=1).values

    def since(self, step: int) -> "_Latest":
        """Return the latest observations at `step` and later."""
        return _Latest(*(values[:, step:] for values in self))


def _sums(
    target: Float[Tensor, "batch time"], observed: Bool[Tensor, "batch time"], reference: Float[Tensor, "batch 1"]
) -> Float[Tensor, "sum batch time"]:
    """Return what each step adds to the sums of `RunningSums`."""
    centred = (target.double() - reference).masked_fill(~observed, 0.0)
    return torch.stack([observed.double(), centred, centred.square()])


def _statistics(
    recent: Float[Tensor, "sum batch time"],
    sums: Float[Tensor, "sum batch time"],
    reference: Float[Tensor, "batch 1"],
    latest: _Latest,
    within: Bool[Tensor, "batch time"],
    varied: Bool[Tensor, "batch time"],
) -> Statistics:
    """Return the statistics of sums over the last steps, among which values change (`within`) or not.

    Where the last steps have no observation, those of `sums` over all steps, among which values have `varied` or not.
    """
    has_recent = recent[0] > 0
    count, total, squares = torch.where(has_recent, recent, sums)
    constant = ~((has_recent & within) | (~has_recent & varied)) | ~latest.exists
    count = count.clamp(min=1)
    mean = total / count
    variance = (squares / count - mean.square()).clamp(min=0)
    last, dtype = latest.value, latest.value.dtype
    level = torch.where(constant, last, reference + mean)
    scale = torch.maximum(variance.sqrt(), _RESOLUTION * level.abs()).masked_fill(constant, 0.0)
    n_observed = (count * latest.exists).to(dtype)
    return Statistics(level.to(dtype), last, scale.to(dtype), latest.exists, n_observed)


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
