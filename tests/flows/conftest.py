"""A fresh MLflow store for each test: making the tables takes seconds, so they are made once and copied."""

import shutil
from pathlib import Path

import pytest

from forecast.config import RegistryConfig
from forecast.registry import Registry


@pytest.fixture(scope="session")
def store_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    database = tmp_path_factory.mktemp("template") / "mlflow.db"
    Registry(RegistryConfig(tracking_uri=f"sqlite:///{database}"))
    return database


@pytest.fixture
def store(store_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty store, which is the default one of the test; returns its URI."""
    uri = f"sqlite:///{shutil.copy(store_template, tmp_path / 'mlflow.db')}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    monkeypatch.setenv("GATECAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return uri
