"""What the past errors of candidates say before anything is learnt: their weights, and the width of intervals."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from forecast.models.universal.candidates import LEADS, Errors
from forecast.models.universal.history import History

SHARPNESS = 6.0
"""How much the weight of a candidate falls with the logarithm of its past error."""
# Errors that are worth as much as what is known without any: about candidates, and about widths.
_FEW, _FEW_WIDTHS = 4.0, 3.0
_MAX_LOG = 3.0
# The mean absolute error of the steps between a known lead and one twice as far grows by this without any evidence.
_GROWTH = 0.5
_MIN_WIDTH = 1e-3


class Evidence(NamedTuple):
    """What past errors say about each step of a forecast."""

    quality: Float[Tensor, "series origin step candidate"]
    """Logarithm of the mean error of all candidates over that of each, drawn to 0 where there are few errors."""
    trust: Float[Tensor, "series origin step"]
    """From 0, without any errors, to 1."""
    width: Float[Tensor, "series origin step"]
    """Mean absolute error to be expected, in units of the data."""


def evidence(
    history: History, errors: Errors, origins: Int[Tensor, " origin"], ahead: Int[Tensor, " step"]
) -> Evidence:
    """Return what errors at `LEADS` say about each step ahead."""
    trust = errors.number / (errors.number + _FEW)
    total = errors.mean.mean(-1, keepdim=True)
    floor = 1e-3 * total
    relative = torch.where(total > 0, (total + floor).log() - (errors.mean + floor).log().nan_to_num(neginf=0), 0)
    quality = trust[..., None] * relative.clamp(-_MAX_LOG, _MAX_LOG)
    weight = torch.softmax(SHARPNESS * quality, -1)
    width = _widths(history, (weight * errors.mean).sum(-1), errors.number, origins)
    leads = torch.tensor(LEADS, dtype=torch.float32, device=ahead.device).log()
    step = ahead.float().log()
    upper = torch.searchsorted(leads, step.clamp(max=float(leads[-1])).contiguous()).clamp(min=1, max=len(LEADS) - 1)
    share = ((step - leads[upper - 1]) / (leads[upper] - leads[upper - 1])).clamp(0, 1)
    between = torch.lerp(width[..., upper - 1].log(), width[..., upper].log(), share)
    # Beyond the last lead the width grows as it did up to there.
    growth = (width[..., -1] / width[..., -3]).log() / (leads[-1] - leads[-3])
    between = between + growth.clamp(0, 1)[..., None] * (step - leads[-1]).clamp(min=0)
    mixed = torch.lerp(quality[:, :, upper - 1], quality[:, :, upper], share[:, None])
    return Evidence(mixed, torch.lerp(trust[:, :, upper - 1], trust[:, :, upper], share), between.exp())


def _widths(history: History, error: Tensor, count: Tensor, origins: Tensor) -> Float[Tensor, "series origin lead"]:
    """Return expected errors at each lead; few errors are drawn to those of the lead before, which are more."""
    scale, change = history.scale[:, origins], history.change[:, origins]
    expected = torch.where(change > 0, change, 0.5 * scale)
    widths, before = [], 1
    for number, lead in enumerate(LEADS):
        expected = expected * (lead / before) ** _GROWTH
        evidence_share = count[..., number] / (count[..., number] + _FEW_WIDTHS)
        expected = torch.maximum(torch.lerp(expected, error[..., number], evidence_share), _MIN_WIDTH * scale)
        widths.append(expected)
        before = lead
    return torch.stack(widths, -1)
