"""Calls to MLflow over a network, each with its own deadline.

MLflow itself only limits the silence on a connection, and retries: a hanging server would delay a job by a quarter of
an hour per call, a server that sends single bytes without end.
"""

import contextvars
import functools
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from forecast.environment import environment_set
from forecast.redaction import without_password

_LOG = logging.getLogger(__name__)
_NOTICE_SECONDS: Final = 5.0
_TIMEOUT: Final = "MLFLOW_HTTP_REQUEST_TIMEOUT"
_DEFAULT_SILENCE: Final = 20.0
_ATTEMPTS: Final = 3
"""Deadline of a call, in units of the longest silence of a connection."""
_SLOW_CALLS: Final = 2
"""Total duration of consecutive slow calls, in deadlines."""
_BYTES_PER_SECOND: Final = 500_000
"""Slowest tolerated upload."""

R = TypeVar("R")


class Calls:
    """The calls of one job to one server."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._slow_seconds = 0.0
        self._is_silent = False

    def run(self, name: str, call: Callable[..., R], *args: Any, folder: Path | None = None, **kwargs: Any) -> R:
        """Return the result of a call.

        The deadline is three times MLFLOW_HTTP_REQUEST_TIMEOUT, extended by the size of uploaded files, and while a
        download into `folder` grows. Consecutive slow calls share two such deadlines; after a missed one, later calls
        of the job get the shortest. Raises TimeoutError.
        """
        size = sum(_size(Path(value)) for value in (*args, *kwargs.values()) if isinstance(value, str))
        # The server may take as long to pass files on as to receive them.
        longer = {} if folder or not size else {_TIMEOUT: f"{_silence() + size / _BYTES_PER_SECOND:.0f}"}
        limit = self._limit() + (size / _BYTES_PER_SECOND if longer else 0.0)
        outcome: list[tuple[bool, Any]] = []
        context = contextvars.copy_context()

        def work() -> None:
            try:
                outcome.append((True, context.run(functools.partial(call, *args, **kwargs))))
            except BaseException as error:  # raised again below
                outcome.append((False, error))

        # A thread that hangs does not keep the process.
        thread = threading.Thread(target=work, daemon=True, name=f"mlflow-{name}")
        started = time.monotonic()
        with environment_set(longer):
            thread.start()
            self._wait(thread, name, limit, folder)
        seconds = time.monotonic() - started
        if not outcome:
            self._is_silent = True
            raise TimeoutError(f"no answer to {name} within {seconds:.0f} s; {_TIMEOUT} sets the limit")
        if folder is None:
            self._slow_seconds = self._slow_seconds + seconds if seconds > _NOTICE_SECONDS else 0.0
        is_answer, value = outcome[0]
        if not is_answer:
            raise value
        return value  # type: ignore[no-any-return]

    def _limit(self) -> float:
        limit = _ATTEMPTS * _silence()
        shortest = min(limit, _NOTICE_SECONDS)
        if self._is_silent:
            return shortest
        return max(shortest, min(limit, _SLOW_CALLS * limit - self._slow_seconds))

    def _wait(self, thread: threading.Thread, name: str, limit: float, folder: Path | None) -> None:
        started, is_quiet = time.monotonic(), True
        deadline, size = started + limit, 0
        while thread.is_alive() and (now := time.monotonic()) < deadline:
            if is_quiet and now - started >= _NOTICE_SECONDS:
                is_quiet = False
                uri = without_password(self.uri)
                _LOG.warning("waiting for MLflow at %s to answer %s, up to %.0f s", uri, name, deadline - started)
            pause = _NOTICE_SECONDS - (now - started) if is_quiet else 1.0
            thread.join(min(max(pause, 0.01), deadline - now))
            if folder is not None and (grown := _size(folder)) != size:
                deadline, size = time.monotonic() + limit, grown


class TimedClient:
    """An MLflow client with a deadline for each call."""

    def __init__(self, client: Any, calls: Calls) -> None:
        self._client, self._calls = client, calls

    def __getattr__(self, name: str) -> Any:
        """Return a method of the client that raises TimeoutError without an answer in time."""
        method = getattr(self._client, name)
        return functools.partial(self._calls.run, name, method)

    def download_artifacts(self, run_id: str, path: str, folder: str) -> Any:
        """Download artifacts of a run; the deadline is extended while the folder grows."""
        method = self._client.download_artifacts
        return self._calls.run("download_artifacts", method, run_id, path, folder, folder=Path(folder))


def _silence() -> float:
    """Return the longest silence of a connection, in seconds."""
    return float(os.environ.get(_TIMEOUT) or _DEFAULT_SILENCE)


def _size(path: Path) -> int:
    """Return the size of a file or folder in bytes, 0 if there is none."""
    try:
        files = [path] if path.is_file() else path.rglob("*") if path.is_dir() and path.is_absolute() else []
        return sum(file.lstat().st_size for file in files)
    except (OSError, ValueError):  # a text that is no path, or a file that has just gone
        return 0
