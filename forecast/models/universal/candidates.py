"""Simple forecasts of each step from each origin, and how well they did before."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from forecast.models.universal.filters import FILTERS, Smoothed
from forecast.models.universal.history import SEASONS, History

LEADS = (1, 3, 5, 9, 17, 41)
"""Steps ahead at which past errors are taken; multiples of no season, where the last value does well by chance."""
NAMES = (
    "last",
    "seasonal_naive",
    "mean_season",
    "second_seasonal_naive",
    "second_mean_season",
    "drift",
    "seasonal_drift",
    "half_seasonal_drift",
    "seasonal_walk",
    "level",
    "line",
    "walk",
    "theta_slow",
    "theta_fast",
    *(f"filter_{number}" for number in range(len(FILTERS))),
)
_MIN_WINDOW, _GRID = 64, 128
# Observations before an origin that a forecast needs to be judged.
_MIN_COUNT = 3


class Errors(NamedTuple):
    """How far candidates were off before an origin, at each of `LEADS`."""

    mean: Float[Tensor, "series origin lead candidate"]
    """Mean absolute error, in units of the data."""
    number: Float[Tensor, "series origin lead"]


def candidates(
    history: History, smoothed: Smoothed, origins: Int[Tensor, " origin"], ahead: Int[Tensor, " step"]
) -> Float[Tensor, "series origin step candidate"]:
    """Return forecasts `ahead` steps after each origin, the index of the last step that is known."""
    at = origins[None, :, None]
    step = ahead[None, None].float()
    last, level, line, slope, long_slope, walk, recent = (
        part[:, origins, None]
        for part in (
            history.filled,
            history.level,
            history.line,
            history.slope,
            history.long_slope,
            history.walk,
            history.recent,
        )
    )
    last = last.expand(-1, -1, len(ahead))
    naive, mean, cycles = _seasons(history, history.filled, history.season, at, ahead, last)
    second, second_mean, _ = _seasons(history, history.filled, history.second, at, ahead, last)
    season = history.season[:, None, None]
    rise = recent * cycles * season
    ahead_of_filters = _filtered(history, smoothed, origins, ahead)
    theta = 0.5 * long_slope * step
    parts = [
        last,
        naive,
        mean,
        second,
        second_mean,
        last + recent * step,
        naive + rise,
        naive + 0.5 * rise,
        naive + walk * cycles * season,
        level.expand_as(last),
        line + slope * step,
        last + walk * step,
        ahead_of_filters[..., 1] + theta,
        ahead_of_filters[..., 2] + theta,
    ]
    return torch.cat([torch.stack(parts, -1), ahead_of_filters], -1)


def lookup(
    history: History, values: Tensor, season: Tensor, at: Tensor, ahead: Tensor, number: int
) -> tuple[Tensor, Tensor]:
    """Return values at the phase of each step, `number` seasons before the next one, and whether there are any."""
    length = season[:, None, None]
    position = at + ahead - length * ((ahead - 1) // length + number)
    index = position.clamp(min=0)
    found = values.gather(1, index.flatten(1)).reshape(index.shape)
    return found, position >= history.first[:, None, None]


def _seasons(
    history: History, values: Tensor, season: Tensor, at: Tensor, ahead: Tensor, otherwise: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the last season, the mean of the last three, and how many seasons ahead each step is."""
    total, count = torch.zeros_like(otherwise), torch.zeros_like(otherwise)
    naive = otherwise
    for number in range(1, SEASONS + 1):
        value, valid = lookup(history, values, season, at, ahead, number)
        if number == 1:
            naive = torch.where(valid, value, otherwise)
        total, count = total + value * valid, count + valid
    length = season[:, None, None]
    mean = torch.where(count > 0, total / count.clamp(min=1), otherwise)
    return naive, mean, ((ahead - 1) // length + 1).float()


def _filtered(
    history: History, smoothed: Smoothed, origins: Tensor, ahead: Tensor
) -> Float[Tensor, "series origin step filter"]:
    at = origins[None, :, None]
    zero = smoothed.level.new_zeros(smoothed.level.shape[0], len(origins), len(ahead))
    _, first, _ = _seasons(history, smoothed.first, history.season, at, ahead, zero)
    _, second, _ = _seasons(history, smoothed.second, history.second, at, ahead, zero)
    pattern = smoothed.first_share[:, origins, None] * first + smoothed.second_share[:, origins, None] * second
    damping = zero.new_tensor([item.damping for item in FILTERS])
    # The sum of a damping up to each step.
    geometric = damping * (1 - damping ** ahead[:, None]) / (1 - damping).clamp(min=1e-6)
    total = torch.where(damping < 1, geometric, ahead[:, None].float())
    path = smoothed.level[:, origins, None] + smoothed.trend[:, origins, None] * total
    return path + pattern[..., None]


def past_errors(history: History, smoothed: Smoothed, origins: Int[Tensor, " origin"], n_blank: int = 0) -> Errors:
    """Return mean absolute errors of candidates from earlier origins, on steps up to each origin.

    They are of the last four seasons, or 64 steps, and of origins on a grid, at most 128 in a window; `n_blank` steps
    before the first observation were left out of it.
    """
    time = history.filled.shape[1]
    stride = max(1, (time + n_blank) // _GRID)
    leads = torch.tensor(LEADS, device=origins.device)
    length = (4 * history.season).clamp(min=_MIN_WINDOW)
    first = (time - 1) % stride
    if len(origins) == 1 and len(length):  # No earlier origin of the grid counts for a single one.
        first += max(0, int(origins[0]) - LEADS[-1] - int(length.max()) - first) // stride * stride
    grid = torch.arange(first, time, stride, device=origins.device)
    paths = candidates(history, smoothed, grid, leads)
    target = grid[:, None] + leads
    inside = target < time
    index = target.clamp(max=time - 1)
    valid = inside & history.observed[:, index] & (history.n_observed[:, grid] >= _MIN_COUNT)[..., None]
    if len(origins) == 1:  # Sums are then the same, bit by bit, wherever the grid begins.
        valid = valid & (grid[:, None] > origins - leads - length[:, None, None])
    error = (history.raw[:, index, None] - paths).abs() * valid[..., None]
    zero = torch.zeros_like(error[:, :1])
    total = torch.cat([zero.double(), error.double().cumsum(1)], 1)
    number = torch.cat([zero[..., 0], valid.float().cumsum(1)], 1)
    # How many points of the grid lie before: [origin, lead], and [series, origin, lead].
    end = torch.searchsorted(grid, (origins[:, None] - leads).contiguous(), right=True)
    start = torch.searchsorted(grid, (origins[:, None] - leads - length[:, None, None]).contiguous(), right=True)
    rows = torch.arange(error.shape[0], device=origins.device)[:, None, None]
    at = torch.arange(len(LEADS), device=origins.device)
    count = number[rows, end, at] - number[rows, start, at]
    mean = (total[rows, end, at] - total[rows, start, at]) / count.clamp(min=1)[..., None]
    return Errors(mean.clamp(min=0).float(), count)
