"""The head: what the network's numbers mean."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from forecast.models.heads.quantiles import mean_weights, pinball, width_parameter
from forecast.models.heads.sampled import SampledHead
from forecast.models.inputs.frame import Frame

# Levels of the skip's residuals that a distribution starts from. None far out: those are of windows too short to tell
# their spread.
_START_LEVELS = tuple(k / 10 for k in range(1, 10))


class Head(nn.Module, ABC):
    """What is forecast of each step: a distribution, made of `n_parameters` numbers of the network.

    `arguments` makes the distribution; loss, quantiles, mean and samples are taken from its arguments. All are in the
    frame's units: the target minus `location`, over `divisor`.
    """

    levels: Tensor
    start_levels: Tensor
    mean_weights: Tensor
    n_parameters: int
    location_index = 0
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
    n_decoder_inputs = 3
    """Features that `decoder_input` gives."""

    def __init__(self, levels: Sequence[float], start_levels: Sequence[float] = _START_LEVELS) -> None:
        super().__init__()
        self.median = list(levels).index(0.5)
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        self.register_buffer("start_levels", torch.tensor(start_levels), persistent=False)
        self.register_buffer("mean_weights", mean_weights(levels), persistent=False)

    @abstractmethod
    def arguments(
        self,
        parameters: Float[Tensor, "*axes horizon parameter"],
        linear: Float[Tensor, "*axes horizon"],
        frame: Frame,
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
    def init_parameters(
        self, quantiles: Float[Tensor, "*axes quantile"], least_gap: float
    ) -> Float[Tensor, "*axes parameter"]:
        """Return parameters for errors of the skip, in units of spread, with these quantiles at `start_levels`."""

    def width_parameter(self, width: float) -> float:
        """Return the parameter of a distribution that is so wide, in units of spread."""
        return float(width_parameter(torch.tensor(width, dtype=torch.float64), 1e-6))

    def within_support(self, values: Tensor, *, rounded: bool = True) -> Tensor:
        """Return values in units of the target, moved to the nearest ones that a target can have.

        Means of counts are not `rounded`; nor are points that a mean is taken of, which may be below 0 where only the
        panel is `nonnegative`.
        """
        values = values.clamp(min=0) if self.positive or (self.nonnegative and rounded) else values
        return values.round() if self.counts and rounded else values

    def location(self, arguments: Float[Tensor, "*axes argument"]) -> Float[Tensor, "*axes"]:
        """Return the one number that residuals are taken from."""
        return self.mean(arguments)

    def scores(
        self, arguments: Float[Tensor, "*axes argument"], target: Float[Tensor, "*axes"]
    ) -> Float[Tensor, "*axes"]:
        """Return a loss that can be compared with that of `marginal`, which is known by samples only."""
        return pinball(self.quantiles(arguments), target, self.levels)

    def sample_at(
        self, arguments: Float[Tensor, "*axes argument"], uniform: Float[Tensor, "*axes"]
    ) -> Float[Tensor, "*axes"]:
        """Return a draw from each distribution: its quantile at a uniform random number."""
        return self.quantiles(arguments, uniform[..., None])[..., 0]

    def decoder_input(
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

    def marginal_arguments(
        self, arguments: Float[Tensor, "*axes path argument"], values: Float[Tensor, "*axes path"]
    ) -> Float[Tensor, "*axes pooled"]:
        """Return the arguments of `marginal` for one step: from the distributions of all paths, and what they drew.

        The mean is that of the distributions, not of the draws (Rao-Blackwell).
        """
        return torch.cat([values.sort(dim=-1).values, self.mean(arguments).mean(-1, keepdim=True)], dim=-1)

    def marginal(self) -> "Head | SampledHead":
        """Return what reads the arguments that `marginal_arguments` returns."""
        return SampledHead(self.levels, median=self.median, counts=self.counts, heavy_tailed=self.heavy_tailed)

    def enforce_min_gap(
        self,
        parameters: Float[Tensor, "*axes parameter"],
        least_gap: float,  # noqa: ARG002
    ) -> Float[Tensor, "*axes parameter"]:
        """Return parameters from which training can start: quantiles on top of each other hardly learn to part."""
        return parameters

    def predicted(self, arguments: Float[Tensor, "*axes argument"]) -> Float[Tensor, "*axes column"]:
        """Return what is stated of each step: the quantiles."""
        return self.quantiles(arguments)

    def column_errors(
        self, columns: Float[Tensor, "*axes column"], target: Float[Tensor, "*axes"]
    ) -> Float[Tensor, "*axes"]:
        """Return the loss of what is stated: the pinball loss of the quantiles."""
        return pinball(columns, target, self.levels)

    def shift_and_scale(
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
        return (target - self.location(arguments))[..., None]

    def scale_width(
        self,
        arguments: Float[Tensor, "*axes argument"],
        factor: Float[Tensor, ""],  # noqa: ARG002
    ) -> Float[Tensor, "*axes argument"]:
        """Return the distribution with its distances from the median times `factor`; as it is where it has no scale."""
        return arguments

    def soft_threshold(
        self, parameters: Float[Tensor, "*axes parameter"], threshold: Float[Tensor, ""]
    ) -> Float[Tensor, "*axes parameter"]:
        """Return parameters whose location is moved towards 0 by `threshold`, to 0 where it was nearer."""
        below, middle, above = parameters.split(
            [self.location_index, 1, self.n_parameters - self.location_index - 1], dim=-1
        )
        shrunk = middle.sign() * (middle.abs() - threshold).clamp(min=0)
        return torch.cat([below, shrunk, above], dim=-1)


def mean_distance(
    quantiles: Float[Tensor, "*axes quantile"], mean: Float[Tensor, "*axes"], head: Head, unit: float
) -> Float[Tensor, "*axes"]:
    """Return the distance in which means are moved (`RecurrentForecaster.mean_shift`), in units of the target.

    On a logarithmic scale that of the mean from the median, so that it stays on its side, else the outermost interval.
    """
    return mean - quantiles[..., head.median] if unit else (quantiles[..., -1] - quantiles[..., 0]).to(mean.dtype)
