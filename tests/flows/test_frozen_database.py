"""A PostgreSQL that is frozen after it was connected to, or in part, ends in an error; one that is slow does not."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import services

import forecast
from forecast.data.sources import connections, database, deadlines, sql
from forecast.errors import DataError, LedgerError, OutputError
from pipelines.jobs.ledger import Ledger
from pipelines.jobs.ledger_entry import Job


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    with services.postgresql() as uri:
        yield uri.replace("me@", f"me:{services.PASSWORD_IN_URI}@")


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {
        "_NOTICE_SECONDS": 0.2,
        "_ANSWER_SECONDS": 3.0,
        "_PROBE_SECONDS": 3.0,
        "_SHORTEST": 0.3,
    }.items():
        monkeypatch.setattr(deadlines, name, seconds)


def parent(pid: int) -> int:
    """Return the parent of a process, 0 of one that has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def send(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


@contextmanager
def frozen(*pids: int) -> Iterator[None]:
    """Stop processes with all their children."""
    every = [int(path.name) for path in Path("/proc").glob("[0-9]*") if path.name.isdigit()]
    stopped = [*pids, *(child for child in every if parent(child) in pids)]
    try:
        send(stopped, signal.SIGSTOP)
        yield
    finally:
        send(stopped, signal.SIGCONT)


def backend(client: database.Database) -> int:
    return int(client.execute("select pg_backend_pid() as pid")[0]["pid"])


def test_a_server_that_freezes_after_it_was_connected_to_is_an_error(
    postgresql: str, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        pytest.raises(OutputError, match=r"output.uri=.*no answer within \d+ s \(select\): the server hangs") as raised,
        database.transaction(postgresql, "output.uri") as client,
        frozen(parent(backend(client))),
    ):
        client.execute("select 1 as one")
    assert services.PASSWORD_IN_URI not in str(raised.value)
    waits = [record.getMessage() for record in caplog.records]
    assert any("waiting for PostgreSQL at" in text and services.PASSWORD_IN_URI not in text for text in waits)
    with database.transaction(postgresql, "output.uri") as client:
        assert client.execute("select 2 as two") == [{"two": 2}]


def test_a_commit_without_an_answer_is_an_error(postgresql: str) -> None:
    transaction = database.transaction(postgresql, "output.uri")
    client = transaction.__enter__()
    with frozen(parent(backend(client))), pytest.raises(OutputError, match=r"\(commit\)"):
        transaction.__exit__(None, None, None)


def test_a_ledger_does_not_wait_for_a_backend_that_hangs_alone(
    postgresql: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.jobs.ledger_database._ANSWER_SECONDS", 3.0)
    shared = Ledger(postgresql)
    entry = shared.begin(Job(flow="score", config={}))
    with (
        pytest.raises(LedgerError, match="no answer within"),
        shared._database.open() as client,
        frozen(backend(client)),
    ):
        client.execute("select * from gatecast_runs")
    shared.end(entry.id, "done", 0)
    assert shared.get(entry.id).status == "done"
    with database.transaction(postgresql, "ledger.uri") as client:
        master = parent(backend(client))
    with frozen(master), pytest.raises(LedgerError, match="the ledger does not answer"):
        shared.beat(entry.id)


def test_a_statement_that_takes_long_on_a_server_that_answers_is_waited_for(postgresql: str) -> None:
    with database.transaction(postgresql, "output.uri") as client:
        assert client.execute("select 1 as one from pg_sleep(1.4)") == [{"one": 1}]
    rows = sql.read_sql(postgresql, "select 1 as one from pg_sleep(1.2)").collect()
    assert rows.to_dicts() == [{"one": 1}]


def test_a_query_without_an_answer_is_an_error(postgresql: str) -> None:
    connection = connections.connect_postgresql(postgresql, "data.uri", DataError)
    with connection, connection.cursor() as cursor:
        cursor.execute("select pg_backend_pid() as pid")
        with frozen(parent(cursor.fetchone()[0])), pytest.raises(TimeoutError, match="no answer"):
            cursor.execute("select 1")


def test_a_process_ends_that_has_left_a_connection_which_hangs(postgresql: str) -> None:
    program = """
import os, signal, sys
from forecast.data.sources import database, deadlines
from forecast.errors import OutputError
deadlines._ANSWER_SECONDS = deadlines._PROBE_SECONDS = 3.0
try:
    with database.transaction(sys.argv[1], "output.uri") as client:
        pid = client.execute("select pg_backend_pid() as pid")[0]["pid"]
        print(pid, flush=True)
        sys.stdin.readline()
        client.execute("select 1")
except OutputError as error:
    print(error)
    sys.exit(6)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(forecast.__file__).parents[1])}
    command = [sys.executable, "-c", program, postgresql]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, env=environment, **pipes) as process:  # type: ignore[call-overload]
        with frozen(parent(int(process.stdout.readline()))):
            process.stdin.write("\n")
            process.stdin.flush()
            started = time.monotonic()
            assert process.wait(60) == 6
            assert time.monotonic() - started < 50
        assert "no answer within" in process.stdout.read()
