"""The run ledger: a row for every attempt of every job, in a SQLite file or a PostgreSQL database.

What is to be done has a key: flow, dataset, cutoff, model version, digest of the config. Attempts at the same are rows
with the same key; the latest says how it stands. A job of a schedule has a slot besides, the moment that it is for: a
slot is taken by one process at a time, and is done once.
"""

import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, get_args

from forecast.config import without_password
from forecast.data.sql import Database, transaction
from forecast.errors import LedgerError, OutputError

Status = Literal["running", "done", "failed", "abandoned"]
STATUSES: Final[tuple[Status, ...]] = get_args(Status)
BEAT: Final = timedelta(seconds=15)
"""How often a job says that it is alive."""

_SILENT: Final = 6 * BEAT
_VERSION: Final = 2
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
    "folder": "text",
}
_ADDED: Final = {2: ("mlflow",)}
"""Text columns that a version of the format has brought."""
_INDICES: Final = {"work": ("config_digest", "dataset", "cutoff", "model", "flow"), "slot": ("schedule", "slot")}
"""What attempts at the same have in common: of a person, and of a schedule."""
_WORK: Final = (*_INDICES["work"], *_INDICES["slot"])
"""The key of what was done."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be done; `cutoff` and `model` are empty as long as they are not known."""

    flow: str
    dataset: str = ""
    cutoff: str = ""
    config_digest: str = ""
    config: Mapping[str, Any]
    """Of the job, without its secrets."""
    schedule: str = ""
    slot: str = ""
    """The moment in UTC that a job of a schedule is for."""


@dataclass(frozen=True, kw_only=True)
class Entry(Job):
    """One attempt."""

    id: int
    model: str
    mlflow: str
    """Its run in MLflow: the page on the server, or the id where the store is none."""
    status: Status
    attempt: int
    """1 for the first one with its key; of a slot, the first for it."""
    started: datetime
    ended: datetime | None
    seconds: float
    """Of work, so far."""
    host: str
    pid: int
    output: str
    """A manifest, a folder, or a version of a model."""
    exit_code: int | None
    error: str
    folder: str
    """Where it ran, which relative paths are from."""

    def shown(self) -> dict[str, Any]:
        """Return the entry as JSON takes it."""
        moments = {"started": self.started.isoformat(), "ended": self.ended.isoformat() if self.ended else None}
        return vars(self) | moments


class Ledger:
    """A ledger, which is made at the first use. Every method raises LedgerError if it does not answer."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def begin(self, job: Job, pid: int | None = None) -> Entry:
        """Write that a job runs, and return its entry: if its slot is done already, that of the attempt that did it.

        Raises LedgerError if another process is at it.
        """
        with self._open() as database:
            if job.slot and (before := _found(database, "schedule = ? and slot = ?", [job.schedule, job.slot])):
                if before[0].status == "done":
                    return before[0]
                if before[0].status == "running":
                    raise LedgerError(f"{job.schedule} of {job.slot} is under way: {_who(before[0])}")
            now = _now()
            values = vars(job) | {
                "id": 1 + int(database.execute("select coalesce(max(id), 0) as id from gatecast_runs")[0]["id"]),
                "config": json.dumps(job.config),
                "model": "",
                "mlflow": "",
                "status": "running",
                "started": now,
                "heartbeat": now,
                "host": socket.gethostname(),
                "pid": os.getpid() if pid is None else pid,
                "output": "",
                "error": "",
                "folder": os.getcwd(),  # noqa: PTH109
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
            # Who is gone has not written that.
            conditions.append("status in (?, ?)")
            values += [status, "running" if status == "abandoned" else status]
        if not every:
            same = " and ".join(f"o.{name} = r.{name}" for name in _WORK)
            conditions.append(f"not exists (select 1 from gatecast_runs o where o.id > r.id and {same})")
        where = " and ".join(conditions)
        sure = status in (None, "done", "failed")
        with self._open() as database:
            found = _found(database, where, values, limit if sure else None)
        return [entry for entry in found if status in (None, entry.status)][:limit]

    def get(self, entry: int) -> Entry:
        """Return an attempt. Raises LedgerError if there is none of this number."""
        with self._open() as database:
            found = _found(database, "id = ?", [entry])
        if not found:
            raise LedgerError(f"{self.shown}: there is no run {entry}; `forecast runs list` shows those there are")
        return found[0]

    def latest(self, schedule: str, slot: str) -> Entry | None:
        """Return the latest attempt at a slot."""
        with self._open() as database:
            found = _found(database, "schedule = ? and slot = ?", [schedule, slot])
        return found[0] if found else None

    def slots(self, schedule: str, first: str, last: str) -> dict[str, Entry]:
        """Return the latest attempt at each slot from `first` to `last`."""
        with self._open() as database:
            found = _found(database, "schedule = ? and slot between ? and ?", [schedule, first, last])
        return {entry.slot: entry for entry in reversed(found)}

    def settled(self, schedule: str) -> datetime | None:
        """Return until when everything of a schedule is settled: done, given up, or skipped; None if it is new."""
        with self._open() as database:
            rows = database.execute("select settled from gatecast_schedules where name = ?", [schedule])
        return datetime.fromisoformat(rows[0]["settled"]) if rows else None

    def settle(self, schedule: str, moment: datetime) -> None:
        """Write that everything of a schedule is settled until a moment, if it is not already."""
        text = moment.astimezone(UTC).isoformat()
        with self._open() as database:
            if not database.execute("select 1 as one from gatecast_schedules where name = ?", [schedule]):
                database.execute("insert into gatecast_schedules (name, settled) values (?, ?)", [schedule, text])
            later = "update gatecast_schedules set settled = ? where name = ? and settled < ?"
            database.execute(later, [text, schedule, text])

    @property
    def shown(self) -> str:
        """The URI without its password."""
        return f"{_KEY}={without_password(self.uri)}"

    @contextmanager
    def _open(self) -> Iterator[Database]:
        """Yield a transaction, one at a time over all processes, in a database that has our tables."""
        try:
            with transaction(self.uri, _KEY) as database:
                database.alone(_LOCK)
                self._prepare(database)
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
            for name, indexed in _INDICES.items():
                database.execute(f"create index gatecast_runs_{name} on gatecast_runs ({', '.join(indexed)})")
            database.execute("create table gatecast_schedules (name text primary key, settled text)")
        elif versions[0]["version"] < _VERSION:
            for number in range(versions[0]["version"] + 1, _VERSION + 1):
                for name in _ADDED[number]:
                    database.execute(f"alter table gatecast_runs add column {name} text default ''")
            database.execute("update gatecast_ledger set version = ?", [_VERSION])
        elif versions[0]["version"] > _VERSION:
            raise LedgerError(
                f"{self.shown} has the format {versions[0]['version']}, this gatecast reads {_VERSION}; "
                f"use the gatecast that wrote it, or another {_KEY}"
            )


def _found(database: Database, where: str, values: list[Any], limit: int | None = None) -> list[Entry]:
    """Return the attempts for which a condition holds, newest first."""
    same = {"slot = ''": _INDICES["work"], "slot <> ''": _INDICES["slot"]}
    before = " ".join(
        f"when r.{when} then (select count(*) from gatecast_runs o where o.id <= r.id and o.{when} and "
        f"{' and '.join(f'o.{name} = r.{name}' for name in names)})"
        for when, names in same.items()
    )
    query = f"select r.*, case {before} end as attempt from gatecast_runs r where {where} order by id desc"
    query += "" if limit is None else f" limit {limit}"
    rows = database.execute(query, values)
    return [_entry(row) for row in rows]


def _entry(row: dict[str, Any]) -> Entry:
    started, beat = datetime.fromisoformat(row["started"]), datetime.fromisoformat(row.pop("heartbeat"))
    status, ended = row["status"], datetime.fromisoformat(row["ended"]) if row["ended"] else None
    seconds = row["seconds"]
    if status == "running":
        if not _alive(row["host"], row["pid"], beat):
            status, ended = "abandoned", beat
        seconds = max(((ended or datetime.now(UTC)) - started).total_seconds(), 0.0)
    error = row["error"]
    if status == "abandoned" and not error:
        error = f"process {row['pid']} on {row['host']} is gone, and has not said how it ended"
    known = {"started": started, "ended": ended, "status": status, "seconds": seconds, "error": error}
    return Entry(**row | known | {"config": json.loads(row["config"])})


def _alive(host: str, pid: int, beat: datetime) -> bool:
    """Return whether a job still runs: its process is there, and was heard of."""
    if datetime.now(UTC) - beat > _SILENT:
        return False
    if host != socket.gethostname():
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # It is somebody else's.
        return True
    return True


def _who(entry: Entry) -> str:
    return f"process {entry.pid} on {entry.host}, since {entry.started:%Y-%m-%d %H:%M:%S} UTC, run {entry.id}"


def _now() -> str:
    return _text(datetime.now(UTC))


def _text(moment: datetime) -> str:
    """Return a moment as the ledger has it: later ones are greater texts."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")
