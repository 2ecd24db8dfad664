"""Bundles against the models that they are of."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import forecast as fc
from forecast.artifact import Artifact
from forecast.bundle.bundle import MANIFEST, Bundle, load
from forecast.config import BundleScoreConfig, ScoreOutput, ScoreSettings
from forecast.config.validation import load as validated
from forecast.data.ingest.loaded import Loaded
from forecast.errors import ArtifactError, ConfigError
from forecast.models.adapters.bank import AdapterBank, head_feature_count
from forecast.models.network.ensemble import Ensemble
from forecast.models.network.forecaster import RecurrentForecaster
from forecast.models.postprocess.conformal import Calibration
from forecast.models.universal.forecaster import UniversalForecaster
from forecast.prediction.cold import ColdProfile
from forecast.prediction.fallback import forecast_shard
from forecast.scoring.job import ScoreJob
from forecast.training.result import FitResult

pytest.importorskip("onnxruntime", reason="gatecast[onnx] is not installed")

from forecast.bundle.export import export_bundle
from forecast.bundle.predictor import WINDOWS, BundlePredictor

NAMES = {"model": "m", "model_version": "3", "model_digest": "d" * 64}
NEAR = 1e-5
"""Largest difference, in units of the range of a forecast, besides the rounding of float32."""


def bundle_of(artifact: Artifact, folder: Path) -> Bundle:
    folder.mkdir()
    export_bundle(artifact, NAMES, folder)
    return load(folder)


def assert_near(frame: pl.DataFrame, expected: pl.DataFrame) -> None:
    """Assert equal rows, but for numbers that differ in rounding."""
    numbers = [name for name, dtype in expected.schema.items() if dtype.is_float()]
    assert frame.schema == expected.schema
    assert frame.drop(numbers).equals(expected.drop(numbers))
    largest = pl.max_horizontal(numbers).max().over("series_id")
    least = pl.min_horizontal(numbers).min().over("series_id")
    rounding = float(np.finfo(np.float32).eps) * expected.select(size=largest.abs())["size"].to_numpy()
    near = NEAR * expected.select(range=largest - least)["range"].to_numpy() + rounding
    for name in numbers:
        assert (np.abs(frame[name].to_numpy() - expected[name].to_numpy()) <= near).all(), name


def assert_same(artifact: Artifact, loaded: Loaded, folder: Path, *cutoffs: int) -> Bundle:
    """Assert that a bundle forecasts as its model does, at cutoffs (the last steps of the panel, from its end)."""
    bundle = bundle_of(artifact, folder)
    for steps in cutoffs or (0, 20):
        cutoff = loaded.panel.last_index - steps
        expected = forecast_shard(artifact.for_cutoff(cutoff), loaded.panel, cutoff, max_age=None)
        weights = bundle.for_cutoff(cutoff)
        result = forecast_shard(weights, loaded.panel, cutoff, max_age=None, predictor=BundlePredictor(weights))
        assert_near(result.frame, expected.frame)
        assert result.rejects.equals(expected.rejects)
    return bundle


def with_changes(artifact: Artifact) -> Artifact:
    """Return a model with changes of two series, and a calibration of all and of one."""
    shape, generator = artifact.shape, torch.Generator().manual_seed(0)
    n_features = head_feature_count(shape, artifact.network.state_size)
    tensors = {
        "weight": 0.05 * torch.randn(2, n_features, shape.horizon, generator=generator),
        "width": torch.tensor([0.7, 1.4]),
    }
    levels = artifact.quantile_levels
    shift = 0.1 * torch.randn(2, 2, len(levels), generator=generator)
    shift[..., len(levels) // 2] = 0.0
    return replace(
        artifact,
        bank=AdapterBank("head", ["s01", "s04"], tensors),
        calibration=Calibration(levels, torch.tensor([0, 0, 1, 1, 1, 1, 1]), shift, ["s01"]),
    )


def test_changes_calibration_and_final_weights_are_those_of_the_model(
    trained: FitResult, closed_form: FitResult, weekly_loaded: Loaded, tmp_path: Path
) -> None:
    artifact = with_changes(trained.artifact)
    last = weekly_loaded.panel.last_index
    artifact = artifact.with_final(closed_form.artifact.network, last - 5)
    bundle = assert_same(artifact, weekly_loaded, tmp_path / "b")
    assert bundle.final is not None
    sources = forecast_shard(
        bundle.latest, weekly_loaded.panel, last, max_age=None, predictor=BundlePredictor(bundle.latest)
    ).frame["source"]
    assert set(sources) == {"fine_tuned", "pretrained"}


@pytest.mark.parametrize(
    "model",
    [{"transform": "log"}, {"head": "normal"}, {"head": "normal", "transform": "log"}, {"smoothing": True}],
    ids=str,
)
def test_scales_and_heads(
    train: Callable[..., FitResult], weekly_loaded: Loaded, tmp_path: Path, model: dict[str, Any]
) -> None:
    artifact = train(weekly_loaded, model=model, max_steps=0).artifact
    assert_same(with_changes(artifact), weekly_loaded, tmp_path / "b")


def test_a_share_of_the_pretrained_network(
    trained: FitResult, weekly_table: pl.DataFrame, weekly_loaded: Loaded, tmp_path: Path
) -> None:
    nano = fc.pretrained("gatecast-nano", weekly_table, horizon=7).network
    assert isinstance(nano, UniversalForecaster)
    assert isinstance(trained.artifact.network, RecurrentForecaster)
    network = Ensemble([trained.artifact.network, nano], [0.6, 0.4]).eval()
    assert_same(replace(trained.artifact, network=network), weekly_loaded, tmp_path / "b")


def test_the_pretrained_network_alone(weekly_table: pl.DataFrame, tmp_path: Path) -> None:
    artifact = fc.pretrained("gatecast-nano", weekly_table, horizon=7)
    bundle = assert_same(artifact, artifact.read(weekly_table.lazy()), tmp_path / "b")
    assert bundle.shape.context_length == artifact.shape.context_length


def test_clocks_levels_outliers_and_series_of_every_length(
    table: Callable[..., pl.DataFrame],
    loaded: Callable[..., Loaded],
    train: Callable[..., FitResult],
    tmp_path: Path,
) -> None:
    """Hours across a change of clocks; a level that float32 is too coarse for; a code; short, dead and late series."""
    rng, hours = np.random.default_rng(2), 24 * 40
    daily = np.sin(2 * np.pi * np.arange(hours) / 24)
    series = {f"s{row}": 10 + row * daily + rng.normal(size=hours) for row in range(70)}  # More than one batch.
    series["s1"] += 3e7
    series["s2"][[300, 900]] = -999.0
    series["s3"][-30:] = np.nan
    series["s4"][-400:] = np.nan
    series["s5"], series["s6"] = series["s5"][:5], np.full(hours, 4.0)
    frame = table(
        series,
        start=datetime(2024, 2, 20),
        every=timedelta(hours=1),
        late={"s5": hours - 5},
        time_zone="America/New_York",
    )
    panel = loaded(frame, 24, freq="1h")
    assert panel.panel.clock_shift.any()
    assert panel.panel.target.dtype == np.float64
    assert len(panel.panel.target) > WINDOWS
    artifact = train(panel, context=72, max_steps=0).artifact
    assert_same(artifact, panel, tmp_path / "b", 0, 1, 100, hours - 3)


def test_a_job_names_the_version_resumes_and_has_the_layout_of_every_job(
    trained: FitResult, weekly_loaded: Loaded, tmp_path: Path
) -> None:
    bundle = bundle_of(trained.artifact, tmp_path / "b")
    cutoff = weekly_loaded.panel.last_index

    def job(model: Any, name: str, **score: Any) -> ScoreJob:
        output = ScoreOutput(path=str(tmp_path / name), min=0.0)
        return ScoreJob(model, weekly_loaded, ScoreSettings(shard_size=3, **score), output, NAMES)

    expected, result = job(trained.artifact, "torch").write(cutoff), job(bundle, "bundle").write(cutoff)
    for key in ("model", "model_version", "model_digest", "horizon", "series", "rows", "sources", "rejects", "columns"):
        assert result.content[key] == expected.content[key], key
    assert (result.content["runtime"], expected.content["runtime"]) == ("bundle", "torch")
    assert job(bundle, "bundle").write(cutoff).was_complete
    assert not job(bundle, "bundle", force=True).write(cutoff).was_complete

    def rows(name: str) -> pl.DataFrame:
        return pl.read_parquet(tmp_path / name / "forecasts/**/*.parquet").sort("series_id", "step")

    assert_near(rows("bundle"), rows("torch"))
    cold = job(bundle, "cold", cold_start=True).write(cutoff)
    assert cold.content["cold_digest"] == ColdProfile.of(weekly_loaded.panel, cutoff, 7).digest()


def test_fewer_steps_are_a_prefix_and_more_are_refused(
    trained: FitResult, weekly_loaded: Loaded, tmp_path: Path
) -> None:
    bundle, panel = bundle_of(trained.artifact, tmp_path / "b"), weekly_loaded.panel
    short = bundle.at_horizon(3)
    assert bundle.at_horizon(None) is bundle
    trained_horizon, part = (
        forecast_shard(model, panel, panel.last_index, predictor=BundlePredictor(model)).frame
        for model in (bundle, short)
    )
    assert part.equals(trained_horizon.filter(pl.col("step") <= 3))
    with pytest.raises(ConfigError, match=r"^score\.horizon: 8 steps are more than the 7 of the bundle"):
        bundle.at_horizon(8)


def test_damage_and_other_formats_are_errors(trained: FitResult, tmp_path: Path) -> None:
    folder = tmp_path / "b"
    bundle_of(trained.artifact, folder)
    manifest, graph = json.loads((folder / MANIFEST).read_text()), (folder / "forecast.onnx").read_bytes()
    (folder / "forecast.onnx").write_bytes(graph[:-1])
    with pytest.raises(ArtifactError, match=r"forecast\.onnx does not match its manifest"):
        load(folder)
    (folder / "forecast.onnx").unlink()
    with pytest.raises(ArtifactError, match=r"forecast\.onnx is missing; export the bundle again"):
        load(folder)
    (folder / "forecast.onnx").write_bytes(graph)
    assert load(folder).names == NAMES
    (folder / MANIFEST).write_text(json.dumps(manifest | {"format_version": 0}))
    with pytest.raises(ArtifactError, match=r"a bundle of format 0, this program reads 1"):
        load(folder)
    (folder / MANIFEST).write_text(json.dumps(manifest | {"files": {"../x": ""}}))
    with pytest.raises(ArtifactError, match="does not list the files"):
        load(folder)
    del manifest["config"]["grid"]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=r"describes no bundle that this program knows \(KeyError: 'grid'\)"):
        load(folder)
    with pytest.raises(ArtifactError, match=r"no bundle, bundle\.json is missing"):
        load(tmp_path)


def test_models_without_such_graphs_are_refused(
    train: Callable[..., FitResult], trained: FitResult, weekly_loaded: Loaded, tmp_path: Path
) -> None:
    tuned = with_changes(trained.artifact)
    assert tuned.bank is not None
    lora = replace(tuned, bank=AdapterBank("lora", tuned.bank.series_id, tuned.bank.tensors))
    with pytest.raises(ConfigError, match=r"finetune\.kind=lora each series has a network of its own"):
        export_bundle(lora, NAMES, tmp_path)
    heavy = train(weekly_loaded, model={"head": "student_t"}, max_steps=0).artifact
    with pytest.raises(ConfigError, match=r"model\.head=student_t need functions that ONNX lacks"):
        export_bundle(heavy, NAMES, tmp_path)
    assert not list(tmp_path.iterdir())


def test_settings_that_a_bundle_lacks_are_refused() -> None:
    settings: dict[str, Any] = {"bundle": "b", "data": {"path": "p"}, "output": {"path": "o"}}
    assert validated(BundleScoreConfig, settings).bundle == "b"
    for score in ({"state": "s"}, {"scenario": "x"}, {"shadow": "1"}, {"runtime": "onnx"}):
        with pytest.raises(ConfigError, match=rf"score\.{next(iter(score))}: not for bundles"):
            validated(BundleScoreConfig, settings | {"score": score})
    with pytest.raises(ConfigError, match=r"output\.n_samples: not for bundles"):
        validated(BundleScoreConfig, settings | {"output": {"path": "o", "n_samples": 5}})
