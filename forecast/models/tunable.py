"""The interface that fine-tuning by gradient needs of a network."""

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
    """A network whose weights or parameters can be changed for single series.

    It forecasts `distribution(step_parameters(inputs), inputs)`, where `inputs` is the result of `encode`: a named
    tuple of tensors [batch, origin, ...], with the fields `summary`, the decoder's features of an origin, and `frame`.
    """

    shape: "NetworkShape"
    head: Head
    state_size: int
    n_paths: int
    threshold: Tensor

    @abstractmethod
    def encode(
        self, batch: "Batch", origins: Int[Tensor, " origin"], pasts: "Sequence[EncoderState] | None" = None
    ) -> R:
        """Return the decoder's inputs at the origins."""

    @abstractmethod
    def step_parameters(self, inputs: R) -> Float[Tensor, "batch origin horizon number"]:
        """Return the decoder's parameters of each step."""

    @abstractmethod
    def add_bias(self, parameters: Tensor, bias: Float[Tensor, "batch 1 horizon bias"], inputs: R) -> Tensor:
        """Return the parameters changed by `bias`, whose last axes are `bias_shape`; zeros change nothing."""

    @abstractmethod
    def distribution(self, parameters: Tensor, inputs: R) -> "Output":
        """Return the forecasts of these parameters."""

    @abstractmethod
    def trim(self, inputs: R, *, decodes: bool) -> R:
        """Return the inputs without unused parts; with `decodes`, those of `step_parameters` are kept."""

    @property
    @abstractmethod
    def bias_shape(self) -> torch.Size:
        """[horizon, parameter] of `add_bias`."""

    @property
    @abstractmethod
    def summary_size(self) -> int:
        """Features in `summary`."""

    def weights(self) -> dict[str, Tensor]:
        """Return all trainable weights, by name."""
        return dict(self.named_parameters())

    @abstractmethod
    def matrices(self) -> dict[str, Tensor]:
        """Return the weight matrices that LoRA adapts, by name."""

    @property
    @abstractmethod
    def step_size(self) -> int:
        """Features of a step in trimmed inputs."""

    @property
    @abstractmethod
    def encoder_size(self) -> int:
        """Elements of an encoder state over all recurrent layers."""


AnyTunable = Tunable[Any]
