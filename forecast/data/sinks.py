"""Where forecasts and rejects go: folders of Parquet files, Delta Lake tables, or tables of a database.

A sink is given the files of one cutoff once all of them are complete on this disk, and puts their rows in the place of
those that it held of that cutoff.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import polars as pl

from forecast.config import SinkConfig
from forecast.data.folders import check_writable
from forecast.data.io import sync_folder
from forecast.data.sql import rows_where, transaction
from forecast.errors import ConfigError, OutputError, listing
from forecast.names import CUTOFF, SERIES_ID, STEP, TIMESTAMP

Kind = Literal["rejects", "forecasts"]
FORECASTS: Final = "forecasts"
REJECTS: Final = "rejects"
KINDS: Final[tuple[Kind, ...]] = (REJECTS, FORECASTS)
"""In the order in which they are written."""

Files = Mapping[Kind, Sequence[Path]]
"""Parquet files with the rows of one cutoff, in order."""


class Sink(Protocol):
    """Takes the rows of one cutoff after the other."""

    def folder(self, kind: Kind, cutoff: datetime) -> Path | None:
        """Return where the files of a cutoff are in the end, None if they do not stay."""

    def found(self, cutoff: datetime) -> dict[str, Any]:
        """Return what is there of a cutoff, as the manifest says it."""

    def replace(self, cutoff: datetime, files: Files, rows: Mapping[Kind, int]) -> dict[str, Any]:
        """Write the rows of these files, which are so many; return what is there then, as `found` does.

        They are counted again where they then are. Raises OutputError if they are others, or can't be written.
        """

    def clean(self, cutoff: datetime, files: Files) -> None:
        """Remove what is left of an earlier run, once the manifest names the new files."""

    def forecasts(self, content: Mapping[str, Any]) -> Iterator[pl.LazyFrame]:
        """Yield the forecasts of the cutoff whose manifest has this `content`, some series at a time."""


def open_sink(output: SinkConfig, group: str = "output") -> Sink:
    """Return the sink that the settings describe; a database is asked for an answer, and Delta Lake imported.

    `group` is that of the settings. Raises ConfigError and OutputError.
    """
    folder = Path(output.path)
    held = next((path for kind in KINDS for path in (folder / kind).glob("*")), None)
    is_delta = any((folder / kind / "_delta_log").is_dir() for kind in KINDS)
    if held and output.sink in ("parquet", "delta") and (output.sink == "delta") != is_delta:
        raise OutputError(
            f"{folder} holds {'Delta Lake tables' if is_delta else 'Parquet files'}; choose another {group}.path"
        )
    if output.sink == "parquet":
        return ParquetSink(folder)
    if output.sink == "delta":
        return DeltaSink(folder)
    assert output.uri is not None
    return SqlSink(output.uri.get_secret_value(), output.table, f"{group}.uri")


def partition(cutoff: datetime) -> str:
    """Return the name of the folder of a cutoff, as hive tables name it: a colon is %3A.

    >>> partition(datetime(2024, 1, 31, 23))
    'cutoff=2024-01-31T23%3A00%3A00'
    """
    return f"{CUTOFF}={cutoff:%Y-%m-%dT%H%%3A%M%%3A%S%z}"


class ParquetSink:
    """Files in folders FORECASTS and REJECTS, each with a folder per cutoff."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def folder(self, kind: Kind, cutoff: datetime) -> Path | None:
        """Return the folder of a cutoff."""
        return self._folder / kind / partition(cutoff)

    def found(self, cutoff: datetime) -> dict[str, Any]:
        """Return the SHA-256 of each file."""
        return self._hashes(self._files(cutoff))

    def _hashes(self, files: Iterable[Path]) -> dict[str, Any]:
        hashes = {}
        for file in files:
            with file.open("rb") as opened:
                hashes[str(file.relative_to(self._folder))] = hashlib.file_digest(opened, "sha256").hexdigest()
        return {"files": hashes}

    def replace(self, cutoff: datetime, files: Files, rows: Mapping[Kind, int]) -> dict[str, Any]:
        """Move the files beside those that are there."""
        every: list[Path] = []
        for kind in KINDS:
            target = self._folder / kind / partition(cutoff)
            check_writable(target)
            moved = [target / file.name for file in files[kind]]
            try:
                for file, place in zip(files[kind], moved, strict=True):
                    file.replace(place)
                sync_folder(target)
                sync_folder(target.parent)
            except OSError as error:
                raise OutputError(f"can't move the files of {partition(cutoff)} to {target}: {error}") from error
            _check(kind, sum(_scan(file).select(pl.len()).collect().item() for file in moved), rows)
            every += moved
        return self._hashes(sorted(every))

    def clean(self, cutoff: datetime, files: Files) -> None:
        """Remove other files than those that were moved."""
        names = {(kind, file.name) for kind in KINDS for file in files[kind]}
        for file in self._files(cutoff):
            if (file.parts[-3], file.name) not in names:
                file.unlink()

    def forecasts(self, content: Mapping[str, Any]) -> Iterator[pl.LazyFrame]:
        """Yield the rows of each file that the manifest names. Raises OutputError if one is not there."""
        files = [self._folder / name for name in content["files"] if Path(name).parts[0] == FORECASTS]
        if gone := [file for file in files if not file.is_file()]:
            raise OutputError(
                f"{len(gone):,} of {len(files):,} files of the cutoff {content[CUTOFF]} are gone: {listing(gone)}; "
                f"score it again (score.cutoff={content[CUTOFF]})"
            )
        yield from map(_scan, files)

    def _files(self, cutoff: datetime) -> list[Path]:
        return sorted(file for kind in KINDS for file in (self._folder / kind / partition(cutoff)).glob("*"))


class _TableSink:
    """Tables with a column `cutoff`; their files are not ours."""

    def folder(self, kind: Kind, cutoff: datetime) -> Path | None:  # noqa: ARG002
        """Return None: the files go once their rows are in the tables."""
        return None

    def clean(self, cutoff: datetime, files: Files) -> None:
        """Do nothing: the tables hold no rows but the new ones."""


class DeltaSink(_TableSink):
    """Delta Lake tables FORECASTS and REJECTS in a folder, partitioned by cutoff; a commit each replaces a cutoff."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            import deltalake
        except ImportError:
            raise ConfigError("output.sink=delta needs: pip install 'gatecast[delta]'") from None
        self._delta = deltalake

    def found(self, cutoff: datetime) -> dict[str, Any]:
        """Return the rows of each table."""
        return {"tables": {kind: self._rows(kind, cutoff) for kind in KINDS}}

    def replace(self, cutoff: datetime, files: Files, rows: Mapping[Kind, int]) -> dict[str, Any]:
        """Overwrite the cutoff in each table."""
        import pyarrow as pa

        for kind in KINDS:
            path = self._folder / kind
            frames = _frames(files[kind], cutoff)
            first = next(frames)
            schema = _arrow(first).schema
            batches = (batch for frame in chain([first], frames) for batch in _arrow(frame).to_batches())
            there = self._delta.DeltaTable.is_deltatable(str(path))
            moment = cutoff.astimezone(UTC) if cutoff.tzinfo else cutoff
            try:
                self._delta.write_deltalake(
                    str(path),
                    pa.RecordBatchReader.from_batches(schema, batches),
                    mode="overwrite",
                    partition_by=[CUTOFF],
                    predicate=f"{CUTOFF} = '{moment}'" if there else None,
                )
            except (self._delta.exceptions.DeltaError, pa.ArrowException, OSError) as error:
                raise OutputError(f"the Delta Lake table {path} can't be written: {error}") from error
            _check(kind, self._rows(kind, cutoff), rows)
        return {"tables": dict(rows)}

    def forecasts(self, content: Mapping[str, Any]) -> Iterator[pl.LazyFrame]:
        """Yield the rows of the cutoff."""
        yield self._scan(FORECASTS, datetime.fromisoformat(content[CUTOFF]))

    def _rows(self, kind: Kind, cutoff: datetime) -> int:
        if not self._delta.DeltaTable.is_deltatable(str(self._folder / kind)):
            return 0
        return int(self._scan(kind, cutoff).select(pl.len()).collect().item())

    def _scan(self, kind: Kind, cutoff: datetime) -> pl.LazyFrame:
        same = pl.col(CUTOFF).dt.epoch() == pl.lit(cutoff).dt.epoch()
        return pl.scan_delta(str(self._folder / kind)).filter(same)


class SqlSink(_TableSink):
    """Two tables of a database; one transaction replaces a cutoff in both."""

    def __init__(self, uri: str, table: str, key: str) -> None:
        self._uri, self._tables, self._key = uri, {FORECASTS: table, REJECTS: f"{table}_{REJECTS}"}, key
        with transaction(uri, key):
            pass  # It answers.

    def found(self, cutoff: datetime) -> dict[str, Any]:
        """Return the rows of each table."""
        with transaction(self._uri, self._key) as database:
            return {"tables": {kind: database.rows(self._tables[kind], CUTOFF, cutoff) for kind in KINDS}}

    def replace(self, cutoff: datetime, files: Files, rows: Mapping[Kind, int]) -> dict[str, Any]:
        """Delete and insert in one transaction, in which rows are counted too."""
        with transaction(self._uri, self._key) as database:
            for kind in KINDS:
                frames = _frames(files[kind], cutoff)
                first = next(frames)
                key = (CUTOFF, SERIES_ID, STEP) if kind == FORECASTS else ()
                database.create(self._tables[kind], first.schema, key)
                database.replace(self._tables[kind], CUTOFF, cutoff, chain([first], frames))
                _check(kind, database.rows(self._tables[kind], CUTOFF, cutoff), rows)
        return {"tables": dict(rows)}

    def forecasts(self, content: Mapping[str, Any]) -> Iterator[pl.LazyFrame]:
        """Yield the rows of the cutoff."""
        yield rows_where(self._uri, self._tables[FORECASTS], CUTOFF, datetime.fromisoformat(content[CUTOFF]))


def _scan(file: Path) -> pl.LazyFrame:
    return pl.scan_parquet(file, glob=False, hive_partitioning=False)


def _frames(files: Sequence[Path], cutoff: datetime) -> Iterator[pl.DataFrame]:
    """Yield the rows of each file, with their cutoff."""
    dtype = _scan(files[0]).collect_schema()[TIMESTAMP]
    for file in files:
        yield _scan(file).with_columns(pl.lit(cutoff).cast(dtype).alias(CUTOFF)).collect()


def _arrow(frame: pl.DataFrame) -> Any:
    return frame.to_arrow(compat_level=pl.CompatLevel.oldest())


def _check(kind: Kind, found: int, rows: Mapping[Kind, int]) -> None:
    if found != rows[kind]:
        raise OutputError(f"{found:,} rows of {kind} were found after writing {rows[kind]:,}; score again")
