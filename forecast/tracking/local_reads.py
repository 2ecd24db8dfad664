"""Experiments, runs and versions in MLflow's SQLite file, with the attributes of MLflow's entities."""

import sqlite3
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Final

_DELETED: Final = "Deleted_Internal"
"""Stage of a deleted version."""


class AbsentError(LookupError):
    """A version, alias or model does not exist."""

    error_code: Final = "RESOURCE_DOES_NOT_EXIST"


def experiment(database: sqlite3.Connection, column: str, value: str | int) -> SimpleNamespace | None:
    """Return the experiment with a value in a column, None without one."""
    columns = "experiment_id, name, artifact_location, lifecycle_stage"
    rows = _rows(database, f"select {columns} from experiments where {column} = ?", [value])
    return SimpleNamespace(**{**rows[0], "experiment_id": str(rows[0]["experiment_id"])}) if rows else None


def registered_model(database: sqlite3.Connection, name: str) -> SimpleNamespace:
    """Return a registered model. Raises AbsentError."""
    rows = _rows(database, "select name, description from registered_models where name = ?", [name])
    if not rows:
        raise AbsentError(f"Registered Model with name={name} not found")
    tags = _pairs(database, "select key, value from registered_model_tags where name = ?", [name])
    query = "select alias, version from registered_model_aliases where name = ?"
    return SimpleNamespace(**rows[0], tags=tags, aliases=_pairs(database, query, [name]))


def version(database: sqlite3.Connection, name: str, number: int) -> SimpleNamespace:
    """Return a version with its aliases. Raises AbsentError."""
    entries = _versions(database, "name = ? and version = ?", [name, number])
    if not entries:
        raise AbsentError(f"Model Version (name={name}, version={number}) not found")
    query = "select alias from registered_model_aliases where name = ? and version = ?"
    entries[0].aliases = [alias for (alias,) in database.execute(query, [name, number])]
    return entries[0]


def versions(database: sqlite3.Connection, name: str) -> list[SimpleNamespace]:
    """Return the versions of a model, the last changed first, without aliases."""
    return _versions(database, "name = ?", [name])


def _versions(database: sqlite3.Connection, condition: str, values: Sequence[Any]) -> list[SimpleNamespace]:
    columns = (
        "name, version, creation_time as creation_timestamp, description, source, run_id, "
        "coalesce(storage_location, source) as folder"
    )
    order = "last_updated_time desc, version desc"
    query = f"select {columns} from model_versions where {condition} and current_stage <> ? order by {order}"
    rows = _rows(database, query, [*values, _DELETED])
    tags: dict[int, dict[str, str]] = {}
    query = f"select version, key, value from model_version_tags where {condition}"
    for number, key, value in database.execute(query, values):
        tags.setdefault(number, {})[key] = value
    return [SimpleNamespace(**row, tags=tags.get(row["version"], {}), aliases=[]) for row in rows]


def runs(database: sqlite3.Connection, experiments: Sequence[str], run_ids: Sequence[str]) -> list[SimpleNamespace]:
    """Return the active ones of runs of experiments, the last started first, with metrics, tags and datasets."""
    of_runs, of_experiments = ", ".join("?" * len(run_ids)), ", ".join("?" * len(experiments))
    query = (
        f"select run_uuid as run_id from runs where run_uuid in ({of_runs}) and experiment_id in ({of_experiments}) "
        "and lifecycle_stage = 'active' order by start_time desc, run_uuid"
    )
    return [_run(database, row["run_id"]) for row in _rows(database, query, [*run_ids, *map(int, experiments)])]


def _run(database: sqlite3.Connection, run_id: str) -> SimpleNamespace:
    query = "select key, value, is_nan from latest_metrics where run_uuid = ?"
    metrics = {key: float("nan") if is_nan else value for key, value, is_nan in database.execute(query, [run_id])}
    tags = _pairs(database, "select key, value from tags where run_uuid = ?", [run_id])
    query = (
        "select d.name, d.digest from inputs i join datasets d on d.dataset_uuid = i.source_id "
        "where i.source_type = 'DATASET' and i.destination_type = 'RUN' and i.destination_id = ?"
    )
    datasets = [SimpleNamespace(dataset=SimpleNamespace(**row)) for row in _rows(database, query, [run_id])]
    return SimpleNamespace(
        info=SimpleNamespace(run_id=run_id),
        data=SimpleNamespace(metrics=metrics, tags=tags),
        inputs=SimpleNamespace(dataset_inputs=datasets),
    )


def _pairs(database: sqlite3.Connection, query: str, values: Sequence[Any]) -> dict[str, Any]:
    return dict(database.execute(query, values).fetchall())


def _rows(database: sqlite3.Connection, query: str, values: Sequence[Any]) -> list[dict[str, Any]]:
    cursor = database.execute(query, values)
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor]
