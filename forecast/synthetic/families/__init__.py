"""The families of synthetic series: name, function, share, and the frequencies that suit each."""

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np

from forecast.synthetic.components import Array, Layout
from forecast.synthetic.families.walks import walks


class Family(NamedTuple):
    """A family of series."""

    draw: Callable[[np.random.Generator, Layout], Array]
    """Values [series, time] of a layout; only visible steps count."""
    share: float
    """Share of the stream."""
    seasons: tuple[int, ...] | None = None
    """Seasons that suit it; None: all."""
    counts: bool = False
    """Values are whole numbers from zero up, which stay so."""


FAMILIES: Final[dict[str, Family]] = {
    "walks": Family(walks, 0.14),
}
