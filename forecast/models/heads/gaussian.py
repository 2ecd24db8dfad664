"""Normal and Student-t distributions around the linear skip."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from forecast.models.heads.base import Head
from forecast.models.heads.quantiles import HALF_LOG_TAU, LEAST_WIDTH, fit_line, softplus_inverse, width_parameter
from forecast.models.inputs.frame import Frame
from forecast.models.tensors import untraced

# Initial degrees of freedom to try for a Student-t.
_START_FREEDOM = (2.2, 2.5, 3.0, 4.0, 6.0, 10.0, 30.0)


class NormalHead(Head):
    """A normal distribution; its arguments are mean and standard deviation."""

    n_parameters = 2
    estimates_mean = True

    def arguments(self, parameters: Tensor, linear: Tensor, frame: Frame) -> Tensor:
        """Return location and scale around the linear skip, and further arguments of the distribution."""
        middle, width, *shape_parameters = parameters.unbind(-1)
        scale = frame.spread * (LEAST_WIDTH + functional.softplus(width))
        return torch.stack([linear + frame.spread * middle, scale, *self._shape(shape_parameters)], dim=-1)

    def scale_width(
        self, arguments: Float[Tensor, "*axes argument"], factor: Float[Tensor, ""]
    ) -> Float[Tensor, "*axes argument"]:
        """Return the distribution with `factor` times its scale."""
        location, scale, *shape_arguments = arguments.split(1, dim=-1)
        return torch.cat([location, scale * factor.to(scale), *shape_arguments], dim=-1)

    def _shape(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        return list(parameters)

    def errors(
        self, arguments: Float[Tensor, "*axes argument"], target: Float[Tensor, "*axes"]
    ) -> Float[Tensor, "*axes"]:
        """Return the negative log-likelihood, in float64 throughout."""
        location, scale = arguments.double().unbind(-1)
        error: Tensor = scale.log() + 0.5 * ((target - location) / scale).square() + HALF_LOG_TAU
        return error

    def quantiles(
        self, arguments: Float[Tensor, "*axes argument"], levels: Float[Tensor, " quantile"] | None = None
    ) -> Float[Tensor, "*axes quantile"]:
        """Return the quantiles at `levels` (None: `self.levels`)."""
        requested = (self.levels if levels is None else levels).double()
        standard = self._standard_quantiles(arguments, requested).to(arguments.dtype)
        return arguments[..., :1] + arguments[..., 1:2] * standard

    def _standard_quantiles(self, arguments: Tensor, levels: Tensor) -> Tensor:  # noqa: ARG002
        with untraced():
            quantiles: Tensor = torch.special.ndtri(levels)
        return quantiles

    def mean(self, arguments: Float[Tensor, "*axes argument"]) -> Float[Tensor, "*axes"]:
        """Return the location."""
        return arguments[..., 0]

    def samples(
        self, arguments: Float[Tensor, "*axes argument"], count: int, generator: torch.Generator
    ) -> Float[Tensor, "*axes sample"]:
        """Return independent draws."""
        noise = arguments.new_empty(*arguments.shape[:-1], count).normal_(generator=generator)
        return arguments[..., :1] + arguments[..., 1:2] * noise

    def init_parameters(
        self, quantiles: Float[Tensor, "*axes quantile"], least_gap: float
    ) -> Float[Tensor, "*axes parameter"]:
        """Return location and scale from the line of the quantiles against those of the standard distribution."""
        middle, width, _ = fit_line(quantiles, torch.special.ndtri(self.start_levels.double()))
        return torch.stack([middle, width_parameter(width, least_gap)], dim=-1)


class StudentTHead(NormalHead):
    """Student's t with more than two degrees of freedom; its arguments are location, scale and those degrees."""

    n_parameters = 3
    heavy_tailed = True
    estimates_mean = False

    def _shape(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        return [2.0 + functional.softplus(parameters[0])]

    def errors(
        self, arguments: Float[Tensor, "*axes argument"], target: Float[Tensor, "*axes"]
    ) -> Float[Tensor, "*axes"]:
        """Return the negative log-likelihood, in float64 throughout."""
        location, scale, freedom = arguments.double().unbind(-1)
        normaliser = torch.lgamma(0.5 * freedom) - torch.lgamma(0.5 * (freedom + 1)) + 0.5 * (math.pi * freedom).log()
        square = ((target - location) / scale).square()
        return normaliser + scale.log() + 0.5 * (freedom + 1) * (square / freedom).log1p()

    def _standard_quantiles(self, arguments: Tensor, levels: Tensor) -> Tensor:
        return _student_t_quantiles(arguments[..., 2:].double(), levels)

    def samples(
        self, arguments: Float[Tensor, "*axes argument"], count: int, generator: torch.Generator
    ) -> Float[Tensor, "*axes sample"]:
        """Return independent draws: normal ones, over the square root of Gamma ones with mean 1."""
        half = (0.5 * arguments[..., 2:].double()).repeat_interleave(count, dim=-1)
        factor = (half / torch._standard_gamma(half, generator=generator)).sqrt().to(arguments.dtype)
        location = arguments[..., :1]
        return location + (super().samples(arguments, count, generator) - location) * factor

    def init_parameters(
        self, quantiles: Float[Tensor, "*axes quantile"], least_gap: float
    ) -> Float[Tensor, "*axes parameter"]:
        """Return the parameters of the line with the least error over some degrees of freedom."""
        freedom = quantiles.new_tensor(_START_FREEDOM)
        standard = _student_t_quantiles(freedom[:, None].double(), self.start_levels.double())
        lines = [fit_line(quantiles, quantile_row) for quantile_row in standard]
        middle, width, error = (torch.stack(column, dim=-1) for column in zip(*lines, strict=True))
        best = error.argmin(-1, keepdim=True)
        location_and_width = middle.gather(-1, best), width_parameter(width.gather(-1, best), least_gap)
        return torch.cat([*location_and_width, softplus_inverse(freedom - 2.0)[best]], dim=-1)


def _student_t_quantiles(
    freedom: Float[Tensor, "*axes 1"], levels: Float[Tensor, " quantile"]
) -> Float[Tensor, "*axes quantile"]:
    """Return the quantiles of Student's t with location 0 and scale 1."""
    from scipy.special import stdtrit

    quantiles = stdtrit(freedom.detach().cpu().numpy(), levels.cpu().numpy())
    return torch.from_numpy(np.asarray(quantiles)).to(freedom.device)
