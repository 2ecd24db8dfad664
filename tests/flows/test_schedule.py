"""Ledger, scheduler and retries: what was missed is caught up, and nothing runs twice.

Jobs are processes where that matters: one that is killed, late or told to stop, or two schedulers at once.
"""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import services
from flow import END, NAME, Store, forecast, refuse, succeed

from forecast.data.sources import database
from forecast.errors import LedgerError, RegistryError
from forecast.tracking import alias_lock as alias_lock_module
from forecast.tracking.alias_lock import alias_lock
from pipelines.jobs import ledger_database
from pipelines.jobs.ledger import Ledger
from pipelines.jobs.ledger_entry import Entry, Job
from pipelines.notify import verify

MODEL = f"registry.name={NAME}"
FIRST = (END - timedelta(days=4)).date()
"""The first day of which a score is scheduled, in the night after it."""


def ledger() -> Ledger:
    return Ledger("sqlite:///gatecast.db")


def night(number: int) -> str:
    """Half past two in the night after the n-th day."""
    return f"{FIRST + timedelta(days=number + 1)}T02:30:30"


def write(notify: object = None, **settings: object) -> None:
    """Write conf/schedule.yaml with a job each night: a panel that is prepared, for other settings are not given."""
    prepare = ["data.uri=sqlite:///source.db", "data.query=select * from rows", "data.freq=1d", "window.horizon=1"]
    nightly = {"cron": "30 2 * * *", "flow": "data prepare", "overrides": [*prepare, "output.path=panel"]}
    content = {"schedules": {"nightly": nightly | settings}}
    Path("conf").mkdir(exist_ok=True)
    # JSON is YAML.
    Path("conf/schedule.yaml").write_text(json.dumps(content | ({"notify": notify} if notify else {})))


def score(store: Store) -> dict[str, object]:
    """Return the settings of a schedule that scores each day, in the night after it."""
    overrides = [MODEL, f"data.path={store.table}", "output.path=scores"]
    return {"flow": "score", "cutoff": "previous_day", "overrides": overrides}


def scores(store: Store) -> list[str]:
    """Return the cutoffs that are scored, each by its day."""
    return sorted(path.name[7:17] for path in (store.folder / "scores" / "manifests").glob("cutoff=*.json"))


def days(*numbers: int) -> list[str]:
    return [str(FIRST + timedelta(days=number)) for number in numbers]


def slots(entries: list[Entry]) -> list[str]:
    return sorted(entry.slot[:10] for entry in entries)


def scheduler(*arguments: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "pipelines.cli", "schedule", "run", *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


@pytest.fixture
def source(store: str) -> Iterator[sqlite3.Connection]:  # noqa: ARG001  in whose folder it is
    """A database with the rows that jobs prepare. A transaction in it keeps them waiting."""
    with closing(sqlite3.connect("source.db", isolation_level=None)) as connection:
        connection.execute("create table rows (series_id, timestamp, target)")
        values = [("a", f"2024-01-{day:02d}", float(day)) for day in range(1, 10)]
        connection.executemany("insert into rows values (?, ?, ?)", values)
        yield connection


def wait(happened: Callable[[], Any]) -> Any:
    """Wait until something is true; return it."""
    deadline = time.monotonic() + 400  # The machines are shared.
    while not (found := happened()):
        assert time.monotonic() < deadline, "it has not happened"
        time.sleep(0.05)
    return found


def test_every_verb_is_in_the_ledger(judged: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    succeed("promote", MODEL)
    judged.score()
    message = refuse(4, "score", MODEL, f"data.path={judged.table}", "output.path=out", "registry.alias=none")
    table = succeed("runs", "list").out
    assert all(word in table for word in ("promote", "score", "done", "failed", f"{NAME} v2"))
    shown = json.loads(succeed("runs", "list", "runs.format=json").out)
    assert [entry["flow"] for entry in shown] == ["score", "score", "promote"]
    failed, done, promoted = shown
    assert (done["status"], done["model"], done["cutoff"]) == ("done", f"{NAME} v2", END.isoformat())
    assert Path(done["output"]).is_file()
    assert (failed["status"], failed["exit_code"], failed["error"]) == ("failed", 4, message.strip())
    assert promoted["model"] == f"{NAME} v2"
    assert json.loads(succeed("runs", "show", done["id"], "runs.format=json").out) == done
    assert '"alias": "champion"' in succeed("runs", "show", done["id"]).out
    assert [
        entry["id"] for entry in json.loads(succeed("runs", "list", "runs.status=failed", "runs.format=json").out)
    ] == [failed["id"]]
    judged.score()
    latest = ledger().entries(flow="score", status="done")
    assert [(entry.attempt, entry.cutoff) for entry in latest] == [(2, END.isoformat())]


def test_a_ledger_that_does_not_answer_does_not_stop_a_person(promoted: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(sqlite3.connect("gatecast.db", isolation_level=None)) as database:
        database.execute("begin immediate")
        done = promoted.score()
        assert "this run is not, or not all, in the ledger" in done.err
        assert "database is locked" in done.err
        monkeypatch.setenv("GATECAST_SCHEDULE", "nightly")
        monkeypatch.setenv("GATECAST_SLOT", "2024-01-01T00:00:00+00:00")
        score = ("score", MODEL, f"data.path={promoted.table}", "output.path=other")
        assert "the ledger does not answer" in refuse(7, *score)
    assert not Path("other").exists()
    away = f"ledger.uri=postgresql://me:wr0ng@127.0.0.1:{services.free_port()}/db"
    message = refuse(7, "runs", "list", away)
    assert "Connection refused" in message
    assert "wr0ng" not in message


@pytest.mark.usefixtures("inline_jobs")
def test_a_retry_has_the_settings_of_its_run(promoted: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    table = promoted.folder / "late.parquet"
    monkeypatch.setenv("TABLE", str(table))
    score = ("score", MODEL, "data.path=${oc.env:TABLE}", "output.path=out", "output.min=0", "score.shard_size=7")
    refuse(3, *score)
    (failed,) = ledger().entries()
    assert failed.config["data"]["path"] == "${oc.env:TABLE}"
    table.write_bytes(promoted.table.read_bytes())
    monkeypatch.chdir(promoted.folder)
    assert "Traceback" not in succeed("runs", "retry", failed.id).err
    latest = ledger().entries()
    assert [(entry.status, entry.attempt, entry.cutoff) for entry in latest] == [("done", 2, END.isoformat())]
    assert {**latest[0].config, "data": None} == {**failed.config, "data": None}
    assert "is done; only runs that failed" in refuse(2, "runs", "retry", latest[0].id)
    assert "no run failed" in succeed("runs", "retry", "failed").out


@pytest.mark.usefixtures("source")
def test_a_retry_says_which_secret_it_needs() -> None:
    Path("empty.db").touch()
    secret = "sqlite:///empty.db?password=hunter2"
    table = f"data.uri='{secret}'", "data.query='select * from t'", "data.freq=1d"
    refuse(3, "data", "prepare", *table, "window.horizon=1", "output.path=out")
    assert b"hunter2" not in Path("gatecast.db").read_bytes()
    message = refuse(2, "runs", "retry", 1)
    assert "run 1 had a secret in data.uri" in message
    assert "forecast runs retry 1 data.uri=VALUE" in message
    assert "only what was left out of them is given" in refuse(2, "runs", "retry", 1, "output.path=other")
    with closing(sqlite3.connect("empty.db")) as database:
        database.execute("create table t (series_id, timestamp, target)")
    done = forecast("runs", "retry", 1, f"data.uri={secret}")
    assert (done.code, [entry.attempt for entry in ledger().entries()]) == (3, [2])
    assert "data.query returns no rows" in ledger().get(2).error


@pytest.mark.usefixtures("inline_jobs")
def test_an_outage_is_caught_up_and_nothing_runs_twice(promoted: Store) -> None:
    write(**score(promoted), catch_up="all")
    succeed("schedule", "run", f"schedule.now={night(0)}")
    assert not ledger().entries()  # What became due before it was there for the first time is not asked for.
    for _ in range(2):
        succeed("schedule", "run", f"schedule.now={night(2)}")
    assert scores(promoted) == days(1, 2)
    assert [entry.attempt for entry in ledger().entries(every=True)] == [1, 1]
    succeed("schedule", "run", f"schedule.now={night(1)}")  # The clock was set back.
    assert "done before" in succeed("schedule", "once", "nightly", "--cutoff", days(1)[0]).out
    assert len(ledger().entries(every=True)) == 2
    listed = succeed("schedule", "list", f"schedule.now={night(2)}").out
    assert "done" in listed
    assert f"{FIRST + timedelta(days=4)} 02:30" in listed
    previewed = succeed("schedule", "preview", f"schedule.now={night(2)}", "--until", night(4)).out
    assert previewed.count("nightly") == 2


@pytest.mark.parametrize(("catch_up", "expected"), [("last", (3,)), ("none", ())])
@pytest.mark.usefixtures("inline_jobs")
def test_what_was_missed_may_be_skipped(promoted: Store, catch_up: str, expected: tuple[int, ...]) -> None:
    write(**score(promoted), catch_up=catch_up)
    succeed("schedule", "run", f"schedule.now={night(0)}")
    done = succeed("schedule", "run", f"schedule.now={night(3)}")
    assert scores(promoted) == days(*expected)
    assert f"{3 - len(expected)} missed, skipped" in done.err
    assert "skipped" not in succeed("schedule", "run", f"schedule.now={night(3)}").err


@pytest.mark.usefixtures("inline_jobs", "source")
def test_a_failure_is_tried_again_and_then_given_up(webhook: "Webhook") -> None:
    hook = {"url": webhook.url, "secret_env": "HOOK_SECRET", "timeout": 0.5, "retries": 1, "backoff": 0.1}
    overrides = [MODEL, "data.path=not-there.parquet", "output.path=scores"]
    write({"webhook": hook}, retries=1, flow="score", cutoff="previous_day", overrides=overrides)
    webhook.hang = True
    succeed("schedule", "run", f"schedule.now={night(0)}")
    succeed("schedule", "run", f"schedule.now={night(1)}")
    entries = ledger().entries(every=True)
    assert [(entry.status, entry.exit_code, entry.attempt) for entry in entries] == [("failed", 3, 2), ("failed", 3, 1)]
    succeed("schedule", "run", f"schedule.now={night(1)}")
    assert len(ledger().entries(every=True)) == 2
    assert len(webhook.bodies) == 2  # The first one hung.
    headers, body = webhook.bodies[1]
    assert verify(b"k3y", headers["X-Gatecast-Signature"], body)
    told = json.loads(body)
    assert (told["event"], told["schedule"], told["attempt"], told["exit_code"]) == ("failure", "nightly", 2, 3)


@pytest.mark.usefixtures("inline_jobs")
def test_data_that_come_late_are_waited_for(store: str) -> None:  # noqa: ARG001  in whose folder it is
    append = "import sys; open('notices.jsonl', 'a').write(sys.stdin.read() + chr(10))"
    notify = {"events": ["success", "failure"], "command": {"run": [sys.executable, "-c", append]}}
    overrides = ["data.path=rows.csv", "data.freq=1d", "output.path=panel", "window.horizon=1"]
    write(notify, wait_for_data="12h", retries=0, start="2024-03-05", cron="0 0 * * *", overrides=overrides)
    for hour in (1, 2):
        succeed("schedule", "run", f"schedule.now=2024-03-05T0{hour}:00")
        (entry,) = ledger().entries(every=True)
        assert (entry.status, entry.exit_code, entry.attempt) == ("waiting", 3, 1)
    rows = "".join(f"a,2024-03-0{day},{day}\n" for day in range(1, 5))
    Path("rows.csv").write_text(f"series_id,timestamp,target\n{rows}")
    succeed("schedule", "run", "schedule.now=2024-03-05T03:00")
    assert [entry.status for entry in ledger().entries(every=True)] == ["done"]
    Path("rows.csv").unlink()
    succeed("schedule", "run", "schedule.now=2024-03-06T13:00")
    assert [entry.status for entry in ledger().entries(every=True)] == ["failed", "done"]
    notices = [json.loads(line) for line in Path("notices.jsonl").read_text().splitlines()]
    assert [notice["event"] for notice in notices] == ["success", "failure"]


@pytest.mark.usefixtures("source")
def test_a_job_that_takes_too_long_is_ended() -> None:
    write(retries=0, timeout=0.1)
    succeed("schedule", "run", f"schedule.now={night(0)}")
    succeed("schedule", "run", f"schedule.now={night(1)}")
    (entry,) = ledger().entries()
    assert (entry.status, entry.exit_code) == ("failed", 124)
    assert "its timeout" in entry.error


@pytest.mark.parametrize("job", ["killed", "left"])
def test_a_scheduler_that_is_killed_catches_up(source: sqlite3.Connection, job: str) -> None:
    write(catch_up="all", retries=3)
    succeed("schedule", "run", f"schedule.now={night(0)}")
    source.execute("begin exclusive")
    killed = scheduler(f"schedule.now={night(2)}")
    running = wait(lambda: ledger().entries(status="running"))
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    if job == "killed":
        os.kill(running[0].pid, signal.SIGKILL)
    other = scheduler(f"schedule.now={night(2)}")
    source.execute("rollback")
    succeed("schedule", "run", f"schedule.now={night(2)}")
    assert other.wait() == 0
    done = [entry for entry in ledger().entries(every=True) if entry.status == "done"]
    assert [entry.slot[:10] for entry in done] == days(3, 2)  # each once, and in order
    assert ledger().get(running[0].id).status == ("abandoned" if job == "killed" else "done")


def test_a_scheduler_runs_until_it_is_told_to_stop(registry: "SilentRegistry", store: str) -> None:  # noqa: ARG001
    table = "data.path=rows.csv", "data.freq=1d", "window.horizon=1", "output.path=panel"
    overrides = [*table, f"registry.tracking_uri={registry.url}"]
    write(cron="* * * * * *", retries=0, overrides=overrides)
    running = scheduler("schedule.poll=1", "schedule.grace=0")
    try:
        wait(lambda: ledger().entries(status="failed"))
        # Jobs that have a table wait for an answer: the next one runs, however long that takes.
        Path("rows.csv").write_text("series_id,timestamp,target\na,2024-01-01,1\n")
        assert registry.waiting.wait(400)
        running.send_signal(signal.SIGTERM)
        assert running.wait(400) == 0
    finally:
        running.kill()
    last, *before = ledger().entries(every=True)
    assert (last.status, last.exit_code, last.error) == ("abandoned", 128 + signal.SIGTERM, "terminated")
    assert {(entry.status, entry.exit_code) for entry in before} == {("failed", 3)}


class SilentRegistry(ThreadingHTTPServer):
    """A registry that does not answer."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Silent)
        self.waiting = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Silent(BaseHTTPRequestHandler):
    server: SilentRegistry

    def do_GET(self) -> None:
        self.server.waiting.set()
        time.sleep(400)

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def registry() -> Iterator[SilentRegistry]:
    with SilentRegistry() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


class Webhook(ThreadingHTTPServer):
    """Keeps what it is told; does not answer the first time if it is to hang."""

    daemon_threads = True
    hang = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.bodies: list[tuple[dict[str, str], bytes]] = []
        self.url = f"http://127.0.0.1:{self.server_port}/hook"


class _Handler(BaseHTTPRequestHandler):
    server: Webhook

    def do_POST(self) -> None:
        self.server.bodies.append((dict(self.headers), self.rfile.read(int(self.headers["Content-Length"]))))
        if self.server.hang and len(self.server.bodies) == 1:
            time.sleep(2)
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Webhook]:
    monkeypatch.setenv("HOOK_SECRET", "k3y")
    with Webhook() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    with services.postgresql() as uri:
        yield uri.replace("me@", f"me:{services.PASSWORD_IN_URI}@")


@pytest.mark.usefixtures("source")
def test_a_ledger_in_postgresql(postgresql: str, promoted: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    shared = Ledger(postgresql)
    write(catch_up="all")
    uri = f"ledger.uri={postgresql}"
    succeed("schedule", "run", f"schedule.now={night(0)}", uri)
    other = scheduler(f"schedule.now={night(2)}", uri)
    succeed("schedule", "run", f"schedule.now={night(2)}", uri)
    assert other.wait() == 0
    done = shared.entries(every=True)
    assert slots(done) == days(2, 3)
    assert {(entry.status, entry.attempt) for entry in done} == {("done", 1)}
    promoted.score(None, uri)
    listed = succeed("runs", "list", uri, "runs.since=2024-01-01").out
    assert listed.count("nightly") == 2
    assert listed.count(f"{NAME} v2") == 1
    assert services.PASSWORD_IN_URI not in listed
    assert not Path("gatecast.db").exists()


def test_a_lock_on_the_ledger_in_postgresql_stops_who_writes_and_nobody_who_reads(
    postgresql: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ledger_database, "_LOCK_SECONDS", 1)
    monkeypatch.setattr(database, "_NOTICE_SECONDS", 0.2)
    shared = Ledger(postgresql)
    with database.transaction(postgresql, "ledger.uri") as client:
        client.execute("drop table if exists gatecast_ledger, gatecast_runs, gatecast_schedules")
    with database.transaction(postgresql, "ledger.uri") as client:
        client.acquire_lock(ledger_database._LOCK)
        assert shared.entries() == []  # Nobody has used it: to look at it takes no lock either.
        assert shared.settled("nightly") is None
        with pytest.raises(LedgerError, match="there is no run 1"):
            shared.get(1)
    entry = shared.begin(Job(flow="score", config={}))
    with database.transaction(postgresql, "ledger.uri") as client:
        client.acquire_lock(ledger_database._LOCK)
        assert entry.id in [other.id for other in shared.entries()]
        assert shared.get(entry.id).status == "running"
        with pytest.raises(LedgerError, match="another client has held its lock for 1 s"):
            shared.beat(entry.id)
    assert [record.getMessage() for record in caplog.records if "waiting for another client" in record.getMessage()]
    with database.transaction(postgresql, "ledger.uri") as client:
        client.execute("lock table gatecast_runs in access exclusive mode")
        with pytest.raises(LedgerError, match="lock timeout"):
            shared.entries()
    shared.end(entry.id, "done", 0)
    assert shared.get(entry.id).status == "done"
    with database.transaction(postgresql, "ledger.uri") as client:
        client.execute("delete from gatecast_runs where id = ?", [entry.id])


@pytest.mark.parametrize("place", ["ledger", "store"])
def test_aliases_are_locked_in_postgresql_and_the_ledger_is_not(
    postgresql: str, place: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(alias_lock_module, "_SECONDS", 0.1)
    store = "http://tracking.example" if place == "ledger" else postgresql.replace("://", "+psycopg://")
    both = store, postgresql
    with alias_lock(*both, "loads"), alias_lock(*both, "flights"):
        with pytest.raises(
            RegistryError, match=r"aliases of loads in .* have been locked for 0 s by a client"
        ) as caught:
            alias_lock(*both, "loads").__enter__()
        assert services.PASSWORD_IN_URI not in str(caught.value)
        moment = datetime(2024, 1, 1, tzinfo=UTC)
        Ledger(postgresql).settle("locks", moment)
        assert Ledger(postgresql).settled("locks") == moment
    with pytest.raises(RegistryError, match="mine"), alias_lock(*both, "loads"):
        raise RegistryError("mine")
    with alias_lock(*both, "loads"):
        assert not [record for record in caplog.records if "without a lock" in record.message]
