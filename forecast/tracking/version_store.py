"""The versions of a registered model in MLflow, and the resolution of its aliases."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from forecast.errors import RegistryError, listing
from forecast.redaction import without_password
from forecast.tracking.champions import CHAMPIONS
from forecast.tracking.run_store import RunStore
from forecast.tracking.store import calls_mlflow, error_code
from forecast.tracking.versions import Version, from_mlflow

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion


class ModelEntry(NamedTuple):
    """A registered model."""

    aliases: dict[str, int]
    """Version number of each alias."""
    champions: str | None
    """The history of champions, as its tag holds it."""
    description: str


class VersionStore(RunStore):
    """The runs and versions of one registered model, without moves of aliases."""

    @calls_mlflow
    def resolve(self, name: str | int, key: str = "registry.alias") -> Version:
        """Return the current version of an alias or number.

        Raises RegistryError that lists the existing ones; `key` is the setting that names it.
        """
        number = re.fullmatch(r"v?(\d+)", str(name))
        try:
            if number:
                return from_mlflow(self._client.get_model_version(self.name, number[1]))
            return from_mlflow(self._client.get_model_version_by_alias(self.name, str(name)))
        except Exception as error:
            if error_code(error) not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
        aliases = self._model("registry.name" if key == "registry.alias" else key).aliases
        if (deleted := aliases.get(str(name))) is not None:
            raise RegistryError(
                f"{self.name} v{deleted}, which the alias {name!r} means, is deleted; give the alias to another "
                f"version (train, finetune and promote do, forecast models rollback with rollback.to), or set {key}"
            )
        existing = listing((f"{alias} (v{number})" for alias, number in sorted(aliases.items())), limit=20)
        requested = f"version {number[1]}" if number else f"alias {name!r}"
        raise RegistryError(f"{self.name} has no {requested}; its aliases: {existing or 'none'}; set {key}")

    def find(self, alias: str) -> Version | None:
        """Return the current version of an alias, None without such an alias or model."""
        try:
            return self.resolve(alias)
        except RegistryError as error:
            if error.__cause__ is not None:  # the store failed, not the look-up
                raise
            return None

    @calls_mlflow
    def tag(self, version: Version, tags: Mapping[str, str]) -> None:
        """Set tags of a version."""
        self._tag(version.number, tags)

    def _tag(self, number: int, tags: Mapping[str, str]) -> None:
        for name, value in tags.items():
            self._client.set_model_version_tag(self.name, str(number), name, value)

    def _model(self, key: str = "registry.name") -> "ModelEntry":
        """Return aliases, which searching for versions does not report, and the history of champions."""
        try:
            model_entry = self._client.get_registered_model(self.name)
        except Exception as error:
            if error_code(error) != "RESOURCE_DOES_NOT_EXIST":
                raise
        else:
            aliases = {alias: int(number) for alias, number in model_entry.aliases.items()}
            return ModelEntry(aliases, model_entry.tags.get(CHAMPIONS), model_entry.description or "")
        names = listing((model.name for model in self._client.search_registered_models(max_results=100)), limit=20)
        raise RegistryError(
            f"no registered model {self.name} in {without_password(self.uri)}; there are: {names or 'none'}; "
            f"set {key}, or train one"
        )

    @calls_mlflow
    def versions(self) -> list[Version]:
        """Return all versions, newest first."""
        return self._versions(self._model().aliases)

    def _versions(self, aliases: Mapping[str, int]) -> list[Version]:
        aliases_of: dict[int, list[str]] = {}
        for alias, number in sorted(aliases.items()):
            aliases_of.setdefault(number, []).append(alias)
        entries: list[ModelVersion] = []
        token = None
        while token is None or token:
            page = self._client.search_model_versions(f"name='{self.name}'", max_results=1000, page_token=token)
            entries.extend(page)
            token = page.token or ""
        versions = [from_mlflow(entry, aliases_of.get(int(entry.version), [])) for entry in entries]
        return sorted(versions, key=lambda entry: entry.number, reverse=True)
