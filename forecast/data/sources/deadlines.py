"""Calls to PostgreSQL, each with a client-side deadline.

A frozen server keeps its connections open: neither its own timeouts nor those of TCP end a call to it.
"""

import ctypes
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final, Self, TypeVar

_LOG = logging.getLogger(__name__)
_NOTICE_SECONDS: Final = 5.0
_ANSWER_SECONDS: Final = 60.0
"""Seconds without an answer after which a second connection probes the server."""
_PROBE_SECONDS: Final = 5.0
_SHORTEST: Final = 5.0
"""Seconds allowed for an answer of a server that has missed a deadline."""

R = TypeVar("R")
_silent: Final[set[str]] = set()
"""Addresses, without passwords, of servers that have missed a deadline and have not answered since."""


class Deadline:
    """Limits the calls of one connection.

    A call may take a minute, and longer while the server answers `probe`, called once a minute, up to `limit` seconds
    (None: no limit).
    """

    def __init__(self, server: str, probe: Callable[[], object], limit: float | None) -> None:
        self._server, self._probe, self._limit = server, probe, limit
        self.is_missed = False
        self._missed: _Outcome | None = None

    def run(self, action: str, call: Callable[..., R], *args: Any, **kwargs: Any) -> R:
        """Run a call and return its result. Raises TimeoutError, and at once if an earlier call had no answer."""
        if self.is_missed:
            raise TimeoutError("no answer before")
        started, outcome = time.monotonic(), _Outcome(call, args, kwargs)
        deadline = started + self._limit if self._limit is not None else math.inf
        answer_seconds = _SHORTEST if self._server in _silent else _ANSWER_SECONDS
        answer_seconds = min(answer_seconds, deadline - started)
        if not outcome.wait(min(_NOTICE_SECONDS, answer_seconds)) and answer_seconds > _NOTICE_SECONDS:
            limit = "" if self._limit is None else f", up to {self._limit:.0f} s"
            _LOG.warning("waiting for PostgreSQL at %s to answer (%s)%s", self._server, action, limit)
            outcome.wait(answer_seconds - _NOTICE_SECONDS)
        while not outcome.has_ended and (now := time.monotonic()) < deadline and self._is_alive():
            outcome.wait(min(answer_seconds, deadline - now))
        if not outcome.has_ended:
            self.is_missed, self._missed = True, outcome
            _silent.add(self._server)
            seconds = time.monotonic() - started
            raise TimeoutError(f"no answer within {seconds:.0f} s ({action}): the server hangs")
        _silent.discard(self._server)
        return outcome.value()  # type: ignore[no-any-return]

    def close(self, resource: Any) -> bool:
        """Close a connection or a cursor; return whether the server answered."""
        try:
            self.run("close", resource.close)
        except TimeoutError:
            return False
        return True

    def wait_for_missed(self) -> None:
        """Wait until the call that missed its deadline ends."""
        if self._missed is not None:
            self._missed.wait(threading.TIMEOUT_MAX)

    def _is_alive(self) -> bool:
        return _Outcome(self._probe, (), {}).wait(_PROBE_SECONDS)


class _Outcome:
    """A call in a daemon thread, which does not keep the process alive."""

    def __init__(self, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._value: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, args=(call, args, kwargs), daemon=True, name="postgresql")
        self._thread.start()

    def _work(self, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        try:
            self._value = call(*args, **kwargs)
        except BaseException as error:  # raised again by value()
            self._error = error

    def wait(self, seconds: float) -> bool:
        """Wait up to `seconds` for the call; return whether it has ended."""
        self._thread.join(max(seconds, 0.0))
        return self.has_ended

    @property
    def has_ended(self) -> bool:
        """Whether the call has ended."""
        return not self._thread.is_alive()

    def value(self) -> Any:
        """Return the result of the call, or raise its error."""
        if self._error is not None:
            raise self._error
        return self._value


class TimedConnection:
    """An ADBC connection whose calls raise TimeoutError without an answer in time."""

    def __init__(self, connection: Any, deadline: Deadline) -> None:
        self._connection, self._deadline = connection, deadline

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._deadline.is_missed or not self._deadline.close(self._connection):
            _abandon(self._connection, self._deadline)

    def cursor(self) -> "TimedCursor":
        """Return a cursor."""
        return TimedCursor(self._connection.cursor(), self._deadline)

    def commit(self) -> None:
        """Commit the transaction."""
        self._deadline.run("commit", self._connection.commit)


class TimedCursor:
    """An ADBC cursor whose calls raise TimeoutError without an answer in time."""

    def __init__(self, cursor: Any, deadline: Deadline) -> None:
        self._cursor, self._deadline = cursor, deadline

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._deadline.is_missed or not self._deadline.close(self._cursor):
            _abandon(self._cursor, self._deadline)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._cursor, name)
        if not callable(value):
            return value

        def timed(*args: Any, **kwargs: Any) -> Any:
            statement = str(args[0]).split(maxsplit=1) if name == "execute" and args else []
            return self._deadline.run(statement[0].lower() if statement else name, value, *args, **kwargs)

        return timed

    def fetch_record_batch(self) -> "TimedReader":
        """Return the rows, in batches."""
        reader = self._deadline.run("fetch_record_batch", self._cursor.fetch_record_batch)
        return TimedReader(reader, self._deadline)


class TimedReader:
    """Batches of rows; raises TimeoutError for a batch that does not arrive in time."""

    def __init__(self, reader: Any, deadline: Deadline) -> None:
        self._reader, self._deadline = reader, deadline
        self.schema = reader.schema

    def __iter__(self) -> Iterator[Any]:
        batches, end = iter(self._reader), object()
        while (batch := self._deadline.run("fetch", next, batches, end)) is not end:
            yield batch


def _abandon(resource: Any, deadline: Deadline) -> None:
    """Close a connection or a cursor once its pending call ends: it may hold locks.

    The resource is never deallocated before, which would block as well.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(resource))

    def work() -> None:
        deadline.wait_for_missed()
        with suppress(Exception):  # Nobody waits for it.
            resource.close()

    threading.Thread(target=work, daemon=True, name="postgresql-close").start()
