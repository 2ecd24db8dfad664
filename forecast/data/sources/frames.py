"""Tables in memory, of Polars, pandas or Arrow, and checks for columns that can't be read."""

import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import polars as pl

from forecast.errors import DataError, listing
from forecast.names import TIMESTAMP

if TYPE_CHECKING:
    import pyarrow as pa
import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import polars.selectors as cs

from forecast.errors import OutputError

if TYPE_CHECKING:
    import pyarrow as pa


# Errors that the conversion of a column may raise; those of Arrow are among them.
_UNREADABLE: Final = (
    *(TypeError, ValueError, NotImplementedError, ArithmeticError, AttributeError, LookupError, OSError),
    *(pl.exceptions.PolarsError, pl.exceptions.PanicException),
)


def to_lazy(frame: Any, columns: Collection[str] | None = None) -> pl.LazyFrame:
    """Return a Polars, pandas or Arrow table (anything that exports Arrow streams) as a LazyFrame.

    A column that can't be read is left out unless `columns` has its name; None stands for all columns. Raises DataError
    that names the column.
    """
    if isinstance(frame, pl.LazyFrame):
        return frame
    if isinstance(frame, pl.DataFrame):
        return frame.lazy()
    import pyarrow as pa

    pandas = sys.modules.get("pandas")
    if pandas is not None and isinstance(frame, pandas.DataFrame):
        return _from_pandas(_with_index(frame), columns)
    try:
        if isinstance(frame, type):
            raise DataError(f"expected a Polars, pandas or Arrow table, found the class {frame.__qualname__} itself")
        if hasattr(frame, "__arrow_c_stream__"):
            table = pa.RecordBatchReader.from_stream(frame).read_all()
        elif hasattr(frame, "__arrow_c_array__"):
            table = pa.Table.from_batches([pa.record_batch(frame)])
        else:
            raise DataError(f"expected a Polars, pandas or Arrow table, found {type(frame).__qualname__}")
    except (TypeError, ValueError, OSError, pa.ArrowException) as error:
        raise DataError(f"the table can't be read: {error}") from error
    return _from_arrow(table, columns)


def _from_arrow(table: "pa.Table", columns: Collection[str] | None) -> pl.LazyFrame:
    odd = odd_columns(table.schema)
    check_odd(odd, columns, "the table")
    names = [name for name in table.schema.names if name not in odd]
    parts: dict[str, pl.Series] = {}
    for name in names:
        try:
            parts[name] = pl.Series(name, table.column(name))
        except _UNREADABLE as error:
            check_odd({name: _first_line(error)}, columns, "the table")
    return pl.DataFrame(list(parts.values())).lazy()


def _from_pandas(frame: Any, columns: Collection[str] | None) -> pl.LazyFrame:
    import pyarrow as pa

    names = [str(name) for name in frame.columns]
    odd = repeated(names)
    zoned = frame.head(0).select_dtypes("datetimetz")
    odd |= {
        str(name): fault
        for name, dtype in zip(zoned.columns, zoned.dtypes, strict=True)
        if (fault := _fault(pa.timestamp("us", _zone_name(dtype.tz))))
    }
    check_odd(odd, columns, "the table")
    parts: dict[str, pl.Series] = {}
    for position, name in enumerate(names):
        if name in odd:
            continue
        try:
            parts[name] = pl.Series(name, pl.from_pandas(frame.iloc[:, position]))
        except _UNREADABLE as error:
            kinds = sorted({type(value).__name__ for value in frame.iloc[:, position]} - {"NoneType"})
            fault = f"holds values of several types ({listing(kinds)})" if len(kinds) > 1 else _first_line(error)
            check_odd({name: f"{fault}; make it one type"}, columns, "the table")
    return pl.DataFrame(list(parts.values())).lazy()


def _zone_name(zone: Any) -> str:
    """Return the Arrow name of the time zone of a pandas column."""
    import pyarrow as pa

    try:
        return str(pa.lib.tzinfo_to_string(zone))
    except (ValueError, TypeError):
        return str(zone)


def _with_index(frame: Any) -> Any:
    """Return a pandas frame with its named index levels as columns, and a time index even without a name."""
    import pandas as pd

    if isinstance(frame, pd.Series):
        frame = frame.to_frame()
    if isinstance(frame.index, pd.PeriodIndex):
        frame = frame.set_axis(frame.index.to_timestamp())
    if isinstance(frame.index, pd.DatetimeIndex) and frame.index.name is None and TIMESTAMP not in frame:
        frame = frame.rename_axis(TIMESTAMP)
    levels = [name for name in frame.index.names if name is not None]
    twice = [name for name in levels if name in frame]
    if twice:
        raise DataError(f"the table has {listing(map(repr, twice))} as a column and in its index; rename one of them")
    return frame.rename_axis(columns=None).reset_index(levels) if levels else frame


def odd_columns(schema: "pa.Schema") -> dict[str, str]:
    """Return the columns that Polars can't read, by name, each with its fault."""
    faults = {field.name: fault for field in schema if (fault := _fault(field.type))}
    return faults | repeated(schema.names)


def repeated(names: Sequence[str]) -> dict[str, str]:
    """Return the names of several columns each, with the fault."""
    if len(set(names)) == len(names):
        return {}
    counts = {name: names.count(name) for name in dict.fromkeys(names)}
    return {name: f"is there {count} times; rename the others" for name, count in counts.items() if count > 1}


def check_odd(odd: Mapping[str, str], columns: Iterable[str] | None, subject: str) -> None:
    """Raise DataError for required columns that can't be read: those in `columns`, or all when None."""
    offending = odd if columns is None else [name for name in odd if name in columns]
    if offending:
        raise DataError("\n".join(f"{subject}: column {name!r} {odd[name]}" for name in offending))


def _fault(dtype: "pa.DataType") -> str | None:
    """Return the fault of a type on which Polars would panic, else None."""
    import pyarrow as pa

    kinds = pa.types
    if kinds.is_timestamp(dtype) and dtype.tz and not _is_time_zone(dtype.tz):
        return (
            f"has the time zone {dtype.tz!r}, which is no place; "
            "convert it to UTC or to an IANA name such as Asia/Kolkata before writing the table"
        )
    unreadable_kinds = (
        kinds.is_union,
        kinds.is_interval,
        kinds.is_run_end_encoded,
        kinds.is_list_view,
        kinds.is_large_list_view,
        kinds.is_decimal256,
    )
    if any(check(dtype) for check in unreadable_kinds):
        return f"is of the type {dtype}, which can't be read; write it as another one"
    if isinstance(dtype, pa.BaseExtensionType):
        return _fault(dtype.storage_type)
    if kinds.is_dictionary(dtype):
        return _fault(dtype.value_type)
    return next((fault for number in range(dtype.num_fields) if (fault := _fault(dtype.field(number).type))), None)


@cache
def _is_time_zone(name: str) -> bool:
    try:
        pl.Series([], dtype=pl.Datetime("us")).dt.replace_time_zone(name)
    except pl.exceptions.PolarsError:
        return False
    return True


def _first_line(error: BaseException) -> str:
    return f"can't be read ({next(iter(str(error).splitlines()), type(error).__name__)})"


UNREADABLE: Final = (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException)


def column(name: str) -> pl.Expr:
    """Return the column of exactly this name: pl.col takes "*" for all columns, and ^...$ for a pattern."""
    return cs.by_name(name).as_expr()


def spool(batches: "Iterable[pa.RecordBatch]", schema: "pa.Schema") -> pl.LazyFrame:
    """Return rows from an iterator of batches as a table that can be read repeatedly.

    A temporary file holds them until this process ends: all passes see the same rows, memory holds one batch at a time,
    and a filter skips row groups. Raises OutputError if the file can't be written.
    """
    import pyarrow as pa
    from pyarrow import parquet

    handle, name = tempfile.mkstemp(".parquet", dir=_spool_folder().name)
    os.close(handle)
    file = Path(name)
    try:
        with parquet.ParquetWriter(file, schema, compression="zstd") as writer:
            for batch in batches:
                writer.write_batch(batch)
    except (OSError, pa.ArrowException) as error:
        raise OutputError(
            f"can't write the rows of the table to {file} (set TMPDIR to a larger disk?): {error}"
        ) from None
    return pl.scan_parquet(file, glob=False)


@cache
def _spool_folder() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="gatecast-")


def collect(frame: pl.LazyFrame) -> pl.DataFrame:
    """Return the rows of a lazy table, read batch by batch."""
    try:
        return frame.collect(engine="streaming")
    except UNREADABLE as error:
        raise unreadable(error, "the table") from error


def unreadable(error: BaseException, subject: str) -> DataError:
    """Return the DataError for a table that Polars could not read."""
    return DataError(f"{subject} can't be read (truncated or damaged?): {reason_of(error)}")


def reason_of(error: BaseException) -> str:
    """Return a short reason why a file can't be read."""
    line = next(iter(str(error).splitlines()), type(error).__name__)
    for pattern, reason in _REASONS.items():
        if re.search(pattern, line):
            return reason
    return re.sub(r"^(object-store error|parquet|out-of-spec): ", "", line)


_REASONS: Final[Mapping[str, str]] = {
    r"magic bytes|footer|InvalidFooter|Not an Arrow file": "its end is missing, or it is another kind of file",
    r"(?i)invalid utf-?8|'utf-8' codec": "it is not UTF-8: save it in that encoding",
    r"(?i)empty CSV": "empty CSV",
}
