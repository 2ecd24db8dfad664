"""Forecasts as Parquet files."""

import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import polars as pl

from forecast.data.files import check_writable, file_hash, sync_folder, write_parquet_atomic
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
from forecast.scoring.sinks.base import Files, check_rows, check_store, scan_file

_ROWS: Final = "rows"


class ParquetSink:
    """Files in folders FORECASTS and REJECTS, each with a folder per cutoff and model."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def check(self) -> None:
        """Raise OutputError if the files of the manifests are in an object store."""
        check_store(self._folder, None)

    def folder(self, kind: Kind, key: ForecastKey) -> Path | None:
        """Return the folder of a key."""
        return self._folder / kind / key.folder

    def stage(self, key: ForecastKey, files: Files) -> None:
        """Do nothing: the staging folder is on a disk that all machines share."""

    def restore(self, key: ForecastKey, names: Iterable[str], staging: Path) -> None:
        """Do nothing: there are no parts elsewhere."""

    def inventory(self, key: ForecastKey) -> dict[str, Any]:
        """Return the SHA-256 of each file."""
        return self._hashes(self._files(key))

    def _hashes(self, files: Iterable[Path]) -> dict[str, Any]:
        return {"files": {str(file.relative_to(self._folder)): file_hash(file) for file in files}}

    def replace(self, key: ForecastKey, files: Files, content: Mapping[str, Any]) -> dict[str, Any]:
        """Move the files into the folder of the key."""
        paths_written: list[Path] = []
        for kind in KINDS:
            target = self._folder / kind / key.folder
            paths = [target / file.name for file in files[kind]]
            try:
                if paths:
                    check_writable(target)
                    for file, path in zip(files[kind], paths, strict=True):
                        file.replace(path)
                    sync_folder(target)
                    sync_folder(target.parent)
            except OSError as error:
                raise OutputError(f"can't move the files of {key.folder} to {target}: {error}") from error
            count = sum(scan_file(file).select(pl.len()).collect().item() for file in paths)
            check_rows(kind, count, content)
            paths_written += paths
        return self._hashes(sorted(paths_written))

    def is_superseded(self, content: Mapping[str, Any]) -> bool:
        """Return whether a manifest in the folder became current later."""
        return is_superseded(self._folder, content)

    def record(self, content: Mapping[str, Any]) -> None:
        """Do nothing: the manifests are in the folder."""

    def clean(self, key: ForecastKey, files: Files) -> None:
        """Remove all files of the key except `files`, and those of the earlier layout."""
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
        """Write a file named by the digest, and remove the previous one."""
        file = self._rows_folder(model) / f"{_ROWS}-{digest[:16]}.parquet"
        if not _holds(file, rejects):
            write_parquet_atomic(rejects, file)
        for path in file.parent.iterdir():
            if path.name != file.name:
                path.unlink()

    def size(self, key: ForecastKey) -> int:
        """Return the bytes of the files of a key."""
        return sum(file.stat().st_size for file in self._files(key))

    def free(self, key: ForecastKey) -> int:
        """Remove the folders of a key; return the bytes freed."""
        size = self.size(key)
        for kind in KINDS:
            shutil.rmtree(self._folder / kind / key.folder, ignore_errors=True)
        return size - self.size(key)

    def forecasts(self, content: Mapping[str, Any]) -> Iterator[pl.LazyFrame]:
        """Yield the rows of each file in the manifest. Raises OutputError if one is missing."""
        yield from map(scan_file, self._existing_files(content, FORECASTS))

    def rejects(self, content: Mapping[str, Any]) -> Iterator[pl.LazyFrame]:
        """Yield the rows of each file of rejects in the manifest, and the rejects of reading."""
        is_legacy = ForecastKey.of(content).is_legacy  # They include the rejects of reading.
        rows = [] if is_legacy else sorted(self._rows_folder(content["model"]).glob("*.parquet"))
        yield from map(scan_file, [*self._existing_files(content, REJECTS), *rows])

    def _existing_files(self, content: Mapping[str, Any], kind: Kind) -> list[Path]:
        files = [self._folder / name for name in content["files"] if Path(name).parts[0] == kind]
        if missing := [file for file in files if not file.is_file()]:
            raise OutputError(
                f"{len(missing):,} of {len(files):,} files of the cutoff {content[CUTOFF]} are gone: "
                f"{listing(missing)}; score it again (score.cutoff={content[CUTOFF]})"
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
