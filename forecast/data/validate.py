"""What a table must have before its rows are looked at: columns, types, one static value per series."""

import difflib
from collections.abc import Callable, Iterator, Mapping
from typing import Final

import polars as pl

from forecast.config import DataConfig
from forecast.data import io
from forecast.errors import DataError, listing
from forecast.names import SERIES_ID, TARGET, TIMESTAMP

Categories = Mapping[str, tuple[str, ...]]

# Prefixes of covariates inside the reader: a user's covariate may be called "target".
PAST: Final = "past "
KNOWN: Final = "known "
STATIC: Final = "static "


def read(frame: pl.LazyFrame, data: DataConfig, categories: Categories | None) -> pl.DataFrame:
    """Return the columns that `data` names, and no other, under their names inside the reader.

    series_id is text, timestamp a Datetime in microseconds or text, target Float64, past and known covariates Float32,
    static ones text (categories) or Float64. Raises DataError for columns that are missing or of the wrong type.
    """
    try:
        schema = frame.collect_schema()
    except io.UNREADABLE as error:
        raise io.unreadable(error, "the table") from error
    used = list(_used(data))
    fixed = categories is not None
    missing = [_missing(name, key, schema, fixed) for name, key in used if name not in schema]
    if missing:
        raise DataError("\n".join([*missing, f"The table has the columns {listing(schema, limit=30)}"]))
    is_category = {name: _is_category(name, schema[name], categories) for name in data.static_covariates}
    wrong = []
    for name, key in used:
        wanted, fits = _WANTED["text or numbers" if is_category.get(name) else key]
        if not fits(schema[name]):
            example = _example(frame, name) if schema[name] == pl.String else ""
            wrong.append(f"column {name!r} ({key}) must hold {wanted}, but is {schema[name]}{example}")
    if wrong:
        raise DataError("\n".join(wrong))

    time = schema[data.columns.timestamp]
    time = time if time == pl.String else pl.Datetime("us", time.time_zone if isinstance(time, pl.Datetime) else None)
    columns = [
        pl.col(data.columns.series_id).cast(pl.String).alias(SERIES_ID),
        pl.col(data.columns.timestamp).cast(time).alias(TIMESTAMP),
        pl.col(data.columns.target).cast(pl.Float64).alias(TARGET),
        *(pl.col(name).cast(pl.Float32).alias(PAST + name) for name in data.past_covariates),
        *(pl.col(name).cast(pl.Float32).alias(KNOWN + name) for name in data.known_covariates),
        *(
            pl.col(name).cast(pl.String if text else pl.Float64).alias(STATIC + name)
            for name, text in is_category.items()
        ),
    ]
    return io.collect(frame.select(columns))


def parse_times(text: pl.Series) -> pl.Series:
    """Return ISO 8601 text as naive local times or, if more of it has an offset, as UTC; null if unreadable."""
    text = text.str.strip_chars().str.replace("T", " ", literal=True).str.replace("Z", "+00:00", literal=True)
    date = pl.when(pl.col(TIMESTAMP).str.len_bytes() == 7).then(pl.col(TIMESTAMP) + "-01").otherwise(TIMESTAMP)
    text = text.alias(TIMESTAMP).to_frame().select(date).to_series()
    naive = _first_match(text, "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%d")
    if naive.null_count() == text.null_count():
        return naive
    aware = _first_match(text, "%Y-%m-%d %H:%M:%S%.f%#z", "%Y-%m-%d %H:%M%#z")
    if aware.null_count() == naive.null_count() == len(text) > text.null_count():
        example = text.drop_nulls()[0]
        raise DataError(
            f"data.columns.timestamp: the column is text and not ISO 8601 (e.g. {example!r}); "
            "write it as 2013-06-30 or 2013-06-30T12:00:00, or give a table with a date or datetime column"
        )
    return naive if naive.null_count() <= aware.null_count() else aware


def _first_match(text: pl.Series, *formats: str) -> pl.Series:
    found = text.str.to_datetime(formats[0], time_unit="us", strict=False)
    for other in formats[1:]:
        if found.null_count() == text.null_count():
            break
        more = text.str.to_datetime(other, time_unit="us", strict=False)
        found = found.to_frame("found").select(pl.coalesce("found", more)).to_series()
    return found


def static_values(table: pl.DataFrame, data: DataConfig) -> pl.DataFrame:
    """Return one row per series, sorted, with its static covariates; nulls are overlooked.

    Raises DataError if a covariate has two values in a series, or an infinite one.
    """
    names = [STATIC + name for name in data.static_covariates]
    numbers = [name for name in names if table.schema[name].is_float()]
    changes = pl.any_horizontal(pl.col(name).ne_missing(pl.col(name).shift(1)) for name in [SERIES_ID, *names])
    # Rows are looked at where a value changes only: once per series in a sorted table.
    few = table.select(SERIES_ID, *names).filter(changes | (pl.int_range(pl.len()) == 0)).drop_nulls(SERIES_ID)
    few = few.with_columns(pl.col(name).fill_nan(None) for name in numbers)
    found = few.group_by(SERIES_ID).agg(
        *(pl.col(name).drop_nulls().min() for name in names),
        *(pl.col(name).drop_nulls().max().alias(f"last {name}") for name in names),
    )
    for name, shown in zip(names, data.static_covariates, strict=True):
        several = found.filter(pl.col(name) != pl.col(f"last {name}")).sort(SERIES_ID)
        if several.height:
            rows = several.select(SERIES_ID, name, f"last {name}").iter_rows()
            raise DataError(
                f"static covariate {shown!r} has more than one value in {several.height:,} of {found.height:,} series: "
                f"{listing(f'{series} ({low}, {high})' for series, low, high in rows)}; "
                "make it constant, or move it to data.past_covariates or data.known_covariates"
            )
        wild = found.filter(pl.col(name).is_infinite()) if name in numbers else found.clear()
        if wild.height:
            where = listing(wild[SERIES_ID].sort())
            raise DataError(f"static covariate {shown!r} is not finite in {wild.height:,} series: {where}")
    return found.select(SERIES_ID, *names).sort(SERIES_ID)


def _used(data: DataConfig) -> Iterator[tuple[str, str]]:
    """Yield each column that is read and the key that names it."""
    for field, name in data.columns.model_dump().items():
        yield name, f"data.columns.{field}"
    for key in ("past_covariates", "known_covariates", "static_covariates"):
        for name in getattr(data, key):
            yield name, f"data.{key}"


def _missing(name: str, key: str, schema: pl.Schema, fixed: bool) -> str:
    """Return what to tell about a column that is not there; its name is `fixed` by a trained model."""
    lower = {found.lower(): found for found in schema}
    close = " or ".join(repr(lower[match]) for match in difflib.get_close_matches(name.lower(), lower, n=3))
    if fixed:
        return f"no column {name!r} ({key} of the model); rename {close or 'the column'}, or train with another {key}"
    return f"no column {name!r} ({key}); " + (f"did you mean {close}?" if close else f"set {key}")


def _example(frame: pl.LazyFrame, name: str) -> str:
    """Return a value of a text column that is not a number."""
    column = pl.col(name)
    no_number = column.is_not_null() & column.cast(pl.Float64, strict=False).is_null()
    found = io.collect(frame.select(column).filter(no_number).head(1))
    return f" (e.g. {found.item()!r})" if found.height else " (numbers written as text)"


def _is_number(dtype: pl.DataType) -> bool:
    return dtype.is_numeric() or dtype in (pl.Boolean, pl.Null)


def _is_text(dtype: pl.DataType) -> bool:
    return isinstance(dtype, pl.String | pl.Categorical | pl.Enum)


def _is_category(name: str, dtype: pl.DataType, categories: Categories | None) -> bool:
    """Return whether a static covariate is categorical: as in training, else by its type."""
    return name in categories if categories is not None else _is_text(dtype) or dtype == pl.Boolean


_NUMBERS: Final = ("numbers", _is_number)
_WANTED: Final[dict[str, tuple[str, Callable[[pl.DataType], bool]]]] = {
    "data.columns.series_id": ("text or whole numbers", lambda dtype: _is_text(dtype) or dtype.is_integer()),
    "data.columns.timestamp": (
        "dates, datetimes or ISO 8601 text",
        lambda dtype: isinstance(dtype, pl.Date | pl.Datetime | pl.String),
    ),
    "data.columns.target": _NUMBERS,
    "data.past_covariates": _NUMBERS,
    "data.known_covariates": _NUMBERS,
    "data.static_covariates": ("numbers (text would be a category)", _is_number),
    "text or numbers": ("text or numbers", lambda dtype: _is_text(dtype) or _is_number(dtype)),
}
