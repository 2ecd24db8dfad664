"""The age of a series: steps from its last observation to a cutoff. A series older than score.max_age has ended."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from forecast.config import AUTO
from forecast.data.availability import last_reported
from forecast.data.panel import IntArray, Panel
from forecast.data.time.context import default_context
from forecast.data.time.frequency import clock
from forecast.data.time.grid import Grid
from forecast.data.windows import WindowIndex
from forecast.errors import listing
from forecast.names import SERIES_ID

ENDED: Final = "ended"
"""The reason for rejecting a series whose last observation is too old."""

MaxAge = int | str | None
"""Steps, a duration such as 90d, auto for the context of the model, or None for any age, as in `score.max_age`."""


def age_limit(max_age: MaxAge, context_length: int, grid: Grid, cutoff: int) -> int | None:
    """Return the greatest age, in steps, at which a series is forecast from grid index `cutoff`; None for any age.

    A duration counts on the clock of the panel: a step is within it if its timestamp is.
    """
    if max_age is None or isinstance(max_age, int):
        return max_age
    if max_age == AUTO:
        return context_length
    moment = grid.timestamps(np.array([cutoff])).dt.replace_time_zone(None).dt.offset_by(f"-{max_age}")
    earlier = clock(moment, grid.frequency, grid.time_zone)[0]
    if earlier is None:  # Skipped by the clock, which shows an hour more.
        earlier = clock(moment.dt.offset_by("1h"), grid.frequency, grid.time_zone)[0]
    first_index = int(grid.floor_of(np.array([earlier]))[0])
    if int(grid.clock(np.array([first_index]))[0]) < earlier:
        first_index += 1
    return cutoff - first_index


def ages(panel: Panel, windows: WindowIndex) -> IntArray:
    """Return the steps from the last observation of each window to its cutoff, [n]; -1 where there is none.

    Steps where nothing is available count like observations: a series that is out of stock has not ended.
    """
    begin = panel.offsets[windows.series]
    last_step = np.minimum(windows.cutoff, panel.lengths[windows.series] - 1)
    doubtful = np.isnan(panel.target[begin + last_step])
    if len(panel.available):
        doubtful |= last_step < windows.cutoff
    for row in np.flatnonzero(doubtful).tolist():
        last = last_reported(panel, int(windows.series[row]), int(windows.cutoff[row]))
        last_step[row] = windows.cutoff[row] + 1 if last is None else last
    result: IntArray = windows.cutoff - last_step
    return result


def have_ended(panel: Panel, windows: WindowIndex, limit: int | None) -> npt.NDArray[np.bool_]:
    """Return a mask of windows whose last observation is more than `limit` steps before the cutoff, [n]."""
    if limit is None:
        return np.zeros(len(windows), dtype=np.bool_)
    result: npt.NDArray[np.bool_] = ages(panel, windows) > limit
    return result


@dataclass(frozen=True)
class EndedSeries:
    """The series of a panel that have ended."""

    limit: int | None
    """The greatest age, in steps, of a series that has not ended; None for any age."""
    series: pl.DataFrame
    """series_id, last (the timestamp of the last observation) and age in steps, the latest first."""
    n_series: int
    """Number of series in the panel."""

    def __str__(self) -> str:
        """Return their number and examples as text."""
        if self.limit is None or self.series.is_empty():
            return "none"
        return (
            f"{self.series.height:,} of {self.n_series:,}, without a value in the last {self.limit:,} steps: "
            f"{listing(self.series[SERIES_ID])}"
        )


def ended_series(panel: Panel, season_length: int, max_age: MaxAge = AUTO) -> EndedSeries:
    """Return the series that have ended by the last step of a panel; auto: as for a model with the default context."""
    end, lengths = panel.last_index, panel.lengths
    typical = float(np.median(lengths))
    context = default_context(panel.grid.frequency, season_length, 1, typical, typical) if max_age == AUTO else 0
    limit = age_limit(max_age, context, panel.grid, end)
    last = panel.start + lengths - 1  # The last step of a series is observed, or out of stock.
    ended = np.flatnonzero(end - last > limit) if limit is not None else np.zeros(0, np.int64)
    series = pl.DataFrame(
        {
            SERIES_ID: pl.Series(panel.series_id[ended].tolist(), dtype=pl.String),
            "last": panel.grid.timestamps(last[ended]),
            "age": end - last[ended],
        }
    )
    return EndedSeries(limit, series.sort("age", SERIES_ID), panel.n_series)
