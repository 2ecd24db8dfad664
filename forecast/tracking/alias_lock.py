"""One lock for those who move the aliases of a registered model.

A store that is a database has it beside its SQLite file, or as an advisory lock of PostgreSQL. A store behind a server
can lock nothing: there it is in the ledger, in the same ways. A lock ends with the process that holds it.
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
from typing import Final

import sqlalchemy

from forecast.data.sources.database import transaction
from forecast.errors import GatecastError, RegistryError
from forecast.redaction import without_password

_LOG = logging.getLogger(__name__)
_SECONDS: Final = 180.0
"""To wait for another process, which has a few calls to make."""
_NOTICE_SECONDS: Final = 5.0
_PAUSE_SECONDS: Final = 0.02
_CONNECT_SECONDS: Final = 10


@contextmanager
def alias_lock(store: str, ledger: str | None, model: str) -> Iterator[None]:
    """Keep others from moving the aliases of a registered model.

    `store` and `ledger` are the URIs of the MLflow store and of the ledger. Raises RegistryError if another process
    holds the lock for minutes. Where neither can lock, nobody waits; that the ledger should and can't is logged.
    """
    what = f"aliases of {model} in {without_password(store)}"
    with ExitStack() as stack:
        try:
            lock = _store_lock(store, what) or (_ledger_lock(ledger, what) if ledger else None)
            if lock is not None:
                stack.enter_context(lock)
        except RegistryError:
            raise
        except (OSError, GatecastError, sqlalchemy.exc.SQLAlchemyError, ImportError) as error:
            _LOG.warning("the %s move without a lock: %s", what, without_password(str(error)))
        yield


def _store_lock(uri: str, what: str) -> AbstractContextManager[None] | None:
    """Return the lock in the database of an MLflow store, None if there is none in it."""
    try:
        address = sqlalchemy.make_url(uri)
        backend = address.get_backend_name()
    except sqlalchemy.exc.ArgumentError:  # a folder
        return None
    if backend == "postgresql":
        return _store_postgresql(address, what)
    if backend == "sqlite" and address.database and not address.database.startswith((":memory:", "file:")):
        return _file_lock(Path(address.database), what)
    return None


def _ledger_lock(uri: str, what: str) -> AbstractContextManager[None]:
    if uri.startswith("sqlite:"):
        return _file_lock(Path(uri.partition("://")[2].partition("?")[0][1:]), what)
    return _ledger_postgresql(uri, what)


@contextmanager
def _file_lock(file: Path, what: str) -> Iterator[None]:
    """Hold the lock beside a SQLite file. The lock file stays: who waits for it has it open."""
    file = file.resolve()
    lock = file.with_name(f".{file.name}.aliases.lock")
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)

    def take() -> bool:
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        return False

    try:
        _wait(take, what, lambda: os.pread(descriptor, 200, 0).decode(errors="replace"))
        with suppress(OSError):  # A full disk holds the lock, if not the text.
            os.ftruncate(descriptor, 0)
            since = f"{datetime.now():%Y-%m-%d %H:%M:%S}"
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}, since {since}".encode(), 0)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _store_postgresql(address: sqlalchemy.URL, what: str) -> Iterator[None]:
    options = {"connect_timeout": _CONNECT_SECONDS}
    engine = sqlalchemy.create_engine(address, poolclass=sqlalchemy.NullPool, connect_args=options)
    query = sqlalchemy.text(_advisory(what))
    with engine.connect() as connection:
        _wait(lambda: bool(connection.execute(query).scalar()), what, lambda: "a client of its database")
        yield
        with suppress(sqlalchemy.exc.SQLAlchemyError):  # What was locked is done.
            connection.rollback()


@contextmanager
def _ledger_postgresql(uri: str, what: str) -> Iterator[None]:
    with ExitStack() as stack:
        database = stack.enter_context(transaction(uri, "ledger.uri", writes=False))
        _wait(lambda: bool(database.execute(_advisory(what))[0]["taken"]), what, lambda: "a client of the ledger")
        yield
        with suppress(GatecastError):  # What was locked is done.
            stack.close()


def _advisory(what: str) -> str:
    number = int.from_bytes(hashlib.sha256(what.encode()).digest()[:8], "big", signed=True)
    return f"select pg_try_advisory_xact_lock({number}) as taken"


def _wait(take: Callable[[], bool], what: str, holder: Callable[[], str]) -> None:
    """Try until `take` returns true. Raises RegistryError if it never does."""
    started, is_silent = time.monotonic(), True
    while not take():
        seconds = time.monotonic() - started
        if seconds > _SECONDS:
            raise RegistryError(
                f"the {what} have been locked for {_SECONDS:.0f} s by {holder() or 'another process'}; nothing was "
                "changed; end it, and try again"
            )
        if is_silent and seconds > _NOTICE_SECONDS:
            _LOG.warning(
                "waiting for %s, which moves the %s, up to %.0f s", holder() or "another process", what, _SECONDS
            )
            is_silent = False
        time.sleep(_PAUSE_SECONDS)
