"""Slots that are due, the processes that run them, and what is caught up."""

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
    """What is to be run: one cutoff of a schedule."""

    name: str
    cutoff: datetime
    moment: datetime
    """When it became due, in UTC."""

    @property
    def key(self) -> str:
        """The cutoff as the ledger has it."""
        return self.cutoff.astimezone(UTC).isoformat()


class Scheduler:
    """Runs what the schedules of a file make due, each job in a process of its own."""

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
        """Run what is due, and with a clock that moves, what becomes due until SIGTERM or SIGINT.

        Jobs that run then have `schedule.grace` seconds to end before they are told to.
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
            # One waits while another runs: it sees what has become due meanwhile.
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
        told = threading.Semaphore(0)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: told.release())
        clock.start()
        _LOG.info("%d schedule(s), %s", len(self._schedules), self.ledger.shown)
        told.acquire()
        self._stop(told)
        clock.shutdown(wait=True)
        for name in self._schedules:  # What others ran may have ended since the last look.
            try:
                self._tell(name)
            except LedgerError as error:
                _LOG.error("%s: %s", name, error)
        self._notifier.close(60.0)

    def once(self, name: str) -> None:
        """Run one slot with its retries. Raises an error with the exit code of the last attempt if that failed."""
        on_sigterm(terminate)
        schedule, given = self._schedules[name], self._settings.cutoff
        moment = given and schedule.given(given)
        if moment is None:
            moment = schedule.last(self._now())
        slot = Slot(name, schedule.given(given) if given else schedule.cutoff_of(moment), moment)
        self._tell(name, before=slot.key)
        left = schedule.retries
        while (code := self.attempt(slot)) not in (0, LedgerError.exit_code, *FINAL):
            entry = self.ledger.latest(slot.name, slot.key)
            if entry is not None and entry.status == "waiting" and not self._settings.now:
                time.sleep(self._settings.poll)
                continue
            if entry is None or not left or entry.attempt - entry.failures > _MAX_INTERRUPTIONS:
                self._tell(name, entry)
                break
            if entry.status == "failed":
                left -= 1
                time.sleep(self._wait(schedule, schedule.retries - left))
        self._notifier.close(60.0)
        if code:
            error = GatecastError(f"{name} of {slot.key} failed, see above and `forecast runs list`")
            error.exit_code = code if code > 0 else 128 - code
            raise error

    def repair(self, name: str | None) -> None:
        """Let a schedule, or each one that is settled until a moment in the future, begin again.

        Raises ConfigError for a moment in the future, and for one without the name of its schedule.
        """
        now, since = datetime.now(UTC), self._settings.since
        if since is not None and (name is None or since > now):
            what = "needs the name of a schedule" if name is None else f"{since.isoformat()} is in the future"
            raise ConfigError(f"schedule.since: {what}: `forecast schedule repair NAME --since TIME`")
        stopped = [each for each in self._schedules if self._stopped_until(each)]
        names = [name] if name is not None and (since or name in stopped) else [] if name else stopped
        for each in names:
            moment = since or self._last_run(each)
            count = self.ledger.rewind(each, moment)
            runs = f"; {count:,} run(s) for slots in the future no longer count" if count else ""
            print(f"{each}: begins again with what became due since {_shown(moment, self._schedules[each])}{runs}")
        if not names:
            print(f"{name or 'every schedule'}: settled until now or earlier, nothing to repair")

    def _last_run(self, name: str) -> datetime:
        """Return when a schedule ran last, by a clock that was not ahead; now if it never did."""
        now = datetime.now(UTC)
        runs = self.ledger.entries(schedule=name, every=True)
        return max((run.started for run in runs if run.started <= now and run.slot <= now.isoformat()), default=now)

    def _stopped_until(self, name: str) -> datetime | None:
        """Return until when a schedule is settled if that is in the future, so that it would not run before."""
        settled, begun = self.ledger.settled(name), self._schedules[name].begun()
        if settled is None or settled <= datetime.now(UTC) + SKEW or (begun and settled <= begun):
            return None
        return settled

    def _stopped(self) -> list[str]:
        """Return, for each schedule that is stopped until a moment in the future, a line that says so."""
        return [
            f"{name}: settled until {_shown(until, schedule)}, which is in the future: it runs nothing before; "
            f"`forecast schedule repair {name}` lets it begin again"
            for name, schedule in self._schedules.items()
            if (until := self._stopped_until(name))
        ]

    def _check_clock(self) -> None:
        """Raise ConfigError for a clock that is ahead, and LedgerError if one was."""
        now = datetime.now(UTC)
        if self._settings.now and self._settings.now > now + SKEW:
            raise ConfigError(
                f"schedule.now={self._settings.now.isoformat()} is in the future; now it is {now.isoformat()}"
            )
        if stopped := self._stopped():
            lines = "\n  ".join(stopped)
            raise LedgerError(
                f"a clock is or was wrong, here it is {now:%Y-%m-%d %H:%M:%S} UTC: {len(stopped)} of "
                f"{len(self._schedules)} schedule(s) are stopped:\n  {lines}"
            )

    def show(self) -> None:
        """Print the schedules."""
        import polars as pl

        now, rows = self._now(), []
        for name, schedule in self._schedules.items():
            last = next(iter(self.ledger.entries(schedule=name, limit=1)), None)
            rows.append(
                {
                    "schedule": name,
                    "flow": schedule.flow,
                    "cron": schedule.cron,
                    "next": _shown(schedule.next(now), schedule),
                    "last": _shown(last.started, schedule) if last else "",
                    "cutoff": _shown(cutoff, schedule) if last and (cutoff := moment_of(last.slot)) else "",
                    "status": last.status if last else "",
                    "attempts": last.attempt if last else None,
                }
            )
        console.table(pl.DataFrame(rows, schema_overrides={"attempts": pl.Int64}))
        self._print_faults()

    def preview(self) -> None:
        """Print what becomes due."""
        import polars as pl

        now = self._now()
        until = self._settings.until or now + timedelta(days=7)
        due = sorted(
            (moment, name) for name, schedule in self._schedules.items() for moment in schedule.moments(now, until)
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
        """Print which schedules are stopped, and which have settings that do not suit their table."""
        from pipelines.scheduling.panel_checks import panel_faults

        for line in (*self._stopped(), *panel_faults(self._schedules, self.makers, self._now())):
            print(line)

    def _now(self) -> datetime:
        return (self._settings.now or datetime.now(UTC)).astimezone(UTC)

    def _enter(self, name: str, schedule: "Schedule") -> None:
        """Let a schedule that is new begin, and one that does not catch up forget what it has missed."""
        settled = self.ledger.settled(name)
        if settled is None:
            begun = schedule.begun()
            self.ledger.settle(name, min(begun, self._now()) if begun else self._now())
        elif schedule.catch_up == "none" and (missed := self._moments(name)):
            entries, left = self._left(name, missed)
            # The latest one was not missed if it was interrupted, or is to be tried again.
            begun_last = left and left[-1].moment == missed[-1] and left[-1].key in entries
            if missed := missed[:-1] if begun_last else missed:
                self._skip(name, missed)

    def _skip(self, name: str, moments: list[datetime]) -> None:
        schedule = self._schedules[name]
        first, last = (_shown(moments[at], schedule) for at in (0, -1))
        how = f"{first} to {last} (catch_up={schedule.catch_up})"
        _LOG.warning("%s: %s missed, skipped: %s", name, f"{len(moments):,}", how)
        self.ledger.settle(name, moments[-1])

    def _tick(self, name: str) -> None:
        """Run everything of a schedule that is due, and send the notices that nobody has sent."""
        try:
            if until := self._stopped_until(name):
                _LOG.error("%s: settled until %s, which is in the future; `forecast schedule repair`", name, until)
                return
            self._tell(name)
            while not self._stopping.is_set() and (slot := self._due(name)):
                if self.attempt(slot) == LedgerError.exit_code:
                    return  # Another process is at it, or the ledger does not answer: later.
        except LedgerError as error:
            _LOG.error("%s: %s; trying again in %g s", name, error, self._settings.poll)

    def _due(self, name: str) -> Slot | None:
        """Return what is to be run now, and settle what is not to be run again.

        Nothing as long as a schedule is due, or at it, that writes the panel which this one reads.
        """
        schedule, moments = self._schedules[name], self._moments(name)
        entries, left = self._left(name, moments)
        if any(entry.status == "running" for entry in entries.values()):
            return None
        if schedule.catch_up != "all" and left and left[-1].moment < moments[-1]:
            self._skip(name, [slot.moment for slot in left])  # The last one is done, or given up.
            left = []
        if moments and not left:
            self.ledger.settle(name, moments[-1])
        left = left or self._due_again(name)
        if not left:
            return None
        if any(self._left(maker, self._moments(maker))[1] for maker in self.makers[name]):
            return None
        if schedule.catch_up != "all" and left[:-1]:
            self._skip(name, [slot.moment for slot in left[:-1]])
        slot = left[0 if schedule.catch_up == "all" else -1]
        if self._settings.now and slot.key in self._waiting:
            return None
        entry = entries.get(slot.key)
        return (
            slot if entry is None or self._has_new_settings(schedule, entry) or self._waited(schedule, entry) else None
        )

    def _due_again(self, name: str) -> list[Slot]:
        """Return the slots that failed by settings which have changed since; the latest one alone, but of catch_up=all.

        They are settled, and due once more.
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
        """Return whether an attempt failed by settings that have changed since."""
        if entry.status != "failed" or entry.exit_code != ConfigError.exit_code or not entry.settings_digest:
            return False
        cutoff = moment_of(entry.slot)
        return cutoff is not None and entry.settings_digest != schedule.digest(cutoff.astimezone(schedule.zone))

    def _moments(self, name: str) -> list[datetime]:
        """Return the moments that are due and not settled."""
        settled, begun = self.ledger.settled(name), self._schedules[name].begun()
        assert settled is not None
        return self._schedules[name].moments(max(settled, begun) if begun else settled, self._now())

    def _left(self, name: str, moments: list[datetime]) -> "tuple[dict[str, Entry], list[Slot]]":
        """Return the latest attempts at what is due, by slot, and what is neither done nor given up."""
        schedule = self._schedules[name]
        # The last moment of each cutoff.
        by_key = {slot.key: slot for at in moments for slot in [Slot(name, schedule.cutoff_of(at), at)]}
        if not by_key:
            return {}, []
        entries = self.ledger.slots(name, min(by_key), max(by_key))
        return entries, [slot for key, slot in by_key.items() if not self._over(schedule, entries.get(key))]

    def _busy(self) -> bool:
        """Return whether somebody else is at a slot of ours."""
        return any(entry.schedule in self._schedules for entry in self.ledger.entries(status="running"))

    def _over(self, schedule: "Schedule", entry: "Entry | None") -> bool:
        return entry is not None and (entry.status == "done" or self._given_up(schedule, entry))

    def _given_up(self, schedule: "Schedule", entry: "Entry") -> bool:
        if entry.status not in ("failed", "abandoned") or self._has_new_settings(schedule, entry):
            return False
        interruptions = entry.attempt - entry.failures
        return entry.failures > schedule.retries or interruptions > _MAX_INTERRUPTIONS or entry.exit_code in FINAL

    def _waited(self, schedule: "Schedule", entry: "Entry") -> bool:
        """Return whether an attempt may follow another one: at once after an interruption, and if a clock was wrong."""
        assert entry.ended is not None
        since = datetime.now(UTC) - entry.ended
        if entry.status in ("abandoned", "waiting"):
            wait = 0.0 if entry.status == "abandoned" or self._settings.now else self._settings.poll / 2
        else:
            wait = self._wait(schedule, entry.failures)
        return since >= timedelta(seconds=wait) or since < -SKEW

    def _wait(self, schedule: "Schedule", attempt: int) -> float:
        """Return the seconds from the end of an attempt to the next."""
        return 0.0 if self._settings.now else float(schedule.backoff * 2 ** (attempt - 1))

    def attempt(self, slot: Slot, *, last: bool = False) -> int:
        """Run a slot in a process of its own, tell how it ended if it is not tried again, and return its exit code."""
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
        """Send the notices of a schedule that are due: of slots that are done, or will not be.

        Whoever ran them: another scheduler may have gone before it could. `last` is not tried again; nor are, without
        `schedule run`, slots earlier than `before`.
        """
        schedule, unsettled = self._schedules[name], None
        for entry in self.ledger.notices(name):
            if entry.status == "running" or entry.id in self._queued:
                continue
            if not (entry.status == "done" or self._given_up(schedule, entry) or (last and entry.id == last.id)):
                if self.ledger.settled(name) is None:
                    if entry.slot < before and self._waited(schedule, entry):
                        self._send(entry)
                    continue
                if unsettled is None:
                    unsettled = {schedule.cutoff_of(at).astimezone(UTC).isoformat() for at in self._moments(name)}
                if entry.slot in unsettled or not self._waited(schedule, entry):
                    continue
            self._send(entry)

    def _send(self, entry: "Entry") -> None:
        """Send the notice of an attempt, unless another scheduler does; again later, if it is not delivered."""
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
            # A session of its own: it outlives a scheduler that is killed, and Ctrl-C is ours to pass on.
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
        """Return what was to be done, for a job that ended before it wrote that itself."""
        from pipelines.jobs.command_line import verb_settings
        from pipelines.jobs.job import describe
        from pipelines.verbs import config_of

        kind, settings = config_of(schedule.flow), schedule.settings(slot.cutoff)
        job = describe(schedule.flow, *verb_settings(kind, schedule.flow, settings))
        digest = schedule.digest(slot.cutoff)
        return type(job)(**vars(job) | {"schedule": slot.name, "slot": slot.key, "settings_digest": digest})

    def _stop(self, told: threading.Semaphore) -> None:
        """Let running jobs end, and tell those that do not in time, or at a second signal."""
        self._stopping.set()
        if self._jobs:
            _LOG.info("%d job(s) have %g s to end", len(self._jobs), self._settings.grace)
        deadline = time.monotonic() + self._settings.grace
        while self._jobs and time.monotonic() < deadline and not told.acquire(timeout=0.1):
            pass
        with self._lock:
            left = list(self._jobs)
        for job in left:
            _end(job)


def _end(job: "subprocess.Popen[bytes]") -> None:
    """Tell a job and all that it started to end; kill those that do not."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(job.pid, number)
        with suppress(subprocess.TimeoutExpired):
            job.wait(_KILL_SECONDS)
            return


def _shown(moment: datetime, schedule: "Schedule") -> str:
    return f"{moment.astimezone(schedule.zone):%Y-%m-%d %H:%M:%S %Z}"
