"""The jobs of `forecast score`: names of versions, and the shadow version beside the scoring one."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from forecast.config import ScoreConfig, ScoreOutput
from pipelines.jobs.cutoffs import requested_cutoffs

if TYPE_CHECKING:
    from forecast.artifact import Artifact
    from forecast.data.ingest.loaded import Loaded
    from forecast.engines.engine import Engine
    from forecast.scoring.job import ScoreJob
    from forecast.tracking.registry import Registry
    from forecast.tracking.versions import Version

_LOG = logging.getLogger(__name__)


def names_of(version: "Version") -> dict[str, str]:
    """Return what identifies a version in forecasts."""
    return {"model": version.name, "model_version": str(version.number), "model_digest": version.digest}


def shadow_version_of(registry: "Registry", config: ScoreConfig, version: "Version") -> "Version | None":
    """Return the version of score.shadow; None, with a log message, if it is the same one. Raises RegistryError."""
    from forecast.names import PREVIOUS

    setting = config.score.shadow
    if setting is None:
        return None
    if setting == PREVIOUS:
        champions = registry.champions()
        version_of_shadow, why = champions.target()
        if champions.damage:
            _LOG.warning("score.shadow=%s: no shadow: %s", setting, why)
            return None
    else:
        version_of_shadow, why = registry.resolve(setting, "score.shadow"), ""
    if version_of_shadow is None or version_of_shadow.number == version.number:
        reason = "it is the one that scores; no shadow" if version_of_shadow else f"there is none; no shadow ({why})"
        _LOG.info("score.shadow=%s: %s", setting, reason)
        return None
    return version_of_shadow


def shadow_job(
    registry: "Registry",
    config: ScoreConfig,
    shadow_version: "Version",
    artifact: "Artifact",
    loaded: "Loaded",
    *,
    engine: "Engine | None",
    run_id: str = "",
) -> "ScoreJob":
    """Return the job of the shadow version; it reuses the loaded panel if that fits."""
    from forecast.names import SHADOW
    from forecast.prediction.horizons import with_horizon
    from forecast.scoring.job import ScoreJob
    from forecast.scoring.parts import share_of_series
    from pipelines.jobs.reading import load_version, read_alike

    shadow_artifact = with_horizon(load_version(registry, shadow_version), config.score.horizon)
    shared = config.output.model_dump(include={"min", "max"})
    state = config.score.state
    return ScoreJob(
        shadow_artifact,
        share_of_series(
            read_alike(shadow_artifact, artifact, loaded, config.data.source(), requested_cutoffs(config.score)),
            config.score.shadow_share,
        ),
        config.score.model_copy(update={"state": state and f"{state}-{SHADOW}"}),
        ScoreOutput(path=str(Path(config.output.path) / SHADOW), **shared),
        names_of(shadow_version),
        run_id=run_id,
        engine=engine,
    )
