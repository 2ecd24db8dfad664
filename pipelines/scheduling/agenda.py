"""The slots of schedules: what is due, given up, or to be tried again, by the ledger alone."""

import logging
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from forecast.config import ScheduleSettings
from forecast.errors import ConfigError, GateRefused, RolledBack, ThresholdBreached
from pipelines.jobs.ledger import SKEW
from pipelines.jobs.ledger_entry import moment_of

if TYPE_CHECKING:
    from pipelines.jobs.ledger import Ledger
    from pipelines.jobs.ledger_entry import Entry
    from pipelines.scheduling.schedule_file import Schedule

_LOG = logging.getLogger(__name__)
FINAL: Final = tuple(error.exit_code for error in (ConfigError, GateRefused, ThresholdBreached, RolledBack))
"""Exit codes of jobs that would end the same way again."""
MAX_INTERRUPTIONS: Final = 20
"""Interruptions of a slot before it is given up, as the job itself may crash its host."""


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


class Agenda:
    """The due slots of the schedules in a file."""

    def __init__(self, settings: ScheduleSettings, schedules: "dict[str, Schedule]", ledger: "Ledger") -> None:
        from pipelines.scheduling.schedule_file import panel_makers

        self.schedules, self.ledger = schedules, ledger
        self.makers = panel_makers(schedules)
        """Schedules that write the panel of each."""
        self._fixed_clock = settings.now
        self._poll = settings.poll
        self._waiting: set[str] = set()

    def now(self) -> datetime:
        """Return the time in UTC, or `schedule.now`."""
        return (self._fixed_clock or datetime.now(UTC)).astimezone(UTC)

    # ---- Start and clocks ----

    def enter(self, name: str) -> None:
        """Start a new schedule, and skip missed slots as `catch_up` says."""
        schedule, settled = self.schedules[name], self.ledger.settled(name)
        if settled is None:
            start = schedule.before_start()
            self.ledger.settle(name, min(start, self.now()) if start else self.now())
        elif schedule.catch_up == "none" and (missed := self.moments(name)):
            entries, unfinished = self.unfinished(name, missed)
            # The latest slot was not missed if its attempt was interrupted, or is to be repeated.
            begun_last = unfinished and unfinished[-1].moment == missed[-1] and unfinished[-1].key in entries
            if missed := missed[:-1] if begun_last else missed:
                self._skip(name, missed)

    def _skip(self, name: str, moments: list[datetime]) -> None:
        schedule = self.schedules[name]
        first, last = (schedule.shown(moments[index]) for index in (0, -1))
        extent = f"{first} to {last} (catch_up={schedule.catch_up})"
        _LOG.warning("%s: %s missed, skipped: %s", name, f"{len(moments):,}", extent)
        self.ledger.settle(name, moments[-1])

    def stopped_until(self, name: str) -> datetime | None:
        """Return the time until which a schedule is settled if that is in the future, else None."""
        settled, start = self.ledger.settled(name), self.schedules[name].before_start()
        if settled is None or settled <= datetime.now(UTC) + SKEW or (start and settled <= start):
            return None
        return settled

    def stopped(self) -> list[str]:
        """Return a line for each schedule that is stopped until a time in the future."""
        return [
            f"{name}: settled until {schedule.shown(until)}, which is in the future: it runs nothing before; "
            f"`forecast schedule repair {name}` lets it begin again"
            for name, schedule in self.schedules.items()
            if (until := self.stopped_until(name))
        ]

    # ---- Due slots ----

    def moments(self, name: str) -> list[datetime]:
        """Return the due times that are not settled."""
        settled, start = self.ledger.settled(name), self.schedules[name].before_start()
        assert settled is not None
        return self.schedules[name].moments(max(settled, start) if start else settled, self.now())

    def unfinished(self, name: str, moments: list[datetime]) -> "tuple[dict[str, Entry], list[Slot]]":
        """Return the latest attempts at due slots, and the slots neither completed nor given up."""
        schedule = self.schedules[name]
        # The last due time of each cutoff.
        by_key = {slot.key: slot for moment in moments for slot in [Slot(name, schedule.cutoff_of(moment), moment)]}
        if not by_key:
            return {}, []
        entries = self.ledger.slots(name, min(by_key), max(by_key))
        return entries, [slot for key, slot in by_key.items() if not self._is_over(schedule, entries.get(key))]

    def due(self, name: str) -> Slot | None:
        """Return the slot to run now, None without one, and settle finished slots.

        No slot is due while a schedule that writes its panel is due or running.
        """
        schedule, moments = self.schedules[name], self.moments(name)
        entries, unfinished = self.unfinished(name, moments)
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
        if any(self.unfinished(maker, self.moments(maker))[1] for maker in self.makers[name]):
            return None
        if schedule.catch_up != "all" and unfinished[:-1]:
            self._skip(name, [slot.moment for slot in unfinished[:-1]])
        slot = unfinished[0 if schedule.catch_up == "all" else -1]
        if self._fixed_clock and slot.key in self._waiting:
            return None
        entry = entries.get(slot.key)
        return (
            slot
            if entry is None or self._has_new_settings(schedule, entry) or self.may_retry(schedule, entry)
            else None
        )

    def _due_again(self, name: str) -> list[Slot]:
        """Return the slots that failed with settings changed since; only the latest unless catch_up=all.

        They are settled, but due again.
        """
        schedule = self.schedules[name]
        refused = self.ledger.refused(name, ConfigError.exit_code)
        if schedule.catch_up != "all":
            latest = self.ledger.entries(schedule=name, every=True, limit=1)
            refused = [entry for entry in refused if entry.id == latest[0].id]
        return [
            Slot(name, datetime.fromisoformat(entry.slot).astimezone(schedule.zone), entry.started)
            for entry in refused
            if self._has_new_settings(schedule, entry)
        ]

    def wait_for_data(self, slot: Slot) -> None:
        """Remember that a slot waits for its data: with a fixed clock, it is not due again."""
        self._waiting.add(slot.key)

    # ---- Attempts ----

    def _has_new_settings(self, schedule: "Schedule", entry: "Entry") -> bool:
        """Return whether an attempt failed with settings that have changed since."""
        if entry.status != "failed" or entry.exit_code != ConfigError.exit_code or not entry.settings_digest:
            return False
        cutoff = moment_of(entry.slot)
        return cutoff is not None and entry.settings_digest != schedule.digest(cutoff.astimezone(schedule.zone))

    def _is_over(self, schedule: "Schedule", entry: "Entry | None") -> bool:
        return entry is not None and (entry.status == "done" or self.is_given_up(schedule, entry))

    def is_given_up(self, schedule: "Schedule", entry: "Entry") -> bool:
        """Return whether the slot of its latest attempt is not tried again."""
        if entry.status not in ("failed", "abandoned") or self._has_new_settings(schedule, entry):
            return False
        interruptions = entry.attempt - entry.failures
        return entry.failures > schedule.retries or interruptions > MAX_INTERRUPTIONS or entry.exit_code in FINAL

    def may_retry(self, schedule: "Schedule", entry: "Entry") -> bool:
        """Return whether the next attempt may start: at once after an interruption, or with a wrong clock."""
        assert entry.ended is not None
        elapsed = datetime.now(UTC) - entry.ended
        if entry.status in ("abandoned", "waiting"):
            wait = 0.0 if entry.status == "abandoned" or self._fixed_clock else self._poll / 2
        else:
            wait = self.backoff(schedule, entry.failures)
        return elapsed >= timedelta(seconds=wait) or elapsed < -SKEW

    def backoff(self, schedule: "Schedule", attempt: int) -> float:
        """Return the seconds between the end of an attempt and the next."""
        return 0.0 if self._fixed_clock else float(schedule.backoff * 2 ** (attempt - 1))
