"""All that computes on a device, on a pretended one: the results of the host, and no tensor on a wrong device."""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import polars.testing
import pytest
import pytorch_lightning as lightning
import torch
from pretended_device import DEVICE, MixedDevicesError, pretended_device
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.strategies import SingleDeviceStrategy

from forecast.artifact import Artifact
from forecast.config import FinetuneSettings, ScoreOutput, ScoreSettings
from forecast.data.ingest.loaded import Loaded
from forecast.data.panel import Panel
from forecast.data.windows import windows_at
from forecast.errors import ConfigError
from forecast.finetuning import finetune
from forecast.finetuning.series_tuning import MAX_GROUP_ELEMENTS
from forecast.models.inputs.batch import PanelTensors
from forecast.models.network.carried_state import StateStore, advance, segments_since
from forecast.prediction.paths import with_samples
from forecast.prediction.predict import predict
from forecast.scoring.job import ScoreJob
from forecast.training import setup
from forecast.training.result import FitResult

Train = Callable[..., FitResult]
GROUPS = {"gate_windows": 2, "report_windows": 1, "holdout_windows": 0, "origins": 40, "steps": 2, "final": False}


def check_same_forecasts(artifact: Artifact, panel: Panel, **settings: Any) -> None:
    windows = windows_at(panel, panel.last_index)
    host = predict(artifact, panel, windows, **settings)
    with pretended_device() as device:
        remote = predict(artifact, panel, windows, device=device, **settings)
    np.testing.assert_allclose(remote.tuned, host.tuned, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(remote.tuned_mean, host.tuned_mean, rtol=1e-5, atol=1e-5)


def test_tensors_of_two_devices_do_not_mix() -> None:
    with pretended_device() as device:
        remote = torch.arange(4.0, device=device)
        assert (remote + torch.tensor(1.0))[torch.tensor([2, 0])].tolist() == [3.0, 1.0]
        for mix in (
            lambda: remote + torch.ones(4),
            lambda: torch.ones(4)[remote.long()],
            lambda: torch.cat([remote, torch.ones(4)]),
        ):
            with pytest.raises(MixedDevicesError, match=r"tensors of the host, \(4,\)"):
                mix()
        with pytest.raises(RuntimeError, match="numpy"):
            remote.numpy()


@pytest.mark.parametrize("settings", [{}, {"one_pass": True}, {"points": 50}])
def test_a_network_forecasts(trained: FitResult, weekly_loaded: Loaded, settings: dict[str, Any]) -> None:
    check_same_forecasts(trained.artifact, weekly_loaded.panel, **settings)


@pytest.mark.parametrize("head", ["normal", "student_t", "poisson", "negative_binomial", "tweedie"])
def test_each_head_forecasts(train: Train, weekly_loaded: Loaded, head: str) -> None:
    counts = replace(weekly_loaded.panel, target=np.round(np.abs(weekly_loaded.panel.target)))
    panel = counts if head in ("poisson", "negative_binomial", "tweedie") else weekly_loaded.panel
    artifact = train(replace(weekly_loaded, panel=panel), model={"head": head}).artifact
    check_same_forecasts(artifact, panel)
    check_same_forecasts(with_samples(artifact, 8), panel, samples=8)


@pytest.mark.parametrize(
    "model",
    [
        {"init": "gatecast-nano"},
        {"smoothing": True, "transform": "log"},
        {"cell": "gru", "attention": True},
        {"decoder": "autoregressive", "n_paths": 4},
    ],
)
def test_each_network_forecasts(train: Train, weekly_loaded: Loaded, model: dict[str, Any]) -> None:
    check_same_forecasts(train(weekly_loaded, model=model).artifact, weekly_loaded.panel)


def test_a_state_is_carried(trained: FitResult, weekly_loaded: Loaded) -> None:
    artifact, panel = trained.artifact, weekly_loaded.panel
    windows = windows_at(panel, panel.last_index)
    segments = segments_since(panel, windows, artifact.network.shape.segment_length)
    forecasts = []
    for device in ("cpu", DEVICE):
        with pretended_device():
            carried = StateStore.blank(artifact.network, panel.n_series)
            data = PanelTensors(panel, device, unit=artifact.network.shape.unit)
            advance(artifact.on(device).network, data, windows, segments, carried)
            forecasts.append(predict(artifact, panel, windows, carried=carried, device=device).tuned)
    np.testing.assert_allclose(*forecasts, rtol=1e-5)


class _RemoteAccelerator(CPUAccelerator):
    """An accelerator that Lightning takes for the device."""

    def setup_device(self, device: torch.device) -> None:
        assert device.type == DEVICE


def _remote_trainer(trainer: type[lightning.Trainer], **settings: Any) -> lightning.Trainer:
    """A trainer with the settings of a training, on the pretended device."""
    strategy = SingleDeviceStrategy(torch.device(DEVICE, 0))
    return trainer(**settings | {"accelerator": _RemoteAccelerator(), "strategy": strategy})


@pytest.fixture
def training_device(monkeypatch: pytest.MonkeyPatch) -> Callable[[], AbstractContextManager[None]]:
    """A context in which models are trained and fine-tuned on the pretended device."""

    @contextmanager
    def remote() -> Iterator[None]:
        with monkeypatch.context() as patch, pretended_device():
            patch.setattr(lightning, "Trainer", partial(_remote_trainer, lightning.Trainer))
            optimizer = sys.modules["torch.optim.optimizer"]
            patch.setattr(optimizer, "_get_fused_kernels_supported_devices", lambda: ["cpu", DEVICE])
            patch.setattr(setup, "device_of", lambda _: torch.device(DEVICE))
            patch.setattr(finetune, "device_of", lambda _: DEVICE)
            patch.setitem(MAX_GROUP_ELEMENTS, DEVICE, MAX_GROUP_ELEMENTS["cpu"])
            yield

    return remote


@pytest.mark.parametrize("kind", ["head", "bias", "embedding", "lora", "full", "global"])
def test_each_kind_of_adapter_is_fitted(
    trained: FitResult, weekly_loaded: Loaded, training_device: Callable[[], AbstractContextManager[None]], kind: str
) -> None:
    panel = weekly_loaded.panel
    settings = FinetuneSettings.model_validate({**GROUPS, "kind": kind})
    with training_device():
        remote = finetune.finetune(trained.artifact, panel, settings)
    host = finetune.finetune(trained.artifact, panel, settings)
    losses = [name for name in host.decisions.columns if name.endswith("loss")]
    assert losses
    np.testing.assert_allclose(remote.decisions.select(losses), host.decisions.select(losses), rtol=1e-3)


@pytest.fixture(scope="module")
def short_loaded(
    weekly: Callable[..., Any], table: Callable[..., pl.DataFrame], loaded: Callable[..., Loaded]
) -> Loaded:
    """Two short series, with few windows of validation: each operation on the pretended device is slow."""
    series = weekly(2, 70)
    return loaded(table(series, city={"s00": ["oslo"] * 70, "s01": ["rome"] * 70}), 3, static_covariates=["city"])


@pytest.mark.parametrize(
    ("model", "fit"),
    [
        ({}, {"max_steps": 2, "final": True, "validation_every": 1, "ema_decay": 0.9}),
        ({"smoothing": True, "init": "gatecast-nano"}, {"init_steps": 1, "final": True, "validation_windows": 1}),
        ({"head": "student_t", "decoder": "autoregressive", "n_paths": 4}, {"max_steps": 2, "validation_every": 1}),
    ],
)
def test_a_network_is_trained(
    train: Train,
    short_loaded: Loaded,
    training_device: Callable[[], AbstractContextManager[None]],
    model: dict[str, Any],
    fit: dict[str, Any],
) -> None:
    settings = {"context": 14, "model": model, "holdout_windows": 1, "batch_size": 2, **fit}
    with training_device():
        remote = train(short_loaded, **settings)
    host = train(short_loaded, **settings)
    assert {values.device.type for values in remote.artifact.network.state_dict().values()} == {"cpu"}
    panel = short_loaded.panel
    windows = windows_at(panel, panel.last_index)
    forecasts = [predict(result.artifact.latest, panel, windows).tuned for result in (remote, host)]
    np.testing.assert_allclose(*forecasts, rtol=1e-2)


def test_a_network_of_classes_is_trained_and_fine_tuned(
    train: Train,
    table: Callable[..., pl.DataFrame],
    loaded: Callable[..., Loaded],
    training_device: Callable[[], AbstractContextManager[None]],
) -> None:
    names = np.random.default_rng(0).choice(["dry", "rain"], (2, 70))
    rows = table({"a": np.zeros(70), "b": np.zeros(70)}).with_columns(target=pl.Series(names.ravel()))
    weather = loaded(rows, 3, calendar=False)
    settings = FinetuneSettings.model_validate({**GROUPS, "kind": "head"})

    def forecasts() -> np.ndarray:
        model = {"head": "categorical"}
        base = train(weather, context=14, model=model, max_steps=1, batch_size=2, holdout_windows=0).artifact
        tuned = finetune.finetune(base, weather.panel, settings).artifact
        return predict(tuned, weather.panel, windows_at(weather.panel, weather.panel.last_index)).tuned

    with training_device():
        remote = forecasts()
    np.testing.assert_allclose(remote, forecasts(), rtol=1e-3)


def test_a_scoring_job_forecasts_on_its_device(
    trained: FitResult, weekly_loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"model": "m", "model_version": "3", "model_digest": "ab12"}

    def score(runtime: str) -> tuple[str, pl.DataFrame]:
        folder = tmp_path / runtime
        settings = ScoreSettings.model_validate({"runtime": runtime, "shard_size": 5})
        job = ScoreJob(trained.artifact, weekly_loaded, settings, ScoreOutput(path=str(folder)), names)
        if runtime == "cuda":
            job._writer.model.device = DEVICE  # type: ignore[assignment]
        content = job.write(weekly_loaded.panel.last_index).content
        return content["runtime"], pl.read_parquet(sorted(folder.glob("forecasts/*/*.parquet")))

    _, host = score("torch")
    with monkeypatch.context() as patch, pretended_device():
        patch.setattr(torch.cuda, "is_available", lambda: True)
        _, remote = score("cuda")
    polars.testing.assert_frame_equal(remote, host, check_exact=False, rel_tol=1e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_missing_is_refused(trained: FitResult, weekly_loaded: Loaded, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"score\.runtime: cuda asked for, but torch finds no GPU here"):
        ScoreJob(
            trained.artifact,
            weekly_loaded,
            ScoreSettings(runtime="cuda"),
            ScoreOutput(path=str(tmp_path)),
            {"model_digest": ""},
        )
