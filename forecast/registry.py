"""Versions of a registered model in MLflow, and their aliases."""

import re
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from forecast.tracking_store import calls_mlflow, explained, is_server, prepare_store, tracking_uri
from forecast.tracking_store import connect as _connect

# isort: split
import polars as pl
from mlflow.entities import LoggedModelOutput
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from forecast import names
from forecast.config import RegistryConfig
from forecast.errors import RegistryError, listing
from forecast.redaction import without_password
from forecast.registry_files import download, save_pyfunc
from forecast.run_store import PARENT_RUN, Record, RunStore
from forecast.tracking_run import Run
from forecast.tracking_spool import is_away
from forecast.versions import Version, from_mlflow

__all__ = [
    "DEMOTED",
    "PARENT_RUN",
    "REPLACED_VERSION",
    "Record",
    "Registry",
    "Run",
    "Version",
    "prepare_store",
    "tracking_uri",
]

REPLACED_VERSION: Final = "replaced_version"
"""Tag of a champion: the version it took over from, for `Registry.rollback`."""
DEMOTED: Final = "demoted"
"""Tag of a version that was rolled back: why."""


class Registry(RunStore):
    """The runs and versions of one registered model.

    Raises RegistryError if the store does not answer; a dead server is noticed in seconds.
    """

    def __init__(self, config: RegistryConfig) -> None:
        self.uri = tracking_uri(config)
        self.name = config.name
        self._spool_root = Path(config.spool) if config.tracking == "best_effort" else None
        with explained(self.uri):
            self._calls, self._client = _connect(self.uri)

    @calls_mlflow
    def register(
        self,
        run: Run,
        folder: Path,
        *,
        digest: str,
        tags: Mapping[str, str],
        alias: str | None = None,
        example: tuple[pl.DataFrame, pl.DataFrame] | None = None,
    ) -> Version:
        """Register an artifact folder as a version which any MLflow client can load, and give it an alias.

        `example` is a few made-up input rows with their forecasts: they become the signature and the input example.
        """
        if run.spool and run.spool.folder:
            raise RegistryError(f"MLflow store {without_password(self.uri)}: it was away before")
        # Its name may hold fewer characters than that of a registered model.
        logged = re.sub(r"""[/:.%"']""", "_", self.name)
        model = self._client.create_logged_model(run.experiment_id, f"{logged}-{digest[:8]}", run.id)
        with tempfile.TemporaryDirectory() as temporary:
            described = Model(run_id=run.id, model_id=model.model_id, metadata=_lineage(digest, tags))
            local = save_pyfunc(folder, Path(temporary), described, example)
            self._client.log_model_artifacts(model.model_id, local)
        self._client.finalize_logged_model(model.model_id, "READY")
        self._client.log_outputs(run.id, [LoggedModelOutput(model.model_id, 0)])
        try:
            self._client.create_registered_model(self.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        # Asked directly, a database looks for models:/ in whatever store is set for the whole process.
        source = f"models:/{model.model_id}" if is_server(self.uri) else model.artifact_location
        created = self._client.create_model_version(
            self.name, source, run.id, tags={**tags, "digest": digest}, model_id=model.model_id
        )
        if alias:
            self._client.set_registered_model_alias(self.name, alias, created.version)
        return from_mlflow(created, [alias] if alias else [])

    def postpone(
        self, run: Run, folder: Path, error: RegistryError, *, digest: str, tags: Mapping[str, str], alias: str | None
    ) -> Version:
        """Keep a model folder in the spool of its run, where the store is away, and return the version to be.

        Raises the error where the store is required, or has refused the model.
        """
        cause = error.__cause__
        if run.spool is None or not (run.spool.folder or is_away(cause)):
            raise error
        if run.spool.folder is None:
            run.spool.begin(cause or error, run.id)
        run.spool.register(folder, digest=digest, alias=alias, tags=tags)
        return Version(self.name, 0, digest, tags.get("kind", ""), run.id, "", time.time_ns() // 1_000_000, dict(tags))

    @calls_mlflow
    def resolve(self, which: str | int, key: str = "registry.alias") -> Version:
        """Return the version that an alias or a number means now.

        Raises RegistryError that lists what there is; `key` is the setting that names it.
        """
        number = re.fullmatch(r"v?(\d+)", str(which))
        try:
            if number:
                return from_mlflow(self._client.get_model_version(self.name, number[1]))
            return from_mlflow(self._client.get_model_version_by_alias(self.name, str(which)))
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
        aliases = self._aliases()
        existing = listing((f"{alias} (v{number})" for alias, number in sorted(aliases.items())), limit=20)
        wanted = f"version {number[1]}" if number else f"alias {which!r}"
        raise RegistryError(f"{self.name} has no {wanted}; its aliases: {existing or 'none'}; set {key}")

    def find(self, alias: str) -> Version | None:
        """Return the version that an alias means now, None if there is no such alias or model yet."""
        try:
            return self.resolve(alias)
        except RegistryError as error:
            if error.__cause__ is not None:  # the store failed, not the look-up
                raise
            return None

    @calls_mlflow
    def tag(self, version: Version, tags: Mapping[str, str]) -> None:
        """Set tags of a version."""
        for name, value in tags.items():
            self._client.set_model_version_tag(self.name, str(version.number), name, value)

    def _aliases(self) -> dict[str, int]:
        """Return alias -> number. Searching for versions does not report them."""
        try:
            found = self._client.get_registered_model(self.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
        else:
            return {alias: int(number) for alias, number in found.aliases.items()}
        known = listing((model.name for model in self._client.search_registered_models(max_results=100)), limit=20)
        raise RegistryError(
            f"no registered model {self.name} in {without_password(self.uri)}; there are: {known or 'none'}; "
            "set registry.name, or train one"
        )

    @calls_mlflow
    def versions(self) -> list[Version]:
        """Return all versions, newest first."""
        held: dict[int, list[str]] = {}
        for alias, number in sorted(self._aliases().items()):
            held.setdefault(number, []).append(alias)
        found: list[ModelVersion] = []
        token = None
        while token is None or token:
            page = self._client.search_model_versions(f"name='{self.name}'", max_results=1000, page_token=token)
            found.extend(page)
            token = page.token or ""
        versions = [from_mlflow(each, held.get(int(each.version), [])) for each in found]
        return sorted(versions, key=lambda each: each.number, reverse=True)

    @calls_mlflow
    def download(self, version: Version) -> Path:
        """Return the artifact folder of a version.

        The local cache is keyed by digest: a version that is in it, each file as it was saved, makes no request. One
        that is damaged there is fetched again. Raises RegistryError, also where what the registry has is damaged.
        """
        return download(self._client, self._calls, self.uri, version)

    @calls_mlflow
    def set_alias(self, alias: str, version: Version) -> None:
        """Point an alias at a version."""
        self._client.set_registered_model_alias(self.name, alias, str(version.number))

    @calls_mlflow
    def delete_alias(self, alias: str) -> None:
        """Remove an alias."""
        self._client.delete_registered_model_alias(self.name, alias)

    @calls_mlflow
    def promote(self, challenger: Version) -> None:
        """Make a version the champion, and remember which one it replaced. The champion stays what it is."""
        champion = self._aliases().get(names.CHAMPION)
        if champion == challenger.number:
            return
        number = str(challenger.number)
        self._client.set_model_version_tag(self.name, number, REPLACED_VERSION, str(champion or ""))
        if challenger.tags.get(DEMOTED):
            self._client.set_model_version_tag(self.name, number, DEMOTED, "")
        self._client.set_registered_model_alias(self.name, names.CHAMPION, number)

    @calls_mlflow
    def delete(self, version: Version, *, force: bool = False) -> None:
        """Delete a version. Its run stays.

        Raises RegistryError if an alias means it, or, without `force`, if others were fine-tuned from it.
        """
        every = self.versions()
        (aliases,) = (each.aliases for each in every if each.number == version.number)
        if aliases:
            raise RegistryError(
                f"{version} is not deleted: it is the {' and the '.join(aliases)}; give the alias to another version "
                "before (train, finetune and promote do)"
            )
        children = [f"v{each.number}" for each in reversed(every) if each.parent == version.number]
        if children and not force:
            raise RegistryError(
                f"{version} is not deleted: it is the parent of {listing(children)}; delete these first, or set "
                "delete.force=true"
            )
        self._client.delete_model_version(self.name, str(version.number))

    def previous(self, champion: Version) -> Version | None:
        """Return the version that a champion replaced, None for the first one, and if it was deleted."""
        replaced = champion.tags.get(REPLACED_VERSION)
        return self.find(replaced) if replaced else None

    @calls_mlflow
    def rollback(self, reason: str) -> tuple[Version, Version]:
        """Give the champion alias back to the version that the champion replaced; return (from, to).

        The one that is left remembers why, so that `promote` does not bring it back.
        """
        champion = self.resolve(names.CHAMPION)
        replaced = champion.tags.get(REPLACED_VERSION)
        if not replaced:
            raise RegistryError(f"nothing to roll back to: {champion} was the first champion")
        target = self.resolve(replaced)
        self._client.set_model_version_tag(self.name, str(champion.number), DEMOTED, reason)
        self._client.set_registered_model_alias(self.name, names.CHAMPION, str(target.number))
        return champion, target


def _lineage(digest: str, tags: Mapping[str, str]) -> dict[str, str]:
    """Return where a model comes from, as MLmodel says it: digest, and of the tags those that stay true of a copy."""
    kept = ("kind", "trained_until", "data_digest", "parent_digest")
    return {"digest": digest, **{name: tags[name] for name in kept if name in tags}}
