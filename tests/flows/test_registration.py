"""A model that is done is never lost: where it can't be registered it is saved, and registered with what is printed."""

import importlib
import re
import shlex
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flow import FINETUNE, HORIZON, NAME, Store, forecast, refuse, six_series, succeed

from forecast.config import RegistryConfig
from forecast.tracking.registry import Registry

QUICK = "model.init=none", "model.smoothing=false"
TRAIN = (f"window.horizon={HORIZON}", "window.context_length=24", "model.hidden_size=4", *QUICK, "fit.max_steps=0")
DISTIL = ("distil.hidden_size=4", "distil.n_windows=1", "fit.max_steps=1", "registry.alias=pretrained")
CALIBRATE = ("registry.alias=pretrained", "calibrate.n_windows=2", "calibrate.check_windows=0")
TUNE = (*TRAIN[:-1], "fit.max_steps=1", "tune.n_trials=1", "output.path=search")
JOBS = {
    "train": ("forecast.training.fit", TRAIN, "metrics", "pretrained"),
    "tune": ("forecast.tuning.tune", TUNE, "logged_models", "pretrained"),
    "finetune": (
        "forecast.finetuning.finetune",
        (*FINETUNE, "finetune.series=[s07,s08]"),
        "logged_models",
        "challenger",
    ),
    "calibrate": ("forecast.calibration.calibrate", CALIBRATE, "metrics", "challenger"),
    "distil": ("forecast.compression.distil", DISTIL, "logged_models", "challenger"),
}


def rename(store: Store, before: str, after: str) -> None:
    with sqlite3.connect(store.uri.removeprefix("sqlite:///")) as database:
        database.execute(f"DROP TABLE IF EXISTS {after}")  # MLflow makes what is missing when it opens the file.
        database.execute(f"ALTER TABLE {before} RENAME TO {after}")


def registry() -> Registry:
    return Registry(RegistryConfig(name=NAME))


def fail_after(monkeypatch: pytest.MonkeyPatch, module: str, action: Callable[[], None]) -> None:
    """Do something between the end of the work of a verb and its registration."""
    importlib.import_module(module)
    loaded, name = sys.modules[module], module.rpartition(".")[2]
    work = getattr(loaded, name)

    def wrapper(*arguments: Any, **settings: Any) -> Any:
        result = work(*arguments, **settings)
        action()
        return result

    monkeypatch.setattr(loaded, name, wrapper)


@pytest.mark.parametrize("verb", JOBS)
def test_a_model_whose_store_fails_is_saved_and_registered_later(
    fine_tuned: Store, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    module, settings, table, alias = JOBS[verb]
    numbers = {version.number for version in registry().versions()}
    data = f"data.path={fine_tuned.write(six_series())}"
    with monkeypatch.context() as patched:
        fail_after(patched, module, lambda: rename(fine_tuned, table, "elsewhere"))
        done = forecast(verb, f"registry.name={NAME}", data, *settings)
    assert done.code == 4, done.err
    rename(fine_tuned, "elsewhere", table)
    assert {version.number for version in registry().versions()} == numbers
    saved = re.search(r"the model is saved in (\S+); register it with: (forecast models register .*)", done.err)
    assert saved is not None, done.err
    assert Path(saved[1]).parent == fine_tuned.folder / "unregistered"

    command = shlex.split(saved[2])[1:]
    assert f"alias {alias}" in succeed(*command).out
    version = registry().resolve(alias)
    assert version.number not in numbers
    parent = {"train": None, "tune": None, "finetune": 1}.get(verb, 1)
    assert (version.parent, version.tags["horizon"]) == (parent, str(HORIZON))
    run = registry().record(version.run_id)
    assert run is not None
    assert (run.job, "error" in run.tags) == (verb, False)
    if table == "metrics":
        assert registry().metrics([version.run_id])[version.run_id]
    again = succeed(*command).out
    assert "is the same model" in again
    assert len(registry().versions()) == len(numbers) + 1
    out = succeed(
        "score",
        f"registry.name={NAME}",
        f"registry.alias={version.number}",
        data,
        "output.path=out",
    )
    assert f"v{version.number}" in out.out


@pytest.mark.usefixtures("fine_tuned")
def test_an_exported_model_is_registered_in_another_store() -> None:
    succeed("models", "export", f"registry.name={NAME}", "registry.alias=pretrained", "output.path=exported")
    other = "registry.tracking_uri=sqlite:///other/mlflow.db"
    assert "copy v1" in succeed("models", "register", "registry.name=copy", other, "source.path=exported").out
    there = Registry(RegistryConfig(name="copy", tracking_uri="sqlite:///other/mlflow.db"))
    assert there.resolve(1).digest == registry().resolve("pretrained").digest
    assert there.resolve(1).aliases == ()
    with_alias = succeed(
        "models", "register", "registry.name=copy", other, "source.path=exported", "registry.alias=new"
    )
    assert "alias new" in with_alias.out
    assert there.resolve("new").number == 1


@pytest.mark.usefixtures("fine_tuned")
@pytest.mark.parametrize("alias", ["champion", "3", "v3", "latest"])
def test_a_champion_and_numbers_are_not_given_by_hand(alias: str) -> None:
    message = refuse(2, "models", "register", f"registry.name={NAME}", "source.path=x", f"registry.alias={alias}")
    assert f"alias {alias!r} can't be given" in message


def test_what_is_no_model_is_refused(fine_tuned: Store) -> None:
    refuse(4, "models", "register", f"registry.name={NAME}", "source.path=nothing")
    (fine_tuned.folder / "damaged").mkdir()
    (fine_tuned.folder / "damaged" / "registration.json").write_text("{")
    assert "can't be read" in refuse(2, "models", "register", f"registry.name={NAME}", "source.path=damaged")


@pytest.mark.parametrize(
    "name",
    ["team/loads", "sales.eu", "a:b", "a\\b", "100%", "it's", 'a"b', " a", "a ", "", "a\tb", "x" * 201, "ß" * 101],
)
def test_a_name_that_mlflow_does_not_take_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    text = f"'{name}'" if name != "it's" else name
    message = refuse(2, "train", "data.path=missing.parquet", "window.horizon=3", f"registry.name={text}")
    assert "registry.name: " in message
    assert "missing.parquet" not in message
    assert not any(tmp_path.iterdir())


TAKEN = ["loads (eu) & co; #1 {x} [y]=~!@$^*|<>?,+", "größe 負荷", "2024", "Default", "x" * 200]


@pytest.mark.usefixtures("fine_tuned")
@pytest.mark.parametrize("name", TAKEN)
def test_a_name_that_is_taken_is_one_that_mlflow_takes(name: str) -> None:
    succeed("models", "export", f"registry.name={NAME}", "registry.alias=pretrained", "output.path=exported")
    words = ("source.path=exported", f"registry.name={name}")
    assert "v1 (pretrained)" in succeed("models", "register", *words, "registry.alias=challenger").out
    assert "challenger" in succeed("models", "list", f"registry.name={name}").out
    assert Registry(RegistryConfig(name=name)).resolve("challenger").number == 1


def test_names_of_unity_catalog_have_dots(monkeypatch: pytest.MonkeyPatch) -> None:
    config = RegistryConfig(name="catalog.schema.loads", tracking_uri="databricks://profile")
    assert config.name == "catalog.schema.loads"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "databricks")
    assert RegistryConfig(name="catalog.schema.loads").name == "catalog.schema.loads"
    assert "registry.name: " in refuse(2, "models", "list", "registry.name=catalog/schema")


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("key", ["fit.checkpoint", "output.path"])
def test_a_folder_that_cannot_be_made_is_told_before_the_table_is_read(tmp_path: Path, key: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "table.csv").write_text("no,columns\n1,2\n")
    verb, *words = ("tune", "output.path=out") if key == "fit.checkpoint" else ("tune",)
    settings = ("data.path=table.csv", "window.horizon=3", *words, f"{key}=file/below")
    message = refuse(6, verb, *settings)
    assert f"can't write into file/below: Not a directory; choose another {key}" in message
    assert not (tmp_path / "out").exists()


def test_a_deleted_experiment_is_told_before_the_table_is_read(fine_tuned: Store) -> None:
    with sqlite3.connect(fine_tuned.uri.removeprefix("sqlite:///")) as database:
        database.execute("UPDATE experiments SET lifecycle_stage = 'deleted'")
    table = fine_tuned.folder / "table.csv"
    table.write_text("no,columns\n1,2\n")
    message = refuse(4, "train", f"registry.name={NAME}", f"data.path={table}", "window.horizon=3")
    assert "was deleted" in message
    assert "was deleted" in refuse(4, "finetune", f"registry.name={NAME}", f"data.path={table}")


@pytest.mark.usefixtures("store")
def test_artifacts_that_cannot_be_written_are_told_before_the_table_is_read(tmp_path: Path) -> None:
    (tmp_path / "mlruns").write_text("a file")
    (tmp_path / "table.csv").write_text("no,columns\n1,2\n")
    message = refuse(4, "train", "registry.name=fresh", "data.path=table.csv", "window.horizon=3")
    assert f"can't write artifacts into {tmp_path / 'mlruns' / 'fresh'} (Not a directory)" in message
