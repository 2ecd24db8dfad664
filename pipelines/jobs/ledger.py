"""The run ledger: a row for every attempt of every job, in a SQLite file or a PostgreSQL database.

What is to be done has a key: flow, dataset, cutoff, model version, digest of the config. Attempts at the same are rows
with the same key; the latest says how it stands. A job of a schedule has a slot besides, the moment that it is for: a
slot is taken by one process at a time, and is done once.
"""

import json
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from forecast.data.sources.database import Database, transaction
from forecast.errors import LedgerError, OutputError
from forecast.redaction import without_password
from pipelines.jobs import processes
from pipelines.jobs.ledger_entry import Entry, Job, Status, moment_of
from pipelines.jobs.ledger_schema import (
    ADDED,
    COLUMNS,
    KEY,
    LATEST,
    VERSION,
    WORK,
    create_indices,
    find_sql,
    is_prepared,
)

SKEW: Final = timedelta(minutes=5)
"""How far the clocks of two hosts may be apart: what is later than this is in the future."""
_DUE: Final = "due"
"""A notice that nobody has sent yet, with a moment after it if someone is at it until then. An empty text: none is
needed; a moment alone: when it was sent."""
_WRITTEN: Final = ("done", "failed", "waiting")
_DAMAGED: Final = datetime(9999, 1, 1, tzinfo=UTC)
_ANSWER_SECONDS: Final = 60.0
"""That a statement may take."""
_LOCK_SECONDS: Final = 10.0
"""That others may hold the lock, whose transactions take milliseconds."""
_LOCK: Final = 7_211_061  # any number, the same for all who write
"""Text columns that a version of the format has brought."""
"""What attempts at the same have in common: of a person, and of a schedule."""
"""The key of what was done."""
"""Of the attempts at a slot."""


class Ledger:
    """A ledger, which is made at the first use. Every method raises LedgerError if it does not answer."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def begin(self, job: Job, pid: int | None = None) -> Entry:
        """Write that a job runs, and return its entry: if its slot is done already, that of the attempt that did it.

        A slot that waits for its data keeps its entry. Raises LedgerError if another process is at it.
        """
        pid = os.getpid() if pid is None else pid
        with self._open() as database:
            if job.slot and (before := find_sql(database, "schedule = ? and slot = ?", [job.schedule, job.slot])):
                if before[0].status == "done":
                    return before[0]
                if before[0].status == "running":
                    raise LedgerError(f"{job.schedule} of {job.slot} is under way: {_who(before[0])}")
                if before[0].status == "waiting":
                    database.execute("delete from gatecast_runs where id = ?", [before[0].id])
            now = _now()
            values = {name: value for name, value in vars(job).items() if name != "references"} | {
                "id": 1 + int(database.execute("select coalesce(max(id), 0) as id from gatecast_runs")[0]["id"]),
                "config": json.dumps(job.config),
                "given": json.dumps(job.references),
                "model": "",
                "mlflow": "",
                "status": "running",
                "started": now,
                "heartbeat": now,
                "host": socket.gethostname(),
                "pid": pid,
                "process": processes.identity(pid),
                "output": "",
                "error": "",
                "folder": os.getcwd(),  # noqa: PTH109
                "notice": _DUE if job.slot else "",
            }
            marks = ", ".join("?" * len(values))
            database.execute(f"insert into gatecast_runs ({', '.join(values)}) values ({marks})", list(values.values()))
            return find_sql(database, "id = ?", [values["id"]])[0]

    def note(self, entry: int, *, cutoff: str = "", model: str = "", mlflow: str = "", output: str = "") -> None:
        """Write what has become known of a job.

        Attempts that failed before they knew their cutoff or model are counted to the one that then does.
        """
        with self._open() as database:
            own = find_sql(database, "id = ?", [entry])[0]
            same = "flow = ? and dataset = ? and config_digest = ? and schedule = ? and slot = ?"
            values = [own.flow, own.dataset, own.config_digest, own.schedule, own.slot]
            for name, value in {"cutoff": cutoff, "model": model}.items():
                if value:
                    unknown = f"(id = ? or {name} = '' and status <> 'done' and {same})"
                    database.execute(f"update gatecast_runs set {name} = ? where {unknown}", [value, entry, *values])
            for name, value in {"mlflow": mlflow, "output": output}.items():
                if value:
                    database.execute(f"update gatecast_runs set {name} = ? where id = ?", [value, entry])

    def relink(self, before: str, mlflow: str) -> None:
        """Write that a run which was called `before` has another id, or page, in MLflow."""
        with self._open() as database:
            database.execute("update gatecast_runs set mlflow = ? where mlflow = ?", [mlflow, before])

    def beat(self, entry: int) -> None:
        """Write that a job is alive."""
        with self._open() as database:
            database.execute("update gatecast_runs set heartbeat = ? where id = ?", [_now(), entry])

    def end(self, entry: int, status: Status, exit_code: int, error: str = "") -> None:
        """Write how a job ended."""
        with self._open() as database:
            started = find_sql(database, "id = ?", [entry])[0].started
            seconds = (datetime.now(UTC) - started).total_seconds()
            values = [status, _now(), max(seconds, 0.0), exit_code, error[:5000], entry]
            columns = "status = ?, ended = ?, seconds = ?, exit_code = ?, error = ?"
            database.execute(f"update gatecast_runs set {columns} where id = ?", values)

    def entries(
        self,
        *,
        flow: str | None = None,
        dataset: str | None = None,
        schedule: str | None = None,
        status: Status | None = None,
        since: datetime | None = None,
        every: bool = False,
        limit: int | None = None,
    ) -> list[Entry]:
        """Return the latest attempt of each key, or every one, newest first, and not more than `limit`."""
        asked = {
            "flow = ?": flow,
            "dataset = ?": dataset,
            "schedule = ?": schedule,
            "started >= ?": since and _text(since),
        }
        given = {condition: value for condition, value in asked.items() if value is not None}
        conditions, values = ["1 = 1", *given], list[Any](given.values())
        if status:
            if status == "abandoned":  # Who is gone has not written that; nor is any status that there is not.
                conditions.append(f"(status is null or status not in ({', '.join('?' * len(_WRITTEN))}))")
                values += _WRITTEN
            else:
                conditions.append("status = ?")
                values.append(status)
        if not every:
            same = " and ".join(f"o.{name} = r.{name}" for name in WORK)
            conditions.append(f"not exists (select 1 from gatecast_runs o where o.id > r.id and {same})")
        where = " and ".join(conditions)
        sure = status in (None, *_WRITTEN)
        with self._read() as database:
            found = find_sql(database, where, values, limit if sure else None)
        return [entry for entry in found if status in (None, entry.status)][:limit]

    def get(self, entry: int) -> Entry:
        """Return an attempt. Raises LedgerError if there is none of this number."""
        with self._read() as database:
            found = find_sql(database, "id = ?", [entry])
        if not found:
            raise LedgerError(f"{self.shown}: there is no run {entry}; `forecast runs list` shows those there are")
        return found[0]

    def latest(self, schedule: str, slot: str) -> Entry | None:
        """Return the latest attempt at a slot."""
        with self._read() as database:
            found = find_sql(database, "schedule = ? and slot = ?", [schedule, slot])
        return found[0] if found else None

    def slots(self, schedule: str, first: str, last: str) -> dict[str, Entry]:
        """Return the latest attempt at each slot from `first` to `last`."""
        with self._read() as database:
            found = find_sql(database, "schedule = ? and slot between ? and ?", [schedule, first, last])
        return {entry.slot: entry for entry in reversed(found)}

    def settled(self, schedule: str) -> datetime | None:
        """Return until when everything of a schedule is settled: done, given up, or skipped; None if it is new.

        A row that is damaged is settled until a moment in the far future, so that its schedule is shown as stopped.
        """
        with self._read() as database:
            rows = database.execute("select settled from gatecast_schedules where name = ?", [schedule])
        return (moment_of(rows[0]["settled"]) or _DAMAGED) if rows else None

    def settle(self, schedule: str, moment: datetime) -> None:
        """Write that everything of a schedule is settled until a moment, if it is not already.

        Raises LedgerError for a moment in the future, which nothing would be due before.
        """
        if moment > datetime.now(UTC) + SKEW:
            raise LedgerError(f"{schedule}: can't be settled until {moment.isoformat()}, which is in the future")
        text = moment.astimezone(UTC).isoformat()
        with self._open() as database:
            if not database.execute("select 1 as one from gatecast_schedules where name = ?", [schedule]):
                database.execute("insert into gatecast_schedules (name, settled) values (?, ?)", [schedule, text])
            later = "update gatecast_schedules set settled = ? where name = ? and settled < ?"
            database.execute(later, [text, schedule, text])

    def rewind(self, schedule: str, moment: datetime) -> int:
        """Write that a schedule is settled until a moment and no longer, for one that ran by a wrong clock.

        Its runs for slots in the future keep their place in the list, but are no longer those of the slots: return
        their number.
        """
        text = moment.astimezone(UTC).isoformat()
        future = "schedule = ? and slot > ? and status <> 'running'"
        values = [schedule, datetime.now(UTC).isoformat(timespec="seconds")]
        with self._open() as database:
            database.execute("update gatecast_schedules set settled = ? where name = ?", [text, schedule])
            ids = database.execute(f"select id from gatecast_runs where {future}", values)
            database.execute(f"update gatecast_runs set slot = '', notice = '' where {future}", values)
        return len(ids)

    def refused(self, schedule: str, exit_code: int) -> list[Entry]:
        """Return the latest attempts at slots that ended with an exit code, those of the earliest slot first."""
        where = "schedule = ? and slot <> '' and exit_code = ? and status = 'failed'"
        with self._open() as database:
            entries = find_sql(database, f"{where} and {LATEST}", [schedule, exit_code])
        return sorted(entries, key=lambda entry: entry.slot)

    def notices(self, schedule: str) -> list[Entry]:
        """Return the latest attempts at slots of which others are to be notified, and nobody is at it; oldest first."""
        where = f"schedule = ? and slot <> '' and notice >= ? and notice < ? and {LATEST}"
        with self._open() as database:
            return find_sql(database, where, [schedule, _DUE, f"{_DUE} {_now()}"])[::-1]

    def claim_notice(self, entry: int, seconds: float) -> bool:
        """Return whether a notice is to be sent and nobody is at it; for so many seconds, nobody else will be."""
        until = _text(datetime.now(UTC) + timedelta(seconds=seconds))
        open_ = "id = ? and notice >= ? and notice < ?"
        with self._open() as database:
            values = [entry, _DUE, f"{_DUE} {_now()}"]
            if not database.execute(f"select id from gatecast_runs where {open_}", values):
                return False
            database.execute("update gatecast_runs set notice = ? where id = ?", [f"{_DUE} {until}", entry])
        return True

    def postpone_notice(self, entry: int, seconds: float) -> None:
        """Write that a notice was not delivered and is to be sent again, but not before so many seconds."""
        until = _text(datetime.now(UTC) + timedelta(seconds=seconds))
        with self._open() as database:
            database.execute("update gatecast_runs set notice = ? where id = ?", [f"{_DUE} {until}", entry])

    def close_notice(self, entry: int) -> None:
        """Write that others were notified of an attempt, so that earlier ones at its slot need no notice."""
        with self._open() as database:
            slot = database.execute("select schedule, slot from gatecast_runs where id = ?", [entry])
            if slot:
                values = [_now(), slot[0]["schedule"], slot[0]["slot"], entry]
                where = "schedule = ? and slot = ? and id <= ? and notice <> ''"
                database.execute(f"update gatecast_runs set notice = ? where {where}", values)

    @property
    def shown(self) -> str:
        """The URI without its password."""
        return f"{KEY}={without_password(self.uri)}"

    @contextmanager
    def _open(self) -> Iterator[Database]:
        """Yield a transaction, one at a time over all processes, in a database that has our tables."""
        with self._transaction(writes=True) as database:
            database.acquire_lock(_LOCK, _LOCK_SECONDS)
            self._prepare(database)
            yield database

    @contextmanager
    def _read(self) -> Iterator[Database]:
        """Yield a transaction that waits for no other, in a database that has our tables, or nothing."""
        with self._transaction(writes=False) as database:
            if not database.has_table("gatecast_ledger"):
                yield _Nothing(database)
                return
            if is_prepared(database):
                yield database
                return
        with self._open() as database:
            yield database

    @contextmanager
    def _transaction(self, *, writes: bool) -> Iterator[Database]:
        try:
            with transaction(self.uri, KEY, writes=writes, private=True, limit=_ANSWER_SECONDS) as database:
                database.limit_waits(_LOCK_SECONDS)
                yield database
        except OutputError as error:
            raise LedgerError(f"the ledger does not answer: {error}") from None

    def _prepare(self, database: Database) -> None:
        columns = ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
        database.execute("create table if not exists gatecast_ledger (version bigint)")
        versions = database.execute("select version from gatecast_ledger")
        if not versions:
            database.execute("insert into gatecast_ledger (version) values (?)", [VERSION])
            database.execute(f"create table gatecast_runs ({columns})")
            create_indices(database)
            database.execute("create table gatecast_schedules (name text primary key, settled text)")
        elif versions[0]["version"] < VERSION:
            # A row with all columns, of an empty table as well.
            one = "select r.* from (select 1 as one) o left join (select * from gatecast_runs limit 1) r on 1 = 1"
            (row,) = database.execute(one)
            for name in (name for number in sorted(ADDED) for name in ADDED[number] if name not in row):
                database.execute(f"alter table gatecast_runs add column {name} text default ''")
            create_indices(database)
            database.execute("update gatecast_ledger set version = ?", [VERSION])
        elif versions[0]["version"] > VERSION:
            raise LedgerError(
                f"{self.shown} has the format {versions[0]['version']}, this gatecast reads {VERSION}; "
                f"use the gatecast that wrote it, or another {KEY}"
            )


class _Nothing(Database):
    """A ledger before its first use: nothing is in it, and a look at it need not make it."""

    def __init__(self, database: Database) -> None:
        vars(self).update(vars(database))

    def execute(self, _statement: str, _values: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """Return no rows."""
        return []


def _who(entry: Entry) -> str:
    return f"process {entry.pid} on {entry.host}, since {entry.started:%Y-%m-%d %H:%M:%S} UTC, run {entry.id}"


def _now() -> str:
    return _text(datetime.now(UTC))


def _text(moment: datetime) -> str:
    """Return a moment as the ledger has it: later ones are greater texts."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")
