"""Exponential smoothing with fixed parameters at every step of many series, a patch of steps at a time."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from forecast.models.linear.filter_bank import Filter
from forecast.models.universal.history import SEASONS, History, lagged, trailing

FILTERS = (
    Filter(0.1),
    Filter(0.35),
    Filter(0.7),
    Filter(0.4, 0.1, 0.95),
    Filter(0.8, 0.3, 0.9),
    Filter(0.8, 0.3, 1.0),
)
_PATCH = 8


class Smoothed(NamedTuple):
    """Series without their seasons, smoothed; and the seasons."""

    level: Float[Tensor, "series time filter"]
    trend: Float[Tensor, "series time filter"]
    first: Float[Tensor, "series time"]
    """Distance from the mean of the season around, of the first season."""
    first_share: Float[Tensor, "series time"]
    """Share of the mean pattern of the last seasons that the next is worth (a causal regression)."""
    second: Float[Tensor, "series time"]
    second_share: Float[Tensor, "series time"]


def smooth(history: History) -> Smoothed:
    """Return each series without its seasons, smoothed by each filter."""
    first, first_share, rest = _pattern(history.filled, history, history.season)
    second, second_share, both = _pattern(rest, history, history.second)
    second_share = second_share * history.has_second[:, None]
    adjusted = torch.where(history.has_second[:, None], both, rest)
    level, trend = run(adjusted)
    return Smoothed(level, trend, first, first_share, second, second_share)


def _pattern(values: Tensor, history: History, season: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return distances from the mean of the season before, how much of a past one recurs, and values without."""
    age = torch.arange(values.shape[1], device=values.device) - history.first[:, None]
    whole = (age >= season[:, None] - 1) & (season > 1)[:, None]
    distance = ((values - trailing(values, season) / season[:, None]) * whole).float()
    total, count = torch.zeros_like(distance), torch.zeros_like(distance)
    for number in range(1, SEASONS + 1):
        past, valid = lagged(distance, number * season)
        valid = valid & lagged(whole, number * season)[0]
        total, count = total + past * valid, count + valid
    mean = total / count.clamp(min=1)
    both = (distance * mean * (count > 0)).double().cumsum(1)
    share = (both / (mean.double() ** 2).cumsum(1).clamp(min=1e-30)).clamp(0, 1).float()
    before = torch.nn.functional.pad(share[:, :-1], (1, 0))
    return distance, share, values - before * mean


def run(values: Float[Tensor, "series time"]) -> tuple[Tensor, Tensor]:
    """Return level and trend of each filter after each step; both begin at 0.

    Series are differences from their first value, and 0 before, so that filters begin with it and without a trend.
    """
    series, time = values.shape
    patches = torch.nn.functional.pad(values, (0, -time % _PATCH)).reshape(series, -1, _PATCH)
    states, inputs = (part.to(values) for part in _RESPONSES)
    # [filter, step and part, past part], [filter, step and part, step]
    driven = torch.einsum("fpi,sni->nsfp", inputs.flatten(1, 2), patches)
    state = values.new_zeros(series, len(FILTERS), 2)
    answers = []
    for patch in driven.unbind(0):
        answer = torch.einsum("fpq,sfq->sfp", states.flatten(1, 2), state) + patch
        answers.append(answer)
        state = answer[..., -2:]
    apart = torch.stack(answers, 1).reshape(series, -1, len(FILTERS), _PATCH, 2)
    outcome = apart.permute(0, 1, 3, 2, 4).flatten(1, 2)[:, :time]
    return outcome[..., 0], outcome[..., 1]


def _responses() -> tuple[Tensor, Tensor]:
    """Return how level and trend after each step of a patch follow from those before it, and from its values."""
    states, inputs = [], []
    for item in FILTERS:
        transition = torch.tensor(
            [
                [1 - item.level, item.damping * (1 - item.level)],
                [-item.level * item.trend, item.damping * (1 - item.level * item.trend)],
            ],
            dtype=torch.float64,
        )
        gain = torch.tensor([item.level, item.level * item.trend], dtype=torch.float64)
        state, by_input = torch.eye(2, dtype=torch.float64), torch.zeros(2, _PATCH, dtype=torch.float64)
        of_state, of_input = [], []
        for step in range(_PATCH):
            state, by_input = transition @ state, transition @ by_input
            by_input[:, step] += gain
            of_state.append(state)
            of_input.append(by_input)
        states.append(torch.stack(of_state))
        inputs.append(torch.stack(of_input))
    return torch.stack(states), torch.stack(inputs)


_RESPONSES = _responses()
