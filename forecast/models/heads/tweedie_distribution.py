"""The compound Poisson-Gamma distribution (Tweedie with a power between 1 and 2): density, quantiles, draws.

With mean m, dispersion d and power p the value is the sum of N ~ Poisson(rate) Gamma draws, rate = m^(2-p) / (d (2-p)),
each of shape a = (2-p) / (p-1) and scale d (p-1) m^(p-1) (Jorgensen 1987): 0 with probability exp(-rate), variance
d m^p.
"""

import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

# Terms of the series on each side of its largest one.
_HALF = 28
# They reach this many standard deviations of the terms (a bell curve over their number) at least.
_REACH = 7.0
# Where quantiles are solved for: the rate beyond the one at which a quantile leaves 0, and their number.
_RATES = (1e-8, 1e8)
_KNOTS = 120
_TOLERANCE = 1e-12

Array = npt.NDArray[np.float64]


def rate_and_scale(
    mean: Float[Tensor, "*axes"], dispersion: Float[Tensor, "*axes"], power: float
) -> tuple[Float[Tensor, "*axes"], Float[Tensor, "*axes"]]:
    """Return the rate of the Poisson count and the scale of the Gamma draws."""
    rate = mean ** (2 - power) / (dispersion * (2 - power))
    return rate, dispersion * (power - 1) * mean ** (power - 1)


def surprise(
    value: Float[Tensor, "*axes"], mean: Float[Tensor, "*axes"], dispersion: Float[Tensor, "*axes"], power: float
) -> Float[Tensor, "*axes"]:
    """Return the negative logarithm of the density at values above 0, of the probability of 0 there; in float64.

    The series of Dunn & Smyth (2005), Statistics and Computing 15, over the counts around its largest term. Its terms
    are a bell curve over the count: where this is wide, the sum is over evenly spaced counts (the trapezoidal rule on a
    smooth peak), so that the number of terms does not grow.
    """
    rate, scale = rate_and_scale(mean, dispersion, power)
    result = rate.clone()
    positive = torch.nonzero(value > 0, as_tuple=True)
    if not len(positive[0]):
        return result
    y, spread, share = value[positive], dispersion[positive], (2 - power) / (power - 1)
    # The part of a term that does not depend on the mean.
    slope = share * (y / (power - 1)).log() - (1 + share) * spread.log() - float(np.log(2 - power))
    with torch.no_grad():
        peak = y ** (2 - power) / (spread * (2 - power))
        count, stride = _counts(peak, share)
        constant = -torch.lgamma(count + 1) - torch.lgamma(share * count) + stride.log()[..., None]
        constant = constant.masked_fill(count < 1, -torch.inf)
    series = torch.logsumexp(constant + slope[..., None] * count, dim=-1)
    return result.index_put(positive, rate[positive] + y / scale[positive] + y.log() - series)


def _counts(peak: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Return the counts whose terms are summed, [..., term], and their spacing."""
    deviation = (peak / (1 + share)).sqrt()
    stride = (deviation * _REACH / _HALF).clamp(min=1.0)
    first = torch.where(stride > 1, peak - _HALF * stride, (peak.round() - _HALF).clamp(min=1))
    return first[..., None] + stride[..., None] * torch.arange(2 * _HALF + 1, device=peak.device), stride


def below(value: Array, rate: Array, power: float) -> Array:
    """Return the probability of at most `value`, for Gamma draws of scale 1."""
    from scipy.special import gammainc, gammaln

    share = (2 - power) / (power - 1)
    stride = np.maximum(np.sqrt(rate) * _REACH / _HALF, 1.0)
    first = np.where(stride > 1, rate - _HALF * stride, np.maximum(np.round(rate) - _HALF, 1.0))
    count = first[..., None] + stride[..., None] * np.arange(2 * _HALF + 1)
    inside = count >= 1
    count = np.where(inside, count, 1.0)
    weight = stride[..., None] * np.exp(count * np.log(rate)[..., None] - rate[..., None] - gammaln(count + 1)) * inside
    probability: Array = np.exp(-rate) + (weight * gammainc(share * count, value[..., None])).sum(-1)
    return probability


def quantiles(rate: Array, levels: Sequence[float], power: float) -> Array:
    """Return the quantiles at `levels` for Gamma draws of scale 1, [..., level]; 0 up to the probability of 0."""
    result = np.zeros((*rate.shape, len(levels)))
    for number, (level, curve) in enumerate(zip(levels, _curves(tuple(levels), power), strict=True)):
        beyond = rate + np.log(level)
        above = beyond > 0
        result[above, number] = np.exp(curve(np.log(beyond[above])))
    return result


@functools.lru_cache(maxsize=64)
def _curves(levels: tuple[float, ...], power: float) -> list[functools.partial[Array]]:
    """Return, for each level, the logarithm of the quantile over that of the rate beyond -log(level).

    Both ends are straight lines; the quantiles in between are solved for and joined by a cubic spline.
    """
    from scipy.interpolate import CubicSpline
    from scipy.optimize import elementwise

    knots = np.log(np.geomspace(*_RATES, num=_KNOTS))
    probabilities = np.array(levels)[:, None]
    rate = np.exp(knots) - np.log(probabilities)
    share = (2 - power) / (power - 1)
    # Bounds of the root: a single tiny draw, and far above the means of Poisson and Gamma.
    low, high = np.full(rate.shape, -800.0), np.log(share * rate + 40 * (share + 1) * (np.sqrt(rate) + 1))
    roots = elementwise.find_root(
        lambda value, rate, level: below(np.exp(value), rate, power) - level,
        (low, high),
        args=(rate, np.broadcast_to(probabilities, rate.shape)),
        tolerances={"xrtol": _TOLERANCE, "frtol": 0.0, "fatol": 0.0},
    )
    solved = roots.x
    return [functools.partial(_extended, CubicSpline(knots, values), knots, values) for values in solved]


def _extended(inside: object, knots: Array, values: Array, points: Array) -> Array:
    """Return the spline, and straight lines beyond its ends."""
    assert callable(inside)
    slopes = (values[1] - values[0]) / (knots[1] - knots[0]), (values[-1] - values[-2]) / (knots[-1] - knots[-2])
    near = np.clip(points, knots[0], knots[-1])
    outside = np.where(points < near, slopes[0], slopes[1]) * (points - near)
    values_at: Array = inside(near) + outside
    return values_at


def samples(
    rate: Float[Tensor, "*axes"], scale: Float[Tensor, "*axes"], power: float, generator: torch.Generator
) -> Float[Tensor, "*axes"]:
    """Return one independent draw of each distribution."""
    count = torch.poisson(rate, generator=generator)
    share = (2 - power) / (power - 1)
    draws = torch._standard_gamma(share * count.clamp(min=1), generator=generator)
    return torch.where(count > 0, scale * draws, 0.0)


def sample_at(uniform: Array, rate: Array, power: float) -> Array:
    """Return one draw of each distribution, for Gamma draws of scale 1, by a uniform random number in (0, 1).

    By inversion: the count is the Poisson quantile at this number, and the number's position within the count's
    probability gives the sum of the Gamma draws.
    """
    from scipy.special import gammaincinv, pdtr
    from scipy.stats import poisson

    count = np.maximum(poisson.ppf(uniform, rate), 1.0)
    less = pdtr(count - 1, rate)
    position = np.clip((uniform - less) / (pdtr(count, rate) - less), _TOLERANCE, 1 - _TOLERANCE)
    draws: Array = np.where(uniform > np.exp(-rate), gammaincinv((2 - power) / (power - 1) * count, position), 0.0)
    return draws
