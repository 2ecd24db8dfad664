"""How many horizons at the end of a panel are held out: one policy for training, fine-tuning and backtests.

    | o o o o o o o o o o o o o o | v v v | v v v | - - - | - - - |
      fitted on, 70 % or more       validation      holdout, for backtests

Where a typical series is too short for that, the holdout goes first, then windows of validation, then steps of the last
one.
"""

from typing import NamedTuple

import numpy as np

from forecast.config import AUTO, Windows
from forecast.data.panel import IntArray

# The most horizons that are held out for one purpose, unless a setting says more.
MOST = 4
# The share of a typical series that may be held out, in percent.
_SHARE = 30
_LEAST_OBSERVED = 2


class Holdout(NamedTuple):
    """What is held out at the end of a panel."""

    holdout_windows: int
    """Horizons that training never sees."""
    validation_windows: int
    """Horizons before them that choose between candidates."""
    validation_steps: int
    """Steps of a window of validation: the horizon, or fewer where no typical series is long enough."""


def holdout_of(lengths: IntArray, horizon: int, *, holdout: Windows = AUTO, validation: Windows = AUTO) -> Holdout:
    """Return what is held out of series of these `lengths`, [S], in steps up to the end of the panel.

    Numbers that are set stay. What is left open takes at most 30 % of a typical series together with the rest, four
    horizons each at most, and leaves one window of validation in any case.

    >>> holdout_of(np.array([8760]), 168)
    Holdout(holdout_windows=4, validation_windows=4, validation_steps=168)
    >>> holdout_of(np.array([54]), 6)
    Holdout(holdout_windows=1, validation_windows=1, validation_steps=6)
    >>> holdout_of(np.array([28]), 8)
    Holdout(holdout_windows=0, validation_windows=1, validation_steps=8)
    >>> holdout_of(np.array([10]), 8)
    Holdout(holdout_windows=0, validation_windows=1, validation_steps=3)
    """
    typical = typical_length(lengths)
    room = typical * _SHARE // 100 // horizon
    if isinstance(holdout, int):
        n_holdout = holdout
    else:
        n_holdout = min(MOST, max(0, room - validation if isinstance(validation, int) else room // 2))
    if isinstance(validation, int):
        return Holdout(n_holdout, validation, horizon)
    rest = typical - n_holdout * horizon
    if rest <= 2 * horizon:  # One window of validation, and one of history to fit a horizon on.
        return Holdout(n_holdout, 1, min(horizon, max(1, rest * _SHARE // 100)))
    return Holdout(n_holdout, min(MOST, max(1, room - n_holdout)), horizon)


def typical_length(lengths: IntArray) -> int:
    """Return the median length of the series with two steps or more; 0 if there is none."""
    usable = lengths[lengths >= _LEAST_OBSERVED]
    return int(np.median(usable)) if len(usable) else 0


def gate_of(lengths: IntArray, horizon: int, *, gate: Windows = AUTO, report: Windows = AUTO) -> tuple[int, int]:
    """Return how many windows of each series choose its changes, and how many tell what is won.

    `lengths`, [S], are the steps that fine-tuning may see. Two and one at least, four and two at most.

    >>> gate_of(np.array([8760 - 4 * 168]), 168), gate_of(np.array([48]), 6)
    ((4, 2), (2, 1))
    """
    room = typical_length(lengths) * _SHARE // 100 // horizon
    n_report = report if isinstance(report, int) else 2 if room >= MOST + 2 else 1
    n_gate = gate if isinstance(gate, int) else min(MOST, max(2, room - n_report))
    return n_gate, n_report
