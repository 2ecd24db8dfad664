"""Measurement artefacts: outliers, limits, rounding, stuck sensors and missing values."""

import numpy as np

from forecast.synthetic.components import Array, Layout, Mask, log_uniform, moments, uniform


def spoil(
    random: np.random.Generator, values: Array, layout: Layout, counts: Mask, outliers: float
) -> tuple[Array, Mask]:
    """Return recorded values and a mask of observed ones, [series, time] both.

    Artefacts are independent of each other. Series of low frequency, which are sums over many records, have a third of
    them. Counts, [series], are never rounded, limited or given outliers. `outliers` from 0 to 1 scales how many
    series have these. Levels and units of artefacts come from the history, never from the horizon.
    """
    n = len(layout)
    rate = np.where(layout.season <= 12, 0.33, 1.0)[:, None]
    amounts = np.where(counts[:, None], 0.0, rate)
    mean, deviation = moments(values, layout)
    candidates = random.random((n, layout.n_steps)) < log_uniform(random, 0.002, 0.02, n)
    is_outlier = candidates & chance_of(random, 0.15 * outliers * amounts)
    size = deviation * (3 + random.exponential(3, values.shape)) * random.choice([-1.0, 1.0], values.shape)
    values = values + np.where(is_outlier, size, 0.0)
    limit = mean + deviation * uniform(random, 0.5, 2.0, n)
    values = np.where(chance_of(random, 0.04 * amounts), np.minimum(values, limit), values)
    limit = mean - deviation * uniform(random, 0.5, 2.0, n)
    values = np.where(chance_of(random, 0.04 * amounts), np.maximum(values, limit), values)
    unit = np.maximum(deviation * log_uniform(random, 0.02, 0.5, n), 1e-9)
    coarse = chance_of(random, 0.1 * amounts) & (np.abs(mean) < 1e6 * unit)
    values = np.where(coarse, np.rint(values / unit) * unit, values)
    values = hold(values, runs(random, layout) & chance_of(random, 0.04 * rate) & (layout.age > 0))
    observed = layout.visible & ~draw_missing(random, layout, rate)
    return values, observed


def runs(random: np.random.Generator, layout: Layout) -> Mask:
    """Draw runs of steps, [series, time]: they begin at random, and last 2 to 40 steps in the mean."""
    n, n_steps = len(layout), layout.n_steps
    begin = random.random((n, n_steps)) < log_uniform(random, 0.002, 0.02, n)
    length = random.exponential(1, (n, n_steps)) * log_uniform(random, 2, 40, n) + 1
    steps = np.arange(n_steps)
    inside: Mask = np.maximum.accumulate(np.where(begin, steps + length, 0), 1) > steps
    return inside


def hold(values: Array, mask: Mask) -> Array:
    """Repeat, in each run of steps in the mask, the last value before it, [series, time]."""
    latest = np.maximum.accumulate(np.where(mask, 0, np.arange(values.shape[1])), 1)
    return np.take_along_axis(values, latest, 1)


def draw_missing(random: np.random.Generator, layout: Layout, rate: Array) -> Mask:
    """Draw missing values, [series, time], single ones and runs; never the first, never half of a history."""
    n = len(layout)
    single = random.random((n, layout.n_steps)) < uniform(random, 0.01, 0.25, n)
    is_missing = (single & chance_of(random, 0.1 * rate)) | (runs(random, layout) & chance_of(random, 0.12 * rate))
    is_missing &= layout.age > 0
    past = is_missing[:, : layout.n_steps - layout.horizon].sum(1)
    is_missing[past > layout.history // 2] = False
    return is_missing


def chance_of(random: np.random.Generator, probability: Array) -> Mask:
    """Draw a yes or no per series, [series, 1], of a probability each."""
    return random.random(probability.shape) < probability
