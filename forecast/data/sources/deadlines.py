"""Calls to PostgreSQL, each with a deadline on this side.

A server that is frozen keeps its connections: neither its own timeouts nor those of TCP end a call to it.
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
"""Without an answer, after which a second connection looks whether there is still a server."""
_PROBE_SECONDS: Final = 5.0
_SHORTEST: Final = 5.0
"""Of a server that has missed a deadline."""

R = TypeVar("R")
_silent: Final[set[str]] = set()
"""Servers that have missed a deadline and have not answered since, as they are shown."""


class Deadline:
    """Limits the calls of one connection.

    A call may take a minute, and then as long as the server answers `probe`, which is called once a minute, up to
    `limit` seconds. None is no limit.
    """

    def __init__(self, shown: str, probe: Callable[[], object], limit: float | None) -> None:
        self._shown, self._probe, self._limit = shown, probe, limit
        self.is_missed = False
        self._missed: _Outcome | None = None

    def run(self, what: str, call: Callable[..., R], *args: Any, **kwargs: Any) -> R:
        """Return what a call returns. Raises TimeoutError, at once after a call that had no answer."""
        if self.is_missed:
            raise TimeoutError("no answer before")
        started, outcome = time.monotonic(), _Outcome(call, args, kwargs)
        deadline = started + self._limit if self._limit is not None else math.inf
        answer = _SHORTEST if self._shown in _silent else _ANSWER_SECONDS
        answer = min(answer, deadline - started)
        if not outcome.wait(min(_NOTICE_SECONDS, answer)) and answer > _NOTICE_SECONDS:
            limit = "" if self._limit is None else f", up to {self._limit:.0f} s"
            _LOG.warning("waiting for PostgreSQL at %s to answer (%s)%s", self._shown, what, limit)
            outcome.wait(answer - _NOTICE_SECONDS)
        while not outcome.is_there and (now := time.monotonic()) < deadline and self._is_alive():
            outcome.wait(min(answer, deadline - now))
        if not outcome.is_there:
            self.is_missed, self._missed = True, outcome
            _silent.add(self._shown)
            seconds = time.monotonic() - started
            raise TimeoutError(f"no answer within {seconds:.0f} s ({what}): the server hangs")
        _silent.discard(self._shown)
        return outcome.value()  # type: ignore[no-any-return]

    def close(self, resource: Any) -> bool:
        """Close a connection or a cursor; return whether there was an answer."""
        try:
            self.run("close", resource.close)
        except TimeoutError:
            return False
        return True

    def wait_for_missed(self) -> None:
        """Wait until the call ends that had no answer in time."""
        if self._missed is not None:
            self._missed.wait(threading.TIMEOUT_MAX)

    def _is_alive(self) -> bool:
        return _Outcome(self._probe, (), {}).wait(_PROBE_SECONDS)


class _Outcome:
    """A call in a thread that does not keep the process."""

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
        """Return whether the call has ended, after so many seconds at most."""
        self._thread.join(max(seconds, 0.0))
        return self.is_there

    @property
    def is_there(self) -> bool:
        """Whether the call has ended."""
        return not self._thread.is_alive()

    def value(self) -> Any:
        """Return what the call returned; raises what it raised."""
        if self._error is not None:
            raise self._error
        return self._value


class TimedConnection:
    """A connection of ADBC whose every call raises TimeoutError where there is no answer in time."""

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
        """Make visible what was done."""
        self._deadline.run("commit", self._connection.commit)


class TimedCursor:
    """A cursor of ADBC whose every call raises TimeoutError where there is no answer in time."""

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
    """Batches of rows, each of which raises TimeoutError where it does not come in time."""

    def __init__(self, reader: Any, deadline: Deadline) -> None:
        self._reader, self._deadline = reader, deadline
        self.schema = reader.schema

    def __iter__(self) -> Iterator[Any]:
        batches, end = iter(self._reader), object()
        while (batch := self._deadline.run("fetch", next, batches, end)) is not end:
            yield batch


def _abandon(resource: Any, deadline: Deadline) -> None:
    """Close a connection or a cursor in which a call waits when that call ends, for it may hold locks.

    Where it does not end before the process, the resource is never taken apart, which would wait as well.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(resource))

    def work() -> None:
        deadline.wait_for_missed()
        with suppress(Exception):  # Nobody waits for it.
            resource.close()

    threading.Thread(target=work, daemon=True, name="postgresql-close").start()
