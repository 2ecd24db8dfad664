"""What the network gives: forecasts, what its decoder reads, and the state of its encoder."""

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from forecast.models.heads.base import Head
from forecast.models.heads.sampled import SampledHead
from forecast.models.inputs.frame import Frame
from forecast.models.inputs.scaling import RunningSums
from forecast.models.network.encoder import HiddenState


class EncoderState(NamedTuple):
    """What an encoder needs of all segments so far to go on from there."""

    carry: HiddenState
    totals: RunningSums

    def rows(self, rows: Int[Tensor, " window"] | slice) -> "EncoderState":
        """Return the past of some windows of a batch."""
        carry = tuple(part[:, rows] for part in self.carry)
        return EncoderState(carry, RunningSums(*(values[rows] for values in self.totals)))


class Output(NamedTuple):
    """Forecasts from the origins of a batch, in units of `divisor` around `location`."""

    arguments: Float[Tensor, "batch origin horizon argument"]
    """What the distributions are made of (`Head.arguments`, `Head.marginal_arguments`)."""
    state: Float[Tensor, "batch origin hidden"]
    """Encoder output at the origin."""
    frame: Frame
    head: Head | SampledHead
    """What reads the arguments."""
    attention: Float[Tensor, "batch origin step"] | None = None
    """Weight of each encoder step, of a model with attention."""
    paths: Float[Tensor, "batch origin path horizon"] | None = None
    """What an autoregressive decoder has sampled: each path is one possible future. All windows share their random
    numbers, so that paths of different series are not independent."""

    def by_origin(self) -> "Output":
        """Return the forecasts of each origin as those of a window of its own, with one origin."""

        def each(values: Tensor) -> Tensor:
            return values.flatten(0, 1)[:, None]

        attention, paths = (None if values is None else each(values) for values in (self.attention, self.paths))
        frame = Frame._make(each(values) for values in self.frame)
        return Output(each(self.arguments), each(self.state), frame, self.head, attention, paths)

    @property
    def quantiles(self) -> Float[Tensor, "batch origin horizon quantile"]:
        """Quantiles at the head's levels."""
        return self.head.quantiles(self.arguments)

    @property
    def mean(self) -> Float[Tensor, "batch origin horizon"]:
        """Means of the distributions."""
        return self.head.mean(self.arguments)


class DecoderInputs(NamedTuple):
    """What the decoder is told of the origins of a batch."""

    summary: Float[Tensor, "batch origin summary"]
    """Of encoder state, attention, static covariates and level; before its activation."""
    features: Float[Tensor, "batch origin horizon step"]
    ahead: Float[Tensor, "batch origin horizon future"]
    """What is known of each step; part of `features` too."""
    linear: Float[Tensor, "batch origin horizon"] | Float[Tensor, "batch origin horizon class"]
    """The skip's forecast."""
    state: Float[Tensor, "batch origin hidden"]
    frame: Frame
    attention: Float[Tensor, "batch origin step"] | None = None
