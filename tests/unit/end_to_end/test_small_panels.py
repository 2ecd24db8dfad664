"""A path, a frequency and a horizon are enough for the panels most people have: few series, short ones."""

from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import forecast as fc
from forecast.artifact import load
from forecast.errors import DataError
from forecast.models.network.ensemble import members_of
from forecast.models.runtime.onnx import OnnxForecaster, example_windows
from forecast.training.result import FitResult

CLOSED = {"max_steps": 0}
LEVELS = [f"q{level}" for level in range(10, 100, 10)]


def panel(n_series: int, length: int, freq: str, *, season: int = 1, seed: int = 0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    moments = pl.datetime_range(datetime(1990, 1, 1), datetime(2060, 1, 1), freq, eager=True)[:length]
    wave = 10 * np.sin(2 * np.pi * np.arange(length) / season) if season > 1 else 0.0
    values = 100 + 3 * rng.normal(size=(n_series, length)).cumsum(1) + wave
    parts = (
        pl.DataFrame({"series_id": f"s{row:03d}", "timestamp": moments, "target": values[row]})
        for row in range(n_series)
    )
    return pl.concat(parts)


def train(table: pl.DataFrame, horizon: int, freq: str, **fit: object) -> FitResult:
    return fc.train(table, horizon=horizon, data={"freq": freq}, fit=CLOSED | fit)


@pytest.mark.parametrize(
    ("n_series", "length", "horizon", "freq", "season"),
    [
        (1, 2, 3, "1mo", 1),
        (3, 2, 12, "1y", 1),
        (2, 3, 12, "1mo", 1),
        (1, 5, 12, "1mo", 1),
        (1, 24, 12, "1mo", 12),
        (13, 37, 12, "1mo", 12),
        (20, 54, 6, "1mo", 12),
        (12, 28, 8, "1q", 4),
        (5, 20, 6, "1y", 1),
        (1, 160, 13, "1w", 52),
        (2, 30, 28, "1d", 7),
    ],
)
def test_any_panel_of_two_observations_is_trained_on_and_forecast(
    n_series: int, length: int, horizon: int, freq: str, season: int
) -> None:
    table = panel(n_series, length, freq, season=season)
    result = train(table, horizon, freq)
    frame = fc.forecast(result.artifact, table).frame
    assert frame.height == n_series * horizon
    assert set(frame["source"]) == {"pretrained"}
    quantiles = frame.select(LEVELS).to_numpy()
    assert np.isfinite(quantiles).all()
    assert (np.diff(quantiles, axis=1) >= 0).all()
    assert (quantiles[:, -1] > quantiles[:, 0]).all()
    values = table["target"].to_numpy()
    reach = 10 * (values.max() - values.min())
    assert (quantiles > values.min() - reach).all()
    assert (quantiles < values.max() + reach).all()


def test_one_observation_is_too_few_and_says_how_many_are_needed() -> None:
    with pytest.raises(DataError, match=r"the longest of 1 has 1 steps, and .* need 2; give more rows"):
        train(panel(1, 1, "1mo"), 3, "1mo")


def test_numbers_of_windows_that_are_set_are_refused_with_arithmetic_that_adds_up() -> None:
    table = panel(4, 54, "1mo", season=12)
    with pytest.raises(DataError, match=r"the longest of 4 has 54 steps, and 8 held-out windows.* need 61"):
        train(table, 6, "1mo", holdout_windows=8, validation_windows=1)
    assert train(panel(4, 61, "1mo"), 6, "1mo", holdout_windows=8, validation_windows=1).artifact


def test_smoothing_is_what_a_short_panel_begins_at_and_is_left_for_what_is_surely_better() -> None:
    short = train(panel(3, 40, "1mo", season=12), 6, "1mo")
    assert short.summary["smoothing_share"] > 0
    assert short.artifact.network.shape.smoothing
    rng = np.random.default_rng(0)
    # No filter and no season knows of a wave of eleven steps.
    moments = pl.datetime_range(datetime(1990, 1, 1), datetime(2060, 1, 1), "1mo", eager=True)[:240]
    waves = 100 + 20 * np.sin(2 * np.pi * (np.arange(240) + rng.integers(0, 11, (40, 1))) / 11)
    waves += 0.1 * rng.normal(size=waves.shape)
    parts = [
        pl.DataFrame({"series_id": f"s{row}", "timestamp": moments, "target": wave}) for row, wave in enumerate(waves)
    ]
    line = train(pl.concat(parts), 6, "1mo")
    assert line.summary["skip_penalty"] != "prior"
    made = fc.forecast(line.artifact, pl.concat(parts)).frame.sort("series_id", "step")
    assert made.height == 240


def test_intervals_of_series_that_differ_hold_about_what_they_say() -> None:
    rng = np.random.default_rng(0)
    moments = pl.datetime_range(datetime(2024, 1, 1), datetime(2025, 1, 1), "1h", eager=True)[:432]
    # Half of them repeat each day but for noise; the others have a cycle that no season of a day describes.
    waves = [5 * np.sin(2 * np.pi * np.arange(432) / each) for each in [24] * 10 + [25 + 3 * k for k in range(10)]]
    table = pl.concat(
        pl.DataFrame({"series_id": f"s{row:02d}", "timestamp": moments, "target": 20 + wave + rng.normal(0, 0.5, 432)})
        for row, wave in enumerate(waves)
    )
    fit = CLOSED | {"holdout_windows": 8, "validation_windows": 2}
    artifact = fc.train(table, horizon=12, context_length=48, data={"freq": "1h"}, fit=fit).artifact
    made = fc.backtest(artifact, table, n_windows=8).forecasts.filter(model="pretrained")
    inside = made["target"].is_between(made["q10"], made["q90"])
    assert 0.68 < inside.mean() < 0.9  # 0.54 in units of seasonal differences.


def test_without_smoothing_it_is_no_part_of_the_model() -> None:
    table = panel(3, 40, "1mo", season=12)
    plain = fc.train(table, horizon=6, data={"freq": "1mo"}, model={"smoothing": False}, fit=CLOSED)
    assert plain.summary["smoothing_share"] == 0
    assert not any("smoothing" in name for name in plain.artifact.network.state_dict())


def test_a_smoothing_model_is_the_same_when_it_is_read_again(tmp_path: object) -> None:
    table = panel(3, 40, "1mo", season=12)
    artifact = train(table, 6, "1mo").artifact
    artifact.save(f"{tmp_path}/model")
    again = fc.load(f"{tmp_path}/model")
    assert again.digest() == artifact.digest()
    assert fc.forecast(again, table).frame.equals(fc.forecast(artifact, table).frame)


def test_the_last_horizon_of_a_short_panel_says_something_to_the_forecast_and_nothing_to_the_evaluation() -> None:
    table = panel(6, 80, "1mo", season=12)
    result = train(table, 6, "1mo")
    artifact = result.artifact
    assert artifact.trained_until < artifact.grid.floor(table["timestamp"].max())
    last = pl.col("timestamp") > artifact.grid.timestamps(np.array([artifact.trained_until]))[0]
    other = table.with_columns(pl.when(last).then(pl.col("target") + 50).otherwise("target").alias("target"))
    again = train(other, 6, "1mo")
    assert again.summary["val/loss"] == result.summary["val/loss"]
    assert not fc.forecast(again.artifact, other).frame.equals(fc.forecast(artifact, table).frame)


def test_the_graph_of_a_smoothing_model_forecasts_as_the_network_does() -> None:
    pytest.importorskip("onnxruntime")
    network = members_of(train(panel(3, 30, "1q", season=4), 4, "1q").artifact.network)[0]
    assert network.shape.smoothing
    batch, origins = example_windows(network, 5), torch.zeros(1, dtype=torch.long)
    made, expected = OnnxForecaster(network)(batch, origins), network(batch, origins)
    torch.testing.assert_close(made.arguments, expected.arguments, rtol=1e-5, atol=1e-5)


def amounts(lowest: float) -> pl.DataFrame:
    """Return days of amounts, about a third of them zeros, moved so that the least is `lowest`."""
    rng = np.random.default_rng(0)
    values = np.maximum(rng.normal(1.0, 2.0, size=(8, 120)), 0.0) + lowest
    days = pl.datetime_range(datetime(2024, 1, 1), datetime(2025, 1, 1), "1d", eager=True)[:120]
    return pl.concat(
        pl.DataFrame({"series_id": f"s{row}", "timestamp": days, "target": values[row]}) for row in range(8)
    )


def test_forecasts_of_amounts_are_none_below_zero(tmp_path: Path) -> None:
    table = amounts(0.0)
    artifact = train(table, 7, "1d").artifact
    frame = fc.forecast(artifact, table).frame
    quantiles = frame.select(LEVELS).to_numpy()
    assert quantiles.min() == 0
    assert (np.diff(quantiles, axis=1) >= 0).all()
    assert (frame["mean"] >= 0).all()
    artifact.save(tmp_path)
    assert fc.forecast(load(tmp_path), table).frame.equals(frame)
    # What lies above 0 is forecast as it would be anywhere else.
    moved = amounts(-5.0)
    plain = fc.forecast(train(moved, 7, "1d").artifact, moved).frame.select(LEVELS).to_numpy() + 5
    assert plain.min() < 0
    np.testing.assert_allclose(quantiles, np.maximum(plain, 0), atol=1e-3)
