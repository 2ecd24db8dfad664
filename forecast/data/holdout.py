"""Number of horizons held out at the end of a panel: one policy for training, fine-tuning and backtests.

    | o o o o o o o o o o o o o o | v v v | v v v | - - - | - - - |
      fitted on, 70 % or more       validation      holdout, for backtests

If a typical series is too short for that, the holdout shrinks first, then the number of validation windows, then the
length of the last one.
"""

from typing import NamedTuple

import numpy as np

from forecast.config import AUTO, Windows
from forecast.data.panel import IntArray

# Maximum number of horizons held out for one purpose, unless a setting is larger.
MAX_WINDOWS = 4
# The share of a typical series that may be held out, in percent.
_SHARE = 30
# Gate windows of a series that is long in comparison with the horizon: the maximum, and their share in percent.
_MAX_GATE_WINDOWS, _GATE_SHARE = 14, 5
_LEAST_OBSERVED = 2


class Holdout(NamedTuple):
    """Horizons held out at the end of a panel."""

    holdout_windows: int
    """Horizons that training never sees."""
    validation_windows: int
    """Horizons before the holdout, on which candidates are compared."""
    validation_steps: int
    """Steps of a validation window: the horizon, or fewer if a typical series is too short."""


def plan_holdout(lengths: IntArray, horizon: int, *, holdout: Windows = AUTO, validation: Windows = AUTO) -> Holdout:
    """Return the holdout of series of these `lengths`, [S], in steps up to the end of the panel.

    Given numbers are kept. Automatic ones bring the total to at most 30 % of a typical series, are at most four
    horizons each, and leave at least one validation window.

    >>> plan_holdout(np.array([8760]), 168)
    Holdout(holdout_windows=4, validation_windows=4, validation_steps=168)
    >>> plan_holdout(np.array([54]), 6)
    Holdout(holdout_windows=1, validation_windows=1, validation_steps=6)
    >>> plan_holdout(np.array([28]), 8)
    Holdout(holdout_windows=0, validation_windows=1, validation_steps=8)
    >>> plan_holdout(np.array([10]), 8)
    Holdout(holdout_windows=0, validation_windows=1, validation_steps=3)
    """
    typical = typical_length(lengths)
    room = typical * _SHARE // 100 // horizon
    if isinstance(holdout, int):
        n_holdout = holdout
    else:
        n_holdout = min(MAX_WINDOWS, max(0, room - validation if isinstance(validation, int) else room // 2))
    if isinstance(validation, int):
        return Holdout(n_holdout, validation, horizon)
    remaining = typical - n_holdout * horizon
    if remaining <= 2 * horizon:  # One validation window, and one horizon of history to fit on.
        return Holdout(n_holdout, 1, min(horizon, max(1, remaining * _SHARE // 100)))
    return Holdout(n_holdout, min(MAX_WINDOWS, max(1, room - n_holdout)), horizon)


def typical_length(lengths: IntArray) -> int:
    """Return the median length of the series with two steps or more; 0 if there is none."""
    usable = lengths[lengths >= _LEAST_OBSERVED]
    return int(np.median(usable)) if len(usable) else 0


def plan_gate(lengths: IntArray, horizon: int, *, gate: Windows = AUTO, report: Windows = AUTO) -> tuple[int, int]:
    """Return the number of windows per series that select its fine-tuning, and the number that measure the gain.

    `lengths`, [S], are the steps that fine-tuning may see. Automatic numbers are two to four, or up to 14 where these
    are at most 5 % of a typical series, and one or two.

    >>> plan_gate(np.array([8760 - 4 * 168]), 168), plan_gate(np.array([48]), 6), plan_gate(np.array([8760]), 24)
    ((4, 2), (2, 1), (14, 2))
    """
    typical = typical_length(lengths)
    room = typical * _SHARE // 100 // horizon
    most = min(_MAX_GATE_WINDOWS, max(MAX_WINDOWS, typical * _GATE_SHARE // 100 // horizon))
    n_report = report if isinstance(report, int) else 2 if room >= MAX_WINDOWS + 2 else 1
    n_gate = gate if isinstance(gate, int) else min(most, max(2, room - n_report))
    return n_gate, n_report
