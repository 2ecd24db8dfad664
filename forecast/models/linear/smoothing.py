"""Exponential smoothing of windows by a bank of filters, all series and filters at once.

A filter with fixed parameters needs no optimiser: the bank holds a grid of them, and each window weighs them by how
well they forecast its own past, and how well they forecast the panel.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from forecast.models.linear.filter_bank import FILTERS, MOTION_OF, MOTIONS, run

# What a season counts less than the one after it, where seasons are averaged: a bank of filters for each.
DECAYS = (1.0, 0.8, 0.5)

# Steps that level and trend begin with, and the share of the observations whose errors are left out at the start.
_FIRST, _SKIPPED = 6, 0.3
# How much the weight of a filter falls with the logarithm of its error: on the panel, and on the window's own past.
_SHARED, _OWN = 30.0, 20.0
# Windows, and errors of one window, that are worth as much as what is known without any.
_FEW_WINDOWS, _FEW_ERRORS = 10, 4
# Relative errors that count at least and at most.
_RANGE = 0.05, 20.0
# Seasons and a share of one that must be observed for a season to be estimated.
_LEAST_SEASONS = 1.5
_LEAST = 1e-9


class Smoothed(NamedTuple):
    """Windows after their last step, by each of R seasonal patterns and F filters."""

    level: Float[Tensor, "window pattern filter"]
    trend: Float[Tensor, "window pattern filter"]
    slope: Float[Tensor, "window pattern"]
    """Of a regression on time."""
    season: Float[Tensor, "window pattern phase"]
    """From the next step on."""
    latest: Float[Tensor, "window phase"]
    """The last season as it was, or the last value: one more forecast."""
    error: Float[Tensor, "window pattern*filter+1"]
    """Mean absolute error one step ahead, within the window: of the filters, and of the last season."""
    n_errors: Float[Tensor, " window"]
    n_observed: Float[Tensor, " window"]


def n_patterns(context: int, season: int) -> int:
    """Return how many seasonal patterns a bank has for windows of `context` steps; one without any if too short."""
    return len(DECAYS) if 1 < season <= context // 2 else 1


def n_members(context: int, season: int) -> int:
    """Return how many forecasts a bank weighs."""
    return n_patterns(context, season) * len(FILTERS) + 1


def smooth(window: Float[Tensor, "window context"], observed: Bool[Tensor, "window context"], season: int) -> Smoothed:
    """Return what the bank knows after each window, whose values that are not `observed` are left out."""
    context = window.shape[1]
    values = window * observed
    seasonal = n_patterns(context, season) > 1
    period = season if seasonal else 1
    filled = _filled(values, observed, period)
    patterns = [_seasonal(filled, observed, period, decay) for decay in DECAYS] if seasonal else [0 * values[:, :1]]
    phase = torch.arange(context, device=window.device).sub(context).remainder(period)
    taken = torch.stack([pattern[:, phase] for pattern in patterns], 1)
    adjusted = (values[:, None] - taken) * observed[:, None]
    mask = observed.to(values.dtype)
    level, trend, slope, error, count = _filter(adjusted, mask, period)
    both = observed[:, period:] & observed[:, :-period]
    change = ((values[:, period:] - values[:, :-period]).abs() * both).sum(1) / both.sum(1).clamp(min=1)
    return Smoothed(
        level,
        trend,
        slope,
        torch.stack(patterns, 1),
        filled[:, -period:],
        torch.cat([error.flatten(1), change[:, None]], 1),
        count,
        mask.sum(1),
    )


def paths(smoothed: Smoothed, horizon: int) -> Float[Tensor, "window member horizon"]:
    """Return the forecast of each filter, and of the last season."""
    damped = _damped(smoothed.level, horizon)
    rise, ahead = _rise(smoothed), _steps(smoothed.level, horizon)
    path = smoothed.level[..., None] + smoothed.trend[..., None] * damped
    path = path + rise[..., None] * (ahead + _lag(smoothed)[:, None, :, None])
    path = path + _repeated(smoothed.season, horizon)[:, :, None]
    return torch.cat([path.flatten(1, 2), _repeated(smoothed.latest, horizon)[:, None]], 1)


def mixed(smoothed: Smoothed, shares: Float[Tensor, "window member"], horizon: int) -> Float[Tensor, "window horizon"]:
    """Return the mean of `paths` by shares, without all of them at once."""
    weight, latest = shares[:, :-1].unflatten(1, smoothed.level.shape[1:]), shares[:, -1:]
    rise = weight * _rise(smoothed)
    level = weight * smoothed.level + rise * _lag(smoothed)[:, None]
    path = level.sum((1, 2))[:, None] + (weight * smoothed.trend).sum(1) @ _damped(smoothed.level, horizon)
    path = path + rise.sum((1, 2))[:, None] * _steps(smoothed.level, horizon)
    path = path + (weight.sum(-1)[..., None] * _repeated(smoothed.season, horizon)).sum(1)
    mean: Tensor = path + latest * _repeated(smoothed.latest, horizon)
    return mean


def shares(smoothed: Smoothed, cost: Float[Tensor, " member"]) -> Float[Tensor, "window member"]:
    """Return the weight of each forecast in a window: by its own errors there, and by `cost`, that of the panel."""
    return shares_of(smoothed.error, smoothed.n_errors, cost)


def shares_of(
    error: Float[Tensor, "window member"], n_errors: Float[Tensor, " window"], cost: Float[Tensor, " member"]
) -> Float[Tensor, "window member"]:
    """Return what `shares` does, of errors and their numbers."""
    mean = error.mean(1, keepdim=True)
    relative = torch.where(mean > _LEAST, error / mean.clamp(min=_LEAST), torch.ones_like(error)).clamp(*_RANGE)
    return torch.softmax(-(cost + _OWN * trust(n_errors, _FEW_ERRORS) * relative.log()), 1)


def trust(n_errors: Float[Tensor, " window"], few: int) -> Float[Tensor, "window 1"]:
    """Return how far that many errors are to be trusted: 0 without any, a half for `few`, towards 1."""
    share: Tensor = n_errors / (n_errors + few)
    return share[:, None]


def shared_cost(
    error: Float[Tensor, "window member"], n_windows: float, prior: Float[Tensor, " member"]
) -> Float[Tensor, " member"]:
    """Return the cost of each forecast from its relative error on windows of a panel, `n_windows` independent ones.

    The fewer they are, the more counts the `prior`.
    """
    if not len(error):
        return prior
    mean = error.double().mean(0).clamp(min=_LEAST)
    cost = _SHARED * (mean / mean.min()).clamp(max=_RANGE[1]).log()
    return torch.lerp(prior.double(), cost, n_windows / (n_windows + _FEW_WINDOWS)).to(prior)


def _steps(like: Tensor, horizon: int) -> Float[Tensor, " horizon"]:
    return torch.arange(1, horizon + 1, device=like.device, dtype=like.dtype)


def _damped(like: Tensor, horizon: int) -> Float[Tensor, "filter horizon"]:
    """Return the sum of each filter's damping up to each step."""
    damping = like.new_tensor([each.damping for each in FILTERS])
    return (damping[:, None] ** _steps(like, horizon)).cumsum(1)


def _rise(smoothed: Smoothed) -> Float[Tensor, "window pattern filter"]:
    """Return what each filter's drift adds per step."""
    return smoothed.slope[..., None] * smoothed.level.new_tensor([each.drift for each in FILTERS])


def _lag(smoothed: Smoothed) -> Float[Tensor, "window filter"]:
    """Return by how many steps the level of each filter lags behind a line, after as many observations."""
    gain = smoothed.level.new_tensor([each.level for each in FILTERS])
    return (1 - (1 - gain) ** smoothed.n_observed[:, None]) / gain - 1


def _repeated(season: Float[Tensor, "*axes phase"], horizon: int) -> Float[Tensor, "*axes horizon"]:
    return season[..., torch.arange(horizon, device=season.device) % season.shape[-1]]


def _filled(values: Tensor, observed: Tensor, season: int) -> Float[Tensor, "window context"]:
    """Return values with those that are missing taken from a season before, or from the mean where there is none."""
    mean = values.sum(1, keepdim=True) / observed.sum(1, keepdim=True).clamp(min=1)
    columns = list(torch.where(observed, values, mean).unbind(1))
    for step in range(season, len(columns)):
        columns[step] = torch.where(observed[:, step], columns[step], columns[step - season])
    return torch.stack(columns, 1)


def _seasonal(
    values: Float[Tensor, "window context"], observed: Bool[Tensor, "window context"], season: int, decay: float
) -> Float[Tensor, "window phase"]:
    """Return the mean distance of each phase from the centred moving average, the phase of the next step first.

    A season counts `decay` times as much as the one after it. At the end of the window the average goes on with half
    of its latest slope. The pattern is drawn to 0 by the share of it that chance would explain (the positive part of
    James & Stein 1961), and is 0 without one and a half seasons of observations.
    """
    context = values.shape[1]
    sums = torch.nn.functional.pad(values.cumsum(1), (1, 0))
    mean = (sums[:, season:] - sums[:, :-season]) / season
    counts = torch.nn.functional.pad(observed.to(values.dtype).cumsum(1), (1, 0))
    whole = counts[:, season:] - counts[:, :-season]
    if season % 2 == 0:
        mean, whole = (mean[:, 1:] + mean[:, :-1]) / 2, torch.minimum(whole[:, 1:], whole[:, :-1])
    begin, length = season // 2, mean.shape[1]
    rest = context - begin - length
    back = min(season, length - 1)
    slope = (mean[:, -1] - mean[:, -1 - back]) / max(back, 1)
    steps = torch.arange(1, rest + 1, device=values.device, dtype=values.dtype)
    average = torch.cat([mean, mean[:, -1:] + slope[:, None] * steps / 2], 1)
    there = torch.cat([whole, whole[:, -1:].expand(-1, rest)], 1) >= season
    there = there & observed[:, begin:]
    distance = (values[:, begin:] - average) * there

    ahead = torch.arange(begin, context, device=values.device) - context
    phase = torch.eye(season, device=values.device, dtype=values.dtype)[ahead.remainder(season)]
    weight = there * decay ** ((-1 - ahead) // season).to(values.dtype)
    total, squares = weight @ phase, weight.square() @ phase
    known = total > 0
    n_known = known.sum(1, keepdim=True).clamp(min=1)
    pattern = ((distance * weight) @ phase) / total.clamp(min=_LEAST)
    pattern = (pattern - (pattern * known).sum(1, keepdim=True) / n_known) * known
    residual = (distance - pattern @ phase.T) * there
    count = there.sum(1)
    within = residual.square().sum(1) / (count - season).clamp(min=1)
    between = (pattern.square() * total.square() / squares.clamp(min=_LEAST)).sum(1) / max(season - 1, 1)
    share = (1 - within / between.clamp(min=_LEAST)).clamp(0, 1) * (count >= _LEAST_SEASONS * season)
    return pattern * share[:, None]


def _filter(
    values: Float[Tensor, "window pattern context"], seen: Float[Tensor, "window context"], season: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return level, trend, slope, mean absolute error and number of errors after running all filters.

    They begin with the mean, of those with a trend the regression, of the first two seasons, or six observations.
    Values are 0 where not `seen` (1 or 0).
    """
    time = torch.arange(values.shape[2], device=values.device, dtype=values.dtype)
    number = seen.cumsum(1)
    first = seen * (number <= max(_FIRST, 2 * season if season > 1 else 0))
    mean, rise = _regression(values, first[:, None], time)
    begun = time - seen.argmax(1, keepdim=True)
    middle = (begun * first).sum(1, keepdim=True) / first.sum(1, keepdim=True).clamp(min=1)
    trending = values.new_tensor([motion.trend > 0 for motion in MOTIONS])
    level = mean[..., None] - rise[..., None] * (middle[..., None] + 1) * trending
    trend = rise[..., None] * trending
    late = seen * (number > (_SKIPPED * number[:, -1:]).clamp(min=2))
    level, trend, total = (part[..., MOTION_OF] for part in run(values, seen, level, trend, late))
    count = late.sum(1)
    _, slope = _regression(values, seen[:, None], time)
    return level, trend, slope, total / count.clamp(min=1)[:, None, None], count


def _regression(
    values: Float[Tensor, "window pattern context"], weight: Float[Tensor, "window 1 context"], time: Tensor
) -> tuple[Float[Tensor, "window pattern"], Float[Tensor, "window pattern"]]:
    """Return mean and slope of values over time; the slope is 0 for fewer than four of them."""
    count = weight.sum(-1).clamp(min=1)
    middle = (weight * time).sum(-1) / count
    mean = (weight * values).sum(-1) / count
    distance = (time - middle[..., None]) * weight
    square = distance.square().sum(-1)
    slope = (distance * (values - mean[..., None])).sum(-1) / square.clamp(min=_LEAST)
    return mean, slope * (count > 3)
