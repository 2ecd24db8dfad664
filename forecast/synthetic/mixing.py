"""Mixtures of series: weighted means of two or three of the same seasons."""

import numpy as np

from forecast.synthetic.components import Array, Integers, Layout, Mask, moments, standardise


def mix(random: np.random.Generator, values: Array, layout: Layout, is_mixture: Mask, partners: Mask) -> Array:
    """Return the values with those of the series in `is_mixture` replaced by mixtures, [series, time].

    A mixture is a convex combination of standardised series, in the unit of its first, which weighs most; weights are
    Dirichlet(1.5) (TSMixup: Ansari et al. 2024, "Chronos", section 4.1). Lengths and seasons stay: partners have the
    same seasons, and at least as long a history. `partners` is a mask of the series that may be mixed in, [series].
    """
    rows = np.flatnonzero(is_mixture)
    weights = np.sort(random.dirichlet([1.5] * 3, len(rows)), axis=1)[:, ::-1]
    weights[:, 2] *= random.random(len(rows)) < 0.5
    weights /= weights.sum(1, keepdims=True)
    hosts = layout.select(rows)
    mean, deviation = moments(values[rows], hosts)
    total = weights[:, :1] * standardise(values[rows], hosts)
    for number in (1, 2):
        others = _choose(random, layout, rows, np.flatnonzero(partners))
        total = total + weights[:, number : number + 1] * standardise(values[others], hosts)
    out = values.copy()
    out[rows] = mean + np.where(deviation > 0, deviation, 1.0) * total
    return out


def _choose(random: np.random.Generator, layout: Layout, rows: Integers, partners: Integers) -> Integers:
    """Draw a partner for each of the rows; the row itself if there is none."""
    result = rows.copy()
    for position, row in enumerate(rows):
        suitable = partners[
            (layout.season[partners] == layout.season[row])
            & (layout.second[partners] == layout.second[row])
            & (layout.history[partners] >= layout.history[row])
        ]
        if len(suitable):
            result[position] = suitable[random.integers(len(suitable))]
    return result
