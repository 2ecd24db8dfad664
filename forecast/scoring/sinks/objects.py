"""Forecasts as Parquet files in an object store."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import polars as pl

from forecast.data.objects import ObjectStore, parallel, parquet_bytes
from forecast.errors import OutputError, listing
from forecast.names import CUTOFF
from forecast.scoring.manifests import (
    FORECASTS,
    KINDS,
    MANIFESTS,
    REJECTS,
    ForecastKey,
    Kind,
    current_since,
    file_name,
    is_superseded,
    partition,
)
from forecast.scoring.sinks.base import STORE, Files, check_rows, check_store, scan_file

_ROWS: Final = "rows"


class ObjectSink:
    """Objects FORECASTS/KEY/part-... and REJECTS/KEY/part-... below an address, and MANIFESTS beside them.

    The manifest of a key is the last object of a replacement, so that a reader of the store alone knows what is
    complete. `key` is the setting of the address, `folder` the output folder of the job.
    """

    def __init__(self, uri: str, key: str, folder: Path) -> None:
        self.store, self._folder = ObjectStore(uri, key), folder

    def check(self) -> None:
        """Raise OutputError if nothing can be written, or the manifests name another store."""
        check_store(self._folder, self.store.uri)
        self.store.check_writable()

    def folder(self, kind: Kind, key: ForecastKey) -> Path | None:  # noqa: ARG002
        """Return None: the files are in the store."""
        return None

    def stage(self, key: ForecastKey, files: Files) -> None:
        """Write the objects that are missing, for a commit on another machine; no manifest names them yet."""
        self.store.put(_objects(key, files))

    def restore(self, key: ForecastKey, names: Iterable[str], staging: Path) -> None:
        """Copy the objects with these names into the staging folder, unless they are there or damaged."""
        wanted = {f"{kind}/{key.folder}/{name}": staging / kind / name for name in names for kind in KINDS}
        existing = [name for name in self._names(key) if name in wanted and not wanted[name].exists()]
        parallel(lambda name: self.store.fetch(name, wanted[name]), existing)

    def inventory(self, key: ForecastKey) -> dict[str, Any]:
        """Return the address, the SHA-256 of each object, and the key of the manifest in the store."""
        return {
            STORE: self.store.uri,
            "files": self.store.hashes(self._names(key)),
            "key": (self._manifest(_manifest_name(key)) or {}).get("key"),
        }

    def replace(self, key: ForecastKey, files: Files, content: Mapping[str, Any]) -> dict[str, Any]:
        """Write the objects that are missing or differ, then the manifest."""
        for kind in KINDS:
            check_rows(kind, sum(scan_file(file).select(pl.len()).collect().item() for file in files[kind]), content)
        hashes = self.store.put(_objects(key, files))
        inventory = {STORE: self.store.uri, "files": dict(sorted(hashes.items()))}
        self.record({**content, **inventory})
        return inventory

    def is_superseded(self, content: Mapping[str, Any]) -> bool:
        """Return whether a manifest in the store or in the folder became current later."""
        key = ForecastKey.of(content)
        start = f"{MANIFESTS}/{partition(key.cutoff)}."
        names = (name for name in self.store.names(MANIFESTS) if name.startswith(start) and name != _manifest_name(key))
        others = (manifest for manifest in map(self._manifest, names) if manifest and manifest["model"] == key.model)
        return is_superseded(self._folder, content) or any(
            current_since(other) > current_since(content) for other in others
        )

    def record(self, content: Mapping[str, Any]) -> None:
        """Write the manifest into the store."""
        text = json.dumps(content, indent=1) + "\n"
        self.store.write(_manifest_name(ForecastKey.of(content)), text.encode())

    def clean(self, key: ForecastKey, files: Files) -> None:
        """Remove all objects of the key except `files`."""
        names = _objects(key, files)
        self.store.remove(name for name in self._names(key) if name not in names)

    def replace_rows(self, model: str, rejects: pl.DataFrame, digest: str) -> None:
        """Write an object named by the digest, and remove the previous one."""
        folder = f"{REJECTS}/{_ROWS}.{file_name(model)}"
        name = f"{folder}/{_ROWS}-{digest[:16]}.parquet"
        self.store.put({name: parquet_bytes(rejects)})
        self.store.remove(other for other in self.store.names(folder) if other != name)

    def size(self, key: ForecastKey) -> int:
        """Return the bytes of the objects of a key."""
        return sum(sum(self.store.sizes(f"{kind}/{key.folder}").values()) for kind in KINDS)

    def free(self, key: ForecastKey) -> int:
        """Remove the manifest of a key from the store, then its objects; return the bytes freed."""
        size = self.size(key)
        self.store.remove([_manifest_name(key)])
        self.store.remove(self._names(key))
        return size - self.size(key)

    def forecasts(self, content: Mapping[str, Any]) -> Iterator[pl.LazyFrame]:
        """Yield the rows of each object in the manifest. Raises OutputError if one is missing."""
        yield from map(self.store.scan, self._existing(content, FORECASTS))

    def rejects(self, content: Mapping[str, Any]) -> Iterator[pl.LazyFrame]:
        """Yield the rows of each object of rejects in the manifest, and the rejects of reading."""
        rows = self.store.names(f"{REJECTS}/{_ROWS}.{file_name(content['model'])}")
        yield from map(self.store.scan, [*self._existing(content, REJECTS), *rows])

    def manifests(self) -> list[dict[str, Any]]:
        """Return the contents of the manifests in the store."""
        contents = parallel(self._manifest, self.store.names(MANIFESTS))
        return [content for content in contents if content]

    def _manifest(self, name: str) -> dict[str, Any] | None:
        """Return the content of a manifest, None if it is missing or damaged."""
        try:
            content: dict[str, Any] = json.loads(self.store.read(name) or b"")
            ForecastKey.of(content)
        except (ValueError, KeyError, TypeError):
            return None
        return content

    def _existing(self, content: Mapping[str, Any], kind: Kind) -> list[str]:
        files = [name for name in content["files"] if name.startswith(f"{kind}/")]
        existing = {*self.store.names(f"{kind}/{ForecastKey.of(content).folder}")} if files else set()
        if missing := [name for name in files if name not in existing]:
            raise OutputError(
                f"{self.store.uri}: {len(missing):,} of {len(files):,} files of the cutoff {content[CUTOFF]} are gone: "
                f"{listing(missing)}; score it again (score.cutoff={content[CUTOFF]})"
            )
        return files

    def _names(self, key: ForecastKey) -> list[str]:
        return [name for kind in KINDS for name in self.store.names(f"{kind}/{key.folder}")]


def _objects(key: ForecastKey, files: Files) -> dict[str, Path]:
    """Return the files of a key by the names of their objects."""
    return {f"{kind}/{key.folder}/{file.name}": file for kind in KINDS for file in files[kind]}


def _manifest_name(key: ForecastKey) -> str:
    return f"{MANIFESTS}/{key.manifest}"


def stores_of(contents: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the addresses of the object stores that manifests name, the latest last."""
    return list(dict.fromkeys(content[STORE] for content in contents if STORE in content))
