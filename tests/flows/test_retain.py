"""Retention: what the rules free is gone with its bytes, what is needed stays, and a kill leaves nothing half."""

import json
import time
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import services
from flow import END, NAME, Store, refuse, succeed
from mlflow import MlflowClient

import forecast as fc
from forecast.config import RegistryConfig
from forecast.data.files import locked
from forecast.errors import RegistryError
from forecast.tracking.disposal import Disposal
from forecast.tracking.registry import Registry

DAY = 24 * 3_600_000
SIZE = 1000


class Models:
    """A registry with versions and runs of any age, without training: each model has 3,000 bytes, each run 1,000."""

    def __init__(self, uri: str, folder: Path) -> None:
        self.uri, self.folder = uri, folder
        self.registry = Registry(RegistryConfig(tracking_uri=uri, name=NAME))
        self.client = MlflowClient(uri, uri)
        self.client.create_registered_model(NAME)
        self.experiment = self.client.create_experiment(NAME, (folder / "artifacts").as_uri())

    def run(self, days: float = 100, job: str = "score", **tags: str) -> str:
        moment = int(time.time() * 1000 - days * DAY)
        run = self.client.create_run(self.experiment, moment, {"job": job, **tags})
        file = local(run.info.artifact_uri) / "tables" / "table.parquet"
        file.parent.mkdir(parents=True)
        file.write_bytes(bytes(SIZE))
        self.client.set_terminated(run.info.run_id, end_time=moment)
        return str(run.info.run_id)

    def version(self, alias: str | None = None, *, name: str = NAME, days: float = 100, **tags: str) -> str:
        """Register a version with a run and a model; return the folder of the model."""
        run = self.run(days, "train")
        model = self.client.create_logged_model(self.experiment, "model", run)
        folder = local(model.artifact_location)
        (folder / "artifacts").mkdir(parents=True)
        (folder / "artifacts" / "weights").write_bytes(bytes(3 * SIZE))
        self.client.finalize_logged_model(model.model_id, "READY")
        tags = {"kind": "pretrained", "digest": "ab" * 32} | tags
        version = self.client.create_model_version(name, model.artifact_location, run, tags=tags)
        if alias:
            self.client.set_registered_model_alias(name, alias, version.version)
        return str(folder)

    def numbers(self) -> list[int]:
        return sorted(version.number for version in self.registry.versions())

    def runs(self) -> set[str]:
        return {run.info.run_id for run in self.client.search_runs([self.experiment], run_view_type=3)}

    @property
    def bytes(self) -> int:
        """The bytes of models and of tables of runs."""
        files = [*self.folder.rglob("weights"), *self.folder.rglob("table.parquet")]
        return sum(file.stat().st_size for file in files)


def local(uri: str) -> Path:
    return Path(unquote(urlsplit(uri).path))


@pytest.fixture(params=["sqlite", "folder"])
def models(request: pytest.FixtureRequest, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Models:
    if request.param == "folder":
        monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        store = str(tmp_path / "store")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    return Models(store, tmp_path)


def test_versions_beyond_the_newest_are_freed_and_others_stay(models: Models) -> None:
    folders = [models.version() for _ in range(3)]  # v1 to v3
    models.version("champion", parent_version="2")  # v4 needs v2
    models.version()  # v5
    before = models.bytes
    look = succeed("retain", f"registry.name={NAME}", "retain.versions=1")
    assert "2 versions (5.9 kB) would go, nothing was freed" in look.out
    assert (models.bytes, models.numbers()) == (before, [1, 2, 3, 4, 5])
    done = succeed("retain", f"registry.name={NAME}", "retain.versions=1", "retain.apply=true")
    assert "2 versions (5.9 kB) freed, measured: 5.9 kB" in done.out
    assert models.numbers() == [2, 4, 5]
    assert models.bytes == before - 2 * 3 * SIZE
    assert [Path(folder).exists() for folder in folders] == [False, True, False]
    again = succeed("retain", f"registry.name={NAME}", "retain.versions=1", "retain.apply=true")
    assert again.out.strip() == "nothing to free"
    retained = next(run for run in models.client.search_runs([models.experiment]) if run.data.tags["job"] == "retain")
    table = models.registry.read_table(retained.info.run_id, "retained.parquet")
    assert table.select("kind", "name", "bytes", "freed").rows() == [
        ("version", f"{NAME} v{number}", 3 * SIZE, 3 * SIZE) for number in (3, 1)
    ]
    assert retained.data.metrics["retain/bytes"] == 6 * SIZE


def test_old_runs_are_freed_unless_a_kept_version_needs_them(models: Models) -> None:
    above = models.run(job="tune")
    judged = models.run(job="backtest", **{"mlflow.parentRunId": above})
    models.version("champion", backtest_run=judged)
    chart = models.run(chart="accuracy")
    recent = models.run(days=20)
    old = [models.run(), models.run(days=31)]
    deleted = models.run(days=40)
    models.client.delete_run(deleted)
    before, size = models.runs(), models.bytes
    words = ("retain", f"registry.name={NAME}", "retain.run_days=30")
    assert "3 runs (2.9 kB) would go" in succeed(*words).out
    assert (models.runs(), models.bytes) == (before, size)
    succeed(*words, "retain.apply=true")
    left = models.runs()
    assert before - left == {*old, deleted}
    assert {above, judged, chart, recent} < left
    assert models.bytes == size - 3 * SIZE + sum(
        file.stat().st_size for file in models.folder.rglob("retained.parquet") if file.name == "table.parquet"
    )
    assert succeed(*words, "retain.apply=true").out.strip() == "nothing to free"


def test_a_version_that_is_needed_can_not_be_named(models: Models) -> None:
    models.version()
    models.version("champion", parent_version="1")
    models.version("challenger", init_version=f"{NAME} v4")
    models.version()
    models.client.create_registered_model("other")
    models.version()
    models.version(name="other", init_version=f"{NAME} v5")
    message = refuse(4, "retain", f"registry.name={NAME}", "retain.free=[1,2,5]", "retain.apply=true")
    assert "2 of 3 versions can't go, so nothing was freed" in message
    assert "v1: it is the parent of v2; v2: it is the champion" in message
    message = refuse(4, "retain", f"registry.name={NAME}", "retain.free=[5]", "retain.apply=true")
    assert "v5: other v1 has its files or its network" in message
    assert models.numbers() == [1, 2, 3, 4, 5]


def test_a_copy_in_another_model_keeps_the_files(models: Models) -> None:
    folder = models.version()
    models.client.copy_model_version(f"models:/{NAME}/1", "copies")
    succeed("retain", f"registry.name={NAME}", "retain.versions=0", "retain.apply=true")
    assert models.numbers() == [1]
    assert Path(folder, "artifacts", "weights").exists()


@pytest.mark.parametrize("step", ["delete_artifacts", "registry"])
def test_a_kill_leaves_no_version_without_its_files(step: str, models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = models.version()
    disposal = Disposal(models.registry)
    (version,) = models.registry.versions()

    def kill(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(
            *((disposal, "_remove", kill) if step == "delete_artifacts" else (models.registry, "delete", kill))
        )
        with pytest.raises(KeyboardInterrupt):
            disposal.free_version(version, disposal.model_of(version))
    if step == "registry":
        assert models.numbers() == [1]
        assert not disposal.models_without_version(models.registry.versions())
    else:
        assert models.numbers() == []
        assert [model.name for model in disposal.models_without_version([])] == ["model"]
    assert Path(folder, "artifacts", "weights").exists()
    succeed("retain", f"registry.name={NAME}", "retain.versions=0", "retain.apply=true")
    assert models.numbers() == []
    assert not Path(folder).exists()


def test_an_alias_that_moves_meanwhile_keeps_its_version(models: Models) -> None:
    folder = models.version()
    disposal = Disposal(models.registry)
    (version,) = models.registry.versions()
    model = disposal.model_of(version)
    models.client.set_registered_model_alias(NAME, "challenger", "1")
    with pytest.raises(RegistryError, match="it is the challenger"):
        disposal.free_version(version, model)
    assert models.numbers() == [1]
    assert Path(folder, "artifacts", "weights").exists()
    assert disposal.models_without_version(models.registry.versions()) == []


def test_artifacts_outside_the_folder_of_their_run_stay(models: Models) -> None:
    disposal = Disposal(models.registry)
    with pytest.raises(RegistryError, match="which may be shared"):
        disposal._remove(models.folder.as_uri(), "0" * 32)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([], "no rule; set one or more of"),
        (["retain.cutoffs=3"], "set one of both, and a folder"),
        (["retain.scores=scores", "retain.versions=1"], "set one of both, and a folder"),
        (["retain.versions=-1"], "retain.versions"),
    ],
)
def test_rules_that_say_nothing_are_refused(settings: list[str], message: str, store: str) -> None:
    assert message in refuse(2, "retain", f"registry.name={NAME}", *settings)
    assert store


def test_forecasts_are_freed_and_the_ledger_says_so(promoted: Store) -> None:
    for back in (0, 24, 48):
        promoted.score(None, f"score.cutoff={(END - timedelta(hours=back)).isoformat()}")
    words = ["retain", f"registry.name={NAME}", "retain.scores=out", "retain.cutoffs=1"]
    look = succeed(*words)
    assert "2 cutoffs stay because forecast monitor reads them" in look.out
    assert "nothing to free" in look.out
    assert "2 cutoffs (" in succeed(*words, "retain.unjudged=true").out
    assert fc.read_scores("out")["cutoff"].n_unique() == 3
    with locked(Path("out")):
        assert "another job is writing into out" in refuse(6, *words, "retain.unjudged=true", "retain.apply=true")
        succeed(*words)
    done = succeed(*words, "retain.unjudged=true", "retain.apply=true")
    assert "2 cutoffs (" in done.out
    assert fc.read_scores("out")["cutoff"].unique().to_list() == [END]
    newest = json.loads(succeed("runs", "list", "runs.format=json", "runs.flow=retain").out)[0]
    assert newest["status"] == "done"
    assert newest["output"].endswith(" freed")


def test_a_server_frees_the_bytes_and_keeps_rows_in_its_trash(
    store_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mlflow.db").write_bytes(store_template.read_bytes())
    monkeypatch.chdir(tmp_path)
    with services.mlflow(tmp_path) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        client = MlflowClient(uri, uri)
        client.create_registered_model(NAME)
        experiment = client.create_experiment(NAME)
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "weights").write_bytes(bytes(3 * SIZE))
        moment = int(time.time() * 1000 - 100 * DAY)
        for _ in range(2):
            run = client.create_run(experiment, moment, {"job": "train"}).info.run_id
            client.log_text(run, "x" * SIZE, "tables/table.txt")
            client.set_terminated(run, end_time=moment)
            model = client.create_logged_model(experiment, "model", run)
            client.log_model_artifacts(model.model_id, str(tmp_path / "model"))
            client.finalize_logged_model(model.model_id, "READY")
            client.create_model_version(NAME, f"models:/{model.model_id}", run, model_id=model.model_id)
        client.set_registered_model_alias(NAME, "champion", "2")
        words = ("retain", f"registry.name={NAME}", "retain.versions=0", "retain.run_days=30", "retain.apply=true")
        done = succeed(*words)
        assert "1 version (2.9 kB), 1 run (1000 B) freed, measured: 3.9 kB" in done.out
        assert "`mlflow gc` there removes them" in done.out
        files = [file.name for file in (tmp_path / "artifacts").rglob("*") if file.name in ("weights", "table.txt")]
        assert sorted(files) == ["table.txt", "weights"]
        assert [version.version for version in client.search_model_versions(f"name='{NAME}'")] == ["2"]
        assert succeed(*words).out.strip() == "nothing to free"
