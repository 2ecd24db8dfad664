"""Upgrade of score folders of earlier releases to the current layout, without new forecasts."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import polars as pl

from forecast.data.files import write_parquet_atomic, write_text_atomic
from forecast.names import CUTOFF, MODEL_COLUMNS, MODEL_DIGEST, MODEL_NAME, MODEL_VERSION, TIMESTAMP
from forecast.scoring.manifests import (
    FORECASTS,
    KINDS,
    LAYOUT,
    MANIFESTS,
    REJECTS,
    ForecastKey,
    Kind,
    file_name,
    read_manifests,
)
from forecast.scoring.sinks.base import scan_file
from forecast.scoring.sinks.parquet import ParquetSink

_ROWS: Final = "rows-"


def upgrade(folder: Path) -> int:
    """Convert a scores folder to the current layout; return the number of cutoffs converted.

    The caller holds the lock of the folder. Every cutoff stays readable in one layout or the other; after a kill, the
    next call resumes. Raises DataError, OutputError.
    """
    contents = [content for content in read_manifests(folder) if "files" in content]
    legacy = [content for content in contents if ForecastKey.of(content).is_legacy]
    newest = {content["model"]: content for content in legacy}
    for content in legacy:
        old = ForecastKey.of(content)
        key = old._replace(is_legacy=False)
        manifest = folder / MANIFESTS / key.manifest
        if not manifest.is_file():
            if content is newest[key.model]:
                _move_rows(folder, content, key)
            files = _rewrite_files(folder, content, key)
            write_text_atomic(json.dumps(_manifest(folder, content, files), indent=1) + "\n", manifest)
        for kind in KINDS:
            shutil.rmtree(folder / kind / old.folder, ignore_errors=True)
        (folder / MANIFESTS / old.manifest).unlink()
    return len(legacy)


def _rewrite_files(folder: Path, content: Mapping[str, Any], key: ForecastKey) -> dict[Kind, list[Path]]:
    """Write the files of a cutoff, except rejects of reading, with the missing columns; return their paths."""
    files: dict[Kind, list[Path]] = {REJECTS: [], FORECASTS: []}
    for kind in KINDS:
        for name in (name for name in content["files"] if Path(name).parts[0] == kind):
            path = folder / kind / key.folder / Path(name).name
            if not path.name.startswith(_ROWS):
                write_parquet_atomic(_with_model(scan_file(folder / name).collect(), key), path)
                files[kind].append(path)
    return files


def _move_rows(folder: Path, content: Mapping[str, Any], key: ForecastKey) -> None:
    """Move the rejects of reading of a cutoff to those of its model, unless the model has some."""
    if list((folder / REJECTS / f"rows.{file_name(key.model)}").glob("*.parquet")):
        return
    for name in content["files"]:
        if Path(name).parts[0] == REJECTS and Path(name).name.startswith(_ROWS):
            frame = _with_model(scan_file(folder / name).collect(), key)
            nulls = [pl.lit(None, frame.schema[column]).alias(column) for column in (CUTOFF, *MODEL_COLUMNS[1:])]
            digest = hashlib.sha256(name.encode()).hexdigest()
            ParquetSink(folder).replace_rows(key.model, frame.with_columns(nulls), digest)


def _with_model(frame: pl.DataFrame, key: ForecastKey) -> pl.DataFrame:
    """Return rows with columns for the cutoff and the names of the model."""
    return frame.with_columns(
        pl.lit(key.cutoff).cast(frame.schema[TIMESTAMP]).alias(CUTOFF),
        pl.lit(key.version).alias(MODEL_VERSION),
        pl.lit(key.model).alias(MODEL_NAME),
        pl.lit(key.digest).alias(MODEL_DIGEST),
    )


def _manifest(folder: Path, content: Mapping[str, Any], files: Mapping[Kind, list[Path]]) -> dict[str, Any]:
    """Return the manifest of files in the current layout."""
    refused = sum(pl.scan_parquet(file).select(pl.len()).collect().item() for file in files[REJECTS])
    all_files = [file for kind in KINDS for file in files[kind]]
    return {
        **content,
        "layout": LAYOUT,
        "rows": {**content["rows"], "refused": refused},
        "columns": list(pl.read_parquet_schema(files[FORECASTS][0])),
        "files": {
            str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(all_files)
        },
    }
