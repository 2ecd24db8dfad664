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
_MONTHS: Final = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_PARTS: Final = {
    "year": ("year", "yr", "jahr"),
    "quarter": ("quarter", "qtr", "quartal"),
    "month": ("month", "mon", "monat"),
    "day": ("day", "dayofmonth", "tag"),
    "clock": ("hour", "hr", "time", "clock", "stunde", "uhrzeit"),
}
"""Names of columns with parts of a time."""
_RANGES: Final = {"year": (1700, 2200), "quarter": (1, 4), "month": (1, 12), "day": (1, 31)}
_CLOCK: Final = r"^\s*(\d\d?:\d\d(?::\d\d)?)\s*(-\s*\d\d?:\d\d(:\d\d)?\s*)?$"
"""A clock time, perhaps with the end of its hour: 6:00-6:59."""


def arrange(raw: RawTable, data: DataConfig) -> RawTable:
    """Return a table with its times in one column, unless a setting names the column."""
    if data.columns.timestamp != AUTO:
        return raw
    return _from_column_per_time(raw) or _from_column_per_month(raw) or _from_parts(raw) or raw


def _from_column_per_time(raw: RawTable) -> RawTable | None:
    """Return a row per series and time of a table whose column names are times."""
    names = raw.frame.columns
    times = [name for name in names if kind_of(name) == "time" or re.fullmatch(r"(1[89]|20)\d\d([01]\d)?", name)]
    others = [name for name in names if name not in times]
    if len(times) < max(_LEAST_TIMES, len(names) // 2) or not others or not read_times(pl.Series(times)):
        return None
    long = _unpivot(raw.frame, times, others, TIMESTAMP)
    return _rearrange(raw, long, f"a row per series and {len(times):,} columns of times", "it has a column per time")


def _from_column_per_month(raw: RawTable) -> RawTable | None:
    """Return a row per month of a table with a row per year and twelve columns of months."""
    frame, year = raw.frame, _named(raw.frame, _PARTS["year"])
    months = {name: _MONTHS.index(name[:3].lower()) + 1 for name in frame.columns if name[:3].lower() in _MONTHS}
    if year is None or sorted(months.values()) != [*range(1, 13)] or not _within(frame[year], *_RANGES["year"]):
        return None
    others = [name for name in frame.columns if name not in (year, *months)]
    long = _unpivot(frame, list(months), [year, *others], "month of year")
    month = pl.col("month of year").replace_strict(months, return_dtype=pl.Int64).cast(pl.String).str.zfill(2)
    time = pl.concat_str(pl.col(year).cast(pl.Int64).cast(pl.String), month, separator="-").alias(TIMESTAMP)
    long = long.select(*others, time, TARGET)
    return _rearrange(raw, long, "a row per year and a column per month", "it has a column per month")


def _unpivot(frame: pl.DataFrame, on: list[str], index: list[str], name: str) -> pl.DataFrame:
    """Return a row per row and column of `on`, whose values become the target."""
    if len(set(frame.select(on).dtypes)) > 1:
        frame = frame.with_columns(pl.col(on).cast(pl.String))
    return frame.unpivot(on=on, index=index, variable_name=name, value_name=TARGET)


def _from_parts(raw: RawTable) -> RawTable | None:
    """Return a table with one column of times, from a date and a clock time, or from a year and its parts."""
    frame = raw.frame
    parts = {part: name for part, names in _PARTS.items() if (name := _named(frame, names))}
    parts = {part: name for part, name in parts.items() if part == "clock" or _within(frame[name], *_RANGES[part])}
    days = {name: _is_day(frame[name]) for name in frame.columns if name not in parts.values()}
    dates = [name for name, is_day in days.items() if is_day]
    clock = _clock_text(frame[parts["clock"]]) if "clock" in parts else None
    if False in days.values():  # There are complete times.
        return None
    if dates and clock is not None:
        sources, text = [dates[0], parts["clock"]], [pl.col(dates[0]).cast(pl.String).str.strip_chars(), clock]
        text_expression = pl.concat_str(text, separator=" ")
    elif dates or "year" not in parts or not {"month", "quarter"} & {*parts}:
        return None
    else:
        sources, text_expression = _from_year(parts, clock)
    name = TIMESTAMP if TIMESTAMP not in frame.columns or TIMESTAMP in sources else f"{TIMESTAMP}_"
    times = frame.select(text_expression.alias(name)).to_series()
    if not read_times(times):
        return None
    whole = frame.drop(sources).insert_column(0, times)
    columns = " and ".join(map(repr, sources))
    return _rearrange(raw, whole, f"times from {columns}", f"its times are in {len(sources)} columns")


def _from_year(parts: dict[str, str], clock: pl.Expr | None) -> tuple[list[str], pl.Expr]:
    """Return the columns of a year and its parts, and their text: 2020-01, 2020-01-31, 2020-01-31 06:00 or 2020Q1."""
    year = pl.col(parts["year"]).cast(pl.Int64).cast(pl.String)
    if "month" not in parts:
        quarter = pl.col(parts["quarter"]).cast(pl.Int64).cast(pl.String)
        return [parts["year"], parts["quarter"]], pl.concat_str(year, quarter, separator="Q")
    sources = [parts[part] for part in ("year", "month", "day") if part in parts]
    text = pl.concat_str(year, *map(_two_digits, sources[1:]), separator="-")
    if "day" in parts and clock is not None:
        sources, text = [*sources, parts["clock"]], pl.concat_str(text, clock, separator=" ")
    return sources, text


def _rearrange(raw: RawTable, frame: pl.DataFrame, about: str, obstacle: str) -> RawTable:
    return replace(raw, frame=frame, description=f"{raw.description}, {about}", obstacles=(*raw.obstacles, obstacle))


def _named(frame: pl.DataFrame, names: tuple[str, ...]) -> str | None:
    return next((name for name in frame.columns if name.strip().lower() in names), None)


def _is_day(column: pl.Series) -> bool | None:
    """Return whether a column holds days, as text or as dates; None if it holds no times."""
    if isinstance(column.dtype, pl.Date | pl.Datetime):
        return _midnights(column)
    first = column.drop_nulls().head(1)
    if column.dtype != pl.String or not len(first) or kind_of(first[0]) != "time":
        return None
    readings = read_times(column)
    return _midnights(readings[0].values) if readings else None


def _midnights(times: pl.Series) -> bool:
    if times.dtype == pl.Date:
        return True
    return bool((times.drop_nulls().dt.truncate("1d") == times.drop_nulls()).all())


def _clock_text(column: pl.Series) -> pl.Expr | None:
    """Return hours of the day, or clock times, as text; None if the column holds neither."""
    if column.dtype == pl.String and column.drop_nulls().str.contains(_CLOCK).all():
        return pl.col(column.name).str.extract(_CLOCK).str.zfill(5)
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
