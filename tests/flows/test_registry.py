import hashlib
import json
import os
import shutil
import time
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import safetensors.numpy
from matplotlib.figure import Figure
from mlflow import MlflowClient

from forecast import names
from forecast.config import Config, ModelsConfig, RegistryConfig, UiConfig, load
from forecast.errors import ConfigError, RegistryError
from forecast.tracking.registry import Registry
from forecast.tracking.versions import Version
from pipelines import models, ui

NAME = "flights"
CONFIG = load(ModelsConfig, {"registry": {"name": NAME}})


@pytest.fixture
def registry(store: str) -> Registry:
    return Registry(RegistryConfig(name=NAME, tracking_uri=store))


def artifact(folder: Path, seed: float = 0.0) -> tuple[Path, str]:
    """Write the outside of an artifact: weights, and a manifest that gives the digest."""
    folder.mkdir(parents=True)
    safetensors.numpy.save_file({"weight": np.full(3, seed, np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    manifest = json.dumps({"format_version": 1, "files": files})
    (folder / "manifest.json").write_text(manifest)
    return folder, hashlib.sha256(manifest.encode()).hexdigest()


def register(registry: Registry, folder: Path, seed: float, alias: str | None = None, **tags: str) -> Version:
    path, digest = artifact(folder / f"artifact-{seed}", seed)
    with registry.run("train", CONFIG) as run:
        return registry.register(run, path, digest=digest, alias=alias, tags={"kind": "pretrained", **tags})


class CountingClient:
    """The real client, counting the calls."""

    def __init__(self, client: MlflowClient) -> None:
        self.client = client
        self.calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        self.calls[name] += 1
        return getattr(self.client, name)


def test_a_version_is_found_by_alias_and_by_number_with_its_tags(registry: Registry, tmp_path: Path) -> None:
    version = register(registry, tmp_path, 1.0, names.PRETRAINED, parent_version="7")
    assert registry.resolve(names.PRETRAINED) == registry.resolve(1) == registry.resolve("v1") == version
    assert (version.number, version.kind, version.aliases) == (1, "pretrained", ("pretrained",))
    assert version.tags["parent_version"] == "7"


def test_download_returns_the_folder_as_it_was_and_asks_the_store_once(registry: Registry, tmp_path: Path) -> None:
    version = register(registry, tmp_path, 1.0)
    first = registry.download(version)
    assert {path.name: path.read_bytes() for path in first.iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "artifact-1.0").iterdir()
    }
    registry._client = counting = CountingClient(registry._client)  # type: ignore[assignment]
    assert registry.download(version) == first
    assert not counting.calls
    assert [path.name for path in first.parent.iterdir()] == [version.digest]


@pytest.mark.parametrize("damage", ["manifest", "weights", "missing", "empty", "file"])
def test_a_damaged_copy_in_the_cache_is_fetched_again(registry: Registry, tmp_path: Path, damage: str) -> None:
    version = register(registry, tmp_path, 1.0)
    folder = registry.download(version)
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    if damage == "manifest":
        (folder / "manifest.json").write_text("{}")
    elif damage == "weights":
        content = bytearray(whole["model.safetensors"])
        content[-1] ^= 1
        (folder / "model.safetensors").write_bytes(content)
    elif damage == "missing":
        (folder / "config.json").unlink()
    else:
        shutil.rmtree(folder)
        if damage == "empty":
            folder.mkdir()
        else:
            folder.write_text("?")
    assert registry.download(version) == folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole
    assert [path.name for path in folder.parent.iterdir()] == [version.digest]
    registry._client = counting = CountingClient(registry._client)  # type: ignore[assignment]
    assert registry.download(version) == folder
    assert not counting.calls


def test_a_damaged_copy_in_the_registry_is_not_kept(registry: Registry, tmp_path: Path) -> None:
    version = register(registry, tmp_path, 1.0)
    other = replace(register(registry, tmp_path, 2.0), digest=version.digest)
    with pytest.raises(RegistryError, match=r"flights v2 is damaged in the registry: .*take another version"):
        registry.download(other)
    cache = Path(os.environ["GATECAST_CACHE"])
    assert not cache.exists() or list(cache.iterdir()) == []
    assert registry.download(version).is_dir()


def test_a_model_of_somebody_else_is_refused(registry: Registry) -> None:
    foreign = Version("other", 1, "../../etc", "", "", "", 0)
    with pytest.raises(RegistryError, match="not one of ours"):
        registry.download(foreign)


def test_nothing_that_is_stored_is_a_pickle(registry: Registry, tmp_path: Path) -> None:
    register(registry, tmp_path, 1.0)
    suffixes = {path.suffix for path in (tmp_path / "mlruns").rglob("*") if path.is_file() and path.name != "MLmodel"}
    assert ".safetensors" in suffixes
    assert suffixes <= {".json", ".py", ".safetensors", ".txt", ".yaml"}


def test_mlflow_itself_sees_signature_example_requirements_and_run(registry: Registry, tmp_path: Path) -> None:
    import mlflow.models

    times = [datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 1, 2, tzinfo=UTC)]
    table = pl.DataFrame({"series_id": ["a", "a"], "timestamp": times, "target": [1, 2]})
    forecasts = table.select("series_id", "timestamp", mean=pl.lit(1.5))
    path, digest = artifact(tmp_path / "artifact")
    with registry.run("train", CONFIG) as run:
        version = registry.register(run, path, digest=digest, tags={"kind": "x"}, example=(table, forecasts))
    info = mlflow.models.get_model_info(f"models:/{NAME}/{version.number}")
    assert info.signature is not None
    assert info.signature.inputs.input_names() == table.columns
    assert info.signature.outputs.input_names() == forecasts.columns
    assert info.saved_input_example_info is not None
    assert info.run_id == run.id
    requirements = (next((tmp_path / "mlruns").rglob("requirements.txt"))).read_text()
    assert "torch==" in requirements
    assert "+" not in requirements


def test_an_unknown_alias_lists_those_there_are(registry: Registry, tmp_path: Path) -> None:
    register(registry, tmp_path, 1.0, names.PRETRAINED)
    with pytest.raises(RegistryError, match=r"no alias 'champoin'; its aliases: pretrained \(v1\)"):
        registry.resolve("champoin")
    with pytest.raises(RegistryError, match="no version 9"):
        registry.resolve(9)


def test_an_unknown_model_lists_those_there_are(registry: Registry, tmp_path: Path, store: str) -> None:
    register(registry, tmp_path, 1.0)
    other = Registry(RegistryConfig(name="fligths", tracking_uri=store))
    with pytest.raises(RegistryError, match=r"no registered model fligths .* there are: flights"):
        other.resolve(names.CHAMPION)


def test_promote_then_rollback_returns_to_the_version_before(registry: Registry, tmp_path: Path) -> None:
    first, second = (register(registry, tmp_path, seed, names.CHALLENGER) for seed in (1.0, 2.0))
    registry.promote(first)
    with pytest.raises(RegistryError, match="first champion"):
        registry.rollback("worse")
    registry.promote(second)
    assert registry.resolve(names.CHAMPION).tags["replaced_version"] == "1"
    registry.promote(second)  # again: it must not replace itself
    before, after = registry.rollback("worse")
    assert (before.number, after.number) == (2, 1)
    assert registry.resolve(names.CHAMPION).number == 1


def test_versions_come_newest_first_with_their_aliases(registry: Registry, tmp_path: Path) -> None:
    for seed, alias in ((1.0, names.PRETRAINED), (2.0, None), (3.0, names.CHALLENGER)):
        register(registry, tmp_path, seed, alias)
    registry.set_alias(names.CHAMPION, registry.resolve(3))
    registry.delete_alias(names.PRETRAINED)
    found = [(version.number, version.aliases) for version in registry.versions()]
    assert found == [(3, ("challenger", "champion")), (2, ()), (1, ())]


def test_a_run_holds_all_that_was_logged(registry: Registry, tmp_path: Path, store: str) -> None:
    with registry.run("train", CONFIG, {"note": "x"}) as run:
        run.curve([(3, {"val/loss": 0.5})])
        run.curve([(step, {"train/loss": 1.0 / step}) for step in range(1, 6)])
        run.tags({"series": 35})
        run.table(pl.DataFrame({"a": [1, 2]}), "tables/a.parquet")
        run.json({"b": 1}, "b.json")
        run.figure(Figure(), "plots/c.png")
        run.dataset("flights", digest="a" * 64, source="panel.parquet", rows=10, series=2)
    client = MlflowClient(store)
    logged = client.get_run(run.id)
    assert logged.info.status == "FINISHED"
    assert logged.data.params["registry.name"] == NAME
    assert logged.data.metrics["val/loss"] == 0.5
    assert len(client.get_metric_history(run.id, "train/loss")) == 5
    assert {"note": "x", "series": "35", "job": "train"}.items() <= logged.data.tags.items()
    assert logged.inputs is not None
    assert logged.inputs.dataset_inputs[0].dataset.digest == "a" * 36
    root = Path(next((tmp_path / "mlruns").rglob("config.json"))).parent
    assert json.loads((root / "config.json").read_text())["registry"]["name"] == NAME
    assert json.loads((root / "environment.json").read_text())["packages"]["torch"]
    assert pl.read_parquet(root / "tables/a.parquet")["a"].to_list() == [1, 2]
    assert (root / "plots/c.png").stat().st_size > 0


@pytest.mark.parametrize("kind", ["sqlite", "files"])
def test_the_latest_loss_is_that_of_the_kept_weights_and_the_curve_stays(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = store if kind == "sqlite" else (tmp_path / "files").as_uri()
    registry = Registry(RegistryConfig(name=NAME, tracking_uri=uri))
    curve = [(step, {"train/loss": 1.0 / (step + 1), "val/loss": loss}) for step, loss in enumerate((0.9, 0.6, 0.8))]
    with registry.run("train", CONFIG) as run:
        run.curve(curve)
        run.metrics({"val/loss": 0.6, "steps": 2})
    assert registry.metrics([run.id])[run.id] == {"train/loss": pytest.approx(1 / 3), "val/loss": 0.6, "steps": 2}
    logged = registry.curve(run.id, ["val/loss"])
    assert logged.rows() == [("val/loss", step, values["val/loss"]) for step, values in curve]


@pytest.mark.parametrize(("error", "status"), [(ValueError("no luck"), "FAILED"), (KeyboardInterrupt(), "KILLED")])
def test_a_run_that_stops_says_so(registry: Registry, store: str, error: BaseException, status: str) -> None:
    with pytest.raises(type(error)), registry.run("train", CONFIG) as run:
        raise error
    logged = MlflowClient(store).get_run(run.id)
    assert logged.info.status == status
    assert logged.data.tags["error"].startswith(type(error).__name__)


def test_a_whole_job_makes_few_calls(registry: Registry, tmp_path: Path) -> None:
    registry._client = counting = CountingClient(registry._client)  # type: ignore[assignment]
    path, digest = artifact(tmp_path / "artifact")
    with registry.run("train", CONFIG) as run:
        run.curve([(step, {"train/loss": 1.0}) for step in range(900)])
        run.metrics({"val/loss": 0.5})
        registry.register(run, path, digest=digest, alias=names.PRETRAINED, tags={"kind": "pretrained"})
    assert 5 < counting.calls.total() <= 16, counting.calls
    assert counting.calls["log_batch"] == 3


def test_a_dead_server_is_noticed_in_seconds() -> None:
    started = time.monotonic()
    with pytest.raises(RegistryError, match=r"http://127\.0\.0\.1:9.*registry\.tracking_uri"):
        Registry(RegistryConfig(tracking_uri="http://127.0.0.1:9"))
    assert time.monotonic() - started < 15


@pytest.mark.parametrize("content", [b"not a database, but longer than its header" * 9, None])
def test_a_broken_database_is_noticed_at_once(tmp_path: Path, content: bytes | None) -> None:
    database = tmp_path / "mlflow.db"
    database.mkdir() if content is None else database.write_bytes(content)
    started = time.monotonic()
    with pytest.raises(RegistryError, match=r"mlflow\.db"):
        Registry(RegistryConfig(tracking_uri=f"sqlite:///{database}"))
    assert time.monotonic() - started < 15


def test_a_password_is_neither_shown_nor_stored(registry: Registry, tmp_path: Path) -> None:
    secret = RegistryConfig(tracking_uri="postgresql://me:hunter2@127.0.0.1:9/mlflow")
    with pytest.raises(RegistryError, match=r"me:\*\*\*@") as caught:
        Registry(secret)
    assert "hunter2" not in str(caught.value)
    with registry.run("train", load(ModelsConfig, {"registry": secret.model_dump()})):
        pass
    assert "hunter2" not in "".join(path.read_text() for path in (tmp_path / "mlruns").rglob("*.json"))
    assert b"hunter2" not in (tmp_path / "mlflow.db").read_bytes()


def test_long_settings_are_cut_not_refused(registry: Registry, store: str) -> None:
    class Long(Config):
        columns: tuple[str, ...] = tuple(f"column_{number}" for number in range(1000))

    with registry.run("train", Long()) as run:
        pass
    assert len(MlflowClient(store).get_run(run.id).data.params["columns"]) == 6000


def test_models_list_show_export_and_rollback(
    registry: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (1.0, 2.0):
        registry.promote(register(registry, tmp_path, seed))
    given = [f"registry.name={NAME}", "registry.alias=champion"]

    models.main(["list", given[0]])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.strip().startswith("v")] == ["version", "v2", "v1"]

    models.main(["show", *given])
    assert "flights v2" in capsys.readouterr().out

    models.main(["export", *given, f"output.path={tmp_path / 'out'}"])
    assert (tmp_path / "out" / "model.safetensors").exists()

    models.main(["rollback", *given])
    assert "v2 -> v1" in capsys.readouterr().out
    assert registry.resolve(names.CHAMPION).number == 1


def test_models_export_needs_a_version() -> None:
    with pytest.raises(ConfigError, match=r"registry\.alias: missing"):
        models.main(["export", f"registry.name={NAME}", "output.path=x"])


def test_the_page_is_served_without_job_runners_and_without_telling_passwords() -> None:
    uri = "postgresql://me:hunter2@db/mlflow"
    arguments, environment = ui.command(load(UiConfig, {"registry": {"tracking_uri": uri}, "ui": {"port": 5005}}))
    assert arguments[-4:] == ["--port", "5005", "--workers", "1"]
    assert "hunter2" not in " ".join(arguments)
    assert environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    with pytest.raises(ConfigError, match="has its own page"):
        ui.command(load(UiConfig, {"registry": {"tracking_uri": "http://tracking.example"}}))
