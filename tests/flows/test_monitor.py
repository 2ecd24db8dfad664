"""The loop that keeps models fresh: shadow scores, monitoring, rollback, and refresh."""

import json
import re
from pathlib import Path
from typing import Any

import mlflow
import polars as pl
import pytest
from flow import BACKTEST, END, FINETUNE, NAME, SERIES, Store, forecast, refuse, succeed

from forecast.config import RegistryConfig
from forecast.tracking.champions import DEMOTED
from forecast.tracking.registry import Registry
from pipelines.jobs.ledger import Ledger
from pipelines.notify import event_of

MODEL = f"registry.name={NAME}"
CUTOFFS = "score.cutoffs=2024-01-15..2024-01-18/12h"
LOOK = ("monitor", MODEL, "scores.path=scores", "output.path=watch")
BREACH = "monitor.thresholds.max_wql_naive=0.0001"
SEEING = "monitor.thresholds.min_judged=null"


def registry() -> Registry:
    return Registry(RegistryConfig(name=NAME))


def days(store: Store) -> list[Any]:
    """Return the runs of `forecast monitor` that are not deleted."""
    client = mlflow.MlflowClient(store.uri)
    found = client.search_runs([client.get_experiment_by_name(NAME).experiment_id])
    return [run for run in found if run.data.tags["job"] == "monitor"]


def manifests(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((folder / "manifests").iterdir())]


def forget(scores: Path) -> None:
    """Leave out of the manifests until when versions were trained, for these have seen the whole table."""
    for path in scores.rglob("manifests/*.json"):
        content = json.loads(path.read_text())
        path.write_text(json.dumps({name: value for name, value in content.items() if name != "trained_until"}))


@pytest.fixture
def worse(promoted: Store) -> Store:
    """v1, which is worse than v2, took over from it without being asked."""
    registry().promote(registry().resolve(1))
    return promoted


def test_a_worse_champion_is_rolled_back_once_and_not_promoted_again(
    worse: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = f"data.path={worse.table}"
    shadow = ("score.shadow=previous", "score.shadow_share=0.8")
    plain = worse.score(None, CUTOFFS, output="plain").out
    scored = worse.score(None, CUTOFFS, *shadow, output="scores").out
    scores = worse.folder / "scores"
    (chosen,) = {content["series"]["in"] for content in manifests(scores / "shadow")}
    assert 0 < chosen < len(SERIES)
    assert f"shadow v2 on {chosen} series" in scored
    assert "shadow" not in plain
    # What people read is the same, and names no file of the shadow.
    assert [content["files"] for content in manifests(scores)] == [
        content["files"] for content in manifests(worse.folder / "plain")
    ]
    assert {content["model_version"] for content in manifests(scores / "shadow")} == {"2"}
    assert pl.read_parquet(scores / "forecasts")["model_version"].unique().to_list() == ["1"]
    before = {path: path.stat().st_mtime_ns for path in scores.rglob("*.parquet")}
    worse.score(None, CUTOFFS, *shadow, output="scores")
    assert {path: path.stat().st_mtime_ns for path in scores.rglob("*.parquet")} == before

    # What a version was trained on is no evidence.
    learnt = succeed(*LOOK, table, SEEING, "monitor.rollback=true")
    assert (
        "6 of 7 cutoffs left out: their version was trained on steps after them (v1 until 2024-01-17T23:" in learnt.out
    )
    assert "no rollback: " in learnt.out
    forget(scores)

    # The first day: nothing has come yet.
    first = succeed(*LOOK, table, "monitor.as_of=2024-01-15", "monitor.rollback=true", BREACH)
    assert "240 forecasts = 0 scored + 240 not yet observed + 0 whose observation is missing" in first.out
    assert "nothing recent is observed yet, so nothing is judged" in first.out
    assert registry().resolve("champion").number == 1

    # Too few, then enough.
    # Without a backtest, and with three days of history, no series is judged: that is a finding of its own.
    blind = forecast(*LOOK, table, BREACH)
    assert "share of series that are judged 0, monitor.thresholds.min_judged=0.5" in blind.err
    assert "0 of 0 judged series with an alarm, 20 not judged (no reference)" in blind.out
    last = (*LOOK, table, "monitor.rollback=true", "monitor.rollback_p=0.05", BREACH, SEEING)
    enough = "monitor.rollback_blocks=4"
    few = forecast(*last, enough, "monitor.rollback_min=10000")
    assert few.code == 8
    assert re.search(r"no rollback: \d+ forecasts by both in 4 blocks of time, monitor\.rollback_min=10000", few.out)
    few = forecast(*last)
    assert few.code == 8
    assert re.search(r"no rollback: \d+ forecasts by both in 4 blocks of time, monitor\.rollback_blocks=6", few.out)
    # A promotion while the day is judged is not undone.
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(
            "pipelines.monitoring.rollback.missing_evidence", lambda *_: registry().promote(registry().resolve(2)) or ""
        )
        between = forecast(*last, enough)
    assert between.code == 8
    assert "no rollback: nothing was rolled back: loads v2 has become champion (promoted) since loads v1" in between.out
    assert (registry().resolve("champion").number, registry().resolve(1).tags.get(DEMOTED)) == (2, None)
    registry().promote(registry().resolve(1))

    done = forecast(*last, enough)
    assert done.code == 9, done.err
    assert (
        "error: champion rolled back: v1 -> v2; as of 2024-01-18T23:00:00, loads v2 as its shadow has MASE" in done.err
    )
    assert "1 threshold is breached: WQL over that of seasonal naive" in done.err
    assert event_of(done.code) == "rollback"
    assert registry().resolve("champion").number == 2
    folder = worse.folder / "watch" / "as_of=2024-01-18T23%3A00%3A00"
    assert {path.name for path in folder.iterdir()} >= {"monitor.html", "scores.parquet", "metrics.parquet"}
    assert "Champion rolled back: v1 -&gt; v2" in (folder / "monitor.html").read_text()

    # It is not promoted again, unless somebody forces that.
    message = refuse(5, "promote", MODEL, "registry.alias=1")
    assert "loads v1 is not promoted: it was the champion and was rolled back: as of 2024-01-18T23:00:00" in message

    # Another look at the same day: v2 was no champion then, and nothing goes back and forth.
    again = forecast(*last, enough)
    assert again.code == 8
    assert "no rollback: " in again.out
    assert registry().resolve("champion").number == 2
    (run,) = (run for run in days(worse) if run.data.tags["as_of"] == "2024-01-18T23:00:00")
    assert run.data.tags["rollback"].startswith("champion rolled back: v1 -> v2")
    assert len(days(worse)) == 2
    entries = Ledger("sqlite:///gatecast.db").entries(flow="monitor", every=True)
    assert [entry.exit_code for entry in entries] == [8, 9, 8, 8, 8, 8, 0, 0]
    assert entries[1].error.startswith("champion rolled back")
    assert {entry.cutoff for entry in entries} == {"2024-01-15T00:00:00", "2024-01-18T23:00:00"}
    # What is promoted after all is no longer marked.
    succeed("promote", MODEL, "registry.alias=1", "promote.force=true")
    assert registry().resolve("champion").number == 1
    assert registry().resolve(1).tags[DEMOTED] == ""


def test_a_good_champion_stays_and_a_breach_starts_a_verb_once(promoted: Store) -> None:
    table = f"data.path={promoted.table}"
    promoted.score(None, CUTOFFS, "score.shadow=pretrained", output="scores")
    forget(promoted.folder / "scores")
    quiet = succeed(*LOOK, table, "monitor.rollback=true", "monitor.thresholds.max_alarmed=null")
    assert "whose observation is missing, recent MASE" in quiet.lines[0]
    assert any("max_wql_naive" in line and "kept" in line and "steps" in line for line in quiet.lines[1:])
    assert max(map(len, quiet.lines[1:])) <= 80
    content = json.loads(next((promoted.folder / "watch").glob("*/monitor.json")).read_text())
    assert content["rollback"] is None
    assert "champion" in content["comparison"]  # v1 is no version that v2 replaced: it is compared, and that is all.
    stopped = forecast(*LOOK, table, "monitor.thresholds.max_scores_lag=12h", "monitor.thresholds.max_alarmed=null")
    assert stopped.code == 8
    assert "scoring has stopped: the latest cutoff is 2024-01-18T00:00:00, 23 steps (23 hours) before" in stopped.err
    assert "steps of scores behind observations 23, monitor.thresholds.max_scores_lag=12" in stopped.err
    started = ("monitor.on_breach=promote", "monitor.on_breach_overrides=registry.alias=1")
    done = forecast(*LOOK, table, BREACH, *started)
    assert done.code == 8
    assert "forecast promote ended with exit code 5" in done.err
    entries = Ledger("sqlite:///gatecast.db").entries(flow="promote")
    assert [(entry.exit_code, entry.config["registry"]["alias"]) for entry in entries] == [(5, "1")]
    again = forecast(*LOOK, table, BREACH, *started)
    assert again.code == 8
    assert "promote" not in again.err
    assert len(days(promoted)) == 1


@pytest.mark.usefixtures("inline_jobs")
def test_two_watches_of_one_path_keep_their_runs_and_their_breaches(promoted: Store) -> None:
    """As two machines do that share a server: their folders have the same paths, and differ."""
    table = f"data.path={promoted.table}"
    promoted.score(None, CUTOFFS, output="scores")
    forget(promoted.folder / "scores")
    started = ("monitor.on_breach=promote", "monitor.on_breach_overrides=registry.alias=1")
    first = forecast(*LOOK, table, BREACH, *started)
    watch = promoted.folder / "watch"
    watch.rename(promoted.folder / "elsewhere")
    second = forecast(*LOOK, table, BREACH, *started)
    assert ("forecast promote ended" in first.err, "forecast promote ended" in second.err) == (True, True)
    assert len(days(promoted)) == 2
    ids = {run.data.tags["watch"] for run in days(promoted)}
    assert ids == {(folder / ".watch").read_text().strip() for folder in (watch, promoted.folder / "elsewhere")}
    # The first one again: its run, and no other, is replaced, and the folder knows what it has started.
    watch.rename(promoted.folder / "other")
    (promoted.folder / "elsewhere").rename(watch)
    before = {run.info.run_id for run in days(promoted)}
    assert "promote" not in forecast(*LOOK, table, BREACH, *started).err
    assert len({run.info.run_id for run in days(promoted)} & before) == 1
    (run,) = (run for run in days(promoted) if run.info.run_id not in before)
    mlflow.MlflowClient(promoted.uri).delete_run(run.info.run_id)
    assert "promote" not in forecast(*LOOK, table, BREACH, *started).err


def test_pages_share_one_script_and_old_days_are_removed(promoted: Store) -> None:
    table = f"data.path={promoted.table}"
    promoted.score(None, CUTOFFS, output="scores")
    forget(promoted.folder / "scores")
    watch = promoted.folder / "watch"
    for number, kept in (
        (16, ["16"]),
        (17, ["16", "17"]),
        (18, ["17", "18"]),
        (15, ["15", "17", "18"]),
        (18, ["17", "18"]),
    ):
        forecast(*LOOK, table, f"monitor.as_of=2024-01-{number}", "monitor.keep=2")
        assert sorted(path.name[14:16] for path in watch.glob("as_of=*")) == kept
    assert (watch / "plotly.min.js").stat().st_size > 1_000_000
    pages = [path.read_text() for path in watch.glob("as_of=*/monitor.html")]
    assert all('<script src="../plotly.min.js"></script>' in page for page in pages)
    assert max(map(len, pages)) < 100_000


def test_refresh_makes_judges_and_promotes_one_version(fine_tuned: Store) -> None:
    table = f"data.path={fine_tuned.table}"
    done = succeed("refresh", MODEL, table, *FINETUNE, *BACKTEST)
    assert f"{NAME} v3 is champion: MASE " in done.out
    assert registry().resolve("champion").number == 3
    entries = Ledger("sqlite:///gatecast.db").entries()
    assert [(entry.flow, entry.status) for entry in entries] == [
        (flow, "done") for flow in ("promote", "backtest", "finetune", "refresh")
    ]
    assert {entry.model for entry in entries if entry.flow != "finetune"} == {f"{NAME} v3"}


@pytest.mark.usefixtures("promoted")
def test_mistakes_are_told(promoted: Store) -> None:
    table = f"data.path={promoted.table}"
    assert "scores: no forecasts (it has no manifests)" in refuse(3, *LOOK, table)
    message = refuse(4, "score", MODEL, table, "output.path=scores", "score.shadow=champoin")
    assert "no alias 'champoin'" in message
    assert "set score.shadow" in message
    assert not (promoted.folder / "scores" / "forecasts").exists()
    message = refuse(2, *LOOK, table, "monitor.on_breach=finetun")
    assert "monitor.on_breach: no such verb; there are: train, " in message
    message = refuse(2, *LOOK, table, "monitor.on_breach=finetune")
    assert (
        "monitor.on_breach_overrides, of forecast finetune: 1 mistake in the config:\n  data.path: missing" in message
    )
    promoted.score(None, output="scores")
    message = refuse(2, *LOOK, table, "registry.name=others")
    assert "registry.name=others, but the forecasts in scores are of loads; set registry.name" in message
    message = refuse(2, *LOOK, table, "monitor.as_of=2024-01-15", f"data.until={END.isoformat()}")
    assert "monitor.as_of and data.until are both given" in message
    # A shadow that fails takes nothing from the forecasts.
    share = "score.shadow=pretrained", "score.shadow_share=0.0001"
    done = forecast("score", MODEL, table, "output.path=main", *share)
    assert done.code == 2
    assert "score.shadow, loads v1: score.shadow_share=0.0001 is none of 20 series" in done.err
    assert len(manifests(promoted.folder / "main")) == 1
    # The first champion replaced none: there is nothing to shadow, and that is no mistake.
    assert "there is none; no shadow" in promoted.score(None, "score.shadow=previous", output="scores").err
