"""`forecast pretrain`, from nothing, and again in the same folder."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from flow import refuse, succeed
from mlflow import MlflowClient

from forecast.models.universal.checkpoint import read_checkpoint
from forecast.models.universal.forecasting import forecast_series

SMALL = ("pretrain.name=tiny", "pretrain.hidden_size=8", "pretrain.batch_size=8", "pretrain.origins=2")


def test_a_run_is_logged_writes_a_checkpoint_and_is_prolonged(store: str, tmp_path: Path) -> None:
    given = (*SMALL, "pretrain.every=5", "output.path=out")
    done = succeed("pretrain", *given, "pretrain.steps=10")
    assert done.lines[-1].startswith("out/tiny.json: 10 steps, 80 series,")
    network, card = read_checkpoint(tmp_path / "out" / "tiny.json")
    assert (card["steps"], card["series_seen"], card["licence"]) == (10, 80, "Apache-2.0")
    assert np.isfinite(forecast_series(network, [np.arange(30.0)], [4], [0], 12)).all()

    assert succeed("pretrain", *given, "pretrain.steps=20").lines[-1].startswith("out/tiny.json: 20 steps, 160 series,")
    assert json.loads((tmp_path / "out" / "tiny.json").read_text())["steps"] == 20
    client = MlflowClient(store, store)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    latest, first = client.search_runs(experiments)
    assert [point.step for point in client.get_metric_history(first.info.run_id, "validation/mae")] == [5, 10]
    assert [point.step for point in client.get_metric_history(latest.info.run_id, "loss")] == [10, 15, 20]
    assert {"series_per_second", "cpu_hours", "validation/coverage"} <= latest.data.metrics.keys()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_a_mistake_in_the_settings(store: str) -> None:
    message = refuse(2, "pretrain", *SMALL, "pretrain.accelerator=gpu", "output.path=out", "pretrain.steps=1")
    assert "pretrain.accelerator=gpu: there is no GPU here" in message
    assert not MlflowClient(store, store).search_runs(["0", "1"])
