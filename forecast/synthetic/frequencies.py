"""The frequencies of synthetic series: season lengths, typical history lengths and shares."""

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt


class Frequency(NamedTuple):
    """A sampling frequency, and its typical lengths of history."""

    season: int
    """Steps of the season; 1 without any."""
    second: int
    """Steps of a longer second season; 0 without any."""
    share: float
    """Weight in the stream, before the weights of a family."""
    shortest: int
    """Steps of the shortest history."""
    longest: int
    """Steps of the longest history."""


FREQUENCIES: Final = (
    Frequency(1, 0, 0.18, 8, 60),  # yearly
    Frequency(1, 0, 0.05, 20, 2000),  # of any frequency, without a season
    Frequency(2, 0, 0.01, 10, 60),  # half-yearly
    Frequency(4, 0, 0.15, 10, 120),  # quarterly
    Frequency(12, 0, 0.19, 14, 320),  # monthly
    Frequency(13, 0, 0.01, 16, 160),  # four-weekly
    Frequency(52, 0, 0.08, 20, 600),  # weekly
    Frequency(5, 0, 0.02, 20, 2000),  # working days
    Frequency(7, 0, 0.12, 14, 2000),  # daily
    Frequency(24, 0, 0.04, 48, 2000),  # hourly: a day
    Frequency(24, 168, 0.07, 168, 2000),  # hourly: a day and a week
    Frequency(48, 0, 0.02, 96, 2000),  # half-hourly
    Frequency(48, 336, 0.03, 336, 2000),
    Frequency(96, 0, 0.02, 192, 2000),  # quarter-hourly
    Frequency(60, 0, 0.005, 120, 2000),  # minutes of an hour
    Frequency(144, 0, 0.005, 288, 2000),  # ten minutes
)
"""Low frequencies have a large share: their series are short, and most business panels have such frequencies."""

_TABLE: Final = np.asarray(FREQUENCIES)
SEASON: Final = _TABLE[:, 0].astype(np.int64)
SECOND: Final = _TABLE[:, 1].astype(np.int64)
SHARE: Final = _TABLE[:, 2]
YEARLY: Final = np.arange(len(FREQUENCIES)) == 0
LOW: Final = (_TABLE[:, 4] <= 320) & ~YEARLY


def history_lengths(
    random: np.random.Generator, frequency: npt.NDArray[np.int64], context: int
) -> npt.NDArray[np.int64]:
    """Draw the history of each series, in steps: log-uniform between the bounds of the frequency, at most `context`."""
    shortest, longest = np.minimum(_TABLE[frequency, 3], context), _TABLE[frequency, 4]
    steps = np.exp(random.uniform(np.log(shortest), np.log(np.maximum(longest, shortest + 1))))
    lengths: npt.NDArray[np.int64] = np.minimum(steps.astype(np.int64), context)
    return lengths
