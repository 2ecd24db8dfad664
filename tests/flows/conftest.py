"""A fresh MLflow store for each test: making the tables, and training, takes seconds, so it is done once and copied."""

import fcntl
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from flow import BACKTEST, FINETUNE, NAME, TRAIN, Store, panel, run_jobs_inline, succeed
from matplotlib.figure import Figure
from sqlalchemy import event
from sqlalchemy.engine import Engine

from forecast import redaction
from forecast.config import RegistryConfig
from forecast.tracking.registry import Registry


@event.listens_for(Engine, "connect")
def _do_not_sync(connection: Any, _record: Any) -> None:
    """Write databases without waiting for the disk: a commit takes twenty times as long otherwise."""
    if isinstance(connection, sqlite3.Connection):
        connection.execute("pragma synchronous=off")


@pytest.fixture(scope="session", autouse=True)
def one_picture_of_each_name() -> Iterator[None]:
    """Draw the figures of each file name once: drawing takes longer than the rest of most verbs does here."""
    pictures: dict[str, bytes] = {}
    draw = Figure.savefig

    def save(figure: Figure, file: str | Path, **options: Any) -> None:
        path = Path(file)
        if path.name in pictures:
            path.write_bytes(pictures[path.name])
        else:
            draw(figure, file, **options)
            pictures[path.name] = path.read_bytes()

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(Figure, "savefig", save)
        yield


@pytest.fixture(autouse=True)
def no_secrets_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values that an earlier test treats as secrets are not hidden in the texts of this one."""
    monkeypatch.setattr(redaction, "_secrets", {})


@pytest.fixture
def inline_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs of schedulers, monitors and retries run in this process; without it, in processes of their own."""
    run_jobs_inline(monkeypatch)


def _once(factory: pytest.TempPathFactory, name: str, fill: Callable[[Path], None]) -> Path:
    """Return a folder of this process, as `fill` leaves it: with several processes, one fills it and the others copy.

    Addresses of files are changed in the databases of a copy, so that no process writes where another one does.
    """
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" not in os.environ:
        fill(folder := factory.mktemp(name, numbered=False))
        return folder
    original, done, copy = root.parent / name, root.parent / f"{name}.done", root / name
    with (root.parent / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            original.mkdir()
            fill(original)
            done.touch()
    shutil.copytree(original, copy)
    for file in copy.glob("*.db"):
        _readdress(file, str(original), str(copy))
    return copy


def _readdress(file: Path, before: str, after: str) -> None:
    """Replace the path of a folder in all texts of a SQLite database."""
    with closing(sqlite3.connect(file)) as database:
        for (table,) in database.execute("select name from sqlite_master where type = 'table'").fetchall():
            columns = database.execute(f'pragma table_info("{table}")').fetchall()
            changes = [f'"{name}" = replace("{name}", ?1, ?2)' for _, name, kind, *_ in columns if "CHAR" in kind]
            if changes:
                database.execute(f'update "{table}" set {", ".join(changes)}', (before, after))
        database.commit()


@pytest.fixture(scope="session")
def store_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def fill(folder: Path) -> None:
        Registry(RegistryConfig(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}"))

    return _once(tmp_path_factory, "template", fill) / "mlflow.db"


@pytest.fixture
def store(store_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty store, which is the default one of the test; returns its URI."""
    return _use(store_template, tmp_path, tmp_path / "cache", monkeypatch)


@pytest.fixture(scope="session")
def stages(store_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store after each of the first verbs: fine_tuned.db, judged.db, promoted.db."""

    def fill(folder: Path) -> None:
        panel().write_parquet(folder / "panel.parquet")
        name, data = f"registry.name={NAME}", f"data.path={folder / 'panel.parquet'}"
        with pytest.MonkeyPatch.context() as monkeypatch:
            _use(store_template, folder, folder / "cache", monkeypatch)
            succeed("train", name, data, *TRAIN)
            succeed("finetune", name, data, *FINETUNE)
            shutil.copy(folder / "mlflow.db", folder / "fine_tuned.db")
            succeed("backtest", name, data, *BACKTEST)
            shutil.copy(folder / "mlflow.db", folder / "judged.db")
            succeed("promote", name)
            shutil.copy(folder / "mlflow.db", folder / "promoted.db")

    return _once(tmp_path_factory, "stages", fill)


@pytest.fixture
def fine_tuned(stages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """v1 is pretrained; v2 is fine-tuned, the challenger, and not yet backtested."""
    return _at("fine_tuned", stages, tmp_path, monkeypatch)


@pytest.fixture
def judged(stages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """v2 is backtested; there is no champion."""
    return _at("judged", stages, tmp_path, monkeypatch)


@pytest.fixture
def promoted(stages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """v2 is the champion."""
    return _at("promoted", stages, tmp_path, monkeypatch)


@pytest.fixture(scope="session")
def champion_forecasts(stages: Path, tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    """The forecasts of the champion of `promoted` for its table."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        store = _at("promoted", stages, tmp_path_factory.mktemp("champion_forecasts"), monkeypatch)
        store.score()
        return store.forecasts()


def _at(stage: str, stages: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    uri = _use(stages / f"{stage}.db", folder, stages / "cache", monkeypatch)
    # The database names its artifacts by absolute paths: those stay where they are, and new ones go there too.
    return Store(uri, stages / "panel.parquet", stages / "mlruns", folder)


def _use(database: Path, folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make a copy of a store the default one; return its URI."""
    uri = f"sqlite:///{shutil.copy(database, folder / 'mlflow.db')}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    monkeypatch.setenv("GATECAST_CACHE", str(cache))
    monkeypatch.chdir(folder)
    return uri
