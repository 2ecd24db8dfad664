"""A bank of exponential smoothing filters with fixed parameters, run over many windows at once."""

import itertools
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Filter(NamedTuple):
    """Parameters of exponential smoothing in its error correction form (Gardner 2006), and a drift beside it.

    With the error e of a step: level_t = level_t-1 + damping * trend_t-1 + level * e, and trend_t = damping * trend_t-1
    + level * trend * e.
    """

    level: float
    trend: float = 0.0
    damping: float = 1.0
    drift: float = 0.0
    """Share of the slope of a regression on time that is added per step: a half gives the theta method (Assimakopoulos
    & Nikolopoulos 2000; Hyndman & Billah 2003)."""


_LEVELS = (0.08, 0.2, 0.4, 0.7, 1.0)
FILTERS = tuple(
    itertools.chain.from_iterable(
        (
            *(Filter(level, drift=drift) for drift in (0.0, 0.5, 1.0)),
            *(Filter(level, trend, damping) for trend in (0.1, 0.4) for damping in (0.9, 1.0)),
        )
        for level in _LEVELS
    )
)
MOTIONS = tuple(sorted({Filter(*member[:3]) for member in FILTERS}, key=lambda motion: (motion.trend > 0, motion)))
"""Filters that differ in more than the drift, which changes neither level nor trend; those without a trend first."""
MOTION_OF = [MOTIONS.index(Filter(*member[:3])) for member in FILTERS]
_STEADY, _TRENDING = slice(0, len(_LEVELS)), slice(len(_LEVELS), None)
# Windows that are run together on a CPU: their levels and trends fit into its cache.
_BLOCK = 1024


def run(
    values: Float[Tensor, "window pattern context"],
    observed: Float[Tensor, "window context"],
    level: Float[Tensor, "window pattern motion"],
    trend: Float[Tensor, "window pattern motion"],
    counted: Float[Tensor, "window context"],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return level and trend after running all `MOTIONS` from where they begin, and the sum of absolute errors.

    Steps that are not `observed` change the level by the damped trend alone; errors are of steps that are `counted`.
    Motions without a trend begin with 0.
    """
    windows = values, observed, level, trend, counted
    if values.device.type != "cpu" or not _allows_branches(observed):
        return _run(*windows)
    # Windows with gaps at the same steps together: a step without any of them takes fewer operations.
    order = observed.sum(1).argsort(stable=True)
    blocks = zip(*(part[order].split(_BLOCK) for part in windows), strict=True)
    ends = zip(*(_run(*block) for block in blocks), strict=True)
    back = order.argsort()
    level, trend, total = (torch.cat(part)[back] for part in ends)
    return level, trend, total


def _run(
    values: Tensor, observed: Tensor, level: Tensor, trend: Tensor, counted: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `run` does. The windows are the last axis here: operations on neighbouring numbers are fast."""
    level, trend = level.permute(2, 1, 0).contiguous(), trend.permute(2, 1, 0).contiguous()
    parts = [_run_motions(values, observed, level, trend, counted, part) for part in (_STEADY, _TRENDING)]
    level, trend, total = (torch.cat(part).permute(2, 1, 0) for part in zip(*parts, strict=True))
    return level, trend, total


def _run_motions(
    values: Tensor, observed: Tensor, level: Tensor, trend: Tensor, counted: Tensor, part: slice
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `run` does for a part of `MOTIONS`, [motion, pattern, window]; so are `level` and `trend`."""
    gain, share, damping = (
        values.new_tensor([motion[number] for motion in MOTIONS[part]]).view(-1, 1, 1) for number in range(3)
    )
    level, trend, trend_gain = level[part], trend[part], gain * share
    total, masks = (
        torch.zeros_like(level),
        [mask.T.contiguous() for mask in (observed, observed.cumsum(1) > 0, counted)],
    )
    branches = _allows_branches(observed)
    complete = [mask.bool().all(1).tolist() if branches else [False] * len(mask) for mask in masks]
    steps = zip(values.permute(2, 1, 0).contiguous(), *masks, *complete, strict=True)
    for value, present, begun, counts, all_present, all_begun, all_count in steps:
        damped = trend if part is _STEADY else damping * trend
        forecast = level if part is _STEADY else level + damped
        error = value - forecast if all_present else (value - forecast) * present
        total = total + (error.abs() if all_count else error.abs() * counts)
        moved = forecast + gain * error
        level = moved if all_begun else torch.where(begun, moved, level)
        if part is _TRENDING:
            moved = damped + trend_gain * error
            trend = moved if all_begun else torch.where(begun, moved, trend)
    return level, trend, total


def _allows_branches(values: Tensor) -> bool:
    """Return whether a branch may depend on values; in an export and in `torch.vmap` none may."""
    if torch.onnx.is_in_onnx_export():
        return False
    try:
        bool(values.any())
    except RuntimeError:
        return False
    return True
