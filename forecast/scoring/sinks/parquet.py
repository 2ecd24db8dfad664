"""Forecasts as Parquet files."""

import hashlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import polars as pl

from forecast.data.files import check_writable, sync_folder, write_parquet_atomic
from forecast.data.sources.frames import UNREADABLE
from forecast.errors import OutputError, listing
from forecast.names import CUTOFF
from forecast.scoring.manifests import (
    FORECASTS,
    KINDS,
    REJECTS,
    ForecastKey,
    Kind,
    file_name,
    is_superseded,
    legacy_key,
)
from forecast.scoring.sinks.base import Files, check_rows, scan_file

_ROWS: Final = "rows"


class ParquetSink:
    """Files in folders FORECASTS and REJECTS, each with a folder per cutoff and model."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def check(self) -> None:
        """Do nothing: files of any columns stand beside each other."""

    def folder(self, kind: Kind, key: ForecastKey) -> Path | None:
        """Return the folder of a key."""
        return self._folder / kind / key.folder

    def found(self, key: ForecastKey) -> dict[str, Any]:
        """Return the SHA-256 of each file."""
        return self._hashes(self._files(key))

    def _hashes(self, files: Iterable[Path]) -> dict[str, Any]:
        hashes = {}
        for file in files:
            with file.open("rb") as opened:
                hashes[str(file.relative_to(self._folder))] = hashlib.file_digest(opened, "sha256").hexdigest()
        return {"files": hashes}

    def replace(self, key: ForecastKey, files: Files, content: Mapping[str, Any]) -> dict[str, Any]:
        """Move the files beside those that are there."""
        placed: list[Path] = []
        for kind in KINDS:
            target = self._folder / kind / key.folder
            moved = [target / file.name for file in files[kind]]
            try:
                if moved:
                    check_writable(target)
                    for file, place in zip(files[kind], moved, strict=True):
                        file.replace(place)
                    sync_folder(target)
                    sync_folder(target.parent)
            except OSError as error:
                raise OutputError(f"can't move the files of {key.folder} to {target}: {error}") from error
            count = sum(scan_file(file).select(pl.len()).collect().item() for file in moved)
            check_rows(kind, count, content)
            placed += moved
        return self._hashes(sorted(placed))

    def is_superseded(self, content: Mapping[str, Any]) -> bool:
        """Return whether a manifest in the folder says so."""
        return is_superseded(self._folder, content)

    def record(self, content: Mapping[str, Any]) -> None:
        """Do nothing: the manifests are in the folder."""

    def clean(self, key: ForecastKey, files: Files) -> None:
        """Remove other files than those that were moved, and those of the layout before."""
        names = {(kind, file.name) for kind in KINDS for file in files[kind]}
        for file in self._files(key):
            if (file.parts[-3], file.name) not in names:
                file.unlink()
        for kind in KINDS:
            if not files[kind] and (folder := self._folder / kind / key.folder).is_dir():
                folder.rmdir()
            if legacy := legacy_key(self._folder, key):
                shutil.rmtree(self._folder / kind / legacy.folder, ignore_errors=True)

    def replace_rows(self, model: str, rejects: pl.DataFrame, digest: str) -> None:
        """Write a file whose name has the digest, and remove the one before."""
        file = self._rows_folder(model) / f"{_ROWS}-{digest[:16]}.parquet"
        if not _holds(file, rejects):
            write_parquet_atomic(rejects, file)
        for other in file.parent.iterdir():
            if other.name != file.name:
                other.unlink()

    def forecasts(self, content: Mapping[str, Any]) -> Iterator[pl.LazyFrame]:
        """Yield the rows of each file that the manifest names. Raises OutputError if one is not there."""
        yield from map(scan_file, self._named(content, FORECASTS))

    def rejects(self, content: Mapping[str, Any]) -> Iterator[pl.LazyFrame]:
        """Yield the rows of each file that the manifest names, and of those of reading."""
        is_legacy = ForecastKey.of(content).is_legacy  # Those of reading are among the files of the cutoff.
        rows = [] if is_legacy else sorted(self._rows_folder(content["model"]).glob("*.parquet"))
        yield from map(scan_file, [*self._named(content, REJECTS), *rows])

    def _named(self, content: Mapping[str, Any], kind: Kind) -> list[Path]:
        files = [self._folder / name for name in content["files"] if Path(name).parts[0] == kind]
        if gone := [file for file in files if not file.is_file()]:
            raise OutputError(
                f"{len(gone):,} of {len(files):,} files of the cutoff {content[CUTOFF]} are gone: {listing(gone)}; "
                f"score it again (score.cutoff={content[CUTOFF]})"
            )
        return files

    def _files(self, key: ForecastKey) -> list[Path]:
        return sorted(file for kind in KINDS for file in (self._folder / kind / key.folder).glob("*"))

    def _rows_folder(self, model: str) -> Path:
        return self._folder / REJECTS / f"{_ROWS}.{file_name(model)}"


def _holds(file: Path, frame: pl.DataFrame) -> bool:
    try:
        return pl.read_parquet(file, hive_partitioning=False).equals(frame)
    except (*UNREADABLE, OSError):
        return False
