"""A tracking server that goes away while a job works: what the job would log is kept, and logged later, once."""

import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from flow import NAME, TRAIN, Store, forecast, panel, refuse, succeed
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.server import app, handlers
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as Models
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore as Runs
from werkzeug.serving import make_server

from forecast.config import RegistryConfig
from forecast.tracking.registry import Registry
from pipelines.jobs.ledger import Ledger

BEST_EFFORT = "registry.tracking=best_effort"


class Tracking:
    """MLflow's own server on a store, which goes away when it is told to."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.away_from: str | int | None = None
        """A call, by its path or number from now on, that is not answered any more; None: it answers."""
        self.uri = ""

    def __call__(self, environment: dict[str, Any], start: Any) -> Iterable[bytes]:
        path = environment["PATH_INFO"].rpartition("/mlflow/")[2]
        self.calls.append(path)
        if self.away_from == path:
            self.away_from = 0
        if isinstance(self.away_from, int):
            self.away_from -= 1
            if self.away_from < 0:
                self.away_from = 0
                start("503 Service Unavailable", [("Content-Length", "0")])
                return [b""]
        return app(environment, start)  # type: ignore[no-any-return]

    def go_away(self, call: str | int) -> None:
        self.away_from = call

    def return_(self) -> None:
        self.away_from = None

    def runs(self, job: str) -> list[Run]:
        client = MlflowClient(self.uri)
        experiment = client.get_experiment_by_name(NAME)
        assert experiment
        return list(client.search_runs([experiment.experiment_id], f"tags.job = '{job}'"))


@pytest.fixture
def tracking(promoted: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tracking]:
    """A server on the store of `promoted`, which is the default store of the test."""
    root = promoted.mlruns.as_uri()
    monkeypatch.setattr(handlers, "_tracking_store", Runs(promoted.uri, root))
    monkeypatch.setattr(handlers, "_model_registry_store", Models(promoted.uri))
    tracking = Tracking()
    server = make_server("127.0.0.1", 0, tracking, threaded=True)
    tracking.uri = f"http://127.0.0.1:{server.port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    yield tracking
    server.shutdown()
    thread.join()


def files(run: Run) -> dict[str, bytes]:
    root = Path(run.info.artifact_uri.removeprefix("file://"))
    return {str(file.relative_to(root)): file.read_bytes() for file in root.rglob("*") if file.is_file()}


def small_training(store: Store) -> tuple[str, ...]:
    table = store.write(panel().filter(pl.col("series_id") < "s02"), "small.parquet")
    return (f"registry.name={NAME}", f"data.path={table}", *TRAIN, "fit.max_steps=0")


def sync_until_done(tracking: Tracking) -> int:
    """Log the spool with a server that is away after no call, one call, two, ...; return how often it was away."""
    for calls in range(100):
        tracking.go_away(calls)
        done = forecast("runs", "sync")
        tracking.return_()
        assert "Traceback" not in done.err
        if done.code == 0:
            return calls
        assert done.code == 4, done.err
        assert list(Path("unlogged").glob("*/run.json"))
    raise AssertionError("never done")


@pytest.mark.parametrize("call", ["runs/create", "runs/log-batch", "runs/log-inputs", "runs/update"])
def test_finished_forecasts_outlive_the_server_and_their_run_is_logged_once(
    call: str, promoted: Store, tracking: Tracking
) -> None:
    promoted.score(output="reference")
    (reference,) = tracking.runs("score")
    tracking.go_away(call)
    done = promoted.score(None, BEST_EFFORT)
    assert promoted.forecasts().equals(promoted.forecasts("reference"))
    assert "`forecast runs sync` logs it" in done.err
    (spool,) = Path("unlogged").iterdir()
    assert len(tracking.calls) > 1
    assert sync_until_done(tracking) > 1

    (logged,) = (run for run in tracking.runs("score") if run.info.run_id != reference.info.run_id)
    assert logged.info.status == "FINISHED"
    assert {**logged.data.params, "output.path": "", "registry.tracking": ""} == {
        **reference.data.params,
        "output.path": "",
        "registry.tracking": "",
    }
    assert logged.data.metrics.keys() == reference.data.metrics.keys()
    assert logged.data.metrics["score/rows"] == reference.data.metrics["score/rows"] == 240
    assert logged.data.tags["job"] == "score"
    assert [each.dataset.digest for each in logged.inputs.dataset_inputs] == [
        each.dataset.digest for each in reference.inputs.dataset_inputs
    ]
    assert files(logged).keys() == files(reference).keys()
    entry = Ledger("sqlite:///gatecast.db").entries(flow="score", every=True)[0]
    assert (entry.status, entry.exit_code) == ("done", 0)
    assert entry.mlflow.endswith(logged.info.run_id)
    assert not spool.exists()
    assert succeed("runs", "sync").out == "unlogged: every run is logged\n"
    assert len(tracking.runs("score")) == 2


@pytest.mark.parametrize("call", ["runs/search", "model-versions/set-tag"])
def test_a_judged_version_is_shown_as_such_later(call: str, promoted: Store, tracking: Tracking) -> None:
    client = MlflowClient(promoted.uri, promoted.uri)
    first = client.get_model_version(NAME, "1")
    client.create_model_version(NAME, first.source, tags=dict(first.tags))
    data = f"data.path={promoted.table}"
    tracking.go_away(call)
    succeed("backtest", f"registry.name={NAME}", "registry.alias=3", data, "backtest.n_windows=1", BEST_EFFORT)
    tracking.return_()
    assert "backtest_run" not in client.get_model_version(NAME, "3").tags
    succeed("runs", "sync")
    (run,) = (run for run in tracking.runs("backtest") if run.data.tags["version"] == "3")
    assert client.get_model_version(NAME, "3").tags["backtest_run"] == run.info.run_id
    (chart,) = tracking.runs("chart")
    points = {point.step: point.value for point in client.get_metric_history(chart.info.run_id, "mase")}
    assert points[3] == run.data.metrics["mase"]
    assert points[2] == run.data.metrics["backtest/champion/mase"]


def test_without_it_a_job_fails_and_keeps_nothing(promoted: Store, tracking: Tracking) -> None:
    tracking.go_away("runs/log-batch")
    message = refuse(4, "score", f"registry.name={NAME}", f"data.path={promoted.table}", "output.path=out")
    assert tracking.uri in message
    assert not Path("unlogged").exists()


@pytest.mark.parametrize("call", ["runs/create", "logged-models"])
def test_a_trained_model_is_registered_later_once(call: str, promoted: Store, tracking: Tracking) -> None:
    tracking.go_away(call)
    done = succeed("train", *small_training(promoted), BEST_EFFORT)
    assert f"{NAME} (not registered yet)" in done.out
    sync_until_done(tracking)
    client = MlflowClient(tracking.uri)
    versions = [
        version for version in client.search_model_versions(f"name='{NAME}'") if version.tags["kind"] == "pretrained"
    ]
    assert sorted(int(version.version) for version in versions) == [1, 3]
    assert client.get_model_version_by_alias(NAME, "pretrained").version == "3"
    run = client.get_run(client.get_model_version(NAME, "3").run_id)
    assert run.info.status == "FINISHED"
    assert "report.html" in files(run)
    # It has everything that MLflow shows of a model registered at once.
    model, twin = (
        client.get_logged_model(Registry(RegistryConfig(name=NAME)).resolve(number).model_id) for number in (3, 1)
    )
    assert twin.params.keys() <= model.params.keys()
    trained = {metric.key for metric in twin.metrics} - {"mase", "wql", "coverage"}
    assert {metric.key for metric in model.metrics} == trained
    (loss,) = (metric for metric in model.metrics if metric.key == "val/loss")
    assert (loss.value, loss.dataset_name) == (run.data.metrics["val/loss"], "small")
    assert loss.dataset_digest == run.inputs.dataset_inputs[0].dataset.digest
    assert "Forecasts 12 steps of 1h" in client.get_model_version(NAME, "3").description
    assert promoted.score(None, "registry.alias=3").code == 0
    assert promoted.forecasts().height == 240


def test_an_alias_stays_with_a_version_that_was_made_since(promoted: Store, tracking: Tracking) -> None:
    tracking.go_away("runs/log-batch")
    succeed("train", *small_training(promoted), BEST_EFFORT)
    tracking.return_()
    client = MlflowClient(promoted.uri, promoted.uri)
    client.create_model_version(NAME, client.get_model_version(NAME, "1").source)
    client.set_registered_model_alias(NAME, "pretrained", "3")
    done = succeed("runs", "sync")
    assert "pretrained stays v3, which is newer" in done.out
    assert int(client.get_model_version_by_alias(NAME, "pretrained").version) == 3
    assert client.get_model_version(NAME, "4").tags["kind"] == "pretrained"


def test_a_run_of_another_store_and_one_that_is_damaged_are_named(promoted: Store, tracking: Tracking) -> None:
    tracking.go_away("runs/log-batch")
    promoted.score(None, BEST_EFFORT)
    tracking.return_()
    assert tracking.uri in refuse(4, "runs", "sync", f"registry.tracking_uri={promoted.uri}")
    (spool,) = Path("unlogged").iterdir()
    whole = (spool / "calls.jsonl").read_text()
    (spool / "calls.jsonl").write_text("{" + whole)
    assert "line 1 can't be read" in refuse(6, "runs", "sync")
    (spool / "calls.jsonl").write_text(whole + '{"call": "log_b')  # A kill has cut it off.
    succeed("runs", "sync")
    assert [run.info.status for run in tracking.runs("score")] == ["FINISHED"]
