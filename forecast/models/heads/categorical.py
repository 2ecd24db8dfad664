"""Probabilities of classes."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from forecast.models.heads.base import Head
from forecast.models.inputs.frame import Frame


class CategoricalHead(Head):
    """Probabilities of classes. Targets are their codes: 0, 1, 2, ...

    Its arguments are log-probabilities: the network's parameters are added to those of the skip (`ClassSkip`).
    """

    def __init__(self, levels: Sequence[float], n_classes: int) -> None:
        super().__init__(levels)
        self.n_classes = n_classes
        self.n_parameters = n_classes
        self.n_decoder_inputs = n_classes + 1

    def arguments(
        self,
        parameters: Float[Tensor, "*axes horizon parameter"],
        linear: Float[Tensor, "*axes horizon class"],
        frame: Frame,  # noqa: ARG002
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

    def decoder_input(
        self,
        values: Float[Tensor, "*axes"],
        observed: Bool[Tensor, "*axes"],
        linear: Float[Tensor, "*axes class"],
        spread: Float[Tensor, "*axes"],  # noqa: ARG002
    ) -> Float[Tensor, "*axes feature"]:
        """Return the one-hot class, or the skip's probabilities where it was not observed, and whether it was."""
        one_hot = functional.one_hot(values.clamp(min=0).long(), self.n_classes).to(linear.dtype)
        probabilities = torch.where(observed[..., None], one_hot, linear.exp())
        return torch.cat([probabilities, observed[..., None].to(linear.dtype)], dim=-1)

    def marginal_arguments(
        self,
        arguments: Float[Tensor, "*axes path class"],
        values: Float[Tensor, "*axes path"],  # noqa: ARG002
    ) -> Float[Tensor, "*axes class"]:
        """Return log-probabilities of the mean of the paths' probabilities, not of their draws (Rao-Blackwell)."""
        return arguments.logsumexp(-2) - math.log(arguments.shape[-2])

    def marginal(self) -> "CategoricalHead":
        """Return itself: the distribution over all paths is one of classes, too."""
        return self

    def predicted(self, arguments: Float[Tensor, "*axes class"]) -> Float[Tensor, "*axes class"]:
        """Return the probabilities of the classes."""
        return arguments.exp()

    def column_errors(
        self, columns: Float[Tensor, "*axes class"], target: Float[Tensor, "*axes"]
    ) -> Float[Tensor, "*axes"]:
        """Return the log-loss of probabilities."""
        return self.errors(_log(columns), target)

    def shift_and_scale(
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
        """Return the one-hot target class minus the probabilities: the negative gradient of the log-loss."""
        return functional.one_hot(target.long(), self.n_classes).to(arguments.dtype) - arguments.exp()

    def quantiles(
        self, arguments: Float[Tensor, "*axes class"], levels: Float[Tensor, " quantile"] | None = None
    ) -> Float[Tensor, "*axes quantile"]:
        """Return the quantiles of the code, in the order of the class names; of little meaning beyond two classes."""
        requested = self.levels if levels is None else levels
        return self._codes(arguments, requested.to(arguments.dtype).expand(*arguments.shape[:-1], -1))

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

    def init_parameters(
        self,
        quantiles: Float[Tensor, "*axes quantile"],
        least_gap: float,  # noqa: ARG002
    ) -> Float[Tensor, "*axes parameter"]:
        """Return 0: the skip already is a distribution."""
        return quantiles.new_zeros(*quantiles.shape[:-1], self.n_parameters)

    def soft_threshold(
        self, parameters: Float[Tensor, "*axes parameter"], threshold: Float[Tensor, ""]
    ) -> Float[Tensor, "*axes parameter"]:
        """Return the soft-thresholded parameters: moved towards 0 by `threshold`, to 0 if nearer."""
        return parameters.sign() * (parameters.abs() - threshold).clamp(min=0)


class BernoulliHead(CategoricalHead):
    """Probabilities of two classes, by one number: the log-odds of the second."""

    def __init__(self, levels: Sequence[float]) -> None:
        super().__init__(levels, 2)
        self.n_parameters = 1

    def _logits(self, parameters: Tensor) -> Tensor:
        return functional.pad(parameters, (1, 0))


def _log(probabilities: Tensor) -> Tensor:
    return probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny).log()
