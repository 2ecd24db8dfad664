"""The loss of forecasts in pretraining."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from forecast.models.universal.network import LEVELS, Distribution

_MIN_COUNT = 3
# A target further out than this many scales, and a window with a loss beyond this, count as if they were there.
_FAR, _MOST = 30.0, 20.0
# Of the standard deviation, in the unit of a window.
_SHARE = 0.05


def pinball(
    forecast: Distribution, target: Float[Tensor, "series origin step"], origins: Int[Tensor, " origin"]
) -> Float[Tensor, ""]:
    """Return the mean pinball loss of windows, each in units of its series.

    The unit is the error that the past of a window lets expect, with a share of its standard deviation lest errors of
    nearly perfect forecasts outweigh all others. It is known before the target: weights that follow from a window's
    loss would make little of what is hard to foresee, and intervals too narrow.
    """
    past = forecast.history
    target = target - past.centre.to(target)[..., None]
    scale, change = past.scale[:, origins], past.change[:, origins]
    usable = (past.n_observed[:, origins] >= _MIN_COUNT) & (change > 0)
    known = ~target.isnan() & usable[..., None]
    level = past.level[:, origins, None]
    reach = _FAR * scale[..., None]
    target = torch.where(known, target.clamp(level - reach, level + reach), level)
    levels = target.new_tensor(LEVELS)
    error = target[..., None] - forecast.quantiles
    loss = 2 * torch.maximum(levels * error, (levels - 1) * error).mean(-1) * known
    unit = forecast.evidence.width.mean(-1) + _SHARE * scale
    window = loss.sum(-1) / known.sum(-1).clamp(min=1) / torch.where(usable, unit, 1)
    window = window * (_MOST / window.detach().clamp(min=_MOST))
    counted = known.any(-1)
    mean: Tensor = (window * counted).sum() / counted.sum().clamp(min=1)
    return mean
