"""Tags of a version: its lineage, and the way it was created."""

import hashlib
import math
from typing import TYPE_CHECKING, Final

from forecast.config import Config
from pipelines.verbs import INCIDENTAL

if TYPE_CHECKING:
    from forecast.artifact import Artifact
    from forecast.tracking.versions import Version


# Tags of a version with adapters: their kind, and the number of series.
FINETUNE_KIND: Final = "finetune_kind"
SERIES_TUNED: Final = "series_tuned"
# Tag of a calibrated version: the method.
CALIBRATED: Final = "calibrated"
# Tag of a distilled version: the width of its layers.
DISTILLED: Final = "distilled"
# Tag of a version that contains a pretrained network of the package: its name and digest.
CHECKPOINT: Final = "checkpoint"
SIDE_TABLES: Final = ("data.known_path", "data.static_path")


def side_tables_of(version: "Version") -> dict[str, str]:
    """Return the covariate tables in the tags of a version."""
    return {name: value for name, value in version.tags.items() if name in SIDE_TABLES and value}


def ends(artifact: "Artifact") -> dict[str, str]:
    """Return the tags with the ends of the training data of the evaluated and the final weights."""
    tags = {"trained_until": artifact.trained_until_timestamp.isoformat()}
    if artifact.final:
        tags["final_until"] = artifact.final.trained_until_timestamp.isoformat()
    return tags


def final_fit_text(artifact: "Artifact") -> str:
    """Return the end of the final weights' training data as text; empty without final weights."""
    return f", final fit until {artifact.final.trained_until_timestamp}" if artifact.final else ""


def version_tags(artifact: "Artifact", config: Config, data_digest: str) -> dict[str, str]:
    """Return the tags of a version that describe its lineage."""
    from forecast.artifact_files import FORMAT_VERSION

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
    """Return the tag of the pretrained network in a model, empty without one."""
    from forecast.models.network.ensemble import members_of

    checkpoints = {getattr(member.shape, CHECKPOINT, "") for member in members_of(artifact.network)} - {""}
    return {CHECKPOINT: ", ".join(sorted(checkpoints))} if checkpoints else {}


def tags_of_parent(parent: "Version") -> dict[str, str]:
    """Return the tags that name the parent of a version."""
    return {"parent_version": str(parent.number), "parent_digest": parent.digest, **side_tables_of(parent)}


def child_tags(parent: "Version", kind: str, series_tuned: float) -> dict[str, str]:
    """Return the tags of a version with adapters for some series."""
    return {
        **tags_of_parent(parent),
        FINETUNE_KIND: kind,
        SERIES_TUNED: f"{series_tuned:.0f}",
    }


def uplift_text(per_series: float, interval: float) -> str:
    """Return the mean uplift per series with its interval, if it has more than one series, as text.

    >>> uplift_text(0.0312, 0.004), uplift_text(0.0312, float("nan"))
    ('3.12% +- 0.40%', '3.12%')
    """
    return f"{per_series:.2%}" + (f" +- {interval:.2%}" if math.isfinite(interval) else "")
