"""Several networks that forecast as one."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor, nn

from forecast.models.batch import Batch
from forecast.models.heads import CategoricalHead
from forecast.models.recurrent import Output, Past, RecurrentForecaster


class Ensemble(nn.Module):
    """Forecasts the mean of its members' quantiles, level by level; of classes the mean of their probabilities.

    Vincentization (Ratcliff, 1979, Psychological Bulletin 86): a mean of increasing sequences increases, and the mean
    distribution is about as wide as those of the members, unlike their mixture. The mean is taken on the scale of the
    model, which members share: that of logarithms where `NetworkShape.unit` says so.

    Frame and encoder state are the first member's: fine-tuning maps its state to what the mean leaves over. Weights of
    attention are the members' mean. There are no paths: those of several members have no mean.
    """

    def __init__(self, members: Sequence[RecurrentForecaster]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.shape = members[0].shape
        self.head = members[0].head
        self.encoder = members[0].encoder
        self.n_paths = members[0].n_paths

    @property
    def mean_shift(self) -> Tensor:
        """The mean of the members' (`RecurrentForecaster.mean_shift`)."""
        return torch.stack([member.mean_shift for member in members_of(self)]).mean()

    def forward(self, batch: Batch, origins: Int[Tensor, " origin"], pasts: Sequence[Past] | None = None) -> Output:
        """Return forecasts in units of the first member, as `RecurrentForecaster.forward`."""
        own = [None] * len(self.members) if pasts is None else [[past] for past in pasts]
        outputs = [member(batch, origins, past) for member, past in zip(self.members, own, strict=True)]
        frame = outputs[0].frame
        weights = [output.attention for output in outputs if output.attention is not None]
        attention = torch.stack(weights).mean(0) if weights else None
        if isinstance(self.head, CategoricalHead):
            mixed = torch.stack([output.arguments for output in outputs]).logsumexp(0) - math.log(len(outputs))
            return Output(mixed, outputs[0].state, frame, self.head, attention)
        moved = []
        for output in outputs:
            # Members may have chosen other anchors.
            factor = (output.frame.divisor / frame.divisor)[..., None, None]
            shift = ((output.frame.location - frame.location) / frame.divisor)[..., None, None]
            moved.append(output.quantiles * factor + shift)
        # The arguments of a quantile head are its quantiles.
        return Output(torch.stack(moved).mean(0), outputs[0].state, frame, self.head, attention)


Forecaster = RecurrentForecaster | Ensemble


def members_of(network: Forecaster) -> list[RecurrentForecaster]:
    """Return the networks of an ensemble, or the one."""
    if isinstance(network, RecurrentForecaster):
        return [network]
    members = list(network.members)
    return [member for member in members if isinstance(member, RecurrentForecaster)]


def together(members: Sequence[RecurrentForecaster]) -> Forecaster:
    """Return the one network, or the ensemble of several."""
    return members[0] if len(members) == 1 else Ensemble(members).eval()
