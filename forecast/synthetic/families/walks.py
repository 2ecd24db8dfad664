"""Integrated series: random walks, local levels and local trends."""

import numpy as np

from forecast.synthetic.components import (
    Array,
    Layout,
    chance,
    express,
    innovations,
    log_uniform,
    noise,
    seasonality,
    standardise,
    swell,
    walk,
)


def walks(random: np.random.Generator, layout: Layout) -> Array:
    """Draw structural models, [series, time]: a level that walks, with drift or a slope that walks too.

    y_t = level_t + season_t + e_t; level_t = level_{t-1} + slope_{t-1} + u_t; slope_t = slope_{t-1} + v_t
    (Harvey 1989, "Forecasting, Structural Time Series Models and the Kalman Filter", section 2.3). Some have rare
    large jumps, and some a volatility that walks, as prices do.
    """
    n, n_steps = len(layout), layout.n_steps
    volatility = np.exp(np.clip(uniform_or_none(random, layout) * walk(random, layout), -2, 2))
    steps = innovations(random, layout, burn=0) * volatility
    jump = (random.random((n, n_steps)) < 0.01 * chance(random, 0.2, n)) * noise(random, n, n_steps) * 6
    slope_steps = np.where(layout.visible, random.standard_normal((n, n_steps)), 0.0)
    slope = np.cumsum(slope_steps, 1) * log_uniform(random, 0.002, 0.3, n) * chance(random, 0.4, n)
    drift = random.standard_normal((n, 1)) * log_uniform(random, 0.02, 1.0, n) * chance(random, 0.6, n)
    level = standardise(np.cumsum(np.where(layout.visible, steps + jump + slope + drift, 0.0), 1), layout)
    amplitude = log_uniform(random, 0.03, 2, n) * chance(random, 0.7, n)
    error = noise(random, n, n_steps) * log_uniform(random, 0.005, 0.5, n) * chance(random, 0.6, n)
    error *= np.where(layout.season == 1, 0.3, 1.0)[:, None]  # Yearly sums over many records have little noise.
    return express(random, level + amplitude * swell(random, layout) * seasonality(random, layout) + error, layout)


def uniform_or_none(random: np.random.Generator, layout: Layout) -> Array:
    """Draw how much the volatility changes, [series, 1]: not at all for seven of ten series."""
    return random.uniform(0.3, 1.0, (len(layout), 1)) * chance(random, 0.3, len(layout))
