"""The training loss of pretraining."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from forecast.models.universal.network import LEVELS, Distribution

_MIN_COUNT = 3
# Targets are clipped at this many scales from the level, and the losses of windows at this value.
_MAX_SCALES, _MAX_LOSS = 30.0, 20.0
# Share of the standard deviation in the unit of a window.
_DEVIATION_SHARE = 0.05


def pinball(
    forecast: Distribution, target: Float[Tensor, "series origin step"], origins: Int[Tensor, " origin"]
) -> Float[Tensor, ""]:
    """Return the mean pinball loss of windows, each in units of its series.

    The unit is the expected error given the past of a window, plus a share of its standard deviation, so that nearly
    predictable series do not dominate. It does not depend on the target: weights derived from a window's loss would
    underweight targets that are hard to forecast, and make intervals too narrow.
    """
    past = forecast.history
    target = target - past.centre.to(target)[..., None]
    scale, past_change = past.scale[:, origins], past.change[:, origins]
    usable = (past.n_observed[:, origins] >= _MIN_COUNT) & (past_change > 0)
    observed = ~target.isnan() & usable[..., None]
    level = past.level[:, origins, None]
    margin = _MAX_SCALES * scale[..., None]
    target = torch.where(observed, target.clamp(level - margin, level + margin), level)
    levels = target.new_tensor(LEVELS)
    error = target[..., None] - forecast.quantiles
    loss = 2 * torch.maximum(levels * error, (levels - 1) * error).mean(-1) * observed
    unit = forecast.evidence.width.mean(-1) + _DEVIATION_SHARE * scale
    window = loss.sum(-1) / observed.sum(-1).clamp(min=1) / torch.where(usable, unit, 1)
    window = window * (_MAX_LOSS / window.detach().clamp(min=_MAX_LOSS))
    has_target = observed.any(-1)
    mean: Tensor = (window * has_target).sum() / has_target.sum().clamp(min=1)
    return mean
