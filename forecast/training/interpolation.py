"""Weights on the way from those that a network had to those that it has been trained to."""

from collections.abc import Mapping, Sequence

from torch import Tensor, lerp

from forecast.data.windows import WindowIndex
from forecast.models.inputs.batch import PanelTensors
from forecast.models.network.ensemble import Member
from forecast.models.network.losses import validation_loss


def place(network: Member, base: Member, trained: Mapping[str, Tensor], share: float) -> None:
    """Set the weights on the way from the base's to the trained ones; at the base's for a share of 0."""
    moved = {
        name: lerp(values.to(trained[name]), trained[name], share) if share and values.is_floating_point() else values
        for name, values in base.state_dict().items()
    }
    network.load_state_dict(moved)


def interpolate(
    network: Member,
    base: Member,
    trained: Mapping[str, Tensor],
    shares: Sequence[float],
    data: PanelTensors,
    validation: WindowIndex,
    *,
    loss: float,
) -> float:
    """Set the weights where they validate best and return how far from the base's that is, one of `shares`.

    0, with the base's weights, where no loss is below `loss`.
    """
    best = 0.0
    for share in shares:
        place(network, base, trained, share)
        if (now := validation_loss(network, data, validation)) < loss:
            loss, best = now, share
    place(network, base, trained, best)
    return best
