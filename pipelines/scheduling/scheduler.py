"""The scheduler: it runs the due slots of schedules, catches up, and records how jobs ended."""

import logging
import signal
import threading
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from forecast.config import SchedulerConfig
from forecast.errors import ConfigError, GatecastError, LedgerError
from pipelines.jobs.job import on_sigterm, open_ledger, terminate
from pipelines.jobs.ledger import SKEW
from pipelines.scheduling.agenda import FINAL, MAX_INTERRUPTIONS, Agenda, Slot
from pipelines.scheduling.job_processes import TIMED_OUT, JobProcesses
from pipelines.scheduling.notices import Notices

if TYPE_CHECKING:
    from pipelines.jobs.ledger_entry import Entry
    from pipelines.notify import NotifyConfig
    from pipelines.scheduling.schedule_file import Schedule


_LOG = logging.getLogger(__name__)
_SOON: Final = 0.2
_OUTSIDE: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals by which people and init systems end a job. SIGKILL is what a job out of memory gets."""


class Scheduler:
    """Runs the due slots of the schedules in a file, each job in its own process."""

    def __init__(
        self,
        config: SchedulerConfig,
        schedules: "dict[str, Schedule]",
        notify: "NotifyConfig",
        *,
        jobs: JobProcesses | None = None,
    ) -> None:
        self._settings = config.schedule
        self.ledger = open_ledger(config.ledger)
        self.agenda = Agenda(config.schedule, schedules, self.ledger)
        self.notices = Notices(self.agenda, notify)
        self._jobs = jobs or JobProcesses(self.ledger.uri)

    def run(self) -> None:
        """Run due slots until SIGTERM or SIGINT; with a fixed clock, only those due at that time.

        Running jobs then have `schedule.grace` seconds to end before they are signalled.
        """
        self._check_clock()
        for name in self.agenda.schedules:
            self.agenda.enter(name)
            self.notices.send_due(name)
        if self._settings.now is None:
            self._run_until_stopped()
        else:
            self._run_due()
        self.notices.close()

    def _run_due(self) -> None:
        """Run the slots that are due at the fixed time, the earliest first."""
        on_sigterm(terminate)
        names = self.agenda.schedules
        while (slots := [slot for name in names if (slot := self.agenda.due(name))]) or self._is_busy():
            if slots:
                self.attempt(min(slots, key=lambda slot: slot.moment))
            else:
                time.sleep(_SOON)
        for name in names:
            self.notices.send_due(name)

    def _run_until_stopped(self) -> None:
        """Run slots when they become due, one of each verb at a time."""
        from apscheduler.executors.pool import ThreadPoolExecutor
        from apscheduler.schedulers.background import BackgroundScheduler

        from pipelines.scheduling.schedule_file import Due

        logging.getLogger("apscheduler").setLevel(logging.ERROR)
        schedules = self.agenda.schedules
        flows = {schedule.flow for schedule in schedules.values()}
        clock = BackgroundScheduler(executors={flow: ThreadPoolExecutor(1) for flow in flows}, timezone=UTC)
        for name, schedule in schedules.items():
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
        _LOG.info("%d schedule(s), %s", len(schedules), self.ledger.shown)
        stop_signals.acquire()
        self._jobs.stop(stop_signals, self._settings.grace)
        clock.shutdown(wait=True)
        for name in schedules:  # Jobs of other schedulers may have ended since the last look.
            try:
                self.notices.send_due(name)
            except LedgerError as error:
                _LOG.error("%s: %s", name, error)

    def once(self, name: str) -> None:
        """Run one slot with its retries. Raises an error with the exit code of a failed last attempt."""
        on_sigterm(terminate)
        schedule, cutoff = self.agenda.schedules[name], self._settings.cutoff
        moment = cutoff and schedule.given(cutoff)
        if moment is None:
            moment = schedule.last(self.agenda.now())
        slot = Slot(name, schedule.given(cutoff) if cutoff else schedule.cutoff_of(moment), moment)
        self.notices.send_due(name, before=slot.key)
        attempts_left = schedule.retries
        while (code := self.attempt(slot)) not in (0, LedgerError.exit_code, *FINAL):
            entry = self.ledger.latest(slot.name, slot.key)
            if entry is not None and entry.status == "waiting" and not self._settings.now:
                time.sleep(self._settings.poll)
                continue
            if entry is None or not attempts_left or entry.attempt - entry.failures > MAX_INTERRUPTIONS:
                self.notices.send_due(name, entry)
                break
            if entry.status == "failed":
                attempts_left -= 1
                time.sleep(self.agenda.backoff(schedule, schedule.retries - attempts_left))
        self.notices.close()
        if code:
            error = GatecastError(f"{name} of {slot.key} failed, see above and `forecast runs list`")
            error.exit_code = code if code > 0 else 128 - code
            raise error

    def _check_clock(self) -> None:
        """Raise ConfigError for a clock ahead of time, LedgerError after runs with such a clock."""
        current = datetime.now(UTC)
        if self._settings.now and self._settings.now > current + SKEW:
            raise ConfigError(
                f"schedule.now={self._settings.now.isoformat()} is in the future; now it is {current.isoformat()}"
            )
        if stopped := self.agenda.stopped():
            lines = "\n  ".join(stopped)
            raise LedgerError(
                f"a clock is or was wrong, here it is {current:%Y-%m-%d %H:%M:%S} UTC: {len(stopped)} of "
                f"{len(self.agenda.schedules)} schedule(s) are stopped:\n  {lines}"
            )

    def _tick(self, name: str) -> None:
        """Run the due slots of a schedule, and send unsent notices."""
        try:
            if until := self.agenda.stopped_until(name):
                _LOG.error("%s: settled until %s, which is in the future; `forecast schedule repair`", name, until)
                return
            self.notices.send_due(name)
            while not self._jobs.stopping.is_set() and (slot := self.agenda.due(name)):
                if self.attempt(slot) == LedgerError.exit_code:
                    return  # Another process works on it, or the ledger does not answer: try again later.
        except LedgerError as error:
            _LOG.error("%s: %s; trying again in %g s", name, error, self._settings.poll)

    def _is_busy(self) -> bool:
        """Return whether another process runs a slot of these schedules."""
        return any(entry.schedule in self.agenda.schedules for entry in self.ledger.entries(status="running"))

    def attempt(self, slot: Slot, *, last: bool = False) -> int:
        """Run a slot in its own process, send the notice unless it is repeated, and return the exit code."""
        schedule = self.agenda.schedules[slot.name]
        may_wait = self.agenda.now() < slot.moment + schedule.wait_for_data
        code, pid = self._jobs.run(schedule, slot, may_wait=may_wait)
        entry = self.ledger.latest(slot.name, slot.key)
        if (entry is None or entry.pid != pid) and code not in (0, LedgerError.exit_code):
            entry = self.ledger.begin(_job_of(schedule, slot), pid)
        if entry is None or entry.pid != pid:
            return code
        entry = self._ended(entry, code, schedule)
        if entry.status == "waiting":
            self.agenda.wait_for_data(slot)
        _LOG.info("%s of %s: %s, attempt %d (%.1f s)", slot.name, slot.key, entry.status, entry.attempt, entry.seconds)
        is_last = last and entry.status != "waiting" and not self._jobs.stopping.is_set()
        self.notices.send_due(slot.name, entry if is_last else None)
        return code

    def _ended(self, entry: "Entry", code: int, schedule: "Schedule") -> "Entry":
        """Return the entry of a job whose process has ended, after recording the end that the job could not record."""
        if code == TIMED_OUT and entry.status != "done":
            self.ledger.end(entry.id, "failed", code, f"ended after {schedule.timeout:g} s, its timeout")
        elif entry.status == "running" or entry.ended is None or entry.exit_code is None:
            is_outside = code < 0 and (self._jobs.stopping.is_set() or -code in _OUTSIDE)
            text = f"killed by signal {-code}" if code < 0 else "ended before it could say how; see the log"
            self.ledger.end(entry.id, "abandoned" if is_outside else "failed", code, text)
        return self.ledger.get(entry.id)


def _job_of(schedule: "Schedule", slot: Slot) -> Any:
    """Return the description of a job that ended before it was recorded."""
    from pipelines.jobs.command_line import verb_settings
    from pipelines.jobs.job import describe
    from pipelines.verbs import config_of

    kind, settings = config_of(schedule.flow), schedule.settings(slot.cutoff)
    job = describe(schedule.flow, *verb_settings(kind, schedule.flow, settings))
    digest = schedule.digest(slot.cutoff)
    return type(job)(**vars(job) | {"schedule": slot.name, "slot": slot.key, "settings_digest": digest})
