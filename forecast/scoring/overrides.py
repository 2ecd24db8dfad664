"""Overrides: values that people set in place of those of the model, applied to its forecasts.

A table has a row for each cell: `series_id`, `timestamp`, either `value` or `factor`, `author`, and, if wanted, `note`
and `valid_until`. A row that can't be applied is a reject with its reason, or counted; the model's value stays.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import polars as pl

from forecast.data.ingest.timestamps import parse_timestamps
from forecast.data.panel import Panel
from forecast.data.sources import tables
from forecast.data.sources.frames import collect, to_lazy
from forecast.data.time.frequency import clock
from forecast.data.time.grid import Grid
from forecast.errors import DataError, listing
from forecast.names import (
    MEAN,
    MODEL_MEAN,
    OVERRIDE_AUTHOR,
    OVERRIDE_NOTE,
    REASON,
    SERIES_ID,
    SOURCE,
    SOURCE_OVERRIDE,
    STEP,
    TIMESTAMP,
    VALUE,
)
from forecast.scoring.parts import clip_rows, digest_of

_FACTOR: Final = "factor"
_AUTHOR: Final = "author"
_NOTE: Final = "note"
_VALID_UNTIL: Final = "valid_until"
_COLUMNS: Final = (SERIES_ID, TIMESTAMP, VALUE, _FACTOR, _AUTHOR, _NOTE, _VALID_UNTIL)
_INDEX: Final = "index"
_EXPIRES: Final = "expires"
_CELL: Final = [SERIES_ID, _INDEX]


@dataclass(frozen=True)
class CutoffOverrides:
    """The overrides of one cutoff."""

    rows: pl.DataFrame
    """Those to apply: series_id, step, value, factor, author, note; sorted."""
    rejects: pl.DataFrame
    """Rows that can't be applied: series_id, timestamp, reason, value."""
    n_later: int
    """Rows for timestamps beyond the horizon."""
    n_expired: int
    """Rows whose valid_until is before the cutoff."""

    @property
    def digest(self) -> str | None:
        """A digest of the overrides to apply; None without any."""
        return digest_of(self.rows.rows()) if self.rows.height else None

    def counts(self, applied: int) -> dict[str, Any]:
        """Return the counts of all rows of the table, of which `applied` are in the forecasts."""
        return {
            "rows": self.rows.height + self.rejects.height + self.n_later + self.n_expired,
            "applied": applied,
            "without_forecast": self.rows.height - applied,
            "later": self.n_later,
            "expired": self.n_expired,
            "rejected": dict(sorted(Counter(self.rejects[REASON]).items())),
        }

    def apply(
        self, frame: pl.DataFrame, columns: Sequence[str], minimum: float | None = None, maximum: float | None = None
    ) -> tuple[pl.DataFrame, int, dict[str, int]]:
        """Return forecasts with these overrides, the number of rows they change, and of values clipped to each bound.

        `columns` are the mean, the quantiles and samples. A factor multiplies all of them. A value replaces the mean,
        and all others move by the same amount; where that would make some of a forecast that is not negative negative,
        they are multiplied by value / mean instead. The mean of the model is kept in `model_mean`.
        """
        if self.rows.is_empty():
            return frame, 0, {}
        joined = frame.join(self.rows, on=[SERIES_ID, STEP], how="left", maintain_order="left")
        value, factor, mean = pl.col(VALUE), pl.col(_FACTOR), pl.col(MEAN)
        low, shift = pl.min_horizontal(columns), value - mean
        shrinks = (low >= 0) & (low + shift < 0) & (value >= 0)
        changed = value.is_not_null() | factor.is_not_null()
        moved = [
            pl.when(factor.is_not_null())
            .then(pl.col(name) * factor)
            .when(shrinks)
            .then(pl.col(name) * (value / mean))
            .when(value.is_not_null())
            .then(value if name == MEAN else pl.col(name) + shift)
            .otherwise(name)
            .alias(name)
            for name in columns
        ]
        source = pl.when(changed).then(pl.lit(SOURCE_OVERRIDE)).otherwise(SOURCE).alias(SOURCE)
        kept = pl.when(changed).then(MEAN).alias(MODEL_MEAN)
        author, note = pl.col(_AUTHOR).alias(OVERRIDE_AUTHOR), pl.col(_NOTE).alias(OVERRIDE_NOTE)
        n_changed = int(joined.select(changed.sum()).item())
        result = joined.with_columns(*moved, source, kept, author, note)
        # The product of a ratio may miss the value by a rounding error.
        result = result.with_columns(pl.coalesce(VALUE, MEAN).alias(MEAN)).drop(VALUE, _FACTOR, _AUTHOR, _NOTE)
        clipped, bounded = clip_rows(result, list(columns), minimum, maximum)
        return clipped, n_changed, bounded


@dataclass(frozen=True)
class Overrides:
    """A table of overrides, with the position of each row on the grid of a panel."""

    rows: pl.DataFrame
    """series_id, timestamp (of the panel; null if invalid), index, value, factor, author, note, expires (the last step
    at or before valid_until) and reason (null if valid)."""

    def at(self, cutoff: int, horizon: int) -> CutoffOverrides:
        """Return the overrides of a cutoff, a grid index."""
        valid = pl.col(REASON).is_null()
        expired = valid & (pl.col(_EXPIRES) < cutoff).fill_null(value=False)
        rest = valid & ~expired
        repeated = rest & (rest.sum().over(_CELL) > 1)
        reason = (
            pl.when(expired)
            .then(None)
            .when(rest & (pl.col(_INDEX) <= cutoff))
            .then(pl.lit("override: not after the cutoff"))
            .when(repeated)
            .then(pl.lit("override: several of one cell"))
            .otherwise(REASON)
        )
        rows = self.rows.with_columns(reason.alias(REASON), expired.alias("expired"), step=pl.col(_INDEX) - cutoff)
        usable = rows.filter(pl.col(REASON).is_null() & ~pl.col("expired"))
        active = usable.filter(pl.col("step") <= horizon).with_columns(pl.col("step").cast(pl.Int32).alias(STEP))
        rejects = rows.filter(pl.col(REASON).is_not_null())
        return CutoffOverrides(
            active.select(SERIES_ID, STEP, VALUE, _FACTOR, _AUTHOR, _NOTE).sort(SERIES_ID, STEP),
            rejects.select(SERIES_ID, TIMESTAMP, REASON, pl.coalesce(VALUE, _FACTOR).alias(VALUE)),
            usable.height - active.height,
            int(rows["expired"].sum()),
        )


def read_overrides(path: str, panel: Panel, minimum: float | None = None, maximum: float | None = None) -> Overrides:
    """Return the overrides in a table at `path`. Raises DataError for a table that can't be read or lacks columns."""
    frame = tables.scan(path, (SERIES_ID, _AUTHOR, _NOTE), "score.overrides", columns=_COLUMNS)
    return overrides_of(frame, panel, minimum, maximum, f"score.overrides={path}")


def overrides_of(
    table: Any, panel: Panel, minimum: float | None = None, maximum: float | None = None, label: str = "overrides"
) -> Overrides:
    """Return the overrides in a Polars, pandas or Arrow table; `minimum` and `maximum` are the bounds of values.

    Raises DataError if columns are missing or can't be read.
    """
    frame, grid = _frame(table, label), panel.grid
    value, factor = (frame[name].cast(pl.Float64, strict=False) for name in (VALUE, _FACTOR))
    moment, end = (_moments(frame[name], label) for name in (TIMESTAMP, _VALID_UNTIL))
    index, expiry = grid.index(moment), clock(end, grid.frequency, grid.time_zone)
    author = frame[_AUTHOR].cast(pl.String).str.strip_chars()
    faults = {
        "series not in the panel": ~frame[SERIES_ID].is_in(panel.series_id.tolist()).fill_null(value=False),
        "no timestamp": moment.is_null(),
        "not at a step of the panel": index.is_null(),
        "not a number": _unread(frame[VALUE], value) | _unread(frame[_FACTOR], factor),
        "both value and factor": value.is_not_null() & factor.is_not_null(),
        "neither value nor factor": value.is_null() & factor.is_null(),
        "a negative factor": (factor < 0).fill_null(value=False),
        "below output.min": (value < (-math.inf if minimum is None else minimum)).fill_null(value=False),
        "above output.max": (value > (math.inf if maximum is None else maximum)).fill_null(value=False),
        "no author": author.is_null() | (author == ""),
        "valid_until is no timestamp": frame[_VALID_UNTIL].is_not_null() & end.is_null(),
    }
    reason = pl.coalesce(pl.when(mask).then(pl.lit(f"override: {name}")) for name, mask in faults.items())
    return Overrides(
        pl.DataFrame(
            {
                SERIES_ID: frame[SERIES_ID],
                TIMESTAMP: _in_zone(moment, grid.time_zone),
                _INDEX: index,
                VALUE: value,
                _FACTOR: factor,
                _AUTHOR: author,
                _NOTE: frame[_NOTE].cast(pl.String),
                _EXPIRES: _floors(grid, expiry),
            }
        ).with_columns(reason.alias(REASON))
    )


def _frame(table: Any, label: str) -> pl.DataFrame:
    """Return the columns of a table of overrides, with nulls for optional ones that it lacks."""
    lazy = to_lazy(table)
    names = lazy.collect_schema().names()
    missing = [name for name in (SERIES_ID, TIMESTAMP, _AUTHOR) if name not in names]
    missing += [] if VALUE in names or _FACTOR in names else [f"{VALUE} or {_FACTOR}"]
    if missing:
        raise DataError(
            f"{label}: no column {listing(missing)}; the columns are series_id, timestamp, value or factor, author, "
            f"and optionally note and valid_until (found: {listing(names, 10)})"
        )
    frame = collect(lazy.select(name for name in _COLUMNS if name in names))
    absent = [pl.lit(None, pl.String).alias(name) for name in _COLUMNS if name not in names]
    return frame.with_columns(absent).with_columns(pl.col(SERIES_ID).cast(pl.String))


def _moments(values: pl.Series, label: str) -> pl.Series:
    """Return timestamps or dates in microseconds; text that is no timestamp is null."""
    if values.dtype == pl.String:
        try:
            return parse_timestamps(values)
        except DataError:  # None of the texts can be read, so each row is a reject.
            values = values.clear(len(values))
            return values.cast(pl.Datetime("us"))
    if values.dtype in (pl.Null, pl.Date):
        return values.cast(pl.Datetime("us"))
    if isinstance(values.dtype, pl.Datetime):
        return values.cast(pl.Datetime("us", values.dtype.time_zone))
    raise DataError(f"{label}: column {values.name!r} has the type {values.dtype}; give timestamps, dates or text")


def _unread(source: pl.Series, number: pl.Series) -> pl.Series:
    """Return whether a cell has a content that is no finite number."""
    is_empty = source.is_null() | (source.cast(pl.String).str.strip_chars() == "").fill_null(value=True)
    return ~is_empty & ~number.is_finite().fill_null(value=False)


def _in_zone(moment: pl.Series, zone: str | None) -> pl.Series:
    """Return timestamps in the time zone of a panel, naive if it has none; naive ones are local time."""
    if moment.dtype.time_zone is None:  # type: ignore[attr-defined]
        return moment if zone is None else moment.dt.replace_time_zone(zone, ambiguous="earliest", non_existent="null")
    local = moment.dt.convert_time_zone(zone or "UTC")
    return local.dt.replace_time_zone(None) if zone is None else local


def _floors(grid: Grid, times: pl.Series) -> pl.Series:
    """Return the index of the last step at or before times as from `clock()`, null where they are."""
    index = pl.Series(grid.floor_of(times.fill_null(0).to_numpy()), dtype=pl.Int64)
    return pl.select(pl.when(times.is_not_null()).then(index)).to_series()
