"""Rolling origins on tiny panels."""

import importlib
from collections.abc import Callable

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from forecast.backtest import BacktestResult, Contender, backtest, rolling_cutoffs
from forecast.config import BacktestSettings
from forecast.data.load import Loaded
from forecast.errors import ConfigError, DataError
from forecast.fit import FitResult
from forecast.predict import forecast

LEVELS = [k / 10 for k in range(1, 10)]
QUANTILES = [f"q{k}0" for k in range(1, 10)]
SETTINGS = BacktestSettings(n_windows=4)


@pytest.fixture(scope="module")
def result(trained: FitResult, weekly_loaded: Loaded) -> BacktestResult:
    return backtest({"pretrained": Contender(trained.artifact, weekly_loaded.panel)}, SETTINGS)


def test_cutoffs_are_the_latest_with_a_full_horizon(weekly_loaded: Loaded) -> None:
    panel = weekly_loaded.panel
    first = int(panel.start.min())
    found = rolling_cutoffs(panel, horizon=7, settings=SETTINGS, trained_until=0)
    assert [cutoff - first for cutoff in found] == [131, 138, 145, 152]
    daily = BacktestSettings(n_windows=3, step_size=1)
    found = rolling_cutoffs(panel, horizon=7, settings=daily, trained_until=0)
    assert [cutoff - first for cutoff in found] == [150, 151, 152]


def test_cutoffs_that_training_has_seen_are_refused_by_name(trained: FitResult, weekly_loaded: Loaded) -> None:
    contenders = {"pretrained": Contender(trained.artifact, weekly_loaded.panel)}
    with pytest.raises(DataError) as caught:
        backtest(contenders, BacktestSettings(n_windows=6))
    message = str(caught.value)
    assert "trained on data up to 2024-05-11" in message
    assert "2 of 6 cutoffs" in message
    assert "2024-04-27 00:00:00, 2024-05-04 00:00:00)" in message
    assert "lower backtest.n_windows" in message
    with pytest.raises(DataError, match=r"60 windows 7 steps apart begin before the panel"):
        backtest(contenders, BacktestSettings(n_windows=60))


def test_scores_are_the_metrics_of_the_forecasts(result: BacktestResult, weekly_loaded: Loaded) -> None:
    history = weekly_loaded.panel.frame()
    for row in result.scores.iter_rows(named=True):
        key = pl.col("series_id") == row["series_id"]
        part = result.forecasts.filter(key, pl.col("cutoff") == row["cutoff"], pl.col("model") == row["model"])
        assert part["step"].to_list() == [*range(1, 8)]
        y, q = part["target"].to_numpy(), part.select(QUANTILES).to_numpy()
        seen = history.filter(key, pl.col("timestamp") <= row["cutoff"])["target"].cast(pl.Float64).to_numpy()
        scale = np.nanmean(np.abs(seen[7:] - seen[:-7]))
        error = y[:, None] - q
        pinball = 2 * np.maximum(np.array(LEVELS) * error, (np.array(LEVELS) - 1) * error).mean(1)
        expected = {
            "mase": np.abs(y - q[:, 4]).mean() / scale,
            "smape": (200 * np.abs(y - q[:, 4]) / (np.abs(y) + np.abs(q[:, 4]))).mean(),
            "pinball": pinball.sum(),
            "covered": ((y >= q[:, 0]) & (y <= q[:, 8])).sum(),
            "n_steps": 7,
        }
        for name, value in expected.items():
            assert row[name] == pytest.approx(value, rel=1e-6), name


def test_the_summary_is_of_the_scores_and_the_model_beats_seasonal_naive(result: BacktestResult) -> None:
    summary = {row["model"]: row for row in result.summary.iter_rows(named=True)}
    assert set(summary) == {"seasonal_naive", "pretrained"}
    for model, row in summary.items():
        part = result.scores.filter(pl.col("model") == model)
        assert row["mase"] == pytest.approx(part["mase"].mean())
        assert row["wql"] == pytest.approx(part["pinball"].sum() / part["abs_target"].sum())
        assert row["n_windows"] == len(part) == 32
    assert summary["pretrained"]["mase"] < summary["seasonal_naive"]["mase"]
    assert summary["pretrained"]["wql"] < summary["seasonal_naive"]["wql"]


def test_forecasts_are_those_of_scoring_at_the_same_cutoff(
    result: BacktestResult, trained: FitResult, weekly_loaded: Loaded
) -> None:
    cutoffs = rolling_cutoffs(weekly_loaded.panel, horizon=7, settings=SETTINGS, trained_until=0)
    keys = ["series_id", "timestamp", "cutoff", "step"]
    for cutoff in cutoffs:
        made = forecast(trained.artifact, weekly_loaded.panel, cutoff=cutoff).frame
        ours = result.forecasts.filter(pl.col("model") == "pretrained").join(made, on=keys, suffix="_scored")
        assert len(ours) == 56
        np.testing.assert_allclose(ours.select(QUANTILES), ours.select(f"{q}_scored" for q in QUANTILES), rtol=1e-5)


def test_blocks_of_windows_change_no_score(
    result: BacktestResult, trained: FitResult, weekly_loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.import_module("forecast.backtest"), "_BLOCK", 5)
    blocks = backtest({"pretrained": Contender(trained.artifact, weekly_loaded.panel)}, SETTINGS)
    for name in ("scores", "forecasts", "summary", "skipped"):
        # Batches of another size round otherwise.
        assert_frame_equal(getattr(blocks, name), getattr(result, name), rel_tol=1e-5, abs_tol=1e-5)


def test_series_without_a_scored_window_are_named(
    train: Callable[..., FitResult], table: Callable[..., pl.DataFrame], loaded: Callable[..., Loaded]
) -> None:
    rng = np.random.default_rng(0)
    found = loaded(table({"a": rng.normal(size=160), "gone": rng.normal(size=50), "new": [1.0]}, late={"new": 159}), 7)
    made = backtest({"m": Contender(train(found).artifact, found.panel)}, SETTINGS)
    assert made.skipped["series_id"].to_list() == ["gone", "new"]
    assert set(made.scores["series_id"]) == {"a"}


def test_models_that_forecast_something_else_are_not_compared(
    trained: FitResult, train: Callable[..., FitResult], weekly_loaded: Loaded
) -> None:
    panel = weekly_loaded.panel
    other = train(weekly_loaded, model={"quantile_levels": (0.2, 0.5, 0.8)}).artifact
    contenders = {"a": Contender(trained.artifact, panel), "b": Contender(other, panel)}
    with pytest.raises(ConfigError, match=r"b forecasts quantiles 0.2, 0.5, 0.8 of 7 steps .* can't be compared"):
        backtest(contenders, SETTINGS)
    finer = tuple(level + 0.01 if level != 0.5 else level for level in LEVELS)
    same_count = train(weekly_loaded, model={"quantile_levels": finer}).artifact
    with pytest.raises(ConfigError, match=r"can't be compared"):
        backtest({"a": Contender(trained.artifact, panel), "b": Contender(same_count, panel)}, SETTINGS)
