"""Tables from and to files: the only code that reads or writes Parquet, CSV and Arrow files."""

import re
from collections.abc import Callable, Collection, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import polars as pl
import polars.selectors as cs

from forecast.data.sources.csv_files import CsvFiles, CsvFormat
from forecast.data.sources.frames import UNREADABLE, column, unreadable
from forecast.data.sources.schemas import (
    HIVE_NULL,
    Copies,
    Schemas,
    hive_schema,
    ipc_schema,
    parquet_schema,
    read_schemas,
    some_of,
)
from forecast.data.sources.storage import S3, File, Place
from forecast.errors import ConfigError, DataError, listing

_KINDS: Final = {
    ".parquet": "parquet", ".pq": "parquet", ".csv": "csv", ".csv.gz": "csv", ".csv.zst": "csv",
    ".arrow": "ipc", ".ipc": "ipc", ".feather": "ipc",
}  # fmt: skip
_TABLE: Final = re.compile("(" + "|".join(map(re.escape, _KINDS)) + ")$", re.IGNORECASE)
"""What Polars raises for a table that it can't read."""


def scan(
    path: str | Path,
    text: Collection[str] = ("series_id",),
    key: str = "data.path",
    columns: Collection[str] | None = None,
    csv_format: CsvFormat | None = None,
) -> pl.LazyFrame:
    """Return the table in a Parquet, CSV or Arrow file, in all such files of a folder or glob, or in Delta Lake.

    The path may be an s3:// address. `text` names the columns of CSV files, and of folders such as store=7, to read as
    they are: "007" is not 7. `columns` are those that have to be alike in all files (all when not given); they get the
    type that holds the values of each file: Float64 for whole numbers and floats, Datetime for dates and datetimes.
    Raises DataError for what can't be read, ConfigError if a package is missing.
    """
    what = f"{key}={path}"
    place = Place.of(str(path), what)
    if place.has_folder("_delta_log"):
        return _scan_delta(place)
    root, files = place.find(_TABLE)
    kinds = {_kind(file) for file in files}
    if len(kinds) > 1:
        found = listing(sorted(map(str, kinds)))
        raise DataError(f"{what} holds files of several kinds ({found}); give files of one kind")
    kind = kinds.pop()
    if kind is None:
        raise DataError(f"{what}: unknown kind of file; known are {', '.join(_KINDS)}")
    empty = [file.address for file in files if not file.size]
    if empty:
        raise DataError(
            f"{what}: {some_of(empty, files)} empty (0 bytes): {listing(empty)}; remove what is empty or write it again"
        )
    csv_files = CsvFiles(place, text, columns, csv_format or CsvFormat())
    copies: Copies = {}
    find = parquet_schema if kind == "parquet" else ipc_schema
    schemas = read_schemas(
        place,
        files,
        csv_files.schema if kind == "csv" else partial(find, place, columns=columns, copies=copies),
        parallel=kind != "csv" and place.path.startswith(S3),
    )
    try:
        if kind == "csv":
            csv_files.align(schemas)
            read: _Reader = csv_files.read
        else:
            hive = hive_schema(place, root, list(schemas), text)
            read = partial(_read_parquet_or_ipc, place, kind, hive, copies)
        frame = _join(what, schemas, read, columns)
        frame.collect_schema()
    except UNREADABLE as error:
        raise unreadable(error, what) from error
    return frame


"""The columns of each file."""
"""Rows of files that have columns which can't be read, without these."""
_Reader = Callable[[list[str], pl.Schema], pl.LazyFrame]
"""Reads files that have the same columns."""


def _kind(file: File) -> str | None:
    found = _TABLE.search(file.address)
    return _KINDS[found[0].lower()] if found else None


def _read_parquet_or_ipc(
    place: Place,
    kind: str,
    hive: tuple[pl.Schema, list[str]] | None,
    copies: Copies,
    addresses: list[str],
    schema: pl.Schema,
) -> pl.LazyFrame:
    if not copies.keys().isdisjoint(addresses):
        whole = [address for address in addresses if address not in copies]
        parts = [_with_hive(copies[address], address, hive) for address in addresses if address in copies]
        return pl.concat([*([_read_parquet_or_ipc(place, kind, hive, {}, whole, schema)] if whole else []), *parts])
    scan_files: Any = pl.scan_parquet if kind == "parquet" else pl.scan_ipc
    if hive is None:
        frame: pl.LazyFrame = scan_files(addresses, glob=False, hive_partitioning=False, storage_options=place.options)
        return frame
    types, below = hive
    clash = [name for name in types if name not in below and name in schema]
    if clash:
        raise DataError(f"{place.what}: a folder above the table is called {clash[0]}=..., like a column; rename it")
    frame = scan_files(addresses, glob=False, hive_partitioning=True, hive_schema=types, storage_options=place.options)
    return frame.select(cs.by_name(*(name for name in schema if name not in below), *below))


def _with_hive(frame: pl.LazyFrame, address: str, hive: tuple[pl.Schema, list[str]] | None) -> pl.LazyFrame:
    """Return the rows of one file with the columns that its folders hold."""
    if hive is None:
        return frame
    types, below = hive
    held = {name: unquote(value) for name, value in re.findall(r"([^/=]+)=([^/=]+)/", address)}
    texts = {name: None if held[name] == HIVE_NULL else held[name] for name in below}
    values = [pl.lit(text, pl.String).cast(types[name]).alias(name) for name, text in texts.items()]
    return frame.select(*(column(name) for name in frame.collect_schema() if name not in below), *values)


def _join(what: str, schemas: Schemas, read: _Reader, columns: Collection[str] | None) -> pl.LazyFrame:
    """Return the rows of all files. Raises DataError for columns that are missing or can't be joined."""
    groups: dict[tuple[tuple[str, pl.DataType], ...], list[str]] = {}
    for address, schema in schemas.items():
        groups.setdefault(tuple(schema.items()), []).append(address)
    if len(groups) == 1:
        return read(list(schemas), next(iter(schemas.values())))

    parts = [(pl.Schema(items), addresses) for items, addresses in groups.items()]
    chosen: dict[str, pl.DataType] = {}
    faults = []
    for name in dict.fromkeys(name for schema, _ in parts for name in schema):
        needed = columns is None or name in columns
        lacking = [address for schema, addresses in parts if name not in schema for address in addresses]
        types = {schema[name]: addresses[0] for schema, addresses in reversed(parts) if name in schema}
        common = None if lacking else _common(list(types))
        if common is not None:
            chosen[name] = common
        elif needed and lacking:
            faults.append(
                f"column {name!r} is missing in {len(lacking):,} of {len(schemas):,} files: {listing(lacking)}"
            )
        elif needed:
            zones = all(dtype in (pl.Date, pl.Datetime, pl.Null) for dtype in types)
            kinds = {
                _zone(dtype) if zones else str(dtype): address for dtype, address in types.items() if dtype != pl.Null
            }
            shown = listing(f"{kind} in {address}" for kind, address in reversed(kinds.items()))
            how = "has several time zones: {}; convert it to one" if zones else "differs: {}; write it as one type"
            faults.append(f"column {name!r} {how.format(shown)}")
    if faults:
        raise DataError("\n".join(f"{what}: {fault}" for fault in faults))

    frames = []
    for schema, addresses in parts:
        frame = read(addresses, schema)
        own = [name for name in frame.collect_schema() if name not in schema]  # those that folders hold
        cast = {name: dtype for name, dtype in chosen.items() if name not in own}
        held = (column(name) if schema[name] == dtype else column(name).cast(dtype) for name, dtype in cast.items())
        frames.append(frame.select(*held, *map(column, own)))
    return pl.concat(frames)


def _zone(dtype: pl.DataType) -> str:
    return (isinstance(dtype, pl.Datetime) and dtype.time_zone) or "none"


def _common(types: Iterable[pl.DataType]) -> pl.DataType | None:
    """Return the type that holds the values of all types unchanged, None if there is none.

    Whole numbers beyond 2^53 are rounded where floats are among them.
    """
    found = {dtype for dtype in types if dtype != pl.Null}
    if len(found) <= 1:
        return found.pop() if found else pl.Null()
    if all(isinstance(dtype, pl.String | pl.Categorical | pl.Enum) for dtype in found):
        return pl.String()
    if all(dtype.is_integer() for dtype in found):
        return pl.Int128() if found & {pl.UInt64(), pl.Int128()} else pl.Int64()
    if all(dtype.is_numeric() for dtype in found):
        return pl.Float64()
    zones = {dtype.time_zone if isinstance(dtype, pl.Datetime) else None for dtype in found}
    if len(zones) == 1 and all(isinstance(dtype, pl.Date | pl.Datetime) for dtype in found):
        return pl.Datetime("us", zones.pop())
    return None


def _scan_delta(place: Place) -> pl.LazyFrame:
    table = open_delta(place)
    try:
        frame = pl.scan_delta(table, storage_options=place.options)
        frame.collect_schema()
    except UNREADABLE as error:
        raise unreadable(error, place.what) from error
    return frame


def open_delta(place: Place) -> Any:
    """Return the deltalake.DeltaTable at a place. Raises ConfigError without that package, DataError if damaged."""
    try:
        import deltalake
    except ImportError:
        raise ConfigError(f"{place.what} is a Delta Lake table, which needs: pip install 'gatecast[delta]'") from None
    options = {name: str(value) for name, value in (place.options or {}).items()}
    try:
        return deltalake.DeltaTable(place.path, storage_options=options)
    except (deltalake.exceptions.DeltaError, OSError) as error:
        raise unreadable(error, f"the Delta Lake table {place.what}") from None


def identity(path: str, key: str) -> list[tuple[str, int, int]]:
    """Return the name, size and time (ns) of each file of a table, or id and version of a Delta Lake table."""
    place = Place.of(path, f"{key}={path}")
    if place.has_folder("_delta_log"):
        table = open_delta(place)
        return [(f"{path} {table.metadata().id}", table.version(), 0)]
    _, files = place.find(_TABLE)
    return [(file.address, file.size, file.modified) for file in files]
