"""The protocol of sinks, and their shared checks."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final, Protocol

import polars as pl

from forecast.errors import OutputError
from forecast.names import CUTOFF
from forecast.scoring.manifests import (
    FORECASTS,
    MANIFESTS,
    ForecastKey,
    Kind,
    read_manifest,
)

STORE: Final = "store"
"""The field of a manifest with the address of the object store that has its files."""

Files = Mapping[Kind, Sequence[Path]]
"""Parquet files with the rows of one cutoff and model, in order; possibly none of rejects."""


class Sink(Protocol):
    """Destination of forecasts and rejects, one cutoff and model at a time."""

    def check(self) -> None:
        """Raise OutputError if existing tables can't take forecasts."""

    def folder(self, kind: Kind, key: ForecastKey) -> Path | None:
        """Return the final folder of the files of a key, None if the sink keeps no files."""

    def stage(self, key: ForecastKey, files: Files) -> None:
        """Keep parts of a key that is not complete, if the sink has a place for them that all machines see."""

    def restore(self, key: ForecastKey, names: Iterable[str], staging: Path) -> None:
        """Copy the parts of a key with these names into its staging folder, if only the sink has them."""

    def inventory(self, key: ForecastKey) -> dict[str, Any]:
        """Return the stored contents of a key, in the form of the manifest: hashes of files, or rows of tables."""

    def replace(self, key: ForecastKey, files: Files, content: Mapping[str, Any]) -> dict[str, Any]:
        """Write the rows of these files, whose manifest has this `content`; return the new inventory.

        Rows are counted again after writing. Raises OutputError if their number differs from `content`, or writing
        fails.
        """

    def is_superseded(self, content: Mapping[str, Any]) -> bool:
        """Return whether forecasts of the cutoff by another version became current later, as far as the sink knows."""

    def record(self, content: Mapping[str, Any]) -> None:
        """Store the new `content` of a manifest, if the sink keeps manifests."""

    def clean(self, key: ForecastKey, files: Files) -> None:
        """Remove leftovers of an earlier run, once the manifest names the new files."""

    def replace_rows(self, model: str, rejects: pl.DataFrame, digest: str) -> None:
        """Replace the rejects of reading of a model; `digest` identifies them."""

    def size(self, key: ForecastKey) -> int:
        """Return the bytes of the files of a key; 0 for rows of tables."""

    def free(self, key: ForecastKey) -> int:
        """Remove all rows and files of a key, whose manifest is gone; return the bytes freed. May be repeated."""

    def forecasts(self, content: Mapping[str, Any]) -> Iterator[pl.LazyFrame]:
        """Yield the forecasts of a manifest, some series at a time."""

    def rejects(self, content: Mapping[str, Any]) -> Iterator[pl.LazyFrame]:
        """Yield the rejects of a manifest's cutoff, and those of reading."""


def scan_file(file: Path) -> pl.LazyFrame:
    """Return the rows of one Parquet file, without columns from its path."""
    return pl.scan_parquet(file, glob=False, hive_partitioning=False)


def expected_rows(kind: Kind, content: Mapping[str, Any]) -> int:
    """Return the number of rows of a kind in a manifest, without rejects of reading."""
    return int(content["rows"]["written"] if kind == FORECASTS else content["rows"]["refused"])


def check_rows(kind: Kind, count: int, content: Mapping[str, Any]) -> None:
    """Raise OutputError if the number of rows differs from the manifest."""
    if count != expected_rows(kind, content):
        raise OutputError(
            f"{count:,} rows of {kind} were found after writing {expected_rows(kind, content):,}; score again"
        )


def check_store(folder: Path, store: str | None) -> None:
    """Raise OutputError if the manifests in a folder name another object store than that of the settings."""
    for path in islice((folder / MANIFESTS).glob(f"{CUTOFF}=*.json"), 1):
        existing = read_manifest(path).get(STORE)
        if existing not in (None, store):
            raise OutputError(
                f"the forecasts of {folder} are in {existing}: set output.uri={existing}, or choose another output.path"
            )
