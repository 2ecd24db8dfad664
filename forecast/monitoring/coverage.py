"""Coverage of the 80 % interval, and how far it may fall short by chance."""

from typing import Final, NamedTuple

import numpy as np
import polars as pl

from forecast.monitoring.labels import HISTORY, RECENT
from forecast.names import SERIES_ID

BAND: Final = 0.8
_COVERED: Final = "covered_80"
_SUMS: Final = pl.col(_COVERED, "n_steps").sum()
_CHANCE: Final = 0.01
"""Significance level: one false alarm in a hundred checks of calibrated intervals."""
_BLOCKS: Final = 3
"""Stretches of history needed to measure how far all series vary together."""


class Coverage(NamedTuple):
    """Coverage of the 80 % interval in the recent window."""

    value: float | None
    """Share of the observations inside the interval; None without such an interval or without observations."""
    chance: float | None
    """How far the coverage may fall below BAND by chance; None with fewer than two observed series."""

    @property
    def may_be_chance(self) -> bool:
        """Whether the shortfall below BAND is within what chance allows."""
        return self.value is not None and self.chance is not None and self.value + self.chance >= BAND


class CoverageSums:
    """Sums of the 80 % interval, a block of series at a time: of each series in the recent window, and by day."""

    def __init__(self) -> None:
        self._series: list[pl.DataFrame] = []
        self._days: list[pl.DataFrame] = []

    def add(self, days: pl.DataFrame) -> None:
        """Add the sums of a block by series, window, day and age."""
        if _COVERED in days.columns:
            recent = days.filter(window=RECENT)
            self._series.append(recent.group_by(SERIES_ID).agg(_SUMS).drop(SERIES_ID))
            self._days.append(days.group_by("window", "day").agg(_SUMS))

    def coverage(self) -> Coverage:
        """Return the coverage of the recent window.

        The chance margin is the larger of two. Over series: Student's t of the mean over series, since the steps of one
        series are correlated. Over time, all series together, since series share their dates: the spread between
        earlier stretches as long as the window; with too few of these, Student's t of the mean over the days of the
        window.
        """
        if not self._series:
            return Coverage(None, None)
        series = pl.concat(self._series)
        days = pl.concat(self._days).group_by("window", "day").agg(_SUMS)
        return _coverage(series, days)


def _coverage(series: pl.DataFrame, days: pl.DataFrame) -> Coverage:
    """Return the coverage from the sums of each series in the recent window, and of each day of both windows."""
    steps = int(series["n_steps"].sum())
    if not steps:
        return Coverage(None, None)
    value = float(series[_COVERED].sum() / steps)
    if series.height < 2:
        return Coverage(value, None)
    from scipy.special import stdtrit

    shares, groups, margins = _stretches(days), [series], []
    if len(shares) >= _BLOCKS:
        deviation = float(np.std(shares, ddof=1)) * np.sqrt(1 + 1 / len(shares))
        margins.append(float(-stdtrit(len(shares) - 1, _CHANCE) * deviation))
    else:
        groups.append(days.filter(window=RECENT))
    for sums in groups:
        covered, total = (sums[name].to_numpy().astype(np.float64) for name in (_COVERED, "n_steps"))
        count = len(total)
        if count > 1:
            spread = np.sqrt(((covered - value * total) ** 2).sum() * count / (count - 1)) / steps
            # Equal shares have no spread, yet are no proof of certainty.
            spread = max(spread, np.sqrt(BAND * (1 - BAND) / steps))
            margins.append(float(-stdtrit(count - 1, _CHANCE) * spread))
    return Coverage(value, max(margins))


def _stretches(days: pl.DataFrame) -> np.ndarray:
    """Return the coverage of stretches of the history that have as many days as the recent window, [n].

    Stretches with less than half as many steps as the recent window are omitted.
    """
    recent = days.filter(window=RECENT)
    length, steps = recent.height, recent["n_steps"].sum()
    history = days.filter(window=HISTORY).sort("day", descending=True)
    stretches = history.group_by(pl.int_range(pl.len()) // length, maintain_order=True).agg(_SUMS)
    stretches = stretches.filter(2 * pl.col("n_steps") >= steps)
    shares: np.ndarray = (stretches[_COVERED] / stretches["n_steps"]).to_numpy()
    return shares
