"""Horizons other than the trained one: a prefix of it, and beyond it."""

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
from pydantic import ValidationError

from forecast.artifact import Artifact
from forecast.backtesting.backtest import backtest
from forecast.backtesting.result import Contender
from forecast.config import BacktestSettings, RefreshConfig, ScoreConfig, ScoreOutput, ScoreSettings
from forecast.data.files import locked
from forecast.data.ingest.loaded import Loaded
from forecast.data.sources.open import Tables
from forecast.errors import ConfigError, DataError
from forecast.models.inputs.batch import PanelTensors
from forecast.prediction.from_table import forecast
from forecast.prediction.horizons import with_horizon
from forecast.prediction.paths import with_samples
from forecast.prediction.rolling import _Roller
from forecast.scoring.job import ScoreJob
from forecast.training.result import FitResult
from pipelines.verbs import digest_text

Train = Callable[..., FitResult]
MONDAY = datetime(2024, 1, 1)
NAMES = {"model": "m", "model_version": "3", "model_digest": "ab12"}
QUANTILES = [f"q{level}0" for level in range(1, 10)]


def tables(table: pl.DataFrame, steps: int) -> Tables:
    """The first `steps` days of a table, and promo of three weeks more."""
    end = MONDAY + timedelta(days=steps - 1)
    known = table.select("series_id", "timestamp", "promo").filter(pl.col("timestamp") <= end + timedelta(days=21))
    return Tables(table.filter(pl.col("timestamp") <= end).drop("promo").lazy(), known.lazy(), None)


@pytest.fixture(scope="module")
def reader(trained: FitResult) -> Artifact:
    """The trained model, whose table has its known covariates beside it."""
    return trained.artifact


def rows(artifact: Artifact, loaded: Loaded) -> pl.DataFrame:
    return forecast(artifact, loaded.panel).frame


@pytest.mark.parametrize("horizon", [1, 3, 6])
def test_a_shorter_horizon_is_a_prefix(reader: Artifact, weekly_table: pl.DataFrame, horizon: int) -> None:
    shorter, given = with_horizon(reader, horizon), tables(weekly_table, 130)
    whole = rows(reader, reader.read(given))
    assert rows(shorter, shorter.read(given)).equals(whole.filter(pl.col("step") <= horizon))


def test_a_longer_horizon_begins_with_the_trained_one(reader: Artifact, weekly_table: pl.DataFrame) -> None:
    longer, given = with_horizon(reader, 17), tables(weekly_table, 130)
    whole = rows(longer, longer.read(given))
    assert whole.filter(pl.col("step") <= 7).equals(rows(reader, reader.read(given)))
    assert whole["step"].to_list() == list(range(1, 18)) * whole["series_id"].n_unique()
    stamps = whole.select(pl.col("timestamp") - pl.duration(days="step") == pl.col("cutoff")).to_series()
    assert stamps.all()
    assert set(whole["source"]) == {"pretrained"}
    quantiles = whole.select(QUANTILES).to_numpy()
    assert (np.diff(quantiles) >= 0).all()


def test_known_covariates_of_the_rolled_steps_matter(reader: Artifact, weekly_table: pl.DataFrame) -> None:
    longer, given = with_horizon(reader, 14), tables(weekly_table, 130)
    assert given.known is not None
    late = pl.col("timestamp") > MONDAY + timedelta(days=129 + 10)
    other = pl.when(late).then(1 - pl.col("promo")).otherwise("promo")
    changed = replace(given, known=given.known.with_columns(promo=other))
    first, second = (rows(longer, longer.read(table)).sort("series_id", "step") for table in (given, changed))
    same = (first["mean"] - second["mean"]).abs() < 1e-9
    assert same.filter(first["step"] <= 10).all()
    assert not same.filter(first["step"] > 10).any()
    beyond = pl.col("timestamp") > MONDAY + timedelta(days=129 + 14)
    cut = replace(given, known=given.known.filter(~beyond))
    assert rows(longer, longer.read(cut)).sort("series_id", "step").equals(first)


def test_nothing_after_the_cutoff_is_read(reader: Artifact, weekly_table: pl.DataFrame) -> None:
    longer = with_horizon(reader, 14)
    cutoff = MONDAY + timedelta(days=129)
    late = pl.col("timestamp") > cutoff
    columns = [pl.when(late).then(pl.col(name) * 7 + 3).otherwise(name).alias(name) for name in ("target", "rain")]
    later = weekly_table.with_columns(columns)
    frames = []
    for table in (weekly_table, later):
        loaded = longer.read(table.lazy())
        frames.append(forecast(longer, loaded.panel, cutoff=loaded.panel.grid.floor(cutoff)).frame)
    assert frames[0].equals(frames[1])


def test_a_series_does_not_depend_on_the_others(reader: Artifact, weekly_table: pl.DataFrame) -> None:
    longer = with_horizon(reader, 14)
    whole = rows(longer, longer.read(weekly_table.lazy()))
    alone = rows(longer, longer.read(weekly_table.filter(pl.col("series_id") == "s02").lazy()))
    same = whole.filter(pl.col("series_id") == "s02")
    np.testing.assert_allclose(alone.select("mean", *QUANTILES), same.select("mean", *QUANTILES), rtol=1e-5)


@pytest.fixture(scope="module")
def walks(table: Callable[..., pl.DataFrame], loaded: Callable[..., Loaded], train: Train) -> tuple[Artifact, Loaded]:
    """A closed form of random walks, whose errors grow with the root of the step."""
    steps = np.random.default_rng(0).normal(size=(60, 400)).cumsum(1)
    series = {f"s{number:02d}": row for number, row in enumerate(steps)}
    panel = loaded(table(series), 7, calendar=False, season_length=1)
    return train(panel, model={"init": None}).artifact, panel


def test_intervals_of_a_random_walk_widen_with_the_root_of_the_step(walks: tuple[Artifact, Loaded]) -> None:
    artifact, panel = walks
    frame = rows(with_horizon(artifact, 28), panel)
    width = frame.group_by("step").agg((pl.col("q90") - pl.col("q10")).mean()).sort("step")["q90"].to_numpy()
    np.testing.assert_allclose(width[13::7] / width[6], np.sqrt([2, 3, 4]), rtol=0.1)


def test_paths_continue_the_history_of_a_window(walks: tuple[Artifact, Loaded]) -> None:
    """The second block from a path is the forecast of a panel in which the path has come true."""
    artifact, loaded = walks
    panel = loaded.panel
    roller = _Roller(with_horizon(artifact, 14), panel, None, None, "cpu")
    index = np.arange(3)
    cutoff = np.full(3, 300)
    series, last = torch.from_numpy(index), torch.from_numpy(cutoff)
    batch = roller._batch(series, last)
    paths = torch.from_numpy(panel.target.reshape(60, 400)[:3, 301:308])
    continued = roller._continue(batch, paths, 1).steps(slice(7, 7 + 28 + 7))
    data = PanelTensors.of(panel, artifact.network)
    actual = data.gather(series, last + 7, last + 8, context=28, span=1, horizon=7)
    for name in ("target", "observed", "there"):
        torch.testing.assert_close(getattr(continued, name), getattr(actual, name))


@pytest.mark.parametrize("model", [{"decoder": "segment"}, {"decoder": "autoregressive", "n_paths": 20}], ids=str)
@pytest.mark.trains
def test_other_decoders_are_rolled_too(weekly_loaded: Loaded, train: Train, model: dict[str, Any]) -> None:
    artifact = train(weekly_loaded, model=model, max_steps=10, learning_rate=2e-2).artifact
    frame = forecast(with_horizon(artifact, 14), weekly_loaded.panel, cutoff=weekly_loaded.panel.last_index - 14).frame
    wide = frame.group_by("step").agg((pl.col("q90") - pl.col("q10")).mean()).sort("step")["q90"]
    assert set(frame["source"]) == {"pretrained"}
    assert wide.tail(7).mean() > wide.head(1).item()  # type: ignore[operator]


def test_a_backtest_judges_the_rolled_horizon(walks: tuple[Artifact, Loaded]) -> None:
    artifact, loaded = walks
    panel = loaded.panel
    longer = with_horizon(artifact, 14)
    settings = BacktestSettings(horizon=14, n_windows=2)
    result = backtest({"pretrained": Contender(longer, panel)}, settings)
    row = result.summary.row(by_predicate=pl.col("model") == "pretrained", named=True)
    assert row["coverage"] == pytest.approx(0.8, abs=0.06)
    assert result.steps["step"].max() == 14


@pytest.mark.parametrize(
    ("horizon", "score", "message"),
    [
        (57, {}, "57 steps are more than 8 times the 7 that the model is trained for; give 56 or less"),
        (14, {"state": "state"}, r"score\.state: states reach as far as .* 7 steps, and 14 are wanted"),
        (14, {"n_samples": 4}, r"output\.n_samples: sample paths reach as far as"),
        (14, {"missing_known": "fail"}, r"cells of promo are missing over the horizon, in 8 series"),
    ],
)
def test_what_does_not_fit_is_refused(
    reader: Artifact, weekly_loaded: Loaded, tmp_path: Path, horizon: int, score: dict[str, Any], message: str
) -> None:
    output = ScoreOutput(path=str(tmp_path / "out"), n_samples=score.pop("n_samples", 0))
    if "state" in score:
        score["state"] = str(tmp_path / "state")

    def write() -> None:
        job = ScoreJob(with_horizon(reader, horizon), weekly_loaded, ScoreSettings(**score), output, NAMES)
        job.write(weekly_loaded.panel.last_index)

    with locked(tmp_path / "out"), pytest.raises((ConfigError, DataError), match=message):
        write()


def test_models_without_paths_are_refused(reader: Artifact) -> None:
    with pytest.raises(ConfigError, match=r"score\.horizon: this model does not hold how its errors depend"):
        with_horizon(replace(reader, coupling=None), 14)
    with pytest.raises(ConfigError, match="n: sample paths reach as far as"):
        with_samples(with_horizon(reader, 14), 2)


def test_settings_that_contradict_each_other_are_refused() -> None:
    builtin = {"registry": {"alias": "gatecast-nano"}, "window": {"horizon": 3}, "data": {"path": "t"}}
    builtin |= {"output": {"path": "o"}}
    with pytest.raises(ValidationError, match=r"score\.horizon is for registered models; gatecast-nano takes window"):
        ScoreConfig.model_validate(builtin | {"score": {"horizon": 2}})
    with pytest.raises(ValidationError, match=r"leave backtest\.horizon out"):
        BacktestSettings(horizon=3, refit="scratch")
    with pytest.raises(ValidationError, match="horizon is for `forecast backtest`"):
        RefreshConfig.model_validate({"data": {"path": "t"}, "backtest": {"horizon": 3}})


def test_the_setting_is_a_part_of_digests_only_where_it_is_set() -> None:
    values = {"data": {"path": "t"}, "output": {"path": "o"}}
    texts = [digest_text(ScoreConfig.model_validate(values | {"score": score}), {}) for score in ({}, {"horizon": 3})]
    assert ["horizon" in json.loads(text)["score"] for text in texts] == [False, True]


def test_written_forecasts_have_the_horizon(reader: Artifact, weekly_table: pl.DataFrame, tmp_path: Path) -> None:
    given = tables(weekly_table, 130)
    for horizon in (3, 14):
        artifact = with_horizon(reader, horizon)
        loaded = artifact.read(given)
        folder = tmp_path / str(horizon)
        with locked(folder):
            settings = ScoreSettings(shard_size=3, missing_known="fail")
            job = ScoreJob(artifact, loaded, settings, ScoreOutput(path=str(folder)), NAMES)
            output = job.write(loaded.panel.last_index)
        assert output.content["horizon"] == horizon
        assert output.content["rows"]["written"] == horizon * output.content["series"]["forecast"]
