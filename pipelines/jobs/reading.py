"""Reading of registry, panels and versions for verbs."""

from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypeVar

from forecast.config import (
    DataConfig,
    JobConfig,
    SourceConfig,
    TrainConfig,
    TuneConfig,
    is_version,
    version_of,
)
from pipelines.jobs.console import stage
from pipelines.jobs.job import note, open_ledger

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from forecast.artifact import Artifact
    from forecast.data.ingest.loaded import Loaded
    from forecast.pretraining.pretrained_network import PretrainedNetwork
    from forecast.tracking.registry import Registry
    from forecast.tracking.versions import Version
from pipelines.jobs.version_tags import side_tables_of

Training = TypeVar("Training", TrainConfig, TuneConfig)
INIT_DIGEST: Final = "init_digest"
"""Tag of a version initialised with the network of another one: the digest of that version."""


def open_registry(config: JobConfig) -> "Registry":
    """Return the registry of a job that moves aliases; the ledger holds the lock if the store can't."""
    from forecast.tracking.registry import Registry

    return Registry(config.registry, open_ledger(config.ledger).uri)


def read_table(data: DataConfig, horizon: int) -> "Loaded":
    """Return the panel of the table in `data`, for training."""
    from forecast.data.read import read_panel

    return _noted(lambda: read_panel(data, horizon))


def read_for(
    artifact: "Artifact", source: SourceConfig, cutoffs: "Sequence[datetime | None]" = (), *, in_memory: bool = True
) -> "Loaded":
    """Return the panel of the table in `source`, read as the model was trained, up to the `cutoffs`.

    Without `in_memory`, a prepared panel in an object store is read by the ranges in use.
    """
    return _noted(lambda: artifact.open(source, cutoffs, in_memory=in_memory))


def read_alike(
    artifact: "Artifact",
    loaded_for: "Artifact",
    loaded: "Loaded",
    source: SourceConfig,
    cutoffs: "Sequence[datetime | None]" = (),
    *,
    in_memory: bool = True,
) -> "Loaded":
    """Return the panel as a model reads it: what another one has `loaded`, if they read it the same way."""
    fields = ("data", "categories", "reach", "grid")
    alike = all(getattr(artifact, name) == getattr(loaded_for, name) for name in fields)
    return loaded if alike else read_for(artifact, source, cutoffs, in_memory=in_memory)


def _noted(read: "Callable[[], Loaded]") -> "Loaded":
    with stage("read") as running:
        loaded = read()
        counts = loaded.counts
        rejected = {"rejected_rows": counts.rows_rejected, "rejected_series": counts.series_rejected}
        if counts.known_rows_in:
            rejected |= {
                "rejected_known_rows": counts.known_rows_rejected,
                "unused_known_rows": counts.known_rows_unused,
            }
        if counts.rows_masked:
            rejected["rows_out_of_stock"] = counts.rows_masked
        running.note(rows=counts.rows_in, series=counts.series_kept, **rejected)
    return loaded


def open_version(registry: "Registry", alias: str | None) -> "tuple[Version, Artifact]":
    """Return the current version of `alias`, and its model. Raises RegistryError, ArtifactError."""
    from forecast.errors import ConfigError

    if alias is None:
        raise ConfigError("registry.alias: missing; give pretrained, challenger, champion or a version number")
    version = registry.resolve(alias)
    note(model=str(version))
    return version, load_version(registry, version)


def load_version(registry: "Registry", version: "Version") -> "Artifact":
    """Return the model of a version, with the places of its covariate tables. Raises as `open_version`."""
    from forecast import artifact

    return replace(artifact.load(registry.download(version)), side_tables=side_tables_of(version))


def with_init(config: Training) -> "tuple[Training, PretrainedNetwork | None, dict[str, str]]":
    """Return settings with `model.init` resolved to a version number, its network, and tags that name it.

    Network and tags are empty without `model.init`. Raises RegistryError, ArtifactError, ConfigError.
    """
    from forecast.pretraining.pretrained_network import model_for, of_model
    from forecast.tracking.registry import Registry
    from forecast.tracking.versions import INIT_VERSION

    name = config.model.init
    if name is None or not is_version(name):
        return config, None, {}
    model, alias = version_of(name)
    registry = Registry(config.registry.model_copy(update={"name": model}))
    version = registry.resolve(alias, "model.init")
    init = of_model(load_version(registry, version), str(version))
    model_for(init, config.model, config.window.horizon)
    model_settings = config.model.model_copy(update={"init": f"models:/{model}/{version.number}"})
    tags = {INIT_VERSION: str(version), INIT_DIGEST: version.digest}
    return config.model_copy(update={"model": model_settings}), init, tags


def open_with_data(
    registry: "Registry",
    alias: str | None,
    source: SourceConfig,
    cutoffs: "Sequence[datetime | None]" = (),
    *,
    in_memory: bool = True,
    horizon: int | None = None,
    key: str = "score.horizon",
) -> "tuple[Version, Artifact, Loaded]":
    """Return the version that `alias` means now, its model, and the panel in the table that `source` describes.

    The model forecasts `horizon` steps, the setting `key`. Raises as `open_version`, `read_for`, `with_horizon`.
    """
    from forecast.prediction.horizons import with_horizon

    registry.check_runs()
    version, artifact = open_version(registry, alias)
    artifact = with_horizon(artifact, horizon, key)
    return version, artifact, read_for(artifact, source, cutoffs, in_memory=in_memory)
