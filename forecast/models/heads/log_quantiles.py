"""The distribution of quantiles on a logarithmic scale: its mean, and its quantiles at other levels.

On the scale of the model (`transform`) a quantile is linear in the normal deviate of its level, between the stated ones
and beyond: of log-normal targets this is exact. Tails beyond the outer quantiles have the slope that the outer two have
between them, up to `_MAX_SLOPE`, so that two quantiles which are far apart give no mean beyond all bounds.
"""

import functools
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from forecast.models.inputs.transform import to_data
from forecast.models.tensors import untraced

# Logarithms per normal deviate in a tail: the mean beyond a ninth decile is then 8 times that decile.
_MAX_SLOPE = 2.5
# Nodes of the Gauss-Legendre rule between two quantiles and in each tail, which ends so many deviates further out.
_NODES, _TAIL_NODES, _TAIL = 4, 24, 9.0


class _Nodes(NamedTuple):
    """Deviates at which the quantile function is averaged, and their weights, which sum to 1."""

    deviates: Float[Tensor, " node"]
    weights: Float[Tensor, " node"]


def mean(
    quantiles: Float[Tensor, "*axes level"], levels: Float[Tensor, " level"], unit: float
) -> Float[Tensor, "*axes"]:
    """Return the mean of the distribution, in units of the target as the quantiles, in float64.

    `unit` is that of the scale (`NetworkShape.unit`), more than 0. With a single level, the mean is its quantile.
    """
    quantiles = quantiles.double()
    middle = quantiles[..., len(levels) // 2]
    if len(levels) == 1:
        return middle
    nodes = _nodes(tuple(round(level, 9) for level in levels.tolist()))
    values = _at_deviates(quantiles, levels, nodes.deviates.to(quantiles.device), unit)
    # Relative to the middle, so that the mean of equal numbers is this number.
    restored = to_data(torch.asinh(middle / unit), unit)
    result: Tensor = middle + (values - restored[..., None]) @ nodes.weights.to(quantiles.device)
    return result


def at_levels(
    quantiles: Float[Tensor, "*axes level"],
    levels: Float[Tensor, " level"],
    requested: Float[Tensor, " column"],
    unit: float,
) -> Float[Tensor, "*axes column"]:
    """Return the quantiles at the levels `requested`, in units of the target."""
    if len(levels) == 1:
        return quantiles.expand(*quantiles.shape[:-1], len(requested))
    deviates = torch.special.ndtri(requested.double()).to(quantiles.device)
    return _at_deviates(quantiles.double(), levels, deviates, unit).to(quantiles.dtype)


def _at_deviates(quantiles: Tensor, levels: Tensor, deviates: Tensor, unit: float) -> Tensor:
    with untraced():
        level_deviates = torch.special.ndtri(levels.double()).to(quantiles.device)
        widths = level_deviates.diff()
        lower = torch.searchsorted(level_deviates, deviates).clamp(1, len(level_deviates) - 1) - 1
        inside = deviates.clamp(level_deviates[0], level_deviates[-1])
        within, outside = inside - level_deviates[lower], deviates - inside
    scaled = torch.asinh(quantiles / unit)
    slopes = (scaled[..., 1:] - scaled[..., :-1]) / widths
    values = scaled[..., lower] + slopes[..., lower] * within
    # 0 for deviates between the outer quantiles.
    beyond = slopes[..., lower].clamp(max=_MAX_SLOPE) * outside
    return to_data(values + beyond, unit)


@functools.lru_cache(maxsize=64)
def _nodes(levels: tuple[float, ...]) -> _Nodes:
    from scipy.special import ndtri

    edges = ndtri(np.array(levels))
    edges = np.array([edges[0] - _TAIL, *edges, edges[-1] + _TAIL])
    masses = np.diff([0.0, *levels, 1.0])
    deviates, weights = [], []
    for low, high, mass in zip(edges, edges[1:], masses, strict=False):
        outer = low == edges[0] or high == edges[-1]
        nodes, share = np.polynomial.legendre.leggauss(_TAIL_NODES if outer else _NODES)
        points = low + (high - low) * (nodes + 1) / 2
        weight = share * np.exp(-0.5 * np.square(points))
        deviates.append(points)
        weights.append(mass * weight / weight.sum())
    with torch.inference_mode(mode=False):  # The cache also serves calls with gradients.
        return _Nodes(torch.from_numpy(np.concatenate(deviates)), torch.from_numpy(np.concatenate(weights)))
