"""What the observations say about forecasts: by hand, without a look ahead, and with every forecast accounted for."""

import json
import math
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

import forecast as fc
from forecast.artifact import Artifact
from forecast.config import MonitorSettings, ScoreOutput, ScoreSettings, SinkConfig, SourceConfig
from forecast.data.ingest.loaded import Loaded
from forecast.data.windows import WindowIndex
from forecast.errors import ConfigError, DataError, OutputError
from forecast.metrics.seasonal_naive import future_values, seasonal_naive, seasonal_naive_errors
from forecast.monitoring.coverage import Coverage
from forecast.monitoring.cutoffs import Cutoff, Part
from forecast.monitoring.drift import Span
from forecast.monitoring.evaluation import monitor
from forecast.monitoring.forecasts import Block, ScoredForecasts
from forecast.monitoring.labels import ALL, FORECAST, RECENT
from forecast.monitoring.result import MonitorResult
from forecast.monitoring.step_scores import Evaluation, score_steps
from forecast.monitoring.thresholds import Check, checks
from forecast.names import SOURCE_SEASONAL_NAIVE
from forecast.prediction.naive import naive_forecasts
from forecast.promotion import compare
from forecast.reports.monitor_page import monitor_page
from forecast.reports.page import plotly_source
from forecast.scoring.job import ScoreJob
from forecast.scoring.parts import share_of_series
from forecast.training.result import FitResult
from pipelines.jobs import console
from pipelines.monitoring.summary import summary, verdicts

HORIZON, SEASON = 7, 7
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SETTINGS: dict[str, Any] = {"recent": 10, "history": 30}
FACTS = {"comparison": None, "rollback": None, "no_rollback": None, "on_breach": None}


def day(number: int) -> datetime:
    """Of the table, which has 160 of them."""
    return datetime(2024, 1, 1) + timedelta(days=number)


def write(artifact: Artifact, loaded: Loaded, folder: Path, *, number: str = "1", **output: Any) -> SinkConfig:
    """Score each fifth day from day 110, by a version that says it was trained until then."""
    names = {"model": "m", "model_version": number, "model_digest": "ab12"}
    given = {"path": str(folder), **output}
    job = ScoreJob(artifact, loaded, ScoreSettings(shard_size=5), ScoreOutput.model_validate(given), names)
    for cutoff in range(110, 160, 5):
        job.write(loaded.panel.grid.floor(day(cutoff)))
    claim(folder, day(110).isoformat())
    return SinkConfig.model_validate(given)


def claim(folder: Path, until: str | None) -> SinkConfig:
    """Let the manifests say until when their version was trained; None: they do not, as those of earlier releases."""
    for manifest in (folder / "manifests").iterdir():
        content = {name: value for name, value in json.loads(manifest.read_text()).items() if name != "trained_until"}
        manifest.write_text(json.dumps(content | ({} if until is None else {"trained_until": until})))
    return SinkConfig(path=str(folder))


@pytest.fixture(scope="module")
def came(weekly_table: pl.DataFrame) -> pl.DataFrame:
    """What was observed in the end: six days of a series are not."""
    lost = (pl.col("series_id") == "s03") & pl.col("timestamp").is_between(day(138), day(143))
    return weekly_table.with_columns(target=pl.when(~lost).then("target"))


@pytest.fixture(scope="module")
def scores(trained: FitResult, weekly_loaded: Loaded, tmp_path_factory: pytest.TempPathFactory) -> SinkConfig:
    return write(trained.artifact, weekly_loaded, tmp_path_factory.mktemp("scores"))


def look(
    artifact: Artifact,
    table: pl.DataFrame,
    folder: Path,
    scores: SinkConfig,
    until: datetime | None = None,
    *,
    shadow: SinkConfig | None = None,
    **settings: Any,
) -> MonitorResult:
    folder.mkdir(exist_ok=True)
    table.write_parquet(folder / "table.parquet")
    loaded = artifact.open(SourceConfig(path=str(folder / "table.parquet"), until=until, max_reject_share=1))
    asked = MonitorSettings.model_validate(SETTINGS | {"as_of": until} | settings)
    other = None if shadow is None else ScoredForecasts(shadow)
    return monitor(artifact, loaded, ScoredForecasts(scores), other, asked, compared_versions=("1", "2"))


@pytest.fixture(scope="module")
def found(
    trained: FitResult, came: pl.DataFrame, scores: SinkConfig, tmp_path_factory: pytest.TempPathFactory
) -> MonitorResult:
    """As of day 150, ten days before the end of the table."""
    return look(trained.artifact, came, tmp_path_factory.mktemp("found"), scores, day(150))


def test_every_metric_is_what_it_is_by_hand(found: MonitorResult, scores: SinkConfig, came: pl.DataFrame) -> None:
    actual = {(name, at): value for name, at, value in came.select("series_id", "timestamp", "target").rows()}
    forecasts = pl.read_parquet(f"{scores.path}/forecasts/*/*.parquet", hive_partitioning=False)
    levels = [k / 10 for k in range(1, 10)]
    pinball = size = error = scaled = 0.0
    inside = dict.fromkeys((0.1, 0.2, 0.3, 0.4), 0)
    steps = 0
    scale: dict[tuple[str, datetime], float] = {}
    for row in forecasts.filter(pl.col("timestamp").is_between(day(141), day(150))).iter_rows(named=True):
        y, key = actual.get((row["series_id"], row["timestamp"])), (row["series_id"], row["cutoff"])
        if y is None:
            continue
        y = float(np.float32(y))
        if key not in scale:
            past = [v for (name, at), v in actual.items() if name == key[0] and at <= key[1]]
            gaps = [abs(b - a) for a, b in zip(past, past[SEASON:], strict=False) if a is not None and b is not None]
            scale[key] = math.fsum(gaps) / len(gaps)
        losses = [2 * max(k * (y - row[f"q{100 * k:g}"]), (k - 1) * (y - row[f"q{100 * k:g}"])) for k in levels]
        pinball += math.fsum(losses) / len(losses)
        size, steps = size + abs(y), steps + 1
        error += row["mean"] - y
        scaled += abs(y - row["q50"]) / scale[key]
        for low in inside:
            inside[low] += row[f"q{100 * low:g}"] <= y <= row[f"q{100 * (1 - low):g}"]
    assert steps == found.counts["rows_recent"] > 0
    expected = {"mase": scaled / steps, "wql": pinball / size, "bias": error / size}
    expected |= {f"coverage_{100 - 200 * low:g}": count / steps for low, count in inside.items()}
    assert {name: found.metric(name) for name in expected} == pytest.approx(expected, rel=1e-6)
    assert found.metric("wql", SOURCE_SEASONAL_NAIVE) != found.metric("wql")


def test_every_forecast_is_scored_or_has_its_reason(
    found: MonitorResult, scores: SinkConfig, came: pl.DataFrame
) -> None:
    forecasts = pl.read_parquet(f"{scores.path}/forecasts/*/*.parquet", hive_partitioning=False)
    rows = forecasts.filter(pl.col("timestamp") >= day(111), pl.col("cutoff") <= day(150))
    seen = came.filter(pl.col("timestamp") <= day(150)).drop_nulls("target")
    scored = rows.join(seen, on=["series_id", "timestamp"], how="semi").height
    late = rows.filter(pl.col("timestamp") > day(150)).height
    counts = found.counts
    assert (counts["rows"], counts["rows_scored"], counts["rows_not_yet_observed"]) == (rows.height, scored, late)
    assert counts["rows_missing"] == rows.height - scored - late > 0
    # Whatever they are grouped by.
    for keys in (["group"], ["group", "window"]):
        totals = found.metrics.filter(model=FORECAST).group_by(keys).agg(pl.col("n_steps").sum())
        assert set(totals.group_by("group").agg(pl.col("n_steps").sum())["n_steps"]) == {scored}
    assert set(found.metrics["group"]) == {"all", "age", "time", "city", "size"}


def test_each_recent_observation_has_a_verdict_in_the_table_and_on_the_page(
    trained: FitResult, came: pl.DataFrame, scores: SinkConfig, found: MonitorResult
) -> None:
    result = fc.monitor(trained.artifact, came, scores.path, as_of="2024-05-30", **SETTINGS)
    assert result.as_of == found.as_of == day(150)
    assert result.metrics.equals(found.metrics)
    assert result.anomalies.equals(found.anomalies)
    recent = came.filter(pl.col("timestamp").is_between(day(141), day(150)), pl.col("target").is_not_null())
    judged = recent.join(found.scores, on="series_id", how="semi").select("series_id", "timestamp")
    assert found.anomalies.select("series_id", "timestamp").sort("series_id", "timestamp").equals(judged)
    facts = {"comparison": None, "rollback": None, "no_rollback": None, "on_breach": None}
    shifted = came.with_columns(target=pl.col("target") + 100 * (pl.col("timestamp") == day(148)))
    odd = fc.monitor(trained.artifact, shifted, scores.path, as_of="2024-05-30", **SETTINGS, anomaly_rate=0.05)
    assert set(odd.anomalies.head(5)["timestamp"]) == {day(148)}
    page = monitor_page(odd, [], model="m", history=came, facts=facts, plotly="p.js")
    assert f"{odd.anomaly_counts['anomaly']} of {odd.anomalies.height} recent observations are anomalies" in page
    assert 'id="anomalies"' not in monitor_page(
        replace(odd, anomaly_rate=None), [], model="m", history=came, facts=facts
    )
    with pytest.raises(ConfigError, match="anomaly_rate"):
        fc.monitor(trained.artifact, came, scores.path, anomaly_rate=0.9)
    with pytest.raises(DataError, match="no forecasts"):
        fc.monitor(trained.artifact, came, "nowhere")


@pytest.mark.parametrize("names", [None, ["s02", "s05"]])
def test_a_block_of_series_at_a_time_gives_the_same_tables(
    names: list[str] | None,
    trained: FitResult,
    came: pl.DataFrame,
    weekly_loaded: Loaded,
    scores: SinkConfig,
    tmp_path: Path,
) -> None:
    """Blocks end inside the files of scoring; those of series that are not in the table are counted, too."""
    shadow = write(trained.artifact, weekly_loaded, tmp_path / "shadow", number="2")
    table = came if names is None else came.filter(pl.col("series_id").is_in(names))
    settings: dict[str, Any] = {"shadow": shadow, "segments": ["demand", "volume"], "anomaly_rate": 0.05}
    once = look(trained.artifact, table, tmp_path / "table", scores, day(150), **settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("forecast.monitoring.sums._BLOCK_CELLS", 40 if names else 120)  # Of 40 steps.
        patch.setattr("forecast.monitoring.drift._SHARD", 200)
        parts = look(trained.artifact, table, tmp_path / "table", scores, day(150), **settings)
    for name, value in vars(once).items():
        if isinstance(value, pl.DataFrame):
            order = ["series_id", "model", "cutoff"] if name == "pairs" else []
            frames = (frame.sort(order) if order else frame for frame in (value, getattr(parts, name)))
            assert_frame_equal(*frames, rel_tol=1e-12, abs_tol=1e-12)
        elif name != "coverage_80":
            assert getattr(parts, name) == value
    assert parts.coverage_80 == pytest.approx(once.coverage_80, rel=1e-12)
    assert parts.counts["series_unknown"] == (6 if names else 0)


def test_a_cutoff_with_a_part_less_is_refused_in_blocks_and_in_whole(scores: SinkConfig, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(scores.path, tmp_path / "copy"))
    first = ScoredForecasts(scores).contents[0]
    file = copy / next(name for name in first["files"] if name.startswith("forecasts"))
    pl.read_parquet(file).head(HORIZON).write_parquet(file)
    for block in (Block(), Block("s01", "s02")):
        with pytest.raises(DataError, match="28 rows, its manifest says 56; score it again"):
            list(ScoredForecasts(SinkConfig(path=str(copy))).block(first, block))


def test_nothing_after_as_of_is_seen(
    found: MonitorResult, trained: FitResult, came: pl.DataFrame, scores: SinkConfig, tmp_path: Path
) -> None:
    later = pl.col("timestamp") > day(150)
    other = came.with_columns(
        target=pl.when(later).then(1e6).otherwise("target"), rain=pl.when(later).then(99.0).otherwise("rain")
    )
    again = look(trained.artifact, other, tmp_path, scores, day(150))
    assert again.counts == found.counts
    for name in ("scores", "metrics", "alarms", "drift", "shown"):
        assert_frame_equal(getattr(again, name), getattr(found, name))
    seen = look(trained.artifact, other, tmp_path, scores, day(152))
    assert seen.metric("mase") != found.metric("mase")


def test_a_series_whose_level_shifts_has_an_alarm_and_no_other(
    trained: FitResult, came: pl.DataFrame, scores: SinkConfig, tmp_path: Path
) -> None:
    moved = (pl.col("series_id") == "s02") & (pl.col("timestamp") > day(140))
    shifted = came.with_columns(target=pl.when(moved).then(pl.col("target") + 60).otherwise("target"))
    before = look(trained.artifact, came, tmp_path, scores, day(150))
    after = look(trained.artifact, shifted, tmp_path, scores, day(150))
    assert (before.alarmed, after.alarmed) == ([], ["s02"])
    row = after.alarms.row(0, named=True)
    assert (row["status"], row["reference"], row["periods"]) == ("alarm", "history", 5)
    assert row["limit"] >= 1.5 * row["median"]
    rest = pl.col("series_id") != "s02"
    assert_frame_equal(after.alarms.filter(rest), before.alarms.filter(rest))
    assert after.shown["series_id"].unique().to_list() == ["s02"]
    # Of each step, the forecast of the latest cutoff before it.
    assert (after.shown["timestamp"] - after.shown["cutoff"]).max() <= timedelta(days=5)
    page = monitor_page(after, [], model="m", history=shifted.filter(~rest), facts=FACTS)
    assert "1 series with an alarm" in page


def test_a_series_without_history_is_held_against_its_backtest(
    trained: FitResult, came: pl.DataFrame, scores: SinkConfig, tmp_path: Path
) -> None:
    came.write_parquet(tmp_path / "table.parquet")
    loaded = trained.artifact.open(SourceConfig(path=str(tmp_path / "table.parquet"), until=day(120)))
    settings = MonitorSettings.model_validate(
        {"as_of": day(120), "recent": 10, "history": 1, "alarms": {"least": 0.01}}
    )
    tested = pl.DataFrame({"series_id": ["s00", "s00", "s01"], "mase": [1e-3, 2e-3, 1.0]})
    found = monitor(trained.artifact, loaded, ScoredForecasts(scores), None, settings, backtest=tested)
    status = dict(found.alarms.select("series_id", "status").iter_rows())
    assert status["s00"] == "alarm"
    assert status["s01"] == "no reference"  # One window is no spread.
    assert found.alarms.row(0, named=True)["reference"] == "backtest"


def test_the_first_day_has_nothing_to_judge(
    trained: FitResult, came: pl.DataFrame, scores: SinkConfig, tmp_path: Path
) -> None:
    found = look(trained.artifact, came, tmp_path, scores, day(110))
    assert found.counts["rows_scored"] == 0
    assert found.counts["rows"] == found.counts["rows_not_yet_observed"] == 8 * HORIZON
    assert found.metric("mase") is None
    judged = checks(found, MonitorSettings.model_validate({"thresholds": {"max_mase": 0.1, "max_psi": 0.01}}), {})
    assert not any(check.breached for check in judged)
    assert "Nothing is observed yet" in monitor_page(found, judged, model="m", history=came.head(0), facts=FACTS)


@pytest.mark.parametrize("output", [{"sink": "delta"}, {"sink": "sql", "uri": "sqlite:///{}/scores.db"}])
def test_forecasts_in_tables_are_the_same(
    found: MonitorResult,
    trained: FitResult,
    came: pl.DataFrame,
    weekly_loaded: Loaded,
    tmp_path: Path,
    output: dict[str, str],
) -> None:
    given = {name: value.format(tmp_path) for name, value in output.items()}
    there = write(trained.artifact, weekly_loaded, tmp_path / "scores", **given)
    again = look(trained.artifact, came, tmp_path / "table", there, day(150))
    assert again.counts == found.counts
    assert_frame_equal(again.metrics, found.metrics)


def test_champion_and_shadow_are_compared_on_the_same_steps(
    trained: FitResult, came: pl.DataFrame, weekly_loaded: Loaded, scores: SinkConfig, tmp_path: Path
) -> None:
    some = share_of_series(weekly_loaded, 0.5)
    assert set(some.panel.series_id) < set(weekly_loaded.panel.series_id)
    assert some.counts.series_in == some.panel.n_series
    shadow = write(trained.artifact, some, tmp_path / "shadow", number="2")
    pairs = look(trained.artifact, came, tmp_path / "table", scores, day(150), shadow=shadow).pairs
    champion, other = (pairs.filter(model=name).drop("model") for name in ("champion", "shadow"))
    assert set(other["series_id"]) <= set(some.panel.series_id)
    both = champion.join(other, on=["series_id", "cutoff"], how="semi").sort("series_id", "cutoff")
    # It is the same model.
    assert_frame_equal(both, other.sort("series_id", "cutoff"), rel_tol=1e-5, abs_tol=1e-4)
    stranger = write(trained.artifact, some, tmp_path / "stranger", number="3")
    assert look(trained.artifact, came, tmp_path / "table", scores, day(150), shadow=stranger).pairs.is_empty()


def test_champion_and_shadow_are_compared_on_steps_that_few_cutoffs_share(
    trained: FitResult, came: pl.DataFrame, weekly_loaded: Loaded, scores: SinkConfig, tmp_path: Path
) -> None:
    """Cutoffs five days apart, with seven days each: of eight, every second one has targets of its own."""
    shadow = write(trained.artifact, weekly_loaded, tmp_path / "shadow", number="2")
    for blocks, steps in (4, 7), (5, 5), (8, 5), (9, 7):
        pairs = look(
            trained.artifact,
            came,
            tmp_path / "table",
            scores,
            day(150),
            shadow=shadow,
            history=40,
            rollback_blocks=blocks,
        ).pairs
        assert pairs["n_steps"].max() == steps
        ends = pairs.select((pl.col("observed_until") - pl.col("cutoff")).dt.total_days().alias("days"))["days"]
        assert ends.max() == steps
        assert pairs["observed_until"].max() <= day(150)
        verdict = compare(pairs, "shadow", "champion")
        assert verdict.blocks == (4 if steps == 7 else 8)
        assert verdict.p_value != verdict.p_value or verdict.p_value > 0.01  # The same model.


def test_the_share_of_a_shadow_does_not_depend_on_the_other_series(weekly_loaded: Loaded) -> None:
    chosen = set(share_of_series(weekly_loaded, 0.5).panel.series_id)
    assert chosen < set(share_of_series(weekly_loaded, 0.9).panel.series_id) | chosen
    part = replace(weekly_loaded, panel=weekly_loaded.panel.rows(2, 7))
    assert set(share_of_series(part, 0.5).panel.series_id) == chosen & set(part.panel.series_id)
    with pytest.raises(ConfigError, match=r"score\.shadow_share=0\.0001 is none of 8 series"):
        share_of_series(weekly_loaded, 0.0001)


def test_some_series_of_a_panel_are_as_they_were(weekly_loaded: Loaded) -> None:
    panel = weekly_loaded.panel
    taken = panel.take(np.array([6, 1]))
    digests = panel.series_digests
    assert taken.series_id.tolist() == ["s06", "s01"]
    assert taken.series_digests.tolist() == digests[[6, 1]].tolist()


def test_thresholds() -> None:
    assert Check("max_mase", "MASE", 1.1, 1.0).breached
    assert not Check("max_mase", "MASE", 1.0, 1.0).breached
    assert Check("min_coverage", "coverage", 0.5, 0.7).breached
    assert not Check("min_coverage", "coverage", None, 0.7).breached


def test_the_table_says_what_was_judged_and_fits_a_terminal(
    found: MonitorResult, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = {"max_wql_naive": 1e-6, "max_mase": 1e6, "max_psi": 0.25, "max_missing": 0.5, "min_coverage": 0.5}
    settings = MonitorSettings.model_validate({"thresholds": limits})
    table = verdicts(checks(found, settings, {}))
    rows = {row["threshold"]: row for row in table.iter_rows(named=True)}
    steps = f"{found.counts['rows_recent']:,} steps"
    assert rows["max_wql_naive"] | {"value": ""} == {
        "threshold": "max_wql_naive",
        "value": "",
        "limit": "≤ 1e-06",
        "verdict": "breached",
        "judged": steps,
    }
    assert rows["max_mase"]["verdict"] == "kept"
    assert rows["max_alarmed"]["judged"] == rows["min_judged"]["judged"].replace("8", "8 of 8", 1) == "8 of 8 series"
    assert rows["max_psi"]["judged"] == f"{found.drift['values'].max():,} values"
    assert rows["max_observations_age"] | {"limit": ""} == {
        "threshold": "max_observations_age",
        "value": "0",
        "limit": "",
        "verdict": "kept",
        "judged": "0 steps",
    }
    few = {row["threshold"]: row for row in verdicts(checks(replace(found, observed=2), settings, {})).to_dicts()}
    assert (few["max_mase"]["verdict"], few["max_mase"]["judged"]) == ("not judged", "2 of 3 times")
    chance = replace(found, coverage_80=Coverage(0.5, 0.4))
    assert {row["threshold"]: row["verdict"] for row in verdicts(checks(chance, settings, {})).to_dicts()}[
        "min_coverage_80"
    ] == "by chance"
    low = replace(found, coverage_80=Coverage(0.5, 0.1))
    assert [check.key for check in checks(low, MonitorSettings(), {}) if check.breached] == ["min_coverage_80"]
    console.table(table)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) > len(rows)
    assert max(map(len, printed)) <= 80


def test_thresholds_are_judged_against_naive_and_backtest(found: MonitorResult) -> None:
    asked = {"max_wql_naive": 0.5, "max_wql_backtest": 2, "max_alarmed": 0, "max_unseen": 0.1, "max_missing": 0.1}
    settings = MonitorSettings.model_validate({"thresholds": asked})
    judged = {check.key: check for check in checks(found, settings, {"wql": 0.01})}
    wql, naive = found.metric("wql"), found.metric("wql", SOURCE_SEASONAL_NAIVE)
    assert wql is not None
    assert naive is not None
    assert judged["max_wql_naive"].found == pytest.approx(wql / naive)
    assert judged["max_wql_backtest"].found == pytest.approx(wql / 0.01)
    assert judged["max_unseen"].found is None  # There are no categories over time.
    few = MonitorSettings.model_validate({"thresholds": asked, "min_steps": 10_000})
    ages = ("max_scores_age", "max_observations_age", "max_scores_lag")
    assert {check.found for check in checks(found, few, {}) if check.key not in ages} == {None}
    # Two days of many series are two days.
    other = checks(replace(found, observed=2), settings, {})
    assert {check.found for check in other if check.key not in ages} == {None}
    assert {check.key: check.found for check in other if check.key in ages} == dict.fromkeys(ages, 0)


def test_a_watch_that_judges_no_series_is_a_finding(found: MonitorResult) -> None:
    def share(status: str, observed: int) -> tuple[float | None, bool]:
        alarms = found.alarms.with_columns(
            status=pl.when(pl.int_range(pl.len()) < 6).then(pl.lit(status)).otherwise(pl.lit("normal"))
        )
        one = replace(found, alarms=alarms, observed=observed)
        (check,) = (check for check in checks(one, MonitorSettings(), {}) if check.key == "min_judged")
        return check.found, check.breached

    assert found.alarms.height == 8
    assert found.judged == 8
    assert found.observed == 10
    assert share("no reference", 10) == (0.25, True)
    assert share("few observations", 10) == (0.25, True)
    assert share("few observations", 2) == (None, False)  # The first days: none can have three steps.
    assert share("no scale", 10) == (1.0, False)
    assert share("alarm", 10) == (1.0, False)


@pytest.mark.parametrize(
    ("psi", "chance", "value"), [(0.3, 0.5, 0.0), (0.6, 0.5, 0.6), (0.2, 0.1, 0.2), (None, None, None)]
)
def test_drift_that_chance_may_make_is_no_breach(
    found: MonitorResult, psi: float | None, chance: float | None, value: float | None
) -> None:
    settings = MonitorSettings.model_validate({"thresholds": {"max_psi": 0.25}})
    columns = pl.DataFrame({"psi": [psi], "psi_chance": [chance]}, schema={"psi": pl.Float64, "psi_chance": pl.Float64})
    one = replace(found, drift=found.drift.head(1).with_columns(columns))
    (check,) = (check for check in checks(one, settings, {}) if check.key == "max_psi")
    assert check.found == value
    assert check.breached is (value == 0.6)


def test_what_does_not_fit_is_told(trained: FitResult, came: pl.DataFrame, scores: SinkConfig, tmp_path: Path) -> None:
    artifact = trained.artifact
    with pytest.raises(DataError, match=r"scores\.path=.*nothing: no forecasts \(it has no manifests\)"):
        ScoredForecasts(SinkConfig(path=str(tmp_path / "nothing")))
    with pytest.raises(DataError, match=r"monitor\.as_of=2024-04-01.* is before the first of 10 cutoffs"):
        look(artifact, came, tmp_path, scores, datetime(2024, 4, 1))
    with pytest.raises(
        ConfigError, match=r"monitor\.segments: 1 of 2 are no static covariates.*: colour; there are city"
    ):
        look(artifact, came, tmp_path, scores, day(150), segments=["city", "colour"])
    later = came.with_columns(pl.col("timestamp") + timedelta(days=900))
    with pytest.raises(DataError, match=r"the latest of 10 cutoffs is 2024-06-04.* raise monitor.history"):
        look(artifact, later, tmp_path, scores, thresholds={"max_scores_age": None, "max_scores_lag": "none"})
    others = came.filter(pl.col("series_id").is_in(["s00", "s01"]))
    found = look(artifact, others, tmp_path, scores, day(150))
    assert found.counts["series_unknown"] == 6
    assert found.counts["series"] == 2


def test_series_that_have_ended_are_counted_by_the_latest_cutoff(
    scores: SinkConfig, came: pl.DataFrame, trained: FitResult, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(scores.path, copy)
    for number, manifest in enumerate(sorted((copy / "manifests").iterdir())):
        content = json.loads(manifest.read_text())
        manifest.write_text(json.dumps(content | {"rejects": {"ended": number}}))
    found = look(trained.artifact, came, tmp_path, SinkConfig(path=str(copy)), day(150))
    latest = found.cutoffs["cutoff"].max()
    expected = [content["cutoff"] for content in ScoredForecasts(scores).contents].index(latest.isoformat())
    assert found.counts["series_ended"] == expected > 0
    assert f"{expected} series have ended and are not forecast" in summary(found, "m v1", tmp_path, "")


def test_forecasts_of_another_frequency_are_refused(scores: SinkConfig, tmp_path: Path, trained: FitResult) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(scores.path, copy)
    manifest = sorted((copy / "manifests").iterdir())[3]
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(content | {"cutoff": content["cutoff"].replace("T00", "T11")}))
    given = SinkConfig(path=str(copy))
    table = pl.DataFrame({"series_id": "a", "timestamp": [day(k) for k in range(30)], "target": np.arange(30.0)})
    table = table.with_columns(rain=0.0, promo=0.0, city=pl.lit("oslo"), size=1.0)
    with pytest.raises(DataError, match=r"1 of 10 cutoffs are not at the steps of the table, which are every 1d"):
        look(trained.artifact, table, tmp_path, given)
    first = ScoredForecasts(given).contents[0]
    (copy / next(name for name in first["files"] if name.startswith("forecasts"))).unlink()
    with pytest.raises(OutputError, match=r"1 of 2 files of the cutoff .* are gone.*; score it again"):
        list(ScoredForecasts(given).block(first, Block()))


def test_days_are_those_of_the_clock_on_the_wall(
    train: Callable[..., FitResult],
    table: Callable[..., pl.DataFrame],
    loaded: Callable[..., Loaded],
    weekly: Callable[..., dict[str, np.ndarray]],
    tmp_path: Path,
) -> None:
    """Over the change of the clocks, with cutoffs that are at another distance from UTC before it and after it."""
    first = datetime(2024, 3, 1, 23)  # Midnight in Berlin.
    series = weekly(2, 24 * 40)
    rows = table(series, start=first, every=timedelta(hours=1), time_zone="Europe/Berlin")
    model = train(loaded(rows, 6, freq="1h", season_length=24), context=24, holdout_windows=0).artifact
    rows.write_parquet(tmp_path / "table.parquet")
    read = model.open(SourceConfig(path=str(tmp_path / "table.parquet")))
    given = ScoreOutput(path=str(tmp_path / "scores"))
    job = ScoreJob(model, read, ScoreSettings(), given, {"model": "m", "model_version": "1", "model_digest": "ab12"})
    for number in range(30, 33):  # The clocks change in the night to 31 March.
        job.write(read.panel.grid.floor(datetime(2024, 3, 1) + timedelta(days=number - 1, hours=12)))
    claim(tmp_path / "scores", None)
    settings = MonitorSettings.model_validate({"recent": 24 * 9, "history": 240, "segments": ["demand"]})
    found = monitor(model, read, ScoredForecasts(given), None, settings)
    assert found.counts["rows_scored"] == found.counts["rows"] == 3 * 2 * 6
    days = found.metrics.filter(group="time", model=FORECAST).select("value", "n_steps").rows()
    assert days == [(f"2024-{day} 00:00:00", 12) for day in ("03-30", "03-31", "04-01")]
    assert str(found.as_of.tzinfo) == "Europe/Berlin"


def test_settings_that_contradict_are_told() -> None:
    with pytest.raises(ValueError, match=r"min_coverage=0\.9 is not below max_coverage=0\.7"):
        MonitorSettings.model_validate({"thresholds": {"min_coverage": 0.9, "max_coverage": 0.7}})
    with pytest.raises(ValueError, match="on_breach_overrides needs on_breach"):
        MonitorSettings.model_validate({"on_breach_overrides": ["a=b"]})
    with pytest.raises(ValueError, match="must increase"):
        MonitorSettings.model_validate({"ages": [7, 3]})


def test_built_in_segments_and_cutoffs_over_time(
    trained: FitResult, came: pl.DataFrame, scores: SinkConfig, tmp_path: Path
) -> None:
    segments = ["length", "volume", "demand"]
    found = look(trained.artifact, came, tmp_path, scores, day(150), by="cutoff", segments=segments, ages=[2])
    assert set(found.metrics["group"]) == {ALL, "age", "time", *segments}
    chosen = found.metrics.filter(group="length", model=FORECAST, window=RECENT)
    assert chosen["n_series"].sum() == found.scores.filter(window=RECENT)["series_id"].n_unique()
    assert found.metrics.filter(group="age")["value"].unique().sort().to_list() == ["1-2", "3-7"]
    assert found.metrics.filter(group="time")["value"].n_unique() == 8  # of days 110 to 145
    assert found.metric("mase") is not None


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
def test_the_page_is_drawn_and_names_stay_text(
    trained: FitResult, came: pl.DataFrame, scores: SinkConfig, tmp_path: Path
) -> None:
    moved = (pl.col("series_id") == "s02") & (pl.col("timestamp") > day(140))
    shifted = came.with_columns(target=pl.when(moved).then(pl.col("target") + 60).otherwise("target"))
    found = look(trained.artifact, shifted, tmp_path, scores, day(150))
    history = shifted.filter(series_id="s02")
    facts = FACTS | {"rollback": "v2 -> v1 <b>evil</b>"}
    limits = [Check("max_mase", "MASE", 2.0, 1.0)]
    page = monitor_page(found, limits, model="<i>m</i>", history=history, facts=facts)
    assert "<b>evil" not in page
    assert "<i>m" not in page
    assert not re.search(r'(src|href)="(?!data:)', page.split("<script>")[0])
    # With the script beside the folder of the page, and without it.
    beside = monitor_page(found, limits, model="<i>m</i>", history=history, facts=facts, plotly="../plotly.min.js")
    assert len(beside) < len(page) / 20
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    places = {"beside": beside, "away": beside.replace("../plotly", "../gone")}
    (tmp_path / "plotly.min.js").write_text(plotly_source())
    for name, text in places.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "monitor.html").write_text(text)
        address = (tmp_path / name / "monitor.html").as_uri()
        done = subprocess.run(
            [*command, "--virtual-time-budget=10000", "--dump-dom", address], capture_output=True, text=True, check=True
        )
        assert 'data-drawn="s02"' in done.stdout
        assert 'data-done="yes"' in done.stdout
        assert (done.stdout.count("<svg") > 0) is (name != "away")
        assert ("The charts need plotly.min.js" in done.stdout.split("<main>")[0]) is (name == "away")
        assert ">s02</button>" in done.stdout  # The table of alarms.


def test_cutoffs_in_sample_are_in_no_figure(
    found: MonitorResult, trained: FitResult, came: pl.DataFrame, scores: SinkConfig, tmp_path: Path
) -> None:
    """As if they had not been scored; that at the end of training itself is out of sample."""
    part = claim(Path(shutil.copytree(scores.path, tmp_path / "part")), day(135).isoformat())
    seen = look(trained.artifact, came, tmp_path / "table", part, day(150))
    shutil.copytree(part.path, tmp_path / "later")
    for number in range(110, 135, 5):
        next((tmp_path / "later" / "manifests").glob(f"cutoff={day(number):%Y-%m-%d}*.json")).unlink()
    later = look(trained.artifact, came, tmp_path / "table", SinkConfig(path=str(tmp_path / "later")), day(150))
    assert seen.counts | {"cutoffs_in_sample": 0, "rows_in_sample": 0} == later.counts
    for name in ("scores", "metrics", "alarms", "shown"):
        assert_frame_equal(getattr(seen, name), getattr(later, name))
    assert seen.metric("mase", window="history") != found.metric("mase", window="history")
    assert (seen.counts["cutoffs"], seen.counts["cutoffs_in_sample"]) == (4, 5)
    assert seen.counts["rows_in_sample"] == 5 * 8 * HORIZON
    assert seen.cutoffs["sample"].to_list() == ["in sample"] * 5 + ["out of sample"] * 4
    assert seen.left_out == (
        "5 of 9 cutoffs left out: their version was trained on steps after them (v1 until 2024-05-15T00:00:00): "
        "2024-04-20T00:00:00, 2024-04-25T00:00:00, 2024-04-30T00:00:00 and 2 more"
    )
    page = monitor_page(seen, [], model="m", history=came.head(0), facts=FACTS)
    assert f'<p class="caption">{seen.left_out}.</p>' in page
    assert seen.left_out in summary(seen, "m", tmp_path, "")
    # Manifests that do not say: nothing is left out.
    silent = look(
        trained.artifact,
        came,
        tmp_path / "table",
        claim(Path(shutil.copytree(scores.path, tmp_path / "old")), None),
        day(150),
    )
    assert set(silent.cutoffs["sample"]) == {"unknown"}
    assert_frame_equal(silent.metrics, found.metrics)
    assert silent.left_out == ""


def test_a_watch_of_cutoffs_in_sample_judges_nothing_and_says_so(
    trained: FitResult, came: pl.DataFrame, weekly_loaded: Loaded, scores: SinkConfig, tmp_path: Path
) -> None:
    end = day(159).isoformat()
    everything = claim(Path(shutil.copytree(scores.path, tmp_path / "all")), end)
    seen = look(trained.artifact, came, tmp_path / "table", everything, day(150), shadow=scores)
    assert seen.counts["cutoffs"] == seen.counts["rows"] == 0
    assert seen.counts["cutoffs_in_sample"] == 9
    assert seen.metrics.is_empty()
    assert seen.alarms.is_empty()
    assert seen.pairs.is_empty()
    judged = checks(seen, MonitorSettings(), {})
    assert {check.found for check in judged if check.key.endswith(("naive", "alarmed", "judged"))} == {None}
    assert "Nothing is observed yet" in monitor_page(seen, judged, model="m", history=came.head(0), facts=FACTS)
    assert "no cutoff is left, so nothing is judged" in summary(seen, "m", tmp_path, "")
    # Nor does a shadow that was trained on them count as better.
    other = write(trained.artifact, weekly_loaded, tmp_path / "shadow", number="2")
    late = claim(Path(shutil.copytree(other.path, tmp_path / "late")), day(135).isoformat())
    pairs = look(trained.artifact, came, tmp_path / "table", scores, day(150), shadow=late).pairs
    assert pairs["cutoff"].min() == day(135)
    assert set(pairs["model"]) == {"champion", "shadow"}


def test_seasonal_naive_is_that_of_the_product(
    train: Callable[..., FitResult],
    table: Callable[..., pl.DataFrame],
    loaded: Callable[..., Loaded],
) -> None:
    """Of counts: whole numbers, none below 0, as scoring writes them where a model has no forecast."""
    rng = np.random.default_rng(0)
    rows = table({name: rng.poisson(0.4, 60).astype(float) for name in "abc"})
    read = loaded(rows, 3, season_length=7)
    model = train(read, context=14, holdout_windows=0, model={"head": "poisson"}).artifact
    windows = WindowIndex(np.arange(3), np.full(3, 40))
    panel = read.panel
    naive = naive_forecasts(model, panel, windows)
    levels = model.model.quantile_levels
    assert (naive >= 0).all()
    part = Part(panel, windows, np.zeros((3, 3, len(levels))), future_values(panel, windows, 3))
    span = Span(0, 41, 43)
    scales = seasonal_naive_errors(panel, windows, 7)
    steps = score_steps(part, Cutoff(40, {}), Evaluation(model, span, levels, 7, {"1-3": 3}, "day"), scales)
    own = steps.filter(model=SOURCE_SEASONAL_NAIVE)
    actual = part.actual.ravel()
    expected = [
        np.mean([2 * max(q * (y - f), (q - 1) * (y - f)) for q, f in zip(levels, row, strict=True)])
        for y, row in zip(actual, naive.reshape(9, -1), strict=True)
    ]
    assert own["pinball"].to_list() == pytest.approx(expected)
    raw = seasonal_naive(panel, windows, horizon=3, season=7, levels=levels)
    assert (raw < 0).any()
