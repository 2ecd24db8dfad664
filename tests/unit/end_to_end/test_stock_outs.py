"""Stock-outs and planned closures from training to backtests and scores."""

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

import forecast as fc
from forecast.artifact import load
from forecast.backtesting.backtest import backtest
from forecast.backtesting.result import Contender
from forecast.config import BacktestSettings, ScoreOutput, ScoreSettings
from forecast.data.files import locked
from forecast.data.ingest.loaded import Loaded
from forecast.prediction.from_table import example
from forecast.scoring.job import ScoreJob
from forecast.training.result import FitResult

VALUES = ["mean", *(f"q{k}0" for k in range(1, 10))]
SETTINGS = BacktestSettings(n_windows=2)
Read = Callable[..., Loaded]


@pytest.fixture(scope="module")
def sales(table: Callable[..., pl.DataFrame], weekly: Callable[..., dict[str, np.ndarray]]) -> pl.DataFrame:
    """Eight series with stock-outs of a week, at the end of one and at the start of another."""
    rng, series = np.random.default_rng(3), weekly(8, 120)
    stock = {name: np.ones(120) for name in series}
    for name in series:
        begin = int(rng.integers(20, 90))
        stock[name][begin : begin + 7] = 0
    stock["s00"][-5:], stock["s01"][:6] = 0, 0
    return table(series, in_stock=stock)


def unsold(table: pl.DataFrame, value: float) -> pl.DataFrame:
    """The table with `value` as the target where nothing was in stock."""
    closed = pl.col("in_stock") == 0
    return table.with_columns(target=pl.when(closed).then(value).otherwise("target"))


def ahead(table: pl.DataFrame, closed: dict[str, list[int]], steps: int = 7) -> pl.DataFrame:
    """The table with rows of the horizon; `closed` steps (from 1) of a series are 0."""
    last = table["timestamp"].max()
    rows = [
        (name, last + timedelta(days=step), int(step not in closed.get(name, [])))
        for name in table["series_id"].unique(maintain_order=True)
        for step in range(1, steps + 1)
    ]
    plan = pl.DataFrame(rows, ["series_id", "timestamp", "in_stock"], orient="row").cast(
        {"timestamp": pl.Datetime("us"), "in_stock": pl.Float64}
    )
    return pl.concat([table, plan], how="diagonal")


@pytest.fixture(scope="module")
def model(train: Callable[..., FitResult], loaded: Read, sales: pl.DataFrame) -> FitResult:
    return train(loaded(unsold(sales, 0.0), 7, available="in_stock"))


def test_what_is_sold_out_of_stock_has_no_influence_on_model_forecasts_and_metrics(
    train: Callable[..., FitResult], loaded: Read, sales: pl.DataFrame, model: FitResult, tmp_path: Path
) -> None:
    zeros, others = (loaded(unsold(sales, value), 7, available="in_stock") for value in (0.0, 55.5))
    assert zeros.digest == others.digest
    digests = [
        train(found, **settings).artifact.save(tmp_path / f"{name}")
        for name, (found, settings) in enumerate(
            [(zeros, {}), (others, {}), (zeros, {"max_steps": 3}), (others, {"max_steps": 3})]
        )
    ]
    assert digests[0] == digests[1] == model.artifact.save(tmp_path / "again")
    assert digests[2] == digests[3]
    scores = [
        backtest({"pretrained": Contender(model.artifact, found.panel)}, SETTINGS).scores for found in (zeros, others)
    ]
    assert_frame_equal(*scores)
    without = train(loaded(unsold(sales, 0.0), 7)).artifact
    assert without.save(tmp_path / "without") != digests[0]
    assert load(tmp_path / "0").data.available == "in_stock"


def test_closed_steps_are_zero_and_the_others_are_the_forecast_of_demand(model: FitResult, sales: pl.DataFrame) -> None:
    table = unsold(sales, 0.0)
    plan = ahead(table, {"s03": [1, 2], "s04": list(range(1, 8))})
    open_frame = fc.forecast(model.artifact, ahead(table, {})).frame
    frame = fc.forecast(model.artifact, plan).frame
    closed = (pl.col("series_id") == "s04") | ((pl.col("series_id") == "s03") & (pl.col("step") <= 2))
    assert frame.filter(closed)["source"].unique().to_list() == ["closed"]
    assert frame.filter(closed).select(VALUES).to_numpy().max() == 0
    assert_frame_equal(frame.filter(~closed), open_frame.filter(~closed))
    assert set(open_frame["source"]) == {"pretrained"}, "out of stock at the end is no end"
    calendar = plan.select("series_id", "timestamp", "in_stock")
    assert_frame_equal(fc.forecast(model.artifact, table.drop("in_stock"), known=calendar).frame, frame)
    paths = fc.sample_paths(model.artifact, plan, n=4)
    assert paths.filter(closed)["value"].to_list() == [0.0] * 9 * 4
    assert_frame_equal(paths.filter(~closed), fc.sample_paths(model.artifact, ahead(table, {}), n=4).filter(~closed))


def test_seasonal_naive_does_not_repeat_a_stock_out(model: FitResult, loaded: Read, sales: pl.DataFrame) -> None:
    table = unsold(sales, 0.0)
    panel = loaded(table, 7, available="in_stock").panel
    result = backtest({"pretrained": Contender(model.artifact, panel)}, BacktestSettings(n_windows=4))
    naive = result.forecasts.filter(pl.col("model") == "seasonal_naive")
    assert naive.filter(pl.col("series_id") == "s00")["q50"].min() > 1
    masked = set(table.filter(in_stock=0).select("series_id", "timestamp").rows())
    unobserved = {row[:2] for row in naive.select("series_id", "timestamp", "target").rows() if row[2] is None}
    assert unobserved == masked & set(naive.select("series_id", "timestamp").rows())


def test_a_model_with_the_column_is_compared_with_one_without_on_the_same_cells(
    train: Callable[..., FitResult], loaded: Read, sales: pl.DataFrame, model: FitResult
) -> None:
    never = sales.filter(series_id="s07").with_columns(series_id=pl.lit("s99"), in_stock=0.0)
    table = unsold(pl.concat([sales, never]), 0.0)
    masked, whole = loaded(table, 7, available="in_stock", max_reject_share=1.0), loaded(table, 7)
    other = train(whole).artifact
    assert (masked.panel.start != whole.panel.start[:-1]).any()
    contenders = [("a", Contender(model.artifact, masked.panel)), ("b", Contender(other, whole.panel))]
    first, second = (backtest(dict(order), SETTINGS) for order in (contenders, contenders[::-1]))
    keys = ["series_id", "timestamp", "cutoff", "model"]
    for name in "ab":
        frames = [result.forecasts.filter(model=name).sort(keys) for result in (first, second)]
        assert_frame_equal(*frames)
    alone = backtest({"a": Contender(model.artifact, masked.panel)}, SETTINGS)
    assert_frame_equal(alone.forecasts.filter(model="a"), first.forecasts.filter(model="a"))


def test_a_night_on_which_all_is_closed_is_published_and_a_changed_plan_is_written_again(
    model: FitResult, loaded: Read, sales: pl.DataFrame, tmp_path: Path
) -> None:
    table = unsold(sales, 0.0)
    names = {"model": "m", "model_version": "3", "model_digest": "ab12"}

    def write(closed: dict[str, list[int]]) -> dict[str, Any]:
        found = loaded(ahead(table, closed), 7, available="in_stock")
        settings = ScoreSettings(shard_size=3, min_model_share=0.9)
        job = ScoreJob(model.artifact, found, settings, ScoreOutput(path=str(tmp_path)), names)
        with locked(tmp_path):
            job.write(found.panel.last_index)
        return json.loads(next((tmp_path / "manifests").glob("*.json")).read_text())

    every = {f"s{k:02d}": [1] for k in range(8)}
    assert write(every | {"s04": list(range(1, 8))})["sources"] == {"closed": 1, "pretrained": 7}
    frames = list(tmp_path.glob("forecasts/*/*.parquet"))
    assert pl.read_parquet(frames, hive_partitioning=False).filter(step=1)["mean"].to_list() == [0.0] * 8
    assert write({"s04": [2]})["sources"] == {"pretrained": 8}


def test_the_example_of_a_model_has_the_column(model: FitResult) -> None:
    table, frame = example(model.artifact)
    assert table["in_stock"].to_list() == [1] * table.height
    assert set(frame["source"]) <= {"pretrained", "seasonal_naive", "last_value"}
