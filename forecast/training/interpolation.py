"""Interpolation between the weights of a base network and trained ones."""

from collections.abc import Mapping, Sequence

from torch import Tensor, lerp

from forecast.data.windows import WindowIndex
from forecast.models.inputs.batch import PanelTensors
from forecast.models.network.ensemble import Member
from forecast.models.network.losses import validation_loss


def set_interpolated(network: Member, base: Member, trained: Mapping[str, Tensor], share: float) -> None:
    """Set the weights of `network` to base + share * (trained - base)."""
    mixed = {
        name: lerp(values.to(trained[name]), trained[name], share) if share and values.is_floating_point() else values
        for name, values in base.state_dict().items()
    }
    network.load_state_dict(mixed)


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
    """Set the interpolated weights that validate best, and return their share, one of `shares`.

    The share is 0, with the weights of the base, if no loss is below `loss`.
    """
    best = 0.0
    for share in shares:
        set_interpolated(network, base, trained, share)
        if (candidate_loss := validation_loss(network, data, validation)) < loss:
            loss, best = candidate_loss, share
    set_interpolated(network, base, trained, best)
    return best
