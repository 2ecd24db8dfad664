"""Timestamps that are neither dates nor datetimes: text, years and dates as numbers, data.timestamp_format."""

import re
from typing import Final

import polars as pl

from forecast.config import DataConfig
from forecast.data.sources import frames
from forecast.errors import ConfigError, DataError, listing
from forecast.names import TIMESTAMP

EPOCH_UNITS: Final = ("s", "ms", "us", "ns")
"""Values of data.timestamp_format for numbers that count from 1970 on, in UTC."""
# Above these a number in that unit is later than the year 5138.
_EPOCH_LIMITS: Final = {"s": 1e11, "ms": 1e14, "us": 1e17}
_YEARS: Final = (1583, 2999)
_LAST_SECOND: Final = 253_402_300_799.0  # of the year 9999
_UNREADABLE: Final = "unreadable"
# Formats of other tools; an error message names those that read a column.
_DATES: Final = ("%d/%m/%Y", "%m/%d/%Y", "%d.%m.%Y", "%d-%m-%Y", "%m-%d-%Y", "%d/%m/%y", "%m/%d/%y", "%d.%m.%y",
                 "%d %b %Y", "%d %B %Y", "%d-%b-%Y", "%d-%b-%y", "%b %d, %Y", "%B %d, %Y", "%Y%m", "%y%m%d", "%m/%Y",
                 "%m-%Y", "%b %Y", "%B %Y", "%b-%d-%Y", "%b-%Y", "%b-%y", "%b %y")  # fmt: skip
_CLOCKS: Final = ("", " %H:%M:%S", " %H:%M", " %I:%M:%S %p", " %I:%M %p", " %H:%M:%S %z")


def read(frame: pl.LazyFrame, data: DataConfig, schema: pl.Schema) -> pl.LazyFrame:
    """Return the table with timestamps in whole numbers, or in data.timestamp_format, as times.

    A column stays text if some of it can't be read; these rows are rejected later. Raises DataError if nothing in the
    column can be read, ConfigError for a format that does not exist.
    """
    name, form = data.columns.timestamp, data.timestamp_format
    dtype = schema.get(name)
    if dtype is None or isinstance(dtype, pl.Date | pl.Datetime):
        return frame
    if form in EPOCH_UNITS and (dtype.is_numeric() or dtype == pl.String):
        return from_epoch(frame, name, form)
    if form is not None and (dtype == pl.String or dtype.is_integer()):
        return _formatted(frame, name, form)
    if dtype.is_numeric():
        return from_numbers(frame, name)
    return frame


def from_epoch(frame: pl.LazyFrame, name: str, unit: str) -> pl.LazyFrame:
    """Return the table with numbers that count from 1970 on, in a unit of `EPOCH_UNITS`, as times. Raises DataError."""
    source = frames.column(name)
    number = source.cast(pl.Float64, strict=False)
    per_second = 10.0 ** (3 * EPOCH_UNITS.index(unit))
    micros = pl.when(number.abs() <= _LAST_SECOND * per_second).then(number * (1e6 / per_second)).round()
    moment = micros.cast(pl.Int64, strict=False).cast(pl.Datetime("us", "UTC"))
    n, rows = frames.collect(frame.select(moment.count().alias("read"), source.count().alias("rows"))).row(0)
    if rows and not n:
        raise DataError(
            f"column {name!r} (data.columns.timestamp): data.timestamp_format={unit} reads none of {rows:,} values as "
            "a number that counts from 1970 on"
        )
    return frame.with_columns((moment if n == rows else _canonical(moment, source, aware=True)).alias(name))


def _formatted(frame: pl.LazyFrame, name: str, form: str) -> pl.LazyFrame:
    text = frames.column(name).cast(pl.String).str.strip_chars()
    moment = parse_format(text, form)
    counted = frame.select(
        moment.count().alias("read"),
        text.count().alias("rows"),
        text.filter(moment.is_null() & text.is_not_null()).first().alias("example"),
    )
    try:
        n, rows, example = counted.collect(engine="streaming").row(0)
    except pl.exceptions.PolarsError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"data.timestamp_format: {form!r} can't be used ({reason}); see strftime") from None
    if rows and not n:
        raise DataError(
            f"column {name!r} (data.columns.timestamp): data.timestamp_format={form} reads none of {rows:,} values, "
            f"e.g. {example!r}"
        )
    if n == rows:
        return frame.with_columns(moment.alias(name))
    return frame.with_columns(_canonical(moment, text, aware="%z" in form).alias(name))


def parse_format(text: pl.Expr, form: str) -> pl.Expr:
    """Return text parsed by a format, null if unreadable. A format without a day, month or minute means the first."""
    if not re.search(r"%[-_0]?[dejDFcxs+uaA]", form):
        text, form = text + " 01", form + " %d"
        if not re.search(r"%[-_0]?[mbBh]", form):
            text, form = text + " 01", form + " %m"
    if re.search(r"%[-_0]?[HIkl]", form) and not re.search(r"%[-_0]?[MTRXcsr+]", form):
        text, form = text + " 00", form + " %M"
    return text.str.to_datetime(form, time_unit="us", strict=False)


def _canonical(moment: pl.Expr, source: pl.Expr, *, aware: bool) -> pl.Expr:
    """Return times as ISO 8601 text, null where the source is null, and "unreadable" for the rest."""
    iso_text = moment.dt.to_string("%Y-%m-%d %H:%M:%S%.6f" + "+00:00" * aware)
    return pl.when(source.is_not_null()).then(pl.coalesce(iso_text, pl.lit(_UNREADABLE)))


def from_numbers(frame: pl.LazyFrame, name: str) -> pl.LazyFrame:
    """Return the table with years, or dates such as 20230101, that are whole numbers as dates. Raises DataError."""
    column = frames.column(name)
    number = column.cast(pl.Int64, strict=False)
    is_year = number.is_between(*_YEARS)
    day = number.cast(pl.String).str.to_date("%Y%m%d", strict=False)
    is_day = number.is_between(_YEARS[0] * 10_000, (_YEARS[1] + 1) * 10_000) & day.is_not_null()
    is_whole = column.cast(pl.Float64) == number
    rows, years, days, low, high = frames.collect(
        frame.select(
            column.count().alias("rows"),
            (is_whole & is_year).sum().alias("years"),
            (is_whole & is_day).sum().alias("days"),
            column.min().alias("low"),
            column.max().alias("high"),
        )
    ).row(0)
    if not rows or years == rows:
        return frame.with_columns(pl.date(number, 1, 1).alias(name))
    if days == rows:
        return frame.with_columns(day.alias(name))
    unit = next((unit for unit, limit in _EPOCH_LIMITS.items() if abs(high) < limit), EPOCH_UNITS[-1])
    raise DataError(
        f"column {name!r} (data.columns.timestamp) holds {rows:,} numbers from {low} to {high}, which are neither "
        f"years nor dates such as 20230131; if they count from 1970 on, set data.timestamp_format={unit} (of "
        f"{', '.join(EPOCH_UNITS)}), if they are dates, data.timestamp_format=%Y%m or the like"
    )


def parse(text: pl.Series) -> pl.Series:
    """Return ISO 8601 text as naive local times or, if more of it has an offset, as UTC; null if unreadable.

    A year or a month is its first day; "UTC" and "GMT" behind a time are offsets of 0. Raises DataError if nothing can
    be read.
    """
    source = text.alias(TIMESTAMP)
    text = source.str.strip_chars().str.replace(r"^(\d{4}-\d\d-\d\d)[Tt]", "$1 ")
    text = text.str.replace(r" ?(Z|z|UTC|GMT)$", "+00:00")
    naive = _first_match(text, "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%d")
    if naive.null_count() == text.null_count():
        return naive
    aware = _first_match(text, "%Y-%m-%d %H:%M:%S%.f%#z", "%Y-%m-%d %H:%M%#z")
    if naive.null_count() + aware.null_count() > len(text) + text.null_count():
        text = _extended(text)
        naive = _first_match(text, "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%d")
        aware = _first_match(text, "%Y-%m-%d %H:%M:%S%.f%#z", "%Y-%m-%d %H:%M%#z")
    if aware.null_count() == naive.null_count() == len(text) > text.null_count():
        raise DataError(_unread_message(source.drop_nulls()))
    return naive if naive.null_count() <= aware.null_count() else aware


def _extended(text: pl.Series) -> pl.Series:
    """Return unambiguous variants of dates and times, such as 2023/1/31 or 2023-Q1, in the form 2023-01-31 12:00:00."""
    for pattern, replacement in (
        (r"^(\d{4})[/.](\d\d?)[/.](\d\d?)\b", "$1-$2-$3"),
        (r"^(\d{4})(\d\d)(\d\d)([Tt ]|$)", "$1-$2-$3$4"),
        (r"^(\d{4}-\d\d?-\d\d?)[Tt ]+(\d\d)(\d\d)(\d\d)?", "$1 $2:$3:$4"),
        (r"^(\d{4}-\d\d?-\d\d? \d\d:\d\d):([+-]|$)", "$1$2"),
        (r"^(\d{4})[- ]?[Qq]1$|^[Qq]1[- ]?(\d{4})$", "${1}${2}-01-01"),
        (r"^(\d{4})[- ]?[Qq]2$|^[Qq]2[- ]?(\d{4})$", "${1}${2}-04-01"),
        (r"^(\d{4})[- ]?[Qq]3$|^[Qq]3[- ]?(\d{4})$", "${1}${2}-07-01"),
        (r"^(\d{4})[- ]?[Qq]4$|^[Qq]4[- ]?(\d{4})$", "${1}${2}-10-01"),
        (r"^(\d{4})[Mm](\d\d)$", "$1-$2-01"),
        (r"^(\d{4}-\d\d)$", "$1-01"),
        (r"^(\d{4})$", "$1-01-01"),
    ):
        text = text.str.replace(pattern, replacement)
    return text


def _unread_message(text: pl.Series) -> str:
    """Return the message for text without any ISO 8601 time: an example, and the formats that read all of it."""
    fits = formats_of(text.unique(maintain_order=True).head(10_000))
    problem = f"data.columns.timestamp: the column is text and not ISO 8601 (e.g. {text[0]!r}); "
    if len(fits) == 1:
        return f"{problem}set data.timestamp_format={fits[0]!r}, which reads all of it"
    if fits:
        return f"{problem}{listing(map(repr, fits))} all read it: set data.timestamp_format to the one that is meant"
    return (
        f"{problem}set data.timestamp_format (strftime, such as '%d/%m/%Y %H:%M'), write it as 2013-06-30 or "
        "2013-06-30T12:00:00, or give a table with a date or datetime column"
    )


def formats_of(text: pl.Series, share: float = 1.0) -> list[str]:
    """Return the formats of other tools that read at least this share of text or whole numbers."""
    source = text.cast(pl.String).str.strip_chars().to_frame(TIMESTAMP)
    forms = [date + clock for date in _DATES for clock in _CLOCKS]
    # "%Y" also reads the two digits of a year as the years 0 to 99.
    fits = [(parse_format(pl.col(TIMESTAMP), form).dt.year() >= _YEARS[0]).sum().alias(form) for form in forms]
    counts = source.select(fits).row(0)
    return [form for form, count in zip(forms, counts, strict=True) if count >= share * len(text)]


def _first_match(text: pl.Series, *formats: str) -> pl.Series:
    times = text.str.to_datetime(formats[0], time_unit="us", strict=False)
    for form in formats[1:]:
        if times.null_count() == text.null_count():
            break
        candidates = text.str.to_datetime(form, time_unit="us", strict=False)
        times = times.to_frame("times").select(pl.coalesce("times", candidates)).to_series()
    return times
