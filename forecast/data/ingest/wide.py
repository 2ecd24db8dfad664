"""A table with a column per series, made long."""

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

# What pandas calls an index without a name: in CSV files, after reading one, and in Parquet files.
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
    elsewhere = data.known_covariates if data.known_path else ()
    wanted = {
        columns.timestamp: "data.columns.timestamp",
        **dict.fromkeys(data.past_covariates, "data.past_covariates"),
        **dict.fromkeys(data.known_covariates, "data.known_covariates"),
    }
    missing = [f"no column {name!r} ({key})" for name, key in wanted.items() if name not in {*schema, *elsewhere}]
    if missing:
        raise DataError("\n".join([*missing, f"The table has the columns {listing(schema, limit=30)}"]))
    if columns.series_id in schema:
        raise DataError(
            f"data.layout=wide, but the table has a column {columns.series_id!r} (data.columns.series_id): "
            "set data.layout=long, or drop it"
        )
    shared = [name for name in wanted if name in schema]
    series = [name for name in schema if name not in wanted]
    numbered = [name for name in series if _ROW_NUMBERS.fullmatch(name)]
    if numbered:
        _check_row_numbers(frame, schema, numbered)
        _LOG.warning(f"data.layout=wide: {listing(map(repr, numbered))} holds row numbers of pandas, and is no series")
        series = [name for name in series if name not in numbered]
    if not series:
        raise DataError("data.layout=wide, but the table has no column besides the timestamp and the covariates")
    odd = [name for name in series if not (schema[name].is_numeric() or schema[name] == pl.Null)]
    # In CSV files a column without any value is text.
    texts = [name for name in odd if schema[name] == pl.String]
    if texts:
        empty = frames.collect(frame.select(cs.by_name(texts).is_null().all())).row(0, named=True)
        odd = [name for name in odd if not empty.get(name)]
    kinds = {schema[name].base_type() for name in odd} or {pl.Float64}
    if odd and (kinds not in ({pl.String}, {pl.Boolean}) or any(schema[name].is_numeric() for name in series)):
        shown = listing(f"{name!r} ({schema[name]})" for name in odd)
        raise DataError(
            f"data.layout=wide: {len(odd):,} of {len(series):,} columns can't be series, which hold numbers: {shown}; "
            "drop them, or name them in data.past_covariates or data.known_covariates"
        )
    # Under names of our own first: a series may be called like the target, and a covariate like anything.
    (kind,) = kinds
    renamed = {name: f"shared {position}" for position, name in enumerate(shared)}
    return (
        frame.select(
            *(frames.column(name).alias(own) for name, own in renamed.items()),
            *(frames.column(name).cast(kind).alias(f"series {name}") for name in series),
        )
        .unpivot(index=list(renamed.values()), variable_name="name", value_name="value")
        .select(
            pl.col("name").str.strip_prefix("series ").alias(columns.series_id),
            *(pl.col(own).alias(name) for name, own in renamed.items()),
            pl.col("value").alias(columns.target),
        )
    )


def _check_row_numbers(frame: pl.LazyFrame, schema: pl.Schema, names: Sequence[str]) -> None:
    """Raise DataError for columns without a name of their own that hold anything but row numbers."""
    whole = [name for name in names if schema[name].is_integer()]
    least = frames.collect(frame.select(frames.column(name).min() for name in whole)).row(0) if whole else ()
    other = [name for name in names if name not in whole]
    other += [name for name, value in zip(whole, least, strict=True) if value is not None and value < 0]
    if other:
        shown = listing(f"{name!r} ({schema[name]})" for name in other)
        raise DataError(
            f"data.layout=wide: {len(other):,} column(s) have no name of their own and no row numbers: {shown}; name "
            "them (pandas: to_csv(index_label='timestamp') or rename), or drop them"
        )
