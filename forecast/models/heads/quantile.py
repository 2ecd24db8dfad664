"""Quantiles that cannot cross."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from forecast.models.heads.base import Head
from forecast.models.heads.quantile_gradients import ordered_quantiles, pinball_loss
from forecast.models.heads.quantiles import pinball, softplus_inverse, tails
from forecast.models.inputs.frame import Frame

# Clip of targets in the loss of quantiles, in units of scale.
_FAR = 20.0


class QuantileHead(Head):
    """Quantiles that cannot cross: the median, plus softplus increments outwards. Its arguments are the quantiles.

    The distribution is linear between them; its tails are exponential, with the density that the outer two quantiles
    have between them. Without tails, sums over the horizon would vary too little.
    """

    def __init__(self, levels: Sequence[float]) -> None:
        super().__init__(levels, levels)
        self.n_parameters = len(levels)
        self.location_index = self.median

    def ordered(self, parameters: Float[Tensor, "*axes parameter"]) -> Float[Tensor, "*axes quantile"]:
        """Return the quantiles of the parameters, in the order of the levels."""
        if self._differentiated:
            return ordered_quantiles(parameters, self.median)
        below, median, above = parameters.split([self.median, 1, self.n_parameters - self.median - 1], dim=-1)
        down = functional.softplus(below).flip(-1).cumsum(-1).flip(-1)
        up = functional.softplus(above).cumsum(-1)
        return torch.cat([median - down, median, median + up], dim=-1)

    def arguments(self, parameters: Tensor, linear: Tensor, frame: Frame) -> Tensor:
        """Return the quantiles around the linear skip."""
        return self.ordered(parameters) * frame.spread[..., None] + linear[..., None]

    def errors(
        self, arguments: Float[Tensor, "*axes quantile"], target: Float[Tensor, "*axes"]
    ) -> Float[Tensor, "*axes"]:
        """Return the loss of each forecast: the pinball loss, doubled (the median alone gives the absolute error).

        Targets are clipped at `_FAR`, which only affects those after nearly constant windows or a break of level. A
        clipped target is still on the same side of all nearer quantiles, so these do not change.
        """
        loss = pinball_loss if self._differentiated else pinball
        return loss(arguments, target.clamp(-_FAR, _FAR), self.levels)

    def quantiles(
        self, arguments: Float[Tensor, "*axes argument"], levels: Float[Tensor, " quantile"] | None = None
    ) -> Float[Tensor, "*axes quantile"]:
        """Return the quantiles at `self.levels`, or those of the distribution at other `levels`."""
        if levels is None:
            return arguments
        return self._interpolated(arguments, levels.expand(*arguments.shape[:-1], -1))

    def mean(self, arguments: Float[Tensor, "*axes quantile"]) -> Float[Tensor, "*axes"]:
        """Return the mean of the distribution."""
        return arguments @ self.mean_weights.to(arguments.dtype)

    def samples(
        self, arguments: Float[Tensor, "*axes argument"], count: int, generator: torch.Generator
    ) -> Float[Tensor, "*axes sample"]:
        """Return independent draws."""
        shape = *arguments.shape[:-1], count
        uniform = torch.rand(shape, generator=generator, device=arguments.device, dtype=arguments.dtype)
        return self._interpolated(arguments, uniform.clamp(min=torch.finfo(uniform.dtype).eps))

    def init_parameters(
        self, quantiles: Float[Tensor, "*axes quantile"], least_gap: float
    ) -> Float[Tensor, "*axes parameter"]:
        """Return the parameters that give these quantiles, at least `least_gap` apart."""
        gaps = quantiles.diff(dim=-1).clamp(min=least_gap)
        inverse = softplus_inverse(gaps)
        median = quantiles[..., self.median : self.median + 1]
        return torch.cat([inverse[..., : self.median], median, inverse[..., self.median :]], dim=-1)

    def location(self, arguments: Float[Tensor, "*axes argument"]) -> Float[Tensor, "*axes"]:
        """Return the median."""
        return arguments[..., self.median]

    def scale_width(
        self, arguments: Float[Tensor, "*axes quantile"], factor: Float[Tensor, ""]
    ) -> Float[Tensor, "*axes quantile"]:
        """Return quantiles whose distances from the median are `factor` times as large."""
        centre = arguments[..., self.median : self.median + 1]
        return torch.lerp(centre, arguments, factor.to(arguments))

    def enforce_min_gap(
        self, parameters: Float[Tensor, "*axes parameter"], least_gap: float
    ) -> Float[Tensor, "*axes parameter"]:
        """Return parameters of the same quantiles, at least `least_gap` apart."""
        return self.init_parameters(self.ordered(parameters), least_gap)

    @property
    def _differentiated(self) -> bool:
        return self.training and torch.is_grad_enabled()

    def _interpolated(self, quantiles: Tensor, levels: Float[Tensor, "*axes point"]) -> Float[Tensor, "*axes point"]:
        """Return the quantile function at `levels`."""
        grid = self.levels.to(quantiles.dtype)
        if len(grid) == 1:
            return quantiles.expand_as(levels)
        right = torch.searchsorted(grid, levels.to(grid.dtype).contiguous()).clamp(1, len(grid) - 1)
        share = ((levels - grid[right - 1]) / (grid[right] - grid[right - 1])).clamp(0, 1)
        inner = quantiles.gather(-1, right - 1).lerp(quantiles.gather(-1, right), share.to(quantiles.dtype))
        low, high = tails(self.levels.tolist())
        below = low * (quantiles[..., 1:2] - quantiles[..., :1]) * (levels / grid[0]).clamp(max=1).log()
        above = (
            high * (quantiles[..., -1:] - quantiles[..., -2:-1]) * ((1 - levels) / (1 - grid[-1])).clamp(max=1).log()
        )
        return inner + below - above
