"""The scheduler: due slots, the processes that run them, and catching up."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from forecast.config import SchedulerConfig
from forecast.errors import ConfigError, GatecastError, GateRefused, LedgerError, RolledBack, ThresholdBreached
from pipelines.jobs import console
from pipelines.jobs.job import (
    LOCAL_CLOCK,
    SCHEDULE,
    SETTINGS_DIGEST,
    SLOT,
    WAIT_FOR_DATA,
    on_sigterm,
    open_ledger,
    terminate,
)
from pipelines.jobs.ledger import SKEW
from pipelines.jobs.ledger_entry import moment_of
from pipelines.jobs.references import job_command

if TYPE_CHECKING:
    from pipelines.jobs.ledger import Ledger
    from pipelines.jobs.ledger_entry import Entry
    from pipelines.notify import NotifyConfig
    from pipelines.scheduling.schedule_file import Schedule


_LOG = logging.getLogger(__name__)
FINAL: Final = tuple(error.exit_code for error in (ConfigError, GateRefused, ThresholdBreached, RolledBack))
"""Exit codes of jobs that would end the same way again."""
_TIMED_OUT: Final = 124
_SOON: Final = 0.2
_KILL_SECONDS: Final = 10.0
"""Time for a job to record its end after SIGTERM."""
_OUTSIDE: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals by which people and init systems end a job. SIGKILL is what a job out of memory gets."""
_MAX_INTERRUPTIONS: Final = 20
"""Interruptions of a slot before it is given up, as the job itself may crash its host."""
_LEASE: Final = 30.0
"""Seconds to send a notice, besides the limits of the hooks; then another scheduler may send it."""
_POSTPONE: Final = 300.0
"""Seconds before an undelivered notice is sent again."""


@dataclass(frozen=True)
class Slot:
    """One cutoff of a schedule, to be run."""

    name: str
    cutoff: datetime
    moment: datetime
    """Due time in UTC."""

    @property
    def key(self) -> str:
        """The cutoff as text of the ledger."""
        return self.cutoff.astimezone(UTC).isoformat()


class Scheduler:
    """Runs the due slots of the schedules in a file, each job in its own process."""

    def __init__(self, config: SchedulerConfig, schedules: "dict[str, Schedule]", notify: "NotifyConfig") -> None:
        from pipelines.notify import Notifier
        from pipelines.scheduling.schedule_file import panel_makers

        self._settings, self._schedules = config.schedule, schedules
        self.makers = panel_makers(schedules)
        self.ledger: Ledger = open_ledger(config.ledger)
        self._notify, self._notifier = notify, Notifier(notify)
        self._queued: set[int] = set()
        self._waiting: set[str] = set()
        self._stopping = threading.Event()
        self._jobs: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()

    def run(self) -> None:
        """Run due slots until SIGTERM or SIGINT; with a fixed clock, only those due at that time.

        Running jobs then have `schedule.grace` seconds to end before they are signalled.
        """
        self._check_clock()
        for name, schedule in self._schedules.items():
            self._enter(name, schedule)
            self._tell(name)
        if self._settings.now is not None:
            on_sigterm(terminate)
            while (slots := [slot for name in self._schedules if (slot := self._due(name))]) or self._busy():
                if slots:
                    self.attempt(min(slots, key=lambda slot: slot.moment))
                else:
                    time.sleep(_SOON)
            for name in self._schedules:
                self._tell(name)
            self._notifier.close(60.0)
            return

        from apscheduler.executors.pool import ThreadPoolExecutor
        from apscheduler.schedulers.background import BackgroundScheduler

        from pipelines.scheduling.schedule_file import Due

        logging.getLogger("apscheduler").setLevel(logging.ERROR)
        flows = {schedule.flow for schedule in self._schedules.values()}
        clock = BackgroundScheduler(executors={flow: ThreadPoolExecutor(1) for flow in flows}, timezone=UTC)
        for name, schedule in self._schedules.items():
            # A waiting job runs after the current one, and sees slots that have become due meanwhile.
            options: dict[str, Any] = {"coalesce": True, "max_instances": 2, "misfire_grace_time": None}
            clock.add_job(
                self._tick,
                Due(schedule, self._settings.poll),
                [name],
                id=name,
                executor=schedule.flow,
                next_run_time=datetime.now(UTC),
                **options,
            )
        stop_signals = threading.Semaphore(0)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop_signals.release())
        clock.start()
        _LOG.info("%d schedule(s), %s", len(self._schedules), self.ledger.shown)
        stop_signals.acquire()
        self._stop(stop_signals)
        clock.shutdown(wait=True)
        for name in self._schedules:  # Jobs of other schedulers may have ended since the last look.
            try:
                self._tell(name)
            except LedgerError as error:
                _LOG.error("%s: %s", name, error)
        self._notifier.close(60.0)

    def once(self, name: str) -> None:
        """Run one slot with its retries. Raises an error with the exit code of a failed last attempt."""
        on_sigterm(terminate)
        schedule, cutoff = self._schedules[name], self._settings.cutoff
        moment = cutoff and schedule.given(cutoff)
        if moment is None:
            moment = schedule.last(self._now())
        slot = Slot(name, schedule.given(cutoff) if cutoff else schedule.cutoff_of(moment), moment)
        self._tell(name, before=slot.key)
        attempts_left = schedule.retries
        while (code := self.attempt(slot)) not in (0, LedgerError.exit_code, *FINAL):
            entry = self.ledger.latest(slot.name, slot.key)
            if entry is not None and entry.status == "waiting" and not self._settings.now:
                time.sleep(self._settings.poll)
                continue
            if entry is None or not attempts_left or entry.attempt - entry.failures > _MAX_INTERRUPTIONS:
                self._tell(name, entry)
                break
            if entry.status == "failed":
                attempts_left -= 1
                time.sleep(self._wait(schedule, schedule.retries - attempts_left))
        self._notifier.close(60.0)
        if code:
            error = GatecastError(f"{name} of {slot.key} failed, see above and `forecast runs list`")
            error.exit_code = code if code > 0 else 128 - code
            raise error

    def repair(self, name: str | None) -> None:
        """Restart a schedule, or all that are settled until a time in the future.

        Raises ConfigError for a `since` in the future, or without a schedule.
        """
        current, start = datetime.now(UTC), self._settings.since
        if start is not None and (name is None or start > current):
            reason = "needs the name of a schedule" if name is None else f"{start.isoformat()} is in the future"
            raise ConfigError(f"schedule.since: {reason}: `forecast schedule repair NAME --since TIME`")
        stopped = [schedule_name for schedule_name in self._schedules if self._stopped_until(schedule_name)]
        names = [name] if name is not None and (start or name in stopped) else [] if name else stopped
        for schedule_name in names:
            moment = start or self._last_run(schedule_name)
            count = self.ledger.rewind(schedule_name, moment)
            runs = f"; {count:,} run(s) for slots in the future no longer count" if count else ""
            print(
                f"{schedule_name}: begins again with what became due since "
                f"{_shown(moment, self._schedules[schedule_name])}{runs}"
            )
        if not names:
            print(f"{name or 'every schedule'}: settled until now or earlier, nothing to repair")

    def _last_run(self, name: str) -> datetime:
        """Return the time of a schedule's last run by a correct clock; now without one."""
        current = datetime.now(UTC)
        runs = self.ledger.entries(schedule=name, every=True)
        return max(
            (run.started for run in runs if run.started <= current and run.slot <= current.isoformat()), default=current
        )

    def _stopped_until(self, name: str) -> datetime | None:
        """Return the time until which a schedule is settled if that is in the future, else None."""
        settled, start = self.ledger.settled(name), self._schedules[name].before_start()
        if settled is None or settled <= datetime.now(UTC) + SKEW or (start and settled <= start):
            return None
        return settled

    def _stopped(self) -> list[str]:
        """Return a line for each schedule that is stopped until a time in the future."""
        return [
            f"{name}: settled until {_shown(until, schedule)}, which is in the future: it runs nothing before; "
            f"`forecast schedule repair {name}` lets it begin again"
            for name, schedule in self._schedules.items()
            if (until := self._stopped_until(name))
        ]

    def _check_clock(self) -> None:
        """Raise ConfigError for a clock ahead of time, LedgerError after runs with such a clock."""
        current = datetime.now(UTC)
        if self._settings.now and self._settings.now > current + SKEW:
            raise ConfigError(
                f"schedule.now={self._settings.now.isoformat()} is in the future; now it is {current.isoformat()}"
            )
        if stopped := self._stopped():
            lines = "\n  ".join(stopped)
            raise LedgerError(
                f"a clock is or was wrong, here it is {current:%Y-%m-%d %H:%M:%S} UTC: {len(stopped)} of "
                f"{len(self._schedules)} schedule(s) are stopped:\n  {lines}"
            )

    def show(self) -> None:
        """Print the schedules."""
        import polars as pl

        current, rows = self._now(), []
        for name, schedule in self._schedules.items():
            last = next(iter(self.ledger.entries(schedule=name, limit=1)), None)
            rows.append(
                {
                    "schedule": name,
                    "flow": schedule.flow,
                    "cron": schedule.cron,
                    "next": _shown(schedule.next(current), schedule),
                    "last": _shown(last.started, schedule) if last else "",
                    "cutoff": _shown(cutoff, schedule) if last and (cutoff := moment_of(last.slot)) else "",
                    "status": last.status if last else "",
                    "attempts": last.attempt if last else None,
                }
            )
        console.table(pl.DataFrame(rows, schema_overrides={"attempts": pl.Int64}))
        self._print_faults()

    def preview(self) -> None:
        """Print the slots that become due."""
        import polars as pl

        current = self._now()
        until = self._settings.until or current + timedelta(days=7)
        due = sorted(
            (moment, name) for name, schedule in self._schedules.items() for moment in schedule.moments(current, until)
        )
        rows = [
            {
                "due": _shown(moment, self._schedules[name]),
                "schedule": name,
                "flow": self._schedules[name].flow,
                "cutoff": _shown(self._schedules[name].cutoff_of(moment), self._schedules[name]),
            }
            for moment, name in due
        ]
        columns = ("due", "schedule", "flow", "cutoff")
        console.table(pl.DataFrame(rows, schema=dict.fromkeys(columns, pl.String)))
        self._print_faults()

    def _print_faults(self) -> None:
        """Print the stopped schedules, and those whose settings do not suit their table."""
        from pipelines.scheduling.panel_checks import panel_faults

        for line in (*self._stopped(), *panel_faults(self._schedules, self.makers, self._now())):
            print(line)

    def _now(self) -> datetime:
        return (self._settings.now or datetime.now(UTC)).astimezone(UTC)

    def _enter(self, name: str, schedule: "Schedule") -> None:
        """Start a new schedule, and skip missed slots as `catch_up` says."""
        settled = self.ledger.settled(name)
        if settled is None:
            start = schedule.before_start()
            self.ledger.settle(name, min(start, self._now()) if start else self._now())
        elif schedule.catch_up == "none" and (missed := self._moments(name)):
            entries, unfinished = self._unfinished(name, missed)
            # The latest slot was not missed if its attempt was interrupted, or is to be repeated.
            begun_last = unfinished and unfinished[-1].moment == missed[-1] and unfinished[-1].key in entries
            if missed := missed[:-1] if begun_last else missed:
                self._skip(name, missed)

    def _skip(self, name: str, moments: list[datetime]) -> None:
        schedule = self._schedules[name]
        first, last = (_shown(moments[index], schedule) for index in (0, -1))
        extent = f"{first} to {last} (catch_up={schedule.catch_up})"
        _LOG.warning("%s: %s missed, skipped: %s", name, f"{len(moments):,}", extent)
        self.ledger.settle(name, moments[-1])

    def _tick(self, name: str) -> None:
        """Run the due slots of a schedule, and send unsent notices."""
        try:
            if until := self._stopped_until(name):
                _LOG.error("%s: settled until %s, which is in the future; `forecast schedule repair`", name, until)
                return
            self._tell(name)
            while not self._stopping.is_set() and (slot := self._due(name)):
                if self.attempt(slot) == LedgerError.exit_code:
                    return  # Another process works on it, or the ledger does not answer: try again later.
        except LedgerError as error:
            _LOG.error("%s: %s; trying again in %g s", name, error, self._settings.poll)

    def _due(self, name: str) -> Slot | None:
        """Return the slot to run now, None without one, and settle finished slots.

        No slot is due while a schedule that writes its panel is due or running.
        """
        schedule, moments = self._schedules[name], self._moments(name)
        entries, unfinished = self._unfinished(name, moments)
        if any(entry.status == "running" for entry in entries.values()):
            return None
        if schedule.catch_up != "all" and unfinished and unfinished[-1].moment < moments[-1]:
            self._skip(name, [slot.moment for slot in unfinished])  # The last slot is completed, or given up.
            unfinished = []
        if moments and not unfinished:
            self.ledger.settle(name, moments[-1])
        unfinished = unfinished or self._due_again(name)
        if not unfinished:
            return None
        if any(self._unfinished(maker, self._moments(maker))[1] for maker in self.makers[name]):
            return None
        if schedule.catch_up != "all" and unfinished[:-1]:
            self._skip(name, [slot.moment for slot in unfinished[:-1]])
        slot = unfinished[0 if schedule.catch_up == "all" else -1]
        if self._settings.now and slot.key in self._waiting:
            return None
        entry = entries.get(slot.key)
        return (
            slot
            if entry is None or self._has_new_settings(schedule, entry) or self._may_retry(schedule, entry)
            else None
        )

    def _due_again(self, name: str) -> list[Slot]:
        """Return the slots that failed with settings changed since; only the latest unless catch_up=all.

        They are settled, but due again.
        """
        schedule = self._schedules[name]
        refused = self.ledger.refused(name, ConfigError.exit_code)
        if schedule.catch_up != "all":
            latest = self.ledger.entries(schedule=name, every=True, limit=1)
            refused = [entry for entry in refused if entry.id == latest[0].id]
        return [
            Slot(name, datetime.fromisoformat(entry.slot).astimezone(schedule.zone), entry.started)
            for entry in refused
            if self._has_new_settings(schedule, entry)
        ]

    def _has_new_settings(self, schedule: "Schedule", entry: "Entry") -> bool:
        """Return whether an attempt failed with settings that have changed since."""
        if entry.status != "failed" or entry.exit_code != ConfigError.exit_code or not entry.settings_digest:
            return False
        cutoff = moment_of(entry.slot)
        return cutoff is not None and entry.settings_digest != schedule.digest(cutoff.astimezone(schedule.zone))

    def _moments(self, name: str) -> list[datetime]:
        """Return the due times that are not settled."""
        settled, start = self.ledger.settled(name), self._schedules[name].before_start()
        assert settled is not None
        return self._schedules[name].moments(max(settled, start) if start else settled, self._now())

    def _unfinished(self, name: str, moments: list[datetime]) -> "tuple[dict[str, Entry], list[Slot]]":
        """Return the latest attempts at due slots, and the slots neither completed nor given up."""
        schedule = self._schedules[name]
        # The last due time of each cutoff.
        by_key = {slot.key: slot for moment in moments for slot in [Slot(name, schedule.cutoff_of(moment), moment)]}
        if not by_key:
            return {}, []
        entries = self.ledger.slots(name, min(by_key), max(by_key))
        return entries, [slot for key, slot in by_key.items() if not self._over(schedule, entries.get(key))]

    def _busy(self) -> bool:
        """Return whether another process runs a slot of these schedules."""
        return any(entry.schedule in self._schedules for entry in self.ledger.entries(status="running"))

    def _over(self, schedule: "Schedule", entry: "Entry | None") -> bool:
        return entry is not None and (entry.status == "done" or self._given_up(schedule, entry))

    def _given_up(self, schedule: "Schedule", entry: "Entry") -> bool:
        if entry.status not in ("failed", "abandoned") or self._has_new_settings(schedule, entry):
            return False
        interruptions = entry.attempt - entry.failures
        return entry.failures > schedule.retries or interruptions > _MAX_INTERRUPTIONS or entry.exit_code in FINAL

    def _may_retry(self, schedule: "Schedule", entry: "Entry") -> bool:
        """Return whether the next attempt may start: at once after an interruption, or with a wrong clock."""
        assert entry.ended is not None
        elapsed = datetime.now(UTC) - entry.ended
        if entry.status in ("abandoned", "waiting"):
            wait = 0.0 if entry.status == "abandoned" or self._settings.now else self._settings.poll / 2
        else:
            wait = self._wait(schedule, entry.failures)
        return elapsed >= timedelta(seconds=wait) or elapsed < -SKEW

    def _wait(self, schedule: "Schedule", attempt: int) -> float:
        """Return the seconds between the end of an attempt and the next."""
        return 0.0 if self._settings.now else float(schedule.backoff * 2 ** (attempt - 1))

    def attempt(self, slot: Slot, *, last: bool = False) -> int:
        """Run a slot in its own process, send the notice unless it is repeated, and return the exit code."""
        schedule = self._schedules[slot.name]
        code, pid = self._process(schedule, slot)
        entry = self.ledger.latest(slot.name, slot.key)
        if (entry is None or entry.pid != pid) and code not in (0, LedgerError.exit_code):
            entry = self.ledger.begin(self._job(schedule, slot), pid)
        if entry is None or entry.pid != pid:
            return code
        if code == _TIMED_OUT and entry.status != "done":
            self.ledger.end(entry.id, "failed", code, f"ended after {schedule.timeout:g} s, its timeout")
        elif entry.status == "running" or entry.ended is None or entry.exit_code is None:
            outside = code < 0 and (self._stopping.is_set() or -code in _OUTSIDE)
            text = f"killed by signal {-code}" if code < 0 else "ended before it could say how; see the log"
            self.ledger.end(entry.id, "abandoned" if outside else "failed", code, text)
        entry = self.ledger.get(entry.id)
        if entry.status == "waiting":
            self._waiting.add(slot.key)
        _LOG.info("%s of %s: %s, attempt %d (%.1f s)", slot.name, slot.key, entry.status, entry.attempt, entry.seconds)
        self._tell(slot.name, entry if last and entry.status != "waiting" and not self._stopping.is_set() else None)
        return code

    def _tell(self, name: str, last: "Entry | None" = None, *, before: str = "") -> None:
        """Send the due notices of a schedule: for slots that are completed or given up.

        They include slots run by other schedulers, which may have ended before. `last` is not repeated; nor are,
        without `schedule run`, slots earlier than `before`.
        """
        schedule, unsettled = self._schedules[name], None
        for entry in self.ledger.notices(name):
            if entry.status == "running" or entry.id in self._queued:
                continue
            if not (entry.status == "done" or self._given_up(schedule, entry) or (last and entry.id == last.id)):
                if self.ledger.settled(name) is None:
                    if entry.slot < before and self._may_retry(schedule, entry):
                        self._send(entry)
                    continue
                if unsettled is None:
                    unsettled = {
                        schedule.cutoff_of(moment).astimezone(UTC).isoformat() for moment in self._moments(name)
                    }
                if entry.slot in unsettled or not self._may_retry(schedule, entry):
                    continue
            self._send(entry)

    def _send(self, entry: "Entry") -> None:
        """Send the notice of an attempt unless another scheduler does; repeat it later if undelivered."""
        from pipelines.notify import event_of

        event = event_of(0 if entry.status == "done" else entry.exit_code or 1)
        if not self._notify.includes(event):
            self.ledger.close_notice(entry.id)
            return
        facts = entry.shown()
        for name in ("config", "references", "folder", "process", "notice", "settings_digest"):
            del facts[name]

        def claim() -> bool:
            is_ours = False
            try:
                is_ours = self.ledger.claim_notice(entry.id, self._notify.seconds + _LEASE)
            finally:
                if not is_ours:
                    self._queued.discard(entry.id)
            return is_ours

        def close(delivered: bool) -> None:
            try:
                if delivered:
                    self.ledger.close_notice(entry.id)
                else:
                    self.ledger.postpone_notice(entry.id, _POSTPONE)
            finally:
                self._queued.discard(entry.id)

        self._queued.add(entry.id)
        key = f"{entry.schedule}/{entry.slot}/{event}/{entry.id}"
        self._notifier.tell(event, {"key": key, **facts}, claim, close)

    def _process(self, schedule: "Schedule", slot: Slot) -> tuple[int, int]:
        """Run the job and return its exit code and process number."""
        arguments, settings = job_command(schedule.flow, schedule.settings(slot.cutoff))
        command = [sys.executable, "-m", "pipelines.cli", *arguments]
        slot_of = {SCHEDULE: slot.name, SLOT: slot.key, "GATECAST_LEDGER": self.ledger.uri}
        environment = {**os.environ, **settings, **slot_of}
        environment[SETTINGS_DIGEST] = schedule.digest(slot.cutoff)
        environment[LOCAL_CLOCK] = "" if schedule.naive else "1"
        environment[WAIT_FOR_DATA] = "1" if self._now() < slot.moment + schedule.wait_for_data else ""
        with self._lock:
            if self._stopping.is_set():
                return LedgerError.exit_code, 0
            # In its own session, the job survives a killed scheduler, and does not get Ctrl-C directly.
            job = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
            self._jobs.add(job)
        try:
            return job.wait(schedule.timeout), job.pid
        except subprocess.TimeoutExpired:
            _end(job)
            return _TIMED_OUT, job.pid
        except BaseException:
            _end(job)
            raise
        finally:
            with self._lock:
                self._jobs.discard(job)

    def _job(self, schedule: "Schedule", slot: Slot) -> Any:
        """Return the description of a job that ended before it was recorded."""
        from pipelines.jobs.command_line import verb_settings
        from pipelines.jobs.job import describe
        from pipelines.verbs import config_of

        kind, settings = config_of(schedule.flow), schedule.settings(slot.cutoff)
        job = describe(schedule.flow, *verb_settings(kind, schedule.flow, settings))
        digest = schedule.digest(slot.cutoff)
        return type(job)(**vars(job) | {"schedule": slot.name, "slot": slot.key, "settings_digest": digest})

    def _stop(self, stop_signals: threading.Semaphore) -> None:
        """Let running jobs end; signal those that do not in time, or at a second signal."""
        self._stopping.set()
        if self._jobs:
            _LOG.info("%d job(s) have %g s to end", len(self._jobs), self._settings.grace)
        deadline = time.monotonic() + self._settings.grace
        while self._jobs and time.monotonic() < deadline and not stop_signals.acquire(timeout=0.1):
            pass
        with self._lock:
            jobs = list(self._jobs)
        for job in jobs:
            _end(job)


def _end(job: "subprocess.Popen[bytes]") -> None:
    """Signal a job and its child processes to end; kill those that do not."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(job.pid, number)
        with suppress(subprocess.TimeoutExpired):
            job.wait(_KILL_SECONDS)
            return


def _shown(moment: datetime, schedule: "Schedule") -> str:
    return f"{moment.astimezone(schedule.zone):%Y-%m-%d %H:%M:%S %Z}"
