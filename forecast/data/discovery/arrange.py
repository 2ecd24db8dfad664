"""Tables turned so that times stand in one column: a column per time, or times in several columns."""

import re
from dataclasses import replace
from typing import Final

import polars as pl

from forecast.config import AUTO, DataConfig
from forecast.data.discovery.cells import kind_of
from forecast.data.discovery.dates import read_times
from forecast.data.discovery.reading import RawTable
from forecast.names import TARGET, TIMESTAMP

# Columns whose names are times, at least, for a table with a column per time.
_LEAST_TIMES: Final = 3
_YEAR: Final = ("year", "yr", "jahr")
_MONTH: Final = ("month", "mon", "monat")
_DAY: Final = ("day", "dayofmonth", "tag")
_CLOCK: Final = ("hour", "hr", "time", "clock", "stunde", "uhrzeit")


def arrange(raw: RawTable, data: DataConfig) -> RawTable:
    """Return a table with its times in one column, unless a setting names the column."""
    if data.columns.timestamp != AUTO:
        return raw
    return _from_column_per_time(raw) or _from_parts(raw) or raw


def _from_column_per_time(raw: RawTable) -> RawTable | None:
    """Return a row per series and time of a table whose column names are times."""
    names = raw.frame.columns
    times = [name for name in names if kind_of(name) == "time" or re.fullmatch(r"(1[89]|20)\d\d([01]\d)?", name)]
    others = [name for name in names if name not in times]
    if len(times) < max(_LEAST_TIMES, len(names) // 2) or not others or not read_times(pl.Series(times)):
        return None
    values = raw.frame.select(times)
    if len(set(values.dtypes)) > 1:
        raw = replace(raw, frame=raw.frame.with_columns(pl.col(times).cast(pl.String)))
    long = raw.frame.unpivot(on=times, index=others, variable_name=TIMESTAMP, value_name=TARGET)
    return replace(
        raw,
        frame=long,
        description=f"{raw.description}, a row per series and {len(times):,} columns of times",
        obstacles=(*raw.obstacles, "it has a column per time"),
    )


def _from_parts(raw: RawTable) -> RawTable | None:
    """Return a table with one column of times, from a date and an hour, or a year, a month and perhaps a day."""
    year, month, day, clock = (_named(raw.frame, names) for names in (_YEAR, _MONTH, _DAY, _CLOCK))
    frame = raw.frame
    dates = [name for name in frame.columns if name not in (year, month, day, clock) and _is_date(frame[name])]
    if dates and clock and (hours := _clock_text(frame[clock])) is not None:
        parts, joined = (
            [dates[0], clock],
            pl.concat_str(pl.col(dates[0]).cast(pl.String).str.strip_chars(), hours, separator=" "),
        )
    elif not dates and year and month and _within(frame[year], 1700, 2200) and _within(frame[month], 1, 12):
        digits = [pl.col(year).cast(pl.Int64).cast(pl.String), _two_digits(month)]
        has_day = day is not None and _within(frame[day], 1, 31)
        parts = [year, month, *([day] if has_day and day else [])]
        joined = pl.concat_str(*digits, *([_two_digits(day)] if has_day and day else []), separator="-")
    else:
        return None
    name = TIMESTAMP if TIMESTAMP not in frame.columns or TIMESTAMP in parts else f"{TIMESTAMP}_"
    text = frame.select(joined.alias(name)).to_series()
    if not read_times(text):
        return None
    columns = " and ".join(map(repr, parts))
    return replace(
        raw,
        frame=frame.drop(parts).insert_column(0, text),
        description=f"{raw.description}, times from {columns}",
        obstacles=(*raw.obstacles, f"its times are in {len(parts)} columns"),
    )


def _named(frame: pl.DataFrame, names: tuple[str, ...]) -> str | None:
    return next((name for name in frame.columns if name.strip().lower() in names), None)


def _is_date(column: pl.Series) -> bool:
    """Return whether a column holds days, as text or as dates."""
    if column.dtype == pl.Date:
        return True
    if column.dtype == pl.Datetime:
        return _midnights(column)
    first = column.drop_nulls().head(1)
    if column.dtype != pl.String or not len(first) or kind_of(first[0]) == "number":
        return False
    readings = [reading for reading in read_times(column) if not reading.whole_number]
    return bool(readings) and _midnights(readings[0].values)


def _midnights(times: pl.Series) -> bool:
    if times.dtype == pl.Date:
        return True
    return bool((times.drop_nulls().dt.truncate("1d") == times.drop_nulls()).all())


def _clock_text(column: pl.Series) -> pl.Expr | None:
    """Return hours of the day, or clock times, as text; None if the column holds neither."""
    if column.dtype == pl.String and column.drop_nulls().str.contains(r"^\s*\d\d?:\d\d(:\d\d)?\s*$").all():
        return pl.col(column.name).str.strip_chars().str.zfill(5)
    if _within(column, 0, 23):
        return _two_digits(column.name) + ":00"
    return None


def _two_digits(name: str) -> pl.Expr:
    return pl.col(name).cast(pl.Int64).cast(pl.String).str.zfill(2)


def _within(column: pl.Series, low: int, high: int) -> bool:
    """Return whether a column holds whole numbers in a range."""
    if column.dtype not in (pl.String, pl.Int64, pl.Int32, pl.Float64):
        return False
    numbers = column.cast(pl.Float64, strict=False)
    return numbers.null_count() == 0 and bool((numbers.is_between(low, high) & (numbers == numbers.round())).all())
