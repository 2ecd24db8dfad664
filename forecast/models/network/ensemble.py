"""Several networks that forecast as one: a weighted mean of their quantiles."""

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from jaxtyping import Int
from torch import Tensor, nn

from forecast.config import ModelConfig
from forecast.models.heads.categorical import CategoricalHead
from forecast.models.inputs.batch import Batch
from forecast.models.inputs.frame import Frame
from forecast.models.inputs.shape import NetworkShape
from forecast.models.network.forecaster import RecurrentForecaster
from forecast.models.network.output import EncoderState, Output
from forecast.models.universal.forecaster import UniversalForecaster, UniversalShape


class Ensemble(nn.Module):
    """Forecasts a weighted mean of its members' quantiles, level by level; of classes the mean of their probabilities.

    Vincentization (Ratcliff, 1979, Psychological Bulletin 86): a mean of increasing sequences increases, and the mean
    distribution is about as wide as those of the members, unlike their mixture. The mean is taken on the scale of the
    model, which members share: that of logarithms where `NetworkShape.unit` says so.

    Members may have contexts of different lengths: each reads the last steps of the longest one. Frame and state are
    those of the first member: fine-tuning maps its state to the residuals of the mean. Attention weights are the mean
    over members with attention. There are no paths: those of several members have no mean.
    """

    def __init__(self, members: Sequence["Member"], shares: Sequence[float] | None = None) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.shares = None if shares is None else tuple(shares)
        """Weights of the members, which sum to 1; None weighs all equally."""
        longest = max(member.shape.context_length for member in members)
        self.shape = replace(members[0].shape, context_length=longest)
        self.head = members[0].head
        self.state_size = members[0].state_size
        self.n_paths = members[0].n_paths

    @property
    def mean_shift(self) -> Tensor:
        """The mean of the members' (`RecurrentForecaster.mean_shift`)."""
        return self._mean([member.mean_shift for member in members_of(self)])

    def _mean(self, values: Sequence[Tensor]) -> Tensor:
        stacked = torch.stack(list(values))
        if self.shares is None:
            return stacked.mean(0)
        mean: Tensor = torch.tensordot(stacked.new_tensor(self.shares), stacked, 1)
        return mean

    def forward(
        self, batch: Batch, origins: Int[Tensor, " origin"], pasts: Sequence[EncoderState] | None = None
    ) -> Output:
        """Return forecasts in units of the first member, as `RecurrentForecaster.forward`.

        `pasts` are those of the recurrent members.
        """
        outputs = self._outputs(batch, origins, pasts)
        frame = outputs[0].frame
        weights = [output.attention for output in outputs if output.attention is not None]
        attention = torch.stack(weights).mean(0) if weights else None
        if isinstance(self.head, CategoricalHead):
            mixed = torch.stack([output.arguments for output in outputs]).logsumexp(0) - math.log(len(outputs))
            return Output(mixed, outputs[0].state, frame, self.head, attention)
        # The arguments of a quantile head are its quantiles.
        return Output(self._mean(_in_one_frame(outputs)), outputs[0].state, frame, self.head, attention)

    def member_quantiles(self, batch: Batch, origins: Int[Tensor, " origin"]) -> tuple[list[Tensor], Frame]:
        """Return the quantiles of each member in the frame of the first member, and this frame."""
        outputs = self._outputs(batch, origins, None)
        return _in_one_frame(outputs), outputs[0].frame

    def _outputs(self, batch: Batch, origins: Tensor, pasts: Sequence[EncoderState] | None) -> list[Output]:
        states, outputs = iter(pasts or ()), []
        for member in members_of(self):
            window = batch.since(self.shape.context_length - member.shape.context_length)
            past = None if pasts is None or isinstance(member, UniversalForecaster) else [next(states)]
            outputs.append(member(window, origins, past))
        return outputs


def _in_one_frame(outputs: Sequence[Output]) -> list[Tensor]:
    """Return the quantiles of each output in units of the first: members may have different anchors."""
    frame, quantiles = outputs[0].frame, []
    for output in outputs:
        factor = (output.frame.divisor / frame.divisor)[..., None, None]
        shift = ((output.frame.location - frame.location) / frame.divisor)[..., None, None]
        quantiles.append(output.quantiles * factor + shift)
    return quantiles


Member = RecurrentForecaster | UniversalForecaster
Forecaster = Member | Ensemble
N = TypeVar("N", bound=nn.Module)


def members_of(network: Forecaster) -> list[Member]:
    """Return the networks of an ensemble, or the one."""
    if not isinstance(network, Ensemble):
        return [network]
    return [member for member in network.members if isinstance(member, Member)]


def recurrent_members(network: Forecaster) -> list[RecurrentForecaster]:
    """Return the networks whose encoders can continue from a state: all but universal ones."""
    return [member for member in members_of(network) if isinstance(member, RecurrentForecaster)]


def tunable(network: Forecaster) -> tuple[Member, float] | None:
    """Return the network that gradient fine-tuning changes, and its share of the forecast; None if there is none.

    It is the only network that was trained on the panel, with or without a pretrained one, or a pretrained one alone.
    """
    all_members = members_of(network)
    members = all_members if len(all_members) == 1 else recurrent_members(network)
    if len(members) != 1:
        return None
    shares = network.shares if isinstance(network, Ensemble) else None
    return members[0], 1.0 if shares is None else shares[all_members.index(members[0])]


def require_tunable(network: Forecaster) -> tuple[Member, float]:
    """Return `tunable(network)`, which must not be None."""
    member = tunable(network)
    assert member is not None
    return member


def reading_at_once(network: N) -> N:
    """Return a copy with the same weights whose universal members read each window once (`UniversalForecaster`)."""
    shared = {id(values): values for values in (*network.parameters(), *network.buffers())}
    copied = copy.deepcopy(network, shared)
    for module in copied.modules():
        if isinstance(module, UniversalForecaster):
            module.at_once = True
    return copied


def as_ensemble(members: Sequence[Member], shares: Sequence[float] | None = None) -> Forecaster:
    """Return the only member, or the ensemble of several; members without a share are dropped."""
    if shares is not None:
        weighted = [(member, share) for member, share in zip(members, shares, strict=True) if share > 0]
        members, shares = [member for member, _ in weighted], [share for _, share in weighted]
    return members[0] if len(members) == 1 else Ensemble(members, shares).eval()


def build_member(shape: dict[str, Any], config: ModelConfig) -> Member:
    """Return a new network of a shape that `to_json` wrote."""
    if "checkpoint" in shape:
        return UniversalForecaster(UniversalShape.from_json(shape), config)
    return RecurrentForecaster(NetworkShape.from_json(shape), config)
