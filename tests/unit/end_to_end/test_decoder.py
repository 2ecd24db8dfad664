"""The whole way with each `model.decoder` and with attention: training, fine-tuning, backtest, forecast, stored."""

import dataclasses
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import forecast as fc
from forecast.artifact import load
from forecast.backtesting.backtest import backtest
from forecast.backtesting.result import Contender
from forecast.config import BacktestSettings, FinetuneSettings, FitSettings
from forecast.config import load as validated
from forecast.data.ingest.loaded import Loaded
from forecast.data.windows import WindowIndex, windows_at
from forecast.errors import ConfigError
from forecast.finetuning.finetune import finetune
from forecast.models.network.ensemble import members_of
from forecast.prediction.attention import attention
from forecast.prediction.from_table import forecast
from forecast.prediction.paths import sample_paths
from forecast.prediction.predict import predict
from forecast.training.result import FitResult

Table, Load, Train = Callable[..., pl.DataFrame], Callable[..., Loaded], Callable[..., FitResult]
QUANTILES = [f"q{k}0" for k in range(1, 10)]
LEARNING: dict[str, Any] = {"max_steps": 30, "learning_rate": 2e-2, "ema_decay": 0.9, "validation_every": 10}
PATHS: dict[str, Any] = {"decoder": "autoregressive", "n_paths": 32}
MODELS: dict[str, dict[str, Any]] = {
    "segment": {"decoder": "segment", "segment_length": 2, "cell": "gru", "attention": True},
    "quantile": PATHS,
    "own": {**PATHS, "own_samples": 0.5, "attention": True, "dropout": 0.1},
    "normal": {**PATHS, "head": "normal", "cell": "rnn", "transform": "log"},
    "student_t": {**PATHS, "head": "student_t", "transform": "log"},
    "poisson": {**PATHS, "head": "poisson"},
    "negative_binomial": {**PATHS, "head": "negative_binomial", "cell": "gru"},
}


def counts_of(table: Table, loaded: Load, *, sales: bool) -> Loaded:
    """Daily counts with a week and a swing that lasts; a gap, and one series that stands still. Sales are known."""
    rng, made, sale, length = np.random.default_rng(3), {}, {}, 220
    week = np.exp(0.3 * np.sin(2 * np.pi * np.arange(length) / 7))
    for i, size in enumerate([3.0, 10.0, 40.0, 400.0]):
        swing = np.zeros(length)
        for t in range(1, length):
            swing[t] = 0.8 * swing[t - 1] + 0.2 * rng.normal()
        if sales:
            sale[f"s{i}"] = rng.integers(0, 2, length).astype(float)
            swing += 2 * sale[f"s{i}"]
        made[f"s{i}"] = 1.0 + rng.poisson(size * week * np.exp(swing))
    made["s1"][50:60] = np.nan
    made["still"], sale["still"] = np.full(length, 7.0), np.zeros(length)
    columns = {"sale": sale} if sales else {}
    return loaded(table(made, **columns), 7, calendar=False, known_covariates=[*columns])


@pytest.fixture(scope="module")
def counts(table: Table, loaded: Load) -> Loaded:
    return counts_of(table, loaded, sales=False)


@pytest.fixture(scope="module")
def sold(table: Table, loaded: Load) -> Loaded:
    return counts_of(table, loaded, sales=True)


@pytest.fixture(scope="module")
def made(train: Train, counts: Loaded) -> dict[str, FitResult]:
    steps = {name: LEARNING["max_steps"] if name == "own" else 10 for name in MODELS}
    return {name: train(counts, model=model, **LEARNING | {"max_steps": steps[name]}) for name, model in MODELS.items()}


@pytest.fixture(scope="module")
def learnt(train: Train, sold: Loaded) -> dict[str, FitResult]:
    longer = {"max_steps": 40, "learning_rate": 3e-2}
    return {name: train(sold, model=model, **(LEARNING | longer)) for name, model in MODELS.items()}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.trains
def test_training_is_validated_as_it_forecasts_and_beats_the_closed_form(
    learnt: dict[str, FitResult], name: str
) -> None:
    # The closed form sees no sales, which multiply what is sold by seven: half of its loss is left.
    summary = learnt[name].summary
    assert summary["best_step"] > 0
    assert summary["val/loss"] < 0.8 * summary["val/loss_closed_form"]
    if MODELS[name]["decoder"] == "autoregressive":
        # Pinball losses for any head, in units of scale.
        assert 0.2 < float(summary["val/loss_closed_form"]) < 2


@pytest.mark.parametrize("name", MODELS)
def test_forecasts_are_finite_ordered_and_survive_the_folder(
    made: dict[str, FitResult], counts: Loaded, name: str, tmp_path: Path
) -> None:
    artifact = made[name].artifact
    frame = forecast(artifact, counts.panel).frame
    numbers = frame.select("mean", *QUANTILES).to_numpy()
    assert np.isfinite(numbers).all()
    assert (np.diff(numbers[:, 1:]) >= 0).all()
    np.testing.assert_allclose(frame.filter(series_id="still").select("mean", *QUANTILES).to_numpy(), 7, rtol=1e-6)
    moving = frame.filter(pl.col("series_id") != "still")
    assert (moving["q90"] > moving["q10"]).all()
    assert ((moving["mean"] > moving["q10"]) & (moving["mean"] < moving["q90"])).all()
    if artifact.network.head.counts:
        assert (numbers[:, 1:] % 1 == 0).all()
    artifact.save(tmp_path)
    again = load(tmp_path)
    assert again.digest() == artifact.digest()
    assert forecast(again, counts.panel).frame.equals(frame)


@pytest.mark.parametrize("name", MODELS)
def test_a_forecast_depends_on_no_other_window(made: dict[str, FitResult], counts: Loaded, name: str) -> None:
    artifact, panel = made[name].artifact, counts.panel
    windows = WindowIndex(np.tile(np.arange(4), 150), np.repeat(np.arange(60, 210), 4))
    together = predict(artifact, panel, windows)
    for row in (0, 5, 301, 599):
        alone = predict(artifact, panel, windows[slice(row, row + 1)])
        np.testing.assert_allclose(alone.base[0], together.base[row], rtol=1e-4)
        np.testing.assert_allclose(alone.base_mean[0], together.base_mean[row], rtol=1e-4)
    np.testing.assert_array_equal(predict(artifact, panel, windows).base, together.base)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.trains
def test_a_model_is_fine_tuned_and_backtested(learnt: dict[str, FitResult], sold: Loaded, name: str) -> None:
    artifact, panel = learnt[name].artifact, sold.panel
    settings = FinetuneSettings(min_gain=0.0, min_windows_better=0.0, origins=48, gate_windows=2, report_windows=1)
    tuned = finetune(artifact, panel, settings).artifact
    assert tuned.bank is not None
    assert tuned.bank.series_id
    found = predict(tuned, panel, windows_at(panel, panel.last_index))
    assert np.isfinite(found.tuned).all()
    assert (np.diff(found.tuned, axis=-1) >= 0).all()
    assert (found.tuned[found.is_tuned] != found.base[found.is_tuned]).any()
    result = backtest({"base": Contender(artifact, panel), "tuned": Contender(tuned, panel)}, BacktestSettings())
    scores = result.summary.rows_by_key("model", named=True, unique=True)
    assert scores["base"]["wql"] < scores["seasonal_naive"]["wql"]
    assert np.isfinite(scores["tuned"]["wql"])


@pytest.mark.parametrize("head", ["quantile", "normal", "negative_binomial", "tweedie"])
def test_without_training_paths_give_the_closed_form_exactly(train: Train, counts: Loaded, head: str) -> None:
    frames = []
    for decoder in ("direct", "autoregressive"):
        artifact = train(counts, model={"head": head, "decoder": decoder}).artifact
        artifact.network.threshold.fill_(0.0)  # Validation may choose another for paths.
        frames.append(forecast(artifact, counts.panel).frame)
    assert frames[0].equals(frames[1])


def test_the_mean_of_paths_on_a_logarithmic_scale_is_that_of_the_data(
    made: dict[str, FitResult], counts: Loaded
) -> None:
    frames = {name: forecast(made[name].artifact, counts.panel).frame for name in ("normal", "student_t")}
    for frame in frames.values():
        moving = frame.filter(pl.col("series_id") != "still")
        assert (moving["mean"] > moving["q50"]).mean() > 0.7


def test_a_training_on_own_samples_that_was_killed_goes_on_to_the_same_model(
    train: Train, counts: Loaded, made: dict[str, FitResult], tmp_path: Path
) -> None:
    def kill(share: float, text: str) -> None:
        if share > 0.6:
            raise RuntimeError(text)

    known = {**LEARNING, "model": MODELS["own"], "checkpoint": str(tmp_path)}
    with pytest.raises(RuntimeError, match="step 20"):
        train(counts, **known, progress=kill)
    resumed = train(counts, **known)
    assert resumed.summary["resumed_at_step"] == 10
    assert resumed.artifact.digest() == made["own"].artifact.digest()
    assert resumed.curve == made["own"].curve
    # The share has grown with the steps: the last of thirty begins with 29 done.
    for result in (resumed, made["own"]):
        assert result.artifact.network.sampled_share == pytest.approx(0.5 * 29 / 30)


def test_several_networks_with_paths_forecast_the_mean_of_their_quantiles(train: Train, counts: Loaded) -> None:
    result = train(
        counts, model={**PATHS, "attention": True, "transform": "none"}, **(LEARNING | {"max_steps": 10}), ensemble=2
    )
    artifact, panel = result.artifact, counts.panel
    frame = forecast(artifact, panel).frame
    members = []
    for member in members_of(artifact.network):
        alone = dataclasses.replace(artifact, network=member)
        members.append(forecast(alone, panel).frame.select(QUANTILES).to_numpy())
    np.testing.assert_allclose(frame.select(QUANTILES).to_numpy(), np.mean(members, axis=0), rtol=1e-4)
    weights = attention(artifact, panel).group_by("series_id").agg(pl.col("weight").sum())
    np.testing.assert_allclose(weights["weight"], 1.0, rtol=1e-5)


# --- paths as a table


@pytest.mark.parametrize("name", ["quantile", "student_t", "negative_binomial"])
def test_paths_have_the_quantiles_and_the_mean_that_are_forecast(
    made: dict[str, FitResult], counts: Loaded, name: str
) -> None:
    artifact, panel = made[name].artifact, counts.panel
    found = sample_paths(artifact, panel)
    assert found.columns == ["series_id", "cutoff", "path", "step", "timestamp", "value"]
    assert found.height == panel.n_series * 32 * 7
    assert found["value"].is_finite().all()
    stated = forecast(artifact, panel).frame
    own = found.group_by("series_id", "timestamp", "step", "cutoff").agg(
        pl.col("value").quantile(0.5, "lower").alias("lower"),
        pl.col("value").quantile(0.5, "higher").alias("higher"),
        pl.col("value").mean().alias("mean_of_paths"),
    )
    both = stated.join(own, on=["series_id", "timestamp", "step", "cutoff"], validate="1:1")
    assert both.height == stated.height
    if not artifact.network.head.counts:
        # Between the two paths in the middle: linear on the model's scale, which may be logarithmic.
        assert (both["lower"] <= both["q50"] * 1.00001).all()
        assert (both["higher"] >= both["q50"] * 0.99999).all()
    else:
        assert (found["value"] % 1 == 0).all()
    np.testing.assert_allclose(both["mean_of_paths"], both["mean"], rtol=0.5, atol=0.3)
    assert (found.filter(series_id="still")["value"] - 7).abs().max() < 1e-5


@pytest.mark.trains
def test_paths_of_amounts_have_their_zeros(train: Train, table: Table, loaded: Load) -> None:
    rng = np.random.default_rng(0)
    jumps = rng.poisson(0.9 + 0.6 * np.sin(2 * np.pi * np.arange(200) / 7), (5, 200))
    values = np.where(jumps > 0, rng.gamma(np.maximum(jumps, 1)), 0.0)
    found = loaded(table({f"s{i}": row for i, row in enumerate(values)}), 7, calendar=False)
    made = train(found, model={**PATHS, "head": "tweedie", "skip": False}, **(LEARNING | {"max_steps": 60}))
    assert made.summary["best_step"] > 0
    frame = forecast(made.artifact, found.panel).frame
    stated = frame.select(QUANTILES).to_numpy()
    assert np.isfinite(stated).all()
    assert (stated >= 0).all()
    assert (np.diff(stated) >= 0).all()
    paths = sample_paths(made.artifact, found.panel)["value"]
    assert paths.min() == 0
    assert (paths == 0).mean() == pytest.approx((stated == 0).mean(), abs=0.06)
    assert paths.mean() == pytest.approx(frame["mean"].mean(), rel=0.1)


def test_paths_of_a_fine_tuned_model_have_its_quantiles(made: dict[str, FitResult], counts: Loaded) -> None:
    settings = FinetuneSettings(min_gain=0.0, min_windows_better=0.0, origins=48, gate_windows=2, report_windows=1)
    tuned = finetune(made["normal"].artifact, counts.panel, settings).artifact
    assert tuned.bank is not None
    base, found = (sample_paths(artifact, counts.panel) for artifact in (tuned.base(), tuned))
    changed = (base["value"] != found["value"]).to_numpy()
    assert set(found.filter(changed)["series_id"]) == set(tuned.bank.series_id)
    stated = forecast(tuned, counts.panel).frame
    middle = found.group_by("series_id", "step").agg(
        pl.col("value").quantile(0.5, side).alias(side) for side in ("lower", "higher")
    )
    middle = middle.sort("series_id", "step")
    assert (middle["lower"] <= stated["q50"] * 1.00001).all()
    assert (middle["higher"] >= stated["q50"] * 0.99999).all()


def test_as_many_paths_as_are_asked_for_from_any_cutoff(made: dict[str, FitResult], counts: Loaded) -> None:
    artifact, panel = made["normal"].artifact, counts.panel
    cutoff = int(panel.start[0]) + 150
    found = sample_paths(artifact, panel, n=5, cutoff=cutoff)
    assert found["path"].unique().sort().to_list() == [1, 2, 3, 4, 5]
    assert found["step"].unique().sort().to_list() == list(range(1, 8))
    assert set(found["cutoff"]) == {datetime(2024, 1, 1) + timedelta(days=150)}
    assert found["timestamp"].min() == datetime(2024, 1, 1) + timedelta(days=151)
    assert found.equals(sample_paths(artifact, panel, n=5, cutoff=cutoff))
    with pytest.raises(ConfigError, match=r"n: a sample has 2 paths or more, 1 asked for"):
        sample_paths(artifact, panel, n=1)


# --- attention as a table


def test_weights_of_attention_are_told_by_time(table: Table, weekly: Callable[..., dict[str, np.ndarray]]) -> None:
    series = weekly(3, 120)
    series["late"] = series["s00"][:9]
    rows = table(series, late={"late": 111})
    settings = {"hidden_size": 4, "attention": True, "segment_length": 2}
    fit = {"max_steps": 3, "batch_size": 4, "origins": 8, "accelerator": "cpu"}
    artifact = fc.train(rows, horizon=7, context_length=28, model=settings, fit=fit).artifact
    found = fc.attention(artifact, rows)
    assert found.columns == ["series_id", "cutoff", "timestamp", "step", "weight"]
    assert found.height == 4 * 14
    last = datetime(2024, 1, 1) + timedelta(days=119)
    for _, part in found.group_by("series_id"):
        assert part["step"].to_list() == list(range(-13, 1))
        assert part["timestamp"].to_list() == [last + 2 * timedelta(days=step) for step in range(-13, 1)]
        assert set(part["cutoff"]) == {last}
        assert part["weight"].sum() == pytest.approx(1.0, rel=1e-5)
    # Nine days: the fifth step back holds its first.
    weight = found.filter(series_id="late")["weight"].to_numpy()
    assert (weight > 0).tolist() == [False] * 9 + [True] * 5
    earlier = fc.attention(artifact, rows, cutoff=last - timedelta(days=20))
    assert set(earlier["cutoff"]) == {last - timedelta(days=20)}
    assert "late" not in set(earlier["series_id"])


def test_a_model_without_attention_has_no_weights(train: Train, counts: Loaded) -> None:
    with pytest.raises(
        ConfigError, match=r"model\.attention: this model was trained without; .* model\.attention=true"
    ):
        attention(train(counts).artifact, counts.panel)


# --- settings that contradict


@pytest.mark.parametrize("key", ["own_samples", "n_paths"])
@pytest.mark.parametrize("decoder", ["direct", "segment"])
def test_settings_of_paths_need_them(decoder: str, key: str) -> None:
    value = {"own_samples": 0.2, "n_paths": 50}[key]
    message = rf"model\.{key}: is for decoder=autoregressive; decoder={decoder} samples nothing"
    with pytest.raises(ConfigError, match=message):
        validated(FitSettings, {"window": {"horizon": 3}, "model": {"decoder": decoder, key: value}})
    validated(FitSettings, {"window": {"horizon": 3}, "model": {"decoder": "autoregressive", key: value}})


def test_one_segment_for_the_whole_horizon_is_refused(train: Train, counts: Loaded) -> None:
    message = (
        r"model\.decoder: segment has nothing to do where one segment \(7 steps\) covers window\.horizon \(7\); set a "
        r"smaller model\.segment_length, or model\.decoder=direct"
    )
    with pytest.raises(ConfigError, match=message):
        train(counts, model={"decoder": "segment", "segment_length": 7})
