"""Counts and intermittent demand: whole numbers from zero up."""

import numpy as np

from forecast.synthetic.components import Array, Layout, chance, log_uniform, seasonality, standardise, uniform, walk


def counts(random: np.random.Generator, layout: Layout) -> Array:
    """Draw counts whose mean has a level, a trend and seasons, [series, time].

    Poisson; negative binomial, as a Poisson of a gamma (dispersion .1 to 3); or intermittent: zero but for some
    steps, whose sizes are 1 plus a negative binomial (Croston 1972 with Bernoulli arrivals). Some have spells of
    zeros, as items out of stock or season have, and some die out.
    """
    n, shape = len(layout), (len(layout), layout.n_steps)
    level = standardise(walk(random, layout), layout) * uniform(random, 0, 0.6, n)
    season = seasonality(random, layout) * uniform(random, 0, 1.0, n) * chance(random, 0.7, n)
    end = uniform(random, 0.5, 1.3, n)
    fade = np.clip(layout.position - end, 0, None) * 6 * chance(random, 0.08, n)
    centre = np.exp(np.clip(level + season - fade, -8, 3.5))
    mean = centre * log_uniform(random, 0.1, 80, n)
    dispersion = log_uniform(random, 0.1, 3, n)
    gamma = random.standard_gamma(1 / dispersion, shape) * dispersion
    regular = np.where(chance(random, 0.4, n), mean, mean * gamma)
    arrival = np.clip(centre * log_uniform(random, 0.04, 0.7, n), 0, 1)
    intermittent = chance(random, 0.4, n)
    size = log_uniform(random, 0.1, 30, n) * gamma
    demand = random.poisson(np.minimum(np.where(intermittent, size, regular), 1e6)).astype(np.float64)
    values = np.where(intermittent, (demand + 1) * (random.random(shape) < arrival), demand)
    # Spells: the sign of slow waves, out for at most a third of the time.
    wave = np.sin(2 * np.pi * (layout.position * log_uniform(random, 0.5, 6, n) + uniform(random, 0, 1, n)))
    is_zero = (wave > uniform(random, 0.5, 1.0, n)) & chance(random, 0.12, n)
    return np.where(is_zero, 0.0, values)
