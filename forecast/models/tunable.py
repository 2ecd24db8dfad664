"""What fine-tuning by gradient needs of a network, whatever that is built from."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from forecast.models.heads.base import Head

if TYPE_CHECKING:
    from forecast.models.inputs.batch import Batch
    from forecast.models.inputs.shape import NetworkShape
    from forecast.models.network.output import EncoderState, Output

R = TypeVar("R")


class Tunable(nn.Module, ABC, Generic[R]):
    """A network that changes of single series can be made to.

    It forecasts `stated(numbers(reading), reading)`, where `reading` is what `read` returns: a named tuple of tensors
    [batch, origin, ...], with the fields `summary`, what the decoder is given of each origin, and `frame`.
    """

    shape: "NetworkShape"
    head: Head
    state_size: int
    n_paths: int
    threshold: Tensor

    @abstractmethod
    def read(self, batch: "Batch", origins: Int[Tensor, " origin"], pasts: "Sequence[EncoderState] | None" = None) -> R:
        """Return what the decoder is told of the origins."""

    @abstractmethod
    def numbers(self, reading: R) -> Float[Tensor, "batch origin horizon number"]:
        """Return what the decoder says of each step."""

    @abstractmethod
    def biased(self, numbers: Tensor, bias: Float[Tensor, "batch 1 horizon bias"], reading: R) -> Tensor:
        """Return numbers with a change of each step, of the last axes `bias_shape`; zeros change nothing."""

    @abstractmethod
    def stated(self, numbers: Tensor, reading: R) -> "Output":
        """Return the forecasts that numbers mean."""

    @abstractmethod
    def light(self, reading: R, *, decodes: bool) -> R:
        """Return a reading without what numbers and forecasts do not follow from; `decodes`: if numbers still do."""

    @property
    @abstractmethod
    def bias_shape(self) -> torch.Size:
        """[horizon, number] of a change of each step."""

    @property
    @abstractmethod
    def summary_size(self) -> int:
        """Numbers of `summary`."""

    def weights(self) -> dict[str, Tensor]:
        """Return all weights that can be changed, by name."""
        return dict(self.named_parameters())

    @abstractmethod
    def matrices(self) -> dict[str, Tensor]:
        """Return the weights that changes of low rank are made to, by name."""

    @property
    @abstractmethod
    def step_size(self) -> int:
        """Numbers of a step that a light reading holds."""

    @property
    @abstractmethod
    def encoder_size(self) -> int:
        """Numbers of a state, of all recurrent layers."""


AnyTunable = Tunable[Any]
