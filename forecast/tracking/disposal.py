"""Runs, logged models and their artifacts, freed for good.

MLflow's clients only mark runs and logged models as deleted, and keep their files: `mlflow gc`, on the machine of the
store, frees them. Here the files are removed through the artifact store, which a server passes on; the rows of runs and
logged models are removed, too, where the store is a database or a folder. Behind a server they stay in its trash,
without files, until its next `mlflow gc`.

Each removal is repeated safely after a kill: a version is taken from the registry first, so none is listed without its
files, and its logged model is marked, so that the next job finds it.
"""

import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from forecast.tracking.store import calls_mlflow, is_server

# isort: split
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, ViewType
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from forecast.errors import RegistryError
from forecast.tracking.accuracy import CHART
from forecast.tracking.run import BATCH
from forecast.tracking.run_store import PARENT_RUN
from forecast.tracking.versions import Version

if TYPE_CHECKING:
    from forecast.tracking.registry import Registry

_FREED: Final = "retain.freed"
"""Tag of the logged model of a version that is being freed."""
_UNREGISTERED_MS: Final = 24 * 3_600_000
"""Age of a logged model without a version at which no job is about to register it any more."""
_ACTIVE: Final = ("RUNNING", "SCHEDULED")


@dataclass(frozen=True)
class OldRun:
    """An ended run."""

    id: str
    job: str
    ended: int
    """Milliseconds since 1970."""
    parent: str
    """The id of its parent run, empty without one."""
    is_deleted: bool
    artifact_uri: str


@dataclass(frozen=True)
class StoredModel:
    """The logged model of a version, or of one that was deleted."""

    id: str
    name: str
    artifact_uri: str


class Disposal:
    """The runs and logged models of one registered model, and their removal."""

    def __init__(self, registry: "Registry") -> None:
        self._registry, self.uri = registry, registry.uri
        self._client = registry._client
        self._store: Any = MlflowClient(self.uri, self.uri)._tracking_client.store

    @calls_mlflow
    def old_runs(self, before: int) -> list[OldRun]:
        """Return the runs that ended before a time, in milliseconds since 1970, deleted ones included; newest first.

        Runs that still run are left out, and the chart of accuracy.
        """
        experiment = self._experiment()
        runs: list[OldRun] = []
        for run in self._pages(experiment, f"attributes.start_time < {before}") if experiment else ():
            ended = int(run.info.end_time or run.info.start_time)
            if ended < before and run.info.status not in _ACTIVE and CHART not in run.data.tags:
                tags = run.data.tags
                job = tags.get("job", run.info.run_name or "")
                is_deleted = run.info.lifecycle_stage != "active"
                uri = run.info.artifact_uri
                runs.append(OldRun(run.info.run_id, job, ended, tags.get(PARENT_RUN, ""), is_deleted, uri))
        return sorted(runs, key=lambda run: -run.ended)

    @calls_mlflow
    def parents(self, run_ids: set[str]) -> set[str]:
        """Return the ids of the runs above these, at any height."""
        above: set[str] = set()
        waiting = list(run_ids)
        while waiting:
            with suppress(MlflowException):
                parent = self._client.get_run(waiting.pop()).data.tags.get(PARENT_RUN, "")
                if parent and parent not in above:
                    above.add(parent)
                    waiting.append(parent)
        return above

    @calls_mlflow
    def model_of(self, version: Version) -> StoredModel | None:
        """Return the logged model of a version; None for versions without one, whose files are those of its run."""
        if not version.model_id:
            return None
        try:
            return _stored(self._client.get_logged_model(version.model_id))
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None

    @calls_mlflow
    def models_without_version(self, versions: list[Version]) -> list[StoredModel]:
        """Return the logged models whose version was deleted: marked by a killed job, or older than a day."""
        experiment, before = self._experiment(), int(time.time() * 1000) - _UNREGISTERED_MS
        ids = {version.model_id for version in versions}
        models: list[StoredModel] = []
        token: str | None = None
        while experiment and (token is None or token):
            page = self._client.search_logged_models([experiment], page_token=token)
            models += [
                _stored(model)
                for model in page
                if model.model_id not in ids and (_FREED in model.tags or model.creation_timestamp < before)
            ]
            token = page.token or ""
        return [model for model in models if not self._versions_of(model)]

    def _versions_of(self, model: StoredModel) -> list[str]:
        """Return the versions of any registered model that may have the files of a logged model."""
        run_id = self._client.get_logged_model(model.id).source_run_id
        if not run_id:
            return []
        page = self._client.search_model_versions(f"run_id='{run_id}'")
        return [f"{entry.name} v{entry.version}" for entry in page if _may_share(entry.source or "", model.id)]

    @calls_mlflow
    def copies(self, version: Version) -> list[str]:
        """Return versions of other registered models that have the files of this one, or its network."""
        name = version.name
        entries = [*self._client.search_model_versions(f"run_id='{version.run_id}'")] if version.run_id else []
        entries = [entry for entry in entries if _may_share(entry.source or "", version.model_id)]
        entries += self._client.search_model_versions(f"tags.init_version = '{version}'")
        return sorted({f"{entry.name} v{entry.version}" for entry in entries if entry.name != name})

    @calls_mlflow
    def size(self, artifact_uri: str) -> int:
        """Return the bytes of artifacts."""
        return self._size(self._repository(artifact_uri))

    @calls_mlflow
    def free_version(self, version: Version, model: StoredModel | None) -> int:
        """Take a version from the registry, then free its logged model; return the bytes freed.

        Raises RegistryError, and frees nothing, if it has an alias or child versions, or a rollback needs it.
        """
        if model is not None:
            self._client.set_logged_model_tags(model.id, {_FREED: str(version)})
        self._registry.delete(version)
        return 0 if model is None else self.free_model(model)

    @calls_mlflow
    def free_model(self, model: StoredModel) -> int:
        """Free a logged model without a version; return the bytes freed."""
        freed = self._remove(model.artifact_uri, model.id)
        if hasattr(self._store, "_hard_delete_logged_model"):
            self._store._hard_delete_logged_model(model.id)
        else:
            self._client.delete_logged_model(model.id)
        return freed

    @calls_mlflow
    def free_run(self, run: OldRun) -> int:
        """Free a run; return the bytes freed."""
        if not run.is_deleted:
            self._client.delete_run(run.id)
        freed = self._remove(run.artifact_uri, run.id)
        if self.removes_rows:
            self._store._hard_delete_run(run.id)
        return freed

    @property
    def removes_rows(self) -> bool:
        """Whether the rows of runs are removed, too; otherwise a freed run stays in the trash of the server."""
        return hasattr(self._store, "_hard_delete_run")

    def _experiment(self) -> str:
        experiment = self._client.get_experiment_by_name(self._registry.name)
        return "" if experiment is None else str(experiment.experiment_id)

    def _pages(self, experiment: str, condition: str) -> Iterator[MlflowRun]:
        token: str | None = None
        while token is None or token:
            page = self._client.search_runs(
                [experiment], condition, run_view_type=ViewType.ALL, max_results=BATCH, page_token=token
            )
            yield from page
            token = page.token or ""

    def _repository(self, artifact_uri: str) -> Any:
        return get_artifact_repository(artifact_uri, tracking_uri=self.uri)

    def _remove(self, artifact_uri: str, owner: str) -> int:
        """Remove artifacts, and return the bytes freed. Raises RegistryError unless their folder is that of `owner`."""
        if owner not in re.split(r"[/\\]", artifact_uri):
            raise RegistryError(
                f"the artifacts of {owner} are in {artifact_uri}, which may be shared; remove them there"
            )
        repository = self._repository(artifact_uri)
        before = self._size(repository)
        if is_server(self.uri):
            self._registry._calls.run("delete_artifacts", repository.delete_artifacts)
        else:
            repository.delete_artifacts()
        if isinstance(repository, LocalArtifactRepository):
            with suppress(OSError):  # Other files are in it.
                Path(repository.artifact_dir).parent.rmdir()
        return before - self._size(repository)

    def _size(self, repository: Any) -> int:
        if isinstance(repository, LocalArtifactRepository):
            return sum(file.lstat().st_size for file in Path(repository.artifact_dir).rglob("*") if not file.is_dir())
        size, folders = 0, [cast("str | None", None)]
        while folders:
            for entry in repository.list_artifacts(folders.pop()):
                if entry.is_dir:
                    folders.append(entry.path)
                else:
                    size += int(entry.file_size or 0)
        return size


def _stored(model: LoggedModel) -> StoredModel:
    return StoredModel(model.model_id, model.name, model.artifact_location)


def _may_share(source: str, model_id: str) -> bool:
    """Return whether a version with this source may have the files of a logged model: it names it, or a version."""
    return model_id in source if re.search(r"\bm-[0-9a-f]{32}\b", source) else source.startswith("models:/")
