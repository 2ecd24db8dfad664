"""Trends by formula that bend, damp and grow within the last steps of a series."""

import numpy as np

from forecast.synthetic.components import (
    Array,
    Layout,
    autoregress,
    chance,
    express,
    log_uniform,
    noise,
    seasonality,
    standardise,
    swell,
    uniform,
)


def trends(random: np.random.Generator, layout: Layout) -> Array:
    """Draw a curve with autocorrelated noise and seasons, [series, time].

    The curve is piecewise linear, damped, exponential, logistic or a power of time. What bends it lies within a time
    that is counted from the end of the history, so that the bend can be seen, or is still to come.
    """
    n = len(layout)
    unit = np.maximum(layout.history[:, None] * log_uniform(random, 0.15, 1.2, n), 10)
    distance = (layout.age - layout.history[:, None]) / unit  # 0 at the end of the history
    slope = np.ones((n, 1))
    line = distance.copy()
    for _ in range(3):
        knot = uniform(random, -1.5, 0.4, n)
        change = random.standard_normal((n, 1)) * 1.5 * chance(random, 0.5, n)
        line = line + change * np.maximum(distance - knot, 0)
    bend = log_uniform(random, 0.3, 3, n)
    damped = -np.exp(-bend * np.clip(distance + uniform(random, 0, 1.5, n), -1.5, 20))
    tempo = unit / layout.history[:, None]  # What speeds up does so by what was seen: at most e^2.5 within the history.
    rising = np.exp(np.clip(np.minimum(bend, 2.5 * tempo) * distance, -20, 2.5))
    centre = uniform(random, -1.2, 0.3, n)
    steep = np.where(centre > -0.1, np.minimum(4 * bend, 5 * tempo), 4 * bend)
    logistic = 1 / (1 + np.exp(np.clip(-steep * (distance - centre), -50, 50)))
    power = np.maximum(layout.position, 0) ** uniform(random, 0.3, 2.5, n)
    kind = random.choice(5, (n, 1), p=[0.35, 0.2, 0.15, 0.15, 0.15])
    sign = np.where(chance(random, 0.67, n), 1, -1) * slope
    curve = sign * standardise(np.choose(kind, [line, damped, rising, logistic, power]), layout)
    low = layout.season[:, None] <= 12
    size = np.where(low, log_uniform(random, 0.003, 0.2, n), log_uniform(random, 0.02, 1, n))
    persistence = uniform(random, 0, 0.95, n) * chance(random, 0.6, n)
    shocks = noise(random, n, layout.n_steps) * np.sqrt(1 - persistence**2)
    error = autoregress(shocks, np.hstack([persistence, np.zeros((n, 1))]))
    amplitude = log_uniform(random, 0.03, 1.5, n) * chance(random, 0.75, n)
    values = curve + size * error + amplitude * swell(random, layout) * seasonality(random, layout)
    speeding = (kind == 2) | (kind == 3)  # An exponent of these would leave all of the past behind.
    return express(random, values, layout, multiplicative=np.where(speeding, 0.0, 0.5))
