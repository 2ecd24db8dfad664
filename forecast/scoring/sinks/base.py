"""What a sink is, and the checks that all share."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import polars as pl

from forecast.errors import OutputError
from forecast.scoring.manifests import (
    FORECASTS,
    ForecastKey,
    Kind,
)

Files = Mapping[Kind, Sequence[Path]]
"""Parquet files with the rows of one cutoff and model, in order; there may be none of rejects."""


class Sink(Protocol):
    """Takes the rows of one cutoff and model after the other."""

    def check(self) -> None:
        """Raise OutputError if there are tables that can't take forecasts."""

    def folder(self, kind: Kind, key: ForecastKey) -> Path | None:
        """Return where the files of a key are in the end, None if they do not stay."""

    def found(self, key: ForecastKey) -> dict[str, Any]:
        """Return what is there of a key, as the manifest says it."""

    def replace(self, key: ForecastKey, files: Files, content: Mapping[str, Any]) -> dict[str, Any]:
        """Write the rows of these files, whose manifest has this `content`; return what is there then, as `found` does.

        Rows are counted again where they then are. Raises OutputError if they are others than `content` says, or
        can't be written.
        """

    def is_superseded(self, content: Mapping[str, Any]) -> bool:
        """Return whether another version of the model has forecast the cutoff later, as far as the sink knows."""

    def record(self, content: Mapping[str, Any]) -> None:
        """Keep the new `content` of a manifest whose rows are there, where the sink keeps manifests."""

    def clean(self, key: ForecastKey, files: Files) -> None:
        """Remove what is left of an earlier run, once the manifest names the new files."""

    def replace_rows(self, model: str, rejects: pl.DataFrame, digest: str) -> None:
        """Put the rejects of reading, with this digest, in the place of those of this model that are there."""

    def forecasts(self, content: Mapping[str, Any]) -> Iterator[pl.LazyFrame]:
        """Yield the forecasts whose manifest has this `content`, some series at a time."""

    def rejects(self, content: Mapping[str, Any]) -> Iterator[pl.LazyFrame]:
        """Yield the rejects of the cutoff in a manifest, and those of reading."""


def scan_file(file: Path) -> pl.LazyFrame:
    """Return the rows of one Parquet file, whatever its folder is called."""
    return pl.scan_parquet(file, glob=False, hive_partitioning=False)


def expected_rows(kind: Kind, content: Mapping[str, Any]) -> int:
    """Return how many rows of a kind the cutoff of a manifest has; rejects of reading are of no cutoff."""
    return int(content["rows"]["written"] if kind == FORECASTS else content["rows"]["refused"])


def check_rows(kind: Kind, count: int, content: Mapping[str, Any]) -> None:
    """Raise OutputError for another number of rows than the manifest says."""
    if count != expected_rows(kind, content):
        raise OutputError(
            f"{count:,} rows of {kind} were found after writing {expected_rows(kind, content):,}; score again"
        )
