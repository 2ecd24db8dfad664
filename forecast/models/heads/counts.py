"""Poisson and negative binomial distributions of the target itself."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from forecast.models.heads import count_quantiles
from forecast.models.heads.base import Head
from forecast.models.heads.quantiles import HALF_LOG_TAU, LEAST_WIDTH, fit_line, width_parameter
from forecast.models.inputs.frame import Frame

# Softness of the lower bound 0 of a count's mean, in units of the divisor.
_SOFTNESS = 0.1


class PoissonHead(Head):
    """A Poisson distribution of the target itself.

    Its arguments are location and divisor of the frame, and the mean, in units of the target: `divisor` times the
    squareplus (Barron 2021) of the forecast of a location head, which is positive and has a slow tail below 0.
    """

    n_parameters = 1
    counts = True
    positive = True
    estimates_mean = True

    def arguments(self, parameters: Tensor, linear: Tensor, frame: Frame) -> Tensor:
        """Return the distribution of the target whose mean is around the linear skip, kept positive."""
        location, divisor = (values[..., None].expand_as(linear) for values in (frame.location, frame.divisor))
        middle, *shape_parameters = parameters.unbind(-1)
        mean = divisor * _squareplus(location / divisor + linear + frame.spread * middle)
        return torch.stack([location, divisor, mean, *self._shape(shape_parameters, divisor * frame.spread)], dim=-1)

    def _shape(self, parameters: Sequence[Tensor], spread: Tensor) -> list[Tensor]:  # noqa: ARG002
        return list(parameters)

    def errors(
        self, arguments: Float[Tensor, "*axes argument"], target: Float[Tensor, "*axes"]
    ) -> Float[Tensor, "*axes"]:
        """Return the negative log-likelihood of the target itself, in float64 throughout."""
        location, divisor, *shape = arguments.double().unbind(-1)
        value = location + divisor * target
        return self._negative_log_likelihood(self._nearest_possible(value, location, divisor * target).detach(), *shape)

    def _nearest_possible(self, value: Tensor, *parts: Tensor) -> Tensor:  # noqa: ARG002
        """Return the nearest possible target of a value with the rounding errors of its parts."""
        return value.round().clamp(min=0)

    def _negative_log_likelihood(self, count: Tensor, *arguments: Tensor) -> Tensor:
        (mean,) = arguments
        surprise: Tensor = mean - torch.xlogy(count, mean) + torch.lgamma(count + 1)
        return surprise

    def quantiles(
        self, arguments: Float[Tensor, "*axes argument"], levels: Float[Tensor, " quantile"] | None = None
    ) -> Float[Tensor, "*axes quantile"]:
        """Return the quantiles at `levels` (None: `self.levels`), in the frame's units."""
        location, divisor, *shape_arguments = arguments.detach().double().split(1, dim=-1)
        levels = (self.levels if levels is None else levels).double()
        scaled: Tensor = (self._target_quantiles(shape_arguments, levels) - location) / divisor
        return scaled.to(arguments.dtype)

    def _target_quantiles(self, arguments: Sequence[Tensor], levels: Tensor) -> Tensor:
        """Return the quantiles in units of the target, [..., level]; arguments are [..., 1]."""
        mean = arguments[0][..., 0]
        return count_quantiles.quantiles(mean, torch.zeros_like(mean), levels)

    def mean(self, arguments: Float[Tensor, "*axes argument"]) -> Float[Tensor, "*axes"]:
        """Return the mean, in the frame's units."""
        return (arguments[..., 2] - arguments[..., 0]) / arguments[..., 1]

    def samples(
        self, arguments: Float[Tensor, "*axes argument"], count: int, generator: torch.Generator
    ) -> Float[Tensor, "*axes sample"]:
        """Return independent draws, in the frame's units."""
        location, divisor, *shape_arguments = arguments.double().split(1, dim=-1)
        draws = self._draws([values.repeat_interleave(count, dim=-1) for values in shape_arguments], generator)
        scaled: Tensor = (draws - location) / divisor
        return scaled.to(arguments.dtype)

    def _draws(self, arguments: Sequence[Tensor], generator: torch.Generator) -> Tensor:
        return torch.poisson(arguments[0], generator=generator)

    def init_parameters(
        self,
        quantiles: Float[Tensor, "*axes quantile"],
        least_gap: float,  # noqa: ARG002
    ) -> Float[Tensor, "*axes parameter"]:
        """Return 0: the least-squares skip is a mean already, and inner quantiles do not determine rare counts."""
        return torch.zeros_like(quantiles[..., :1])


class NegativeBinomialHead(PoissonHead):
    """A negative binomial distribution of the target itself, with mean m and variance m + s^2.

    Its arguments are those of the Poisson head, and s in units of the target: the learnt dispersion is in units of
    spread, like the width of the other heads. scipy's n is m^2 / s^2.
    """

    n_parameters = 2

    def _shape(self, parameters: Sequence[Tensor], spread: Tensor) -> list[Tensor]:
        return [spread * (LEAST_WIDTH + functional.softplus(parameters[0]))]

    def _negative_log_likelihood(self, count: Tensor, *arguments: Tensor) -> Tensor:
        mean, excess = arguments
        size = (mean / excess).square()
        # The Gamma functions by Stirling's formula, so that their large parts cancel on paper: the sizes of nearly
        # Poisson counts are beyond 1e15.
        return (
            torch.lgamma(count + 1)
            + count
            - torch.xlogy(count, mean)
            - (count + size - 0.5) * (count / size).log1p()
            + (count + size) * (mean / size).log1p()
            - _stirling_rest(count + size)
            + _stirling_rest(size)
        )

    def _target_quantiles(self, arguments: Sequence[Tensor], levels: Tensor) -> Tensor:
        mean, excess = (values[..., 0] for values in arguments)
        return count_quantiles.quantiles(mean, excess, levels)

    def _draws(self, arguments: Sequence[Tensor], generator: torch.Generator) -> Tensor:
        mean, excess = arguments
        size = (mean / excess).square()
        return torch.poisson(torch._standard_gamma(size, generator=generator) / size * mean, generator=generator)

    def init_parameters(
        self, quantiles: Float[Tensor, "*axes quantile"], least_gap: float
    ) -> Float[Tensor, "*axes parameter"]:
        """Return 0 for the mean, as the Poisson head, and the width of these quantiles as dispersion."""
        _, width, _ = fit_line(quantiles, torch.special.ndtri(self.start_levels.double()))
        return torch.cat(
            [super().init_parameters(quantiles, least_gap), width_parameter(width, least_gap)[..., None]], -1
        )


def _squareplus(values: Tensor) -> Tensor:
    """Return (x + sqrt(x^2 + c^2)) / 2, without cancellation below 0."""
    larger = 0.5 * (torch.where(values >= 0, values, -values) + (values.square() + _SOFTNESS**2).sqrt())
    return torch.where(values >= 0, larger, 0.25 * _SOFTNESS**2 / larger)


def _stirling_rest(values: Tensor) -> Tensor:
    """Return log Gamma(x) - (x - 1/2) log x + x - log(2 pi) / 2; by its asymptotic series (DLMF 5.11.1) from 10 on."""
    small, inverse = values.clamp(max=10), 1.0 / values.clamp(min=10)
    exact = torch.lgamma(small) - (small - 0.5) * small.log() + small - HALF_LOG_TAU
    square = inverse.square()
    terms = 1 / 12 - square * (1 / 360 - square * (1 / 1260 - square * (1 / 1680 - square / 1188)))
    return torch.where(values < 10, exact, inverse * terms)
