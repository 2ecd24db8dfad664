"""Entries of the ledger: one attempt at a job. A damaged row is read as far as possible."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, TypeVar, get_args

from pipelines.jobs import processes

Status = Literal["running", "done", "failed", "abandoned", "waiting"]
STATUSES: Final[tuple[Status, ...]] = get_args(Status)
BEAT: Final = timedelta(seconds=15)
"""Interval of heartbeats."""

_SILENT: Final = 6 * BEAT
_NEVER: Final = datetime(1970, 1, 1, tzinfo=UTC)

_UNKNOWN: Final[Status] = "abandoned"
_EMPTY: Final[Mapping[str, Any]] = {}

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job for the ledger; `cutoff` and `model` are empty until they are known."""

    flow: str
    dataset: str = ""
    cutoff: str = ""
    config_digest: str = ""
    config: Mapping[str, Any]
    """Settings of the job, without secrets."""
    references: Mapping[str, Any] = field(default_factory=dict)
    """Settings given as references to the environment or to other settings, by path."""
    schedule: str = ""
    slot: str = ""
    """Nominal time of a scheduled job, in UTC."""
    settings_digest: str = ""
    """Digest of the settings in its schedule, including the cutoff."""


@dataclass(frozen=True, kw_only=True)
class Entry(Job):
    """One attempt at a job."""

    id: int
    model: str
    mlflow: str
    """Its run in MLflow: the page on the server, or the id for other stores."""
    status: Status
    attempt: int
    """Number of the attempt, from 1, among those with the same key, or at the same slot."""
    failures: int
    """Failed attempts up to this one, at a slot with the same settings; interruptions do not count."""
    started: datetime
    ended: datetime | None
    seconds: float
    """Working time so far."""
    host: str
    pid: int
    output: str
    """Manifest, folder, or version of a model."""
    exit_code: int | None
    error: str
    folder: str
    """Working folder of the job, the base of relative paths."""
    process: str
    """See `processes.identity`."""
    notice: str
    """State of its notice; see `ledger`."""

    def shown(self) -> dict[str, Any]:
        """Return the entry as values for JSON."""
        moments = {"started": self.started.isoformat(), "ended": self.ended.isoformat() if self.ended else None}
        return vars(self) | moments


def entry_of(row: Mapping[str, Any]) -> Entry:
    """Return the entry of a row.

    Unreadable fields are empty, and named in the error; an unknown status becomes `abandoned`, so that the slot is
    tried again.
    """
    damaged: list[str] = []

    def read(name: str, convert: Callable[[Any], T | None], default: T) -> T:
        value = convert(row.get(name))
        if value is None:
            damaged.append(f"{name}={row.get(name)!r}"[:60])
        return default if value is None else value

    beat = read("heartbeat", moment_of, _NEVER)
    started = read("started", moment_of, beat)
    ended = read("ended", moment_of, beat) if row.get("ended") else None
    texts = {name: read(name, _text, "") for name in _TEXTS}
    status = read("status", _status, _UNKNOWN)
    host, pid = texts["host"], read("pid", _number, 0)
    if status == "running":
        seconds = 0.0
        if not _alive(host, pid, texts["process"], beat):
            status, ended = "abandoned", beat
        seconds = max(((ended or datetime.now(UTC)) - started).total_seconds(), 0.0)
    else:
        seconds = read("seconds", _seconds, 0.0) if ended else 0.0
        ended = ended or beat
    config = read("config", _mapping, _EMPTY)
    references = read("given", _mapping, _EMPTY) if row.get("given") else _EMPTY
    error = read("error", _text, "")
    if damaged:
        error = "; ".join(filter(None, [error, f"this row of the ledger is damaged: {', '.join(damaged)}"]))
    if status == "abandoned" and not error:
        error = f"process {pid} on {host} is gone, and has not said how it ended"
    return Entry(
        **texts,
        id=int(row["id"]),
        config=config,
        references=references,
        status=status,
        attempt=int(row.get("attempt") or 1),
        failures=int(row.get("failures") or 0),  # Sums in PostgreSQL are decimal numbers.
        started=started,
        ended=ended,
        seconds=seconds,
        pid=pid,
        exit_code=_number(row.get("exit_code")),
        error=error,
    )


_TEXTS: Final = tuple(each.name for each in fields(Entry) if each.type in (str, "str") and each.name != "error")


def moment_of(text: Any) -> datetime | None:
    """Return the time in a text of a row; None for anything else."""
    try:
        moment = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def _seconds(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _status(value: Any) -> Status | None:
    return next((status for status in STATUSES if status == value), None)


def _mapping(text: Any) -> Mapping[str, Any] | None:
    try:
        value = json.loads(text)
    except (TypeError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _alive(host: str, pid: int, process: str, beat: datetime) -> bool:
    """Return whether a job still runs, by its heartbeat, and by its process if that is visible from here."""
    silence = datetime.now(UTC) - beat
    if silence > _SILENT:
        return False
    running = processes.is_running(host, pid, process)
    return silence > -_SILENT if running is None else running
