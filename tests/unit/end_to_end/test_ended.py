"""Series that have ended: rejects for each way to forecast, gone from sums, back when they are observed again."""

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

import forecast as fc
from forecast.artifact import Artifact
from forecast.config import ScoreConfig, ScoreOutput, ScoreSettings, load
from forecast.data.files import locked
from forecast.errors import ConfigError, DataError
from forecast.prediction.from_table import forecast_frame
from forecast.scoring.job import ScoreJob
from forecast.scoring.parts import Output

NAMES = {"model": "m", "model_version": "3", "model_digest": "ab12"}
START, CONTEXT = datetime(2024, 1, 1), 28
LAST = START + timedelta(days=119)


@pytest.fixture(scope="module")
def sales(table: Callable[..., pl.DataFrame], weekly: Callable[..., dict[str, np.ndarray]]) -> pl.DataFrame:
    """Series that go on, and others that stop before, at and within the context, restart, sell nothing, or are new."""
    series = weekly(8, 120)
    series["s02"] = series["s02"][: 120 - CONTEXT - 1]
    series["s03"] = series["s03"][: 120 - CONTEXT]
    series["s04"] = series["s04"][:20]
    series["s05"][30:100] = np.nan
    series["s06"][30:] = 0.0
    return table({**series, "cold": np.array([5.0])}, late={"cold": 119})


@pytest.fixture(scope="module")
def artifact(sales: pl.DataFrame) -> Artifact:
    full = sales.filter(pl.col("series_id").is_in(["s00", "s01", "s07"]))
    return fc.train(full, horizon=7, context_length=CONTEXT, fit={"max_steps": 0}).artifact


def write(
    artifact: Artifact, table: pl.DataFrame, folder: Path, cutoff: datetime | None = None, **score: Any
) -> Output:
    loaded = artifact.read(table.lazy(), [cutoff])
    settings = ScoreSettings.model_validate({"shard_size": 3} | score)
    index = loaded.panel.last_index if cutoff is None else loaded.panel.grid.floor(cutoff)
    with locked(folder):
        return ScoreJob(artifact, loaded, settings, ScoreOutput(path=str(folder)), NAMES).write(index)


def rows_of(folder: Path, kind: str) -> pl.DataFrame:
    return pl.read_parquet(sorted(folder.glob(f"{kind}/*/*.parquet")), hive_partitioning=False)


def test_series_older_than_the_context_are_rejects_with_the_time_of_their_last_value(
    artifact: Artifact, sales: pl.DataFrame, tmp_path: Path
) -> None:
    made = fc.forecast(artifact, sales)
    ended = [("s02", LAST - timedelta(days=CONTEXT + 1), "ended"), ("s04", START + timedelta(days=19), "ended")]
    assert made.rejects.select("series_id", "timestamp", "reason").rows() == ended
    assert set(made.frame["series_id"]) == {"cold", "s00", "s01", "s03", "s05", "s06", "s07"}
    assert set(made.frame.filter(series_id="s03")["source"]) == {"last_value"}, "as old as the context, but no older"
    assert forecast_frame(artifact, sales.to_pandas()).frame.equals(made.frame)

    content = write(artifact, sales, tmp_path).content
    assert content["series"] == {"in": 9, "forecast": 7, "rejected": 2}
    assert content["rejects"] == {"ended": 2}
    assert rows_of(tmp_path, "rejects").select("series_id", "timestamp", "reason").rows() == ended
    numbers = ["series_id", "timestamp", "mean", "q10", "q90", "source"]
    assert rows_of(tmp_path, "forecasts").select(numbers).equals(made.frame.select(numbers))


@pytest.mark.parametrize(
    ("max_age", "ended"),
    [
        (None, []),
        ("none", []),
        (100, []),
        (99, ["s04"]),
        ("99d", ["s04"]),
        ("14w", ["s04"]),
        (CONTEXT - 1, ["s02", "s03", "s04"]),
        (0, ["s02", "s03", "s04"]),
    ],
)
def test_the_greatest_age_is_a_setting(
    artifact: Artifact, sales: pl.DataFrame, tmp_path: Path, max_age: Any, ended: list[str]
) -> None:
    made = fc.forecast(artifact, sales, max_age=max_age)
    assert made.rejects["series_id"].to_list() == ended
    assert made.frame["series_id"].n_unique() + len(ended) == 9
    content = write(artifact, sales, tmp_path, max_age=max_age).content
    assert content["rejects"].get("ended", 0) == len(ended)
    assert content["series"]["in"] == content["series"]["forecast"] + content["series"]["rejected"] == 9


def test_a_series_ends_and_restarts_by_what_was_observed_up_to_the_cutoff(
    artifact: Artifact, sales: pl.DataFrame
) -> None:
    for days, ended in ((29 + CONTEXT, False), (30 + CONTEXT, True), (99, True), (100, False)):
        made = fc.forecast(artifact, sales, cutoff=START + timedelta(days=days))
        assert ("s05" in made.rejects.filter(reason="ended")["series_id"].to_list()) == ended
        assert ("s05" in set(made.frame["series_id"])) != ended
        assert "s06" in set(made.frame["series_id"]), "zeros are observations"
        names = {*made.frame["series_id"], *made.rejects["series_id"]}
        assert names == set(sales["series_id"])
        assert made.frame["series_id"].n_unique() + made.rejects["series_id"].n_unique() == len(names)


def test_another_age_is_another_output_and_the_same_one_is_done_before(
    artifact: Artifact, sales: pl.DataFrame, tmp_path: Path
) -> None:
    write(artifact, sales, tmp_path)
    assert write(artifact, sales, tmp_path).was_complete
    again = write(artifact, sales, tmp_path, max_age="none")
    assert not again.was_complete
    assert again.content["rejects"] == {}
    assert rows_of(tmp_path, "rejects").height == 0
    assert rows_of(tmp_path, "forecasts")["series_id"].n_unique() == 9


def test_a_panel_of_ended_series_publishes_nothing_and_says_why(
    artifact: Artifact, sales: pl.DataFrame, tmp_path: Path
) -> None:
    until = {"s04": START + timedelta(days=19), "s00": START + timedelta(days=10), "s01": LAST}
    since = START + timedelta(days=70)
    stopped = pl.concat(
        sales.filter(pl.col("series_id") == name, pl.col("timestamp") <= end) for name, end in until.items()
    ).filter((pl.col("series_id") != "s01") | (pl.col("timestamp") >= since))
    with pytest.raises(DataError, match=r"0 of 0 series at .*3 rejected, 2 of them ended \(score.max_age=auto\)"):
        write(artifact, stopped, tmp_path, START + timedelta(days=60))
    assert not list(tmp_path.glob("manifests/*"))


def test_series_that_have_ended_are_no_bad_data_for_the_check_of_rejects(
    artifact: Artifact, sales: pl.DataFrame, tmp_path: Path
) -> None:
    pytest.importorskip("dagster")
    from pipelines.scheduling.dagster_checks import judge

    written = write(artifact, sales, tmp_path / "out")
    values = {"data": {"path": "sales.parquet"}, "output": {"path": str(tmp_path / "out")}}
    entry: Any = SimpleNamespace(folder=str(tmp_path), output=str(written.manifest))
    verdicts = judge(load(ScoreConfig, values), entry)
    assert written.content["series"]["rejected"] == 2
    assert verdicts["rejects"].passed
    assert verdicts["rejects"].text.startswith("0.00% of the series")
    assert verdicts["conservation"].passed


@pytest.mark.parametrize("wrong", [-1, 1.5, "soon", True])
def test_a_wrong_age_is_a_config_error(artifact: Artifact, sales: pl.DataFrame, wrong: Any) -> None:
    with pytest.raises(ConfigError, match="max_age: must be"):
        fc.forecast(artifact, sales, max_age=wrong)


STORES = pl.DataFrame(
    {"series_id": ["s00", "s01", "s04", "s07"], "state": ["a", "a", "b", "b"], "store": ["x", "y", "z", "z"]}
)


def test_sums_are_those_of_the_series_that_go_on(artifact: Artifact, sales: pl.DataFrame) -> None:
    few = sales.filter(pl.col("series_id").is_in(STORES["series_id"]))
    made = fc.forecast(artifact, few)
    found = fc.reconcile(made, STORES, by=["state"])
    assert found.counts["ended"] == 1
    assert found.counts["dropped"] == 0
    middle = {name: found.frame.filter(series_id=name)["mean"].to_numpy() for name in found.frame["series_id"].unique()}
    assert set(middle) == {"total", "state=a", "state=b", "s00", "s01", "s07"}
    np.testing.assert_allclose(middle["state=b"], middle["s07"])
    np.testing.assert_allclose(middle["total"], middle["s00"] + middle["s01"] + middle["s07"])
    with pytest.raises(DataError, match="1 of 4 series of the hierarchy have no forecast: s04"):
        fc.reconcile(made.frame, STORES, by=["state"])


def test_a_series_that_has_ended_adds_nothing_to_later_sums(sales: pl.DataFrame) -> None:
    few = sales.filter(pl.col("series_id").is_in(STORES["series_id"]))
    sums = fc.aggregate(few, STORES, by=["state"], max_age=CONTEXT)
    plain = fc.aggregate(few, STORES, by=["state"])
    value = {
        name: dict(few.filter(series_id=name).select("timestamp", "target").iter_rows()) for name in ("s04", "s07")
    }
    for day, total in sums.filter(series_id="state=b").select("timestamp", "target").iter_rows():
        assert total == pytest.approx(value["s07"][day] + value["s04"].get(day, 0.0))
    assert plain.filter(series_id="state=b")["target"].drop_nulls().len() == 20
    assert sums.filter(series_id="total")["target"].null_count() == 0
    assert sums.filter(series_id="s04")["timestamp"].max() == START + timedelta(days=19)
    # A gap that is over is no end.
    gap = few.filter((pl.col("series_id") != "s07") | (pl.col("timestamp") != START + timedelta(days=60)))
    again = fc.aggregate(gap, STORES, by=["state"], max_age=CONTEXT)
    assert again.filter(pl.col("target").is_null())["series_id"].to_list() == ["total", "state=b", "s07"]
    with pytest.raises(ConfigError, match="max_age: must be a whole number, 0 or more"):
        fc.aggregate(few, STORES, by=["state"], max_age=-1)


def test_methods_with_forecasts_of_sums_go_on_without_the_ended_ones(artifact: Artifact, sales: pl.DataFrame) -> None:
    pytest.importorskip("hierarchicalforecast")
    few = sales.filter(pl.col("series_id").is_in(STORES["series_id"]))
    by: list[Any] = [["state"], ["store"]]
    made = fc.forecast(artifact, fc.aggregate(few, STORES, by=by, max_age=CONTEXT))
    assert set(made.rejects["series_id"]) == {"s04"}
    found = fc.reconcile(made, STORES, by=by, method="ols")
    assert found.incoherence["relative"] < 1e-9
    assert "store=z" in set(found.frame["series_id"])
    plain = fc.forecast(artifact, fc.aggregate(few, STORES, by=by))
    with pytest.raises(DataError, match=r"3 of these have ended, .*fc.aggregate\(\.\.\., max_age=STEPS\)"):
        fc.reconcile(plain, STORES, by=by, method="ols")
