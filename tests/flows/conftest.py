"""A fresh MLflow store for each test: making the tables, and training, takes seconds, so it is done once and copied."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flow import BACKTEST, FINETUNE, NAME, TRAIN, Store, panel, succeed
from matplotlib.figure import Figure

from forecast.config import RegistryConfig
from forecast.tracking.registry import Registry


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


@pytest.fixture(scope="session")
def store_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    database = tmp_path_factory.mktemp("template") / "mlflow.db"
    Registry(RegistryConfig(tracking_uri=f"sqlite:///{database}"))
    return database


@pytest.fixture
def store(store_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty store, which is the default one of the test; returns its URI."""
    return _use(store_template, tmp_path, tmp_path / "cache", monkeypatch)


@pytest.fixture(scope="session")
def stages(store_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store after each of the first verbs: fine_tuned.db, judged.db, promoted.db."""
    folder = tmp_path_factory.mktemp("stages")
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
    return folder


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
