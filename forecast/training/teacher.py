"""The forecasts of a larger model, as soft targets."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from forecast.models.heads.quadrature import expectation_levels
from forecast.models.heads.quantile import QuantileHead
from forecast.models.inputs.batch import Batch
from forecast.models.inputs.frame import loss_weights
from forecast.models.network.ensemble import Forecaster, Member
from forecast.models.network.output import Output


@dataclass(frozen=True)
class Teacher:
    """A trained network whose forecasts another one learns, besides what came (Hinton, Vinyals & Dean 2015).

    Both see the same windows on the same scale, in the same segments.
    """

    network: Forecaster
    weight: float
    """Share of the loss that is against its forecasts."""
    digest: str
    """Of the model that it is of."""

    @property
    def digests(self) -> dict[str, Any]:
        """What the result of a training depends on."""
        return {"digest": self.digest, "weight": self.weight}

    def errors(
        self, network: Member, batch: Batch, origins: Tensor, output: Output, *, step: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Return the expected loss of a network's output under the teacher's distribution, and the weight of each step.

        The loss is the head's own. The expectation is taken over quantiles of the whole distribution, tails included,
        each with the probability that it stands for (`quadrature`); of heads without levels of their own on another
        grid at each `step` of the training.
        """
        frame, head = output.frame, network.head
        by_level = isinstance(head, QuantileHead)
        levels, masses = (
            values.to(batch.target.device)
            for values in expectation_levels(tuple(head.levels.tolist()) if by_level else (), 0 if by_level else step)
        )
        with torch.no_grad():
            told = self.network.to(batch.target.device)(batch, origins)
            factor, divisor = told.frame.divisor[..., None, None], frame.divisor[..., None, None]
            shift = (told.frame.location - frame.location)[..., None, None]
            quantiles = (told.head.quantiles(told.arguments, levels) * factor + shift) / divisor
            middle = (told.quantiles[..., head.median] * factor[..., 0] + shift[..., 0]) / divisor[..., 0]
        errors = torch.stack([head.errors(output.arguments, target) for target in quantiles.unbind(-1)], dim=-1)
        begun = frame.begun[..., None].expand_as(middle)
        return errors @ masses.to(errors.dtype), loss_weights(middle, begun, frame, network.shape)
