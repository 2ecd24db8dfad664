"""Quantiles of counts: of Poisson and negative binomial distributions, all levels of a distribution in one pass.

A negative binomial with mean m and excess variance v - m = s^2 is one of size n = m^2 / s^2; a Poisson has s = 0.
"""

import torch
from jaxtyping import Float
from torch import Tensor

# Counts up to this bound are tabulated; beyond it, quantiles are approximated and then corrected.
_MAX_TABLE = 4096
_MAX_ELEMENTS = 1 << 22
# Cumulative probabilities are sums of rounded ones.
_TOLERANCE = 1e-13
_MAX_CORRECTIONS = 200


def quantiles(
    mean: Float[Tensor, "*axes"],
    excess: Float[Tensor, "*axes"],
    levels: Float[Tensor, " level"] | Float[Tensor, "*axes level"],
) -> Float[Tensor, "*axes level"]:
    """Return the smallest counts whose cumulative probability reaches each level, in float64.

    `excess` is s, the square root of the variance beyond the mean. `levels` are shared or one set
    for each distribution.
    """
    levels = levels.double().expand(*mean.shape, -1).reshape(-1, levels.shape[-1])
    flat_mean, ratio = mean.double().flatten(), (excess / mean).double().square().flatten()
    deviation = (flat_mean + flat_mean.square() * ratio).sqrt()
    top = levels.amax(-1)
    # Cantelli's inequality: no more than 1 / (1 + t^2) lies t deviations or further above the mean.
    bound = flat_mean + deviation * (top / (1 - top).clamp(min=1e-16)).sqrt() + 1
    result = torch.empty_like(levels)
    large = torch.nonzero(~(bound < _MAX_TABLE)).flatten()
    result[large] = _corrected(flat_mean[large], ratio[large], levels[large])
    least, length = 0, 16
    while least < _MAX_TABLE:
        rows = torch.nonzero((bound >= least) & (bound < length)).flatten()
        for part in rows.split(max(1, _MAX_ELEMENTS // length)):
            result[part] = _tabulated(flat_mean[part], ratio[part], levels[part], length)
        least, length = length, 4 * length
    return result.reshape(*mean.shape, -1)


def _tabulated(mean: Tensor, ratio: Tensor, levels: Tensor, length: int) -> Tensor:
    """Return the quantiles by cumulative probabilities of 0, 1, ..., in a recurrence; `ratio` is 1 / size."""
    count = torch.arange(length, dtype=mean.dtype, device=mean.device)
    spread = mean * ratio
    none = torch.where(spread > _TOLERANCE, -spread.log1p() / ratio, -mean)
    factor = (mean / (1 + spread))[:, None]
    steps = ((1 + count[:-1] * ratio[:, None]) * factor / (count[:-1] + 1)).log()
    probability = torch.cat([none[:, None], steps], dim=-1).cumsum(-1).exp()
    reached = probability.cumsum(-1).contiguous()
    return torch.searchsorted(reached, (levels - _TOLERANCE).contiguous()).clamp(max=length - 1).to(mean.dtype)


def _corrected(mean: Tensor, ratio: Tensor, levels: Tensor) -> Tensor:
    """Return the quantiles of a shifted gamma distribution with the same three moments, moved to the exact ones."""
    from scipy.special import gammaincinv

    variance = mean + mean.square() * ratio
    third = mean + 3 * mean.square() * ratio + 2 * mean**3 * ratio.square()
    shape, scale = 4 * variance**3 / third.square(), third / (2 * variance)
    standard = torch.from_numpy(gammaincinv(shape[:, None].cpu().numpy(), levels.cpu().numpy())).to(mean)
    guess = ((mean - shape * scale)[:, None] + scale[:, None] * standard - 0.5).ceil().clamp(min=0)
    reached_levels = levels - _TOLERANCE
    rows = torch.arange(len(mean), device=mean.device)[:, None].expand_as(guess)
    result, index = guess.flatten(), torch.arange(guess.numel(), device=mean.device)
    for _ in range(_MAX_CORRECTIONS):
        count, level, row = result[index], reached_levels.flatten()[index], rows.flatten()[index]
        reached, before_it = (_below(value, mean[row], ratio[row]) for value in (count, count - 1))
        up, down = reached < level, before_it >= level
        wrong = up | down
        if not wrong.any():
            break
        # A Newton step by the probability of one count, of at least one count.
        missing = torch.where(up, level - reached, before_it - level) / (reached - before_it).clamp(min=1e-300)
        distance = torch.minimum(missing.floor(), 0.5 * variance[row].sqrt()).clamp(min=1)
        result[index] = (count + torch.where(up, distance, torch.where(down, -distance, 0.0))).clamp(min=0)
        index = index[wrong]
    return result.view_as(guess)


def _below(count: Tensor, mean: Tensor, ratio: Tensor) -> Tensor:
    """Return the probability of `count` or less."""
    from scipy.special import betainc, gammaincc

    device, (count, mean, ratio) = count.device, (values.cpu() for values in (count, mean, ratio))
    size = 1 / ratio.clamp(min=1e-300)
    poisson = torch.from_numpy(gammaincc((count + 1).clamp(min=1e-300).numpy(), mean.numpy()))
    share = 1 / (1 + mean * ratio)
    negative_binomial = torch.from_numpy(betainc(size.numpy(), (count + 1).clamp(min=1e-300).numpy(), share.numpy()))
    # With hardly any excess variance, in units of the mean, `betainc` loses accuracy at these sizes.
    probability = torch.where(mean * ratio < 1e-9, poisson, negative_binomial)
    return torch.where(count < 0, 0.0, probability).to(device)
