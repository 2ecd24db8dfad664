"""Parts of a scored cutoff: contents, counts, files and digests."""

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import polars as pl

from forecast.data.ingest.loaded import Loaded
from forecast.data.sources.frames import UNREADABLE
from forecast.errors import ConfigError
from forecast.names import (
    CUTOFF,
    MODEL_DIGEST,
    MODEL_NAME,
    MODEL_VERSION,
    SERIES_ID,
    SOURCE,
    SOURCE_CLOSED,
    TIMESTAMP,
)
from forecast.prediction.result import Forecasts
from forecast.scoring.manifests import FORECASTS, REJECTS, Kind

if TYPE_CHECKING:
    from forecast.scoring.state_rows import StateRows

# Rows of forecasts in a shard, unless score.shard_size sets its number of series.
SHARD_ROWS: Final = 1 << 16
# Approximate number of columns besides sample paths: with as many sample paths, shards have half as many series.
COLUMNS: Final = 16
# Key of the counts in the footer of a part.
PART: Final = "gatecast"

FAILED: Final = "shard failed"
"""Reason of the rejects of a shard that failed on all attempts of an engine."""

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Output:
    """Output of one cutoff."""

    manifest: Path
    content: dict[str, Any]
    """Content of the manifest."""
    was_complete: bool
    """Whether nothing had to be written."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds by stage, and `all` in total; forecasting and writing overlap."""


@dataclass(frozen=True)
class ShareOutput:
    """The parts that a share of a job has written for one cutoff."""

    cutoff: str
    n_shards: int
    """Number of shards in the share."""
    n_written: int
    """Number of them that did not exist before."""
    n_series: int


@dataclass(frozen=True)
class Part:
    """Counts of the contents of a shard's files."""

    series: int
    """Number of series with a forecast."""
    rejected: int
    sources: dict[str, int]
    """Series by the source of their forecast."""
    rejects: dict[str, int]
    """Series by the reason of their rejection."""
    bounded: dict[str, int]
    """Values clipped to each bound that is set."""
    carried: int
    """Cells of known covariates that have the value before."""
    state: dict[str, int]
    """Series by the origin of their state (carried, recomputed, new), if a state is kept."""
    overridden: int = 0
    """Rows with an override."""

    def to_json(self) -> str:
        """Return the counts as JSON for the footer of the file."""
        values = asdict(self)
        if not self.overridden:  # As in files without overrides.
            del values["overridden"]
        return json.dumps(values)


@dataclass(frozen=True)
class ShardForecasts:
    """The forecasts of a shard, with its new state."""

    forecasts: Forecasts
    carried: int
    """Cells of known covariates that have the value before."""
    state: "StateRows | None"
    counts: dict[str, int]
    """Series by the origin of their state."""


def with_model(rejects: pl.DataFrame, names: Mapping[str, str], cutoff: datetime | None) -> pl.DataFrame:
    """Return rejects with columns for the cutoff and the names of the model, as in the forecasts."""
    return rejects.with_columns(
        pl.lit(cutoff).cast(rejects.schema[TIMESTAMP]).alias(CUTOFF),
        pl.lit(names["model_version"]).alias(MODEL_VERSION),
        pl.lit(names["model"]).alias(MODEL_NAME),
        pl.lit(names["model_digest"]).alias(MODEL_DIGEST),
    )


def share_of_series(loaded: Loaded, share: float) -> Loaded:
    """Return a share of the series, chosen by a hash of their id, independent of the other series.

    Raises ConfigError if the share contains no series.
    """
    if share == 1.0:
        return loaded
    ids = loaded.panel.series_id.tolist()
    hashes = (hashlib.blake2b(name.encode(), digest_size=8).digest() for name in ids)
    members = np.flatnonzero([int.from_bytes(digest) < share * 2**64 for digest in hashes])
    if not len(members):
        raise ConfigError(f"score.shadow_share={share:g} is none of {len(ids):,} series; raise it, or leave it out")
    counts = loaded.counts
    return replace(
        loaded,
        panel=loaded.panel.take(members),
        counts=replace(counts, series_in=counts.series_in - len(ids) + len(members), series_kept=len(members)),
        stored_digest=None,
    )


def part_file(name: str, folders: Sequence[Path]) -> Path | None:
    """Return the first file of this name in the folders, None without one."""
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def complete_part(name: str, folders: dict[Kind, list[Path]]) -> Part | None:
    """Return the counts of a shard whose files are complete; None if they are missing or damaged."""
    path = part_file(name, folders[FORECASTS])
    if path is None:
        return None
    try:
        part = Part(**json.loads(pl.read_parquet_metadata(path)[PART]))
    except (*UNREADABLE, KeyError):
        path.unlink()
        return None
    return part if not part.rejected or part_file(name, folders[REJECTS]) else None


def clip_rows(
    frame: pl.DataFrame, columns: list[str], minimum: float | None, maximum: float | None
) -> tuple[pl.DataFrame, dict[str, int]]:
    """Return forecasts clipped to the bounds that are set, and the number of values beyond each."""
    values = pl.col(columns)
    beyond = {
        "min": None if minimum is None else values < minimum,
        "max": None if maximum is None else values > maximum,
    }
    counts = {
        name: int(frame.select(pl.sum_horizontal(outside.sum())).item())
        for name, outside in beyond.items()
        if outside is not None
    }
    return (frame.with_columns(values.clip(minimum, maximum)), counts) if any(counts.values()) else (frame, counts)


def read_if_valid(manifest: Path) -> dict[str, Any]:
    """Return the content of a manifest, empty if it can't be read."""
    try:
        content: dict[str, Any] = json.loads(manifest.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content


def frame_digest(frame: pl.DataFrame) -> str:
    """Return the SHA-256 of a frame as Parquet."""
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    return hashlib.sha256(buffer.getvalue()).hexdigest()


def count_by(frame: pl.DataFrame, column: str) -> dict[str, int]:
    """Return the number of rows by value of a column."""
    return dict(frame.group_by(column).len().sort(column).iter_rows())


def count_sources(frame: pl.DataFrame) -> dict[str, int]:
    """Return the number of series by the source of their forecasts; of a series that closes, that of its open steps."""
    first = pl.col(SOURCE).filter(pl.col(SOURCE) != SOURCE_CLOSED).first().fill_null(SOURCE_CLOSED)
    return count_by(frame.group_by(SERIES_ID).agg(first), SOURCE)


def digest_of(*parts: object) -> str:
    """Return the SHA-256 of values as JSON."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
