"""The panel: many series in one flat buffer, with offsets."""

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from forecast.frequency import Grid
from forecast.names import SERIES_ID, TARGET, TIMESTAMP

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Panel:
    """Series of any length, end to end. S series, N steps in all; nothing is padded.

    Step `p` of series `s` is entry `offsets[s] + p` of the flat buffers and has grid index `start[s] + p`.
    A series runs from its first to its last observed target.
    """

    grid: Grid
    series_id: npt.NDArray[np.str_]
    """[S], sorted."""
    offsets: IntArray
    """[S + 1]; series `s` is `offsets[s]:offsets[s + 1]`."""
    start: IntArray
    """[S], grid index of the first step."""
    target: FloatArray
    """[N], NaN where nothing was observed."""
    past: FloatArray
    """[past covariates, N], NaN where missing."""
    known: FloatArray
    """[known covariates, N + S * horizon], NaN where missing: each series has `horizon` more steps than in `target`."""
    calendar: FloatArray
    """[calendar features, T], one column per grid index from `calendar_start`; shared by all series."""
    calendar_start: int
    clock_shift: IntArray
    """[T], like `calendar`: by how many steps local clocks are ahead of the first step's. All 0 but for steps below a
    day in a time zone whose clocks change."""
    horizon: int
    """Steps after the end of a series for which known covariates and calendar are held."""
    static_categories: IntArray
    """[S, categorical static covariates], 0 for a value that training did not see."""
    static_numbers: FloatArray
    """[S, numeric static covariates], NaN where missing."""

    @property
    def n_series(self) -> int:
        """Number of series."""
        return len(self.series_id)

    @property
    def lengths(self) -> IntArray:
        """[S], steps per series."""
        return np.diff(self.offsets)

    def clock_shift_at(self, index: IntArray) -> IntArray:
        """Return the clock shift at grid indices; those outside the panel get the nearest one inside."""
        return self.clock_shift[np.clip(index - self.calendar_start, 0, len(self.clock_shift) - 1)]

    def frame(self, series: IntArray | None = None) -> pl.DataFrame:
        """Return series_id, timestamp and target (null: a gap) of some series, or of all, by series and time."""
        rows = np.arange(self.n_series) if series is None else series
        steps = self.lengths[rows]
        each = np.repeat(np.arange(len(rows)), steps)
        step = np.arange(len(each)) - np.repeat(np.cumsum(steps) - steps, steps)
        return pl.DataFrame(
            {
                SERIES_ID: pl.Series(self.series_id[rows].tolist(), dtype=pl.String).gather(each),
                TIMESTAMP: self.grid.timestamps(self.start[rows][each] + step),
                TARGET: pl.Series(self.target[self.offsets[rows][each] + step]).fill_nan(None),
            }
        )

    @property
    def last_index(self) -> int:
        """Grid index of the latest step of any series."""
        return int((self.start + self.lengths).max()) - 1

    def digest(self) -> str:
        """Return a hash of the content: the same for any order of rows or chunking of the same data."""
        hasher = hashlib.sha256(str(self.grid).encode())
        hasher.update("\0".join(self.series_id.tolist()).encode())
        for values in (
            self.offsets,
            self.start,
            self.target,
            self.past,
            self.known,
            self.static_categories,
            self.static_numbers,
        ):
            hasher.update(np.ascontiguousarray(values).tobytes())
        return hasher.hexdigest()
