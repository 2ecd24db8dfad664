"""Components of synthetic series: random numbers per series, noise, walks and seasonal patterns."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Layout:
    """The layout of series to draw: their seasons, histories and horizon."""

    season: Integers
    """[series] Steps; 1 without a season."""
    second: Integers
    """[series] Steps; 0 without a second season."""
    history: Integers
    """[series] Steps before the horizon."""
    horizon: int
    n_steps: int
    """Steps of each series with its horizon; a series with a shorter history begins later."""

    def __len__(self) -> int:
        return len(self.season)

    def select(self, rows: Integers) -> "Layout":
        """Return the layout of some of the series."""
        return Layout(self.season[rows], self.second[rows], self.history[rows], self.horizon, self.n_steps)

    @cached_property
    def age(self) -> Integers:
        """[series, time] Steps since the first visible one, negative before it."""
        start = self.n_steps - self.horizon - self.history
        return np.arange(self.n_steps) - start[:, None]

    @cached_property
    def visible(self) -> Mask:
        """[series, time] Whether the step belongs to the history or the horizon."""
        return self.age >= 0

    @cached_property
    def position(self) -> Array:
        """[series, time] Time in histories: 0 at the first visible step, 1 at the end of the history."""
        return self.age / self.history[:, None]


def uniform(random: np.random.Generator, low: float, high: float, n: int) -> Array:
    """Draw a number per series, [series, 1]."""
    return random.uniform(low, high, (n, 1))


def log_uniform(random: np.random.Generator, low: float, high: float, n: int) -> Array:
    """Draw a positive number per series, uniform in its logarithm, [series, 1]."""
    return np.exp(random.uniform(np.log(low), np.log(high), (n, 1)))


def chance(random: np.random.Generator, probability: float | Array, n: int) -> Mask:
    """Draw a yes or no per series, [series, 1], of one probability or one each, [series, 1]."""
    return random.random((n, 1)) < probability


def noise(random: np.random.Generator, n: int, n_steps: int, *, heavy: float = 0.2) -> Array:
    """Draw white noise of variance 1, [series, time]; a share `heavy` of the series is Student-t with 4 degrees."""
    values = random.standard_normal((n, n_steps))
    rows = np.flatnonzero(random.random(n) < heavy)
    # A Student-t is a normal over the root of a chi-square; that of 4 degrees is a sum of two exponentials.
    chi_square = 2 * random.standard_exponential((2, len(rows), n_steps)).sum(0)
    values[rows] *= np.sqrt(2 / np.maximum(chi_square, 1e-3))
    return values


def innovations(random: np.random.Generator, layout: Layout, *, heavy: float = 0.2, burn: int = 2) -> Array:
    """Draw noise that begins `burn` seasons and eight steps before a series is visible, zero before."""
    return np.where(
        layout.age >= -(burn * layout.season + 8)[:, None], noise(random, len(layout), layout.n_steps, heavy=heavy), 0.0
    )


def walk(random: np.random.Generator, layout: Layout) -> Array:
    """Draw a random walk whose standard deviation at the end of the history is 1, [series, time]."""
    steps = random.standard_normal((len(layout), layout.n_steps))
    return np.cumsum(np.where(layout.visible, steps, 0.0), 1) / np.sqrt(layout.history)[:, None]


def moments(values: Array, layout: Layout) -> tuple[Array, Array]:
    """Mean and standard deviation of each series over its history, [series, 1] each."""
    history = layout.visible.copy()
    history[:, layout.n_steps - layout.horizon :] = False
    return values.mean(1, where=history, keepdims=True), values.std(1, where=history, keepdims=True)


def standardise(values: Array, layout: Layout) -> Array:
    """Shift and scale each series to mean 0 and standard deviation 1 over its history; constant ones to 0."""
    mean, deviation = moments(values, layout)
    constant = deviation <= 1e-9 * (1 + np.abs(mean))
    return np.where(constant, 0.0, (values - mean) / np.where(constant, 1.0, deviation))


def express(
    random: np.random.Generator, values: Array, layout: Layout, *, multiplicative: float | Array = 0.5
) -> Array:
    """Put standardised values on a level, either by adding it or as the exponent of a positive series.

    Exponents stay within 5 on either side: steps of a series that leaves its history behind are smaller.
    """
    n = len(values)
    values = np.where(layout.visible, values, 0.0)
    strength = np.minimum(log_uniform(random, 0.02, 0.9, n), 5 / np.maximum(np.abs(values).max(1, keepdims=True), 1))
    return np.where(chance(random, multiplicative, n), np.exp(strength * values), values + uniform(random, -1, 12, n))


def seasonality(random: np.random.Generator, layout: Layout) -> Array:
    """Draw a seasonal pattern of each series: mean 0 and standard deviation 1 over a season, [series, time].

    A series with a second season is a carrier of the first, whose size and level change from one to the next
    within an envelope of the second: days of a week that differ. Without a season the pattern is zero.
    """
    n, longest = len(layout), int(layout.season.max())
    profiles = profile(random, layout.season, longest)
    clock = layout.age + random.integers(0, 4096, (n, 1)) * np.maximum(layout.season, 1)[:, None]
    clock = clock + random.integers(0, 4096, (n, 1))
    pattern = np.take_along_axis(profiles, clock % layout.season[:, None], 1)
    rows = np.flatnonzero(layout.second > 0)
    if len(rows):
        ratio = (layout.second[rows] // layout.season[rows])[:, None]
        slots = int(ratio.max())
        is_weekend = np.arange(slots) >= ratio - 2  # the last two slots, such as a weekend
        variation = uniform(random, 0.05, 0.5, len(rows)) * random.standard_normal((len(rows), slots))
        size = np.clip(1 + variation - is_weekend * uniform(random, 0, 0.9, len(rows)), 0, None)
        level = uniform(random, 0, 0.6, len(rows)) * random.standard_normal((len(rows), slots))
        level = level - is_weekend * uniform(random, 0, 1.5, len(rows))
        slot = clock[rows] // layout.season[rows, None] % ratio
        pattern[rows] = pattern[rows] * np.take_along_axis(size, slot, 1) + np.take_along_axis(level, slot, 1)
    return pattern


def profile(random: np.random.Generator, season: Integers, longest: int) -> Array:
    """Draw one season of each series, [series, longest], of mean 0 and standard deviation 1 over `season` steps.

    Smooth (a few Fourier terms), free (a number per step), peaks (a few busy steps) or blocks (open and closed).
    """
    n, step = len(season), np.arange(longest)
    inside = step < season[:, None]
    order = np.arange(1, 7)
    usable = order <= np.minimum(random.integers(1, 7, n), np.maximum(season // 2, 1))[:, None]
    weight = usable * random.standard_normal((n, 6)) / order ** uniform(random, 0.3, 1.5, n)
    angle = 2 * np.pi * order[:, None] * (step / season[:, None])[:, None] + random.uniform(0, 2 * np.pi, (n, 6, 1))
    smooth = np.einsum("nk,nkt->nt", weight, np.cos(angle))
    free = random.standard_normal((n, longest))
    smoothed = (np.roll(free, 1, 1) + free + np.roll(free, -1, 1)) / 3
    free = np.where((season[:, None] >= 12) & chance(random, 0.5, n), smoothed, free)
    peaks = (random.random((n, longest)) < uniform(random, 0.02, 0.25, n)) * (0.5 + random.exponential(1, (n, longest)))
    peaks[:, 0] += 1
    opening = random.integers(0, np.maximum(season // 2, 1))[:, None]
    blocks = ((step >= opening) & (step < opening + np.maximum(season // 3, 1)[:, None])) + 0.1 * smooth
    kind = random.choice(4, (n, 1), p=[0.5, 0.3, 0.1, 0.1])
    values = np.choose(kind, [smooth, free, peaks, blocks])
    mean = values.mean(1, where=inside, keepdims=True)
    deviation = values.std(1, where=inside, keepdims=True)
    return np.where(inside & (season[:, None] > 1), (values - mean) / np.maximum(deviation, 1e-6), 0.0)


def swell(random: np.random.Generator, layout: Layout) -> Array:
    """Draw how the size of a seasonal pattern changes over time: constant for half of the series, [series, time]."""
    strength = uniform(random, 0.1, 0.8, len(layout)) * chance(random, 0.5, len(layout))
    return np.exp(np.clip(strength * walk(random, layout), -2, 2))


def autoregress(shocks: Array, weights: Array) -> Array:
    """Filter shocks, [series, time], by x_t = sum_k weights_k x_{t-k} + shock_t with weights [series, lags]."""
    n, lags = weights.shape
    out = np.zeros((lags + shocks.shape[1], n))
    out[lags:] = shocks.T
    columns = np.ascontiguousarray(weights.T)
    for step in range(lags, len(out)):
        for lag in range(lags):
            out[step] += columns[lag] * out[step - lag - 1]
    return np.ascontiguousarray(out[lags:].T)


def stationary_weights(random: np.random.Generator, n: int, *, strongest: float = 0.98) -> Array:
    """Draw the weights of stationary AR(2) processes, [series, 2], from partial autocorrelations.

    Barndorff-Nielsen and Schou 1973; the first is mostly positive, as in real series.
    """
    first_partial = random.beta(3, 1.5, n) * (2 * strongest) - strongest
    second_partial = random.uniform(-0.6, 0.5, n) * (random.random(n) < 0.5)
    return np.stack([first_partial * (1 - second_partial), second_partial], 1)
