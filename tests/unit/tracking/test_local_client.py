"""The client of a local store writes the rows that MLflow writes, and reads what MLflow reads."""

import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from forecast.tracking.entities import Dataset, DatasetInput, InputTag, LoggedModelInput, Metric, Param, RunTag
from forecast.tracking.local_client import LocalClient
from forecast.tracking.local_database import REVISIONS, local_file
from forecast.tracking.store import connect, local_client

RUN_TABLES = ("runs", "tags", "params", "metrics", "latest_metrics", "datasets", "inputs", "input_tags")
CHANGING = ("start_time", "end_time")
NAN, INFINITY = float("nan"), float("inf")


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that MLflow has just made."""
    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    connect(f"sqlite:///{file}")
    return file


@pytest.fixture
def client(empty_store: Path, tmp_path: Path) -> LocalClient:
    file = tmp_path / "mlflow.db"
    file.write_bytes(empty_store.read_bytes())
    return local_client(f"sqlite:///{file}", file)


def log_run(client: Any, experiment: str, folder: Path) -> str:
    """Log a run with all calls that scoring makes."""
    tags = {"job": "score", "kind": "score", "mlflow.source.name": "forecast score"}
    run_id = str(client.create_run(experiment, tags=tags, run_name="score v1").info.run_id)
    client.log_batch(run_id, params=[Param("score.cutoff", "null"), Param("data.path", "ü.parquet")])
    points = [("b", 2.0, 8, 1), ("b", 3.0, 9, 0), ("n", NAN, 7, 0), ("i", INFINITY, 7, 0), ("i", -INFINITY, 8, 0)]
    metrics = [Metric("a/b c", 1.5, 7, 0), *(Metric(*point) for point in points)]
    client.log_batch(run_id, metrics=metrics, tags=[RunTag("rows", "3"), RunTag("rows", "4")])
    client.log_batch(run_id, metrics=[Metric("b", 1.0, 9, 1)], tags=[RunTag("mlflow.runName", "score v1 2024")])
    dataset = Dataset("panel", "ab12", "local", '{"uri": "x"}', profile="{}")
    model = LoggedModelInput(f"m-{'0' * 32}")
    inputs = [DatasetInput(dataset, [InputTag("mlflow.data.context", "scoring")])]
    client.log_inputs(run_id, datasets=inputs, models=[model])
    client.log_artifact(run_id, str(folder / "a.json"), "tags")
    client.log_artifacts(run_id, str(folder))
    client.set_tag(run_id, "error", "none")
    client.set_terminated(run_id, "FAILED")
    return run_id


def rows(client: LocalClient, run_id: str) -> dict[str, list[str]]:
    """Return the rows of all tables of runs, with random numbers and times replaced."""
    contents = {}
    with sqlite3.connect(client._file) as database:
        database.row_factory = sqlite3.Row
        numbers = {run_id: "run"}
        for query in ("select dataset_uuid from datasets", "select input_uuid from inputs order by source_type"):
            numbers |= {number: f"number {position}" for position, (number,) in enumerate(database.execute(query))}
        for table in RUN_TABLES:
            lines = [dict(row) for row in database.execute(f"select * from {table}")]
            shown = [{name: _shown(name, value, numbers) for name, value in line.items()} for line in lines]
            contents[table] = sorted(map(repr, shown))
    return contents


def _shown(name: str, value: Any, numbers: Mapping[str, str]) -> Any:
    if name in CHANGING:
        return value is not None
    for number, text in numbers.items():
        value = value.replace(number, text) if isinstance(value, str) else value
    return value


def test_the_rows_and_files_of_a_run_are_those_of_mlflow(client: LocalClient, tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    (files / "a.json").write_text("{}")
    (files / "b.txt").write_text("b")
    client.create_experiment("loads", (tmp_path / "an äxperiment").as_uri())
    start = client._file.read_bytes()
    experiment = client.get_experiment_by_name("loads")
    assert experiment is not None
    logs = {}
    for name, logging in {"MLflow": client.mlflow, "SQL": client}.items():
        client._file.write_bytes(start)
        run_id = log_run(logging, experiment.experiment_id, files)
        artifacts = tmp_path / "an äxperiment" / run_id / "artifacts"
        content = {str(path.relative_to(artifacts)): path.read_text() for path in artifacts.rglob("*.*")}
        logs[name] = rows(client, run_id), content
    assert logs["SQL"] == logs["MLflow"]
    assert all(logs["SQL"][0].values())


def test_versions_aliases_and_runs_are_read_as_by_mlflow(client: LocalClient, tmp_path: Path) -> None:
    experiment = client.create_experiment("loads", tmp_path.as_uri())
    run_ids = [client.create_run(experiment, run_name=name).info.run_id for name in "ab"]
    client.log_batch(run_ids[0], metrics=[Metric("x", NAN, 1, 0), Metric("y", 2.0, 1, 0)], tags=[RunTag("k", "v")])
    client.log_inputs(run_ids[0], datasets=[DatasetInput(Dataset("panel", "ab12", "local", "{}"))])
    client.create_registered_model("loads", description="A card.")
    client.set_registered_model_tag("loads", "champions", "{}")
    for number in "123":
        client.create_model_version("loads", f"file:///{number}", run_ids[0], {"kind": number}, description="text")
    client.set_registered_model_alias("loads", "champion", "2")
    client.set_registered_model_alias("loads", "first", "2")
    client.delete_model_version("loads", "3")

    names = ("name", "version", "creation_timestamp", "description", "source", "run_id", "tags", "aliases")

    def read(reader: Any) -> list[Any]:
        model = reader.get_registered_model("loads")
        by_alias, by_number = (
            reader.get_model_version_by_alias("loads", "champion"),
            reader.get_model_version("loads", "1"),
        )
        condition = f"attributes.run_id IN ('{run_ids[0]}', '{run_ids[1]}')"
        page = reader.search_runs([experiment], condition, max_results=10)
        versions = [by_alias, by_number, *reader.search_model_versions("name='loads'", max_results=10, page_token=None)]
        experiment_entry = reader.get_experiment_by_name("loads")
        return [
            (model.aliases, model.tags, model.description),
            [[str(getattr(version, name)) for name in names] for version in versions],
            [(run.info.run_id, repr(sorted(run.data.metrics.items())), run.data.tags) for run in page],
            [[(entry.dataset.name, entry.dataset.digest) for entry in run.inputs.dataset_inputs] for run in page],
            (experiment_entry.experiment_id, experiment_entry.artifact_location, experiment_entry.lifecycle_stage),
            reader.get_model_version_download_uri("loads", "1"),
        ]

    assert read(client) == read(client.mlflow)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (("get_model_version", "loads", "1"), "not found"),
        (("get_model_version_by_alias", "loads", "champion"), "not found"),
        (("get_registered_model", "loads"), "not found"),
        (("set_terminated", "0" * 32), "not found"),
        (("log_batch", "0" * 32, [Metric("a", 1.0, 1, 0)]), "not found"),
        (("log_batch", "0" * 32, [Metric("a:b!", 1.0, 1, 0)]), "Invalid value"),
    ],
)
def test_a_refused_call_ends_in_an_error_with_the_code_of_mlflow(
    client: LocalClient, call: tuple[Any, ...], message: str
) -> None:
    errors = []
    for reader in (client, client.mlflow):
        with pytest.raises(Exception, match=message) as error:
            getattr(reader, call[0])(*call[1:])
        errors.append(getattr(error.value, "error_code", ""))
    known = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}
    assert errors[0] == errors[1] or set(errors) <= known


def test_a_setting_can_not_change(client: LocalClient, tmp_path: Path) -> None:
    run_id = client.create_run(client.create_experiment("loads", tmp_path.as_uri()), run_name="a").info.run_id
    for _ in range(2):
        client.log_batch(run_id, params=[Param("a", "1")])
    with pytest.raises(Exception, match="Changing param values is not allowed"):
        client.log_batch(run_id, params=[Param("a", "2")])


def changes() -> Iterator[str]:
    yield "update alembic_version set version_num = 'another'"
    yield "delete from experiments"
    yield "update experiments set workspace = 'another'"
    yield "drop table input_tags"


@pytest.mark.parametrize("change", changes())
def test_a_store_of_another_form_is_left_to_mlflow(client: LocalClient, change: str) -> None:
    uri = f"sqlite:///{client._file}"
    assert local_file(uri) == client._file
    with sqlite3.connect(client._file) as database:
        database.execute(change)
    assert local_file(uri) is None
    assert local_file(f"sqlite:///{client._file.with_name('absent.db')}") is None
    assert local_file("http://localhost:5000") is None


def test_the_installed_mlflow_makes_tables_of_a_known_revision(client: LocalClient) -> None:
    with sqlite3.connect(client._file) as database:
        assert database.execute("select version_num from alembic_version").fetchone()[0] in REVISIONS
