"""The lock of a registered model's aliases.

For a database store, it is a file beside the SQLite file, or an advisory lock of PostgreSQL. A store behind a server
can't lock; then the ledger holds the lock, in the same ways. A lock ends with the process that holds it.
"""

import fcntl
import hashlib
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from forecast.errors import GatecastError, RegistryError
from forecast.redaction import without_password
from forecast.tracking.store import is_of_store

if TYPE_CHECKING:
    import sqlalchemy

_LOG = logging.getLogger(__name__)
_SECONDS: Final = 180.0
"""Longest wait for another process, whose few calls take seconds."""
_NOTICE_SECONDS: Final = 5.0
_PAUSE_SECONDS: Final = 0.02
_CONNECT_SECONDS: Final = 10


@contextmanager
def alias_lock(store: str, ledger: str | None, model: str) -> Iterator[None]:
    """Hold the lock of a registered model's aliases.

    `store` and `ledger` are the URIs of the MLflow store and of the ledger. Raises RegistryError if another process
    holds the lock for minutes. Without store or ledger to lock, nothing is locked; a failure of the ledger is logged.
    """
    subject = f"aliases of {model} in {without_password(store)}"
    with ExitStack() as stack:
        try:
            lock = _store_lock(store, subject) or (_ledger_lock(ledger, subject) if ledger else None)
            if lock is not None:
                stack.enter_context(lock)
        except RegistryError:
            raise
        except Exception as error:
            if not isinstance(error, OSError | GatecastError | ImportError) and not is_of_store(error):
                raise
            _LOG.warning("the %s move without a lock: %s", subject, without_password(str(error)))
        yield


def _store_lock(uri: str, subject: str) -> AbstractContextManager[None] | None:
    """Return the lock in the database of an MLflow store, None for other stores."""
    import sqlalchemy

    try:
        address = sqlalchemy.make_url(uri)
        backend = address.get_backend_name()
    except sqlalchemy.exc.ArgumentError:  # a folder
        return None
    if backend == "postgresql":
        return _store_postgresql(address, subject)
    if backend == "sqlite" and address.database and not address.database.startswith((":memory:", "file:")):
        return _file_lock(Path(address.database), subject)
    return None


def _ledger_lock(uri: str, subject: str) -> AbstractContextManager[None]:
    if uri.startswith("sqlite:"):
        return _file_lock(Path(uri.partition("://")[2].partition("?")[0][1:]), subject)
    return _ledger_postgresql(uri, subject)


@contextmanager
def _file_lock(file: Path, subject: str) -> Iterator[None]:
    """Hold the lock beside a SQLite file. The lock file is not deleted, as waiting processes have it open."""
    file = file.resolve()
    lock = file.with_name(f".{file.name}.aliases.lock")
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)

    def take() -> bool:
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        return False

    try:
        _wait(take, subject, lambda: os.pread(descriptor, 200, 0).decode(errors="replace"))
        with suppress(OSError):  # On a full disk the lock still holds, without the text.
            os.ftruncate(descriptor, 0)
            start = f"{datetime.now():%Y-%m-%d %H:%M:%S}"
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}, since {start}".encode(), 0)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _store_postgresql(address: "sqlalchemy.URL", subject: str) -> Iterator[None]:
    import sqlalchemy

    options = {"connect_timeout": _CONNECT_SECONDS}
    engine = sqlalchemy.create_engine(address, poolclass=sqlalchemy.NullPool, connect_args=options)
    query = sqlalchemy.text(_advisory(subject))
    with engine.connect() as connection:
        _wait(lambda: bool(connection.execute(query).scalar()), subject, lambda: "a client of its database")
        yield
        with suppress(sqlalchemy.exc.SQLAlchemyError):  # What was locked is done.
            connection.rollback()


@contextmanager
def _ledger_postgresql(uri: str, subject: str) -> Iterator[None]:
    from forecast.data.sources.database import transaction

    with ExitStack() as stack:
        database = stack.enter_context(transaction(uri, "ledger.uri", writes=False))
        _wait(lambda: bool(database.execute(_advisory(subject))[0]["taken"]), subject, lambda: "a client of the ledger")
        yield
        with suppress(GatecastError):  # What was locked is done.
            stack.close()


def _advisory(subject: str) -> str:
    number = int.from_bytes(hashlib.sha256(subject.encode()).digest()[:8], "big", signed=True)
    return f"select pg_try_advisory_xact_lock({number}) as taken"


def _wait(take: Callable[[], bool], subject: str, holder: Callable[[], str]) -> None:
    """Try until `take` returns true. Raises RegistryError if it never does."""
    started, is_silent = time.monotonic(), True
    while not take():
        seconds = time.monotonic() - started
        if seconds > _SECONDS:
            raise RegistryError(
                f"the {subject} have been locked for {_SECONDS:.0f} s by {holder() or 'another process'}; nothing was "
                "changed; end it, and try again"
            )
        if is_silent and seconds > _NOTICE_SECONDS:
            _LOG.warning(
                "waiting for %s, which moves the %s, up to %.0f s", holder() or "another process", subject, _SECONDS
            )
            is_silent = False
        time.sleep(_PAUSE_SECONDS)
