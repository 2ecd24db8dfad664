"""The families of synthetic series: name, function, share, and the frequencies that suit each."""

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np

from forecast.synthetic.components import Array, Layout
from forecast.synthetic.families import calendar
from forecast.synthetic.families.arima import arima
from forecast.synthetic.families.autoregressive import autoregressive
from forecast.synthetic.families.counts import counts
from forecast.synthetic.families.growth import growth
from forecast.synthetic.families.kernels import kernels
from forecast.synthetic.families.pulses import pulses
from forecast.synthetic.families.smoothing import smoothing
from forecast.synthetic.families.trends import trends
from forecast.synthetic.families.walks import walks


class Family(NamedTuple):
    """A family of series."""

    draw: Callable[[np.random.Generator, Layout], Array]
    """Values [series, time] of a layout; only visible steps count."""
    share: float
    """Share of the stream."""
    seasons: tuple[int, ...] | None = None
    """Seasons that suit it; None: all."""
    low: float = 1.0
    """Weight of half-yearly to monthly series within the family."""
    yearly: float = 1.0
    """Weight of yearly series within the family."""
    counts: bool = False
    """Values are whole numbers from zero up, which stay so."""


FAMILIES: Final[dict[str, Family]] = {
    "walks": Family(walks, 0.12),
    "growth": Family(growth, 0.16, low=3.0, yearly=5.0),
    "trends": Family(trends, 0.11, low=1.5, yearly=3.0),
    "arima": Family(arima, 0.12, yearly=0.4),
    "smoothing": Family(smoothing, 0.13, yearly=0.7),
    "autoregressive": Family(autoregressive, 0.09, yearly=0.25),
    "kernels": Family(kernels, 0.11, yearly=0.4),
    "counts": Family(counts, 0.06, low=0.5, yearly=0.25, counts=True),
    "calendar": Family(calendar.calendar, 0.06, seasons=calendar.SEASONS),
    "pulses": Family(pulses, 0.04, low=0.2, yearly=0.1),
}
