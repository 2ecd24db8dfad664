"""Rejected rows with their reasons, counts of all rows, and the limits on rejects."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from forecast.config import DataConfig
from forecast.data.panel import IntArray
from forecast.data.time.grid import Grid
from forecast.errors import DataError
from forecast.names import REASON, SERIES_ID, TIMESTAMP, VALUE

NO_TARGET: Final = "no observed target"
LATE: Final = "beyond the end of the panel"
"""The reason for rows later than the step on which the series agree."""
DISTANT: Final = "date far from the rest of its series"
"""The reason for rows that a huge gap separates from the rest of their series, on either side."""

# Average number of steps per row above which a date or the frequency must be wrong.
_MAX_STEPS_PER_ROW: Final = 200
_MANY_STEPS: Final = 10_000_000

# Rejects of each reason that a message shows.
SHOWN: Final = 5


@dataclass(frozen=True)
class Counts:
    """Counts of what became of the rows: rows_in = rows_kept + rows_rejected + rows_future + rows_after_until."""

    rows_in: int = 0
    rows_kept: int = 0
    rows_rejected: int = 0
    """Bad rows, and all rows of series without an observed target."""
    rows_future: int = 0
    """Rows without a target after the last observed one of their series: read for known covariates only."""
    rows_after_until: int = 0
    steps_filled: int = 0
    """Steps of the panel without an observed target."""
    series_in: int = 0
    series_kept: int = 0
    series_rejected: int = 0
    known_rows_in: int = 0
    """Rows of the table at data.known_path: known_rows_in = known_rows_kept + known_rows_rejected +
    known_rows_unused."""
    known_rows_kept: int = 0
    known_rows_rejected: int = 0
    known_rows_unused: int = 0
    """Rows of series that are not in the panel."""
    lines_in: int = 0
    """Lines of JSON, a series each; one that can't be read is a row that is rejected."""
    lines_rejected: int = 0
    rows_masked: int = 0
    """Rows with a target where data.available is 0, which is not observed demand; they count as kept, too."""

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(**{field.name: getattr(self, field.name) + getattr(other, field.name) for field in fields(self)})

    def to_json(self) -> dict[str, int]:
        """Return the counts by name, as they are stored; `rows_masked` only where it is not 0."""
        return {name: value for name, value in asdict(self).items() if value or name != "rows_masked"}


class Rejects:
    """Collects the table of rejects."""

    def __init__(self, names: pl.Series, grid: Grid) -> None:
        self._names, self._grid = names, grid
        self._parts: list[pl.DataFrame] = []
        self.add("", series=np.empty(0, dtype=np.int64))  # Sets the columns of an empty table.

    def add(
        self,
        reason: str,
        *,
        series: IntArray,
        clock: pl.Series | None = None,
        value: npt.NDArray[np.floating] | None = None,
    ) -> None:
        """Add a reject for each entry of `series` (-1: no series_id); clock and value are null by default."""
        nulls = pl.repeat(None, len(series), eager=True)
        number = pl.Series(series)
        self._parts.append(
            pl.DataFrame(
                {
                    SERIES_ID: self._names.gather(number.set(number < 0, None)),
                    TIMESTAMP: self._grid.from_clock(nulls.cast(pl.Int64) if clock is None else clock),
                    REASON: pl.repeat(reason, len(series), dtype=pl.String, eager=True),
                    VALUE: (nulls if value is None else pl.Series(value).fill_nan(None)).cast(pl.Float64),
                }
            )
        )

    def include(self, other: "Rejects") -> None:
        """Add all rejects of another collection."""
        self._parts += other._parts

    def table(self) -> pl.DataFrame:
        """Return all rejects, in an order that does not depend on that of the table."""
        return pl.concat(self._parts).sort(SERIES_ID, TIMESTAMP, REASON, VALUE)


def check_rejects(rejects: pl.DataFrame, counts: Counts, data: DataConfig, grid: Grid) -> None:
    """Raise DataError if there are more rejects than allowed, or no series is left."""
    share = max(
        counts.rows_rejected / counts.rows_in,
        counts.known_rows_rejected / max(counts.known_rows_in, 1),
        counts.lines_rejected / max(counts.lines_in, 1),
    )
    if data.on_error == "fail" and (counts.rows_rejected or counts.known_rows_rejected):
        limit = "data.on_error=fail allows none; mend the table or set data.on_error=quarantine"
    elif share > data.max_reject_share:
        limit = f"more than data.max_reject_share={data.max_reject_share:g}; mend the table or raise it"
    elif not counts.series_kept:
        limit = "no series is left to forecast"
    else:
        return
    lines = [
        f"{counts.rows_rejected:,} of {counts.rows_in:,} rows ({share:.1%}) and "
        f"{counts.series_rejected:,} of {counts.series_in:,} series were rejected, {limit}:"
    ]
    if counts.known_rows_rejected:
        lines.append(f"  of data.known_path {counts.known_rows_rejected:,} of {counts.known_rows_in:,} rows")
    if counts.lines_rejected:
        lines.append(f"  of data.path {counts.lines_rejected:,} of {counts.lines_in:,} lines")
    for (reason,), part in rejects.group_by(REASON, maintain_order=True):
        lines.append(f"  {reason}: {part.height:,}, e.g. {', '.join(offenders(part.head(SHOWN)))}")
        if reason == "off-grid timestamp":
            grid_of = f"most rows are every {grid.frequency}"
            lines.append(f"    {grid_of}: in training, data.freq, data.weekmask and data.time_zone set the grid")
        elif reason == NO_TARGET and counts.rows_masked:
            lines.append(f"    data.available={data.available} is 0 in {counts.rows_masked:,} rows with a target")
        elif reason in (LATE, DISTANT):
            lines.append("    if these dates are right, set data.end_share=0")
    raise DataError("\n".join(lines))


def offenders(rejects: pl.DataFrame, time: Callable[[str], str] = str) -> Iterator[str]:
    """Yield a text for each reject: series, time (as `time` writes it) and value."""
    rows = rejects.select(SERIES_ID, _as_text(pl.col(TIMESTAMP)), VALUE)
    for series_id, timestamp, value in rows.iter_rows():
        name = "no series_id" if series_id is None else str(series_id)
        moment = "" if timestamp is None else f" at {time(timestamp)}"
        yield name + moment + ("" if value is None else f" ({value:g})")


def _as_text(timestamp: pl.Expr) -> pl.Expr:
    # By Polars: Python's datetime ends with the year 9999.
    return timestamp.dt.to_string("%Y-%m-%d %H:%M:%S")


def check_steps(steps: int, rows: int, grid: Grid, subject: str, first: int, last: int) -> None:
    """Raise DataError if the number of steps is so large for the number of rows that a date must be wrong."""
    if steps > max(_MANY_STEPS, _MAX_STEPS_PER_ROW * rows):
        start, end = grid.timestamps(np.array([first, last])).to_frame().select(_as_text(pl.all())).to_series()
        raise DataError(
            f"{rows:,} rows make {steps:,} steps of {grid.frequency}: {subject} runs from {start} to {end}; "
            "look for dates far off (1900, 9999), or set data.freq"
        )
