"""Weights from the loss to the gate: without a unit, and 0 does not count."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from forecast.backtesting.backtest import backtest
from forecast.backtesting.result import Contender
from forecast.config import BacktestSettings, MonitorSettings, ScoreOutput, ScoreSettings, SinkConfig
from forecast.data.ingest.loaded import Loaded
from forecast.metrics.summaries import summarise
from forecast.monitoring.evaluation import monitor
from forecast.monitoring.forecasts import ScoredForecasts
from forecast.prediction.from_table import example, forecast
from forecast.promotion import compare
from forecast.scoring.job import ScoreJob
from forecast.training.result import FitResult

Read = Callable[..., Loaded]
Train = Callable[..., FitResult]
MORE = {"max_steps": 3}


@pytest.fixture(scope="module")
def sales(table: Callable[..., pl.DataFrame], weekly: Callable[..., dict[str, np.ndarray]]) -> pl.DataFrame:
    rng, series = np.random.default_rng(4), weekly(8, 120)
    revenue = {name: np.full(120, float(k)) + rng.random(120) * (k > 0) for k, name in enumerate(series)}
    return table(series, revenue=revenue)


def weights_of(result: FitResult) -> torch.Tensor:
    return torch.cat([values.flatten().double() for values in result.artifact.network.state_dict().values()])


@pytest.mark.parametrize("fit", [{}, MORE])
def test_the_unit_of_weights_does_not_matter_and_equal_weights_are_none(
    train: Train, loaded: Read, sales: pl.DataFrame, fit: dict[str, Any]
) -> None:
    plain, weighted, scaled, thousand, equal = (
        train(loaded(sales.with_columns(revenue=revenue), 7, **data), **fit)
        for revenue, data in (
            (pl.col("revenue"), {}),
            (pl.col("revenue"), {"weight": "revenue"}),
            (pl.col("revenue") * 2.0**20, {"weight": "revenue"}),
            (pl.col("revenue") * 1000, {"weight": "revenue"}),
            (pl.lit(7.0), {"weight": "revenue"}),
        )
    )
    assert torch.equal(weights_of(weighted), weights_of(scaled))
    torch.testing.assert_close(weights_of(weighted), weights_of(thousand), rtol=1e-3, atol=1e-4)
    assert torch.equal(weights_of(equal), weights_of(plain))
    assert not torch.equal(weights_of(weighted), weights_of(plain))


def test_a_series_of_weight_zero_has_no_influence_on_the_fit_and_is_forecast(
    train: Train, loaded: Read, sales: pl.DataFrame
) -> None:
    rng = np.random.default_rng(0)
    noise = pl.Series(rng.permutation(sales.filter(series_id="s00")["target"].to_numpy()))
    other = pl.concat(
        [sales.filter(series_id="s00").with_columns(target=noise), sales.filter(pl.col("series_id") != "s00")]
    )
    assert sales.filter(series_id="s00")["revenue"].max() == 0
    model, changed = (train(loaded(part, 7, weight="revenue")) for part in (sales, other))
    assert torch.equal(model.artifact.network.skip, changed.artifact.network.skip)
    frame = forecast(model.artifact, loaded(sales, 7, weight="revenue").panel).frame
    assert frame["series_id"].n_unique() == 8
    assert set(frame["source"]) == {"pretrained"}


def test_the_example_of_a_model_needs_no_weights(
    train: Train, loaded: Read, sales: pl.DataFrame, caplog: pytest.LogCaptureFixture
) -> None:
    rows, frame = example(train(loaded(sales, 7, weight="revenue")).artifact)
    assert "revenue" not in rows.columns
    assert frame.height == 7
    assert "data.weight" not in caplog.text


def test_a_backtest_has_weighted_metrics_beside_the_others_and_promotion_takes_them(
    train: Train, loaded: Read, sales: pl.DataFrame
) -> None:
    found = loaded(sales, 7, weight="revenue")
    result = backtest({"pretrained": Contender(train(found).artifact, found.panel)}, BacktestSettings(n_windows=3))
    plain = loaded(sales, 7)
    without = backtest({"pretrained": Contender(train(plain).artifact, plain.panel)}, BacktestSettings(n_windows=3))
    assert [name for name in result.summary.columns if not name.startswith("w_")] == without.summary.columns
    scores = result.scores
    own = scores.filter(model="pretrained", series_id="s03")["weight"].to_numpy()
    assert ((own >= 3) & (own <= 4)).all()
    for name, (part, whole) in {"wql": ("pinball", "abs_target"), "mase": ("mase", None)}.items():
        rows = scores.filter(model="pretrained")
        weight, values = rows["weight"].to_numpy(), rows[part].to_numpy()
        expected = (weight * values).sum() / (weight * (rows[whole].to_numpy() if whole else 1)).sum()
        assert result.summary.filter(model="pretrained")[f"w_{name}"].item() == pytest.approx(expected)
    # Better where it counts, worse elsewhere.
    worse = scores.filter(model="seasonal_naive").with_columns(
        pl.when(pl.col("series_id") == "s07")
        .then(pl.col("mase", "pinball") * 0.1)
        .otherwise(pl.col("mase", "pinball") * 1.1),
        model=pl.lit("fine_tuned"),
    )
    both = pl.concat([scores, worse])
    assert "weighted MASE" in str(compare(both, "fine_tuned", "seasonal_naive"))


def test_monitor_counts_steps_by_their_weights(train: Train, loaded: Read, sales: pl.DataFrame, tmp_path: Path) -> None:
    only = sales.with_columns(revenue=pl.when(pl.col("series_id") == "s05").then(3.0).otherwise(0.0))
    found = loaded(only, 7, weight="revenue")
    artifact = train(found).artifact
    names = {"model": "m", "model_version": "1", "model_digest": "ab12"}
    job = ScoreJob(artifact, found, ScoreSettings(), ScoreOutput(path=str(tmp_path)), names)
    for back in (10, 20):
        job.write(found.panel.last_index - back)
    measured = MonitorSettings(recent=15, history=15)
    alone = replace(found, panel=found.panel.take(np.array([5])))
    whole, single = (
        monitor(artifact, part, ScoredForecasts(SinkConfig(path=str(tmp_path))), None, measured).metrics.filter(
            group="all", model="forecast"
        )
        for part in (found, alone)
    )
    assert whole["w_mase"].to_list() == pytest.approx(single["mase"].to_list())
    assert whole["w_wql"].to_list() == pytest.approx(single["wql"].to_list())
    assert whole["mase"].to_list() != pytest.approx(single["mase"].to_list())


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), factor=st.floats(1e-6, 1e6))
def test_multiplying_all_weights_changes_no_metric(seed: int, factor: float) -> None:
    rng = np.random.default_rng(seed)
    names = ("mase", "smape", "rmsse", "pinball", "abs_target", "abs_error", "error", "covered", "width")
    scores = pl.DataFrame(
        {
            "series_id": [f"s{k}" for k in range(6)],
            "model": ["pretrained", "naive"] * 3,
            **{name: rng.random(6) for name in names},
            "n_steps": 5,
            "weight": rng.random(6) * (rng.random(6) > 0.3),
        }
    ).with_columns(mase=pl.when(pl.int_range(pl.len()) == 0).then(np.nan).otherwise("mase"))
    scaled = scores.with_columns(weight=pl.col("weight") * factor)
    assert_frame_equal(summarise(scores), summarise(scaled))
