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
from pipelines.jobs.ledger_entry import BEAT, STATUSES, Entry, Job, Status, entry_of, moment_of

__all__ = ["BEAT", "SKEW", "STATUSES", "Entry", "Job", "Ledger", "Status"]

SKEW: Final = timedelta(minutes=5)
"""How far the clocks of two hosts may be apart: what is later than this is in the future."""

_VERSION: Final = 4
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
_KEY: Final = "ledger.uri"
_COLUMNS: Final = {
    "id": "bigint primary key",
    "flow": "text",
    "dataset": "text",
    "cutoff": "text",
    "model": "text",
    "mlflow": "text",
    "config_digest": "text",
    "schedule": "text",
    "slot": "text",
    "status": "text",
    "started": "text",
    "heartbeat": "text",
    "ended": "text",
    "seconds": "double precision",
    "host": "text",
    "pid": "bigint",
    "output": "text",
    "exit_code": "bigint",
    "error": "text",
    "config": "text",
    "given": "text default ''",
    "folder": "text",
    "process": "text default ''",
    "notice": "text default ''",
    "settings_digest": "text default ''",
}
_ADDED: Final = {2: ("mlflow",), 3: ("process", "notice", "settings_digest"), 4: ("given",)}
"""Text columns that a version of the format has brought."""
_INDICES: Final = {"work": ("config_digest", "dataset", "cutoff", "model", "flow"), "slot": ("schedule", "slot")}
"""What attempts at the same have in common: of a person, and of a schedule."""
_WORK: Final = (*_INDICES["work"], *_INDICES["slot"])
"""The key of what was done."""
_LATEST: Final = (
    "not exists (select 1 from gatecast_runs o where o.id > r.id and o.schedule = r.schedule and o.slot = r.slot)"
)
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
            if job.slot and (before := _found(database, "schedule = ? and slot = ?", [job.schedule, job.slot])):
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
            return _found(database, "id = ?", [values["id"]])[0]

    def note(self, entry: int, *, cutoff: str = "", model: str = "", mlflow: str = "", output: str = "") -> None:
        """Write what has become known of a job.

        Attempts that failed before they knew their cutoff or model are counted to the one that then does.
        """
        with self._open() as database:
            own = _found(database, "id = ?", [entry])[0]
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
            started = _found(database, "id = ?", [entry])[0].started
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
            same = " and ".join(f"o.{name} = r.{name}" for name in _WORK)
            conditions.append(f"not exists (select 1 from gatecast_runs o where o.id > r.id and {same})")
        where = " and ".join(conditions)
        sure = status in (None, *_WRITTEN)
        with self._read() as database:
            found = _found(database, where, values, limit if sure else None)
        return [entry for entry in found if status in (None, entry.status)][:limit]

    def get(self, entry: int) -> Entry:
        """Return an attempt. Raises LedgerError if there is none of this number."""
        with self._read() as database:
            found = _found(database, "id = ?", [entry])
        if not found:
            raise LedgerError(f"{self.shown}: there is no run {entry}; `forecast runs list` shows those there are")
        return found[0]

    def latest(self, schedule: str, slot: str) -> Entry | None:
        """Return the latest attempt at a slot."""
        with self._read() as database:
            found = _found(database, "schedule = ? and slot = ?", [schedule, slot])
        return found[0] if found else None

    def slots(self, schedule: str, first: str, last: str) -> dict[str, Entry]:
        """Return the latest attempt at each slot from `first` to `last`."""
        with self._read() as database:
            found = _found(database, "schedule = ? and slot between ? and ?", [schedule, first, last])
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
            entries = _found(database, f"{where} and {_LATEST}", [schedule, exit_code])
        return sorted(entries, key=lambda entry: entry.slot)

    def notices(self, schedule: str) -> list[Entry]:
        """Return the latest attempts at slots of which others are to be notified, and nobody is at it; oldest first."""
        where = f"schedule = ? and slot <> '' and notice >= ? and notice < ? and {_LATEST}"
        with self._open() as database:
            return _found(database, where, [schedule, _DUE, f"{_DUE} {_now()}"])[::-1]

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
        return f"{_KEY}={without_password(self.uri)}"

    @contextmanager
    def _open(self) -> Iterator[Database]:
        """Yield a transaction, one at a time over all processes, in a database that has our tables."""
        with self._transaction(writes=True) as database:
            database.alone(_LOCK, _LOCK_SECONDS)
            self._prepare(database)
            yield database

    @contextmanager
    def _read(self) -> Iterator[Database]:
        """Yield a transaction that waits for no other, in a database that has our tables, or nothing."""
        with self._transaction(writes=False) as database:
            if not database.has_table("gatecast_ledger"):
                yield _Nothing(database)
                return
            if _is_prepared(database):
                yield database
                return
        with self._open() as database:
            yield database

    @contextmanager
    def _transaction(self, *, writes: bool) -> Iterator[Database]:
        try:
            with transaction(self.uri, _KEY, writes=writes, private=True, limit=_ANSWER_SECONDS) as database:
                database.limit_waits(_LOCK_SECONDS)
                yield database
        except OutputError as error:
            raise LedgerError(f"the ledger does not answer: {error}") from None

    def _prepare(self, database: Database) -> None:
        columns = ", ".join(f"{name} {kind}" for name, kind in _COLUMNS.items())
        database.execute("create table if not exists gatecast_ledger (version bigint)")
        versions = database.execute("select version from gatecast_ledger")
        if not versions:
            database.execute("insert into gatecast_ledger (version) values (?)", [_VERSION])
            database.execute(f"create table gatecast_runs ({columns})")
            _create_indices(database)
            database.execute("create table gatecast_schedules (name text primary key, settled text)")
        elif versions[0]["version"] < _VERSION:
            # A row with all columns, of an empty table as well.
            one = "select r.* from (select 1 as one) o left join (select * from gatecast_runs limit 1) r on 1 = 1"
            (row,) = database.execute(one)
            for name in (name for number in sorted(_ADDED) for name in _ADDED[number] if name not in row):
                database.execute(f"alter table gatecast_runs add column {name} text default ''")
            _create_indices(database)
            database.execute("update gatecast_ledger set version = ?", [_VERSION])
        elif versions[0]["version"] > _VERSION:
            raise LedgerError(
                f"{self.shown} has the format {versions[0]['version']}, this gatecast reads {_VERSION}; "
                f"use the gatecast that wrote it, or another {_KEY}"
            )


class _Nothing(Database):
    """A ledger before its first use: nothing is in it, and a look at it need not make it."""

    def __init__(self, database: Database) -> None:
        vars(self).update(vars(database))

    def execute(self, _statement: str, _values: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """Return no rows."""
        return []


def _create_indices(database: Database) -> None:
    for name, columns in {**_INDICES, "notice": ("schedule", "notice")}.items():
        database.execute(f"create index if not exists gatecast_runs_{name} on gatecast_runs ({', '.join(columns)})")


def _is_prepared(database: Database) -> bool:
    if not database.has_table("gatecast_ledger"):
        return False
    return database.execute("select version from gatecast_ledger") == [{"version": _VERSION}]


def _found(database: Database, where: str, values: list[Any], limit: int | None = None) -> list[Entry]:
    """Return the attempts for which a condition holds, newest first.

    Attempts are numbered, and failures counted, in one pass over those with the same keys.
    """
    chosen = f"select * from gatecast_runs r where {where} order by id desc"
    chosen += "" if limit is None else f" limit {limit}"
    failed = "sum(case when status = 'failed' then 1 else 0 end)"
    ranks = []
    for what, condition, also in (("work", "slot = ''", ""), ("slot", "slot <> ''", ", settings_digest")):
        key = ", ".join(_INDICES[what])
        ranks.append(
            f"select id, row_number() over (partition by {key} order by id) as attempt, "
            f"{failed} over (partition by {key}{also} order by id) as failures "
            f"from gatecast_runs where {condition} and ({key}) in (select {key} from chosen where {condition})"
        )
    rows = database.execute(
        f"with chosen as ({chosen}), ranks as ({' union all '.join(ranks)}) "
        "select chosen.*, ranks.attempt, ranks.failures from chosen left join ranks on ranks.id = chosen.id "
        "order by chosen.id desc",
        values,
    )
    return [entry_of(row) for row in rows]


def _who(entry: Entry) -> str:
    return f"process {entry.pid} on {entry.host}, since {entry.started:%Y-%m-%d %H:%M:%S} UTC, run {entry.id}"


def _now() -> str:
    return _text(datetime.now(UTC))


def _text(moment: datetime) -> str:
    """Return a moment as the ledger has it: later ones are greater texts."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")
