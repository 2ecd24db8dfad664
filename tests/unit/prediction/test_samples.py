"""Sample paths beside the forecasts, and the runtime that makes them: what a job writes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from forecast.artifact import Artifact, load
from forecast.config import FinetuneSettings, ScoreOutput, ScoreSettings
from forecast.data.files import locked
from forecast.data.ingest.loaded import Loaded
from forecast.errors import ConfigError
from forecast.finetuning.finetune import finetune
from forecast.prediction.fallback import forecast_shard
from forecast.prediction.from_table import forecast
from forecast.prediction.paths import sample_paths, with_samples
from forecast.scoring.job import ScoreJob
from forecast.scoring.parts import Output
from forecast.training.result import FitResult

Train = Callable[..., FitResult]
QUANTILES = [f"q{level}0" for level in range(1, 10)]
HORIZON, STEPS, CUTOFFS = 14, 330, (245, 260, 275, 290, 305)


@pytest.fixture(scope="module")
def persistent(table: Callable[..., pl.DataFrame], loaded: Callable[..., Loaded]) -> Loaded:
    """Series whose deviations last: half of one is left after about seven steps."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(60, STEPS))
    for step in range(1, STEPS):
        values[:, step] += 0.9 * values[:, step - 1]
    series = {f"s{number:02d}": 50 + row for number, row in enumerate(values)}
    return loaded(table(series), HORIZON, calendar=False, season_length=1)


@pytest.fixture(scope="module", params=["quantile", "normal", "student_t"])
def made(request: pytest.FixtureRequest, train: Train, persistent: Loaded) -> Artifact:
    return train(persistent, model={"head": request.param}, holdout_windows=8).artifact


def sampled(artifact: Artifact, loaded: Loaded, count: int, cutoff: int) -> np.ndarray:
    """Return [series, horizon, path]."""
    paths = sample_paths(artifact, loaded.panel, n=count, cutoff=int(loaded.panel.start[0]) + cutoff)
    return paths["value"].to_numpy().reshape(loaded.panel.n_series, count, -1).swapaxes(1, 2)


def test_sums_of_paths_stray_as_far_as_those_of_the_actual_values(made: Artifact, persistent: Loaded) -> None:
    actual = persistent.panel.target.reshape(60, STEPS)
    errors, spreads, alone = [], [], []
    for cutoff in CUTOFFS:
        paths = sampled(made, persistent, 200, cutoff)
        ahead = actual[:, cutoff + 1 : cutoff + 1 + HORIZON]
        errors.append(ahead.sum(1) - paths.sum(1).mean(1))
        spreads.append(paths.sum(1).std(1))
        alone.append(np.sqrt(paths.var(2).sum(1)))
    actual_spread = np.sqrt(np.mean(np.square(errors)))
    # The deviation of Student's t hangs on tails that intervals say nothing about.
    rel = 0.2 if made.model.head == "student_t" else 0.15
    assert np.mean(spreads) == pytest.approx(actual_spread, rel=rel)
    # As if steps did not depend on each other.
    assert np.mean(alone) < 0.5 * actual_spread


def test_quantiles_and_mean_are_those_of_the_paths(made: Artifact, persistent: Loaded) -> None:
    cutoff = persistent.panel.last_index
    frame = forecast_shard(made, persistent.panel, cutoff, samples=999).frame
    paths = np.sort(frame.select("^sample_.*$").to_numpy())
    place = (np.arange(999) + 0.5) / 999
    stated = frame.select(QUANTILES).to_numpy()
    found = np.array([np.interp(np.arange(1, 10) / 10, place, row) for row in paths])
    np.testing.assert_allclose(found, stated, atol=5e-3)
    np.testing.assert_allclose(paths.mean(1), frame["mean"], atol=0.1)  # The stated mean is balanced in training.
    assert frame.drop("^sample_.*$").equals(forecast(made, persistent.panel).frame)
    columns = ["q90", "sample_000", "sample_998", "source"]
    assert [name for name in frame.columns if name in columns] == columns


def test_the_coupling_survives_the_folder_and_fine_tuning(made: Artifact, persistent: Loaded, tmp_path: Path) -> None:
    assert made.coupling is not None
    settings = FinetuneSettings(min_gain=0, min_windows_better=0, origins=48, gate_windows=2, report_windows=1)
    tuned = finetune(made, persistent.panel, settings).artifact
    tuned.save(tmp_path)
    again = load(tmp_path)
    assert again.coupling is not None
    assert torch.equal(again.coupling, made.coupling)
    frame = forecast_shard(again, persistent.panel, persistent.panel.last_index, samples=99).frame
    assert "fine_tuned" in set(frame["source"])
    middle = np.median(frame.select("^sample_.*$").to_numpy(), axis=1)
    np.testing.assert_allclose(middle, frame["q50"], rtol=1e-5)


def write(artifact: Artifact, loaded: Loaded, folder: Path, runtime: str = "torch", **output: Any) -> Output:
    names = {"model": "m", "model_version": "3", "model_digest": "ab12"}
    with locked(folder):
        settings = ScoreSettings.model_validate({"shard_size": 3, "runtime": runtime})
        made = ScoreJob(artifact, loaded, settings, ScoreOutput.model_validate({"path": str(folder), **output}), names)
        return made.write(loaded.panel.last_index)


def frame_of(folder: Path) -> pl.DataFrame:
    return pl.read_parquet(sorted(folder.glob("forecasts/*/*.parquet")), hive_partitioning=False)


def test_a_job_writes_paths_within_the_bounds_the_same_each_time(
    trained: FitResult, weekly_loaded: Loaded, tmp_path: Path
) -> None:
    one, two = (
        write(trained.artifact, weekly_loaded, tmp_path / name, n_samples=20, max=20.0).content for name in ("a", "b")
    )
    assert {**one, "written_at": ""} == {**two, "written_at": ""}
    assert one["bounded"]["max"] > 0
    paths = frame_of(tmp_path / "a").select("^sample_.*$")
    assert paths.width == 20
    assert paths.max_horizontal().max() == 20
    # Without them it is another output, of the same forecasts.
    plain = write(trained.artifact, weekly_loaded, tmp_path / "a", max=20.0)
    assert not plain.was_complete
    assert frame_of(tmp_path / "a").equals(frame_of(tmp_path / "b").drop("^sample_.*$"))


def test_series_that_fall_back_have_paths_too(trained: FitResult, weekly_loaded: Loaded) -> None:
    silent = replace(
        weekly_loaded.panel,
        target=np.where(
            np.repeat(np.arange(8), weekly_loaded.panel.lengths) == 0, np.nan, weekly_loaded.panel.target
        ).astype(np.float32),
    )
    silent.target[0] = 7.0
    frame = forecast_shard(trained.artifact, silent, silent.last_index, samples=5, max_age=None).frame.filter(
        series_id="s00"
    )
    assert set(frame["source"]) == {"seasonal_naive"}
    # A series without a seasonal difference has the scale of the panel.
    samples = frame.select("^sample_.*$").to_numpy()
    np.testing.assert_allclose(np.median(samples, axis=1), 7)
    assert (samples.std(axis=1) > 0.1).all()


def test_models_without_paths_are_refused_by_the_key(trained: FitResult, weekly_loaded: Loaded, tmp_path: Path) -> None:
    old = replace(trained.artifact, coupling=None)
    with pytest.raises(
        ConfigError, match=r"^output\.n_samples: this model does not hold how its errors .*train it again"
    ):
        write(old, weekly_loaded, tmp_path, n_samples=3)
    with pytest.raises(ConfigError, match=r"^n: "):
        with_samples(old, 3)


def test_an_autoregressive_decoder_writes_its_own_paths(train: Train, weekly_loaded: Loaded) -> None:
    model = {"decoder": "autoregressive", "n_paths": 16}
    learning = {"max_steps": 40, "learning_rate": 2e-2, "ema_decay": 0.9, "validation_every": 10}
    made = train(weekly_loaded, model=model, **learning)
    assert made.summary["best_step"] > 0
    artifact, panel = made.artifact, weekly_loaded.panel
    assert artifact.coupling is None
    stated = forecast(artifact, panel).frame
    for count in (4, 40):
        frame = forecast_shard(with_samples(artifact, count), panel, panel.last_index, samples=count).frame
        # Fewer than the forecast is made of change nothing of it.
        assert frame.drop("^sample_.*$").equals(stated) == (count == 4)
        own = sample_paths(artifact, panel, n=max(count, 16)).filter(series_id="s02", path=3)
        assert frame.filter(series_id="s02")["sample_002"].to_list() == own["value"].to_list()


def test_onnx_runtime_writes_the_same_forecasts_and_auto_stays_with_its_choice(
    trained: FitResult, weekly_loaded: Loaded, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime", reason="gatecast[onnx] is not installed")
    settings = FinetuneSettings(min_gain=0, min_windows_better=0, origins=48, gate_windows=2, report_windows=1)
    artifact = finetune(trained.artifact, weekly_loaded.panel, settings).artifact
    done = {name: write(artifact, weekly_loaded, tmp_path / name, name) for name in ("torch", "onnx", "auto")}
    assert done["torch"].content["runtime"] == "torch"
    assert done["onnx"].content["runtime"] == "onnx"
    frames = {name: frame_of(tmp_path / name) for name in done}
    assert "fine_tuned" in set(frames["onnx"]["source"])
    numbers = ["mean", *QUANTILES]
    np.testing.assert_allclose(frames["onnx"].select(numbers), frames["torch"].select(numbers), rtol=1e-5)
    chosen = str(done["auto"].content["runtime"])
    assert frames["auto"].equals(frames[chosen])
    (kept,) = (tmp_path / "auto").glob(".runtime-*")
    assert kept.read_text() == chosen
    other = {"torch": "onnx", "onnx": "torch"}[chosen]
    kept.write_text(other)
    assert write(artifact, weekly_loaded, tmp_path / "auto", "auto").content["runtime"] == other
    assert write(artifact, weekly_loaded, tmp_path / "auto", other).was_complete


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_a_gpu_gives_the_same_forecasts(train: Train, weekly_loaded: Loaded, cell: str) -> None:
    artifact = train(weekly_loaded, model={"cell": cell, "num_layers": 2}, max_steps=40, learning_rate=2e-2).artifact
    cpu, cuda = (forecast(artifact, weekly_loaded.panel, device=device).frame for device in ("cpu", "cuda"))
    numbers = ["mean", *QUANTILES]
    np.testing.assert_allclose(cuda.select(numbers), cpu.select(numbers), rtol=1e-4)
