"""The forecasts of a larger model, as soft targets."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from forecast.models.heads.quadrature import expectation_levels
from forecast.models.heads.quantile import QuantileHead
from forecast.models.inputs.batch import Batch
from forecast.models.inputs.frame import loss_weights, target_weights
from forecast.models.network.ensemble import Forecaster, Member
from forecast.models.network.output import Output


@dataclass(frozen=True)
class Teacher:
    """A trained network whose forecasts another one learns, besides the actuals (Hinton, Vinyals & Dean 2015).

    Both see the same windows on the same scale, in the same segments.
    """

    network: Forecaster
    weight: float
    """Share of the loss against the teacher's forecasts."""
    digest: str
    """Digest of the teacher's model."""

    @property
    def digests(self) -> dict[str, Any]:
        """Settings that the result of a training depends on."""
        return {"digest": self.digest, "weight": self.weight}

    def errors(
        self, network: Member, batch: Batch, origins: Tensor, output: Output, *, step: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Return the expected loss of a network's output under the teacher's distribution, and the weight of each step.

        The loss is `Head.errors`. The expectation is a sum over quantiles of the whole distribution, tails included,
        weighted by their probability mass (`quadrature`). Heads without quantile levels use another grid at each
        `step` of the training.
        """
        frame, head = output.frame, network.head
        by_level = isinstance(head, QuantileHead)
        levels, masses = (
            values.to(batch.target.device)
            for values in expectation_levels(tuple(head.levels.tolist()) if by_level else (), 0 if by_level else step)
        )
        with torch.no_grad():
            teacher_output = self.network.to(batch.target.device)(batch, origins)
            factor, divisor = teacher_output.frame.divisor[..., None, None], frame.divisor[..., None, None]
            shift = (teacher_output.frame.location - frame.location)[..., None, None]
            quantiles = (teacher_output.head.quantiles(teacher_output.arguments, levels) * factor + shift) / divisor
            middle = (teacher_output.quantiles[..., head.median] * factor[..., 0] + shift[..., 0]) / divisor[..., 0]
        errors = torch.stack([head.errors(output.arguments, target) for target in quantiles.unbind(-1)], dim=-1)
        valid = frame.begun[..., None].expand_as(middle)
        return errors @ masses.to(errors.dtype), loss_weights(
            middle, valid, frame, network.shape, target_weights(batch, origins, network.shape)
        )
