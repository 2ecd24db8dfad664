"""What several verbs do alike: read the panel, open a version, say how it ended."""

import hashlib
from typing import TYPE_CHECKING

from forecast.config import Config, DataConfig, SourceConfig
from pipelines.console import stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import polars as pl

    from forecast.artifact import Artifact
    from forecast.data.load import Loaded
    from forecast.registry import Registry, Run, Version


def read_table(data: DataConfig, horizon: int) -> "Loaded":
    """Return the panel in the table at `data.path`, to train on."""
    from forecast.data.load import load_panel

    return _read(data, (), lambda table: load_panel(table, data, horizon))


def read_panel(artifact: "Artifact", source: SourceConfig) -> "Loaded":
    """Return the panel in the table at `source.path`, as the model reads it."""
    # What looks like a truth value in a CSV file was read as one in training.
    texts = [name for name, values in artifact.categories.items() if not {*values} <= {"false", "true"}]
    return _read(artifact.reading(source), texts, lambda table: artifact.read(table, source))


def _read(data: DataConfig, texts: "Iterable[str]", load: "Callable[[pl.LazyFrame], Loaded]") -> "Loaded":
    from forecast.data.io import scan

    assert data.path is not None
    with stage("read") as running:
        loaded = load(scan(data.path, {data.columns.series_id, *texts}))
        counts = loaded.counts
        rejected = {"rejected_rows": counts.rows_rejected, "rejected_series": counts.series_rejected}
        running.note(rows=counts.rows_in, series=counts.series_kept, **rejected)
    return loaded


def open_version(registry: "Registry", alias: str | None) -> "tuple[Version, Artifact]":
    """Return the version that `alias` means now, and its model. Raises RegistryError, ArtifactError."""
    from forecast import artifact
    from forecast.errors import ConfigError

    if alias is None:
        raise ConfigError("registry.alias: missing; give pretrained, challenger, champion or a version number")
    version = registry.resolve(alias)
    return version, artifact.load(registry.download(version))


def log_data(run: "Run", loaded: "Loaded") -> str:
    """Log which data a run has used, and its rejects; return the digest of the panel."""
    digest = loaded.panel.digest()
    run.dataset("panel", digest=digest, source=str(loaded.data.path), rows=loaded.counts.rows_in)
    run.metrics({f"data/{name}": value for name, value in vars(loaded.counts).items()})
    run.table(loaded.rejects, "rejects.parquet")
    return digest


def version_tags(artifact: "Artifact", config: Config, data_digest: str) -> dict[str, str]:
    """Return the tags of a version: where it comes from."""
    import numpy as np

    from forecast.artifact import FORMAT_VERSION

    settings = config.model_dump_json(exclude={"registry": {"tracking_uri"}})  # the same job in another store
    return {
        "kind": artifact.kind,
        "data_digest": data_digest,
        "config_digest": hashlib.sha256(settings.encode()).hexdigest(),
        "format_version": str(FORMAT_VERSION),
        "trained_until": str(artifact.grid.timestamps(np.array([artifact.trained_until]))[0]),
        "horizon": str(artifact.horizon),
    }


def pick(names: "list[str]", count: int = 6) -> list[str]:
    """Return `count` names evenly spread over a list."""
    step = max(1, len(names) // count)
    return names[::step][:count]
