"""Jobs: a decorator that gives a verb its config, its log, and its entry in the ledger."""

import functools
import hashlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from forecast.config import (
    JobConfig,
    JobShare,
    LedgerConfig,
)
from forecast.errors import DataError, GatecastError, LedgerError
from forecast.redaction import redacted
from pipelines.jobs import console
from pipelines.jobs.command_line import verb_settings
from pipelines.jobs.references import with_references, without_secrets
from pipelines.jobs.settings_text import escaped
from pipelines.verbs import INCIDENTAL, JOBS, cutoff_keys, digest_text

if TYPE_CHECKING:
    from forecast.config import FitConfig
    from forecast.training.launcher import Placement
    from pipelines.jobs.ledger import Ledger
    from pipelines.jobs.ledger_entry import Entry, Job, Status

T = TypeVar("T", bound=JobConfig)
_LOG = logging.getLogger(__name__)

DEFAULT_LEDGER: Final = "sqlite:///gatecast.db"
SCHEDULE: Final = "GATECAST_SCHEDULE"
SLOT: Final = "GATECAST_SLOT"
SETTINGS_DIGEST: Final = "GATECAST_SETTINGS_DIGEST"
LOCAL_CLOCK: Final = "GATECAST_LOCAL_CLOCK"
WAIT_FOR_DATA: Final = "GATECAST_WAIT_FOR_DATA"
"""Environment variables of a job that a schedule has started: the schedule's name, the slot, a digest of its settings;
whether its cutoff drops the time zone if the panel has none, and whether to wait for data."""

_WRITTEN: Final = ("output.path", "fit.checkpoint", "finetune.checkpoint", "score.state")
"""Settings that name an output folder."""
_TERMINATED: Final = 128 + signal.SIGTERM
_current: "ContextVar[tuple[Ledger, int] | None]" = ContextVar("_current", default=None)
_references: ContextVar[Mapping[str, Any]] = ContextVar("_references", default={})  # noqa: B039  never changed


def recorded(kind: type[T]) -> Callable[[Callable[[T], None]], Callable[[list[str]], None]]:
    """Decorate a function of a config: it takes command-line arguments, and is recorded in the ledger.

    A ledger that does not answer stops a scheduled job, which might run twice without it. A job started by a person
    continues with a warning.
    """
    (flow,) = (flow for flow, job in JOBS.items() if job.config == kind.__name__)

    def decorate(work: Callable[[T], None]) -> Callable[[list[str]], None]:
        @functools.wraps(work)
        def main(argv: list[str]) -> None:
            config, references = verb_settings(kind, flow, argv)
            place = _place(config)
            # Rank 0 keeps the record of a training, the commit that of a share.
            is_worker = place is not None and place.rank > 0
            is_recorded = not is_worker and not isinstance(getattr(config, "shard", None), JobShare)
            console.setup(logging.WARNING if is_worker else logging.INFO)
            with _with_others(config, place):
                _references.set(references)
                ledger = open_ledger(config.ledger)
                entry = _begin(ledger, describe(flow, config, references)) if is_recorded else None
                if entry is not None and entry.status == "done":
                    console.say(f"{entry.schedule} of {entry.slot}: done before, run {entry.id}")
                    return
                from forecast.data.time.frequency import local_clock

                token = local_clock.set(bool(os.environ.get(LOCAL_CLOCK)))
                try:
                    with _recording(ledger, entry.id) if entry else _terminable():
                        _look(config, () if is_worker else _WRITTEN)
                        work(config)
                finally:
                    local_clock.reset(token)

        return main

    return decorate


def _look(config: JobConfig, written: Sequence[str]) -> None:
    """Raise DataError for a missing table, OutputError for a folder (of the settings `written`) that can't be written.

    This check comes before the slow imports of torch and MLflow.
    """
    from forecast.data.files import check_location
    from forecast.data.sources.open import fingerprint

    if (data := getattr(config, "data", None)) is not None:
        fingerprint(data)
    for key in written:
        group, name = key.split(".")
        if folder := getattr(getattr(config, group, None), name, None):
            check_location(Path(folder), key)
    if written and config.registry.tracking == "best_effort":
        check_location(Path(config.registry.spool), "registry.spool")


@contextmanager
def step(flow: str, config: JobConfig) -> Iterator[None]:
    """Record a part of this process's job as a separate job in the ledger, with the slot of the whole."""
    ledger = open_ledger(config.ledger)
    entry = _begin(ledger, replace(describe(flow, config, _references.get()), schedule="", slot=""))
    if entry is None:
        yield
    else:
        with _recording(ledger, entry.id):
            yield


def note(*, cutoff: str = "", model: str = "", mlflow: str = "", output: str = "") -> None:
    """Add facts about this process's job to its entry in the ledger, if it has one."""
    if current := _current.get():
        ledger, entry = current
        with _warned():
            ledger.note(entry, cutoff=cutoff, model=model, mlflow=mlflow, output=output)


def open_ledger(config: LedgerConfig) -> "Ledger":
    """Return the ledger in use: configured, from GATECAST_LEDGER, or a SQLite file here."""
    from pipelines.jobs.ledger import Ledger

    configured = config.uri.get_secret_value() if config.uri else os.environ.get("GATECAST_LEDGER")
    return Ledger(configured or DEFAULT_LEDGER)


def describe(flow: str, config: JobConfig, references: Mapping[str, Any]) -> "Job":
    """Return the ledger's description of a job; settings given as `references` stay unresolved, passwords are omitted.

    The settings are in the form of a YAML file: other text with ${ in it is escaped.

    The digest covers all settings that affect the result, except the cutoff, which is a separate part of the key.
    """
    from pipelines.jobs.ledger_entry import Job

    dumped = config.model_dump(mode="json", exclude={"ledger"})
    values = with_references(without_secrets(type(config), escaped(dumped)), references)
    group, _, name = (JOBS[flow].cutoff or "data.until").partition(".")
    data = values.get("data", {})
    cutoff = dumped.get(group, {}).get(name) or dumped.get("data", {}).get("until") or ""
    path = values.get("reconcile", {}).get("path")
    dataset = data.get("path") or data.get("uri") or path or config.registry.name
    cutoffs = cutoff_keys()
    settings = digest_text(config, {**INCIDENTAL, **cutoffs, "score": {*cutoffs["score"], "force"}})
    return Job(
        flow=flow,
        dataset=dataset,
        cutoff=cutoff,
        config_digest=hashlib.sha256(settings.encode()).hexdigest(),
        config=values,
        references={path: reference for path, reference in references.items() if _is_setting(values, path)},
        schedule=os.environ.get(SCHEDULE, ""),
        slot=os.environ.get(SLOT, ""),
        settings_digest=os.environ.get(SETTINGS_DIGEST, ""),
    )


def _is_setting(values: Any, path: str) -> bool:
    for name in path.split("."):
        if not isinstance(values, dict) or name not in values:
            return False
        values = values[name]
    return True


def _place(config: JobConfig) -> "Placement | None":
    """Return the place of this process among those that train one model (`fit.launcher`), if there are several."""
    from forecast.training.launcher import placement

    fit = getattr(config, "fit", None)
    return None if fit is None else placement(fit.launcher)


def _with_others(config: JobConfig, place: "Placement | None") -> AbstractContextManager[object]:
    """Join the other processes of a training before anything can fail that they would wait for."""
    if place is None:
        return nullcontext()
    from forecast.training.ranks import joined

    fit: FitConfig = getattr(config, "fit")  # noqa: B009
    return joined(fit)


def _begin(ledger: "Ledger", job: "Job") -> "Entry | None":
    if job.slot:
        return ledger.begin(job)
    with _warned():
        return ledger.begin(job)
    return None


@contextmanager
def _warned() -> Iterator[None]:
    try:
        yield
    except LedgerError as error:
        _LOG.warning("this run is not, or not all, in the ledger: %s", error)


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end the work with its clean-up."""
    set_before = on_sigterm(terminate)
    try:
        yield
    finally:
        on_sigterm(set_before)


@contextmanager
def _recording(ledger: "Ledger", entry: int) -> Iterator[None]:
    """Record heartbeats during the work, and its end."""
    ended, set_before = threading.Event(), on_sigterm(terminate)
    status: Status = "done"
    code, error = 0, ""
    heart = threading.Thread(target=_beat, args=(ledger, entry, ended), daemon=True)
    heart.start()
    token = _current.set((ledger, entry))
    try:
        yield
    except GatecastError as raised:
        waits = isinstance(raised, DataError) and os.environ.get(SLOT) and os.environ.get(WAIT_FOR_DATA)
        status, code, error = "waiting" if waits else "failed", raised.exit_code, str(raised)
        raise
    except Exception as raised:
        status, code, error = "failed", 1, f"{type(raised).__name__}: {raised}"
        raise
    except BaseException as raised:
        terminated = isinstance(raised, SystemExit)
        status, code = "abandoned", _TERMINATED if terminated else 128 + signal.SIGINT
        error = "terminated" if terminated else "interrupted"
        raise
    finally:
        on_sigterm(set_before)
        _current.reset(token)
        ended.set()
        with _warned():
            ledger.end(entry, status, code, redacted(error))


def _beat(ledger: "Ledger", entry: int, ended: threading.Event) -> None:
    from pipelines.jobs.ledger_entry import BEAT

    while not ended.wait(BEAT.total_seconds()):
        with suppress(LedgerError):  # The next heartbeat may succeed.
            ledger.beat(entry)


def terminate(number: int, _frame: object) -> None:
    """End the process after its clean-up, with the exit code of the signal."""
    raise SystemExit(128 + number)


def on_sigterm(handler: Any) -> Any:
    """Set the handler of SIGTERM and return the previous one; only possible in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        return None
    return signal.signal(signal.SIGTERM, handler)


def manifest_of(paths: Sequence[Path]) -> str:
    """Return the manifest of a job, or the folder of its manifests."""
    return "" if not paths else str(paths[0] if len(paths) == 1 else paths[0].parent)
