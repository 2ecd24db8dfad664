"""Notices of slots that are completed or given up."""

from datetime import UTC
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pipelines.jobs.ledger_entry import Entry
    from pipelines.notify import NotifyConfig
    from pipelines.scheduling.agenda import Agenda

_LEASE: Final = 30.0
"""Seconds to send a notice, besides the limits of the hooks; then another scheduler may send it."""
_POSTPONE: Final = 300.0
"""Seconds before an undelivered notice is sent again."""
_CLOSE_SECONDS: Final = 60.0


class Notices:
    """Sends each notice once, whichever scheduler ran the slot."""

    def __init__(self, agenda: "Agenda", config: "NotifyConfig") -> None:
        from pipelines.notify import Notifier

        self._agenda, self._ledger, self._config = agenda, agenda.ledger, config
        self._notifier = Notifier(config)
        self._queued: set[int] = set()

    def send_due(self, name: str, last: "Entry | None" = None, *, before: str = "") -> None:
        """Send the due notices of a schedule: for slots that are completed or given up.

        They include slots run by other schedulers, which may have ended before. `last` is not repeated; nor are,
        without `schedule run`, slots earlier than `before`.
        """
        agenda, schedule, unsettled = self._agenda, self._agenda.schedules[name], None
        for entry in self._ledger.notices(name):
            if entry.status == "running" or entry.id in self._queued:
                continue
            if not (entry.status == "done" or agenda.is_given_up(schedule, entry) or (last and entry.id == last.id)):
                if self._ledger.settled(name) is None:
                    if entry.slot < before and agenda.may_retry(schedule, entry):
                        self.send(entry)
                    continue
                if unsettled is None:
                    unsettled = {
                        schedule.cutoff_of(moment).astimezone(UTC).isoformat() for moment in agenda.moments(name)
                    }
                if entry.slot in unsettled or not agenda.may_retry(schedule, entry):
                    continue
            self.send(entry)

    def send(self, entry: "Entry") -> None:
        """Send the notice of an attempt unless another scheduler does; repeat it later if undelivered."""
        from pipelines.notify import event_of

        event = event_of(0 if entry.status == "done" else entry.exit_code or 1)
        if not self._config.includes(event):
            self._ledger.close_notice(entry.id)
            return
        facts = entry.shown()
        for name in ("config", "references", "folder", "process", "notice", "settings_digest"):
            del facts[name]

        def claim() -> bool:
            is_ours = False
            try:
                is_ours = self._ledger.claim_notice(entry.id, self._config.seconds + _LEASE)
            finally:
                if not is_ours:
                    self._queued.discard(entry.id)
            return is_ours

        def close(delivered: bool) -> None:
            try:
                if delivered:
                    self._ledger.close_notice(entry.id)
                else:
                    self._ledger.postpone_notice(entry.id, _POSTPONE)
            finally:
                self._queued.discard(entry.id)

        self._queued.add(entry.id)
        key = f"{entry.schedule}/{entry.slot}/{event}/{entry.id}"
        self._notifier.tell(event, {"key": key, **facts}, claim, close)

    def close(self) -> None:
        """Wait for the notices that are being sent."""
        self._notifier.close(_CLOSE_SECONDS)
