"""Quantiles of samples, pinball loss, tails, and the initial widths of heads."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

# The least standard deviation (or scale) of a distribution, in units of spread.
LEAST_WIDTH = 0.01
HALF_LOG_TAU = 0.5 * math.log(2 * math.pi)


def pinball(
    quantiles: Float[Tensor, "*axes quantile"], target: Float[Tensor, "*axes"], levels: Float[Tensor, " quantile"]
) -> Float[Tensor, "*axes"]:
    """Return twice the pinball loss, averaged over the levels (Koenker & Bassett 1978)."""
    error = target.unsqueeze(-1) - quantiles
    return 2.0 * torch.maximum(levels * error, (levels - 1.0) * error).mean(-1)


def empirical_quantiles(
    values: Float[Tensor, "sample horizon"],
    weights: Float[Tensor, "sample horizon"],
    levels: Float[Tensor, " quantile"],
) -> Float[Tensor, "horizon quantile"]:
    """Return the weighted quantiles of the samples at each step; zeros if all weights of a step are 0.

    They are near the minimum of the weighted pinball loss: linear between the samples, and for equal weights those of
    `numpy.quantile`.
    """
    result = values.new_zeros(values.shape[1], len(levels), dtype=torch.float64)
    for step, (column, weight) in enumerate(zip(values.T, weights.T, strict=True)):
        weighted = weight > 0
        if not weighted.any():
            continue
        draws, order = column[weighted].double().sort()
        mass = weight[weighted].double()[order]
        position = (mass.cumsum(0) - mass) / (mass.sum() - mass[-1]).clamp(min=1e-300)
        right = torch.searchsorted(position, levels.double()).clamp(1, max(len(draws) - 1, 1)).clamp(max=len(draws) - 1)
        left = (right - 1).clamp(min=0)
        share = (levels.double() - position[left]) / (position[right] - position[left]).clamp(min=1e-300)
        result[step] = torch.lerp(draws[left], draws[right], share.clamp(0, 1))
    return result.to(values.dtype)


def mean_weights(levels: Sequence[float]) -> Float[Tensor, " quantile"]:
    """Return the weights of the quantiles in the mean of the distribution of `QuantileHead`."""
    edges = [0.0, *((a + b) / 2 for a, b in pairwise(levels)), 1.0]
    weights = torch.tensor(edges).diff()
    if len(levels) > 1:
        low, high = tails(levels)
        weights[:2] += levels[0] * low * torch.tensor([1.0, -1.0])
        weights[-2:] += (1 - levels[-1]) * high * torch.tensor([-1.0, 1.0])
    return weights


def tails(levels: Sequence[float]) -> tuple[float, float]:
    """Return the mean of each tail beyond its quantile, in units of the distance to the next one."""
    return levels[0] / (levels[1] - levels[0]), (1 - levels[-1]) / (levels[-1] - levels[-2])


def softplus_inverse(values: Tensor) -> Tensor:
    """Return x with softplus(x) = `values`."""
    return values + torch.log(-torch.expm1(-values))


def width_parameter(width: Tensor, least_gap: float) -> Tensor:
    """Return the parameter of a width: `LEAST_WIDTH` and its softplus, the latter `least_gap` at least."""
    return softplus_inverse((width - LEAST_WIDTH).clamp(min=least_gap))


def fit_line(quantiles: Float[Tensor, "*axes quantile"], standard: Float[Tensor, " quantile"]) -> tuple[Tensor, ...]:
    """Return intercept, slope and squared error of the least-squares line of quantiles over standard ones."""
    standard = standard.to(quantiles.dtype)
    x = standard - standard.mean()
    slope = quantiles @ x / x.square().sum()
    middle = quantiles.mean(-1) - slope * standard.mean()
    error = (quantiles - middle[..., None] - slope[..., None] * standard).square().sum(-1)
    return middle, slope, error
