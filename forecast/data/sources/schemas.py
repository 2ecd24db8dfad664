"""Schemas of files: the columns of each file, read before any row."""

import base64
import re
import sys
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Final
from urllib.parse import unquote

import polars as pl

from forecast.data.sources.file_systems import S3, File
from forecast.data.sources.frames import UNREADABLE, check_odd, odd_columns, reason_of, spool, unreadable
from forecast.data.sources.storage import Location
from forecast.errors import DataError, listing

# Parallel requests for the footers of files in S3.
_REQUESTS: Final = 16

# The value in the folder name of rows without a value.
HIVE_NULL: Final = "__HIVE_DEFAULT_PARTITION__"


Schemas = dict[str, pl.Schema]
Copies = dict[str, pl.LazyFrame]


def share_of_files(files: Collection[object], all_files: Collection[object]) -> str:
    """Return "2 of 5 files are"."""
    if len(all_files) == 1:
        return "the file is"
    return f"{len(files):,} of {len(all_files):,} files {'is' if len(files) == 1 else 'are'}"


def read_schemas(
    location: Location, files: Sequence[File], find: Callable[[str], pl.Schema], *, parallel: bool
) -> Schemas:
    """Return the columns of each file. Raises DataError that names the files that can't be read."""

    def schema(file: File) -> pl.Schema | Exception:
        faults = *UNREADABLE, UnicodeDecodeError, DataError
        try:
            return find(file.address)
        except Exception as error:
            if isinstance(error, (*faults, *_arrow_errors())):
                return error
            raise

    with ThreadPoolExecutor(_REQUESTS) as pool:
        results = list(pool.map(schema, files) if parallel else map(schema, files))
    schemas = {
        file.address: result for file, result in zip(files, results, strict=True) if isinstance(result, pl.Schema)
    }
    faults = {
        file.address: result for file, result in zip(files, results, strict=True) if not isinstance(result, pl.Schema)
    }
    for fault in faults.values():
        if isinstance(fault, DataError):
            raise fault
    if len(files) == 1 and faults:
        raise unreadable(faults[files[0].address], location.label)
    if faults:
        examples = listing(f"{address} ({reason_of(fault)})" for address, fault in faults.items())
        raise DataError(
            f"{location.label}: {len(faults):,} of {len(files):,} files can't be read (truncated or damaged?): "
            f"{examples}; write them again, or move them out of the folder"
        )
    return schemas


def parquet_schema(location: Location, address: str, columns: Collection[str] | None, copies: Copies) -> pl.Schema:
    """Return the columns of a Parquet file; with unreadable columns, its other columns are copied to `copies`."""
    metadata = pl.read_parquet_metadata(address, storage_options=location.options)
    if not _has_odd_columns(base64.b64decode(metadata.get("ARROW:schema", ""))):
        with suppress(pl.exceptions.DuplicateError):
            return pl.scan_parquet(address, glob=False, storage_options=location.options).collect_schema()
    copies[address] = _copy(location, address, columns)
    return copies[address].collect_schema()


def _arrow_errors() -> tuple[type[Exception], ...]:
    """Return the errors that pyarrow raises, none before it is imported."""
    arrow = sys.modules.get("pyarrow")
    return () if arrow is None else (arrow.ArrowException,)


def _has_odd_columns(schema: bytes) -> bool:
    """Return whether an Arrow schema, empty without one, has columns that Polars can't read."""
    if not schema:
        return False
    try:
        import pyarrow as pa
    except ImportError:  # Where only bundles are scored, Polars itself reports what it can't read.
        return False
    return bool(odd_columns(pa.ipc.read_schema(pa.py_buffer(schema))))


def ipc_schema(location: Location, address: str, columns: Collection[str] | None, copies: Copies) -> pl.Schema:
    """Return the columns of an Arrow file, like `parquet_schema`."""
    import pyarrow as pa

    with location.open_random_access(address) as stream:
        odd = odd_columns(pa.ipc.open_file(stream).schema)
    if not odd:
        return pl.scan_ipc(address, glob=False, storage_options=location.options).collect_schema()
    copies[address] = _copy(location, address, columns, ipc=True)
    return copies[address].collect_schema()


def _copy(location: Location, address: str, columns: Collection[str] | None, *, ipc: bool = False) -> pl.LazyFrame:
    """Return the rows of a file without unreadable columns. Raises DataError if one of these is required."""
    import pyarrow as pa
    from pyarrow import parquet

    with location.open_random_access(address) as stream:
        file = pa.ipc.open_file(stream) if ipc else parquet.ParquetFile(stream)
        schema = file.schema if ipc else file.schema_arrow
        odd = odd_columns(schema)
        check_odd(odd, columns, f"{location.label}: {address}")
        positions = [position for position, name in enumerate(schema.names) if name not in odd]
        names = [schema.names[position] for position in positions]
        blocks = map(file.get_batch, range(file.num_record_batches)) if ipc else file.iter_batches(columns=names)
        rows = (block.select(positions if ipc else names) for block in blocks)
        return spool(rows, pa.schema([schema.field(position) for position in positions]))


def hive_schema(
    location: Location, root: str, addresses: list[str], text: Collection[str]
) -> tuple[pl.Schema, list[str]] | None:
    """Return the columns in folder names such as store=7, None without such folders.

    Gives the schema of all such columns in the path, and the names of those below `root`, where the table begins.
    """
    start = len(root) + len(S3) * location.path.startswith(S3)
    keys = {address: re.findall(r"([^/=]+)=[^/=]+/", address[start:]) for address in addresses}
    below = keys[addresses[0]]
    different = [address for address in addresses if keys[address] != below]
    if different:
        raise DataError(
            f"{location.label}: files are in folders of different kinds: {addresses[0]} "
            f"({', '.join(below) or 'none'}), {different[0]} ({', '.join(keys[different[0]]) or 'none'}); all files "
            "need the same ones, such as store=7/ (a sign = in a value is written %3D)"
        )
    if not below:
        return None
    values: dict[str, set[str]] = {}
    for address in addresses:
        for name, value in re.findall(r"([^/=]+)=([^/=]+)/", address):
            values.setdefault(name, set()).add(unquote(value))
    types = {name: pl.String() if name in text else _type_of(texts) for name, texts in values.items()}
    return pl.Schema(types), below


def _type_of(values: set[str]) -> pl.DataType:
    """Return the type of the values in folder names."""
    texts = pl.Series(sorted(values - {HIVE_NULL}), dtype=pl.String)
    columns = (
        texts.cast(pl.Int64, strict=False),
        texts.cast(pl.Float64, strict=False),
        texts.str.to_date("%F", strict=False),
    )
    return next((column.dtype for column in columns if not column.null_count()), pl.String())
