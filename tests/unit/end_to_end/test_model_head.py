"""The whole way with each `model.head`: training, fine-tuning, backtest, forecast, saved and loaded."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from forecast.artifact import Artifact, load
from forecast.backtesting.backtest import backtest
from forecast.backtesting.result import Contender
from forecast.config import BacktestSettings, FinetuneSettings, ModelConfig
from forecast.data.ingest.loaded import Loaded
from forecast.data.panel import Panel
from forecast.data.windows import windows_at
from forecast.errors import DataError
from forecast.finetuning.finetune import finetune
from forecast.finetuning.result import FinetuneResult
from forecast.finetuning.series_gate import TUNED
from forecast.models.heads import log_quantiles
from forecast.models.inputs.batch import PanelTensors
from forecast.models.inputs.frame import targets
from forecast.models.network.losses import step_errors, validation_batches, window_sizes
from forecast.models.network.output import Output
from forecast.prediction.from_table import forecast
from forecast.prediction.predict import predict
from forecast.training.result import FitResult

Table, Load, Train = Callable[..., pl.DataFrame], Callable[..., Loaded], Callable[..., FitResult]
HEADS = ("quantile", "normal", "student_t", "poisson", "negative_binomial", "tweedie")
COUNTS = HEADS[3:5]
POSITIVE = HEADS[3:]
QUANTILES = [f"q{k}0" for k in range(1, 10)]
LEARNING = {"max_steps": 60, "learning_rate": 2e-2, "ema_decay": 0.9, "validation_every": 10}
LENGTH = 260


def promos() -> dict[str, np.ndarray]:
    """Days on which three times as much is sold: the closed form does not see them, so training gains on it."""
    rng = np.random.default_rng(4)
    days = {f"s{i}": rng.integers(0, 2, LENGTH).astype(float) for i in range(6)}
    return {**days, "zeros": np.zeros(LENGTH), "gone": days["s2"][:60]}


def sales(dispersion: float = 3.0) -> dict[str, np.ndarray]:
    """Daily counts with a week: busy and rare goods (negative binomial), gaps, and what stands still."""
    rng, promo = np.random.default_rng(3), promos()
    week = np.exp(0.4 * np.sin(2 * np.pi * np.arange(LENGTH) / 7))
    made = {}
    for i, size in enumerate([0.3, 1.0, 3.0, 10.0, 40.0, 400.0]):
        mean = size * week * (1 + 2 * promo[f"s{i}"])
        made[f"s{i}"] = rng.negative_binomial(dispersion, dispersion / (dispersion + mean)).astype(float)
    made["s3"][50:60] = np.nan
    made["zeros"], made["gone"] = np.zeros(LENGTH), made["s2"][:60].copy()
    return made


@pytest.fixture(scope="module")
def counts(table: Table, loaded: Load) -> Loaded:
    return loaded(table(sales(), promo=promos()), 7, calendar=False, known_covariates=["promo"])


@pytest.fixture(scope="module")
def made(train: Train, counts: Loaded) -> dict[str, FitResult]:
    return {head: train(counts, model={"head": head}, **LEARNING) for head in HEADS}


@pytest.fixture(scope="module")
def tuned(made: dict[str, FitResult], counts: Loaded) -> dict[str, FinetuneResult]:
    settings = FinetuneSettings(min_gain=0.0, min_windows_better=0.0, origins=64)
    return {head: finetune(made[head].artifact, counts.panel, settings) for head in HEADS}


def check(frame: pl.DataFrame, head: str, *, whole: bool) -> None:
    numbers = frame.select(QUANTILES).to_numpy()
    assert np.isfinite(frame.select("mean", *QUANTILES).to_numpy()).all()
    assert (np.diff(numbers) >= 0).all()
    if head in POSITIVE:
        assert (frame.select("mean", *QUANTILES).to_numpy() >= 0).all()
        assert not (whole and head in COUNTS) or (numbers % 1 == 0).all()


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.trains
def test_training_beats_the_closed_form_by_the_heads_own_loss(made: dict[str, FitResult], head: str) -> None:
    summary = made[head].summary
    assert summary["best_step"] > 0
    assert summary["val/loss"] < summary["val/loss_closed_form"]
    assert made[head].artifact.model.head == head


@pytest.mark.parametrize("head", HEADS)
def test_forecasts_are_finite_ordered_and_of_the_distribution(
    made: dict[str, FitResult], counts: Loaded, head: str
) -> None:
    artifact, panel = made[head].artifact, counts.panel
    frame = forecast(artifact, panel).frame
    check(frame, head, whole=True)
    ours = frame.filter(source="pretrained")
    assert ours["series_id"].n_unique() == 7
    check(ours, head, whole=True)
    assert (ours.filter(series_id="zeros").select("mean", *QUANTILES).to_numpy() == 0).all()
    output, location, scale = run(artifact, panel)
    own = location + scale * output.mean[:, 0]
    if head == "quantile":  # Those below 0, which no count is, are 0.
        own = artifact.network.head.mean((location[..., None] + scale[..., None] * output.quantiles[:, 0]).clamp(min=0))
    named = ours["mean"].to_numpy().reshape(-1, 7)
    seen = output.frame.begun[:, 0].numpy()
    # Of heads that do not estimate a mean, training has moved it (`RecurrentForecaster.mean_shift`).
    width = (ours["q90"] - ours["q10"]).to_numpy().reshape(-1, 7)
    shift = float(artifact.network.mean_shift)
    assert not (shift and head in ("normal", *POSITIVE))
    np.testing.assert_allclose(named, np.maximum(own[seen].numpy() + shift * width, 0), rtol=1e-4, atol=1e-5)
    if head != "quantile":
        draws = artifact.network.head.samples(output.arguments[seen, 0], 4000, torch.Generator().manual_seed(0))
        # s5 (400 a day) has the smoothest counts.
        row = ours["series_id"].unique(maintain_order=True).to_list().index("s5")
        values = (location[seen, ..., None] + scale[seen, ..., None] * draws)[row]
        stated = ours.filter(series_id="s5").select(QUANTILES).to_numpy()
        share = (values[..., None].numpy() <= stated[:, None] + 0.5 * (head in COUNTS)).mean(1)
        inside = stated > 0
        np.testing.assert_allclose(share[inside], np.tile(np.arange(1, 10) / 10, (7, 1))[inside], atol=0.05)


@torch.inference_mode()
def run(artifact: Artifact, panel: Panel) -> tuple[Output, torch.Tensor, torch.Tensor]:
    network, data = artifact.network, PanelTensors(panel)
    windows = windows_at(panel, panel.last_index)
    ((series, cutoff, origins),) = validation_batches(windows)
    output = network(data.gather(series, cutoff, cutoff + 1, **window_sizes(network, 1)), origins)
    return output, output.frame.location, output.frame.scale


@pytest.mark.parametrize("head", HEADS)
def test_a_saved_model_forecasts_the_same(
    made: dict[str, FitResult], tuned: dict[str, FinetuneResult], counts: Loaded, head: str, tmp_path: Path
) -> None:
    for name, artifact in {"base": made[head].artifact, "tuned": tuned[head].artifact}.items():
        artifact.save(tmp_path / name)
        again = load(tmp_path / name)
        assert again.digest() == artifact.digest()
        assert forecast(again, counts.panel).frame.equals(forecast(artifact, counts.panel).frame)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.trains
def test_fine_tuned_forecasts_keep_their_order_and_counts_stay_counts(
    tuned: dict[str, FinetuneResult], counts: Loaded, head: str
) -> None:
    result = tuned[head]
    assert (result.decisions["reason"] == TUNED).any()
    frame = forecast(result.artifact, counts.panel).frame
    assert "fine_tuned" in set(frame["source"])
    check(frame, head, whole=True)
    panel = counts.panel
    found = predict(result.artifact, panel, windows_at(panel, panel.last_index))
    kept = ~found.is_tuned
    np.testing.assert_array_equal(found.tuned[kept], found.base[kept])
    np.testing.assert_array_equal(found.tuned_mean[kept], found.base_mean[kept])
    assert (found.tuned_mean[found.is_tuned] != found.base_mean[found.is_tuned]).any()


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.trains
def test_a_backtest_scores_each_head(
    made: dict[str, FitResult], tuned: dict[str, FinetuneResult], counts: Loaded, head: str
) -> None:
    contenders = {
        "pretrained": Contender(made[head].artifact, counts.panel),
        "fine_tuned": Contender(tuned[head].artifact, counts.panel),
    }
    result = backtest(contenders, BacktestSettings())
    scores = result.summary.rows_by_key("model", named=True, unique=True)
    assert np.isfinite(scores["pretrained"]["wql"])
    assert scores["pretrained"]["wql"] < scores["seasonal_naive"]["wql"]
    assert ("crps" in result.summary.columns) == (head in POSITIVE)
    if head in POSITIVE:
        # A Poisson distribution is too narrow for these counts, seasonal naive within their support is not.
        margin = 1.1 if head == "poisson" else 1.0
        assert scores["pretrained"]["crps"] < margin * scores["seasonal_naive"]["crps"]
    # Baselines too are within the support of the head, and the bias is that of the mean.
    for _, part in result.forecasts.group_by("model"):
        check(part, head, whole=True)
    for model, row in scores.items():
        part = result.forecasts.filter(pl.col("model") == model).drop_nulls("target")
        error = part["mean"] - part["target"]
        assert row["me"] == pytest.approx(error.mean())
        assert row["bias"] == pytest.approx(error.sum() / part["target"].abs().sum())
        steps = result.steps.filter(pl.col("model") == model).sort("step")["me"]
        assert float(np.average(steps)) == pytest.approx(error.mean())
    naive = result.forecasts.filter(pl.col("model") == "seasonal_naive")
    assert (naive["mean"] == naive["q50"]).all()


@pytest.mark.trains
def test_a_negative_binomial_finds_the_dispersion_and_beats_poisson(train: Train, table: Table, loaded: Load) -> None:
    rng = np.random.default_rng(0)
    mean, size = 60.0, 4.0
    series = {f"s{i}": rng.negative_binomial(size, size / (size + mean), 300).astype(float) for i in range(12)}
    found = loaded(table(series), 7, calendar=False)
    result = {head: train(found, model={"head": head}, **LEARNING) for head in COUNTS}
    output, _, _ = run(result["negative_binomial"].artifact, found.panel)
    own_mean, excess = output.arguments[..., 2:].flatten(0, 2).unbind(-1)
    assert float(own_mean.mean()) == pytest.approx(mean, rel=0.1)
    # The variance of the mean that is not known is part of what is forecast.
    assert 0.8 * mean / size**0.5 < float(excess.mean()) < 1.5 * mean / size**0.5
    losses = {head: result[head].summary["val/loss"] for head in COUNTS}
    assert losses["negative_binomial"] < losses["poisson"] - 1


@pytest.mark.parametrize("head", ["normal", "student_t"])
@pytest.mark.trains
def test_a_likelihood_finds_width_and_tails(train: Train, table: Table, loaded: Load, head: str) -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(12, 400)) if head == "normal" else rng.standard_t(3, size=(12, 400))
    found = loaded(table({f"s{i:02d}": 10 + 2 * row for i, row in enumerate(noise)}), 7, calendar=False)
    artifact = train(found, model={"head": head}, **LEARNING).artifact
    output, location, scale = run(artifact, found.panel)
    middle, width, *freedom = (output.arguments.flatten(0, 2)).unbind(-1)
    unit = scale.expand(-1, 7).flatten()
    assert float((location.expand(-1, 7).flatten() + unit * middle).mean()) == pytest.approx(10, abs=0.3)
    assert float((unit * width).median()) == pytest.approx(2, rel=0.25)
    if freedom:
        assert 2 < float(freedom[0].median()) < 6


@pytest.mark.parametrize("head", ["normal", "student_t"])
@pytest.mark.trains
def test_on_a_logarithmic_scale_the_mean_is_that_of_the_data(
    train: Train, table: Table, loaded: Load, head: str
) -> None:
    rng = np.random.default_rng(0)
    series = {f"s{i:02d}": 100 * np.exp(0.8 * row) for i, row in enumerate(rng.normal(size=(12, 400)))}
    found = loaded(table(series), 7, calendar=False)
    artifact = train(found, model={"head": head, "transform": "log"}, **LEARNING).artifact
    frame = forecast(artifact, found.panel).frame
    assert frame["q50"].mean() == pytest.approx(100, rel=0.15)
    ratio = (frame["mean"] / frame["q50"]).mean()
    if head == "normal":
        # Log-normal: the mean is above the median by exp(variance / 2).
        assert ratio == pytest.approx(np.exp(0.8**2 / 2), rel=0.25)
    else:
        # exp of a Student-t has no mean: it is that of the stated quantiles.
        stated, unit = torch.from_numpy(frame.select(QUANTILES).to_numpy()), artifact.network.shape.unit
        expected = log_quantiles.mean(stated, artifact.network.head.levels, unit)
        expected += float(artifact.network.mean_shift) * (expected - stated[:, 4])
        np.testing.assert_allclose(frame["mean"], expected)


@pytest.mark.parametrize("head", COUNTS)
def test_counts_are_taken_as_they_are(train: Train, counts: Loaded, head: str) -> None:
    with pytest.raises(ValueError, match=rf"head={head} is of the counts themselves"):
        ModelConfig.model_validate({"head": head, "transform": "log"})
    assert train(counts, model={"head": head}).summary["transform"] == "none"


@pytest.mark.parametrize("head", COUNTS)
def test_targets_that_are_no_counts_are_refused(train: Train, table: Table, loaded: Load, head: str) -> None:
    series = sales()
    series["s1"][[3, 4]], series["s4"][9], series["s2"][7] = -1.0, 2.5, -0.5
    message = (
        rf"model\.head={head} is for counts, but of 1,870 targets 3 are negative and 2 fractional, in 3 of 8 series: "
        r"s1, s2, s4; set model\.head=quantile"
    )
    with pytest.raises(DataError, match=message):
        train(loaded(table(series), 7, calendar=False), model={"head": head})


@pytest.mark.parametrize("head", HEADS)
def test_a_loss_takes_only_what_was_observed(made: dict[str, FitResult], counts: Loaded, head: str) -> None:
    network, data = made[head].artifact.network, PanelTensors(counts.panel)
    row = counts.panel.series_id.tolist().index("s3")
    # The gap is steps 50 to 59: three of seven targets are there.
    at = torch.tensor([46])
    origins, several = torch.tensor([0]), torch.tensor([0, 3, 9])
    with torch.inference_mode():
        batch = data.gather(torch.tensor([row]), at, at + 8, **window_sizes(network, 1))
        error, weight = step_errors(network, batch, origins)
        wide = data.gather(torch.tensor([row]), at, at + 100, **window_sizes(network, 10))
        errors, weights = step_errors(network, wide, several)
    assert (weight[0, 0] > 0).tolist() == [True] * 3 + [False] * 4
    assert error.isfinite().all()
    assert errors.shape == weights.shape == (1, 3, 7)
    torch.testing.assert_close(errors[:, :1] * weights[:, :1], error * weight, rtol=1e-4, atol=1e-5)
    _, observed = targets(wide, network.frame(wide, several), several, network.shape)
    assert torch.equal(weights > 0, observed)


def test_the_head_of_a_model_is_a_choice() -> None:
    assert ModelConfig().head == "quantile"
    with pytest.raises(ValueError, match="negative_binomial"):
        ModelConfig.model_validate({"head": "gamma"})
