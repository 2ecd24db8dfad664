"""Quadrature by quantiles: an expectation over a distribution is a weighted sum over its quantiles at some levels."""

import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

# The levels are evenly spaced in log-odds, so that the tails are divided as finely as the middle: the variance of a
# normal distribution is within .5 %; with as many levels of equal probability it would be 4 % too low.
_STEP, _REACH = 0.5, 7.0
PHASES = 4
"""Number of interleaved grids of levels."""


@functools.lru_cache
def expectation_levels(levels: Sequence[float] = (), phase: int = 0) -> tuple[Tensor, Tensor]:
    """Return ascending levels, [n], and the probability mass of the quantile at each of them, [n].

    The grid contains `levels`, with mass on both sides of each: the minimum of the summed pinball loss at one of
    `levels` is then that of the distribution itself. Without `levels` there are PHASES grids, whose mean favours no
    level; `phase` selects one, modulo PHASES.
    """
    exact = np.array(levels, dtype=np.float64)
    odds = np.log(exact / (1 - exact))
    count = round(_REACH / _STEP)
    grid = _STEP * (np.arange(-count, count) + (phase % PHASES + 0.5) / PHASES)
    separate = (np.abs(grid[:, None] - odds) >= _STEP / 4).all(1)
    points = np.concatenate([odds, grid[separate]])
    order = points.argsort()
    edges = _probability((points[order][1:] + points[order][:-1]) / 2)
    nodes = np.concatenate([exact, _probability(grid[separate])])[order]
    masses = np.diff(edges, prepend=0.0, append=1.0)
    return torch.from_numpy(nodes).float(), torch.from_numpy(masses).float()


def _probability(odds: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    probability: npt.NDArray[np.float64] = 1 / (1 + np.exp(-odds))
    return probability
