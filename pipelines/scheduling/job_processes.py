"""The processes of scheduled jobs, each in its own session."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from forecast.errors import LedgerError
from pipelines.jobs.job import LOCAL_CLOCK, SCHEDULE, SETTINGS_DIGEST, SLOT, WAIT_FOR_DATA
from pipelines.jobs.references import job_command
from pipelines.scheduling.agenda import Slot

if TYPE_CHECKING:
    from pipelines.scheduling.schedule_file import Schedule

_LOG = logging.getLogger(__name__)
TIMED_OUT: Final = 124
"""Exit code of a job that was ended at its timeout."""
_KILL_SECONDS: Final = 10.0
"""Time for a job to record its end after SIGTERM."""


class JobProcesses:
    """Starts the jobs of slots, and ends them when the scheduler stops."""

    def __init__(self, ledger_uri: str) -> None:
        self._ledger_uri = ledger_uri
        self.stopping = threading.Event()
        """Whether no more jobs start."""
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()

    def run(self, schedule: "Schedule", slot: Slot, *, may_wait: bool) -> tuple[int, int]:
        """Run the job of a slot and return its exit code and process number.

        With `may_wait`, a job without new data waits for it.
        """
        arguments, settings = job_command(schedule.flow, schedule.settings(slot.cutoff))
        command = [sys.executable, "-m", "pipelines.cli", *arguments]
        slot_of = {SCHEDULE: slot.name, SLOT: slot.key, "GATECAST_LEDGER": self._ledger_uri}
        environment = {**os.environ, **settings, **slot_of}
        environment[SETTINGS_DIGEST] = schedule.digest(slot.cutoff)
        environment[LOCAL_CLOCK] = "" if schedule.naive else "1"
        environment[WAIT_FOR_DATA] = "1" if may_wait else ""
        with self._lock:
            if self.stopping.is_set():
                return LedgerError.exit_code, 0
            # In its own session, the job survives a killed scheduler, and does not get Ctrl-C directly.
            job = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
            self._running.add(job)
        try:
            return job.wait(schedule.timeout), job.pid
        except subprocess.TimeoutExpired:
            _end(job)
            return TIMED_OUT, job.pid
        except BaseException:
            _end(job)
            raise
        finally:
            with self._lock:
                self._running.discard(job)

    def stop(self, stop_signals: threading.Semaphore, grace: float) -> None:
        """Let running jobs end; signal those that do not within `grace` seconds, or at a second signal."""
        self.stopping.set()
        if self._running:
            _LOG.info("%d job(s) have %g s to end", len(self._running), grace)
        deadline = time.monotonic() + grace
        while self._running and time.monotonic() < deadline and not stop_signals.acquire(timeout=0.1):
            pass
        with self._lock:
            jobs = list(self._running)
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
