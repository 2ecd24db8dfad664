"""Conversion of a table with a column per series into one with a row per series and timestamp."""

import logging
import re
from collections.abc import Sequence
from typing import Final

import polars as pl
import polars.selectors as cs

from forecast.config import DataConfig
from forecast.data.ingest.validate import schema_of
from forecast.data.sources import frames
from forecast.errors import DataError, listing

_LOG = logging.getLogger(__name__)

# Names that pandas gives to an index without a name: in CSV files, after reading one, and in Parquet files.
_ROW_NUMBERS: Final = re.compile(r"|Unnamed: \d+(\.\d+)*|(_duplicated_\d+)|__index_level_\d+__|level_\d+")


def to_long(frame: pl.LazyFrame, data: DataConfig) -> pl.LazyFrame:
    """Return a table with a row per series and timestamp, lazily, from one with a column per series.

    The timestamp and the past and known covariates are shared by all series; every other column is a series, named
    after it, and must hold numbers, or all of them classes (text or truth values). A null stays a row with a null
    target. The columns are called as `data` says. Known covariates may be missing where `data.known_path` has them.
    Raises DataError.
    """
    columns = data.columns
    schema = schema_of(frame)
    separate = data.known_covariates if data.known_path else ()
    named_columns = {
        columns.timestamp: "data.columns.timestamp",
        **dict.fromkeys(data.past_covariates, "data.past_covariates"),
        **dict.fromkeys(data.known_covariates, "data.known_covariates"),
    }
    problems = [
        f"no column {name!r} ({key})" for name, key in named_columns.items() if name not in {*schema, *separate}
    ]
    if problems:
        raise DataError("\n".join([*problems, f"The table has the columns {listing(schema, limit=30)}"]))
    if columns.series_id in schema:
        raise DataError(
            f"data.layout=wide, but the table has a column {columns.series_id!r} (data.columns.series_id): "
            "set data.layout=long, or drop it"
        )
    shared = [name for name in named_columns if name in schema]
    series = [name for name in schema if name not in named_columns]
    numbered = [name for name in series if _ROW_NUMBERS.fullmatch(name)]
    if numbered:
        _check_row_numbers(frame, schema, numbered)
        _LOG.warning(f"data.layout=wide: {listing(map(repr, numbered))} holds row numbers of pandas, and is no series")
        series = [name for name in series if name not in numbered]
    if not series:
        raise DataError("data.layout=wide, but the table has no column besides the timestamp and the covariates")
    kind = _series_type(frame, schema, series)
    # Internal names first: a series may have the name of the target, and a covariate any name.
    renamed = {name: f"shared {position}" for position, name in enumerate(shared)}
    return (
        frame.select(
            *(frames.column(name).alias(internal_name) for name, internal_name in renamed.items()),
            *(frames.column(name).cast(kind).alias(f"series {name}") for name in series),
        )
        .unpivot(index=list(renamed.values()), variable_name="name", value_name="value")
        .select(
            pl.col("name").str.strip_prefix("series ").alias(columns.series_id),
            *(pl.col(internal_name).alias(name) for name, internal_name in renamed.items()),
            pl.col("value").alias(columns.target),
        )
    )


def _series_type(frame: pl.LazyFrame, schema: pl.Schema, series: Sequence[str]) -> pl.datatypes.DataTypeClass:
    """Return the type of the columns that are series: Float64, or String or Boolean for classes. Raises DataError."""
    not_numeric = [name for name in series if not (schema[name].is_numeric() or schema[name] == pl.Null)]
    # In CSV files a column without any value is text.
    texts = [name for name in not_numeric if schema[name] == pl.String]
    if texts:
        empty = frames.collect(frame.select(cs.by_name(texts).is_null().all())).row(0, named=True)
        not_numeric = [name for name in not_numeric if not empty.get(name)]
    kinds = {schema[name].base_type() for name in not_numeric} or {pl.Float64}
    if not_numeric and (kinds not in ({pl.String}, {pl.Boolean}) or any(schema[name].is_numeric() for name in series)):
        offending = listing(f"{name!r} ({schema[name]})" for name in not_numeric)
        raise DataError(
            f"data.layout=wide: {len(not_numeric):,} of {len(series):,} columns can't be series, which hold numbers: "
            f"{offending}; drop them, or name them in data.past_covariates or data.known_covariates"
        )
    return kinds.pop()


def _check_row_numbers(frame: pl.LazyFrame, schema: pl.Schema, names: Sequence[str]) -> None:
    """Raise DataError for unnamed columns that hold anything but row numbers."""
    integers = [name for name in names if schema[name].is_integer()]
    minima = frames.collect(frame.select(frames.column(name).min() for name in integers)).row(0) if integers else ()
    offending = [name for name in names if name not in integers]
    offending += [name for name, value in zip(integers, minima, strict=True) if value is not None and value < 0]
    if offending:
        examples = listing(f"{name!r} ({schema[name]})" for name in offending)
        raise DataError(
            f"data.layout=wide: {len(offending):,} column(s) have no name of their own and no row numbers: {examples}; "
            "name them (pandas: to_csv(index_label='timestamp') or rename), or drop them"
        )
