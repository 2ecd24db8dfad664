"""Exponential smoothing: the state space models behind it, with drifting seasons and level shifts."""

import numpy as np

from forecast.synthetic.components import (
    Array,
    Layout,
    chance,
    express,
    log_uniform,
    noise,
    profile,
    standardise,
    uniform,
)


def smoothing(random: np.random.Generator, layout: Layout) -> Array:
    """Draw ETS processes, [series, time]: level, damped trend and season, which take a share of each error.

    y_t = l + d b + s_t + e_t; l += d b + alpha e_t; b = d b + beta e_t; s_t += gamma e_t
    (Hyndman, Koehler, Ord and Snyder 2008, chapter 2). Levels may jump; half of the series are multiplicative. A
    second season is a second set of states (Taylor 2003).
    """
    n, n_steps = len(layout), layout.n_steps
    low = layout.season <= 12
    alpha = random.beta(2, np.where(low, 1, 3)) * (random.random(n) < 0.95)
    beta = alpha * random.beta(1, 6, n) * (random.random(n) < 0.6)
    gamma = (1 - alpha) * random.beta(1, 8, n) * (random.random(n) < 0.7)
    damping = np.where(random.random(n) < 0.5, random.uniform(0.8, 0.995, n), 1.0)
    trend = random.standard_normal(n) * np.exp(random.uniform(np.log(0.03), np.log(1.5), n)) * (random.random(n) < 0.7)
    errors = np.where(layout.visible, noise(random, n, n_steps), 0.0)
    jumps = (random.random((n, n_steps)) < 0.008 * chance(random, 0.25, n)) * noise(random, n, n_steps) * 5
    amplitude = log_uniform(random, 0.3, 12, n)
    clocks, patterns = [], []
    for season in (layout.season, np.maximum(layout.second, 1)):
        clocks.append(np.ascontiguousarray(((layout.age + random.integers(0, 4096, (n, 1))) % season[:, None]).T))
        patterns.append(amplitude * profile(random, season, int(season.max())))
        amplitude = amplitude * uniform(random, 0.2, 0.8, n)
    values = np.empty((n_steps, n))
    rows, level, slope, begin = np.arange(n), np.zeros(n), np.zeros(n), (layout.age == 0).T.copy()
    seasonal = (layout.season > 1) * gamma, (layout.second > 1) * gamma * 0.5
    for step, (error, jump) in enumerate(zip(errors.T.copy(), jumps.T.copy(), strict=True)):
        slope = damping * np.where(begin[step], trend, slope)
        level = level + slope
        positions = clocks[0][step], clocks[1][step]
        values[step] = level + patterns[0][rows, positions[0]] + patterns[1][rows, positions[1]] + error
        for pattern, index, share in zip(patterns, positions, seasonal, strict=True):
            pattern[rows, index] += share * error
        level = level + alpha * error + jump
        slope = slope + beta * error
    return express(random, standardise(values.T, layout), layout)
