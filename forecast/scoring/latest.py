"""The forecasts of the latest cutoff of a model in one file, for tools that do not read manifests."""

from pathlib import Path
from typing import Final

import polars as pl

from forecast.data.files import parquet_blocks
from forecast.data.sources.frames import UNREADABLE
from forecast.names import CUTOFF
from forecast.scoring.manifests import MANIFESTS, current, file_name, read_manifest
from forecast.scoring.sinks.base import Sink

LATEST: Final = "latest"
_KEY: Final = "gatecast"


def write_latest(folder: Path, sink: Sink, model: str) -> None:
    """Write the forecasts of the latest cutoff of a model into its file in `latest`, unless they are there already.

    The current version counts. The file is replaced atomically. Raises OutputError.
    """
    paths = (folder / MANIFESTS).glob(f"{CUTOFF}=*.json")
    of_model = (path for path in paths if f".{file_name(model)}.v" in path.name or path.name.count(".") == 1)
    contents = current(content for content in map(read_manifest, of_model) if content["model"] == model)
    file = folder / LATEST / f"{file_name(model)}.parquet"
    if not contents or _key(file) == contents[-1]["key"]:
        return
    with parquet_blocks(file, {_KEY: contents[-1]["key"]}) as write:
        for part in sink.forecasts(contents[-1]):
            write(part.collect())


def _key(file: Path) -> str | None:
    """Return the key of the forecasts in a file, None if it is missing or damaged."""
    try:
        return pl.read_parquet_metadata(file).get(_KEY)
    except UNREADABLE:
        return None
