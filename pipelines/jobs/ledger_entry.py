"""A row of the ledger as an entry: one attempt at a job. A row that is damaged is shown as far as it can be read."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, TypeVar, get_args

from pipelines.jobs import processes

Status = Literal["running", "done", "failed", "abandoned", "waiting"]
STATUSES: Final[tuple[Status, ...]] = get_args(Status)
BEAT: Final = timedelta(seconds=15)
"""How often a job says that it is alive."""

_SILENT: Final = 6 * BEAT
_NEVER: Final = datetime(1970, 1, 1, tzinfo=UTC)

_UNKNOWN: Final[Status] = "abandoned"
_EMPTY: Final[Mapping[str, Any]] = {}

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be done; `cutoff` and `model` are empty as long as they are not known."""

    flow: str
    dataset: str = ""
    cutoff: str = ""
    config_digest: str = ""
    config: Mapping[str, Any]
    """Of the job, without its secrets."""
    references: Mapping[str, Any] = field(default_factory=dict)
    """Which of these settings were given as references to the environment or to others, by their paths."""
    schedule: str = ""
    slot: str = ""
    """The moment in UTC that a job of a schedule is for."""
    settings_digest: str = ""
    """Of what its schedule says, the cutoff included."""


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
    failures: int
    """Attempts that failed, this one included; of a slot, with the same settings. An interruption is none."""
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
    process: str
    """See `processes.identity`."""
    notice: str
    """Whether others have been notified of how it ended."""

    def shown(self) -> dict[str, Any]:
        """Return the entry as JSON takes it."""
        moments = {"started": self.started.isoformat(), "ended": self.ended.isoformat() if self.ended else None}
        return vars(self) | moments


def entry_of(row: Mapping[str, Any]) -> Entry:
    """Return the entry of a row.

    What can't be read is empty, and the error names it; a status that there is not is `abandoned`, so that its slot is
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
        failures=int(row.get("failures") or 0),  # PostgreSQL sums to a decimal number.
        started=started,
        ended=ended,
        seconds=seconds,
        pid=pid,
        exit_code=_number(row.get("exit_code")),
        error=error,
    )


_TEXTS: Final = tuple(each.name for each in fields(Entry) if each.type in (str, "str") and each.name != "error")


def moment_of(text: Any) -> datetime | None:
    """Return a moment that a row has as text; None for anything else."""
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
    """Return whether a job still runs: it was heard of, and its process is there, if that can be seen from here."""
    silence = datetime.now(UTC) - beat
    if silence > _SILENT:
        return False
    running = processes.is_running(host, pid, process)
    return silence > -_SILENT if running is None else running
