"""Gaussian processes of random kernels, drawn through the fast Fourier transform."""

import numpy as np

from forecast.synthetic.components import Array, Integers, Layout, chance, express, log_uniform, standardise, uniform


def kernels(random: np.random.Generator, layout: Layout) -> Array:
    """Draw sums and products of two to four Gaussian processes, [series, time], some with a straight line.

    The kernels are smooth (squared exponential), rough (Matern), periodic at the season, periodic at the second
    season, or white (KernelSynth: Ansari et al. 2024, "Chronos", section 4.2). Instead of a factorised covariance
    matrix, white noise is weighed in the frequency domain by the root of the kernel's spectral density.
    """
    n = len(layout)
    total = uniform(random, -2, 2, n) * chance(random, 0.4, n) * layout.position
    for number in range(4):
        process = standardise(draw_process(random, layout), layout)
        product = chance(random, 0.2, n) & (number > 0)
        use = chance(random, 1.0 if number < 2 else 0.4, n)
        weight = log_uniform(random, 0.2, 1.5, n)
        total = np.where(use, np.where(product, total * (1 + 0.5 * process), total + weight * process), total)
    return express(random, standardise(total, layout), layout)


def draw_process(random: np.random.Generator, layout: Layout) -> Array:
    """Draw a stationary Gaussian process of a random kernel for each series, [series, time]."""
    n, length = len(layout), 2 * layout.n_steps  # twice: what the transform joins end to start is out of sight
    frequency = np.arange(length // 2 + 1) / length
    scale = np.maximum(layout.history[:, None] * log_uniform(random, 0.02, 1.0, n), 1.5)
    smooth = np.exp(-0.5 * (2 * np.pi * frequency * scale) ** 2)
    rough = (1 + (2 * np.pi * frequency * scale) ** 2) ** -uniform(random, 0.75, 2.0, n)
    density = np.where(chance(random, 0.5, n), smooth, rough)
    periodic = random.choice(4, n, p=[0.35, 0.35, 0.2, 0.1])
    for kind, season in ((1, layout.season), (2, layout.second)):
        rows = np.flatnonzero((periodic == kind) & (season > 1))
        density[rows] = comb_density(random, frequency, season[rows], layout.history[rows])
    density[periodic == 3] = 1.0
    waves = random.standard_normal((n, len(frequency), 2)) @ np.array([1, 1j])
    process: Array = np.fft.irfft(waves * np.sqrt(density), length, axis=1)[:, : layout.n_steps]
    return process


def comb_density(random: np.random.Generator, frequency: Array, season: Integers, history: Integers) -> Array:
    """Draw spectral densities with peaks at the harmonics of a season, [series, frequencies].

    The narrower a peak, the longer the pattern stays the same: from half the history to eight of them.
    """
    n = len(season)
    harmonic = np.rint(frequency * season[:, None])
    distance = frequency - harmonic / season[:, None]
    width = 1 / (2 * np.pi * np.maximum(history[:, None] * log_uniform(random, 0.5, 8, n), season[:, None]))
    width = np.maximum(width, 0.35 * (frequency[1] - frequency[0]))
    inside = (harmonic >= 1) & (harmonic <= random.integers(1, 7, (n, 1)))
    decay = np.maximum(harmonic, 1) ** -uniform(random, 0.5, 3, n)
    density: Array = np.where(inside, decay, 0.0) * np.exp(-0.5 * (distance / width) ** 2)
    return density
