"""The versions of a registered model in MLflow, and what its aliases mean."""

import re
from collections.abc import Mapping

from forecast.tracking.store import calls_mlflow

# isort: split
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from forecast.errors import RegistryError, listing
from forecast.redaction import without_password
from forecast.tracking.champions import CHAMPIONS
from forecast.tracking.run_store import RunStore
from forecast.tracking.versions import Version, from_mlflow


class VersionStore(RunStore):
    """The runs and versions of one registered model, as they are."""

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
        aliases = self._model("registry.name" if key == "registry.alias" else key)[0]
        if (deleted := aliases.get(str(which))) is not None:
            raise RegistryError(
                f"{self.name} v{deleted}, which the alias {which!r} means, is deleted; give the alias to another "
                f"version (train, finetune and promote do, forecast models rollback with rollback.to), or set {key}"
            )
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
        self._tag(version.number, tags)

    def _tag(self, number: int, tags: Mapping[str, str]) -> None:
        for name, value in tags.items():
            self._client.set_model_version_tag(self.name, str(number), name, value)

    def _model(self, key: str = "registry.name") -> tuple[dict[str, int], str | None]:
        """Return alias -> number, which searching for versions does not report, and the history of champions."""
        try:
            found = self._client.get_registered_model(self.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
        else:
            return {alias: int(number) for alias, number in found.aliases.items()}, found.tags.get(CHAMPIONS)
        known = listing((model.name for model in self._client.search_registered_models(max_results=100)), limit=20)
        raise RegistryError(
            f"no registered model {self.name} in {without_password(self.uri)}; there are: {known or 'none'}; "
            f"set {key}, or train one"
        )

    @calls_mlflow
    def versions(self) -> list[Version]:
        """Return all versions, newest first."""
        return self._versions(self._model()[0])

    def _versions(self, aliases: Mapping[str, int]) -> list[Version]:
        held: dict[int, list[str]] = {}
        for alias, number in sorted(aliases.items()):
            held.setdefault(number, []).append(alias)
        found: list[ModelVersion] = []
        token = None
        while token is None or token:
            page = self._client.search_model_versions(f"name='{self.name}'", max_results=1000, page_token=token)
            found.extend(page)
            token = page.token or ""
        versions = [from_mlflow(each, held.get(int(each.version), [])) for each in found]
        return sorted(versions, key=lambda each: each.number, reverse=True)
