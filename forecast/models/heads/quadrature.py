"""Levels that stand for a whole distribution: an expectation over it is a weighted sum over its quantiles there."""

import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

# The levels are evenly spaced on the scale of log-odds, so that the tails are as finely divided as the middle: the
# variance of a normal distribution is met within .5 %, by as many levels of equal probability it would be 4 % too low.
_STEP, _REACH = 0.5, 7.0
PHASES = 4
"""Grids of levels that lie between each other."""


@functools.lru_cache
def expectation_levels(levels: Sequence[float] = (), phase: int = 0) -> tuple[Tensor, Tensor]:
    """Return levels, [n], that ascend, and the probability that the quantile at each of them stands for, [n].

    The quantile at `levels` stands for probabilities on both sides of each of them: what is least in sum for the
    quantiles at all returned levels, the pinball loss at one of `levels`, is least for the distribution itself. Without
    `levels` there are PHASES grids, whose mean has no favoured level; `phase` numbers them, in turn.
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
