"""Readings of a column as times."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import polars as pl

from forecast.data.ingest import stamps
from forecast.data.sources import numerals
from forecast.errors import ConfigError, DataError

# Share of the values that a reading must read; the rest become rejects.
_MOST: Final = 0.95
_YEARS: Final = (1700, 2200)
_PROBE: Final = 20


@dataclass(frozen=True)
class TimeReading:
    """A way to read a column as times."""

    values: pl.Series
    """Date or Datetime for each row, null where unreadable."""
    form: str | None
    """data.timestamp_format; None if the ordinary reader needs none."""
    unread: int = 0
    """Values that are not read."""
    whole_number: bool = False
    """Whether the column holds whole numbers, which may as well be amounts."""

    def example(self, text: str) -> str:
        """Return what a value means in this reading."""
        moments = _apply(pl.Series([text]), self.form)
        moment = None if moments is None else moments[0]
        return "unreadable" if moment is None else f"{moment.day} {moment:%B %Y}"


def read_times(column: pl.Series, form: str | None = None) -> list[TimeReading]:
    """Return the readings of a column as times that read most values; several if these differ, none if there is none.

    `form` is a configured data.timestamp_format: the only reading.
    """
    values = column.drop_nulls()
    if values.is_empty():
        return []
    if isinstance(column.dtype, pl.Date | pl.Datetime):
        return [TimeReading(column, None)]
    if column.dtype == pl.String:
        column = column.str.strip_chars()
        column = column.set(column.is_in(list(numerals.MISSING)), None)
        if not column.str.contains(r"\d").any():
            return []
    elif not column.dtype.is_integer():
        return []
    distinct = column.drop_nulls().unique(maintain_order=True)
    if distinct.is_empty():
        return []
    whole = not distinct.dtype.is_integer() and bool(distinct.str.contains(r"^\d+$").all())
    return [
        TimeReading(_spread(column, distinct, times), form, unread, whole or column.dtype.is_integer())
        for form, times, unread in _distinct_readings(column, distinct, form)
    ]


def _distinct_readings(
    column: pl.Series, distinct: pl.Series, form: str | None
) -> Iterator[tuple[str | None, pl.Series, int]]:
    """Yield the format, the times of the distinct values, and the number of unread rows of each reading."""
    forms = [form] if form else [None, *stamps.formats_of(distinct.head(_PROBE), _MOST), *_epochs(distinct)]
    readings: list[tuple[str | None, pl.Series, int]] = []
    for candidate in forms:
        times = _apply(distinct, candidate)
        if times is None or times.null_count() == len(times):
            continue
        readable = distinct.filter(times.is_not_null())
        unread = len(column) - column.null_count() - int(column.is_in(readable.implode()).sum())
        if form or unread <= (1 - _MOST) * (len(column) - column.null_count()):
            readings.append((candidate, times, unread))
    fewest = min((unread for _, _, unread in readings), default=0)
    best = [reading for reading in readings if reading[2] == fewest]
    for number, reading in enumerate(best):
        if not any(reading[1].equals(earlier[1]) for earlier in best[:number]):
            yield reading


def _epochs(distinct: pl.Series) -> list[str]:
    """Return the unit in which values count from 1970 on, if all are between the years 2000 and 2050."""
    counts = distinct.cast(pl.Int64, strict=False)
    if counts.null_count():
        return []
    low, high = 946_684_800, 2_524_608_000
    units = {unit: 10 ** (3 * place) for place, unit in enumerate(stamps.EPOCH_UNITS)}
    return [unit for unit, factor in units.items() if counts.is_between(low * factor, high * factor).all()]


def _apply(text: pl.Series, form: str | None) -> pl.Series | None:
    """Return values read by a format, None if it reads none; by default as ISO 8601, years, or dates as numbers."""
    frame = text.to_frame("text")
    try:
        if form in stamps.EPOCH_UNITS:
            return stamps.from_epoch(frame.lazy(), "text", form).collect()["text"]
        if form is None and text.dtype.is_integer():
            times = stamps.from_numbers(frame.lazy(), "text").collect()["text"]
        elif form is None:
            times = stamps.parse(text)
        else:
            times = frame.select(
                stamps.parse_format(pl.col("text").cast(pl.String).str.strip_chars(), form)
            ).to_series()
    except (DataError, ConfigError, pl.exceptions.PolarsError):
        return None
    plausible = times.dt.year().is_between(*_YEARS)
    return times.set(~plausible.fill_null(value=False), None)


def _spread(column: pl.Series, distinct: pl.Series, times: pl.Series) -> pl.Series:
    """Return the times of all rows from those of the distinct values."""
    table = pl.DataFrame({"value": distinct, "time": times})
    return (
        column.to_frame("value").join(table, on="value", how="left", maintain_order="left")["time"].alias(column.name)
    )
