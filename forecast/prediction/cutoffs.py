"""The cutoff of a forecast, and the windows that end there."""

import numpy as np

from forecast.data.panel import Panel
from forecast.data.windows import WindowIndex, windows_at
from forecast.errors import DataError


def check_cutoff(panel: Panel, cutoff: int | None, key: str = "score.cutoff") -> int:
    """Return the grid index of a cutoff, the latest step of the panel when None; the setting is at `key`.

    Raises DataError if the panel ends before it, or begins after it.
    """
    final = panel.last_index
    cutoff = final if cutoff is None else cutoff
    if cutoff > final:
        there, asked = panel.grid.timestamps(np.array([final, cutoff])).to_list()
        raise DataError(
            f"the panel ends at {there}, before the cutoff {asked}; wait for the data, or set an earlier {key}"
        )
    if cutoff < panel.start.min():
        asked = panel.grid.timestamps(np.array([cutoff]))[0]
        raise DataError(f"no series has begun by the cutoff {asked}; set a later {key}")
    return cutoff


def latest_windows(panel: Panel, cutoff: int | None) -> tuple[int, WindowIndex]:
    """Return grid index and windows of the cutoff, the latest step of the panel when None."""
    cutoff = check_cutoff(panel, cutoff)
    return cutoff, windows_at(panel, cutoff)
