"""The first use of an MLflow store: by several jobs at once, cut short, and of one that is damaged."""

import os
import re
import sqlite3
import time
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from processes import Process

from forecast.config import RegistryConfig
from forecast.errors import RegistryError
from forecast.tracking.registry import Registry
from pipelines import ui


def make_experiment(connection: Connection, name: str, database: Path) -> None:
    """Send the id of an experiment in a store, both made if there is none."""
    connection.send(Registry(RegistryConfig(name=name, tracking_uri=f"sqlite:///{database}"))._experiment())


def test_a_kill_while_the_tables_are_made_leaves_nothing_and_two_jobs_at_once_make_them(tmp_path: Path) -> None:
    database, unfinished = tmp_path / "new" / "mlflow.db", tmp_path / "new" / ".mlflow.db.unfinished"
    killed = Process(make_experiment, "a", database)
    while not (unfinished.exists() and unfinished.stat().st_size):
        assert killed.is_alive()
        time.sleep(0.01)
    killed.kill()
    assert unfinished.exists()
    assert not database.exists()
    jobs = [Process(make_experiment, name, database) for name in ("a", "b")]
    assert {job.connection.recv() for job in jobs} == {"1", "2"}
    assert [path.name for path in database.parent.iterdir()] == ["mlflow.db"]
    with closing(sqlite3.connect(database)) as connection:
        names = connection.execute("select name from experiments order by experiment_id").fetchall()
    assert names[0] == ("Default",)
    assert sorted(names[1:]) == [("a",), ("b",)]


def test_an_empty_file_becomes_a_store(tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    database.touch()
    (tmp_path / "link.db").symlink_to(database)
    registry = Registry(RegistryConfig(name="a", tracking_uri=f"sqlite:///{tmp_path / 'link.db'}"))
    registry.check_runs()
    assert (tmp_path / "link.db").is_symlink()
    assert database.stat().st_size


def test_the_page_of_the_runs_makes_the_tables_before_its_server_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stand_in(_program: str, _arguments: list[str], environment: dict[str, str]) -> None:
        raise SystemExit(environment["MLFLOW_BACKEND_STORE_URI"])

    monkeypatch.setattr(os, "execve", stand_in)
    uri = f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}"
    with pytest.raises(SystemExit, match=re.escape(uri)):
        ui.main([f"registry.tracking_uri={uri}"])
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["mlflow.db"]
    with closing(sqlite3.connect(tmp_path / "new" / "mlflow.db")) as connection:
        assert connection.execute("select name from experiments").fetchall() == [("Default",)]


@pytest.mark.parametrize(
    "statements",
    ["create table experiments (experiment_id integer)", "create table alembic_version (version_num varchar)"],
    ids=["a table", "an unknown revision"],
)
def test_tables_that_can_not_be_completed_are_an_error_that_says_so(tmp_path: Path, statements: str) -> None:
    database = tmp_path / "mlflow.db"
    with closing(sqlite3.connect(database)) as connection:
        connection.execute(statements)
        if "alembic" in statements:
            connection.execute("insert into alembic_version values ('f00')")
        connection.commit()
    with pytest.raises(RegistryError, match=r"mlflow\.db: some of MLflow's tables are missing.*move the database away"):
        Registry(RegistryConfig(tracking_uri=f"sqlite:///{database}"))
