"""Statistics of a series at each of its steps, from that step and those before it alone."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from forecast.models.tensors import each

MIN_LEVEL, MIN_SCALE, MAX_SCALE = 6, 24, 400
"""Steps of the window of the level at least, and of the scale at least and at most."""
SEASONS = 3
"""Past seasons that are looked up."""


class Window(NamedTuple):
    """Series that end together, in units of the data."""

    values: Float[Tensor, "series time"]
    """Anything, NaN too, where not observed."""
    observed: Bool[Tensor, "series time"]
    season: Int[Tensor, " series"]
    """Steps of the season; 1 without any."""
    second: Int[Tensor, " series"]
    """Steps of a longer season; 0 without any."""


class History(NamedTuple):
    """What is known at each step. Values are differences from the first observation of a series."""

    centre: Float[Tensor, "series 1"]
    """The first observation, in the precision of the data."""
    raw: Float[Tensor, "series time"]
    """0 where not observed."""
    observed: Bool[Tensor, "series time"]
    filled: Float[Tensor, "series time"]
    """Missing values are those one season before, or the last; 0 before the first observation."""
    n_observed: Float[Tensor, "series time"]
    """Observations so far."""
    first: Int[Tensor, " series"]
    """Index of the first observation."""
    season: Int[Tensor, " series"]
    second: Int[Tensor, " series"]
    """As long as `season` where there is none."""
    has_second: Bool[Tensor, " series"]
    level: Float[Tensor, "series time"]
    """Mean of the last season."""
    scale: Float[Tensor, "series time"]
    """Standard deviation of the last four seasons; 1 of a constant."""
    change: Float[Tensor, "series time"]
    """Mean absolute difference of observations a season apart, or one step where a season has not passed."""
    low: Float[Tensor, "series time"]
    high: Float[Tensor, "series time"]
    slope: Float[Tensor, "series time"]
    """Of a regression on the last two seasons."""
    line: Float[Tensor, "series time"]
    """Value of that regression at the step."""
    long_slope: Float[Tensor, "series time"]
    """Of a regression on all observations."""
    walk: Float[Tensor, "series time"]
    """Mean change per step since the first observation."""
    recent: Float[Tensor, "series time"]
    """Change of the level per step, over a season."""

    def between(self, first: int, end: int) -> "History":
        """Return the steps from `first` up to `end`; the window itself if these are all."""
        if (first, end) == (0, self.raw.shape[1]):
            return self
        timeless = self.centre, self.season, self.second, self.has_second
        steps = each(
            self, lambda values: values if any(values is part for part in timeless) else values[..., first:end]
        )
        return steps._replace(first=self.first - first)


def lagged(values: Tensor, lag: Int[Tensor, " series"]) -> tuple[Tensor, Bool[Tensor, "series time"]]:
    """Return values `lag` steps before each step, and where there are any."""
    index = torch.arange(values.shape[1], device=values.device) - lag[:, None]
    return values.gather(1, index.clamp(min=0)), index >= 0


def trailing(values: Tensor, length: Int[Tensor, " series"]) -> Float[Tensor, "series time"]:
    """Return the sums of the last `length` steps, in float64."""
    total = F.pad(values.double().cumsum(1), (1, 0))
    begin = (torch.arange(1, values.shape[1] + 1, device=values.device) - length[:, None]).clamp(min=0)
    return total[:, 1:] - total.gather(1, begin)


def history(window: Window) -> History:
    """Return the statistics of each step of a window."""
    observed, season = window.observed, window.season.clamp(min=1)
    has_second = window.second > season
    second = torch.where(has_second, window.second, season)
    first = observed.int().argmax(1)
    centre = torch.where(observed, window.values, 0).gather(1, first[:, None])
    raw = torch.where(observed, window.values - centre, 0).float()
    count = observed.long().cumsum(1).float()
    filled = _filled(raw, observed, season)
    width = season.clamp(min=MIN_LEVEL)
    n_level = trailing(observed.float(), width)
    level = trailing(raw, width) / n_level.clamp(min=1)
    level = torch.where(n_level > 0, level, filled.double())
    scale = _scale(raw, observed, (4 * season).clamp(min=MIN_SCALE, max=MAX_SCALE))
    time = torch.arange(raw.shape[1], device=raw.device, dtype=torch.float64)
    begun = (count > 0).float()
    slope, line = _regression(filled, begun, (2 * season).clamp(min=10, max=120), time)
    long_slope, _ = _regression(filled, begun, torch.full_like(season, raw.shape[1]), time)
    age = (time - first[:, None]).clamp(min=1)
    before, valid = lagged(level, width)
    recent = (level - before) / width[:, None] * (valid & (age > width[:, None]))
    infinite = torch.full_like(raw, torch.inf)
    low = torch.where(observed, raw, infinite).cummin(1).values
    high = torch.where(observed, raw, -infinite).cummax(1).values
    return History(
        centre,
        raw,
        observed,
        filled,
        count,
        first,
        season,
        second,
        has_second,
        level.float(),
        scale,
        _change(raw, observed, season),
        torch.where(begun > 0, low, 0),
        torch.where(begun > 0, high, 0),
        slope,
        line,
        long_slope,
        (filled / age).float() * (count > 1),
        recent.float(),
    )


def _filled(raw: Tensor, observed: Tensor, season: Tensor) -> Float[Tensor, "series time"]:
    time = torch.arange(raw.shape[1], device=raw.device).expand_as(observed)
    latest = torch.where(observed, time, -1).cummax(1).values
    filled, missing = raw.gather(1, latest.clamp(min=0)), ~observed & (latest >= 0)
    for number in range(SEASONS, 0, -1):
        value, valid = lagged(raw, number * season)
        valid = valid & lagged(observed, number * season)[0] & (season > 1)[:, None]
        filled = torch.where(missing & valid, value, filled)
    return filled


def _scale(raw: Tensor, observed: Tensor, length: Tensor) -> Float[Tensor, "series time"]:
    count = trailing(observed.float(), length).clamp(min=1)
    mean = trailing(raw, length) / count
    square = trailing(raw.double() ** 2, length) / count
    variance = square - mean**2
    # What is left of a constant is rounding.
    scale = torch.where(variance > 1e-10 * square, variance, 0).clamp(min=0).sqrt().float()
    valid, index = scale > 0, torch.arange(raw.shape[1], device=raw.device).expand_as(observed)
    latest = torch.where(valid, index, -1).cummax(1).values
    return torch.where(latest >= 0, scale.gather(1, latest.clamp(min=0)), 1)


def _change(raw: Tensor, observed: Tensor, season: Tensor) -> Float[Tensor, "series time"]:
    means = []
    for lag in (season, torch.ones_like(season)):
        before, valid = lagged(raw, lag)
        both = observed & valid & lagged(observed, lag)[0]
        count = both.long().cumsum(1)
        means.append(((raw - before).abs() * both).double().cumsum(1) / count.clamp(min=1))
        enough = count > 1
        if lag is season:
            seasonal = enough
    return torch.where(seasonal, means[0], means[1]).float()


def _regression(filled: Tensor, begun: Tensor, length: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
    """Return slope, 0 for fewer than four steps, and value at each step, of a line through the last `length` ones."""
    count = trailing(begun, length).clamp(min=1)
    # Steps of the window end at each step, one apart, so their distances from it have known moments.
    mean_time = time - (count - 1) / 2
    mean = trailing(filled * begun, length) / count
    product = trailing(filled.double() * time * begun, length) / count - mean * mean_time
    variance = (count**2 - 1) / 12
    slope = torch.where(count >= 4, product / variance.clamp(min=1e-9), 0)
    return slope.float(), (mean + slope * (count - 1) / 2).float()
