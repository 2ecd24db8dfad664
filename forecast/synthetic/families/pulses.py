"""Pulses, saw teeth, stairs and bursts: what machines and meters give."""

import numpy as np

from forecast.synthetic.components import Array, Layout, autoregress, chance, express, log_uniform, noise, uniform, walk


def pulses(random: np.random.Generator, layout: Layout) -> Array:
    """Draw angular shapes, [series, time], of the season or of a random period where there is none.

    Pulses that are on for a share of the period, saw teeth, triangles, spikes that decay; stairs, that stay at a level
    for a random time; bursts at random times that decay (shot noise); and switches between two levels.
    """
    n, shape = len(layout), (len(layout), layout.n_steps)
    period = np.where(layout.season > 1, layout.season, random.integers(5, 40, n))[:, None]
    clock = (layout.age + random.integers(0, 4096, (n, 1))) % period
    phase = clock / period
    duty = np.maximum(uniform(random, 0.1, 0.6, n), 1 / period)
    on = (phase < duty).astype(np.float64)
    tooth = np.where(chance(random, 0.5, n), phase, 1 - phase)
    triangle = 1 - np.abs(2 * phase - 1)
    spike = np.exp(-clock / np.maximum(period * log_uniform(random, 0.03, 0.3, n), 0.5))
    change = random.random(shape) < 1 / log_uniform(random, 5, 60, n)
    latest = np.maximum.accumulate(np.where(change, np.arange(layout.n_steps), 0), 1)
    stairs = np.take_along_axis(random.standard_normal(shape), latest, 1)
    burst = autoregress(
        change * random.exponential(1, shape), np.hstack([uniform(random, 0.3, 0.97, n), np.zeros((n, 1))])
    )
    switch = np.cumsum(change, 1) % 2.0
    seasonal = (
        random.choice(4, (n, 1)),
        random.choice([0, 1, 2, 3, 4, 5, 6], (n, 1), p=[0.2, 0.2, 0.1, 0.15, 0.15, 0.1, 0.1]),
    )
    kind = np.where(chance(random, 0.4, n), *seasonal)
    form = np.choose(kind, [on, tooth, triangle, spike, stairs, burst, switch])
    size = np.exp(np.clip(walk(random, layout) * uniform(random, 0, 0.5, n), -2, 2))
    level = walk(random, layout) * log_uniform(random, 0.02, 1, n) * chance(random, 0.6, n)
    error = noise(random, n, layout.n_steps) * log_uniform(random, 0.002, 0.2, n) * chance(random, 0.8, n)
    return express(random, 2 * form * size + level + error, layout, multiplicative=0.3)
