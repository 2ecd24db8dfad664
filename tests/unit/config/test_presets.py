from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from forecast.config import TrainConfig, load
from forecast.data.ingest.loaded import Loaded
from forecast.data.windows import WindowIndex
from pipelines.jobs.command_line import CONF, compose

if TYPE_CHECKING:
    from forecast.training.result import FitResult

# Horizon, season and frequency: what the protocol of a data set fixes.
PRESETS = {
    "m4_hourly": (48, 24, "1h"),
    "m4_weekly": (13, 1, "1w"),
    "m4_yearly": (6, 1, "1y"),
    "m5": (28, 7, "1d"),
    "etth1": (96, 24, "1h"),
    "etth2": (96, 24, "1h"),
    "exchange_rate": (96, 1, "1d"),
    "auckland": (24, 168, "1h"),
    "nyc_flights": (168, 168, "1h"),
    "nyc_weather": (24, 24, "1h"),
}


def _preset(name: str, *overrides: str) -> TrainConfig:
    return load(TrainConfig, compose("train", [f"experiment={name}", "data.path=x.parquet", *overrides]))


def test_every_data_set_has_its_protocol() -> None:
    assert {file.stem for file in (CONF / "experiment").glob("*.yaml")} == PRESETS.keys()


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_needs_no_more_than_a_path(name: str) -> None:
    config = _preset(name)
    assert (config.window.horizon, config.data.season_length, config.data.freq) == PRESETS[name]
    assert config.registry.name == name.replace("_", "-")
    assert config.window.context_length is not None
    assert config.window.context_length >= config.window.horizon


@pytest.mark.parametrize("name", sorted(name for name in PRESETS if not name.startswith(("auckland", "nyc"))))
def test_the_preset_of_a_benchmark_trains_up_to_the_test_part(name: str) -> None:
    config = _preset(name)
    assert config.data.columns.target == "value"
    assert config.fit.holdout_windows == 0
    assert (config.data.until is None) == name.startswith("m")
    # Dates of these are made up.
    assert config.data.calendar == (name in ("m5", "etth1", "etth2"))


def test_m5_takes_covariates_from_further_tables() -> None:
    data = _preset("m5", "data.known_path=t*.parquet", "data.static_path=static.parquet").data
    assert data.known_covariates == ("snap", "event_name", "event_type")
    assert data.static_covariates == ("dept_id", "cat_id", "store_id", "state_id")


# --- the benchmark that uses them


@pytest.mark.parametrize("size", [7, 64])
def test_long_horizon_scores_do_not_depend_on_batches(
    trained: "FitResult", weekly_loaded: Loaded, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    from benchmarks import accuracy

    artifact, panel = trained.artifact, weekly_loaded.panel
    cutoffs = np.arange(99, 153)  # All with a full horizon; 162 windows are no multiple of any batch.
    windows = WindowIndex(np.repeat(np.array([0, 1, 2]), len(cutoffs)), np.tile(cutoffs, 3))
    scale = np.linspace(1.0, 3.0, panel.n_series)
    head = artifact.network.head

    def scores() -> dict[str, float]:
        return accuracy.scaled_errors(accuracy.model(artifact), panel, windows, scale=scale, head=head)

    whole = scores()
    for module in ("attention", "one_pass"):
        monkeypatch.setattr(f"forecast.prediction.{module}.BATCH_SIZE", size)
    monkeypatch.setattr(accuracy, "CHUNK", 50)
    assert scores() == pytest.approx(whole, rel=1e-6)
    # By hand, all windows at once.
    quantiles = accuracy.model(artifact)(panel, windows).astype(np.float64)
    begin = panel.offsets[windows.series] + windows.cutoff
    actual = panel.target[begin[:, None] + np.arange(1, 8)]
    unit = scale[windows.series][:, None]
    mean = quantiles @ head.mean_weights.double().numpy()
    assert whole["MSE"] == pytest.approx((((actual - mean) / unit) ** 2).mean(), rel=1e-6)
    assert whole["MAE"] == pytest.approx(np.abs((actual - quantiles[..., 4]) / unit).mean(), rel=1e-6)


def test_an_ensemble_is_the_mean_of_the_quantiles(weekly_loaded: Loaded) -> None:
    from benchmarks import accuracy

    windows = WindowIndex(np.array([0, 1]), np.array([100, 100]))
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 2, 7, 9))
    made = accuracy.mean([lambda *_: one, lambda *_: other])(weekly_loaded.panel, windows)
    np.testing.assert_allclose(made, (one + other) / 2)


def test_tasks_are_scored_where_training_ends() -> None:
    from benchmarks.accuracy import COVERAGE, TASKS, configured

    for name, task in TASKS.items():
        config = configured(task, Path("x"), [])
        trained, validated, tested = task.split
        metrics = [metric for metric in task.metrics if metric != COVERAGE]
        assert all(len(bar) == len(metrics) for bar in task.bars.values()), name
        if tested:
            # Validation lies in its own part, and the test part has the windows of the literature.
            assert config.fit.validation_windows * config.window.horizon <= validated - trained
            assert name in (f"{task.preset}_{config.window.horizon}", f"ablation_{task.preset}")
    assert TASKS["etth1_96"].split[2] - TASKS["etth1_96"].split[1] - 96 + 1 == 2785


def test_a_peer_trains_for_its_cpu_seconds_with_a_rate_that_fits_them() -> None:
    import pytorch_lightning as lightning
    import torch

    from benchmarks.peers.train import Clock

    rates: list[float] = []

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(1, 1)

        def training_step(self, batch: torch.Tensor) -> torch.Tensor:
            rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
            return self.linear(batch).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=0.5)

    clock = Clock(0.3)
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=100_000,
        callbacks=[clock.callback(lightning.Callback)],
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), torch.utils.data.DataLoader(torch.ones(5, 1)))
    assert clock.cpu() >= 0.3
    assert clock.steps == trainer.global_step == len(rates) < 500_000
    assert rates[0] < 0.5
    assert max(rates) <= 0.5
    assert rates[-1] < 0.05
