"""Seasonal ARIMA with up to two seasons."""

import numpy as np

from forecast.synthetic.components import (
    Array,
    Integers,
    Layout,
    autoregress,
    chance,
    express,
    log_uniform,
    noise,
    seasonality,
    standardise,
    stationary_weights,
    swell,
    uniform,
)


def arima(random: np.random.Generator, layout: Layout) -> Array:
    """Draw seasonal ARIMA processes, [series, time].

    (1 - a B - b B^2)(1 - A B^s)(1 - A' B^S)(1 - B)^d y = (1 + c B)(1 + C B^s) e, s and S the seasons, d 0 or 1
    (Box and Jenkins 1970). The seasonal weights are near 1, so patterns change slowly. Some series have a fixed
    pattern of changing size on top: a carrier times an envelope.
    """
    n, n_steps = len(layout), layout.n_steps
    shocks = noise(random, n, n_steps)
    moving = uniform(random, -0.8, 0.6, n) * chance(random, 0.6, n)
    shocks[:, 1:] += moving * shocks[:, :-1]
    values = autoregress(shocks, stationary_weights(random, n, strongest=0.95))
    seasonal_moving = -uniform(random, 0, 0.8, n) * chance(random, 0.5, n)
    for season in (layout.season, layout.second):
        weight = (1 - log_uniform(random, 0.002, 0.6, n)) * (season > 1)[:, None] * chance(random, 0.75, n)
        values = filter_seasons(values, season, weight, seasonal_moving)
    differences = np.where(layout.visible, values + 0.3 * random.standard_normal((n, 1)) * chance(random, 0.5, n), 0)
    integrated = standardise(np.cumsum(differences, 1), layout)
    level = np.where(chance(random, 0.55, n), integrated, standardise(values, layout))
    amplitude = log_uniform(random, 0.05, 1.5, n) * chance(random, 0.4, n)
    return express(random, level + amplitude * swell(random, layout) * seasonality(random, layout), layout)


def filter_seasons(shocks: Array, season: Integers, weight: Array, moving: Array) -> Array:
    """Filter by x_t = weight x_{t-s} + shock_t + moving shock_{t-s}, a season at a time; no season: unchanged.

    The first season is as wide as the process in the long run.
    """
    out = shocks.copy()
    for length in np.unique(season[season > 1]):
        rows = np.flatnonzero((season == length) & (weight[:, 0] > 0))
        pattern, factor = out[rows], weight[rows]
        pattern[:, length:] += moving[rows] * shocks[rows, :-length]
        pattern[:, :length] /= np.sqrt(1 - factor**2)
        for start in range(int(length), pattern.shape[1], int(length)):
            stop = min(start + int(length), pattern.shape[1])
            pattern[:, start:stop] += factor * pattern[:, start - length : stop - length]
        out[rows] = pattern
    return out
