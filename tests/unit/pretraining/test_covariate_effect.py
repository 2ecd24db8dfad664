"""Covariates of a pretrained network: a regression on what it leaves over, where that is surely better."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import forecast as fc
from forecast.artifact import Artifact
from forecast.checkpoints import NANO
from forecast.data.ingest.missing_known import missing_known
from forecast.data.windows import WindowIndex
from forecast.models.inputs.batch import PanelTensors
from forecast.models.network.losses import window_sizes
from forecast.models.universal.covariates import Columns, CovariateEffect
from forecast.models.universal.forecaster import UniversalForecaster
from forecast.prediction.predict import predict

Table = Callable[..., pl.DataFrame]
HORIZON, STEPS, N = 14, 200, 6
KNOWN = {"known_covariates": ["promo"]}


@pytest.fixture(scope="module")
def series(weekly: Callable[..., dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return weekly(N, STEPS + HORIZON)


@pytest.fixture(scope="module")
def promotions(series: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {name: (rng.random(len(values)) < 0.25).astype(float) for name, values in series.items()}


@pytest.fixture(scope="module")
def truth(table: Table, series: dict[str, np.ndarray], promotions: dict[str, np.ndarray]) -> pl.DataFrame:
    """Series that a promotion lifts by one and a half of their deviations."""
    lifted = {name: values + 1.5 * values.std() * promotions[name] for name, values in series.items()}
    return table(lifted, promo=promotions)


@pytest.fixture(scope="module")
def sales(truth: pl.DataFrame) -> pl.DataFrame:
    """The last horizon is to be forecast; its promotions are known."""
    return hidden(truth)


@pytest.fixture(scope="module")
def model(sales: pl.DataFrame) -> Artifact:
    return fc.pretrained(NANO, sales, horizon=HORIZON, data=KNOWN)


def hidden(table: pl.DataFrame) -> pl.DataFrame:
    """Return a table without the targets of the last horizon."""
    last = table["timestamp"].unique().sort()[-HORIZON]
    return table.with_columns(pl.when(pl.col("timestamp") < last).then("target"))


def effect_of(artifact: Artifact) -> CovariateEffect:
    network = artifact.latest.network
    assert isinstance(network, UniversalForecaster)
    assert network.effect is not None
    return network.effect


def error(frame: pl.DataFrame, truth: pl.DataFrame) -> float:
    """Return the mean absolute error in units of the deviation of each series."""
    both = frame.join(truth, on=["series_id", "timestamp"]).with_columns(off=(pl.col("mean") - pl.col("target")).abs())
    deviation = truth.group_by("series_id").agg(pl.col("target").std().alias("deviation"))
    return float(both.join(deviation, on="series_id").select((pl.col("off") / pl.col("deviation")).mean()).item())


def test_a_known_covariate_that_matters_makes_forecasts_better_and_surer(
    sales: pl.DataFrame, truth: pl.DataFrame, model: Artifact
) -> None:
    plain = fc.forecast(NANO, sales.drop_nulls("target"), horizon=HORIZON).frame
    better = fc.forecast(model, sales).frame
    assert error(better, truth) < 0.75 * error(plain, truth)
    width = pl.col("q90") - pl.col("q10")
    assert better.select(width.median()).item() < plain.select(width.median()).item()
    by_name = fc.forecast(NANO, sales, horizon=HORIZON, data=KNOWN).frame
    assert by_name.equals(better)
    rows, future = sales.drop_nulls("target"), sales.drop("target")
    assert fc.forecast(NANO, rows.drop("promo"), known=future, horizon=HORIZON, data=KNOWN).frame.equals(better)


def test_earlier_cutoffs_are_forecast_without_what_later_rows_have_taught(sales: pl.DataFrame, model: Artifact) -> None:
    cutoff = sales["timestamp"].unique().sort()[STEPS - 40]
    plain = fc.pretrained(NANO, sales.drop_nulls("target"), horizon=HORIZON)
    early = fc.forecast(model, sales, cutoff=cutoff).frame
    assert early.equals(fc.forecast(plain, sales.drop_nulls("target"), cutoff=cutoff).frame)
    assert model.trained_until_timestamp < sales["timestamp"].min()


def test_noise_changes_nothing(
    table: Table, series: dict[str, np.ndarray], promotions: dict[str, np.ndarray], caplog: pytest.LogCaptureFixture
) -> None:
    sales = hidden(table(series, promo=promotions))
    model = fc.pretrained(NANO, sales, horizon=HORIZON, data=KNOWN)
    assert not effect_of(model).is_active
    assert "covariates are not used" in caplog.text
    plain = fc.forecast(NANO, sales.drop_nulls("target"), horizon=HORIZON).frame
    assert fc.forecast(model, sales).frame.equals(plain)


def test_units_of_covariate_and_target_do_not_matter(sales: pl.DataFrame, model: Artifact) -> None:
    rescaled = sales.with_columns(pl.col("promo") * 250 + 40, pl.col("target") * 8 + 1000)
    frame = fc.forecast(NANO, rescaled, horizon=HORIZON, data=KNOWN).frame
    expected = fc.forecast(model, sales).frame
    for name in ("q10", "q50", "q90"):
        np.testing.assert_allclose((frame[name] - 1000) / 8, expected[name], rtol=2e-3, atol=1e-2)


def test_a_forecast_reads_no_later_rows_nor_other_series_but_the_known_future(
    sales: pl.DataFrame, model: Artifact
) -> None:
    read = model.read(sales.lazy())
    panel, final = read.panel, model.latest
    window = WindowIndex(np.array([2]), np.array([150]))
    every = predict(final, panel, WindowIndex(np.arange(N), np.full(N, 150))).tuned
    alone = predict(final, panel, window).tuned
    np.testing.assert_array_equal(every[2], alone[0])
    target, known = panel.target.copy(), panel.known.copy()
    target[panel.offsets[2] + 151 : panel.offsets[3]] = 1e3
    first = panel.offsets[2] + 2 * HORIZON + 151  # Each series holds a horizon more of what is known.
    known[0, first + HORIZON : first + 2 * HORIZON] += 1
    later = predict(final, replace(panel, target=target, known=known), window).tuned
    np.testing.assert_array_equal(later, alone)
    known[0, first] = 1 - known[0, first]
    moved = predict(final, replace(panel, known=known), window).tuned
    assert (np.abs(moved - alone)[0, 0] > 0.5).all()
    np.testing.assert_array_equal(moved[0, 1:], alone[0, 1:])


def test_a_missing_value_of_the_future_is_the_mean_of_the_window_and_is_reported(
    sales: pl.DataFrame, model: Artifact
) -> None:
    future = pl.col("target").is_null()
    absent = sales.with_columns(pl.when(~future).then("promo").alias("promo"))
    frame = fc.forecast(model, absent).frame
    mean = pl.col("promo").filter(~future).mean().over("series_id")
    usual = fc.forecast(model, sales.with_columns(pl.when(future).then(mean).otherwise("promo").alias("promo"))).frame
    np.testing.assert_allclose(frame["mean"], usual["mean"], rtol=1e-4)
    read = model.read(absent.lazy())
    assert missing_known(read.panel, read.data, horizon=HORIZON).height > 0


def test_a_saved_model_forecasts_the_same(sales: pl.DataFrame, model: Artifact, tmp_path: Path) -> None:
    digest = model.save(tmp_path)
    again = fc.load(tmp_path)
    assert again.digest() == digest
    assert fc.forecast(again, sales).frame.equals(fc.forecast(model, sales).frame)


def test_an_explanation_names_the_covariate(sales: pl.DataFrame, model: Artifact) -> None:
    summary = fc.explain(model, sales, series="s01", method="occlusion", step=1).summary
    assert summary.filter(pl.col("input") == "promo")["magnitude"].item() > 0


def test_past_covariates_count_by_their_latest_value(table: Table, series: dict[str, np.ndarray]) -> None:
    """The signal of a day moves the next one."""
    rng = np.random.default_rng(5)
    signal = {name: rng.normal(size=len(values)) for name, values in series.items()}
    moved = {name: values + 2 * values.std() * np.roll(signal[name], 1) for name, values in series.items()}
    truth = table(moved, signal=signal)
    sales = truth.filter(pl.col("timestamp") < truth["timestamp"].unique().sort()[-2])
    model = fc.pretrained(NANO, sales, horizon=2, data={"past_covariates": ["signal"]})
    lasting, fading = effect_of(model).past
    assert fading.item() > lasting.item()
    first = pl.col("step") == 1
    plain, better = (fc.forecast(each, sales).frame.filter(first) for each in (replace(model, final=None), model))
    assert error(better, truth) < 0.7 * error(plain, truth)


def test_text_and_static_covariates_are_named_and_left_out(
    sales: pl.DataFrame, caplog: pytest.LogCaptureFixture
) -> None:
    more = sales.with_columns(kind=pl.lit("flyer"), city=pl.lit("A"))
    data = {"known_covariates": ["promo", "kind"], "static_covariates": ["city"], "lags": [7]}
    model = fc.pretrained(NANO, more, horizon=3, data=data)
    assert "kind: text" in caplog.text
    assert "data.static_covariates and data.lags" in caplog.text or "data.static_covariates, data.lags" in caplog.text
    assert model.data.known_covariates == ("promo",)
    assert fc.forecast(model, more).frame.height == 3 * N


def test_training_reaches_the_coefficients_and_forecasts_the_first_origin_alike(
    sales: pl.DataFrame, model: Artifact
) -> None:
    network = model.latest.network
    assert isinstance(network, UniversalForecaster)
    data, length = PanelTensors.of(model.read(sales.lazy()).panel, network), network.shape.segment_length
    batch = data.gather(*torch.tensor([[0, 1], [120, 119], [200, 200]]), **window_sizes(network, 2 * length))
    origins = torch.tensor([0, length])
    alone = network(batch, origins)
    joint = network.train()(batch, origins)
    network.eval()
    effect = effect_of(model)
    for parameter in effect.parameters():
        parameter.grad = None
    joint.quantiles.square().mean().backward()  # type: ignore[no-untyped-call]
    assert effect.known.grad is not None
    assert effect.known.grad.abs().sum() > 0
    network.zero_grad()
    first, expected = (
        output.quantiles[:, 0] * output.frame.divisor[:, :1, None] + output.frame.location[:, :1, None]
        for output in (joint, alone)
    )
    scale = model.latest.network.interval_scale
    middle = first.shape[-1] // 2
    torch.testing.assert_close(first[..., middle], expected[..., middle], rtol=1e-3, atol=1e-2)
    assert float(scale) >= 1


def test_missing_columns_move_nothing() -> None:
    effect = CovariateEffect(1, 1)
    effect.set_coefficients(torch.tensor([2.0, 1.0, 1.0]))
    values = torch.arange(40.0).repeat(2, 1)
    columns = Columns(torch.full((2, 43, 1), torch.nan), torch.full((2, 40, 1), torch.nan))
    shift = effect(values, torch.ones_like(values, dtype=torch.bool), columns, torch.tensor([39]), 7)
    assert not shift.history.any()
    assert shift.ahead.shape == (2, 1, 3)
    assert not shift.ahead.any()


@pytest.mark.parametrize("known", [True, False])
def test_a_graph_of_it_reads_the_covariates(sales: pl.DataFrame, known: bool) -> None:
    pytest.importorskip("onnxruntime", reason="gatecast[onnx] is not installed")
    from forecast.models.runtime.onnx import OnnxForecaster

    data = {"known_covariates" if known else "past_covariates": ["promo"]}
    model = fc.pretrained(NANO, sales if known else sales.drop_nulls("target"), horizon=HORIZON, data=data)
    effect_of(model).set_coefficients(torch.tensor([0.5] if known else [0.5, 0.5]))
    panel, windows = model.read(sales.lazy()).panel, WindowIndex(np.arange(N), np.full(N, STEPS - 1))
    graph = predict(model.latest, panel, windows, forward=OnnxForecaster(model.latest.network)).tuned
    np.testing.assert_allclose(graph, predict(model.latest, panel, windows).tuned, rtol=1e-3)
