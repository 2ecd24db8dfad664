"""Adam for many series at once, with a gradient norm per series."""

import copy
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from forecast.models.adapters.stacked import Deltas
from forecast.models.tunable import AnyTunable
from forecast.models.universal.forecaster import UniversalForecaster

_CLIP = 1.0
_MOMENTS, _LEAST = (0.9, 0.999), 1e-8


class BatchedAdam:
    """Adam (Kingma & Ba 2015) on the changes of many independent series: rate, clipping and end are per series.

    A series whose loss or gradient is not finite no longer changes, and is not `finite`.
    """

    def __init__(self, start: Deltas, rate: Float[Tensor, " series"]) -> None:
        self.changes = {name: values.detach().clone() for name, values in start.items()}
        self.finite = torch.ones_like(rate, dtype=torch.bool)
        self._rate = rate
        self._moments = [{name: torch.zeros_like(values) for name, values in start.items()} for _ in _MOMENTS]
        self._count = 0

    def step(self, loss: Callable[[Deltas], Float[Tensor, " series"]], going: Bool[Tensor, " series"]) -> None:
        """Take one step for the series that are `going`."""
        names = list(self.changes)
        variables = {name: self.changes[name].requires_grad_() for name in names}
        with torch.enable_grad():
            value = loss(variables)
            gradients_by_name = torch.autograd.grad(value.sum(), list(variables.values()))
        gradients = dict(zip(names, gradients_by_name, strict=True))
        with torch.no_grad():
            square = sum(values.reshape(len(values), -1).double().square().sum(1) for values in gradients.values())
            assert isinstance(square, Tensor)
            self.finite &= ~going | (torch.isfinite(square) & torch.isfinite(value))
            going = going & self.finite
            clip = (_CLIP / square.sqrt().clamp(min=_LEAST)).clamp(max=1.0)
            self._count += 1
            for name, gradient in gradients.items():
                ndim = [1] * (gradient.ndim - 1)
                active = going.view(-1, *ndim)
                gradient = (gradient * clip.to(gradient).view(-1, *ndim)).masked_fill(~active, 0.0)
                corrected = []
                for moment, decay, power in zip(self._moments, _MOMENTS, (1, 2), strict=True):
                    moment[name].lerp_(gradient**power, 1 - decay)
                    corrected.append(moment[name] / (1 - decay**self._count))
                move = self._rate.to(gradient).view(-1, *ndim) * corrected[0] / (corrected[1].sqrt() + _LEAST)
                self.changes[name] = self.changes[name].detach() - move.masked_fill(~active, 0.0)


def fitting(network: AnyTunable) -> AnyTunable:
    """Return a copy for gradients: small changes count, which forecasts drop (`Head.soft_threshold`)."""
    copied = copy.deepcopy(network)
    copied.threshold.zero_()
    if isinstance(copied, UniversalForecaster):
        copied.at_once = True
    return copied.requires_grad_(requires_grad=False)
