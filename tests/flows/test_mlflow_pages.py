"""What the pages of MLflow show of models: accuracy by data, inputs of runs, the chart of versions, and cards."""

import hashlib
import sys
import time
from pathlib import Path
from typing import Any

import mlflow
import pytest
from flow import NAME, Store, panel, refuse, succeed
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, Run

from forecast.config import ModelsConfig, RegistryConfig
from forecast.tracking.registry import Registry
from forecast.tracking.texts import TAG_LENGTH

MODEL = f"registry.name={NAME}"


@pytest.fixture
def client(promoted: Store) -> MlflowClient:
    return MlflowClient(promoted.uri, promoted.uri)


def experiment(client: MlflowClient) -> str:
    found = client.get_experiment_by_name(NAME)
    assert found
    return str(found.experiment_id)


def last_run(client: MlflowClient, job: str) -> Run:
    """Return the latest run of a job."""
    (run,) = client.search_runs([experiment(client)], f"tags.job = '{job}'", max_results=1)
    return client.get_run(run.info.run_id)  # The search returns no models.


def models(client: MlflowClient, metric: str, **dataset: str) -> list[LoggedModel]:
    """Return the models with metrics on a dataset, the best first."""
    return list(
        client.search_logged_models(
            [experiment(client)],
            datasets=[dataset],
            order_by=[{"field_name": f"metrics.{metric}", "ascending": True, **dataset}],
        )
    )


def model_id(number: int) -> str:
    return Registry(RegistryConfig(name=NAME)).resolve(number).model_id


def test_mlflow_ranks_models_by_their_accuracy_on_a_dataset(client: MlflowClient) -> None:
    backtest = last_run(client, "backtest")
    (data,) = (each.dataset for each in backtest.inputs.dataset_inputs)
    best, other = models(client, "mase", dataset_name="panel", dataset_digest=data.digest)
    assert [best.model_id, other.model_id] == [model_id(2), model_id(1)]
    for model, name in ((best, "fine_tuned"), (other, "pretrained")):
        metrics = {metric.key: metric.value for metric in model.metrics if metric.dataset_digest == data.digest}
        assert metrics["mase"] == backtest.data.metrics[f"backtest/{name}/mase"]
        assert metrics["wql"] == backtest.data.metrics[f"backtest/{name}/wql"]
    assert (best.params["window.horizon"], best.params["model.hidden_size"]) == ("12", "8")
    assert (best.tags["kind"], best.tags["parent_version"], best.model_type) == ("fine_tuned", "1", "forecaster")
    assert {metric.key for metric in other.metrics} == {"val/loss", "mase", "wql", "coverage"}
    assert {"finetune/uplift", "promote/mase"} <= {metric.key for metric in best.metrics}
    assert client.search_logged_models([experiment(client)], "metrics.mase < 1000 and params.`window.horizon` = '12'")


def test_runs_name_their_model_and_the_purpose_of_their_data(promoted: Store, client: MlflowClient) -> None:
    promoted.score()
    succeed("monitor", MODEL, f"data.path={promoted.table}", "scores.path=out", "output.path=watch")
    expected = {
        "train": (None, "training"),
        "finetune": (1, "training"),
        "backtest": (2, "evaluation"),
        "promote": (2, "evaluation"),
        "score": (2, "scoring"),
        "monitor": (2, "evaluation"),
    }
    for job, (number, context) in expected.items():
        inputs = last_run(client, job).inputs
        assert [model.model_id for model in inputs.model_inputs] == ([model_id(number)] if number else []), job
        (data,) = inputs.dataset_inputs
        assert {tag.key: tag.value for tag in data.tags} == {"mlflow.data.context": context}, job
        assert data.dataset.name == "panel"


def test_a_run_charts_accuracy_over_versions(promoted: Store, client: MlflowClient) -> None:
    succeed("backtest", MODEL, "registry.alias=1", f"data.path={promoted.table}", "backtest.n_windows=1")
    (chart,) = client.search_runs([experiment(client)], "tags.chart = 'accuracy'")
    assert (chart.info.run_name, chart.info.status) == ("accuracy by version", "FINISHED")
    points: dict[int, list[Any]] = {}
    for point in client.get_metric_history(chart.info.run_id, "mase"):
        points.setdefault(point.step, []).append(point)
    assert points.keys() == {1, 2}
    # v1 as the base of v2 and by itself; v2 by itself and as the champion beside v1.
    assert [len(points[number]) for number in (1, 2)] == [2, 2]
    latest = {number: max(points[number], key=lambda point: point.timestamp).value for number in points}
    metrics = last_run(client, "backtest").data.metrics
    assert latest == {1: metrics["backtest/pretrained/mase"], 2: metrics["backtest/champion/mase"]}
    assert chart.data.metrics["seasonal_naive/mase"] > 0


def test_a_card_says_what_a_version_is_and_how_good(client: MlflowClient) -> None:
    metrics = last_run(client, "backtest").data.metrics
    description = client.get_model_version(NAME, "2").description
    accuracy = f"MASE {metrics['mase']:.4f} (seasonal naive {metrics['backtest/seasonal_naive/mase']:.4f})"
    assert accuracy in description
    for text in (
        "Forecasts 12 steps of 1h",
        "20 series, 8,640 rows",
        "from v1",
        "interval covers",
        "models:/loads/",
    ):
        assert text in description
    assert "not backtested yet" in client.get_model_version(NAME, "1").description

    model = client.get_registered_model(NAME).description
    assert model.startswith("Champion: v2, since ")
    assert accuracy in model
    client.update_registered_model(NAME, f"{model}\nOwner: energy team")
    succeed("promote", MODEL, "registry.alias=1", "promote.force=true")
    model = client.get_registered_model(NAME).description
    assert model.startswith("Champion: v1, since ")
    assert model.endswith("below is yours -->\nOwner: energy team")
    assert accuracy not in model
    succeed("models", "rollback", MODEL)
    assert "Champion: v2" in client.get_registered_model(NAME).description
    client.update_registered_model(NAME, "Our own words")
    succeed("models", "rollback", MODEL, "rollback.to=1")
    assert client.get_registered_model(NAME).description == "Our own words"


def test_the_use_of_the_machine_is_logged_on_request(
    promoted: Store, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.02")
    config = RegistryConfig(name=NAME, system_metrics=True)
    with Registry(config).run("train", ModelsConfig(registry=config)) as run:
        deadline = time.monotonic() + 60
        while not (metrics := client.get_run(run.id).data.metrics) and time.monotonic() < deadline:
            time.sleep(0.02)
    assert 0 < metrics["system/system_memory_usage_percentage"] <= 100
    assert not any(name.startswith("system/") for name in last_run(client, "backtest").data.metrics)

    monkeypatch.setitem(sys.modules, "psutil", None)
    score = ("score", MODEL, f"data.path={promoted.table}", "output.path=out")
    assert "gatecast[system]" in refuse(2, *score, "registry.system_metrics=true")
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
    assert "none are logged" in succeed(*score).err


def test_texts_that_mlflow_would_cut_are_complete_in_a_file(promoted: Store, client: MlflowClient) -> None:
    names = [f"series {number:04d}" for number in range(600)]
    table = promoted.write(panel().filter(series_id="s00"))
    settings = ("finetune.series=[s00]", f"data.null_values=[{','.join(names)}]")
    succeed("finetune", MODEL, "registry.alias=1", f"data.path={table}", *settings, "finetune.gate_windows=2")
    run = last_run(client, "finetune")
    config = Path(client.download_artifacts(run.info.run_id, "config.json")).read_text()
    param = run.data.params["data.null_values"]
    assert len(param) == 6000
    assert param.endswith("complete in config.json)")
    assert names[-1] not in param
    assert names[-1] in config

    text = "x" * TAG_LENGTH + "end"
    registry = Registry(RegistryConfig(name=NAME))
    with registry.resume(run.info.run_id) as resumed:
        resumed.tags({"reason": text, "short": "y"})
    tags = client.get_run(run.info.run_id).data.tags
    assert (len(tags["reason"]), tags["short"]) == (TAG_LENGTH, "y")
    assert hashlib.sha256(text.encode()).hexdigest()[:16] in tags["reason"]
    uri = f"runs:/{run.info.run_id}/tags/reason.txt"
    assert Path(mlflow.artifacts.download_artifacts(uri)).read_text() == text
