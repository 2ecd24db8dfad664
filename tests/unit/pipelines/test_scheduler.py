"""What a scheduler makes of its ledger: what is due, what others are notified of, and clocks that were wrong."""

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from forecast.config import LedgerConfig, SchedulerConfig, ScheduleSettings
from forecast.data.time.frequency import Frequency, local_clock
from forecast.data.time.grid import moment_clock
from forecast.errors import ConfigError, LedgerError
from pipelines.jobs import processes
from pipelines.jobs.ledger import SKEW, Ledger
from pipelines.jobs.ledger_entry import Entry, Job
from pipelines.notify import Command, NotifyConfig
from pipelines.scheduling.overview import preview, repair, show
from pipelines.scheduling.schedule_file import Schedule
from pipelines.scheduling.scheduler import Scheduler

NOW = datetime(2024, 3, 5, 12, tzinfo=UTC)
ALL = ("success", "failure", "breach", "rollback")


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")


def schedule(**more: object) -> Schedule:
    """Due each midnight from 4 March on: at NOW, twice."""
    return Schedule.model_validate(
        {
            "cron": "0 0 * * *",
            "flow": "promote",
            "overrides": ["registry.name=m", "registry.alias=1"],
            "start": datetime(2024, 3, 4, tzinfo=UTC),
            "catch_up": "all",
            "backoff": 0,
        }
        | more
    )


def scheduler(ledger: Ledger, folder: Path, now: datetime | None = NOW, **more: object) -> Scheduler:
    """Return a scheduler that appends what it says to notices.jsonl."""
    append = f"import sys; open({str(folder / 'notices.jsonl')!r}, 'a').write(sys.stdin.read() + chr(10))"
    config = SchedulerConfig(schedule=ScheduleSettings(now=now), ledger=LedgerConfig(uri=SecretStr(ledger.uri)))
    notify = NotifyConfig(events=more.pop("events", ALL), command=Command(run=(sys.executable, "-c", append)))  # type: ignore[arg-type]
    result = Scheduler(config, {"nightly": schedule(**more)}, notify)
    result.agenda.enter("nightly")
    return result


def notices(scheduler: Scheduler, folder: Path) -> list[dict[str, object]]:
    scheduler.notices.close()
    file = folder / "notices.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def ended_process() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
        return process.pid


def attempt(ledger: Ledger, slot: str, status: str | None, exit_code: int = 0, digest: str = "") -> Entry:
    """Write an attempt at a slot; one without a status has a process that is gone."""
    job = Job(flow="promote", config={}, schedule="nightly", slot=slot, settings_digest=digest)
    entry = ledger.begin(job, ended_process() if status is None else os.getpid())
    if status:
        ledger.end(entry.id, status, exit_code, "why")  # type: ignore[arg-type]
    return entry


FIRST, SECOND = "2024-03-04T00:00:00+00:00", "2024-03-05T00:00:00+00:00"


def test_interruptions_use_no_retry(ledger: Ledger, tmp_path: Path) -> None:
    night = scheduler(ledger, tmp_path, retries=1)
    for status, code in [(None, 0), ("abandoned", 143), ("failed", 4), (None, 0), ("abandoned", 130), (None, 0)]:
        attempt(ledger, FIRST, status, code)
        slot = night.agenda.due("nightly")
        assert slot is not None
        assert slot.key == FIRST
        night.notices.send_due("nightly")
    assert notices(night, tmp_path) == []
    attempt(ledger, FIRST, "failed", 4)
    slot = night.agenda.due("nightly")
    assert slot is not None
    assert slot.key == SECOND
    for _ in range(2):
        night.notices.send_due("nightly")
    (notice,) = notices(night, tmp_path)
    assert (notice["event"], notice["slot"], notice["failures"], notice["attempt"]) == ("failure", FIRST, 2, 7)


def test_a_job_that_is_interrupted_again_and_again_is_given_up(ledger: Ledger, tmp_path: Path) -> None:
    night = scheduler(ledger, tmp_path)
    for _ in range(21):
        attempt(ledger, FIRST, "abandoned", 143)
    slot = night.agenda.due("nightly")
    assert slot is not None
    assert slot.key == SECOND
    night.notices.send_due("nightly")
    assert [notice["event"] for notice in notices(night, tmp_path)] == ["failure"]


@pytest.mark.parametrize(("catch_up", "next_slot"), [("last", SECOND), ("none", None)])
def test_a_slot_that_is_skipped_after_an_interruption_is_not_lost_in_silence(
    ledger: Ledger, tmp_path: Path, catch_up: str, next_slot: str | None
) -> None:
    scheduler(ledger, tmp_path, now=NOW - timedelta(days=1), catch_up=catch_up)
    attempt(ledger, FIRST, None)
    night = scheduler(ledger, tmp_path, catch_up=catch_up)
    slot = night.agenda.due("nightly")
    assert (slot and slot.key) == next_slot
    for _ in range(2):
        night.notices.send_due("nightly")
    assert [(notice["event"], notice["slot"]) for notice in notices(night, tmp_path)] == [("failure", FIRST)]


def test_once_alone_reports_a_slot_that_was_interrupted_before(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    append = f"import sys; open({str(tmp_path / 'notices.jsonl')!r}, 'a').write(sys.stdin.read() + chr(10))"
    config = SchedulerConfig(schedule=ScheduleSettings(now=NOW), ledger=LedgerConfig(uri=SecretStr(ledger.uri)))
    attempt(ledger, FIRST, None)
    done = attempt(ledger, SECOND, "done")
    for _ in range(2):
        notify = NotifyConfig(events=("failure",), command=Command(run=(sys.executable, "-c", append)))
        night = Scheduler(config, {"nightly": schedule()}, notify)
        night.once("nightly")
        assert [(notice["event"], notice["slot"]) for notice in notices(night, tmp_path)] == [("failure", FIRST)]
    assert ledger.settled("nightly") is None
    assert next(entry.id for entry in ledger.entries(schedule="nightly")) == done.id
    assert len(ledger.entries(schedule="nightly", every=True)) == 2


def test_an_interrupted_slot_was_not_missed(ledger: Ledger, tmp_path: Path) -> None:
    scheduler(ledger, tmp_path, now=NOW - timedelta(days=2), catch_up="none")
    attempt(ledger, SECOND, None)
    slot = scheduler(ledger, tmp_path, catch_up="none").agenda.due("nightly")
    assert slot is not None
    assert slot.key == SECOND


@pytest.mark.parametrize(
    ("status", "exit_code", "event"),
    [("done", 0, "success"), ("failed", 5, "breach"), ("failed", 8, "breach"), ("failed", 9, "rollback"),
     ("failed", 2, "failure")],
)  # fmt: skip
def test_the_next_scheduler_says_what_ended_without_one(
    ledger: Ledger, tmp_path: Path, status: str, exit_code: int, event: str
) -> None:
    scheduler(ledger, tmp_path)
    entry = attempt(ledger, FIRST, status, exit_code)
    both = [scheduler(ledger, tmp_path) for _ in range(2)]
    for night in both:
        night.notices.send_due("nightly")
    (notice,) = [notices(night, tmp_path) for night in both][-1]
    assert notice["event"] == event
    assert notice["key"] == f"nightly/{FIRST}/{event}/{entry.id}"
    assert ledger.notices("nightly") == []


def test_a_running_job_and_an_event_that_nobody_wants_have_no_notice(ledger: Ledger, tmp_path: Path) -> None:
    night = scheduler(ledger, tmp_path, events=("failure",))
    attempt(ledger, FIRST, "done")
    running = ledger.begin(Job(flow="promote", config={}, schedule="nightly", slot=SECOND))
    night.notices.send_due("nightly")
    assert notices(night, tmp_path) == []
    assert [entry.id for entry in ledger.notices("nightly")] == [running.id]


def test_a_notice_that_is_not_delivered_stays_due(ledger: Ledger, tmp_path: Path) -> None:
    entry = attempt(ledger, FIRST, "failed", 2)
    night = scheduler(ledger, tmp_path)
    night.notices._notifier._config = NotifyConfig(command=Command(run=(sys.executable, "-c", "raise SystemExit(1)")))
    night.notices.send_due("nightly")
    assert notices(night, tmp_path) == []
    assert ledger.notices("nightly") == []  # not before a while
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as database:
        ((state,),) = database.execute("select notice from gatecast_runs").fetchall()
        assert state > f"due {datetime.now(UTC).isoformat()}"
        database.execute("update gatecast_runs set notice = 'due 2024-01-01T00:00:00.000000+00:00'")
        database.commit()
    again = scheduler(ledger, tmp_path)
    again.notices.send_due("nightly")
    assert [notice["id"] for notice in notices(again, tmp_path)] == [entry.id]


def test_a_notice_that_a_ledger_held_up_is_sent_later(ledger: Ledger, tmp_path: Path) -> None:
    attempt(ledger, FIRST, "failed", 2)
    night = scheduler(ledger, tmp_path)
    (entry,) = ledger.notices("nightly")
    night.notices._ledger = Ledger(f"sqlite:///{tmp_path / 'gone.db'}")
    (tmp_path / "gone.db").write_text("this is no database, " * 99)
    night.notices.send(entry)
    assert notices(night, tmp_path) == []
    night.notices._ledger = ledger
    night.notices.send_due("nightly")
    assert [notice["id"] for notice in notices(night, tmp_path)] == [entry.id]


def test_one_claims_a_notice(ledger: Ledger) -> None:
    entry = attempt(ledger, FIRST, "failed", 2)
    assert [ledger.claim_notice(entry.id, 60) for _ in range(2)] == [True, False]
    ledger.postpone_notice(entry.id, 0)
    assert ledger.claim_notice(entry.id, 60)
    ledger.close_notice(entry.id)
    ledger.close_notice(entry.id)
    assert not ledger.claim_notice(entry.id, 60)
    person = ledger.begin(Job(flow="promote", config={}))
    assert not ledger.claim_notice(person.id, 60)


def stop(folder: Path) -> datetime:
    """Settle the schedule until next year, as a scheduler did whose clock was ahead."""
    ahead = datetime.now(UTC) + timedelta(days=400)
    with closing(sqlite3.connect(folder / "ledger.db")) as database:
        database.execute("update gatecast_schedules set settled = ?", [ahead.isoformat()])
        database.commit()
    return ahead


def test_a_moment_in_the_future_is_refused(ledger: Ledger, tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match=r"nightly: can't be settled until .*in the future"):
        ledger.settle("nightly", datetime.now(UTC) + 2 * SKEW)
    assert ledger.settled("nightly") is None
    night = scheduler(ledger, tmp_path)
    night._settings = ScheduleSettings(now=datetime.now(UTC) + timedelta(days=1))
    with pytest.raises(ConfigError, match=r"schedule\.now=.* is in the future"):
        night.run()


def test_a_schedule_that_starts_later_is_not_stopped(ledger: Ledger, tmp_path: Path) -> None:
    night = scheduler(ledger, tmp_path, now=None, start=datetime.now(UTC) + timedelta(days=9))
    assert night.agenda.stopped() == []
    assert night.agenda.due("nightly") is None
    begun = night.agenda.schedules["nightly"].before_start()
    settled = ledger.settled("nightly")
    assert begun is not None
    assert settled is not None
    assert settled < begun


def test_a_clock_that_was_wrong_once_is_shown_and_repaired(
    ledger: Ledger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    night = scheduler(ledger, tmp_path, now=None, start=None)
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    attempt(ledger, (midnight - timedelta(days=2)).isoformat(), "done")
    honest = ledger.entries()[0].started
    future = attempt(ledger, (midnight + timedelta(days=400)).isoformat(), "done")
    ahead = stop(tmp_path)
    with pytest.raises(LedgerError, match=r"(?s)1 of 1 schedule\(s\) are stopped.*forecast schedule repair nightly"):
        night.run()
    show(night.agenda)
    assert f"nightly: settled until {ahead:%Y-%m-%d}" in capsys.readouterr().out
    repair(night.agenda, None)
    assert "1 run(s) for slots in the future no longer count" in capsys.readouterr().out
    assert ledger.settled("nightly") == honest
    assert (ledger.get(future.id).slot, ledger.get(future.id).status) == ("", "done")
    assert night.agenda.stopped() == []
    repair(night.agenda, None)
    assert "nothing to repair" in capsys.readouterr().out
    repair(night.agenda, "nightly", midnight - timedelta(hours=30))
    assert [slot.key for slot in night.agenda.unfinished("nightly", night.agenda.moments("nightly"))[1]] == [
        (midnight - timedelta(days=day)).isoformat() for day in (1, 0)
    ]
    for name in (None, "nightly"):
        since = datetime.now(UTC) + timedelta(days=name is not None)
        with pytest.raises(ConfigError, match=r"schedule\.since"):
            repair(night.agenda, name, since)


def test_an_attempt_of_the_future_does_not_hold_up_the_next(ledger: Ledger, tmp_path: Path) -> None:
    night = scheduler(ledger, tmp_path, now=None, start=datetime.now(UTC) - timedelta(hours=25), backoff=600)
    slot = night.agenda.due("nightly")
    assert slot is not None
    entry = attempt(ledger, slot.key, "failed", 4)
    assert night.agenda.due("nightly") is None
    ahead = (datetime.now(UTC) + timedelta(days=400)).isoformat()
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as database:
        database.execute("update gatecast_runs set ended = ?, heartbeat = ? where id = ?", [ahead, ahead, entry.id])
        database.commit()
    assert night.agenda.due("nightly") == slot


def test_a_process_is_known_by_more_than_its_number(ledger: Ledger, tmp_path: Path) -> None:
    host = os.uname().nodename
    this = processes.identity(os.getpid())
    boot, namespace, start = this.rsplit(" ", 2)
    assert processes.is_running(host, os.getpid(), this) is True
    assert processes.is_running(host, os.getpid(), f"{boot} {namespace} {int(start) + 1}") is False
    assert processes.is_running(host, ended_process(), this) is False
    assert processes.is_running(host, os.getpid(), f"{boot} pid:[1] {start}") is None
    assert processes.is_running(host, os.getpid(), f"another {namespace} {start}") is None
    assert processes.is_running("elsewhere", os.getpid(), this) is None
    assert processes.is_running(host, os.getpid(), "") is True
    assert processes.is_running(host, ended_process(), "") is False
    # Of a container with this host name: its number means nothing here, what counts is when it was heard of.
    there = ledger.begin(Job(flow="promote", config={}), ended_process())
    for beat, status in ((0, "running"), (-5, "abandoned"), (5, "abandoned")):
        with closing(sqlite3.connect(tmp_path / "ledger.db")) as database:
            heard = (datetime.now(UTC) + timedelta(minutes=beat)).isoformat()
            values = [f"another {namespace} 7", heard, there.id]
            database.execute("update gatecast_runs set process = ?, heartbeat = ? where id = ?", values)
            database.commit()
        assert ledger.get(there.id).status == status


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.sampled_from(["", "1", "2"]), st.sampled_from(["failed", "abandoned"])),
        min_size=1,
        max_size=12,
    )
)
def test_attempts_and_failures_are_counted_by_key(
    tmp_path_factory: pytest.TempPathFactory, runs: list[tuple[str, str, str]]
) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path_factory.mktemp('ledger') / 'ledger.db'}")
    for dataset, slot, status in runs:
        schedule = "nightly" if slot else ""
        entry = ledger.begin(Job(flow="score", dataset=dataset, config={}, schedule=schedule, slot=slot))
        ledger.end(entry.id, status, 4)  # type: ignore[arg-type]

    def same(index: int) -> list[str]:
        key = [("slot", slot) if slot else ("work", dataset) for dataset, slot, _ in runs]
        return [runs[before][2] for before in range(index + 1) if key[before] == key[index]]

    expected = [(len(same(index)), same(index).count("failed")) for index in range(len(runs))]
    entries = ledger.entries(every=True)[::-1]
    assert [(entry.attempt, entry.failures) for entry in entries] == expected
    assert [ledger.get(entry.id) for entry in entries] == entries


@pytest.mark.parametrize(("catch_up", "slot"), [("last", SECOND), ("all", FIRST), ("none", SECOND)])
def test_a_slot_that_failed_by_settings_is_due_when_they_change(
    ledger: Ledger, tmp_path: Path, catch_up: str, slot: str
) -> None:
    night = scheduler(ledger, tmp_path, now=datetime.fromisoformat(slot), catch_up=catch_up)
    cutoff = datetime.fromisoformat(slot)
    attempt(ledger, slot, "failed", 2, digest=night.agenda.schedules["nightly"].digest(cutoff))
    assert night.agenda.due("nightly") is None  # It is settled.
    assert scheduler(ledger, tmp_path, now=cutoff, catch_up=catch_up).agenda.due("nightly") is None
    other = ["registry.name=m", "registry.alias=2"]
    mended = scheduler(ledger, tmp_path, now=cutoff, catch_up=catch_up, overrides=other)
    due = mended.agenda.due("nightly")
    assert due is not None
    assert (due.key, due.cutoff) == (slot, cutoff)
    assert mended.agenda.schedules["nightly"].digest(due.cutoff) == mended.agenda.schedules["nightly"].digest(cutoff)
    attempt(ledger, slot, "failed", 2, digest=mended.agenda.schedules["nightly"].digest(cutoff))
    assert mended.agenda.due("nightly") is None
    attempt(ledger, slot, "done")
    assert scheduler(ledger, tmp_path, now=cutoff, catch_up=catch_up).agenda.due("nightly") is None


def test_settings_that_change_do_not_bring_back_a_slot_before_the_latest(ledger: Ledger, tmp_path: Path) -> None:
    night = scheduler(ledger, tmp_path, catch_up="last")
    attempt(ledger, FIRST, "failed", 2, digest="of other settings")
    attempt(ledger, SECOND, "done")
    assert night.agenda.due("nightly") is None


def test_failures_by_other_settings_use_no_retry(ledger: Ledger, tmp_path: Path) -> None:
    night = scheduler(ledger, tmp_path, retries=1)
    for digest in ("one", "one", "two"):
        entry = attempt(ledger, FIRST, "failed", 4, digest=digest)
    assert (ledger.get(entry.id).attempt, ledger.get(entry.id).failures) == (3, 1)
    slot = night.agenda.due("nightly")
    assert slot is not None
    assert slot.key == FIRST


def test_a_slot_that_waits_for_data_uses_no_retry_and_one_row(ledger: Ledger, tmp_path: Path) -> None:
    night = scheduler(ledger, tmp_path, retries=0)
    entries = [attempt(ledger, FIRST, "waiting", 3) for _ in range(30)]
    assert {entry.id for entry in entries} == {1}
    slot = night.agenda.due("nightly")
    assert slot is not None
    assert slot.key == FIRST
    night.notices.send_due("nightly")
    assert notices(night, tmp_path) == []
    attempt(ledger, FIRST, "failed", 3)
    night.notices.send_due("nightly")
    assert [notice["failures"] for notice in notices(night, tmp_path)] == [1]
    assert len(ledger.entries(every=True)) == 1


@pytest.mark.parametrize(("text", "hours"), [("12h", 12), ("90m", 1.5), ("1d", 24), ("0s", 0), (" 1.5 h ", 1.5)])
def test_durations(text: str, hours: float) -> None:
    assert schedule(wait_for_data=text).wait_for_data == timedelta(hours=hours)


@pytest.mark.parametrize("text", ["12", 12, "-1h", "h", "12 hours", "1w", None])
def test_a_duration_without_unit_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="give a number with s, m, h or d"):
        schedule(wait_for_data=text)


@given(st.datetimes(datetime(2000, 1, 1), datetime(2040, 1, 1)), st.integers(-12, 14))
def test_a_moment_loses_its_time_zone_where_the_panel_has_none(moment: datetime, hours: int) -> None:
    frequency = Frequency.parse("1h")
    aware = moment.replace(tzinfo=timezone(timedelta(hours=hours)))
    with pytest.raises(ConfigError, match="has a time zone and the panel has none"):
        moment_clock(aware, frequency, None)
    before = moment_clock(aware, frequency, "Europe/Berlin")
    token = local_clock.set(True)
    try:
        assert moment_clock(aware, frequency, None) == moment_clock(moment, frequency, None)
        assert moment_clock(aware, frequency, "Europe/Berlin") == before
    finally:
        local_clock.reset(token)


def test_tables_that_do_not_suit_are_listed(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = pl.DataFrame({"series_id": ["a"], "timestamp": [datetime(2024, 1, 1, tzinfo=UTC)], "target": [1.0]})
    rows.with_columns(pl.col("timestamp").dt.convert_time_zone("Asia/Tokyo")).write_parquet("rows.parquet")
    score = {"flow": "score", "overrides": ["registry.name=m", "data.path=rows.parquet", "output.path=scores"]}
    night = scheduler(ledger, tmp_path, **score, naive=True, time_zone="Europe/Berlin")
    show(night.agenda)
    assert "nightly: naive: true has its cutoffs read in Asia/Tokyo" in capsys.readouterr().out
    preview(scheduler(ledger, tmp_path, **score, time_zone="Europe/Berlin").agenda)
    assert "nightly:" not in capsys.readouterr().out
    Path("rows.parquet").unlink()
    preview(night.agenda)
    assert "nightly: data.path=rows.parquet" in capsys.readouterr().out
    night.agenda.makers["nightly"] = ["append"]
    show(night.agenda)
    assert "nightly:" not in capsys.readouterr().out
