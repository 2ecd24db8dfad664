"""The run ledger: a row for every attempt at every job, in a SQLite file or a PostgreSQL database.

The key of a job is flow, dataset, cutoff, model version and digest of the config. Attempts at the same job are rows
with the same key; the latest has the current status. A scheduled job also has a slot, its nominal time: a slot is
processed by one process at a time, and completed once.
"""

import json
import os
import socket
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from forecast.errors import LedgerError
from pipelines.jobs import processes
from pipelines.jobs.ledger_database import LedgerDatabase
from pipelines.jobs.ledger_entry import Entry, Job, Status, moment_of
from pipelines.jobs.ledger_schema import LATEST, WORK, find_sql

SKEW: Final = timedelta(minutes=5)
"""Largest tolerated difference between the clocks of two hosts; later times are in the future."""
_DUE: Final = "due"
"""Value of `notice` for a notice to be sent, followed by a time while a process has claimed it until then. Empty: none
is needed; a time alone: when it was sent."""
_WRITTEN: Final = ("done", "failed", "waiting")
_DAMAGED: Final = datetime(9999, 1, 1, tzinfo=UTC)


class Ledger:
    """A ledger, created at the first use. Every method raises LedgerError if it does not answer."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._database = LedgerDatabase(uri)

    def begin(self, job: Job, pid: int | None = None) -> Entry:
        """Record the start of a job, and return its entry; if its slot is completed, the entry of that attempt.

        A slot that waits for its data keeps its entry. Raises LedgerError if another process works on it.
        """
        pid = os.getpid() if pid is None else pid
        with self._database.open() as database:
            if job.slot and (before := find_sql(database, "schedule = ? and slot = ?", [job.schedule, job.slot])):
                if before[0].status == "done":
                    return before[0]
                if before[0].status == "running":
                    raise LedgerError(f"{job.schedule} of {job.slot} is under way: {_who(before[0])}")
                if before[0].status == "waiting":
                    database.execute("delete from gatecast_runs where id = ?", [before[0].id])
            start = _now()
            values = {name: value for name, value in vars(job).items() if name != "references"} | {
                "id": 1 + int(database.execute("select coalesce(max(id), 0) as id from gatecast_runs")[0]["id"]),
                "config": json.dumps(job.config),
                "given": json.dumps(job.references),
                "model": "",
                "mlflow": "",
                "status": "running",
                "started": start,
                "heartbeat": start,
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
        """Add facts to the entry of a job.

        Earlier attempts that failed before their cutoff or model was known get the same key.
        """
        with self._database.open() as database:
            row = find_sql(database, "id = ?", [entry])[0]
            condition = "flow = ? and dataset = ? and config_digest = ? and schedule = ? and slot = ?"
            values = [row.flow, row.dataset, row.config_digest, row.schedule, row.slot]
            for name, value in {"cutoff": cutoff, "model": model}.items():
                if value:
                    unknown = f"(id = ? or {name} = '' and status <> 'done' and {condition})"
                    database.execute(f"update gatecast_runs set {name} = ? where {unknown}", [value, entry, *values])
            for name, value in {"mlflow": mlflow, "output": output}.items():
                if value:
                    database.execute(f"update gatecast_runs set {name} = ? where id = ?", [value, entry])

    def relink(self, before: str, mlflow: str) -> None:
        """Replace the id or page `before` of a run in MLflow by another one."""
        with self._database.open() as database:
            database.execute("update gatecast_runs set mlflow = ? where mlflow = ?", [mlflow, before])

    def beat(self, entry: int) -> None:
        """Record a heartbeat of a job."""
        with self._database.open() as database:
            database.execute("update gatecast_runs set heartbeat = ? where id = ?", [_now(), entry])

    def end(self, entry: int, status: Status, exit_code: int, error: str = "") -> None:
        """Record the end of a job."""
        with self._database.open() as database:
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
        """Return the latest attempt of each key, or every attempt, newest first, at most `limit`."""
        filters = {
            "flow = ?": flow,
            "dataset = ?": dataset,
            "schedule = ?": schedule,
            "started >= ?": since and _text(since),
        }
        given = {condition: value for condition, value in filters.items() if value is not None}
        conditions, values = ["1 = 1", *given], list[Any](given.values())
        if status:
            if (
                status == "abandoned"
            ):  # The status of dead processes and unknown ones is not stored: these are filtered after reading.
                conditions.append(f"(status is null or status not in ({', '.join('?' * len(_WRITTEN))}))")
                values += _WRITTEN
            else:
                conditions.append("status = ?")
                values.append(status)
        if not every:
            same_work = " and ".join(f"o.{name} = r.{name}" for name in WORK)
            conditions.append(f"not exists (select 1 from gatecast_runs o where o.id > r.id and {same_work})")
        where = " and ".join(conditions)
        is_stored = status in (None, *_WRITTEN)
        with self._database.read() as database:
            rows = find_sql(database, where, values, limit if is_stored else None)
        return [entry for entry in rows if status in (None, entry.status)][:limit]

    def get(self, entry: int) -> Entry:
        """Return an attempt. Raises LedgerError for an unknown number."""
        with self._database.read() as database:
            rows = find_sql(database, "id = ?", [entry])
        if not rows:
            raise LedgerError(f"{self.shown}: there is no run {entry}; `forecast runs list` shows those there are")
        return rows[0]

    def latest(self, schedule: str, slot: str) -> Entry | None:
        """Return the latest attempt at a slot."""
        with self._database.read() as database:
            rows = find_sql(database, "schedule = ? and slot = ?", [schedule, slot])
        return rows[0] if rows else None

    def slots(self, schedule: str, first: str, last: str) -> dict[str, Entry]:
        """Return the latest attempt at each slot from `first` to `last`."""
        with self._database.read() as database:
            rows = find_sql(database, "schedule = ? and slot between ? and ?", [schedule, first, last])
        return {entry.slot: entry for entry in reversed(rows)}

    def settled(self, schedule: str) -> datetime | None:
        """Return the time until which a schedule is settled (completed, given up or skipped); None for a new one.

        A damaged row counts as settled until the far future, so that its schedule is shown as stopped.
        """
        with self._database.read() as database:
            rows = database.execute("select settled from gatecast_schedules where name = ?", [schedule])
        return (moment_of(rows[0]["settled"]) or _DAMAGED) if rows else None

    def settle(self, schedule: str, moment: datetime) -> None:
        """Record that a schedule is settled until a time; an earlier time has no effect.

        Raises LedgerError for a time in the future, as nothing would be due before it.
        """
        if moment > datetime.now(UTC) + SKEW:
            raise LedgerError(f"{schedule}: can't be settled until {moment.isoformat()}, which is in the future")
        text = moment.astimezone(UTC).isoformat()
        with self._database.open() as database:
            if not database.execute("select 1 as one from gatecast_schedules where name = ?", [schedule]):
                database.execute("insert into gatecast_schedules (name, settled) values (?, ?)", [schedule, text])
            later = "update gatecast_schedules set settled = ? where name = ? and settled < ?"
            database.execute(later, [text, schedule, text])

    def rewind(self, schedule: str, moment: datetime) -> int:
        """Set back the time until which a schedule is settled, after runs with a wrong clock.

        Its runs for future slots stay in the list, but are detached from the slots; return their number.
        """
        text = moment.astimezone(UTC).isoformat()
        future = "schedule = ? and slot > ? and status <> 'running'"
        values = [schedule, datetime.now(UTC).isoformat(timespec="seconds")]
        with self._database.open() as database:
            database.execute("update gatecast_schedules set settled = ? where name = ?", [text, schedule])
            ids = database.execute(f"select id from gatecast_runs where {future}", values)
            database.execute(f"update gatecast_runs set slot = '', notice = '' where {future}", values)
        return len(ids)

    def refused(self, schedule: str, exit_code: int) -> list[Entry]:
        """Return the latest attempts at slots that ended with an exit code, by slot."""
        where = "schedule = ? and slot <> '' and exit_code = ? and status = 'failed'"
        with self._database.open() as database:
            entries = find_sql(database, f"{where} and {LATEST}", [schedule, exit_code])
        return sorted(entries, key=lambda entry: entry.slot)

    def notices(self, schedule: str) -> list[Entry]:
        """Return the latest attempts at slots with an unsent, unclaimed notice, oldest first."""
        where = f"schedule = ? and slot <> '' and notice >= ? and notice < ? and {LATEST}"
        with self._database.open() as database:
            return find_sql(database, where, [schedule, _DUE, f"{_DUE} {_now()}"])[::-1]

    def claim_notice(self, entry: int, seconds: float) -> bool:
        """Claim a notice for some seconds; return whether it is unsent and unclaimed."""
        until = _text(datetime.now(UTC) + timedelta(seconds=seconds))
        open_ = "id = ? and notice >= ? and notice < ?"
        with self._database.open() as database:
            values = [entry, _DUE, f"{_DUE} {_now()}"]
            if not database.execute(f"select id from gatecast_runs where {open_}", values):
                return False
            database.execute("update gatecast_runs set notice = ? where id = ?", [f"{_DUE} {until}", entry])
        return True

    def postpone_notice(self, entry: int, seconds: float) -> None:
        """Record that a notice was not delivered and is to be sent again, after some seconds."""
        until = _text(datetime.now(UTC) + timedelta(seconds=seconds))
        with self._database.open() as database:
            database.execute("update gatecast_runs set notice = ? where id = ?", [f"{_DUE} {until}", entry])

    def close_notice(self, entry: int) -> None:
        """Record that the notice of an attempt was sent; earlier attempts at its slot need none."""
        with self._database.open() as database:
            slot = database.execute("select schedule, slot from gatecast_runs where id = ?", [entry])
            if slot:
                values = [_now(), slot[0]["schedule"], slot[0]["slot"], entry]
                where = "schedule = ? and slot = ? and id <= ? and notice <> ''"
                database.execute(f"update gatecast_runs set notice = ? where {where}", values)

    @property
    def shown(self) -> str:
        """The URI without its password."""
        return self._database.shown


def _who(entry: Entry) -> str:
    return f"process {entry.pid} on {entry.host}, since {entry.started:%Y-%m-%d %H:%M:%S} UTC, run {entry.id}"


def _now() -> str:
    return _text(datetime.now(UTC))


def _text(moment: datetime) -> str:
    """Return a time as text of the ledger, which sorts by time."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")
