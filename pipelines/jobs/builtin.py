"""The pretrained networks of the package as models of a panel, for scoring without a registry or for registration."""

import json
import time
from typing import TYPE_CHECKING

from forecast.checkpoints import card_of
from forecast.config import AddConfig, DataConfig, ScoreConfig, WindowConfig
from pipelines.jobs.job import note

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from forecast.artifact import Artifact
    from forecast.data.ingest.loaded import Loaded
    from forecast.tracking.versions import Version


def open_builtin(config: ScoreConfig, cutoffs: "Sequence[datetime | None]") -> "tuple[Version, Artifact, Loaded]":
    """Return the pretrained network that `registry.alias` names as a version and model of the panel, and the panel.

    Rows beyond the common end of the series are rejects, unless one is at one of the `cutoffs`.
    Raises ConfigError, DataError.
    """
    from forecast.pretraining.zero_shot import zero_shot
    from forecast.tracking.versions import Version
    from pipelines.jobs.reading import read_for
    from pipelines.jobs.version_tags import checkpoint_tag

    assert config.window.horizon is not None
    assert config.registry.alias is not None
    loaded = _read(config.data, config.window.horizon)
    name = card_of(config.registry.alias).stem
    artifact = zero_shot(name, loaded, WindowConfig(horizon=config.window.horizon))
    if any(cutoffs):
        loaded = read_for(artifact, loaded.data.source(), cutoffs)
    model, _, number = name.rpartition("-")
    created = time.time_ns() // 1_000_000
    tags = checkpoint_tag(artifact)
    version = Version(model, int(number), artifact.digest(), artifact.kind, "", "", created, tags)
    note(model=str(version))
    return version, artifact, loaded


def add(config: AddConfig) -> "tuple[Version, str]":
    """Register a pretrained network for the panel; return the version and a line about it. Raises as `open_builtin`."""
    from forecast.names import PRETRAINED
    from forecast.pretraining.zero_shot import zero_shot
    from pipelines.jobs import console
    from pipelines.jobs.reading import open_registry
    from pipelines.jobs.registration import Registration
    from pipelines.jobs.run_logging import log_data, log_profile

    registry = open_registry(config)
    registry.check_runs()
    loaded = _read(config.data, config.window.horizon)
    name = card_of(config.add.checkpoint).stem
    artifact = zero_shot(name, loaded, config.window, config.model)
    with registry.run("add", config) as run:
        data_digest = log_data(run, loaded, "validation")
        log_profile(run, loaded)
        run.json(json.loads(card_of(name).read_text(encoding="utf-8")), "card.json")
        registration = Registration(registry, run, artifact, config, data_digest, alias=PRETRAINED)
        with console.stage("register") as stage, registration:
            version = registration.register()
            stage.note(version=str(version))
    return version, f"{name} for {loaded.counts.series_kept:,} series every {artifact.data.freq}, not trained on them"


def _read(data: DataConfig, horizon: int) -> "Loaded":
    from forecast.pretraining.zero_shot import drop_text, zero_shot_data
    from pipelines.jobs.reading import read_table

    return drop_text(read_table(zero_shot_data(data), horizon))
