"""Forecast value added is what it is by hand, and overrides are no evidence about the model."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from forecast.config import MonitorSettings, ScoreOutput, ScoreSettings, SinkConfig
from forecast.data.ingest.loaded import Loaded
from forecast.metrics.significance import paired_test
from forecast.monitoring.evaluation import monitor
from forecast.monitoring.forecasts import ScoredForecasts
from forecast.monitoring.result import MonitorResult
from forecast.monitoring.value_added import no_values, value_added
from forecast.reports.monitor_page import monitor_page
from forecast.scoring.job import ScoreJob
from forecast.scoring.overrides import overrides_of
from forecast.training.result import FitResult

CUTOFFS = range(132, 153, 4)


def day(number: int) -> datetime:
    """Of the table, whose last day is 159."""
    return datetime(2024, 1, 1) + timedelta(days=number)


@pytest.fixture(scope="module")
def overrides(weekly_table: pl.DataFrame) -> pl.DataFrame:
    """Ada is nearly right about s00 each day, Bo far off about s01 each fourth day."""
    actual = weekly_table.filter(pl.col("timestamp") > day(132)).select("series_id", "timestamp", value="target")
    ada = actual.filter(series_id="s00").with_columns(pl.col("value") + 0.01, author=pl.lit("ada"))
    bo = actual.filter(series_id="s01").with_columns(pl.col("value") + 100, author=pl.lit("bo")).gather_every(4)
    return pl.concat([ada, bo])


def write(
    trained: FitResult, loaded: Loaded, folder: Path, table: pl.DataFrame | None, number: str = "1"
) -> SinkConfig:
    names = {"model": "m", "model_version": number, "model_digest": "ab12"}
    overrides = None if table is None else overrides_of(table, loaded.panel)
    job = ScoreJob(
        trained.artifact, loaded, ScoreSettings(shard_size=5), ScoreOutput(path=str(folder)), names, overrides=overrides
    )
    for cutoff in CUTOFFS:
        job.write(loaded.panel.grid.floor(day(cutoff)))
    return SinkConfig(path=str(folder))


def look(trained: FitResult, loaded: Loaded, scores: SinkConfig, shadow: SinkConfig | None = None) -> MonitorResult:
    settings = MonitorSettings.model_validate({"recent": 10, "history": 26, "segments": ["city"]})
    other = None if shadow is None else ScoredForecasts(shadow)
    versions = None if shadow is None else ("1", "2")
    return monitor(trained.artifact, loaded, ScoredForecasts(scores), other, settings, compared_versions=versions)


@pytest.fixture(scope="module")
def scores(
    trained: FitResult, weekly_loaded: Loaded, overrides: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory
) -> SinkConfig:
    return write(trained, weekly_loaded, tmp_path_factory.mktemp("overridden"), overrides)


@pytest.fixture(scope="module")
def result(trained: FitResult, weekly_loaded: Loaded, scores: SinkConfig) -> MonitorResult:
    return look(trained, weekly_loaded, scores)


def by_hand(scores: SinkConfig, weekly_table: pl.DataFrame) -> pl.DataFrame:
    """The overridden rows with their observations, and the values a week before."""
    written = pl.read_parquet(f"{scores.path}/forecasts/*/*.parquet", hive_partitioning=False)
    values = weekly_table.select("series_id", "timestamp", "target")
    before = values.select("series_id", pl.col("timestamp") + timedelta(days=7), naive="target")
    rows = written.filter(source="override").join(values, on=["series_id", "timestamp"])
    return rows.join(before, on=["series_id", "timestamp"]).sort("cutoff", "series_id", "step")


def test_errors_are_what_they_are_by_hand(
    result: MonitorResult, scores: SinkConfig, weekly_table: pl.DataFrame
) -> None:
    rows = by_hand(scores, weekly_table)
    table = {
        (group, value): row
        for group, value, *_ in result.fva.rows()
        for row in result.fva.filter(group=group, value=value).rows(named=True)
    }
    assert set(table) == {("all", ""), ("author", "ada"), ("author", "bo"), ("city", "oslo")}
    assert (
        table["all", ""]["n_values"] == rows.height == sum(table["author", name]["n_values"] for name in ("ada", "bo"))
    )
    for name in ("ada", "bo"):
        part, row = rows.filter(override_author=name), table["author", name]
        for column, point in (("override", "mean"), ("model", "model_mean"), ("naive", "naive")):
            assert row[f"mae_{column}"] == pytest.approx((part[point] - part["target"]).abs().mean(), rel=1e-5)
        assert row["bias_override"] == pytest.approx((part["mean"] - part["target"]).mean(), rel=1e-3)
        assert row["bias_model"] == pytest.approx((part["model_mean"] - part["target"]).mean(), rel=1e-4)
        assert row["value_added"] == pytest.approx(1 - row["mae_override"] / row["mae_model"])
    assert table["author", "ada"]["better"] > 0.9
    assert table["author", "ada"]["p_value"] < 0.05
    assert table["author", "bo"]["better"] == 0
    assert table["author", "bo"]["p_value"] > 0.95
    assert (table["author", "ada"]["n_series"], table["author", "ada"]["n_cutoffs"]) == (1, len(CUTOFFS))


def test_the_p_value_is_that_of_the_paired_test_over_cutoffs() -> None:
    rng = np.random.default_rng(0)
    size = 40
    position = np.repeat(np.arange(10), 4)
    values = (
        no_values()
        .clear(0)
        .vstack(
            pl.DataFrame(
                {
                    "series_id": ["a", "b"] * 20,
                    "override_author": ["ada"] * size,
                    "position": position,
                    "target_position": position + 1 + np.arange(size) % 2,
                    "actual": np.zeros(size),
                    "override": rng.normal(size=size),
                    "model": rng.normal(0.5, 1, size=size),
                    "naive": np.ones(size),
                },
                schema=no_values().schema,
            )
        )
    )
    found = value_added(values, pl.DataFrame({"series_id": ["a", "b"], "city": ["oslo", "rome"]}))
    difference = (values["override"].abs() - values["model"].abs()).to_numpy().reshape(10, 4).sum(1)
    expected = paired_test(difference, np.full(10, 4.0), np.arange(10), np.arange(10) + 2).p_value
    assert found["p_value"][0] == pytest.approx(expected)
    assert found["value"].to_list() == ["", "ada", "oslo", "rome"]
    assert value_added(no_values(), pl.DataFrame({"series_id": ["a"], "city": ["oslo"]})).is_empty()


def test_an_overridden_value_is_no_anomaly_and_no_evidence_between_versions(
    trained: FitResult, weekly_loaded: Loaded, result: MonitorResult, scores: SinkConfig, tmp_path: Path
) -> None:
    shadow = write(trained, weekly_loaded, tmp_path / "shadow", None, "2")
    pairs = look(trained, weekly_loaded, scores, shadow).pairs
    sides = [pairs.filter(model=name).drop("model").sort("series_id", "cutoff") for name in ("champion", "shadow")]
    assert sides[0].equals(sides[1])
    assert "s00" not in set(pairs["series_id"])
    assert "s01" in set(pairs["series_id"])
    assert "s00" not in set(result.anomalies["series_id"])


def test_the_page_has_a_section_with_overrides_only(
    trained: FitResult, weekly_loaded: Loaded, weekly_table: pl.DataFrame, result: MonitorResult, tmp_path: Path
) -> None:
    facts: dict[str, Any] = dict.fromkeys(("comparison", "rollback", "no_rollback", "on_breach"))
    page = monitor_page(result, [], model="m", history=weekly_table, facts=facts, plotly="p.js")
    assert "Forecast value added" in page
    assert "<td>author</td>" in page
    plain = look(trained, weekly_loaded, write(trained, weekly_loaded, tmp_path, None))
    assert plain.fva.is_empty()
    assert plain.fva.schema == result.fva.schema
    assert "Forecast value added" not in monitor_page(
        plain, [], model="m", history=weekly_table, facts=facts, plotly="p"
    )
