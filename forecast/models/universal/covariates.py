"""What covariates do to a series, for a network that reads the target alone."""

from typing import NamedTuple, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from forecast.models.inputs.batch import Batch

# Standardised values are kept within this range.
_CLIP = 20.0
# Steps that the unit of a series is taken over: four seasons, within these bounds.
_SEASONS, _MIN_STEPS, _MAX_STEPS = 4, 24, 400


class Shift(NamedTuple):
    """What covariates add to windows, in units of the data."""

    history: Float[Tensor, "window time"]
    ahead: Float[Tensor, "window origin horizon"]


class CovariateEffect(nn.Module):
    """A regression on covariates, with the same coefficients for all series: how far they move the target.

    Known covariates act in the past and in the future alike: the network forecasts the series without their effect,
    which is added to the forecast (regression with the network's forecast in place of ARIMA errors). Past covariates
    move the forecast by their latest value, one part of it fading with the steps ahead. Effects are in units of the
    deviation of the series, and values count as differences from their mean in the window, so that neither units nor
    levels matter. A missing value is the mean.
    """

    scale: Tensor
    """[known + past], deviation of each covariate within windows of the panel."""

    def __init__(self, n_known: int, n_past: int) -> None:
        super().__init__()
        self.sizes = n_known, n_past
        self.known = nn.Parameter(torch.zeros(n_known))
        self.past = nn.Parameter(torch.zeros(2, n_past))
        """Of the part that lasts, and of the one that fades as 1 / step."""
        self.register_buffer("scale", torch.ones(n_known + n_past))

    @property
    def is_active(self) -> bool:
        """Whether any coefficient differs from 0."""
        return bool(self.known.any()) or bool(self.past.any())

    @torch.no_grad()
    def set_coefficients(self, weight: Float[Tensor, " column"]) -> None:
        """Set those of known covariates, then those of past ones: what lasts, and what fades."""
        n_known, n_past = self.sizes
        known, *past = weight.split([n_known, n_past, n_past])
        self.known.copy_(known)
        self.past.copy_(torch.stack(past))

    def forward(
        self,
        values: Float[Tensor, "window time"],
        observed: Bool[Tensor, "window time"],
        columns: "Columns",
        origins: Int[Tensor, " origin"],
        season: int,
    ) -> Shift:
        """Return the effects on windows, and on the steps after each origin, an index into `time`.

        Unit of the series and means of covariates are those of the steps up to the first origin.
        """
        time, seen = values.shape[1], int(origins[0]) + 1
        horizon = columns.known.shape[1] - time
        known, past = self.standardised(columns, seen)
        unit = deviation(values[:, :seen], observed[:, :seen], season)[:, None]
        step = torch.arange(1, horizon + 1, device=origins.device)
        moved = unit * values.new_zeros(time + horizon)
        if self.sizes[0]:  # A graph has no empty tensors.
            moved = unit * (known * self.known).sum(-1)
        ahead = moved[:, origins[:, None] + step]
        if self.sizes[1]:
            lasting, fading = ((past[:, origins] * part).sum(-1, keepdim=True) for part in self.past)
            ahead = ahead + unit[..., None] * (lasting + fading / step)
        return Shift(moved[:, :time], ahead)

    def standardised(
        self, columns: "Columns", seen: int
    ) -> tuple[Float[Tensor, "window longer known"], Float[Tensor, "window time past"]]:
        """Return known covariates, and the latest value of past ones, as differences from their mean in `seen` steps.

        In units of `scale`; 0 where missing.
        """
        scale, past_scale = self.scale.split(self.sizes)
        known = differences(columns.known, seen) / scale
        past = _latest(differences(columns.past, seen) / past_scale, torch.isfinite(columns.past))
        return known.clamp(-_CLIP, _CLIP), past.clamp(-_CLIP, _CLIP)


class Columns(NamedTuple):
    """Covariates of windows, NaN where missing."""

    known: Float[Tensor, "window longer known"]
    """Of the steps of the window and those of the horizon."""
    past: Float[Tensor, "window time past"]

    @classmethod
    def of(cls, batch: Batch) -> Self:
        """Return the covariates of a batch."""
        return cls(batch.known.masked_fill(~batch.there[..., None], torch.nan), batch.past)


def differences(values: Float[Tensor, "window time column"], seen: int) -> Float[Tensor, "window time column"]:
    """Return values as differences from their mean in the first `seen` steps; 0 where missing, or without a mean."""
    there = torch.isfinite(values)
    count = there[:, :seen].sum(1, keepdim=True)
    mean = torch.where(there, values, 0.0)[:, :seen].double().sum(1, keepdim=True) / count.clamp(min=1)
    return torch.where(there & (count > 0), values - mean.to(values.dtype), 0.0)


def deviation(
    values: Float[Tensor, "window time"], observed: Bool[Tensor, "window time"], season: int
) -> Float[Tensor, " window"]:
    """Return the standard deviation of the last seasons of windows, or of all steps where those do not vary."""
    recent = min(max(_SEASONS * season, _MIN_STEPS), _MAX_STEPS, values.shape[1])
    last, all_steps = (_deviation(values[:, -n:], observed[:, -n:]) for n in (recent, values.shape[1]))
    return torch.where(last > 0, last, all_steps).to(values.dtype)


def _deviation(values: Float[Tensor, "window time"], observed: Bool[Tensor, "window time"]) -> Tensor:
    highest, lowest = (torch.where(observed, values, end) for end in (-torch.inf, torch.inf))
    count = observed.sum(1, keepdim=True).clamp(min=1)
    mean = torch.where(observed, values, 0.0).double().sum(1, keepdim=True) / count
    squares = torch.where(observed, values.double() - mean, 0.0).square().sum(1) / count[:, 0]
    return torch.where(highest.amax(1) > lowest.amin(1), squares.sqrt(), 0.0)


def _latest(
    values: Float[Tensor, "window time column"], there: Bool[Tensor, "window time column"]
) -> Float[Tensor, "window time column"]:
    """Return, at each step, the last value that is there."""
    step = torch.arange(values.shape[1], device=values.device)
    filled = [
        column.gather(1, torch.where(valid, step, 0).cummax(1).values)
        for column, valid in zip(values.unbind(-1), there.unbind(-1), strict=True)
    ]
    return torch.stack(filled, -1) if filled else values
