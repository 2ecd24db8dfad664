"""`registry.*` and the settings of `forecast models` and `promote`."""

import os
import re
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from forecast.checkpoints import NANO, names
from forecast.config.base import Config, Store

_MODEL_NAME_LENGTH: Final = 200


def check_model_name(name: str, *, dots: bool = False) -> str:
    """Return a name of a registered model that MLflow also accepts for its experiment, logged models and folder.

    Raises ValueError.
    """
    refused = sorted(set(re.findall(r"""[/\\:%"'\x00-\x1f\x7f]""" if dots else r"""[/\\:.%"'\x00-\x1f\x7f]""", name)))
    if refused:
        signs = " ".join(sign if sign.isprintable() else repr(sign) for sign in refused)
        raise ValueError(f"can't contain {signs} (given: {name!r}); use letters, digits, _ and -")
    if not name.strip() or name != name.strip():
        raise ValueError(f"must not be empty, or begin or end with a space (given: {name!r})")
    if len(name.encode()) > _MODEL_NAME_LENGTH:
        raise ValueError(f"has {len(name.encode()):,} bytes, and may have {_MODEL_NAME_LENGTH}")
    return name


def _alias(alias: str) -> str:
    if not re.fullmatch(r"[\w-]{1,255}", alias):
        raise ValueError(f"must be an alias, of letters, digits, _ and -, or a version number (given: {alias!r})")
    return alias


Alias = Annotated[str, AfterValidator(_alias)]


class RegistryConfig(Config):
    """The store of models and runs."""

    tracking_uri: Store | None = None
    """MLflow store; MLFLOW_TRACKING_URI, or sqlite:///mlflow.db here, when not given."""
    name: str = "forecaster"
    """Registered model; one per forecaster. Without slashes, : . % and quotes; on Databricks, catalog.schema.name."""
    alias: Alias | None = None
    """The version: pretrained, challenger, champion, or a version number."""
    tracking: Literal["required", "best_effort"] = "required"
    """Behaviour of a job if the MLflow store becomes unavailable: it fails (required), or it writes its logs to a
    folder and continues (best_effort); `forecast runs sync` logs them later."""
    spool: str = "unlogged"
    """With best_effort: the folder of runs that are not logged yet."""
    system_metrics: bool = False
    """Log CPU, memory, disk, network and GPU as metrics `system/` of each run; also with
    MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING=true. Needs psutil."""

    @field_validator("name")
    @classmethod
    def _accepted_by_mlflow(cls, name: str, info: ValidationInfo) -> str:
        configured = info.data.get("tracking_uri")
        uri = configured.get_secret_value() if configured else os.environ.get("MLFLOW_TRACKING_URI") or ""
        return check_model_name(name, dots=uri.startswith("databricks"))


class PromoteSettings(Config):
    """Promotion to champion."""

    force: bool = False
    """Promote the version even if the gate refuses it: after any backtest, without one, or rolled back before. The
    reason of the refusal becomes the tag `forced` of the version."""


class DiffSettings(Config):
    """Comparison of two versions."""

    against: Alias
    """The other version: an alias or a number."""
    rows: Annotated[int, Field(ge=0)] = 20
    """Number of series to print, the largest changes first."""


class RollbackSettings(Config):
    """Rollback of a version or of series."""

    series: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Ids of series to forecast with the base again, in a new version of registry.alias (the champion when not given).
    When not given, the champion as a whole is rolled back."""
    to: Alias | None = None
    """The version to return to, any earlier champion; the one before the champion that was not rolled back itself when
    not given."""

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.series is not None and self.to is not None:
            raise ValueError(
                "rollback.to takes the champion back, rollback.series makes a new version; give one of both"
            )
        return self


class ExportSettings(Config):
    """Export of a version."""

    series: str | None = None
    """The id of a fine-tuned series, to export a model with its adapter only. All when not given."""
    format: Literal["gatecast", "bundle", "onnx", "onnx_int8"] = "gatecast"
    """`bundle` (gatecast[onnx]): what `forecast score bundle=PATH` needs, which runs without torch. `onnx`: its files,
    the network as model.onnx, and its pre- and postprocessing in onnx.json. `onnx_int8`: the same with 8-bit weights,
    and their loss of accuracy."""


class SourceFolder(Config):
    """A model in a folder."""

    path: str
    """A folder with a model that a job could not register, or one written by `forecast models export`."""


class AddSettings(Config):
    """The pretrained network to add."""

    checkpoint: str = NANO
    """The pretrained network of the package: gatecast-nano, or one version of it, gatecast-nano-1."""

    @field_validator("checkpoint")
    @classmethod
    def _check_exists(cls, name: str) -> str:
        if name not in names():
            raise ValueError(f"no such pretrained network; there are {', '.join(names())} (given: {name})")
        return name


class ListSettings(Config):
    """The list of versions."""

    order: Literal["newest", "accuracy"] = "newest"
    """The first version: the newest one, or the most accurate one in its latest backtest (MASE; log-loss for classes).
    Versions without a backtest come last."""


class DeleteSettings(Config):
    """Deletion of a version."""

    force: bool = False
    """Delete a version even if it has an alias, other versions derive from it, or a rollback would need it."""
