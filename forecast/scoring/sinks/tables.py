"""Shared parts of the sinks that write tables."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import polars as pl

from forecast.names import (
    CUTOFF,
    MODEL_DIGEST,
    MODEL_NAME,
    MODEL_VERSION,
    REASON,
    SERIES_ID,
    TIMESTAMP,
    VALUE,
)
from forecast.scoring.manifests import (
    FORECASTS,
    ForecastKey,
    Kind,
)
from forecast.scoring.sinks.base import Files, scan_file


class TableSink:
    """Sink of tables, which have a column `cutoff` and columns that name the model, and no files of their own."""

    def check(self) -> None:
        """Do nothing: missing columns are added on writing."""

    def folder(self, kind: Kind, key: ForecastKey) -> Path | None:  # noqa: ARG002
        """Return None: the files are removed once their rows are in the tables."""
        return None

    def stage(self, key: ForecastKey, files: Files) -> None:
        """Do nothing: the staging folder is on a disk that all machines share."""

    def restore(self, key: ForecastKey, names: Iterable[str], staging: Path) -> None:
        """Do nothing: there are no parts elsewhere."""

    def size(self, key: ForecastKey) -> int:  # noqa: ARG002
        """Return 0: tables share their files."""
        return 0

    def clean(self, key: ForecastKey, files: Files) -> None:
        """Do nothing: `replace` has deleted the old rows of the key."""


def frames_of(files: Files, kind: Kind) -> Iterator[pl.DataFrame]:
    """Yield the rows of each file; without files, an empty frame of rejects."""
    for file in files[kind]:
        yield scan_file(file).collect()
    if not files[kind]:
        time = scan_file(files[FORECASTS][0]).collect_schema()[TIMESTAMP]
        texts = dict.fromkeys((SERIES_ID, REASON, MODEL_NAME, MODEL_VERSION, MODEL_DIGEST), pl.String())
        yield pl.DataFrame(schema={**texts, VALUE: pl.Float64(), TIMESTAMP: time, CUTOFF: time})
