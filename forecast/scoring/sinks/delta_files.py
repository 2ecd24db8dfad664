"""Parquet files that become files of a Delta Lake table as they are: linked into its folder, and added by one commit.

A reader of the table takes the cutoff of a row from the log (the partition value of its file), not from the file, which
may have the column too.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import deltalake
import polars as pl
import polars.selectors as cs
from deltalake.transaction import AddAction, RemoveAction
from pyarrow import parquet

from forecast.data.files import sync_folder, write_text_atomic
from forecast.names import CUTOFF, MODEL_COLUMNS, SERIES_ID, STEP, TIMESTAMP

# Columns by whose smallest and largest value readers skip files.
_STATISTICS: Final = (SERIES_ID, TIMESTAMP, STEP, *MODEL_COLUMNS)
# Features of a table that do not change what a writer has to put into its files.
_FEATURES: Final = {"appendOnly", "deletionVectors", "timestampNtz"}
_MICROSECONDS: Final = "us"
_IN_UTC: Final = cs.datetime(time_zone="*").dt.convert_time_zone("UTC")


def can_add(table: deltalake.DeltaTable, files: Sequence[Path], cutoff: datetime) -> bool:
    """Return whether files can be added to a table as they are: their columns have its types, their names are new."""
    protocol = table.protocol()
    features = set(protocol.writer_features or ()) if protocol.min_writer_version == 7 else set()
    is_plain = protocol.min_writer_version in (1, 2, 7) and features <= _FEATURES
    if not is_plain or table.metadata().partition_columns != [CUTOFF]:
        return False
    paths = _paths(files, cutoff)
    if not _added(table).isdisjoint(path.parts for path in paths):
        return False
    types = {field.name: field.type for field in table.schema().fields}
    schemas = [pl.read_parquet_schema(file) for file in files]
    units = {dtype.time_unit for schema in schemas for dtype in schema.values() if isinstance(dtype, pl.Datetime)}
    fields = [field for schema in schemas for field in _fields(schema)]
    return units <= {_MICROSECONDS} and all(types.get(field.name, field.type) == field.type for field in fields)


def add_files(table: deltalake.DeltaTable, root: Path, files: Sequence[Path], cutoff: datetime, journal: Path) -> None:
    """Add files with the rows of one cutoff to the table in `root` by one commit; columns that it lacks come before.

    `journal` names the files until the commit, so that `remove_orphans` can remove them after a kill. Raises DeltaError
    and OSError.
    """
    paths, value = _paths(files, cutoff), _partition_value(cutoff)
    names = {field.name for field in table.schema().fields}
    missing = {field.name: field for file in files for field in _fields(pl.read_parquet_schema(file))}
    if new := [field for name, field in missing.items() if name not in names]:
        table.alter.add_columns(new)
    write_text_atomic(json.dumps(list(map(str, paths))), journal)
    for file, path in zip(files, paths, strict=True):
        _link(file, root / path)
    sync_folder((root / paths[0]).parent)
    sync_folder(root)
    actions: list[AddAction | RemoveAction] = [
        AddAction(str(path), size, {CUTOFF: value}, time, data_change=True, stats=statistics)
        for file, path in zip(files, paths, strict=True)
        for size, time, statistics in [_facts(file)]
    ]
    table.create_write_transaction(actions, "append", table.schema(), [CUTOFF])
    journal.unlink()


def remove_orphans(table: deltalake.DeltaTable, root: Path, journal: Path) -> None:
    """Remove the files that a killed job has linked into the folder of a table, `root`, and not added."""
    try:
        paths = json.loads(journal.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    added = _added(table)
    for path in map(Path, paths):
        if path.parts not in added:
            (root / path).unlink(missing_ok=True)
    journal.unlink()


def _added(table: deltalake.DeltaTable) -> set[tuple[str, ...]]:
    """Return the folder and the name of each file of a table."""
    return {Path(uri).parts[-2:] for uri in table.file_uris()}


def _paths(files: Sequence[Path], cutoff: datetime) -> list[Path]:
    """Return the paths in a table of files with the rows of one cutoff."""
    return [Path(f"{CUTOFF}={quote(_partition_value(cutoff), safe='')}") / file.name for file in files]


def _fields(schema: Mapping[str, Any]) -> list[Any]:
    """Return the fields of a table of Polars columns."""
    frame = pl.DataFrame(schema=dict(schema)).with_columns(_IN_UTC)
    return list(deltalake.Schema.from_arrow(frame.to_arrow(compat_level=pl.CompatLevel.oldest()).schema).fields)


def _partition_value(cutoff: datetime) -> str:
    """Return a cutoff as the log has it: in UTC if it has a time zone."""
    moment = cutoff.astimezone(UTC) if cutoff.tzinfo else cutoff
    return f"{moment:%Y-%m-%d %H:%M:%S.%f}"


def _link(file: Path, path: Path) -> None:
    """Make a file available under a second path, without a copy where the file system can."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    try:
        os.link(file, path)
    except OSError:
        shutil.copyfile(file, path)
        with path.open("rb") as copy:
            os.fsync(copy.fileno())


def _facts(file: Path) -> tuple[int, int, str]:
    """Return size, time and statistics of a Parquet file, as a commit has them."""
    metadata = parquet.read_metadata(file)
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    indices = {metadata.schema.column(index).name: index for index in range(metadata.num_columns)}
    statistics: dict[str, Any] = {"numRecords": metadata.num_rows, "minValues": {}, "maxValues": {}, "nullCount": {}}
    for name in (name for name in _STATISTICS if name in indices):
        values = [group.column(indices[name]).statistics for group in groups]
        if all(value is not None and value.has_min_max and value.has_null_count for value in values) and values:
            statistics["minValues"][name] = _json(min(value.min for value in values))
            statistics["maxValues"][name] = _json(max(value.max for value in values))
            statistics["nullCount"][name] = sum(value.null_count for value in values)
    status = file.stat()
    return status.st_size, status.st_mtime_ns // 1_000_000, json.dumps(statistics)


def _json(value: Any) -> Any:
    """Return a value of statistics for JSON; timestamps are in milliseconds, rounded down, as the protocol says."""
    if not isinstance(value, datetime):
        return value
    text = (value.astimezone(UTC).replace(tzinfo=None) if value.tzinfo else value).isoformat(
        sep="T" if value.tzinfo else " ", timespec="milliseconds"
    )
    return f"{text}Z" if value.tzinfo else text
