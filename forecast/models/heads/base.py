"""The base class of heads: from parameters of the network to distributions."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from forecast.models.heads.quantiles import mean_weights, pinball, width_parameter
from forecast.models.heads.sampled import SampledHead
from forecast.models.inputs.frame import Frame

# Levels of the skip's residuals from which a distribution is initialised. No tails: these come from windows too short
# to estimate their spread.
_START_LEVELS = tuple(k / 10 for k in range(1, 10))


class Head(nn.Module, ABC):
    """The distribution of each step, from `n_parameters` parameters of the network.

    `arguments` maps parameters to the arguments of the distribution; loss, quantiles, mean and samples are functions of
    these. All are in the units of the frame: the target minus `location`, over `divisor`.
    """

    levels: Tensor
    start_levels: Tensor
    mean_weights: Tensor
    n_parameters: int
    location_index = 0
    """Index of the parameter that moves the forecast."""
    counts = False
    """Whether targets and quantiles are whole numbers."""
    positive = False
    """Whether no target is below 0: the distribution is of the target itself, not of the normalised one."""
    nonnegative = False
    """Whether no target of the panel is below 0, whatever the distribution (`NetworkShape.nonnegative`)."""
    heavy_tailed = False
    """Whether the exponential of the target has no mean."""
    estimates_mean = False
    """Whether the likelihood is largest at the mean of the targets: loss weights must not depend on the outcome."""
    n_decoder_inputs = 3
    """Number of features of `decoder_input`."""

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
        """Return the arguments of the distribution around the linear skip, [..., horizon, argument]."""

    @abstractmethod
    def errors(
        self, arguments: Float[Tensor, "*axes argument"], target: Float[Tensor, "*axes"]
    ) -> Float[Tensor, "*axes"]:
        """Return the loss of each forecast, finite for finite targets; smaller is better."""

    @abstractmethod
    def quantiles(
        self, arguments: Float[Tensor, "*axes argument"], levels: Float[Tensor, " quantile"] | None = None
    ) -> Float[Tensor, "*axes quantile"]:
        """Return the quantiles at `levels` (None: `self.levels`). No gradient passes through them."""

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
        """Return initial parameters from quantiles of the skip's errors at `start_levels`, in units of spread."""

    def width_parameter(self, width: float) -> float:
        """Return the parameter of a distribution of this width, in units of spread."""
        return float(width_parameter(torch.tensor(width, dtype=torch.float64), 1e-6))

    def within_support(self, values: Tensor, *, rounded: bool = True) -> Tensor:
        """Return values in units of the target, moved to the nearest possible target.

        Means of counts are not `rounded`; neither are points of which a mean is computed, which may be below 0 if only
        the panel is `nonnegative`.
        """
        values = values.clamp(min=0) if self.positive or (self.nonnegative and rounded) else values
        return values.round() if self.counts and rounded else values

    def location(self, arguments: Float[Tensor, "*axes argument"]) -> Float[Tensor, "*axes"]:
        """Return the point forecast that residuals refer to."""
        return self.mean(arguments)

    def scores(
        self, arguments: Float[Tensor, "*axes argument"], target: Float[Tensor, "*axes"]
    ) -> Float[Tensor, "*axes"]:
        """Return a loss that is comparable with that of `marginal`, whose distribution consists of samples."""
        return pinball(self.quantiles(arguments), target, self.levels)

    def sample_at(
        self, arguments: Float[Tensor, "*axes argument"], uniform: Float[Tensor, "*axes"]
    ) -> Float[Tensor, "*axes"]:
        """Return a draw from each distribution: its quantile at a uniform random number in (0, 1)."""
        return self.quantiles(arguments, uniform[..., None])[..., 0]

    def decoder_input(
        self,
        values: Float[Tensor, "*axes"],
        observed: Bool[Tensor, "*axes"],
        linear: Float[Tensor, "*axes"],
        spread: Float[Tensor, "*axes"],
    ) -> Float[Tensor, "*axes feature"]:
        """Return the features of the values before the steps of an autoregressive decoder.

        The value in the frame's units, that of the skip where it was not observed; its distance from the skip in units
        of spread; and whether it was observed.
        """
        values = torch.where(observed, values, linear)
        surprise = torch.asinh((values - linear) / spread)
        return torch.stack([torch.asinh(values), surprise, observed.to(values.dtype)], dim=-1)

    def marginal_arguments(
        self, arguments: Float[Tensor, "*axes path argument"], values: Float[Tensor, "*axes path"]
    ) -> Float[Tensor, "*axes pooled"]:
        """Return the arguments of `marginal` for one step, from the distributions and the `values` of all paths.

        The mean is that of the distributions, not of the draws (Rao-Blackwell).
        """
        return torch.cat([values.sort(dim=-1).values, self.mean(arguments).mean(-1, keepdim=True)], dim=-1)

    def marginal(self) -> "Head | SampledHead":
        """Return the head of the arguments that `marginal_arguments` returns."""
        return SampledHead(self.levels, median=self.median, counts=self.counts, heavy_tailed=self.heavy_tailed)

    def enforce_min_gap(
        self,
        parameters: Float[Tensor, "*axes parameter"],
        least_gap: float,  # noqa: ARG002
    ) -> Float[Tensor, "*axes parameter"]:
        """Return parameters for the start of training: gradient steps hardly part quantiles that are equal."""
        return parameters

    def predicted(self, arguments: Float[Tensor, "*axes argument"]) -> Float[Tensor, "*axes column"]:
        """Return the columns of a forecast: the quantiles."""
        return self.quantiles(arguments)

    def column_errors(
        self, columns: Float[Tensor, "*axes column"], target: Float[Tensor, "*axes"]
    ) -> Float[Tensor, "*axes"]:
        """Return the loss of the columns of a forecast: the pinball loss of the quantiles."""
        return pinball(columns, target, self.levels)

    def shift_and_scale(
        self,
        columns: Float[Tensor, "*axes column"],
        shift: Float[Tensor, "*axes shift"],
        width: Float[Tensor, "*axes"],
    ) -> Float[Tensor, "*axes column"]:
        """Return the quantiles with distances from the median times `width`, plus `shift`, the same for all levels."""
        middle = columns[..., self.median, None]
        return middle + (columns - middle) * width[..., None] + shift

    def residual(
        self, arguments: Float[Tensor, "*axes argument"], target: Float[Tensor, "*axes"]
    ) -> Float[Tensor, "*axes shift"]:
        """Return the residual that a shift corrects: target minus point forecast."""
        return (target - self.location(arguments))[..., None]

    def scale_width(
        self,
        arguments: Float[Tensor, "*axes argument"],
        factor: Float[Tensor, ""],  # noqa: ARG002
    ) -> Float[Tensor, "*axes argument"]:
        """Return the distribution with distances from the median times `factor`; unchanged if it has no scale."""
        return arguments

    def soft_threshold(
        self, parameters: Float[Tensor, "*axes parameter"], threshold: Float[Tensor, ""]
    ) -> Float[Tensor, "*axes parameter"]:
        """Return parameters whose location is soft-thresholded: moved towards 0 by `threshold`, to 0 if nearer."""
        below, middle, above = parameters.split(
            [self.location_index, 1, self.n_parameters - self.location_index - 1], dim=-1
        )
        shrunk = middle.sign() * (middle.abs() - threshold).clamp(min=0)
        return torch.cat([below, shrunk, above], dim=-1)


def mean_distance(
    quantiles: Float[Tensor, "*axes quantile"], mean: Float[Tensor, "*axes"], head: Head, unit: float
) -> Float[Tensor, "*axes"]:
    """Return the unit of shifts of means (`RecurrentForecaster.mean_shift`), in units of the target.

    On a logarithmic scale the distance of the mean from the median, so that the mean keeps its side; else the width of
    the outermost interval.
    """
    return mean - quantiles[..., head.median] if unit else (quantiles[..., -1] - quantiles[..., 0]).to(mean.dtype)
