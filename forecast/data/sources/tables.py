"""Tables from and to files: the only code that reads or writes Parquet, CSV and Arrow files."""

import base64
import os
import re
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final
from urllib.parse import unquote

import polars as pl
import polars.selectors as cs

from forecast.data.files import check_writable, make_private
from forecast.data.sources.csv_files import CsvFiles, CsvFormat
from forecast.data.sources.frames import check_odd, odd_columns
from forecast.data.sources.storage import S3, File, Place
from forecast.errors import ConfigError, DataError, OutputError, listing

if TYPE_CHECKING:
    import pyarrow as pa

_KINDS: Final = {
    ".parquet": "parquet", ".pq": "parquet", ".csv": "csv", ".csv.gz": "csv", ".csv.zst": "csv",
    ".arrow": "ipc", ".ipc": "ipc", ".feather": "ipc",
}  # fmt: skip
_TABLE: Final = re.compile("(" + "|".join(map(re.escape, _KINDS)) + ")$", re.IGNORECASE)

# Requests for the footers of files in S3 that run at a time.
_REQUESTS: Final = 16

# Rows that are written and read together: readers hold several of these groups at a time.
_GROUP_ROWS: Final = 1 << 16

# The name of a folder for rows without a value.
_HIVE_NULL: Final = "__HIVE_DEFAULT_PARTITION__"

UNREADABLE: Final = (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException)
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
            f"{what}: {_of(empty, files)} empty (0 bytes): {listing(empty)}; remove what is empty or write it again"
        )
    csv_files = CsvFiles(place, text, columns, csv_format or CsvFormat())
    copies: _Copies = {}
    find = _parquet_schema if kind == "parquet" else _ipc_schema
    schemas = _schemas(
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
            hive = _hive_schema(place, root, list(schemas), text)
            read = partial(_read_parquet_or_ipc, place, kind, hive, copies)
        frame = _join(what, schemas, read, columns)
        frame.collect_schema()
    except UNREADABLE as error:
        raise unreadable(error, what) from error
    return frame


def column(name: str) -> pl.Expr:
    """Return the column that is called just that: pl.col takes "*" for all columns, and ^...$ for a pattern."""
    return cs.by_name(name).as_expr()


_Schemas = dict[str, pl.Schema]
"""The columns of each file."""
_Copies = dict[str, pl.LazyFrame]
"""Rows of files that have columns which can't be read, without these."""
_Reader = Callable[[list[str], pl.Schema], pl.LazyFrame]
"""Reads files that have the same columns."""


def _kind(file: File) -> str | None:
    found = _TABLE.search(file.address)
    return _KINDS[found[0].lower()] if found else None


def _of(some: Collection[object], every: Collection[object]) -> str:
    """Return "2 of 5 files are"."""
    if len(every) == 1:
        return "the file is"
    return f"{len(some):,} of {len(every):,} files {'is' if len(some) == 1 else 'are'}"


def _schemas(place: Place, files: Sequence[File], find: Callable[[str], pl.Schema], *, parallel: bool) -> _Schemas:
    """Return the columns of each file. Raises DataError that names the files that can't be read."""
    import pyarrow as pa

    def schema(file: File) -> pl.Schema | Exception:
        try:
            return find(file.address)
        except (*UNREADABLE, pa.ArrowException, UnicodeDecodeError, DataError) as error:
            return error

    with ThreadPoolExecutor(_REQUESTS) as pool:
        found = list(pool.map(schema, files) if parallel else map(schema, files))
    schemas = {file.address: one for file, one in zip(files, found, strict=True) if isinstance(one, pl.Schema)}
    faults = {file.address: one for file, one in zip(files, found, strict=True) if not isinstance(one, pl.Schema)}
    for fault in faults.values():
        if isinstance(fault, DataError):
            raise fault
    if len(files) == 1 and faults:
        raise unreadable(faults[files[0].address], place.what)
    if faults:
        shown = listing(f"{address} ({_reason(fault)})" for address, fault in faults.items())
        raise DataError(
            f"{place.what}: {len(faults):,} of {len(files):,} files can't be read (truncated or damaged?): {shown}; "
            "write them again, or move them out of the folder"
        )
    return schemas


def _parquet_schema(place: Place, address: str, columns: Collection[str] | None, copies: _Copies) -> pl.Schema:
    import pyarrow as pa

    metadata = pl.read_parquet_metadata(address, storage_options=place.options)
    content = base64.b64decode(metadata.get("ARROW:schema", ""))
    if not (content and odd_columns(pa.ipc.read_schema(pa.py_buffer(content)))):
        with suppress(pl.exceptions.DuplicateError):
            return pl.scan_parquet(address, glob=False, storage_options=place.options).collect_schema()
    copies[address] = _copy(place, address, columns)
    return copies[address].collect_schema()


def _ipc_schema(place: Place, address: str, columns: Collection[str] | None, copies: _Copies) -> pl.Schema:
    import pyarrow as pa

    with place.open_anywhere(address) as stream:
        odd = odd_columns(pa.ipc.open_file(stream).schema)
    if not odd:
        return pl.scan_ipc(address, glob=False, storage_options=place.options).collect_schema()
    copies[address] = _copy(place, address, columns, ipc=True)
    return copies[address].collect_schema()


def _copy(place: Place, address: str, columns: Collection[str] | None, *, ipc: bool = False) -> pl.LazyFrame:
    """Return the rows of a file without the columns that Polars can't read. Raises DataError if one is wanted."""
    import pyarrow as pa
    from pyarrow import parquet

    with place.open_anywhere(address) as stream:
        file = pa.ipc.open_file(stream) if ipc else parquet.ParquetFile(stream)
        schema = file.schema if ipc else file.schema_arrow
        odd = odd_columns(schema)
        check_odd(odd, columns, f"{place.what}: {address}")
        positions = [position for position, name in enumerate(schema.names) if name not in odd]
        names = [schema.names[position] for position in positions]
        blocks = map(file.get_batch, range(file.num_record_batches)) if ipc else file.iter_batches(columns=names)
        rows = (block.select(positions if ipc else names) for block in blocks)
        return spool(rows, pa.schema([schema.field(position) for position in positions]))


def _hive_schema(
    place: Place, root: str, addresses: list[str], text: Collection[str]
) -> tuple[pl.Schema, list[str]] | None:
    """Return the columns that folders such as store=7 hold, None without such folders.

    The first are those of the whole path, the second those below `root`, where the table begins.
    """
    start = len(root) + len(S3) * place.path.startswith(S3)
    keys = {address: re.findall(r"([^/=]+)=[^/=]+/", address[start:]) for address in addresses}
    below = keys[addresses[0]]
    other = [address for address in addresses if keys[address] != below]
    if other:
        raise DataError(
            f"{place.what}: files are in folders of different kinds: {addresses[0]} ({', '.join(below) or 'none'}), "
            f"{other[0]} ({', '.join(keys[other[0]]) or 'none'}); all files need the same ones, such as store=7/ "
            "(a sign = in a value is written %3D)"
        )
    if not below:
        return None
    values: dict[str, set[str]] = {}
    for address in addresses:
        for name, value in re.findall(r"([^/=]+)=([^/=]+)/", address):
            values.setdefault(name, set()).add(unquote(value))
    types = {name: pl.String() if name in text else _type_of(found) for name, found in values.items()}
    return pl.Schema(types), below


def _type_of(values: set[str]) -> pl.DataType:
    """Return the type of the values that folders are named by."""
    texts = pl.Series(sorted(values - {_HIVE_NULL}), dtype=pl.String)
    parsed = (
        texts.cast(pl.Int64, strict=False),
        texts.cast(pl.Float64, strict=False),
        texts.str.to_date("%F", strict=False),
    )
    return next((found.dtype for found in parsed if not found.null_count()), pl.String())


def _read_parquet_or_ipc(
    place: Place,
    kind: str,
    hive: tuple[pl.Schema, list[str]] | None,
    copies: _Copies,
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
    texts = {name: None if held[name] == _HIVE_NULL else held[name] for name in below}
    values = [pl.lit(text, pl.String).cast(types[name]).alias(name) for name, text in texts.items()]
    return frame.select(*(column(name) for name in frame.collect_schema() if name not in below), *values)


def _join(what: str, schemas: _Schemas, read: _Reader, columns: Collection[str] | None) -> pl.LazyFrame:
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


def spool(batches: "Iterable[pa.RecordBatch]", schema: "pa.Schema") -> pl.LazyFrame:
    """Return rows that come once, batch by batch, as a table that can be read again and again.

    They are kept in a temporary file, which goes when this process ends: all passes see the same rows, memory holds a
    batch at a time, and a filter skips row groups. Raises OutputError if the file can't be written.
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


def unreadable(error: BaseException, what: str) -> DataError:
    """Return the DataError for a table that Polars could not read."""
    return DataError(f"{what} can't be read (truncated or damaged?): {_reason(error)}")


def _reason(error: BaseException) -> str:
    """Return what is wrong with a file, in short."""
    first = next(iter(str(error).splitlines()), type(error).__name__)
    for pattern, reason in _REASONS.items():
        if re.search(pattern, first):
            return reason
    return re.sub(r"^(object-store error|parquet|out-of-spec): ", "", first)


_REASONS: Final[Mapping[str, str]] = {
    r"magic bytes|footer|InvalidFooter|Not an Arrow file": "its end is missing, or it is another kind of file",
    r"(?i)invalid utf-?8|'utf-8' codec": "it is not UTF-8: save it in that encoding",
    r"(?i)empty CSV": "empty CSV",
}


def write_parquet_atomic(frame: pl.DataFrame, path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a Parquet file, with `metadata` in its footer; a reader sees all of it or nothing."""
    with _atomic(path) as file:
        frame.write_parquet(file, compression="zstd", row_group_size=500_000, metadata=metadata)


@contextmanager
def parquet_blocks(path: Path, metadata: Mapping[str, str] | None = None) -> Iterator[Callable[[pl.DataFrame], None]]:
    """Yield what adds rows to a Parquet file, block by block; a reader sees all of them, once this ends well.

    `metadata` is put into its footer.
    """
    from pyarrow import parquet

    writer: parquet.ParquetWriter | None = None
    with _atomic(path) as file:

        def write(frame: pl.DataFrame) -> None:
            nonlocal writer
            rows = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
            rows = rows.replace_schema_metadata(dict(metadata or {}))
            if writer is None:  # Numbers hardly repeat: dictionaries of them take time and room.
                texts = [name for name, kind in frame.schema.items() if kind == pl.String]
                writer = parquet.ParquetWriter(file, rows.schema, compression="zstd", use_dictionary=texts or False)
            writer.write_table(rows, row_group_size=_GROUP_ROWS)

        try:
            yield write
        finally:
            if writer is not None:
                writer.close()


def write_bytes_atomic(content: bytes, path: Path, key: str = "output.path", *, private: bool = False) -> None:
    """Write a file; a reader sees all of it or nothing. `key` says where it is.

    One that is `private` can be read by its owner alone.
    """
    with _atomic(path, key, private=private) as file:
        file.write(content)


def write_text_atomic(text: str, path: Path, key: str = "output.path", *, private: bool = False) -> None:
    """Write a text file as `write_bytes_atomic`."""
    write_bytes_atomic(text.encode(), path, key, private=private)


@contextmanager
def _atomic(path: Path, key: str = "output.path", *, private: bool = False) -> Iterator[BinaryIO]:
    """Yield a file with a temporary name beside `path`, and rename it once it is complete and on the disk."""
    check_writable(path.parent, key)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if private:
            make_private(temporary)
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise OutputError(f"can't write {path}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
