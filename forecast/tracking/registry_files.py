"""The files of a version: packing for MLflow, and the cache of downloads."""

import logging
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from forecast.config import ServingSettings
from forecast.errors import RegistryError
from forecast.tracking.environment import requirements
from forecast.tracking.local_database import local_folder
from forecast.tracking.versions import Version

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    from mlflow import MlflowClient
    from mlflow.models import Model, ModelSignature

    from forecast.tracking.calls import Calls

_ARTIFACT: Final = "model"  # the name of our folder inside the logged model
_LOG = logging.getLogger(__name__)


def save_pyfunc(
    folder: Path, temporary: Path, model: "Model", example: "tuple[pl.DataFrame, pl.DataFrame] | None"
) -> str:
    """Pack an artifact folder as an MLflow model; return the path of the package in `temporary`."""
    import mlflow.pyfunc

    local = str(temporary / "pyfunc")
    mlflow.pyfunc.save_model(
        local,
        mlflow_model=model,
        python_model=str(Path(__file__).with_name("serving.py")),
        artifacts={_ARTIFACT: str(_renamed(folder, temporary))},
        signature=_signature(*example) if example else None,
        input_example=_to_pandas(example[0]) if example else None,
        # Inferring the requirements would load the model in another process.
        pip_requirements=requirements(),
    )
    return local


def lineage(digest: str, tags: Mapping[str, str]) -> dict[str, str]:
    """Return the lineage for the file MLmodel: the digest, and the tags that hold for copies, too."""
    stable_tags = ("kind", "trained_until", "final_until", "data_digest", "parent_digest")
    return {"digest": digest, **{name: tags[name] for name in stable_tags if name in tags}}


def download(client: "MlflowClient", calls: "Calls", uri: str, version: Version) -> Path:
    """Return the artifact folder of a version; see `Registry.download`."""
    from forecast import artifact  # imports torch

    if not re.fullmatch(r"[0-9a-f]{8,}", version.digest):
        raise RegistryError(f"{version} is not one of ours: its tag `digest` is {version.digest!r}")
    cache = Path(os.environ.get("GATECAST_CACHE") or Path.home() / ".cache" / "gatecast")
    folder = cache / version.digest
    if artifact.is_intact(folder, version.digest):
        return folder
    if folder.exists():
        _LOG.warning("%s, the cached copy of %s, is damaged; it is fetched again", folder, version)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        _fetch(client, calls, uri, version, folder)
    except OSError as error:
        raise RegistryError(
            f"{version} can't be kept in {cache}: {error.strerror or error}; set GATECAST_CACHE to another folder"
        ) from error
    return folder


def _fetch(client: "MlflowClient", calls: "Calls", uri: str, version: Version, folder: Path) -> None:
    """Move the files of a version into the cache once all of them are verified."""
    from forecast import artifact

    root = client.get_model_version_download_uri(version.name, str(version.number))
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".partial-") as temporary:
        fetched = _copied(calls, uri, f"{root}/artifacts/{_ARTIFACT}", Path(temporary))
        if not artifact.is_intact(fetched, version.digest):
            raise RegistryError(
                f"{version} is damaged in the registry: its files are not those of digest {version.digest[:16]}; "
                "take another version (registry.alias), or train or register it again"
            )
        if artifact.is_intact(folder, version.digest):  # Another job has cached it meanwhile.
            return
        with suppress(FileNotFoundError):
            folder.rename(Path(temporary) / "replaced")
        try:
            fetched.rename(folder)
        except OSError:
            if not artifact.is_intact(folder, version.digest):
                raise


def _copied(calls: "Calls", uri: str, artifacts: str, target: Path) -> Path:
    """Copy the artifact folder at the URI `artifacts` into a folder; return the copy."""
    source = local_folder(artifacts)
    if source is not None and source.is_dir():
        return Path(shutil.copytree(source, target / _ARTIFACT))
    from mlflow.artifacts import download_artifacts

    options = {"artifact_uri": artifacts, "dst_path": str(target), "tracking_uri": uri, "registry_uri": uri}
    return Path(calls.run("download_artifacts", download_artifacts, folder=target, **options))


def _signature(inputs: "pl.DataFrame", outputs: "pl.DataFrame") -> "ModelSignature":
    """Return the signature: input and output columns, and parameters.

    Input types are checked by this package: MLflow would refuse time zones and integers.
    """
    from mlflow.models import ModelSignature, infer_signature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType

    columns = Schema([ColSpec(AnyType(), name) for name in inputs.columns])
    fields = ServingSettings.model_fields.items()
    params = ParamSchema([ParamSpec(name, DataType.string, str(field.default)) for name, field in fields])
    return ModelSignature(columns, infer_signature(_to_pandas(outputs)).inputs, params)


def _to_pandas(frame: "pl.DataFrame") -> "pd.DataFrame":
    """Return a frame as pandas, for any column names: Arrow's C interface has none with a NUL."""
    numbered = frame.rename({name: str(number) for number, name in enumerate(frame.columns)})
    return numbered.to_pandas().set_axis(frame.columns, axis=1)


def _renamed(folder: Path, temporary: Path) -> Path:
    """Return a copy of the folder, named as inside the logged model."""
    return Path(shutil.copytree(folder, temporary / _ARTIFACT))
