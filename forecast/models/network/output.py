"""Outputs of a network: forecasts, the inputs of its decoder, and the state of its encoder."""

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from forecast.models.heads.base import Head
from forecast.models.heads.sampled import SampledHead
from forecast.models.inputs.frame import Frame
from forecast.models.inputs.scaling import RunningSums
from forecast.models.network.encoder import HiddenState


class EncoderState(NamedTuple):
    """The state of an encoder after a segment, from which it continues with the next."""

    carry: HiddenState
    totals: RunningSums

    def rows(self, rows: Int[Tensor, " window"] | slice) -> "EncoderState":
        """Return the states of some windows of a batch."""
        carry = tuple(part[:, rows] for part in self.carry)
        return EncoderState(carry, RunningSums(*(values[rows] for values in self.totals)))


class Output(NamedTuple):
    """Forecasts from the origins of a batch, in units of `divisor` around `location`."""

    arguments: Float[Tensor, "batch origin horizon argument"]
    """Arguments of the distributions (`Head.arguments`, `Head.marginal_arguments`)."""
    state: Float[Tensor, "batch origin hidden"]
    """Encoder output at the origin."""
    frame: Frame
    head: Head | SampledHead
    """The head that interprets the arguments."""
    attention: Float[Tensor, "batch origin step"] | None = None
    """Weight of each encoder step, of a model with attention."""
    paths: Float[Tensor, "batch origin path horizon"] | None = None
    """Sampled paths of an autoregressive decoder, each one possible future. All windows share their random numbers, so
    paths of different series are not independent."""

    def by_origin(self) -> "Output":
        """Return the forecasts with each origin as a window of its own, [batch * origin, 1, ...]."""

        def flat(values: Tensor) -> Tensor:
            return values.flatten(0, 1)[:, None]

        attention, paths = (None if values is None else flat(values) for values in (self.attention, self.paths))
        frame = Frame._make(flat(values) for values in self.frame)
        return Output(flat(self.arguments), flat(self.state), frame, self.head, attention, paths)

    @property
    def quantiles(self) -> Float[Tensor, "batch origin horizon quantile"]:
        """Quantiles at the head's levels."""
        return self.head.quantiles(self.arguments)

    @property
    def mean(self) -> Float[Tensor, "batch origin horizon"]:
        """Means of the distributions."""
        return self.head.mean(self.arguments)


class DecoderInputs(NamedTuple):
    """Inputs of the decoder at the origins of a batch."""

    summary: Float[Tensor, "batch origin summary"]
    """From encoder state, attention, static covariates and level; before the activation."""
    features: Float[Tensor, "batch origin horizon step"]
    ahead: Float[Tensor, "batch origin horizon future"]
    """Known covariates and calendar of each step; part of `features` too."""
    linear: Float[Tensor, "batch origin horizon"] | Float[Tensor, "batch origin horizon class"]
    """The skip's forecast."""
    state: Float[Tensor, "batch origin hidden"]
    frame: Frame
    attention: Float[Tensor, "batch origin step"] | None = None
