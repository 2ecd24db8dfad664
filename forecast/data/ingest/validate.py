"""Checks of a table before its rows are placed: columns, types, one static value per series."""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import polars as pl

from forecast.config import ColumnsConfig, DataConfig
from forecast.data.sources import frames
from forecast.errors import DataError, listing
from forecast.names import SERIES_ID, TARGET, TIMESTAMP

Categories = Mapping[str, tuple[str, ...]]
Columns = Sequence[tuple[str, str]]
"""Columns of the user's table, each with the key of the config that names it."""

COVARIATES: Final = ("data.past_covariates", "data.known_covariates", "data.static_covariates")

# Prefixes of covariates inside the reader: a user's covariate may be called "target".
PAST: Final = "past "
KNOWN: Final = "known "
STATIC: Final = "static "
AVAILABLE: Final = "available"
WEIGHT: Final = "weight"
ROWS: Final = "rows"

MAX_CLASSES: Final = 1000
"""The most classes that a target may have."""
TRUTH: Final = ("false", "true")
"""The classes of a column of truth values; their codes are the numbers that stand for them."""


def read(frame: pl.LazyFrame, columns: Columns, categories: Categories | None) -> pl.DataFrame:
    """Return only the given columns of a table, under their names inside the reader.

    series_id is text, timestamp a Datetime in microseconds or text, target Float64 (classes as codes: position among
    the `categories`, counted from 0), available Float32 (1 for a null), past and known covariates Float32 (text as
    codes: position among the `categories`, counted from 1, 0 for any other), static ones text or Float64.
    Raises DataError for columns that are missing or of the wrong type.
    """
    return frames.collect(select(frame, columns, categories))


def read_runs(frame: pl.LazyFrame, columns: Columns, categories: Categories | None) -> pl.DataFrame:
    """Return columns as `read` does, with one row for each run of equal rows, and in ROWS the row where it begins.

    Values that are constant per series, its name and static covariates, thus take no memory row by row.
    """
    selected = select(frame, columns, categories)
    names = selected.collect_schema().names()
    # Expr.rle would do the same, but panics in the streaming engine.
    begins = pl.any_horizontal(pl.col(name).ne_missing(pl.col(name).shift(1)) for name in names) | (pl.col(ROWS) == 0)
    return frames.collect(selected.with_row_index(ROWS).filter(begins).with_columns(pl.col(ROWS).cast(pl.Int64)))


def run_lengths(runs: pl.DataFrame, height: int) -> pl.DataFrame:
    """Return `read_runs` with the length of each run in ROWS, for a table of `height` rows.

    Raises DataError if the table had a different number of rows when the runs were read.
    """
    if (height == 0) != runs.is_empty() or (height and int(runs[ROWS][-1]) >= height):
        raise DataError("the table has changed while it was read; try again once nobody writes to it")
    return runs.with_columns(pl.col(ROWS).shift(-1, fill_value=height) - pl.col(ROWS))


def select(frame: pl.LazyFrame, columns: Columns, categories: Categories | None) -> pl.LazyFrame:
    """Return the columns of `read`, lazily."""
    schema = schema_of(frame)
    _check_columns(schema, columns, fixed=True)
    texts = {name for name, key in columns if key in COVARIATES and _is_category(name, schema[name], key, categories)}
    classes = {name for name, key in columns if key == "data.columns.target" and name in (categories or {})}
    wrong = []
    for name, key in columns:
        expected, fits = _EXPECTED_TYPES["text or numbers" if name in texts else "classes" if name in classes else key]
        if not fits(schema[name]):
            example = _examples(frame, name) if schema[name] == pl.String else ""
            wrong.append(f"column {name!r} ({key}) must hold {expected}, but is {schema[name]}{example}")
    if wrong:
        raise DataError("\n".join(wrong))

    selected = []
    for name, key in columns:
        column = frames.column(name)
        if key == "data.columns.series_id":
            selected.append(column.cast(pl.String).alias(SERIES_ID))
        elif key == "data.columns.timestamp":
            dtype = schema[name]
            if dtype != pl.String:
                column = column.cast(pl.Datetime("us", dtype.time_zone if isinstance(dtype, pl.Datetime) else None))
            selected.append(column.alias(TIMESTAMP))
        elif name in classes:
            category_type = pl.Enum((categories or {})[name])
            selected.append(column.cast(pl.String).cast(category_type).to_physical().cast(pl.Float64).alias(TARGET))
        elif key == "data.columns.target":
            selected.append(column.cast(pl.Float64).alias(TARGET))
        elif key == "data.static_covariates":
            selected.append(column.cast(pl.String if name in texts else pl.Float64).alias(STATIC + name))
        else:
            codes = (categories or {}).get(name, ()) if name in texts else None
            selected.append(_step_value(name, key, codes))
    return frame.select(selected)


def _step_value(name: str, key: str, codes: Sequence[str] | None) -> pl.Expr:
    """Return a column with a value per step: availability, or a covariate, whose text has `codes`."""
    column = frames.column(name)
    if key == "data.available":
        return column.cast(pl.Float32).fill_nan(1).fill_null(1).alias(AVAILABLE)
    if key == "data.weight":
        return column.cast(pl.Float32).alias(WEIGHT)
    if codes is not None:
        code = column.cast(pl.String).cast(pl.Enum(codes), strict=False).to_physical().cast(pl.Int32) + 1
        column = pl.when(column.is_not_null()).then(code.fill_null(0))
    return column.cast(pl.Float32).alias((PAST if key == "data.past_covariates" else KNOWN) + name)


def find_categories(frame: pl.LazyFrame, columns: Columns) -> dict[str, tuple[str, ...]]:
    """Return the values, sorted, of the covariates that are text, and of the target, if these are classes.

    This is the first check of a training table. A text target counts as malformed numbers, not classes, if half of its
    values are numbers, or if it has more than MAX_CLASSES values. Raises DataError.
    """
    schema = schema_of(frame)
    _check_columns(schema, columns, fixed=False)
    categories = {}
    for name, key in columns:
        if key in COVARIATES and _is_category(name, schema[name], key, None):
            values = _distinct(frame, name)
            text = values.filter(values.str.strip_chars().cast(pl.Float64, strict=False).is_null())
            if key != "data.static_covariates" and len(values) > 2 * len(text):
                wrong = f"{listing(repr(value) for value in text)} are none" if len(text) else "they are all text"
                raise DataError(
                    f"column {name!r} ({key}) is {schema[name]}, but most of its {len(values):,} values are numbers; "
                    f"{wrong}: make the column numbers, or clearly text"
                )
            categories[name] = tuple(values)
        elif key == "data.columns.target":
            classes = find_classes(frame, name) or ()
            text = pl.Series(classes, dtype=pl.String).str.strip_chars()
            numbers = text.cast(pl.Float64, strict=False).count()
            if 2 * numbers < len(classes) <= MAX_CLASSES:
                if odd := [text for text in classes if "\0" in text]:
                    raise DataError(
                        f"column {name!r} ({key}): {len(odd):,} of {len(classes):,} classes have a NUL in their name, "
                        f"which no column of forecasts can have: {listing(map(repr, odd))}; rename them"
                    )
                categories[name] = classes
    return categories


def find_classes(frame: pl.LazyFrame, name: str) -> tuple[str, ...] | None:
    """Return the values of a target, sorted, if it holds text or truth values; None for numbers or a missing column."""
    dtype = schema_of(frame).get(name)
    if dtype == pl.Boolean:
        return TRUTH
    if dtype is None or not _is_text(dtype):
        return None
    return tuple(_distinct(frame, name))


def _distinct(frame: pl.LazyFrame, name: str) -> pl.Series:
    """Return the values of a column as text, sorted. The series has no name, as a name could be taken for a pattern."""
    values = frame.select(frames.column(name).cast(pl.String).alias("value")).select(pl.col("value").unique())
    return frames.collect(values).to_series().drop_nulls().sort()


def _check_columns(schema: pl.Schema, columns: Columns, *, fixed: bool) -> None:
    problems = [_missing_column(name, key, schema, fixed) for name, key in columns if name not in schema]
    if problems:
        maybe_wide = not fixed and {SERIES_ID, TARGET} <= {name for name, _ in columns if name not in schema}
        hint = ["if each column is a series, set data.layout=wide"] if maybe_wide else []
        if any(re.search(r"[;\t|]", name) for name in schema):
            hint.append("if the fields of a CSV file are separated by something else than commas, set data.separator")
        if "" in schema:
            hint.append("one column has no name: give it one (pandas: to_csv(index_label='timestamp'))")
        raise DataError("\n".join([*problems, *hint, f"The table has the columns {listing(schema, limit=30)}"]))


def schema_of(frame: pl.LazyFrame) -> pl.Schema:
    """Return the columns of a table. Raises DataError if it can't be read."""
    try:
        return frame.collect_schema()
    except frames.UNREADABLE as error:
        raise frames.unreadable(error, "the table") from error


def columns_of(data: DataConfig, *keys: str) -> list[tuple[str, str]]:
    """Return the columns that `data` names under some keys: series_id, timestamp, target, past_covariates, ..."""
    result = []
    for key in keys:
        if key in ColumnsConfig.model_fields:
            result.append((getattr(data.columns, key), f"data.columns.{key}"))
        else:
            names = getattr(data, key) or ()
            result += [(name, f"data.{key}") for name in ([names] if isinstance(names, str) else names)]
    return result


def static_values(runs: pl.DataFrame, data: DataConfig) -> pl.DataFrame:
    """Return one row per series, sorted, with its static covariates, from rows or runs of them; nulls are ignored.

    Raises DataError if a covariate has two values in a series, or an infinite one.
    """
    names = [STATIC + name for name in data.static_covariates]
    numbers = [name for name in names if runs.schema[name].is_float()]
    rows_of_series = runs.drop_nulls(SERIES_ID).with_columns(pl.col(name).fill_nan(None) for name in numbers)
    values = rows_of_series.group_by(SERIES_ID).agg(
        *(pl.col(name).drop_nulls().min() for name in names),
        *(pl.col(name).drop_nulls().max().alias(f"last {name}") for name in names),
    )
    for name, covariate in zip(names, data.static_covariates, strict=True):
        several = values.filter(pl.col(name) != pl.col(f"last {name}")).sort(SERIES_ID)
        if several.height:
            rows = several.select(SERIES_ID, name, f"last {name}").iter_rows()
            raise DataError(
                f"static covariate {covariate!r} has more than one value in {several.height:,} of {values.height:,} "
                f"series: {listing(f'{series} ({low}, {high})' for series, low, high in rows)}; "
                "make it constant, or move it to data.past_covariates or data.known_covariates"
            )
        infinite = values.filter(pl.col(name).is_infinite()) if name in numbers else values.clear()
        if infinite.height:
            examples = listing(infinite[SERIES_ID].sort())
            raise DataError(f"static covariate {covariate!r} is not finite in {infinite.height:,} series: {examples}")
    return values.select(SERIES_ID, *names).sort(SERIES_ID)


_TABLE_KEYS: Final = {
    "data.known_covariates": "data.known_path",
    "data.static_covariates": "data.static_path",
    "data.available": "data.known_path",
    "data.weight": "data.static_path",
}
"""The settings that name tables of covariates."""


def _missing_column(name: str, key: str, schema: pl.Schema, fixed: bool) -> str:
    """Return the message for a missing column; `fixed` says whether a trained model determines its name."""
    lower = {column.lower(): column for column in schema}
    close = " or ".join(repr(lower[match]) for match in difflib.get_close_matches(name.lower(), lower, n=3))
    if fixed:
        table_key = _TABLE_KEYS.get(key, "")
        alternative = f", give its table with {table_key}" if table_key else ""
        problem = f"no column {name!r} ({key} of the model)"
        return f"{problem}; rename {close or 'the column'}{alternative}, or train with another {key}"
    return f"no column {name!r} ({key}); " + (f"did you mean {close}?" if close else f"set {key}")


def _examples(frame: pl.LazyFrame, name: str) -> str:
    """Return text that counts the values of a text column that are not numbers, with an example."""
    column = frames.column(name)
    no_number = column.is_not_null() & column.cast(pl.Float64, strict=False).is_null()
    summary = frames.collect(frame.select(no_number.sum(), column.filter(no_number).first().alias("example"), pl.len()))
    wrong, example, rows = summary.row(0)
    hint = "; data.null_values says what stands for a missing value"
    return f" ({wrong:,} of {rows:,} rows are no number, e.g. {example!r}{hint})" if wrong else " (numbers as text)"


def _is_number(dtype: pl.DataType) -> bool:
    return dtype.is_numeric() or dtype in (pl.Boolean, pl.Null)


def _is_text(dtype: pl.DataType) -> bool:
    return isinstance(dtype, pl.String | pl.Categorical | pl.Enum)


def _is_category(name: str, dtype: pl.DataType, key: str, categories: Categories | None) -> bool:
    """Return whether a covariate is categorical: as in training, else by its type."""
    if categories is not None:
        return name in categories
    return _is_text(dtype) or (key == "data.static_covariates" and dtype == pl.Boolean)


_NUMBERS: Final = ("numbers", _is_number)
_EXPECTED_TYPES: Final[dict[str, tuple[str, Callable[[pl.DataType], bool]]]] = {
    "data.columns.series_id": ("text or whole numbers", lambda dtype: _is_text(dtype) or dtype.is_integer()),
    "data.columns.timestamp": (
        "dates, datetimes or ISO 8601 text",
        lambda dtype: isinstance(dtype, pl.Date | pl.Datetime | pl.String),
    ),
    "data.columns.target": _NUMBERS,
    "data.past_covariates": ("numbers (text would be a category)", _is_number),
    "data.known_covariates": ("numbers (text would be a category)", _is_number),
    "data.static_covariates": ("numbers (text would be a category)", _is_number),
    "data.available": ("0 and 1, or truth values", _is_number),
    "data.weight": ("numbers", _is_number),
    "classes": ("classes (text or truth values)", lambda dtype: _is_text(dtype) or dtype == pl.Boolean),
    "text or numbers": ("text or numbers", lambda dtype: _is_text(dtype) or _is_number(dtype)),
}
