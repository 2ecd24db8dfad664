"""Tables in Parquet, CSV and Arrow files and in Delta Lake."""

import re
from collections.abc import Callable, Collection, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import polars as pl
import polars.selectors as cs

from forecast.data.sources.csv_files import CsvFiles, CsvFormat
from forecast.data.sources.file_systems import S3, File
from forecast.data.sources.frames import UNREADABLE, column, unreadable
from forecast.data.sources.schemas import (
    HIVE_NULL,
    Copies,
    Schemas,
    hive_schema,
    ipc_schema,
    parquet_schema,
    read_schemas,
    share_of_files,
)
from forecast.data.sources.storage import Location
from forecast.errors import ConfigError, DataError, listing

_KINDS: Final = {
    ".parquet": "parquet", ".pq": "parquet", ".csv": "csv", ".csv.gz": "csv", ".csv.zst": "csv",
    ".arrow": "ipc", ".ipc": "ipc", ".feather": "ipc",
}  # fmt: skip
_TABLE: Final = re.compile("(" + "|".join(map(re.escape, _KINDS)) + ")$", re.IGNORECASE)


def scan(
    path: str | Path,
    text: Collection[str] = ("series_id",),
    key: str = "data.path",
    columns: Collection[str] | None = None,
    csv_format: CsvFormat | None = None,
) -> pl.LazyFrame:
    """Return the table in a Parquet, CSV or Arrow file, in all such files of a folder or glob, or in Delta Lake.

    The path may be an s3:// address. `text` names the columns of CSV files, and of folders such as store=7, to read as
    text: "007" is not 7. `columns` are required in all files (all when not given); they get a common type: Float64 for
    whole numbers and floats, Datetime for dates and datetimes. Raises DataError for a table that can't be read,
    ConfigError if a package is missing.
    """
    label = f"{key}={path}"
    location = Location.of(str(path), label)
    if location.has_folder("_delta_log"):
        return _scan_delta(location)
    root, files = location.find(_TABLE)
    kinds = {_kind(file) for file in files}
    if len(kinds) > 1:
        names = listing(sorted(map(str, kinds)))
        raise DataError(f"{label} holds files of several kinds ({names}); give files of one kind")
    kind = kinds.pop()
    if kind is None:
        raise DataError(f"{label}: unknown kind of file; known are {', '.join(_KINDS)}")
    empty_files = [file.address for file in files if not file.size]
    if empty_files:
        raise DataError(
            f"{label}: {share_of_files(empty_files, files)} empty (0 bytes): {listing(empty_files)}; "
            "remove what is empty or write it again"
        )
    csv_files = CsvFiles(location, text, columns, csv_format or CsvFormat())
    copies: Copies = {}
    schema_of = parquet_schema if kind == "parquet" else ipc_schema
    schemas = read_schemas(
        location,
        files,
        csv_files.schema if kind == "csv" else partial(schema_of, location, columns=columns, copies=copies),
        parallel=kind != "csv" and location.path.startswith(S3),
    )
    try:
        if kind == "csv":
            csv_files.align(schemas)
            read_files: _Reader = csv_files.read
        else:
            hive = hive_schema(location, root, list(schemas), text)
            read_files = partial(_read_parquet_or_ipc, location, kind, hive, copies)
        frame = _join(label, schemas, read_files, columns)
        frame.collect_schema()
    except UNREADABLE as error:
        raise unreadable(error, label) from error
    return frame


def is_file_or_glob(path: str) -> bool:
    """Return whether a path ends like a file with a table, or names several by wildcards."""
    return bool(_TABLE.search(path)) or any(character in path for character in "*?[")


_Reader = Callable[[list[str], pl.Schema], pl.LazyFrame]
"""Reads files that have the same columns."""


def _kind(file: File) -> str | None:
    match = _TABLE.search(file.address)
    return _KINDS[match[0].lower()] if match else None


def _read_parquet_or_ipc(
    location: Location,
    kind: str,
    hive: tuple[pl.Schema, list[str]] | None,
    copies: Copies,
    addresses: list[str],
    schema: pl.Schema,
) -> pl.LazyFrame:
    if not copies.keys().isdisjoint(addresses):
        plain_files = [address for address in addresses if address not in copies]
        parts = [_with_hive(copies[address], address, hive) for address in addresses if address in copies]
        return pl.concat(
            [*([_read_parquet_or_ipc(location, kind, hive, {}, plain_files, schema)] if plain_files else []), *parts]
        )
    scan_files: Any = pl.scan_parquet if kind == "parquet" else pl.scan_ipc
    if hive is None:
        frame: pl.LazyFrame = scan_files(
            addresses, glob=False, hive_partitioning=False, storage_options=location.options
        )
        return frame
    types, below = hive
    clash = [name for name in types if name not in below and name in schema]
    if clash:
        raise DataError(
            f"{location.label}: a folder above the table is called {clash[0]}=..., like a column; rename it"
        )
    frame = scan_files(
        addresses, glob=False, hive_partitioning=True, hive_schema=types, storage_options=location.options
    )
    return frame.select(cs.by_name(*(name for name in schema if name not in below), *below))


def _with_hive(frame: pl.LazyFrame, address: str, hive: tuple[pl.Schema, list[str]] | None) -> pl.LazyFrame:
    """Return the rows of one file with the columns in its folder names."""
    if hive is None:
        return frame
    types, below = hive
    texts_by_name = {name: unquote(value) for name, value in re.findall(r"([^/=]+)=([^/=]+)/", address)}
    texts = {name: None if texts_by_name[name] == HIVE_NULL else texts_by_name[name] for name in below}
    values = [pl.lit(text, pl.String).cast(types[name]).alias(name) for name, text in texts.items()]
    return frame.select(*(column(name) for name in frame.collect_schema() if name not in below), *values)


def _join(label: str, schemas: Schemas, read_files: _Reader, columns: Collection[str] | None) -> pl.LazyFrame:
    """Return the rows of all files. Raises DataError for columns that are missing or can't be joined."""
    groups: dict[tuple[tuple[str, pl.DataType], ...], list[str]] = {}
    for address, schema in schemas.items():
        groups.setdefault(tuple(schema.items()), []).append(address)
    if len(groups) == 1:
        return read_files(list(schemas), next(iter(schemas.values())))

    parts = [(pl.Schema(items), addresses) for items, addresses in groups.items()]
    common_types: dict[str, pl.DataType] = {}
    faults = []
    for name in dict.fromkeys(name for schema, _ in parts for name in schema):
        is_required = columns is None or name in columns
        files_without = [address for schema, addresses in parts if name not in schema for address in addresses]
        types = {schema[name]: addresses[0] for schema, addresses in reversed(parts) if name in schema}
        common = None if files_without else _common(list(types))
        if common is not None:
            common_types[name] = common
        elif is_required and files_without:
            faults.append(
                f"column {name!r} is missing in {len(files_without):,} of {len(schemas):,} files: "
                f"{listing(files_without)}"
            )
        elif is_required:
            zones = all(dtype in (pl.Date, pl.Datetime, pl.Null) for dtype in types)
            kinds = {
                _zone(dtype) if zones else str(dtype): address for dtype, address in types.items() if dtype != pl.Null
            }
            examples = listing(f"{kind} in {address}" for kind, address in reversed(kinds.items()))
            fault_text = (
                "has several time zones: {}; convert it to one" if zones else "differs: {}; write it as one type"
            )
            faults.append(f"column {name!r} {fault_text.format(examples)}")
    if faults:
        raise DataError("\n".join(f"{label}: {fault}" for fault in faults))

    frames = []
    for schema, addresses in parts:
        frame = read_files(addresses, schema)
        folder_columns = [name for name in frame.collect_schema() if name not in schema]  # from folder names
        cast = {name: dtype for name, dtype in common_types.items() if name not in folder_columns}
        selected = (column(name) if schema[name] == dtype else column(name).cast(dtype) for name, dtype in cast.items())
        frames.append(frame.select(*selected, *map(column, folder_columns)))
    return pl.concat(frames)


def _zone(dtype: pl.DataType) -> str:
    return (isinstance(dtype, pl.Datetime) and dtype.time_zone) or "none"


def _common(types: Iterable[pl.DataType]) -> pl.DataType | None:
    """Return the type that holds the values of all types unchanged, None if there is none.

    Exception: whole numbers beyond 2^53 are rounded if another type is a float.
    """
    distinct = {dtype for dtype in types if dtype != pl.Null}
    if len(distinct) <= 1:
        return distinct.pop() if distinct else pl.Null()
    if all(isinstance(dtype, pl.String | pl.Categorical | pl.Enum) for dtype in distinct):
        return pl.String()
    if all(dtype.is_integer() for dtype in distinct):
        return pl.Int128() if distinct & {pl.UInt64(), pl.Int128()} else pl.Int64()
    if all(dtype.is_numeric() for dtype in distinct):
        return pl.Float64()
    zones = {dtype.time_zone if isinstance(dtype, pl.Datetime) else None for dtype in distinct}
    if len(zones) == 1 and all(isinstance(dtype, pl.Date | pl.Datetime) for dtype in distinct):
        return pl.Datetime("us", zones.pop())
    return None


def _scan_delta(location: Location) -> pl.LazyFrame:
    table = open_delta(location)
    try:
        frame = pl.scan_delta(table, storage_options=location.options)
        frame.collect_schema()
    except UNREADABLE as error:
        raise unreadable(error, location.label) from error
    return frame


def open_delta(location: Location) -> Any:
    """Return the deltalake.DeltaTable at a location. Raises ConfigError without that package, DataError if damaged."""
    try:
        import deltalake
    except ImportError:
        raise ConfigError(
            f"{location.label} is a Delta Lake table, which needs: pip install 'gatecast[delta]'"
        ) from None
    options = {name: str(value) for name, value in (location.options or {}).items()}
    try:
        return deltalake.DeltaTable(location.path, storage_options=options)
    except (deltalake.exceptions.DeltaError, OSError) as error:
        raise unreadable(error, f"the Delta Lake table {location.label}") from None


def identity(path: str, key: str) -> list[tuple[str, int, int]]:
    """Return the name, size and time (ns) of each file of a table, or id and version of a Delta Lake table."""
    location = Location.of(path, f"{key}={path}")
    if location.has_folder("_delta_log"):
        table = open_delta(location)
        return [(f"{path} {table.metadata().id}", table.version(), 0)]
    _, files = location.find(_TABLE)
    return [(file.address, file.size, file.modified) for file in files]
