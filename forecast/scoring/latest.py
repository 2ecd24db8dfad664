"""The forecasts of the latest cutoff of a model in one file, for tools that do not read manifests."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import polars as pl

from forecast.data.files import GROUP_ROWS, atomic_file
from forecast.data.sources.frames import UNREADABLE
from forecast.names import CUTOFF
from forecast.scoring.manifests import MANIFESTS, current, file_name, read_manifest
from forecast.scoring.sinks.base import Sink
from forecast.scoring.sinks.objects import ObjectSink

LATEST: Final = "latest"
_KEY: Final = "gatecast"


def write_latest(folder: Path, sink: Sink, model: str) -> None:
    """Write the forecasts of the latest cutoff of a model into its file in `latest`, unless they are there already.

    The current version counts. The file is replaced atomically; it is in the object store of the sink if there is one.
    Raises OutputError.
    """
    content = latest_manifest(folder, model)
    if content is None:
        return
    key, name = {_KEY: content["key"]}, f"{LATEST}/{file_name(model)}.parquet"
    if not isinstance(sink, ObjectSink):
        if _key(folder / name) != key[_KEY]:
            _write(folder / name, key, sink.forecasts(content))
    elif (sink.store.metadata(name) or {}).get(_KEY) != key[_KEY]:
        with TemporaryDirectory(prefix=".latest-", dir=folder) as temporary:
            file = Path(temporary) / "latest.parquet"
            _write(file, key, sink.forecasts(content))
            sink.store.write(name, file, key)


def latest_manifest(folder: Path, model: str) -> dict[str, Any] | None:
    """Return the manifest of the latest cutoff of a model, by the current version; None without one."""
    paths = (folder / MANIFESTS).glob(f"{CUTOFF}=*.json")
    of_model = (path for path in paths if f".{file_name(model)}.v" in path.name or path.name.count(".") == 1)
    contents = current(content for content in map(read_manifest, of_model) if content["model"] == model)
    return contents[-1] if contents else None


def _write(file: Path, key: Mapping[str, str], parts: Iterable[pl.LazyFrame]) -> None:
    with atomic_file(file) as target:
        pl.concat(parts).sink_parquet(target, row_group_size=GROUP_ROWS, metadata=dict(key))


def _key(file: Path) -> str | None:
    """Return the key of the forecasts in a file, None if it is missing or damaged."""
    try:
        return pl.read_parquet_metadata(file).get(_KEY)
    except UNREADABLE:
        return None
