"""Output heads: what the network's numbers mean."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from forecast.models.heads import count_quantiles, tweedie_distribution

if TYPE_CHECKING:
    from forecast.models.inputs.frame import Frame

# Levels of the skip's residuals that a distribution starts from. None far out: those are of windows too short to tell
# their spread.
_START_LEVELS = tuple(k / 10 for k in range(1, 10))
# Degrees of freedom that a Student-t may start with.
_START_FREEDOM = (2.2, 2.5, 3.0, 4.0, 6.0, 10.0, 30.0)
# The least standard deviation (or scale) of a distribution, in units of spread.
_LEAST_WIDTH = 0.01
# Targets beyond, in units of scale, are as far as that to a loss of quantiles.
_FAR = 20.0
# How softly the mean of a count stays above 0, in units of the divisor.
_SOFTNESS = 0.1
# Values of a panel are float32; nearer to 0 than this share of what they are made of, they are 0.
_ROUNDING = 4e-7
# Levels times draws that are so little above a whole number are that number.
_WHOLE = 1e-4
_HALF_LOG_TAU = 0.5 * math.log(2 * math.pi)


class Head(nn.Module, ABC):
    """What is forecast of each step: a distribution, made of `n_parameters` numbers of the network.

    `arguments` makes the distribution; loss, quantiles, mean and samples are taken from its arguments. All are in the
    frame's units: the target minus `location`, over `divisor`.
    """

    levels: Tensor
    start_levels: Tensor
    mean_weights: Tensor
    n_parameters: int
    location = 0
    """Which of the parameters moves the forecast."""
    counts = False
    """Whether targets and quantiles are whole numbers."""
    positive = False
    """Whether no target is below 0: the distribution is of the target itself, not of what the frame makes of it."""
    nonnegative = False
    """Whether no target of the panel is below 0, whatever the distribution (`NetworkShape.nonnegative`)."""
    heavy_tailed = False
    """Whether its exponential has no mean."""
    estimates_mean = False
    """Whether its likelihood is greatest at the mean of the targets: no loss of it may depend on the outcome."""
    n_fed = 3
    """Features that `fed` gives."""

    def __init__(self, levels: Sequence[float], start_levels: Sequence[float] = _START_LEVELS) -> None:
        super().__init__()
        self.median = list(levels).index(0.5)
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        self.register_buffer("start_levels", torch.tensor(start_levels), persistent=False)
        self.register_buffer("mean_weights", _mean_weights(levels), persistent=False)

    @abstractmethod
    def arguments(
        self,
        parameters: Float[Tensor, "*axes horizon parameter"],
        linear: Float[Tensor, "*axes horizon"],
        frame: "Frame",
    ) -> Float[Tensor, "*axes horizon argument"]:
        """Return the distribution around the linear skip, [..., horizon, argument]."""

    @abstractmethod
    def errors(
        self, arguments: Float[Tensor, "*axes argument"], target: Float[Tensor, "*axes"]
    ) -> Float[Tensor, "*axes"]:
        """Return the loss of each forecast: finite wherever its target is, and the smaller the better."""

    @abstractmethod
    def quantiles(
        self, arguments: Float[Tensor, "*axes argument"], levels: Float[Tensor, " quantile"] | None = None
    ) -> Float[Tensor, "*axes quantile"]:
        """Return the quantiles at `levels`, the head's own when None. No gradient passes through them."""

    @abstractmethod
    def mean(self, arguments: Float[Tensor, "*axes argument"]) -> Float[Tensor, "*axes"]:
        """Return the mean of the distribution."""

    @abstractmethod
    def samples(
        self, arguments: Float[Tensor, "*axes argument"], count: int, generator: torch.Generator
    ) -> Float[Tensor, "*axes sample"]:
        """Return independent draws from each distribution."""

    @abstractmethod
    def parameters_of(
        self, quantiles: Float[Tensor, "*axes quantile"], least_gap: float
    ) -> Float[Tensor, "*axes parameter"]:
        """Return parameters for errors of the skip, in units of spread, with these quantiles at `start_levels`."""

    def width_parameter(self, width: float) -> float:
        """Return the parameter of a distribution that is so wide, in units of spread."""
        return float(_width_parameter(torch.tensor(width, dtype=torch.float64), 1e-6))

    def within_support(self, values: Tensor, *, whole: bool = True) -> Tensor:
        """Return values in units of the target, moved to the nearest ones that a target can have.

        Means of counts are not `whole`; nor are points that a mean is taken of, which may be below 0 where only the
        panel is `nonnegative`.
        """
        values = values.clamp(min=0) if self.positive or (self.nonnegative and whole) else values
        return values.round() if self.counts and whole else values

    def centre(self, arguments: Float[Tensor, "*axes argument"]) -> Float[Tensor, "*axes"]:
        """Return the one number that residuals are taken from."""
        return self.mean(arguments)

    def scores(
        self, arguments: Float[Tensor, "*axes argument"], target: Float[Tensor, "*axes"]
    ) -> Float[Tensor, "*axes"]:
        """Return a loss that can be compared with that of `marginal`, which is known by samples only."""
        return pinball(self.quantiles(arguments), target, self.levels)

    def drawn(
        self, arguments: Float[Tensor, "*axes argument"], uniform: Float[Tensor, "*axes"]
    ) -> Float[Tensor, "*axes"]:
        """Return a draw from each distribution: its quantile at a uniform random number."""
        return self.quantiles(arguments, uniform[..., None])[..., 0]

    def fed(
        self,
        values: Float[Tensor, "*axes"],
        observed: Bool[Tensor, "*axes"],
        linear: Float[Tensor, "*axes"],
        spread: Float[Tensor, "*axes"],
    ) -> Float[Tensor, "*axes feature"]:
        """Return what an autoregressive decoder is told of the values before its steps.

        The value in the frame's units, that of the skip where it was not observed; how far it is off the skip in units
        of spread; and whether it was observed.
        """
        values = torch.where(observed, values, linear)
        surprise = torch.asinh((values - linear) / spread)
        return torch.stack([torch.asinh(values), surprise, observed.to(values.dtype)], dim=-1)

    def pooled(
        self, arguments: Float[Tensor, "*axes path argument"], values: Float[Tensor, "*axes path"]
    ) -> Float[Tensor, "*axes pooled"]:
        """Return the arguments of `marginal` for one step: from the distributions of all paths, and what they drew.

        The mean is that of the distributions, not of the draws (Rao-Blackwell).
        """
        return torch.cat([values.sort(dim=-1).values, self.mean(arguments).mean(-1, keepdim=True)], dim=-1)

    def marginal(self) -> "Head | SampledHead":
        """Return what reads the arguments that `pooled` returns."""
        return SampledHead(self)

    def widened(
        self,
        parameters: Float[Tensor, "*axes parameter"],
        least_gap: float,  # noqa: ARG002
    ) -> Float[Tensor, "*axes parameter"]:
        """Return parameters from which training can start: quantiles on top of each other hardly learn to part."""
        return parameters

    def columns(self, arguments: Float[Tensor, "*axes argument"]) -> Float[Tensor, "*axes column"]:
        """Return what is stated of each step: the quantiles."""
        return self.quantiles(arguments)

    def column_errors(
        self, columns: Float[Tensor, "*axes column"], target: Float[Tensor, "*axes"]
    ) -> Float[Tensor, "*axes"]:
        """Return the loss of what is stated: the pinball loss of the quantiles."""
        return pinball(columns, target, self.levels)

    def changed(
        self,
        columns: Float[Tensor, "*axes column"],
        shift: Float[Tensor, "*axes shift"],
        width: Float[Tensor, "*axes"],
    ) -> Float[Tensor, "*axes column"]:
        """Return the quantiles stretched around their median by `width` and moved by `shift`, one number for all."""
        middle = columns[..., self.median, None]
        return middle + (columns - middle) * width[..., None] + shift

    def residual(
        self, arguments: Float[Tensor, "*axes argument"], target: Float[Tensor, "*axes"]
    ) -> Float[Tensor, "*axes shift"]:
        """Return what a shift should make up for: how far the target is from the centre."""
        return (target - self.centre(arguments))[..., None]

    def stretched(
        self,
        arguments: Float[Tensor, "*axes argument"],
        factor: Float[Tensor, ""],  # noqa: ARG002
    ) -> Float[Tensor, "*axes argument"]:
        """Return the distribution with its distances from the median times `factor`; as it is where it has no scale."""
        return arguments

    def calmed(
        self, parameters: Float[Tensor, "*axes parameter"], threshold: Float[Tensor, ""]
    ) -> Float[Tensor, "*axes parameter"]:
        """Return parameters whose location is moved towards 0 by `threshold`, to 0 where it was nearer."""
        below, middle, above = parameters.split([self.location, 1, self.n_parameters - self.location - 1], dim=-1)
        calm = middle.sign() * (middle.abs() - threshold).clamp(min=0)
        return torch.cat([below, calm, above], dim=-1)


class QuantileHead(Head):
    """Quantiles that cannot cross: the median, plus softplus increments outwards. Its arguments are the quantiles.

    The distribution is linear between them; its tails are exponential, with the density that the outer two quantiles
    have between them. Sums over the horizon would stray less far than they should without tails.
    """

    def __init__(self, levels: Sequence[float]) -> None:
        super().__init__(levels, levels)
        self.n_parameters = len(levels)
        self.location = self.median

    def ordered(self, parameters: Float[Tensor, "*axes parameter"]) -> Float[Tensor, "*axes quantile"]:
        """Return the quantiles of the parameters, in the order of the levels."""
        below, median, above = parameters.split([self.median, 1, self.n_parameters - self.median - 1], dim=-1)
        down = functional.softplus(below).flip(-1).cumsum(-1).flip(-1)
        up = functional.softplus(above).cumsum(-1)
        return torch.cat([median - down, median, median + up], dim=-1)

    def arguments(self, parameters: Tensor, linear: Tensor, frame: "Frame") -> Tensor:
        """Return the quantiles around the linear skip."""
        return self.ordered(parameters) * frame.spread[..., None] + linear[..., None]

    def errors(
        self, arguments: Float[Tensor, "*axes quantile"], target: Float[Tensor, "*axes"]
    ) -> Float[Tensor, "*axes"]:
        """Return the loss of each forecast: the pinball loss, doubled (the median alone gives the absolute error).

        Of a target so far out that it follows a stretch of next to no variation, or a break, the loss is that of
        `_FAR`: it is on the same side of all quantiles that are nearer, which do not change.
        """
        return pinball(arguments, target.clamp(-_FAR, _FAR), self.levels)

    def quantiles(
        self, arguments: Float[Tensor, "*axes argument"], levels: Float[Tensor, " quantile"] | None = None
    ) -> Float[Tensor, "*axes quantile"]:
        """Return the quantiles; at levels other than the head's own, those of the distribution."""
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

    def parameters_of(
        self, quantiles: Float[Tensor, "*axes quantile"], least_gap: float
    ) -> Float[Tensor, "*axes parameter"]:
        """Return the parameters that give these quantiles, at least `least_gap` apart."""
        gaps = quantiles.diff(dim=-1).clamp(min=least_gap)
        inverse = _softplus_inverse(gaps)
        median = quantiles[..., self.median : self.median + 1]
        return torch.cat([inverse[..., : self.median], median, inverse[..., self.median :]], dim=-1)

    def centre(self, arguments: Float[Tensor, "*axes argument"]) -> Float[Tensor, "*axes"]:
        """Return the median."""
        return arguments[..., self.median]

    def stretched(
        self, arguments: Float[Tensor, "*axes quantile"], factor: Float[Tensor, ""]
    ) -> Float[Tensor, "*axes quantile"]:
        """Return quantiles whose distances from the median are `factor` times as large."""
        centre = arguments[..., self.median : self.median + 1]
        return torch.lerp(centre, arguments, factor.to(arguments))

    def widened(
        self, parameters: Float[Tensor, "*axes parameter"], least_gap: float
    ) -> Float[Tensor, "*axes parameter"]:
        """Return parameters of the same quantiles, at least `least_gap` apart."""
        return self.parameters_of(self.ordered(parameters), least_gap)

    def _interpolated(self, quantiles: Tensor, levels: Float[Tensor, "*axes point"]) -> Float[Tensor, "*axes point"]:
        """Return the quantile function at `levels`."""
        own = self.levels.to(quantiles.dtype)
        if len(own) == 1:
            return quantiles.expand_as(levels)
        right = torch.searchsorted(own, levels.to(own.dtype).contiguous()).clamp(1, len(own) - 1)
        share = ((levels - own[right - 1]) / (own[right] - own[right - 1])).clamp(0, 1)
        inner = quantiles.gather(-1, right - 1).lerp(quantiles.gather(-1, right), share.to(quantiles.dtype))
        low, high = _tails(self.levels.tolist())
        below = low * (quantiles[..., 1:2] - quantiles[..., :1]) * (levels / own[0]).clamp(max=1).log()
        above = high * (quantiles[..., -1:] - quantiles[..., -2:-1]) * ((1 - levels) / (1 - own[-1])).clamp(max=1).log()
        return inner + below - above


class NormalHead(Head):
    """A normal distribution; its arguments are mean and standard deviation."""

    n_parameters = 2
    estimates_mean = True

    def arguments(self, parameters: Tensor, linear: Tensor, frame: "Frame") -> Tensor:
        """Return location and scale around the linear skip, and what else the distribution has."""
        middle, width, *others = parameters.unbind(-1)
        scale = frame.spread * (_LEAST_WIDTH + functional.softplus(width))
        return torch.stack([linear + frame.spread * middle, scale, *self._shape(others)], dim=-1)

    def stretched(
        self, arguments: Float[Tensor, "*axes argument"], factor: Float[Tensor, ""]
    ) -> Float[Tensor, "*axes argument"]:
        """Return the distribution with `factor` times its scale."""
        location, scale, *others = arguments.split(1, dim=-1)
        return torch.cat([location, scale * factor.to(scale), *others], dim=-1)

    def _shape(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        return list(parameters)

    def errors(
        self, arguments: Float[Tensor, "*axes argument"], target: Float[Tensor, "*axes"]
    ) -> Float[Tensor, "*axes"]:
        """Return the negative log-likelihood, in float64 throughout."""
        location, scale = arguments.double().unbind(-1)
        error: Tensor = scale.log() + 0.5 * ((target - location) / scale).square() + _HALF_LOG_TAU
        return error

    def quantiles(
        self, arguments: Float[Tensor, "*axes argument"], levels: Float[Tensor, " quantile"] | None = None
    ) -> Float[Tensor, "*axes quantile"]:
        """Return the quantiles at `levels`, the head's own when None."""
        asked = (self.levels if levels is None else levels).double()
        standard = self._standard_quantiles(arguments, asked).to(arguments.dtype)
        return arguments[..., :1] + arguments[..., 1:2] * standard

    def _standard_quantiles(self, arguments: Tensor, levels: Tensor) -> Tensor:  # noqa: ARG002
        found: Tensor = torch.special.ndtri(levels)
        return found

    def mean(self, arguments: Float[Tensor, "*axes argument"]) -> Float[Tensor, "*axes"]:
        """Return the location."""
        return arguments[..., 0]

    def samples(
        self, arguments: Float[Tensor, "*axes argument"], count: int, generator: torch.Generator
    ) -> Float[Tensor, "*axes sample"]:
        """Return independent draws."""
        noise = arguments.new_empty(*arguments.shape[:-1], count).normal_(generator=generator)
        return arguments[..., :1] + arguments[..., 1:2] * noise

    def parameters_of(
        self, quantiles: Float[Tensor, "*axes quantile"], least_gap: float
    ) -> Float[Tensor, "*axes parameter"]:
        """Return location and scale of the line through the quantiles against those of the standard distribution."""
        middle, width, _ = _line(quantiles, torch.special.ndtri(self.start_levels.double()))
        return torch.stack([middle, _width_parameter(width, least_gap)], dim=-1)


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
        wide = (half / torch._standard_gamma(half, generator=generator)).sqrt().to(arguments.dtype)
        location = arguments[..., :1]
        return location + (super().samples(arguments, count, generator) - location) * wide

    def parameters_of(
        self, quantiles: Float[Tensor, "*axes quantile"], least_gap: float
    ) -> Float[Tensor, "*axes parameter"]:
        """Return the parameters of the straightest line, among those of some degrees of freedom."""
        freedom = quantiles.new_tensor(_START_FREEDOM)
        standard = _student_t_quantiles(freedom[:, None].double(), self.start_levels.double())
        lines = [_line(quantiles, each) for each in standard]
        middle, width, error = (torch.stack(column, dim=-1) for column in zip(*lines, strict=True))
        best = error.argmin(-1, keepdim=True)
        found = middle.gather(-1, best), _width_parameter(width.gather(-1, best), least_gap)
        return torch.cat([*found, _softplus_inverse(freedom - 2.0)[best]], dim=-1)


class PoissonHead(Head):
    """A Poisson distribution of the target itself.

    Its arguments are location and divisor of the frame, and the mean, in units of the target: `divisor` times the
    squareplus (Barron 2021) of what a location head would forecast, which is positive and has a slow tail below 0.
    """

    n_parameters = 1
    counts = True
    positive = True
    estimates_mean = True

    def arguments(self, parameters: Tensor, linear: Tensor, frame: "Frame") -> Tensor:
        """Return the distribution of the target whose mean is around the linear skip, kept positive."""
        location, divisor = (values[..., None].expand_as(linear) for values in (frame.location, frame.divisor))
        middle, *others = parameters.unbind(-1)
        mean = divisor * _squareplus(location / divisor + linear + frame.spread * middle)
        return torch.stack([location, divisor, mean, *self._shape(others, divisor * frame.spread)], dim=-1)

    def _shape(self, parameters: Sequence[Tensor], spread: Tensor) -> list[Tensor]:  # noqa: ARG002
        return list(parameters)

    def errors(
        self, arguments: Float[Tensor, "*axes argument"], target: Float[Tensor, "*axes"]
    ) -> Float[Tensor, "*axes"]:
        """Return the negative log-likelihood of the target itself, in float64 throughout."""
        location, divisor, *others = arguments.double().unbind(-1)
        value = location + divisor * target
        return self._surprise(self._possible(value, location, divisor * target).detach(), *others)

    def _possible(self, value: Tensor, *parts: Tensor) -> Tensor:  # noqa: ARG002
        """Return the value that can be, from one with the rounding errors of its parts."""
        return value.round().clamp(min=0)

    def _surprise(self, count: Tensor, *arguments: Tensor) -> Tensor:
        (mean,) = arguments
        surprise: Tensor = mean - torch.xlogy(count, mean) + torch.lgamma(count + 1)
        return surprise

    def quantiles(
        self, arguments: Float[Tensor, "*axes argument"], levels: Float[Tensor, " quantile"] | None = None
    ) -> Float[Tensor, "*axes quantile"]:
        """Return the quantiles at `levels`, the head's own when None, in the frame's units: whole numbers of counts."""
        location, divisor, *others = arguments.detach().double().split(1, dim=-1)
        levels = (self.levels if levels is None else levels).double()
        scaled: Tensor = (self._target_quantiles(others, levels) - location) / divisor
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
        location, divisor, *others = arguments.double().split(1, dim=-1)
        drawn = self._draws([values.repeat_interleave(count, dim=-1) for values in others], generator)
        scaled: Tensor = (drawn - location) / divisor
        return scaled.to(arguments.dtype)

    def _draws(self, arguments: Sequence[Tensor], generator: torch.Generator) -> Tensor:
        return torch.poisson(arguments[0], generator=generator)

    def parameters_of(
        self,
        quantiles: Float[Tensor, "*axes quantile"],
        least_gap: float,  # noqa: ARG002
    ) -> Float[Tensor, "*axes parameter"]:
        """Return 0: least squares have made the line a mean already, and inner quantiles tell none of rare counts."""
        return torch.zeros_like(quantiles[..., :1])


class NegativeBinomialHead(PoissonHead):
    """A negative binomial distribution of the target itself, with mean m and variance m + s^2.

    Its arguments are those of the Poisson head, and s in units of the target: the learnt dispersion is in units of
    spread, like the width of the other heads. scipy's n is m^2 / s^2.
    """

    n_parameters = 2

    def _shape(self, parameters: Sequence[Tensor], spread: Tensor) -> list[Tensor]:
        return [spread * (_LEAST_WIDTH + functional.softplus(parameters[0]))]

    def _surprise(self, count: Tensor, *arguments: Tensor) -> Tensor:
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

    def parameters_of(
        self, quantiles: Float[Tensor, "*axes quantile"], least_gap: float
    ) -> Float[Tensor, "*axes parameter"]:
        """Return 0 for the mean, as the Poisson head, and all the width of these quantiles as dispersion."""
        _, width, _ = _line(quantiles, torch.special.ndtri(self.start_levels.double()))
        return torch.cat(
            [super().parameters_of(quantiles, least_gap), _width_parameter(width, least_gap)[..., None]], -1
        )


class TweedieHead(PoissonHead):
    """A compound Poisson-Gamma distribution of the target itself: 0 or more, with a probability of 0 of its own.

    Its arguments are those of the Poisson head, and the dispersion: the variance is dispersion * mean^power.
    """

    n_parameters = 2
    counts = False

    def __init__(self, levels: Sequence[float], power: float) -> None:
        super().__init__(levels)
        self.power = power

    def _shape(self, parameters: Sequence[Tensor], spread: Tensor) -> list[Tensor]:
        # In units that make the variance that of the spread where the mean is as large as that.
        return [spread ** (2 - self.power) * (_LEAST_WIDTH + functional.softplus(parameters[0]))]

    def _possible(self, value: Tensor, *parts: Tensor) -> Tensor:
        size = sum((part.abs() for part in parts), start=torch.zeros_like(value))
        return value.masked_fill(value <= _ROUNDING * size, 0.0)

    def _surprise(self, count: Tensor, *arguments: Tensor) -> Tensor:
        mean, dispersion = arguments
        return tweedie_distribution.surprise(count, mean, dispersion, self.power)

    def _target_quantiles(self, arguments: Sequence[Tensor], levels: Tensor) -> Tensor:
        mean, dispersion = arguments
        rate, scale = tweedie_distribution.rate_and_scale(mean, dispersion, self.power)
        standard = tweedie_distribution.quantiles(rate[..., 0].cpu().numpy(), levels.tolist(), self.power)
        return scale * torch.from_numpy(standard).to(scale)

    def drawn(
        self, arguments: Float[Tensor, "*axes argument"], uniform: Float[Tensor, "*axes"]
    ) -> Float[Tensor, "*axes"]:
        """Return a draw from each distribution, made of a uniform random number (`tweedie.drawn`)."""
        location, divisor, mean, dispersion = arguments.double().unbind(-1)
        rate, scale = tweedie_distribution.rate_and_scale(mean, dispersion, self.power)
        found = tweedie_distribution.drawn(uniform.double().cpu().numpy(), rate.cpu().numpy(), self.power)
        scaled: Tensor = (scale * torch.from_numpy(found).to(arguments.device) - location) / divisor
        return scaled.to(arguments.dtype)

    def _draws(self, arguments: Sequence[Tensor], generator: torch.Generator) -> Tensor:
        mean, dispersion = arguments
        return tweedie_distribution.samples(
            *tweedie_distribution.rate_and_scale(mean, dispersion, self.power), self.power, generator
        )

    def parameters_of(
        self, quantiles: Float[Tensor, "*axes quantile"], least_gap: float
    ) -> Float[Tensor, "*axes parameter"]:
        """Return 0 for the mean, as the Poisson head, and the dispersion of these quantiles around a mean of 1."""
        _, width, _ = _line(quantiles, torch.special.ndtri(self.start_levels.double()))
        dispersion = _width_parameter(width.clamp(min=0).square(), least_gap)
        return torch.cat([super().parameters_of(quantiles, least_gap), dispersion[..., None]], -1)


class CategoricalHead(Head):
    """Probabilities of classes. Targets are their codes: 0, 1, 2, ...

    Its arguments are log-probabilities: the network's numbers are added to those of the skip (`ClassSkip`).
    """

    def __init__(self, levels: Sequence[float], n_classes: int) -> None:
        super().__init__(levels)
        self.n_classes = n_classes
        self.n_parameters = n_classes
        self.n_fed = n_classes + 1

    def arguments(
        self,
        parameters: Float[Tensor, "*axes horizon parameter"],
        linear: Float[Tensor, "*axes horizon class"],
        frame: "Frame",  # noqa: ARG002
    ) -> Float[Tensor, "*axes horizon class"]:
        """Return the log-probabilities of the classes."""
        return torch.log_softmax(linear + self._logits(parameters), dim=-1)

    def _logits(self, parameters: Tensor) -> Tensor:
        return parameters

    def errors(self, arguments: Float[Tensor, "*axes class"], target: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
        """Return the log-loss."""
        return -arguments.gather(-1, target.long()[..., None])[..., 0]

    def scores(self, arguments: Float[Tensor, "*axes class"], target: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
        """Return the log-loss."""
        return self.errors(arguments, target)

    def fed(
        self,
        values: Float[Tensor, "*axes"],
        observed: Bool[Tensor, "*axes"],
        linear: Float[Tensor, "*axes class"],
        spread: Float[Tensor, "*axes"],  # noqa: ARG002
    ) -> Float[Tensor, "*axes feature"]:
        """Return 1 for the class that came and 0 for the others, the skip's probabilities where it was not observed.

        And whether it was.
        """
        came = functional.one_hot(values.clamp(min=0).long(), self.n_classes).to(linear.dtype)
        told = torch.where(observed[..., None], came, linear.exp())
        return torch.cat([told, observed[..., None].to(linear.dtype)], dim=-1)

    def pooled(
        self,
        arguments: Float[Tensor, "*axes path class"],
        values: Float[Tensor, "*axes path"],  # noqa: ARG002
    ) -> Float[Tensor, "*axes class"]:
        """Return log-probabilities: of the mean of the paths' probabilities, not of what they drew (Rao-Blackwell)."""
        return arguments.logsumexp(-2) - math.log(arguments.shape[-2])

    def marginal(self) -> "CategoricalHead":
        """Return itself: the distribution over all paths is one of classes, too."""
        return self

    def columns(self, arguments: Float[Tensor, "*axes class"]) -> Float[Tensor, "*axes class"]:
        """Return the probabilities of the classes."""
        return arguments.exp()

    def column_errors(
        self, columns: Float[Tensor, "*axes class"], target: Float[Tensor, "*axes"]
    ) -> Float[Tensor, "*axes"]:
        """Return the log-loss of probabilities."""
        return self.errors(_log(columns), target)

    def changed(
        self,
        columns: Float[Tensor, "*axes class"],
        shift: Float[Tensor, "*axes class"],
        width: Float[Tensor, "*axes"],
    ) -> Float[Tensor, "*axes class"]:
        """Return probabilities whose log-odds are divided by `width`, the temperature, and then moved by `shift`."""
        return torch.softmax(_log(columns) / width[..., None] + shift, dim=-1)

    def residual(
        self, arguments: Float[Tensor, "*axes class"], target: Float[Tensor, "*axes"]
    ) -> Float[Tensor, "*axes class"]:
        """Return 1 for the class that came and 0 for the others, minus their probabilities: the gradient."""
        return functional.one_hot(target.long(), self.n_classes).to(arguments.dtype) - arguments.exp()

    def quantiles(
        self, arguments: Float[Tensor, "*axes class"], levels: Float[Tensor, " quantile"] | None = None
    ) -> Float[Tensor, "*axes quantile"]:
        """Return the quantiles of the code: in the order of the classes' names, which says little of more than two."""
        asked = self.levels if levels is None else levels
        return self._codes(arguments, asked.to(arguments.dtype).expand(*arguments.shape[:-1], -1))

    def mean(self, arguments: Float[Tensor, "*axes class"]) -> Float[Tensor, "*axes"]:
        """Return the mean of the code: of two classes, the probability of the second."""
        return arguments.exp() @ torch.arange(self.n_classes, dtype=arguments.dtype, device=arguments.device)

    def samples(
        self, arguments: Float[Tensor, "*axes class"], count: int, generator: torch.Generator
    ) -> Float[Tensor, "*axes sample"]:
        """Return independent draws of the code."""
        shape = *arguments.shape[:-1], count
        uniform = torch.rand(shape, generator=generator, device=arguments.device, dtype=arguments.dtype)
        return self._codes(arguments, uniform)

    def _codes(self, arguments: Tensor, levels: Tensor) -> Tensor:
        """Return the first code up to which the probabilities sum to the levels."""
        sums = arguments.exp().cumsum(-1)
        return torch.searchsorted(sums, levels.contiguous()).clamp(max=self.n_classes - 1).to(arguments.dtype)

    def parameters_of(
        self,
        quantiles: Float[Tensor, "*axes quantile"],
        least_gap: float,  # noqa: ARG002
    ) -> Float[Tensor, "*axes parameter"]:
        """Return 0: the skip is a distribution already."""
        return quantiles.new_zeros(*quantiles.shape[:-1], self.n_parameters)

    def calmed(
        self, parameters: Float[Tensor, "*axes parameter"], threshold: Float[Tensor, ""]
    ) -> Float[Tensor, "*axes parameter"]:
        """Return the numbers, each moved towards 0 by `threshold`, to 0 where it was nearer."""
        return parameters.sign() * (parameters.abs() - threshold).clamp(min=0)


class BernoulliHead(CategoricalHead):
    """Probabilities of two classes, by one number: the log-odds of the second."""

    def __init__(self, levels: Sequence[float]) -> None:
        super().__init__(levels, 2)
        self.n_parameters = 1

    def _logits(self, parameters: Tensor) -> Tensor:
        return functional.pad(parameters, (1, 0))


class SampledHead(nn.Module):
    """A distribution known by samples: its arguments are draws, the least first, and the mean."""

    levels: Tensor

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.median, self.counts, self.heavy_tailed = head.median, head.counts, head.heavy_tailed
        self.register_buffer("levels", head.levels, persistent=False)

    def quantiles(
        self, arguments: Float[Tensor, "*axes argument"], levels: Float[Tensor, " quantile"] | None = None
    ) -> Float[Tensor, "*axes quantile"]:
        """Return the quantiles at `levels`, the head's own when None.

        They are linear between draws, each in the middle of its share; of counts, draws.

        These are definitions 5 and 1 of Hyndman & Fan (1996).
        """
        draws = arguments[..., :-1]
        place = (self.levels if levels is None else levels).double() * draws.shape[-1] - 0.5
        if self.counts:
            return draws[..., (place - 0.5 - _WHOLE).ceil().long().clamp(0, draws.shape[-1] - 1)]
        before = place.floor().clamp(0, draws.shape[-1] - 2)
        share = (place - before).clamp(0, 1).to(draws.dtype)
        return draws[..., before.long()].lerp(draws[..., before.long() + 1], share)

    def mean(self, arguments: Float[Tensor, "*axes argument"]) -> Float[Tensor, "*axes"]:
        """Return the mean."""
        return arguments[..., -1]

    def centre(self, arguments: Float[Tensor, "*axes argument"]) -> Float[Tensor, "*axes"]:
        """Return the one number that residuals are taken from: the median, but the mean of counts."""
        return self.mean(arguments) if self.counts else self.quantiles(arguments)[..., self.median]

    def columns(self, arguments: Float[Tensor, "*axes argument"]) -> Float[Tensor, "*axes quantile"]:
        """Return what is stated of each step: the quantiles."""
        return self.quantiles(arguments)

    def residual(
        self, arguments: Float[Tensor, "*axes argument"], target: Float[Tensor, "*axes"]
    ) -> Float[Tensor, "*axes shift"]:
        """Return what a shift should make up for, as `Head.residual`."""
        return (target - self.centre(arguments))[..., None]

    def scores(
        self, arguments: Float[Tensor, "*axes argument"], target: Float[Tensor, "*axes"]
    ) -> Float[Tensor, "*axes"]:
        """Return the pinball loss at the levels."""
        return pinball(self.quantiles(arguments), target, self.levels)


_HEADS: dict[str, type[Head]] = {
    "quantile": QuantileHead,
    "normal": NormalHead,
    "student_t": StudentTHead,
    "poisson": PoissonHead,
    "negative_binomial": NegativeBinomialHead,
    "bernoulli": BernoulliHead,
}


def make_head(kind: str, levels: Sequence[float], *, power: float = 1.5, n_classes: int = 0) -> Head:
    """Return the head that `model.head` names; `power` is that of a Tweedie, `n_classes` of a categorical one."""
    if kind == "tweedie":
        return TweedieHead(levels, power)
    return CategoricalHead(levels, n_classes) if kind == "categorical" else _HEADS[kind](levels)


def pinball(
    quantiles: Float[Tensor, "*axes quantile"], target: Float[Tensor, "*axes"], levels: Float[Tensor, " quantile"]
) -> Float[Tensor, "*axes"]:
    """Return twice the pinball loss, averaged over the levels (Koenker & Bassett 1978)."""
    error = target.unsqueeze(-1) - quantiles
    return 2.0 * torch.maximum(levels * error, (levels - 1.0) * error).mean(-1)


def mean_distance(
    quantiles: Float[Tensor, "*axes quantile"], mean: Float[Tensor, "*axes"], head: Head, unit: float
) -> Float[Tensor, "*axes"]:
    """Return the distance in which means are moved (`RecurrentForecaster.mean_shift`), in units of the target.

    On a logarithmic scale that of the mean from the median, so that it stays on its side, else the outermost interval.
    """
    return mean - quantiles[..., head.median] if unit else (quantiles[..., -1] - quantiles[..., 0]).to(mean.dtype)


def empirical_quantiles(
    values: Float[Tensor, "sample horizon"],
    weights: Float[Tensor, "sample horizon"],
    levels: Float[Tensor, " quantile"],
) -> Float[Tensor, "horizon quantile"]:
    """Return the weighted quantiles of the samples at each step; zeros where a step has no sample of any weight.

    They are near the minimum of the weighted pinball loss: linear between the samples, and for equal weights what
    `numpy.quantile` gives.
    """
    result = values.new_zeros(values.shape[1], len(levels), dtype=torch.float64)
    for step, (column, weight) in enumerate(zip(values.T, weights.T, strict=True)):
        there = weight > 0
        if not there.any():
            continue
        found, order = column[there].double().sort()
        mass = weight[there].double()[order]
        place = (mass.cumsum(0) - mass) / (mass.sum() - mass[-1]).clamp(min=1e-300)
        after = torch.searchsorted(place, levels.double()).clamp(1, max(len(found) - 1, 1)).clamp(max=len(found) - 1)
        before = (after - 1).clamp(min=0)
        share = (levels.double() - place[before]) / (place[after] - place[before]).clamp(min=1e-300)
        result[step] = torch.lerp(found[before], found[after], share.clamp(0, 1))
    return result.to(values.dtype)


def _mean_weights(levels: Sequence[float]) -> Float[Tensor, " quantile"]:
    """Return the weights of the quantiles in the mean of a distribution as that of `QuantileHead`."""
    edges = [0.0, *((a + b) / 2 for a, b in pairwise(levels)), 1.0]
    weights = torch.tensor(edges).diff()
    if len(levels) > 1:
        low, high = _tails(levels)
        weights[:2] += levels[0] * low * torch.tensor([1.0, -1.0])
        weights[-2:] += (1 - levels[-1]) * high * torch.tensor([-1.0, 1.0])
    return weights


def _tails(levels: Sequence[float]) -> tuple[float, float]:
    """Return the mean of each tail beyond its quantile, in units of the distance to the next one."""
    return levels[0] / (levels[1] - levels[0]), (1 - levels[-1]) / (levels[-1] - levels[-2])


def _softplus_inverse(values: Tensor) -> Tensor:
    return values + torch.log(-torch.expm1(-values))


def _width_parameter(width: Tensor, least_gap: float) -> Tensor:
    return _softplus_inverse((width - _LEAST_WIDTH).clamp(min=least_gap))


def _line(quantiles: Float[Tensor, "*axes quantile"], standard: Float[Tensor, " quantile"]) -> tuple[Tensor, ...]:
    """Return intercept, slope and squared error of the least-squares line of quantiles over standard ones."""
    standard = standard.to(quantiles.dtype)
    x = standard - standard.mean()
    slope = quantiles @ x / x.square().sum()
    middle = quantiles.mean(-1) - slope * standard.mean()
    error = (quantiles - middle[..., None] - slope[..., None] * standard).square().sum(-1)
    return middle, slope, error


def _student_t_quantiles(
    freedom: Float[Tensor, "*axes 1"], levels: Float[Tensor, " quantile"]
) -> Float[Tensor, "*axes quantile"]:
    """Return the quantiles of Student's t with location 0 and scale 1."""
    from scipy.special import stdtrit

    found = stdtrit(freedom.detach().cpu().numpy(), levels.cpu().numpy())
    return torch.from_numpy(np.asarray(found)).to(freedom.device)


def _squareplus(values: Tensor) -> Tensor:
    """Return (x + sqrt(x^2 + c^2)) / 2, without cancellation below 0."""
    larger = 0.5 * (torch.where(values >= 0, values, -values) + (values.square() + _SOFTNESS**2).sqrt())
    return torch.where(values >= 0, larger, 0.25 * _SOFTNESS**2 / larger)


def _stirling_rest(values: Tensor) -> Tensor:
    """Return log Gamma(x) - (x - 1/2) log x + x - log(2 pi) / 2; by its asymptotic series (DLMF 5.11.1) from 10 on."""
    small, inverse = values.clamp(max=10), 1.0 / values.clamp(min=10)
    exact = torch.lgamma(small) - (small - 0.5) * small.log() + small - _HALF_LOG_TAU
    square = inverse.square()
    terms = 1 / 12 - square * (1 / 360 - square * (1 / 1260 - square * (1 / 1680 - square / 1188)))
    return torch.where(values < 10, exact, inverse * terms)


def _log(probabilities: Tensor) -> Tensor:
    return probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny).log()
