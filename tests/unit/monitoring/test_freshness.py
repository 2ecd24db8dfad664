"""How old scores and observations are: against the clock and each other, in steps of any length."""

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from forecast.config import MonitorSettings, ScoreOutput, ScoreSettings, SinkConfig, SourceConfig
from forecast.data.ingest.loaded import Loaded
from forecast.errors import DataError
from forecast.monitoring.cutoffs import Cutoff
from forecast.monitoring.evaluation import monitor
from forecast.monitoring.forecasts import ScoredForecasts
from forecast.monitoring.freshness import Freshness, freshness_of
from forecast.monitoring.result import MonitorResult
from forecast.monitoring.thresholds import checks
from forecast.reports.monitor_page import monitor_page
from forecast.scoring.job import ScoreJob
from forecast.training.result import FitResult
from pipelines.monitoring.summary import measures, summary

FACTS = {"comparison": None, "rollback": None, "no_rollback": None, "on_breach": None}


def day(number: int) -> datetime:
    """Of the table, which has 160 of them."""
    return datetime(2024, 1, 1) + timedelta(days=number)


@pytest.fixture(scope="module")
def nightly(trained: FitResult, weekly_loaded: Loaded, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scores of the days 140 to 149, each written in the night after its cutoff."""
    folder = tmp_path_factory.mktemp("nightly")
    names = {"model": "m", "model_version": "1", "model_digest": "ab12"}
    job = ScoreJob(trained.artifact, weekly_loaded, ScoreSettings(), ScoreOutput(path=str(folder)), names)
    for number in range(140, 150):
        path = job.write(weekly_loaded.panel.grid.floor(day(number))).manifest
        content = json.loads(path.read_text()) | {"trained_until": None, "written_at": f"{day(number + 1)}+00:00"}
        path.write_text(json.dumps(content))
    return folder


@pytest.fixture
def look(trained: FitResult, weekly_table: pl.DataFrame, nightly: Path, tmp_path: Path) -> Callable[..., MonitorResult]:
    def run(
        end: int,
        as_of: datetime | None = None,
        now: datetime | None = None,
        scores: Path = nightly,
        recent: int | None = None,
        **limits: Any,
    ) -> MonitorResult:
        weekly_table.filter(pl.col("timestamp") <= day(end)).write_parquet(tmp_path / "table.parquet")
        source = SourceConfig(path=str(tmp_path / "table.parquet"), until=as_of)
        settings = MonitorSettings.model_validate(
            {"as_of": as_of, "recent": recent, "history": recent, "thresholds": limits}
        )
        written = ScoredForecasts(SinkConfig(path=str(scores)))
        return monitor(trained.artifact, trained.artifact.open(source), written, None, settings, now=now)

    return run


def late(found: MonitorResult, **limits: Any) -> set[str]:
    judged = checks(found, MonitorSettings.model_validate({"thresholds": limits}), {})
    return {check.key for check in judged if check.breached and check.key.endswith(("_age", "_lag"))}


def test_scoring_that_has_stopped_is_a_finding(
    look: Callable[..., MonitorResult], weekly_table: pl.DataFrame, tmp_path: Path
) -> None:
    fresh = look(151, day(151))
    assert late(fresh) == set()
    assert late(look(152, day(152))) == {"max_scores_lag"}
    assert fresh.freshness.findings == []
    stopped = look(153, day(153))
    assert late(stopped) == {"max_scores_age", "max_scores_lag"}
    (sentence,) = stopped.freshness.findings
    assert sentence == (
        "scoring has stopped: the latest cutoff is 2024-05-29T00:00:00, 4 steps (4 days) before 2024-06-02T00:00:00, "
        "4 steps (4 days) before the end of the table"
    )
    assert sentence in summary(stopped, "m", tmp_path, "")
    page = monitor_page(stopped, [], model="m", history=weekly_table.head(0), facts=FACTS)
    assert sentence[1:] in page
    assert "2024-05-29, 4 steps (4 days) ago" in page
    logged = measures(stopped, {})
    assert (logged["monitor/freshness/scores_age_steps"], logged["monitor/freshness/scores_age_hours"]) == (4, 96)
    assert logged["monitor/freshness/observations_age_steps"] == 0
    # However long ago, and whatever is left to judge.
    gone = look(159, day(159), recent=1)
    assert late(gone) == {"max_scores_age", "max_scores_lag"}
    assert gone.counts["cutoffs"] == gone.counts["rows"] == 0
    assert "no cutoff is left, so nothing is judged, scoring has stopped: " in summary(gone, "m", tmp_path, "")
    with pytest.raises(DataError, match="forecasts end before 2024-06-07"):
        look(159, day(159), recent=1, max_scores_age=None, max_scores_lag=None)


def test_a_table_that_is_not_updated_is_a_finding(look: Callable[..., MonitorResult]) -> None:
    assert late(look(149, day(152))) == set()
    still = look(149, day(153))
    assert late(still) == {"max_observations_age", "max_scores_age"}
    assert still.freshness.findings == [
        "the table is not updated: it ends at 2024-05-29T00:00:00, 4 steps (4 days) before 2024-06-02T00:00:00",
        "there are no new scores: the latest cutoff is 2024-05-29T00:00:00, 4 steps (4 days) before "
        "2024-06-02T00:00:00, and the table has no later observations",
    ]
    # Scores of moments that the table has not reached are not behind it.
    assert late(look(145, day(149))) == {"max_observations_age"}


def test_without_as_of_the_clock_is_the_time_unless_the_scores_are_of_history(
    look: Callable[..., MonitorResult], nightly: Path, tmp_path: Path
) -> None:
    assert late(look(149, None, day(151).replace(tzinfo=UTC))) == set()
    assert late(look(149, None, day(160).replace(tzinfo=UTC))) == {"max_observations_age", "max_scores_age"}
    history = Path(shutil.copytree(nightly, tmp_path / "history"))
    for path in (history / "manifests").iterdir():
        path.write_text(json.dumps(json.loads(path.read_text()) | {"written_at": "2026-01-01T00:00:00+00:00"}))
    now = datetime(2026, 1, 1, tzinfo=UTC)
    found = look(149, None, now, history)
    assert late(found) == set()
    assert found.freshness.clock == day(149)
    assert late(look(159, None, now, history)) == {"max_scores_age", "max_scores_lag"}
    # Of releases that did not say when: the time of the file.
    for path in (history / "manifests").iterdir():
        content = json.loads(path.read_text())
        del content["written_at"]
        path.write_text(json.dumps(content))
    assert late(look(149, None, datetime.now(UTC), history)) == set()


def test_limits_are_steps_durations_or_none(look: Callable[..., MonitorResult]) -> None:
    cases: list[tuple[dict[str, Any], set[str]]] = [
        ({"max_scores_age": 10, "max_scores_lag": 10}, set()),
        ({"max_scores_age": "9d", "max_scores_lag": "10d"}, {"max_scores_age"}),
        ({"max_scores_age": "240h", "max_scores_lag": "1w"}, {"max_scores_lag"}),
        ({"max_scores_age": None, "max_scores_lag": "none"}, set()),
    ]
    for limits, expected in cases:
        # With a limit on nothing and no forecast in the windows, there is nothing to look at.
        found = look(159, day(159), **limits)
        assert late(found, **limits) == expected
        assert bool(found.freshness.findings) is bool(expected)
    with pytest.raises(ValueError, match="must be a number of steps, a duration"):
        MonitorSettings.model_validate({"thresholds": {"max_scores_age": "often"}})


@pytest.mark.parametrize(
    ("freq", "every", "gap", "silent"),
    [
        ("15m", timedelta(minutes=15), 96, 95 + 288),
        ("1h", timedelta(hours=1), 1, 72),
        ("1h", timedelta(hours=1), 24, 95),
        ("1d", timedelta(days=1), 1, 3),
        ("1d", timedelta(days=1), 7, 9),
        ("1w", timedelta(days=7), 1, 2),
        ("1w", timedelta(days=7), 4, 5),
    ],
)
def test_what_is_late_depends_on_the_steps_and_on_how_often_there_are_scores(
    table: Callable[..., pl.DataFrame],
    loaded: Callable[..., Loaded],
    freq: str,
    every: timedelta,
    gap: int,
    silent: int,
) -> None:
    panel = loaded(table({"a": np.arange(9.0)}, every=every), 1, freq=freq).panel
    end = panel.last_index

    def at(steps: int, cutoffs: int = 5) -> Freshness:
        content = {"horizon": 4, "written_at": "2024-01-01T00:00:00+00:00"}
        scores = [Cutoff(end - gap * number, content) for number in reversed(range(cutoffs))]
        moment = panel.grid.timestamps(np.array([end + steps]))[0]
        return freshness_of(scores, panel, MonitorSettings(as_of=moment), None)

    kept, breached = at(silent), at(silent + 1)
    assert (kept.scores_age.late, kept.observations_age.late) == (False, False)
    assert (breached.scores_age.late, breached.observations_age.late) == (True, True)
    assert breached.scores_age.time == (silent + 1) * every
    # A first cutoff: the next one may come when its horizon ends.
    grace = {"15m": 288, "1h": 72, "1d": 3, "1w": 2}[freq]
    assert not at(grace + 3, 1).scores_age.late
    assert at(grace + 4, 1).scores_age.late
    assert not at(grace, 1).observations_age.late
    assert at(grace + 1, 1).observations_age.late
