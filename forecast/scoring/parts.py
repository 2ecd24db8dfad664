"""Parts of a scored cutoff: what is written, what is found again, and their digests."""

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from forecast.data.ingest.loaded import Loaded
from forecast.data.sources.frames import UNREADABLE
from forecast.errors import ConfigError
from forecast.prediction.result import Forecasts
from forecast.scoring.manifests import FORECASTS, REJECTS, Kind
from forecast.scoring.state import Rows

# Rows of forecasts in a shard, if score.shard_size does not say how many series.
SHARD_ROWS: Final = 1 << 16
# Columns that a row has, about, besides sample paths: with as many of these, shards have half as many series.
COLUMNS: Final = 16
# In the footer of a part.
PART: Final = "gatecast"

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Output:
    """What there is of one cutoff."""

    manifest: Path
    content: dict[str, Any]
    """Of the manifest."""
    done_before: bool
    """Nothing had to be written."""
    seconds: dict[str, float] = field(default_factory=dict)
    """By stage, and all; forecasting and writing overlap."""


@dataclass(frozen=True)
class Part:
    """What is in the files of a shard."""

    series: int
    """That are forecast."""
    rejected: int
    sources: dict[str, int]
    """Series by the rung of the ladder."""
    rejects: dict[str, int]
    """Series by the reason."""
    bounded: dict[str, int]
    """Values by the bound that they were moved to, of those that are set."""
    carried: int
    """Cells of known covariates that have the value before."""
    state: dict[str, int]
    """Series by what was done for their state, if one is kept."""


@dataclass(frozen=True)
class WrittenPart:
    """What there is to write of a shard."""

    forecasts: Forecasts
    carried: int
    """Cells of known covariates that have the value before."""
    state: Rows | None
    counts: dict[str, int]
    """Series by what was done for their state."""


def shadowed(loaded: Loaded, share: float) -> Loaded:
    """Return a share of the series: those whose id hashes below it, whatever else is in the panel.

    Raises ConfigError if that is none.
    """
    if share == 1.0:
        return loaded
    ids = loaded.panel.series_id.tolist()
    hashes = (hashlib.blake2b(name.encode(), digest_size=8).digest() for name in ids)
    chosen = np.flatnonzero([int.from_bytes(digest) < share * 2**64 for digest in hashes])
    if not len(chosen):
        raise ConfigError(f"score.shadow_share={share:g} is none of {len(ids):,} series; raise it, or leave it out")
    counts = loaded.counts
    return replace(
        loaded,
        panel=loaded.panel.take(chosen),
        counts=replace(counts, series_in=counts.series_in - len(ids) + len(chosen), series_kept=len(chosen)),
        stored_digest=None,
    )


def part_file(name: str, folders: Sequence[Path]) -> Path | None:
    """Return the first file of this name in the folders, None without one."""
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def ready_part(name: str, folders: dict[Kind, list[Path]]) -> Part | None:
    """Return what is in the files of a shard, None if they are not there, or not whole."""
    path = part_file(name, folders[FORECASTS])
    if path is None:
        return None
    try:
        part = Part(**json.loads(pl.read_parquet_metadata(path)[PART]))
    except (*UNREADABLE, KeyError):
        path.unlink()
        return None
    return part if not part.rejected or part_file(name, folders[REJECTS]) else None


def rows_within(
    frame: pl.DataFrame, columns: list[str], least: float | None, most: float | None
) -> tuple[pl.DataFrame, dict[str, int]]:
    """Return forecasts moved to the bounds that there are, and how many values were beyond each."""
    values = pl.col(columns)
    beyond = {"min": None if least is None else values < least, "max": None if most is None else values > most}
    counts = {
        name: int(frame.select(pl.sum_horizontal(outside.sum())).item())
        for name, outside in beyond.items()
        if outside is not None
    }
    return (frame.with_columns(values.clip(least, most)), counts) if any(counts.values()) else (frame, counts)


def read_part(manifest: Path) -> dict[str, Any]:
    """Return a manifest as it is on disk, empty if it can't be read."""
    try:
        content: dict[str, Any] = json.loads(manifest.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content


def frame_digest(frame: pl.DataFrame) -> str:
    """Return the digest of a frame."""
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    return hashlib.sha256(buffer.getvalue()).hexdigest()


def counted_forecasts(frame: pl.DataFrame, column: str) -> dict[str, int]:
    """Return the rows for each value of a column."""
    return dict(frame.group_by(column).len().sort(column).iter_rows())


def digest_of(*parts: object) -> str:
    """Return the digest of values that JSON can hold."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
