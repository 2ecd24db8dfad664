"""A client of MLflow's store in a SQLite file, which looks up versions and logs runs without importing MLflow.

MLflow and the tables of its store take three seconds of CPU time to import, longer than a night's forecasts of many
panels. The calls of every night are SQL here, with the rows that MLflow would write. All other calls, and calls that
MLflow might refuse, are passed to MLflow's client. `local_database.local_file` says
which files are used in this way.
"""

import functools
import math
import re
import sqlite3
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, ParamSpec, TypeVar

from forecast.tracking.entities import DatasetInput, LoggedModelInput, Metric, Param, RunTag
from forecast.tracking.local_database import copy_file, insert_input, insert_row, local_folder, transaction
from forecast.tracking.local_reads import AbsentError, experiment, registered_model, runs, version, versions

_KEY: Final = re.compile(r"[\w.\- /]{1,250}", re.ASCII)
_VALUE_LENGTH: Final = 5000
_NAME: Final = "mlflow.runName"

P = ParamSpec("P")
R = TypeVar("R")


class _UnusualError(Exception):
    """A call that MLflow is to make or refuse."""


def _or_by_mlflow(method: Callable[P, R]) -> Callable[P, R]:
    """Decorate a method of LocalClient: MLflow's client makes a call that is unusual or breaks a constraint."""

    @functools.wraps(method)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(*args, **kwargs)
        except (_UnusualError, sqlite3.IntegrityError):
            client: Any = args[0]
            result: R = getattr(client.mlflow, method.__name__)(*args[1:], **kwargs)
            return result

    return wrapper


class LocalClient:
    """An MlflowClient of the store in a SQLite file. `open_mlflow` returns MLflow's own, which takes the other calls.

    Lookups raise AbsentError, which has the `error_code` of MLflow's error.
    """

    def __init__(self, file: Path, open_mlflow: Callable[[], Any]) -> None:
        self._file, self._open_mlflow = file, open_mlflow

    @functools.cached_property
    def mlflow(self) -> Any:
        """MLflow's client."""
        return self._open_mlflow()

    def __getattr__(self, name: str) -> Any:
        """Return a method of MLflow's client."""
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.mlflow, name)

    def get_experiment_by_name(self, name: str) -> SimpleNamespace | None:
        """Return an experiment, None without one."""
        with transaction(self._file) as database:
            return experiment(database, "name", name)

    @_or_by_mlflow
    def get_model_version(self, name: str, number: str) -> SimpleNamespace:
        """Return a version by its number."""
        with transaction(self._file) as database:
            return _model(version(database, name, int(number)))

    @_or_by_mlflow
    def get_model_version_by_alias(self, name: str, alias: str) -> SimpleNamespace:
        """Return the version of an alias."""
        if alias.lower() == "latest":
            raise _UnusualError
        with transaction(self._file) as database:
            aliases = registered_model(database, name).aliases
            if alias not in aliases:
                raise AbsentError(f"Registered model alias {alias} not found.")
            return _model(version(database, name, int(aliases[alias])))

    @_or_by_mlflow
    def get_model_version_download_uri(self, name: str, number: str) -> str:
        """Return the folder of a version, as a URI."""
        with transaction(self._file) as database:
            return str(version(database, name, int(number)).folder)

    @_or_by_mlflow
    def get_registered_model(self, name: str) -> SimpleNamespace:
        """Return a registered model."""
        with transaction(self._file) as database:
            return _model(registered_model(database, name))

    @_or_by_mlflow
    def search_model_versions(
        self, condition: str, max_results: int = 1000, page_token: str | None = None
    ) -> Sequence[SimpleNamespace]:
        """Return all versions of the model in a condition `name='NAME'`, the last changed first."""
        name = re.fullmatch(r"name='([^']+)'", condition)
        with transaction(self._file) as database:
            entries = versions(database, name[1]) if name and not page_token else None
        if entries is None or len(entries) > max_results:
            raise _UnusualError
        return _Page([_model(entry) for entry in entries])

    @_or_by_mlflow
    def search_runs(self, experiments: list[str], condition: str = "", **options: Any) -> Sequence[SimpleNamespace]:
        """Return the runs of a condition `attributes.run_id IN (...)`, with latest metrics, tags and datasets."""
        if not re.fullmatch(r"attributes\.run_id IN \('\w+'(, '\w+')*\)", condition) or options.keys() - {
            "max_results"
        }:
            raise _UnusualError
        with transaction(self._file) as database:
            return runs(database, experiments, re.findall(r"'(\w+)'", condition))

    @_or_by_mlflow
    def create_run(
        self, experiment_id: str, *, tags: Mapping[str, str] | None = None, run_name: str = ""
    ) -> SimpleNamespace:
        """Create a run, and return it with its `info.run_id`."""
        run_id, values = uuid.uuid4().hex, dict(tags or {})
        _check(values.items())
        if not run_name or values.setdefault(_NAME, run_name) != run_name:
            raise _UnusualError
        with transaction(self._file, writes=True) as database:
            parent = experiment(database, "experiment_id", int(experiment_id))
            if parent is None or parent.lifecycle_stage != "active" or local_folder(parent.artifact_location) is None:
                raise _UnusualError
            row = {
                "run_uuid": run_id,
                "name": run_name,
                "source_type": "UNKNOWN",
                "source_name": "",
                "entry_point_name": "",
                "user_id": values.get("mlflow.user", "unknown"),
                "status": "RUNNING",
                "start_time": _now(),
                "source_version": "",
                "lifecycle_stage": "active",
                "artifact_uri": f"{parent.artifact_location.rstrip('/')}/{run_id}/artifacts",
                "experiment_id": int(experiment_id),
            }
            insert_row(database, "runs", row)
            rows = [(name, value, run_id) for name, value in values.items()]
            database.executemany("insert into tags (key, value, run_uuid) values (?, ?, ?)", rows)
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id, experiment_id=str(experiment_id)))

    @_or_by_mlflow
    def log_batch(
        self, run_id: str, metrics: Sequence[Metric] = (), params: Sequence[Param] = (), tags: Sequence[RunTag] = ()
    ) -> None:
        """Log metrics, settings and tags."""
        _check((param.key, param.value) for param in params)
        _check((tag.key, tag.value) for tag in tags)
        _check((metric.key, "") for metric in metrics)
        if any(metric.model_id for metric in metrics) or len(set(metrics)) < len(metrics):
            raise _UnusualError
        with transaction(self._file, writes=True) as database:
            _active(database, run_id)
            rows = [(run_id, param.key, param.value) for param in params]
            database.executemany("insert into params (run_uuid, key, value) values (?, ?, ?)", rows)
            points = [(run_id, metric.key, *_stored(metric.value), metric.timestamp, metric.step) for metric in metrics]
            columns = "(run_uuid, key, value, is_nan, timestamp, step) values (?, ?, ?, ?, ?, ?)"
            database.executemany(f"insert into metrics {columns}", points)
            latest = (
                f"insert into latest_metrics {columns} on conflict (key, run_uuid) do update set value = "
                "excluded.value, is_nan = excluded.is_nan, timestamp = excluded.timestamp, step = excluded.step where "
                "(excluded.step, excluded.timestamp, excluded.value) > "
                "(latest_metrics.step, latest_metrics.timestamp, latest_metrics.value)"
            )
            database.executemany(latest, points)
            replaced = (
                "insert into tags (run_uuid, key, value) values (?, ?, ?) on conflict (key, run_uuid) do update set "
                "value = excluded.value"
            )
            database.executemany(replaced, [(run_id, tag.key, tag.value) for tag in tags])
            names = [(tag.value, run_id) for tag in tags if tag.key == _NAME]
            database.executemany("update runs set name = ? where run_uuid = ?", names)

    def set_tag(self, run_id: str, key: str, value: Any) -> None:
        """Set a tag of a run."""
        self.log_batch(run_id, tags=[RunTag(key, str(value))])

    @_or_by_mlflow
    def log_inputs(
        self, run_id: str, datasets: Sequence[DatasetInput] = (), models: Sequence[LoggedModelInput] = ()
    ) -> None:
        """Record the data and the models that a run has used."""
        _check((tag.key, tag.value) for dataset_input in datasets for tag in dataset_input.tags)
        with transaction(self._file, writes=True) as database:
            owner = int(_active(database, run_id)["experiment_id"])
            for entry in datasets:
                dataset = entry.dataset
                key = {"experiment_id": owner, "name": dataset.name, "digest": dataset.digest}
                where = "experiment_id = :experiment_id and name = :name and digest = :digest"
                stored = database.execute(f"select dataset_uuid from datasets where {where}", key).fetchone()
                source = stored[0] if stored else uuid.uuid4().hex
                if not stored:
                    content: dict[str, str | None] = {
                        "dataset_source_type": dataset.source_type,
                        "dataset_source": dataset.source,
                    }
                    content |= {"dataset_schema": dataset.schema, "dataset_profile": dataset.profile}
                    insert_row(database, "datasets", {"dataset_uuid": source, **key, **content})
                edge = insert_input(database, "DATASET", source, "RUN", run_id)
                for tag in entry.tags:
                    insert_row(database, "input_tags", {"input_uuid": edge, "name": tag.key, "value": tag.value})
            for model in models:
                insert_input(database, "RUN_INPUT", run_id, "MODEL_INPUT", model.model_id)

    @_or_by_mlflow
    def log_artifact(self, run_id: str, local_path: str, folder: str | None = None) -> None:
        """Copy a file into the artifacts of a run."""
        if (folder is not None and not re.fullmatch(r"\w[\w./-]*", folder)) or ".." in (folder or ""):
            raise _UnusualError
        copy_file(Path(local_path), self._artifacts(run_id) / (folder or ""))

    @_or_by_mlflow
    def log_artifacts(self, run_id: str, local_folder: str) -> None:
        """Copy the files of a folder into the artifacts of a run."""
        paths = list(Path(local_folder).iterdir())
        if not all(path.is_file() for path in paths):
            raise _UnusualError
        target = self._artifacts(run_id)
        for path in paths:
            copy_file(path, target)

    @_or_by_mlflow
    def set_terminated(self, run_id: str, status: str = "FINISHED") -> None:
        """End a run."""
        with transaction(self._file, writes=True) as database:
            _active(database, run_id)
            changed = "update runs set status = ?, end_time = ? where run_uuid = ?"
            database.execute(changed, [status, _now(), run_id])

    def _artifacts(self, run_id: str) -> Path:
        with transaction(self._file) as database:
            folder = local_folder(_active(database, run_id)["artifact_uri"])
        if folder is None:
            raise _UnusualError
        return folder


class _Page(list[SimpleNamespace]):
    """All results of a search."""

    token = None


def _model(entry: SimpleNamespace) -> SimpleNamespace:
    """Return a model or version; MLflow keeps prompts among them, and treats them as absent."""
    if "mlflow.prompt.is_prompt" in entry.tags:
        raise _UnusualError
    return entry


def _check(pairs: Any) -> None:
    for key, value in pairs:
        if not _KEY.fullmatch(key) or ".." in key or key.startswith(("/", ".")) or key.endswith("/") or "//" in key:
            raise _UnusualError
        if not isinstance(value, str) or len(value) > _VALUE_LENGTH:
            raise _UnusualError


def _active(database: sqlite3.Connection, run_id: str) -> sqlite3.Row:
    cursor = database.cursor()
    cursor.row_factory = sqlite3.Row
    row: sqlite3.Row | None = cursor.execute("select * from runs where run_uuid = ?", [run_id]).fetchone()
    if row is None or row["lifecycle_stage"] != "active":
        raise _UnusualError
    return row


def _stored(value: float) -> tuple[float, bool]:
    """Return a value as MLflow stores it, and whether it is NaN."""
    if math.isnan(value):
        return 0.0, True
    limit = 1.7976931348623157e308
    return min(max(float(value), -limit), limit), False


def _now() -> int:
    return time.time_ns() // 1_000_000
