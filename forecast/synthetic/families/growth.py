"""Growth: business and economic series of low frequency, a level with a persistent rate and little noise."""

import numpy as np

from forecast.synthetic.components import (
    Array,
    Layout,
    autoregress,
    chance,
    log_uniform,
    noise,
    seasonality,
    swell,
    uniform,
)


def growth(random: np.random.Generator, layout: Layout) -> Array:
    """Draw levels whose change from step to step reverts to a drift, [series, time].

    c_t = drift + p (c_{t-1} - drift) + e_t, level_t = level_{t-1} + c_t: an ARIMA(1, 1, 0) with drift, of the
    logarithm for two of three series. Drift is .05 to 5 standard deviations of a step's error, up for two of three.
    It may change up to twice: bend, halt or turn, the last time near the end. Noise on top of the level, where there
    is any, is a fraction of a step, and seasons, where there are any, are of the size of some steps.
    """
    n, n_steps = len(layout), layout.n_steps
    persistence = uniform(random, 0.2, 0.95, n) * chance(random, 0.7, n)
    drift = np.exp(random.normal(np.log(0.7), 1.0, (n, 1))).clip(0.05, 5) * np.where(chance(random, 0.67, n), 1, -1)
    drift = np.repeat(drift * chance(random, 0.9, n), n_steps, 1)
    for latest in (0.9, 1.3):
        bend = (layout.position > uniform(random, 0.1, latest, n)) & chance(random, 0.3, n)
        drift = np.where(bend, drift * uniform(random, -0.7, 1.8, n), drift)
    fading = chance(random, 0.15, n)  # growth that slows down for good
    drift = np.where(fading, drift * np.exp(-np.clip(layout.position, 0, None) * uniform(random, 0.5, 4, n)), drift)
    shocks = noise(random, n, n_steps, heavy=0.3) * np.sqrt(1 - persistence**2)
    wander = autoregress(shocks, np.hstack([persistence, np.zeros((n, 1))]))
    level = np.cumsum(np.where(layout.visible, drift + wander, 0.0), 1)
    error = noise(random, n, n_steps) * log_uniform(random, 0.05, 1.2, n) * chance(random, 0.45, n)
    amplitude = log_uniform(random, 0.3, 15, n) * chance(random, 0.9, n)
    level = level + error + amplitude * swell(random, layout) * seasonality(random, layout)
    # A step is .4 to 12 % of the level a year; what grows 400-fold over all its years is too much.
    step = log_uniform(random, 0.004, 0.12, n) / np.sqrt(layout.season[:, None])
    reach = np.abs(np.where(layout.visible, level, 0.0)).max(1, keepdims=True)
    exponent = level * np.minimum(step, 6 / np.maximum(reach, 1e-9))
    linear = level + uniform(random, -1, 3, n) * np.maximum(np.sqrt(layout.history[:, None]), 6)
    return np.where(chance(random, 0.67, n), np.exp(exponent), linear)
