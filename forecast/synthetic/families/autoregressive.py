"""Autoregressive processes: cycles, thresholds and mean reversion."""

import numpy as np

from forecast.synthetic.components import (
    Array,
    Layout,
    chance,
    express,
    log_uniform,
    noise,
    seasonality,
    standardise,
    swell,
)


def autoregressive(random: np.random.Generator, layout: Layout) -> Array:
    """Draw AR(2) cycles, Ornstein-Uhlenbeck and self-exciting threshold processes, [series, time].

    A cycle has roots r exp(+-i w): weights 2 r cos w and -r^2. An Ornstein-Uhlenbeck process at whole steps is an
    AR(1) of weight exp(-1 / tau). A threshold process changes weights and level where the last value is above a
    threshold (Tong 1983). Seasons come on top.
    """
    n, n_steps = len(layout), layout.n_steps
    weights = np.zeros((2, n, 2))
    for regime in weights:
        radius, period = random.uniform(0.7, 0.995, n), np.exp(random.uniform(np.log(3), np.log(120), n))
        regime[:] = np.stack([2 * radius * np.cos(2 * np.pi / period), -(radius**2)], 1)
        revert = random.random(n) < 0.55
        regime[revert, 0] = np.exp(-1 / np.exp(random.uniform(np.log(0.7), np.log(300), revert.sum())))
        regime[revert, 1] = 0
    threshold = chance(random, 0.3, n)[:, 0]
    weights[1, ~threshold] = weights[0, ~threshold]
    # Two regimes of complex roots may drive each other up: both are first order there.
    weights[:, threshold, 1] = 0
    weights[:, threshold, 0] = random.uniform(-0.5, 0.97, (2, int(threshold.sum())))
    offset = np.where(threshold, random.standard_normal((2, n)), 0.0)
    bound = random.standard_normal(n)
    shocks = noise(random, n, n_steps).T.copy()
    values = np.zeros((n_steps + 2, n))
    values[:2] = random.standard_normal((2, n))
    for step in range(n_steps):
        latest, previous = values[step + 1], values[step]
        above = latest > bound
        first_weight = np.where(above, weights[1, :, 0], weights[0, :, 0])
        second_weight = np.where(above, weights[1, :, 1], weights[0, :, 1])
        values[step + 2] = (
            first_weight * latest + second_weight * previous + np.where(above, offset[1], offset[0]) + shocks[step]
        )
    process = standardise(values[2:].T, layout)
    amplitude = log_uniform(random, 0.1, 3, n) * chance(random, 0.75, n)
    error = noise(random, n, n_steps) * log_uniform(random, 0.01, 0.5, n) * chance(random, 0.4, n)
    return express(random, process + amplitude * swell(random, layout) * seasonality(random, layout) + error, layout)
