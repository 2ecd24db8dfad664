"""Registration of the model of a job, and its rescue into a folder on failure.

A model that can't be registered is saved in a folder with everything that `forecast models register` needs.
"""

import json
import logging
import os
import shlex
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from forecast.config import Config, RegisterConfig, RegistryConfig
from forecast.errors import ConfigError, GatecastError, OutputError, RegistryError
from forecast.redaction import without_password
from pipelines.jobs.job import note

if TYPE_CHECKING:
    from forecast.artifact import Artifact
    from forecast.tracking.model_facts import ModelFacts
    from forecast.tracking.registry import Registry
    from forecast.tracking.run import Run
    from forecast.tracking.versions import Version

FOLDER: Final = "unregistered"
"""Folder of models that could not be registered, in the working folder."""
RECORD: Final = "registration.json"
_MODEL: Final = "model"
_OF_PARENT: Final = ("parent_version", "parent_digest")
_LOG = logging.getLogger(__name__)


class Registration:
    """The last stage of a job that creates a model.

    `register` logs the metrics and creates the version. If the stage fails before that, the model is saved, and the
    error names its folder and the command that registers it. Raises the errors of the stage, OutputError for an
    OSError.
    """

    def __init__(
        self,
        registry: "Registry",
        run: "Run",
        artifact: "Artifact",
        config: Config,
        data_digest: str,
        *,
        alias: str,
        tags: Mapping[str, str] | None = None,
        metrics: Mapping[str, Any] | None = None,
    ) -> None:
        from forecast.data.sources.side_tables import side_tables
        from pipelines.jobs.version_tags import version_tags

        self._registry, self._run, self._artifact, self._alias = registry, run, artifact, alias
        self._settings: RegistryConfig = getattr(config, "registry", RegistryConfig())
        source = getattr(config, "data", None)
        tables = {} if source is None else side_tables(source)  # take precedence over those of the parent
        self._tags = {**version_tags(artifact, config, data_digest), **(tags or {}), **tables}
        self._metrics = {name: value for name, value in (metrics or {}).items() if isinstance(value, int | float)}
        self.version: Version | None = None

    def __enter__(self) -> Self:
        """Begin the stage."""
        return self

    def register(self) -> "Version":
        """Register the model, and return its version with tags and alias."""
        facts = self._facts()
        self.version = register(self._registry, self._run, self._artifact, facts, tags=self._tags, alias=self._alias)
        self._run.label(self.version, [self._tags["trained_until"]])
        return self.version

    def _facts(self) -> "ModelFacts":
        return model_facts(self._run, self._artifact, self._registry.name, self._tags, self._metrics)

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        """Save the model unless it was registered."""
        if error is None or self.version is not None:
            return
        try:
            folder = self._save()
        except Exception as unsaved:
            advice = f"the model could not be saved either: {unsaved}"
        else:
            note(output=str(folder))
            advice = f"the model is saved in {folder}; register it with: {self._command(folder)}"
        if isinstance(error, GatecastError):
            error.args = (f"{error}; {advice}",)
        elif isinstance(error, OSError):
            raise OutputError(f"{error}; {advice}") from error
        else:
            _LOG.error("%s", advice)

    def _save(self) -> Path:
        cache = Path(os.environ.get("GATECAST_CACHE") or Path.home() / ".cache" / "gatecast")
        try:
            return self._save_in(Path(FOLDER).absolute())
        except Exception:
            return self._save_in(cache / FOLDER)

    def _save_in(self, parent: Path) -> Path:
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=parent, prefix=".partial-") as temporary:
            folder = Path(temporary, "folder")
            digest = self._artifact.save(folder / _MODEL)
            content = {
                "name": self._registry.name,
                "alias": self._alias,
                "run": self._run.id,
                "digest": digest,
                "tags": self._tags,
                "metrics": self._metrics,
                "facts": asdict(self._facts()),
            }
            record = folder / RECORD
            record.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            target = parent / f"{self._registry.name}-{digest[:12]}"
            if target.is_dir():  # the same model, saved by an earlier attempt
                record.replace(target / RECORD)
            else:
                folder.rename(target)
        return target

    def _command(self, folder: Path) -> str:
        words = [f"registry.name={self._registry.name}", f"source.path={folder}"]
        if self._settings.tracking_uri:
            words.append(f"registry.tracking_uri={without_password(self._settings.tracking_uri.get_secret_value())}")
        return shlex.join(["forecast", "models", "register", *words])


def register_folder(config: RegisterConfig) -> "tuple[Version, str]":
    """Return the version of a saved model, and a line about it.

    The folder is one saved by `Registration`, or any model folder. An existing version of the same model is returned
    instead of a new one. Raises ConfigError, ArtifactError, RegistryError.
    """
    from forecast import artifact
    from forecast.artifact_files import FORMAT_VERSION
    from forecast.tracking.model_facts import ModelFacts
    from pipelines.jobs.reading import open_registry
    from pipelines.jobs.version_tags import ends

    folder, alias = Path(config.source.path), config.registry.alias
    record = _record(folder)
    model_folder = folder / _MODEL if record else folder
    model = artifact.load(model_folder)
    digest = artifact.digest(model_folder)
    registry = open_registry(config)
    alias = alias or record.get("alias")
    plain = {"kind": model.kind, "format_version": str(FORMAT_VERSION)}
    tags = {**ends(model), **record.get("tags", plain)}
    if record.get("name") != registry.name:  # numbers of another model's versions
        tags = {name: value for name, value in tags.items() if name not in _OF_PARENT}
    if registered := next((version for version in versions(registry) if version.digest == digest), None):
        if alias:
            registry.set_alias(alias, registered)
        return registered, _line(registered, folder, alias, "is the same model")
    run_id = record.get("run")
    left = registry.record(run_id) if run_id else None
    resumed = registry.resume(left.id) if left and not left.is_deleted else None
    with resumed or registry.run("register", config) as run:
        note(mlflow=run.link)
        if "facts" in record:
            facts = ModelFacts.from_json(record["facts"])
        else:
            facts = model_facts(run, model, registry.name, tags, record.get("metrics", {}))
        version = register(registry, run, model, facts, tags=tags, alias=alias)
    return version, _line(version, folder, alias, f"is registered, run {run.id}")


def _line(version: "Version", folder: Path, alias: str | None, action: str) -> str:
    return f"{version} ({version.kind}): {folder} {action}" + (f", alias {alias}" if alias else "")


def _record(folder: Path) -> dict[str, Any]:
    file = folder / RECORD
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"source.path: {file} can't be read: {error}; give {folder / _MODEL} instead") from None
    if not isinstance(content, dict):
        raise ConfigError(f"source.path: {file} is no record of a registration; give {folder / _MODEL} instead")
    return content


def versions(registry: "Registry") -> "list[Version]":
    """Return all versions of a model, an empty list without a model of this name."""
    try:
        return registry.versions()
    except RegistryError as error:
        if error.__cause__ is not None:  # the store failed, not the look-up
            raise
        return []


def model_facts(
    run: "Run", artifact: "Artifact", name: str, tags: Mapping[str, str], metrics: Mapping[str, Any]
) -> "ModelFacts":
    """Return what MLflow shows about the model of a run."""
    from forecast.tracking.cards import with_card
    from pipelines.jobs.model_card import OF_MODEL, card, model_params

    description = with_card("", card(artifact, run, name, tags, metrics)) or ""
    of_model = [name for name in metrics if name in OF_MODEL]
    return run.facts(metrics, of_model, model_params(artifact, run.settings), description)


def register(
    registry: "Registry",
    run: "Run",
    artifact: "Artifact",
    facts: "ModelFacts",
    *,
    tags: Mapping[str, str],
    alias: str | None,
) -> "Version":
    """Register a model; return its version, a future one if the store is optional and unavailable. RegistryError."""
    from forecast.prediction.from_table import example

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        digest = artifact.save(folder)
        try:
            return registry.register(
                run, folder, digest=digest, alias=alias, tags=tags, example=example(artifact), facts=facts
            )
        except RegistryError as error:
            return registry.postpone(run, folder, error, facts, digest=digest, tags=tags, alias=alias)
