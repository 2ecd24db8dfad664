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
    latest: Float[Tensor, " batch"]
    """Steps since the latest observation, 0 for the last step itself, float64; inf where there is none."""
    changed: Float[Tensor, " batch"]
    """Steps since the latest observation that the next one differs from, float64; inf where all are equal."""

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
    latest = torch.where(observed, steps, -1).cummax(dim=1).values
    any_observed = latest >= 0
    last = target.gather(1, latest.clamp(min=0)).masked_fill(~any_observed, 0.0)
    reference = target.gather(1, observed.int().argmax(dim=1, keepdim=True))
    sums = torch.stack(_terms(target, observed, reference)).cumsum(dim=-1)
    gone = sums[..., : max(len(steps) - length, 0)]
    recent = torch.cat([sums[..., :length], sums[..., length:] - gone], dim=-1)
    # The observation before the latest change: if it is not among the last steps, these do not change.
    earlier = functional.pad(latest, (1, 0), value=-1)[:, :-1]
    changed = observed & (target != functional.pad(last, (1, 0))[:, :-1]) & (earlier >= 0)
    changed_from = torch.where(changed, earlier, -1).cummax(dim=1).values
    within, varied = changed_from >= (steps - length + 1).clamp(min=0), changed_from >= 0
    has_recent = recent[0] > 0  # ONNX Runtime has no `where` of booleans.
    varies = (has_recent & within) | (~has_recent & varied)
    return _statistics(recent, sums, reference, last, any_observed, varies)


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
    begin = max(lead - length, 0)
    target_before, observed_before = target[:, begin:lead], observed[:, begin:lead]
    last_before = _last_before(target, observed, previous_sums, lead)
    first_before = previous_sums.first.to(target.dtype)[:, None]
    target, observed = target[:, lead:], observed[:, lead:]
    reference = target.gather(1, observed.int().argmax(dim=1, keepdim=True))
    reference = torch.where(previous_sums.sums[:, :1] > 0, first_before, reference)

    # Steps are counted from the first one after the lead; -inf where there is none.
    steps = torch.arange(target.shape[1], device=target.device)
    latest_before, changed_before = (-1 - values[:, None] for values in (previous_sums.latest, previous_sums.changed))
    latest = torch.where(observed, steps, -1).cummax(dim=1).values
    last = torch.where(latest >= 0, target.gather(1, latest.clamp(min=0)), last_before)
    latest = torch.where(latest >= 0, latest, latest_before)
    earlier = torch.cat([latest_before, latest[:, :-1]], dim=1)
    changed = observed & (target != torch.cat([last_before, last[:, :-1]], dim=1)) & (earlier > -torch.inf)
    changed_from = torch.where(changed, earlier, changed_before).cummax(dim=1).values

    parts, parts_before = _terms(target, observed, reference), _terms(target_before, observed_before, reference)
    n_before = target_before.shape[1]
    n_leaving = max(n_before + len(steps) - length, 0)
    leaving = torch.stack(
        [
            torch.cat([before[:, :n_leaving], part[:, : max(n_leaving - n_before, 0)]], dim=1)
            for before, part in zip(parts_before, parts, strict=True)
        ]
    )
    recent = torch.stack([part.sum(-1, keepdim=True) for part in parts_before])
    terms = torch.stack(parts)
    recent = recent + (terms - functional.pad(leaving, (len(steps) - n_leaving, 0))).cumsum(dim=-1)
    sums = previous_sums.sums.T[..., None] + terms.cumsum(dim=-1)
    varies = torch.where(recent[0] > 0, changed_from > steps - length, changed_from > -torch.inf)
    any_observed = latest > -torch.inf
    totals = RunningSums(
        sums[..., -1].T,
        reference[:, 0].double().masked_fill(~any_observed[:, -1], 0.0),
        last[:, -1].double(),
        len(steps) - 1 - latest[:, -1],
        len(steps) - 1 - changed_from[:, -1],
    )
    return _statistics(recent, sums, reference, last, any_observed, varies), totals


def _last_before(
    target: Float[Tensor, "batch time"], observed: Bool[Tensor, "batch time"], sums: RunningSums, lead: int
) -> Float[Tensor, "batch 1"]:
    """Return the latest observed value of the lead, from the window if it is there: sums round it."""
    step = lead - 1 - sums.latest[:, None]
    index = step.clamp(min=0).long()
    in_window = (step >= 0) & observed.gather(1, index)
    return torch.where(in_window, target.gather(1, index), sums.last.to(target.dtype)[:, None])


def _terms(
    target: Float[Tensor, "batch time"], observed: Bool[Tensor, "batch time"], reference: Float[Tensor, "batch 1"]
) -> list[Float[Tensor, "batch time"]]:
    """Return what each step adds to the sums of `RunningSums`."""
    centred = (target.double() - reference).masked_fill(~observed, 0.0)
    return [observed.double(), centred, centred.square()]


def _statistics(
    recent: Float[Tensor, "sum batch time"],
    sums: Float[Tensor, "sum batch time"],
    reference: Float[Tensor, "batch 1"],
    last: Float[Tensor, "batch time"],
    any_observed: Bool[Tensor, "batch time"],
    varies: Bool[Tensor, "batch time"],
) -> Statistics:
    """Return the statistics of sums over the last steps or, where these have no observation, over all steps."""
    count, total, squares = torch.where(recent[0] > 0, recent, sums)
    constant = ~varies | ~any_observed
    count = count.clamp(min=1)
    mean = total / count
    variance = (squares / count - mean.square()).clamp(min=0)
    level = torch.where(constant, last, reference + mean)
    scale = torch.maximum(variance.sqrt(), _RESOLUTION * level.abs()).masked_fill(constant, 0.0)
    n_observed = (count * any_observed).to(last.dtype)
    return Statistics(level.to(last.dtype), last, scale.to(last.dtype), any_observed, n_observed)


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
