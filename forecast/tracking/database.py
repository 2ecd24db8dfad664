"""Creation of MLflow's tables in a database, atomically and by one process at a time."""

import errno
import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import sqlalchemy

from forecast.data.files import make_private
from forecast.errors import RegistryError
from forecast.redaction import without_password
from forecast.tracking.calls import Calls

_LOG = logging.getLogger(__name__)
_LOCK: Final = 7_211_062  # arbitrary, the same in all processes
_SECONDS: Final = 300.0
"""Longest wait for another process that creates the tables, which takes seconds."""
_NOTICE_SECONDS: Final = 5.0
_CONNECT_SECONDS: Final = 10
_NO_LOCKS: Final = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_DEFAULT_EXPERIMENT: Final = 0


def prepare_database(uri: str) -> None:
    """Create MLflow's tables if a database lacks them; other processes that need them wait.

    A SQLite file is created under another name and renamed when complete, so a kill leaves no partial file. Raises
    RegistryError if another process holds the lock for minutes, or existing tables can't be completed.
    """
    address = sqlalchemy.make_url(uri)
    is_sqlite, is_postgresql = (address.get_backend_name() == name for name in ("sqlite", "postgresql"))
    file = None
    if is_sqlite:
        if not address.database or address.database.startswith((":memory:", "file:")):
            return
        file = Path(address.database).resolve()
        file.parent.mkdir(parents=True, exist_ok=True)
        if _is_empty(file):
            with _file_lock(file):
                if _is_empty(file):
                    _make_file(file)
            return
    options = {"connect_timeout": _CONNECT_SECONDS} if is_postgresql else {}
    engine = sqlalchemy.create_engine(address, poolclass=sqlalchemy.NullPool, connect_args=options)
    is_complete = _is_complete(engine) if is_sqlite else Calls(uri).run("is_complete", _is_complete, engine)
    if is_complete:
        return
    lock = _file_lock(file) if file else _advisory_lock(engine) if is_postgresql else _no_lock()
    with lock:
        if not _is_complete(engine):
            _complete(uri, is_new=not sqlalchemy.inspect(engine).get_table_names())


def _is_empty(file: Path) -> bool:
    return not file.exists() or (file.is_file() and not file.stat().st_size)


def _is_complete(engine: sqlalchemy.Engine) -> bool:
    """Return whether all tables and the default experiment exist; MLflow creates the latter last."""
    from mlflow.store.db import utils  # imports all tables, which takes a second

    if not utils._all_tables_exist(engine):
        return False
    query = sqlalchemy.text("select 1 from experiments where experiment_id = :number")
    with engine.connect() as connection:
        return connection.execute(query, {"number": _DEFAULT_EXPERIMENT}).first() is not None


def _make_file(file: Path) -> None:
    unfinished = file.with_name(f".{file.name}.unfinished")
    for remains in file.parent.glob(f"{unfinished.name}*"):
        remains.unlink()
    make_private(unfinished)
    _make_tables(sqlalchemy.URL.create("sqlite", database=str(unfinished)).render_as_string())
    with unfinished.open("rb+") as database_file:
        os.fsync(database_file.fileno())
    unfinished.replace(file)


def _complete(uri: str, *, is_new: bool) -> None:
    try:
        _make_tables(uri)
    except Exception as error:
        if is_new:
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        store = without_password(uri)
        raise RegistryError(
            f"MLflow store {store}: some of MLflow's tables are missing, and it can't add them "
            f"({reason.replace(uri, store)}): they are of another MLflow, or a job was killed while they were made; if "
            "nothing is in it yet, move the database away, else restore it (registry.tracking_uri sets the store)"
        ) from error


def _make_tables(uri: str) -> None:
    from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    SqlAlchemyStore(uri, DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH).engine.dispose()


@contextmanager
def _no_lock() -> Iterator[None]:
    yield


@contextmanager
def _file_lock(file: Path) -> Iterator[None]:
    """Hold the lock beside a SQLite file; it is deleted at the end of the context."""
    lock = file.with_name(f".{file.name}.lock")
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)

    def take() -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        return True

    try:
        _wait(take, str(file))
        yield
        # Processes that still wait have nothing to create any more.
        lock.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


@contextmanager
def _advisory_lock(engine: sqlalchemy.Engine) -> Iterator[None]:
    query = sqlalchemy.text(f"select pg_try_advisory_lock({_LOCK})")
    with engine.connect() as connection:  # which holds the lock
        _wait(lambda: bool(connection.execute(query).scalar()), without_password(str(engine.url)))
        yield


def _wait(take: Callable[[], bool], store: str) -> None:
    """Try until `take` returns true. Raises RegistryError if it never does."""
    started, is_silent = time.monotonic(), True
    while not take():
        seconds = time.monotonic() - started
        if seconds > _SECONDS:
            raise RegistryError(
                f"MLflow store {store}: another job has been making its tables for {_SECONDS:.0f} s; end that one, "
                "and try again"
            )
        if is_silent and seconds > _NOTICE_SECONDS:
            _LOG.warning("waiting for another job that makes the tables of %s, up to %.0f s", store, _SECONDS)
            is_silent = False
        time.sleep(0.1)
