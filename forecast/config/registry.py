"""`registry.*` and the settings of `forecast models` and `promote`."""

import os
import re
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from forecast.checkpoints import NANO, names
from forecast.config.base import Config, Store

_MODEL_NAME_LENGTH: Final = 200


def check_model_name(name: str, *, dots: bool = False) -> str:
    """Return a name of a registered model that MLflow takes for all that is named after it.

    A model, an experiment, logged models and a folder are. Raises ValueError.
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
    """Where models and runs are kept."""

    tracking_uri: Store | None = None
    """MLflow store; MLFLOW_TRACKING_URI, or sqlite:///mlflow.db here, when not given."""
    name: str = "forecaster"
    """Registered model; one per forecaster. Without slashes, : . % and quotes; on Databricks, catalog.schema.name."""
    alias: Alias | None = None
    """Which version: pretrained, challenger, champion, or a version number."""
    tracking: Literal["required", "best_effort"] = "required"
    """What becomes of a job whose MLflow store goes away while it works: it fails (required), or what it would log is
    kept in a folder and the job goes on (best_effort); `forecast runs sync` logs it later."""
    spool: str = "unlogged"
    """With best_effort: the folder of runs that are not logged yet."""

    @field_validator("name")
    @classmethod
    def _accepted_by_mlflow(cls, name: str, info: ValidationInfo) -> str:
        given = info.data.get("tracking_uri")
        uri = given.get_secret_value() if given else os.environ.get("MLFLOW_TRACKING_URI") or ""
        return check_model_name(name, dots=uri.startswith("databricks"))


class PromoteSettings(Config):
    """What may become champion."""

    force: bool = False
    """Promote the version even if the gate refuses it: whatever its backtest says, without one, or rolled back
    before. Why it was refused becomes the tag `forced` of the version."""


class DiffSettings(Config):
    """What a version is compared with."""

    against: Alias
    """The other version: an alias or a number."""
    rows: Annotated[int, Field(ge=0)] = 20
    """Series that are printed, the largest changes first."""


class RollbackSettings(Config):
    """What is taken back."""

    series: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Ids of series that forecast with the base again, in a new version of registry.alias (the champion when not
    given). The champion as a whole when not given."""
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
    """What is exported of a version."""

    series: str | None = None
    """The id of a series that is fine-tuned: a model that forecasts like it alone. All when not given."""
    format: Literal["gatecast", "onnx", "onnx_int8"] = "gatecast"
    """`onnx` (gatecast[onnx]): its files, the network as model.onnx, and what is needed around that in onnx.json.
    `onnx_int8`: the same with weights of 8 bits, and what that costs."""


class SourceFolder(Config):
    """A model in a folder."""

    path: str
    """The folder that a job left whose model could not be registered, or one of `forecast models export`."""


class AddSettings(Config):
    """What is added."""

    checkpoint: str = NANO
    """The pretrained network of the package: gatecast-nano, or one version of it, gatecast-nano-1."""

    @field_validator("checkpoint")
    @classmethod
    def _check_exists(cls, name: str) -> str:
        if name not in names():
            raise ValueError(f"no such pretrained network; there are {', '.join(names())} (given: {name})")
        return name


class DeleteSettings(Config):
    """What is deleted."""

    force: bool = False
    """Delete a version that an alias means, that others were made from, or that a rollback would need, too."""
