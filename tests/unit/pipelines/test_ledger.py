import dataclasses
import json
import multiprocessing
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from forecast.errors import LedgerError
from pipelines.jobs.ledger import Ledger
from pipelines.jobs.ledger_entry import Job


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")


def job(**known: str) -> Job:
    return Job(**{"flow": "score", "dataset": "panel", "config_digest": "d1", "config": {"a": 1}} | known)  # type: ignore[arg-type]


def gone() -> int:
    """The number of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
        return process.pid


def test_the_latest_attempt_says_how_something_stands(ledger: Ledger) -> None:
    first = ledger.begin(job())
    assert (first.status, first.attempt, first.pid) == ("running", 1, os.getpid())
    ledger.end(first.id, "failed", 4, "no answer")
    second = ledger.begin(job())
    ledger.note(second.id, cutoff="2024-01-01", model="loads v3", output="manifest.json")
    ledger.end(second.id, "done", 0)
    (entry,) = ledger.entries()
    assert (entry.id, entry.status, entry.attempt, entry.exit_code) == (second.id, "done", 2, 0)
    assert (entry.cutoff, entry.model, entry.output, entry.config) == (
        "2024-01-01",
        "loads v3",
        "manifest.json",
        {"a": 1},
    )
    assert entry.ended is not None
    assert entry.seconds == pytest.approx((entry.ended - entry.started).total_seconds(), abs=0.01)
    newest, oldest = ledger.entries(every=True)
    assert (oldest.status, oldest.error, oldest.attempt, newest.attempt) == ("failed", "no answer", 1, 2)
    assert ledger.get(first.id) == oldest


@pytest.mark.parametrize("other", ["flow", "dataset", "cutoff", "config_digest", "model"])
def test_every_part_of_the_key_counts(ledger: Ledger, other: str) -> None:
    for value in ("one", "two"):
        entry = ledger.begin(job(**{} if other == "model" else {other: value}))
        ledger.note(entry.id, model=value if other == "model" else "v1")
        ledger.end(entry.id, "done", 0)
    assert [entry.attempt for entry in ledger.entries()] == [1, 1]


def test_entries_are_filtered(ledger: Ledger) -> None:
    done, failed = ledger.begin(job()), ledger.begin(job(flow="train", dataset="other"))
    ledger.end(done.id, "done", 0)
    ledger.end(failed.id, "failed", 3, "bad")
    hour = timedelta(hours=1)
    assert [entry.id for entry in ledger.entries(flow="train")] == [failed.id]
    assert [entry.id for entry in ledger.entries(status="done")] == [done.id]
    assert [entry.id for entry in ledger.entries(dataset="panel")] == [done.id]
    assert len(ledger.entries(since=datetime.now(UTC) - hour)) == 2
    assert ledger.entries(since=datetime.now(UTC) + hour) == ledger.entries(status="running") == []


def test_a_job_that_is_gone_or_silent_is_abandoned(ledger: Ledger, tmp_path: Path) -> None:
    killed, silent = ledger.begin(job(), pid=gone()), ledger.begin(job(cutoff="1"))
    elsewhere = ledger.begin(job(cutoff="2"))
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as database:
        old = (datetime.now(UTC) - timedelta(minutes=5)).isoformat()
        database.execute("update gatecast_runs set heartbeat = ? where id = ?", [old, silent.id])
        database.execute("update gatecast_runs set host = 'elsewhere', pid = 1 where id = ?", [elsewhere.id])
        database.commit()
    assert ledger.get(killed.id).status == ledger.get(silent.id).status == "abandoned"
    assert "is gone" in ledger.get(killed.id).error
    assert ledger.get(elsewhere.id).status == "running"
    ledger.beat(silent.id)
    assert ledger.get(silent.id).status == "running"


def test_a_slot_is_done_once(ledger: Ledger) -> None:
    slot = job(schedule="nightly", slot="2024-01-01T00:00:00+00:00")
    dead = ledger.begin(slot, pid=gone())
    assert (ledger.begin(slot).attempt, dead.attempt) == (2, 1)
    with pytest.raises(LedgerError, match=f"under way: process {os.getpid()} on .*, run 2"):
        ledger.begin(slot)
    ledger.end(2, "done", 0)
    again = ledger.begin(slot)
    assert (again.id, again.status) == (2, "done")
    assert len(ledger.entries(every=True)) == 2
    assert ledger.slots("nightly", slot.slot, slot.slot)[slot.slot] == ledger.latest("nightly", slot.slot) == again


def _take(uri: str, ready: "multiprocessing.synchronize.Barrier") -> None:
    ready.wait()
    for number in range(20):
        try:
            Ledger(uri).begin(job(schedule="nightly", slot=f"{number:02d}"))
        except LedgerError:
            continue
    ready.wait()  # Whoever took one is alive as long as others want it.


def test_processes_at_once_do_not_take_the_same_slot(ledger: Ledger) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(3)
    both = [context.Process(target=_take, args=(ledger.uri, ready)) for _ in range(3)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0, 0]
    assert sorted(entry.slot for entry in ledger.entries(every=True)) == [f"{number:02d}" for number in range(20)]


def test_the_newest_are_found_by_what_they_are(ledger: Ledger) -> None:
    ended = gone()
    for number in range(12):
        entry = ledger.begin(job(dataset=f"panel {number % 6}"), pid=ended if number % 3 else None)
        if number % 2:
            ledger.end(entry.id, "failed" if number % 4 == 1 else "done", 0)
    every = ledger.entries(every=True)
    assert [entry.id for entry in every] == list(range(12, 0, -1))
    latest = ledger.entries()
    assert [entry.id for entry in latest] == list(range(12, 6, -1))
    for status in ("running", "done", "failed", "abandoned"):
        same = [entry.id for entry in latest if entry.status == status]
        assert same
        for limit in (1, 2, 9):
            assert [entry.id for entry in ledger.entries(status=status, limit=limit)] == same[:limit]
    assert ledger.entries(since=every[4].started, every=True) == ledger.entries(every=True, limit=5)
    assert [entry.attempt for entry in ledger.entries(dataset="panel 5", every=True)] == [2, 1]


def test_what_is_settled_stays_so(ledger: Ledger) -> None:
    early, late = (datetime(2024, 1, day, tzinfo=UTC) for day in (1, 2))
    assert ledger.settled("nightly") is None
    for moment in (late, early):
        ledger.settle("nightly", moment)
    assert ledger.settled("nightly") == late
    assert ledger.settled("weekly") is None


def test_a_ledger_of_version_2_keeps_its_runs_and_sends_no_old_notice(ledger: Ledger, tmp_path: Path) -> None:
    slot = job(schedule="nightly", slot="2024-01-01T00:00:00+00:00")
    for code in (3, 2):
        ledger.end(ledger.begin(slot).id, "failed", code)
    running = ledger.begin(job())
    with closing(sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)) as database:
        database.execute("drop index gatecast_runs_notice")
        for name in ("process", "notice", "settings_digest"):
            database.execute(f"alter table gatecast_runs drop column {name}")
        database.execute("update gatecast_ledger set version = 2")
    again = Ledger(ledger.uri)
    entries = again.entries(every=True)
    assert [(entry.status, entry.attempt, entry.failures) for entry in entries] == [
        ("running", 1, 0),
        ("failed", 2, 2),
        ("failed", 1, 1),
    ]
    assert again.notices("nightly") == []
    assert [entry.process for entry in entries] == ["", "", ""]
    again.end(running.id, "done", 0)
    assert [entry.id for entry in again.refused("nightly", 2)] == [2]


def test_an_older_ledger_gets_the_columns_it_lacks(ledger: Ledger, tmp_path: Path) -> None:
    before = ledger.begin(job())
    with closing(sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)) as database:
        for column in ("mlflow", "given"):
            database.execute(f"alter table gatecast_runs drop column {column}")
        database.execute("update gatecast_ledger set version = 1")
    again = Ledger(ledger.uri)
    (kept,) = again.entries()
    assert (kept.id, kept.flow, kept.mlflow, kept.references) == (before.id, before.flow, "", {})
    assert len(Ledger(ledger.uri).entries()) == 1


def test_it_keeps_which_settings_were_references_and_is_for_its_owner(ledger: Ledger, tmp_path: Path) -> None:
    references = {"data.path": "${oc.env:TABLE}", "finetune.series": ["${oc.env:A}", "b"]}
    entry = ledger.begin(dataclasses.replace(job(), references=references))
    assert ledger.get(entry.id).references == references
    assert (tmp_path / "ledger.db").stat().st_mode & 0o777 == 0o600
    (tmp_path / "ledger.db").chmod(0o640)
    ledger.entries()
    assert (tmp_path / "ledger.db").stat().st_mode & 0o777 == 0o640  # What is there stays as its owner set it.


def test_a_ledger_that_is_locked_or_newer_is_told(ledger: Ledger, tmp_path: Path) -> None:
    ledger.begin(job())
    with closing(sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)) as database:
        database.execute("begin immediate")
        with pytest.raises(LedgerError, match=r"the ledger does not answer: ledger\.uri=sqlite.*locked"):
            ledger.begin(job())
        assert len(ledger.entries()) == 1  # who reads waits for nobody
        database.execute("rollback")
        database.execute("update gatecast_ledger set version = 9")
    with pytest.raises(LedgerError, match="has the format 9, this gatecast reads 4"):
        ledger.entries()
    (tmp_path / "text.db").write_text("this is no database, " * 99)
    with pytest.raises(LedgerError, match="not a database"):
        Ledger(f"sqlite:///{tmp_path / 'text.db'}").entries()
    with pytest.raises(LedgerError, match="there is no run 7"):
        Ledger(f"sqlite:///{tmp_path / 'new.db'}").get(7)


DAMAGES = {
    "status": ["finished", None, 7],
    "started": [None, "yesterday", "2024-01-01T00:00:00"],
    "heartbeat": [None, "", 3.5],
    "ended": ["never", 12],
    "seconds": [None, "long"],
    "pid": [None, "x"],
    "host": [None],
    "config": [None, "{", "[1]"],
    "given": ["{", "3"],
    "flow": [None],
    "slot": [None],
    "exit_code": ["none"],
    "error": [None],
    "notice": [None],
}


@pytest.mark.parametrize(("column", "value"), [(name, value) for name, values in DAMAGES.items() for value in values])
def test_a_damaged_row_is_shown_as_far_as_it_can_be_read(
    ledger: Ledger, tmp_path: Path, column: str, value: object
) -> None:
    damaged, whole = ledger.begin(job()), ledger.begin(job(flow="train"))
    for entry in (damaged, whole):
        ledger.end(entry.id, "failed", 3, "no table")
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as connection:
        connection.execute(f"update gatecast_runs set {column} = ? where id = ?", [value, damaged.id])
        connection.commit()
    entries = ledger.entries()
    assert [entry.id for entry in entries] == [whole.id, damaged.id]
    shown = ledger.get(damaged.id)
    assert entries[1] == shown
    assert json.dumps(shown.shown())
    readable = {"flow": "score", "dataset": "panel", "config_digest": "d1", "exit_code": 3, "status": "failed"}
    readable.pop(column, None)
    assert shown.shown().items() >= readable.items()
    if column == "status":
        assert shown.status == "abandoned"
        assert [entry.id for entry in ledger.entries(status="abandoned")] == [damaged.id]
    if value != "2024-01-01T00:00:00" and column != "exit_code":
        assert f"damaged: {column}=" in shown.error
    assert ledger.entries(every=True, status="failed")[0] == ledger.get(whole.id)


def test_a_schedule_whose_row_is_damaged_is_stopped_and_can_begin_again(ledger: Ledger, tmp_path: Path) -> None:
    now = datetime.now(UTC)
    ledger.settle("nightly", now)
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as connection:
        connection.execute("update gatecast_schedules set settled = 'soon'")
        connection.commit()
    settled = ledger.settled("nightly")
    assert settled is not None
    assert settled > now + timedelta(days=365)
    ledger.rewind("nightly", now)
    assert ledger.settled("nightly") == now
