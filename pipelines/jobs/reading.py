"""What several verbs do alike: read the panel, open a version, say how it ended."""

import hashlib
import logging
import math
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypeVar

from forecast.config import (
    Config,
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
from pipelines.verbs import INCIDENTAL

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from forecast.artifact import Artifact
    from forecast.data.ingest.loaded import Loaded
    from forecast.pretraining.pretrained_network import PretrainedNetwork
    from forecast.tracking.registry import Registry
    from forecast.tracking.run import Run
    from forecast.tracking.versions import Version

Training = TypeVar("Training", TrainConfig, TuneConfig)

# Tags of a version that was made from another one: what was changed, and of how many series.
FINETUNE_KIND: Final = "finetune_kind"
SERIES_TUNED: Final = "series_tuned"
# Tag of a version that was calibrated: by which method.
CALIBRATED: Final = "calibrated"
# Tag of a version that has learnt from another one: the width of its layers.
DISTILLED: Final = "distilled"
# Tag of a version with a pretrained network of the package in it: its name and digest.
CHECKPOINT: Final = "checkpoint"
# Tags of a version that began with the pretrained network of another one: which, and its digest.
INIT_VERSION: Final = "init_version"
INIT_DIGEST: Final = "init_digest"
SIDE_TABLES: Final = ("data.known_path", "data.static_path")
"""Tags of a version whose tables of covariates are beside the panel: where they are."""

_LOG = logging.getLogger(__name__)


def open_registry(config: JobConfig) -> "Registry":
    """Return the registry of a job that moves aliases, whose ledger has the lock where the store can't have one."""
    from forecast.tracking.registry import Registry

    return Registry(config.registry, open_ledger(config.ledger).uri)


def read_table(data: DataConfig, horizon: int) -> "Loaded":
    """Return the panel in the table that `data` describes, to train on."""
    from forecast.data.read import read_panel

    return _noted(lambda: read_panel(data, horizon))


def read_for(artifact: "Artifact", source: SourceConfig, cutoffs: "Sequence[datetime | None]" = ()) -> "Loaded":
    """Return the panel in the table that `source` describes, as the model reads it, up to any of the `cutoffs`."""
    return _noted(lambda: artifact.open(source, cutoffs))


def read_alike(
    artifact: "Artifact",
    other: "Artifact",
    loaded: "Loaded",
    source: SourceConfig,
    cutoffs: "Sequence[datetime | None]" = (),
) -> "Loaded":
    """Return the panel as a model reads it: what another one has `loaded`, if they read it the same way."""
    same = ("data", "categories", "horizon", "grid")
    alike = all(getattr(artifact, name) == getattr(other, name) for name in same)
    return loaded if alike else read_for(artifact, source, cutoffs)


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
        running.note(rows=counts.rows_in, series=counts.series_kept, **rejected)
    return loaded


def open_version(registry: "Registry", alias: str | None) -> "tuple[Version, Artifact]":
    """Return the version that `alias` means now, and its model. Raises RegistryError, ArtifactError."""
    from forecast.errors import ConfigError

    if alias is None:
        raise ConfigError("registry.alias: missing; give pretrained, challenger, champion or a version number")
    version = registry.resolve(alias)
    note(model=str(version))
    return version, load_version(registry, version)


def load_version(registry: "Registry", version: "Version") -> "Artifact":
    """Return the model of a version, which knows where its tables of covariates were. Raises as `open_version`."""
    from forecast import artifact

    return replace(artifact.load(registry.download(version)), side_tables=_side_tables(version))


def with_init(config: Training) -> "tuple[Training, PretrainedNetwork | None, dict[str, str]]":
    """Return settings with the version in `model.init` by its number, its network, and tags that name it.

    None, without tags, where they name none. Raises RegistryError, ArtifactError, ConfigError.
    """
    from forecast.pretraining.pretrained_network import checked, of_model
    from forecast.tracking.registry import Registry

    name = config.model.init
    if name is None or not is_version(name):
        return config, None, {}
    model, which = version_of(name)
    registry = Registry(config.registry.model_copy(update={"name": model}))
    version = registry.resolve(which, "model.init")
    init = of_model(load_version(registry, version), str(version))
    checked(init, config.model, config.window.horizon)
    found = config.model.model_copy(update={"init": f"models:/{model}/{version.number}"})
    tags = {INIT_VERSION: str(version), INIT_DIGEST: version.digest}
    return config.model_copy(update={"model": found}), init, tags


def _side_tables(version: "Version") -> dict[str, str]:
    return {name: value for name, value in version.tags.items() if name in SIDE_TABLES and value}


def open_with_data(
    registry: "Registry", alias: str | None, source: SourceConfig, cutoffs: "Sequence[datetime | None]" = ()
) -> "tuple[Version, Artifact, Loaded]":
    """Return the version that `alias` means now, its model, and the panel in the table that `source` describes.

    Raises as `open_version`, `read_for`.
    """
    registry.check_runs()
    version, artifact = open_version(registry, alias)
    return version, artifact, read_for(artifact, source, cutoffs)


def log_data(run: "Run", loaded: "Loaded") -> str:
    """Log which data a run has used, and its rejects; return the digest of the panel."""
    from forecast.data.profiling.quality import quality

    note(mlflow=run.link)
    data, counts = loaded.data, loaded.counts
    source = data.path if data.uri is None else data.uri.get_secret_value()
    run.dataset("panel", digest=loaded.digest, source=str(source), rows=counts.rows_in)
    run.metrics({f"data/{name}": value for name, value in vars(counts).items()})
    run.table(loaded.rejects, "rejects.parquet")
    run.table(quality(loaded.rejects, counts), "quality.parquet")
    return loaded.digest


def log_profile(run: "Run", loaded: "Loaded") -> None:
    """Log what the series of a panel are like, as a table and a page."""
    from forecast.data.ingest.missing_known import missing_known
    from forecast.data.profiling.profile import profile
    from forecast.reports.profile_page import profile_page

    assert loaded.data.season_length is not None
    found = profile(loaded.panel, loaded.data.season_length, loaded.classes)
    missing = missing_known(loaded.panel, loaded.data, horizon=0) if loaded.data.known_covariates else None
    run.table(found, "profile.parquet")
    run.text(profile_page(loaded, found, missing), "profile.html")


def log_missing(run: "Run", loaded: "Loaded", *, horizon: int, cutoffs: "list[int]") -> None:
    """Log which cells of the known covariates forecasts from some cutoffs have to do without, and say so."""
    import numpy as np
    import polars as pl

    from forecast.data.ingest.missing_known import missing_known
    from forecast.errors import listing
    from forecast.names import CUTOFF, SERIES_ID

    if not loaded.data.known_covariates:
        return
    missing = pl.concat(
        missing_known(loaded.panel, loaded.data, horizon=horizon, cutoff=cutoff).with_columns(
            pl.lit(loaded.panel.grid.timestamps(np.array([cutoff]))[0]).alias(CUTOFF)
        )
        for cutoff in cutoffs
    )
    run.table(missing, "missing_known.parquet")
    ahead = missing.filter(pl.col("missing_horizon") > 0)
    for (name,), part in ahead.group_by("covariate", maintain_order=True):
        series = part[SERIES_ID].unique(maintain_order=True)
        cells = f"{part['missing_horizon'].sum():,} of {part.height * horizon:,} cells"
        _LOG.warning(f"{name}: {cells} missing over the horizon, in {len(series):,} series: {listing(series)}")


def ends(artifact: "Artifact") -> dict[str, str]:
    """Return the tags of a version that say what its evaluated and its final weights have seen."""
    tags = {"trained_until": artifact.trained_until_timestamp.isoformat()}
    if artifact.final:
        tags["final_until"] = artifact.final.trained_until_timestamp.isoformat()
    return tags


def final_fit_text(artifact: "Artifact") -> str:
    """Return the part of a line that says until when the final weights have seen; nothing where there are none."""
    return f", final fit until {artifact.final.trained_until_timestamp}" if artifact.final else ""


def version_tags(artifact: "Artifact", config: Config, data_digest: str) -> dict[str, str]:
    """Return the tags of a version: where it comes from."""
    from forecast.artifact import FORMAT_VERSION

    settings = config.model_dump_json(exclude=INCIDENTAL)
    return {
        "kind": artifact.kind,
        "data_digest": data_digest,
        "config_digest": hashlib.sha256(settings.encode()).hexdigest(),
        "format_version": str(FORMAT_VERSION),
        **ends(artifact),
        **checkpoint_tag(artifact),
        "horizon": str(artifact.horizon),
    }


def checkpoint_tag(artifact: "Artifact") -> dict[str, str]:
    """Return the tag that names the pretrained network in a model, where there is one."""
    from forecast.models.network.ensemble import members_of

    found = {getattr(member.shape, CHECKPOINT, "") for member in members_of(artifact.network)} - {""}
    return {CHECKPOINT: ", ".join(sorted(found))} if found else {}


def made_from(parent: "Version") -> dict[str, str]:
    """Return the tags of a version that was made from another one."""
    return {"parent_version": str(parent.number), "parent_digest": parent.digest, **_side_tables(parent)}


def child_tags(parent: "Version", kind: str, series_tuned: float) -> dict[str, str]:
    """Return the tags of a version with changes for some series."""
    return {
        **made_from(parent),
        FINETUNE_KIND: kind,
        SERIES_TUNED: f"{series_tuned:.0f}",
    }


def uplift_text(per_series: float, interval: float) -> str:
    """Return the mean uplift of a series with its interval, which one series alone has not.

    >>> uplift_text(0.0312, 0.004), uplift_text(0.0312, float("nan"))
    ('3.12% +- 0.40%', '3.12%')
    """
    return f"{per_series:.2%}" + (f" +- {interval:.2%}" if math.isfinite(interval) else "")


def metric_name(name: str) -> str:
    """Return a name with the characters that MLflow takes.

    >>> metric_name("target beyond 1e+18")
    'target beyond 1e_18'
    """
    return re.sub(r"[^-/. \w]", "_", name)


def pick(names: "list[str]", count: int = 6) -> list[str]:
    """Return `count` names evenly spread over a list."""
    step = max(1, len(names) // count)
    return names[::step][:count]
