"""The compound Poisson-Gamma head: zeros and positive amounts."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from forecast.models.heads import tweedie_distribution
from forecast.models.heads.counts import PoissonHead
from forecast.models.heads.quantiles import LEAST_WIDTH, fit_line, width_parameter

# Values of a panel are float32; below this share of their parts they are rounding errors of 0.
_ROUNDING = 4e-7


class TweedieHead(PoissonHead):
    """A compound Poisson-Gamma distribution of the target itself: 0 or more, with a point mass at 0.

    Its arguments are those of the Poisson head, and the dispersion: the variance is dispersion * mean^power.
    """

    n_parameters = 2
    counts = False

    def __init__(self, levels: Sequence[float], power: float) -> None:
        super().__init__(levels)
        self.power = power

    def _shape(self, parameters: Sequence[Tensor], spread: Tensor) -> list[Tensor]:
        # In units in which the variance is the squared spread if the mean equals the spread.
        return [spread ** (2 - self.power) * (LEAST_WIDTH + functional.softplus(parameters[0]))]

    def _nearest_possible(self, value: Tensor, *parts: Tensor) -> Tensor:
        size = sum((part.abs() for part in parts), start=torch.zeros_like(value))
        return value.masked_fill(value <= _ROUNDING * size, 0.0)

    def _negative_log_likelihood(self, count: Tensor, *arguments: Tensor) -> Tensor:
        mean, dispersion = arguments
        return tweedie_distribution.surprise(count, mean, dispersion, self.power)

    def _target_quantiles(self, arguments: Sequence[Tensor], levels: Tensor) -> Tensor:
        mean, dispersion = arguments
        rate, scale = tweedie_distribution.rate_and_scale(mean, dispersion, self.power)
        standard = tweedie_distribution.quantiles(rate[..., 0].cpu().numpy(), levels.tolist(), self.power)
        return scale * torch.from_numpy(standard).to(scale)

    def sample_at(
        self, arguments: Float[Tensor, "*axes argument"], uniform: Float[Tensor, "*axes"]
    ) -> Float[Tensor, "*axes"]:
        """Return a draw from each distribution by a uniform random number (`tweedie_distribution.sample_at`)."""
        location, divisor, mean, dispersion = arguments.double().unbind(-1)
        rate, scale = tweedie_distribution.rate_and_scale(mean, dispersion, self.power)
        draws = tweedie_distribution.sample_at(uniform.double().cpu().numpy(), rate.cpu().numpy(), self.power)
        scaled: Tensor = (scale * torch.from_numpy(draws).to(arguments.device) - location) / divisor
        return scaled.to(arguments.dtype)

    def _draws(self, arguments: Sequence[Tensor], generator: torch.Generator) -> Tensor:
        mean, dispersion = arguments
        return tweedie_distribution.samples(
            *tweedie_distribution.rate_and_scale(mean, dispersion, self.power), self.power, generator
        )

    def init_parameters(
        self, quantiles: Float[Tensor, "*axes quantile"], least_gap: float
    ) -> Float[Tensor, "*axes parameter"]:
        """Return 0 for the mean, as the Poisson head, and the dispersion of these quantiles around a mean of 1."""
        _, width, _ = fit_line(quantiles, torch.special.ndtri(self.start_levels.double()))
        dispersion = width_parameter(width.clamp(min=0).square(), least_gap)
        return torch.cat([super().init_parameters(quantiles, least_gap), dispersion[..., None]], -1)
