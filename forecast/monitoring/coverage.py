"""Coverage of the 80 % interval, and by how much it may fall short by chance."""

from typing import Final, NamedTuple

import numpy as np
import polars as pl

from forecast.monitoring.labels import HISTORY, RECENT
from forecast.names import SERIES_ID

BAND: Final = 0.8
_COVERED: Final = "covered_80"
_CHANCE: Final = 0.01
"""One of a hundred looks at intervals that hold what they should."""
_BLOCKS: Final = 3
"""Stretches of the history that show how much all series vary together."""


class Coverage(NamedTuple):
    """Of the recent window."""

    value: float | None
    """Share of the observations inside the interval; None without such an interval, or observations."""
    chance: float | None
    """By how much it may be below BAND by chance; None if one series, or none, is observed."""

    @property
    def may_be_chance(self) -> bool:
        """Whether it is no farther below BAND than it may be by chance."""
        return self.value is not None and self.chance is not None and self.value + self.chance >= BAND


def coverage_of(days: pl.DataFrame) -> Coverage:
    """Return the coverage of the recent window, from sums by series, window, day and age.

    Chance is the larger one of two margins. Over series: Student's t of the mean over series, for the steps of one are
    alike. Over time, all series together, for series share their dates: how far earlier stretches as long as the
    window lie apart; as long as there are few of these, Student's t of the mean over the days of the window.
    """
    if _COVERED not in days.columns:
        return Coverage(None, None)
    recent = days.filter(window=RECENT)
    series = recent.group_by(SERIES_ID).agg(pl.col(_COVERED, "n_steps").sum())
    steps = int(series["n_steps"].sum())
    if not steps:
        return Coverage(None, None)
    value = float(series[_COVERED].sum() / steps)
    if series.height < 2:
        return Coverage(value, None)
    from scipy.special import stdtrit

    shares, groups, margins = _stretches(days), [series], []
    if len(shares) >= _BLOCKS:
        apart = float(np.std(shares, ddof=1)) * np.sqrt(1 + 1 / len(shares))
        margins.append(float(-stdtrit(len(shares) - 1, _CHANCE) * apart))
    else:
        groups.append(recent.group_by("day").agg(pl.col(_COVERED, "n_steps").sum()))
    for sums in groups:
        covered, total = (sums[name].to_numpy().astype(np.float64) for name in (_COVERED, "n_steps"))
        count = len(total)
        if count > 1:
            spread = np.sqrt(((covered - value * total) ** 2).sum() * count / (count - 1)) / steps
            # Where all have the same share there is no spread, but no certainty either.
            spread = max(spread, np.sqrt(BAND * (1 - BAND) / steps))
            margins.append(float(-stdtrit(count - 1, _CHANCE) * spread))
    return Coverage(value, max(margins))


def _stretches(days: pl.DataFrame) -> np.ndarray:
    """Return the coverage of stretches of the history that have as many days as the recent window, [n].

    Those with less than half as many steps are left out.
    """
    sums = pl.col(_COVERED, "n_steps").sum()
    recent = days.filter(window=RECENT)
    length, steps = recent["day"].n_unique(), recent["n_steps"].sum()
    history = days.filter(window=HISTORY).group_by("day").agg(sums).sort("day", descending=True)
    stretches = history.group_by(pl.int_range(pl.len()) // length, maintain_order=True).agg(sums)
    stretches = stretches.filter(2 * pl.col("n_steps") >= steps)
    shares: np.ndarray = (stretches[_COVERED] / stretches["n_steps"]).to_numpy()
    return shares
