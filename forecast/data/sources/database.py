"""Transactions in PostgreSQL and SQLite, with deadlines, for the ledger, locks and sinks."""

import logging
import re
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import count
from typing import TYPE_CHECKING, Any, Final

from forecast.data.files import make_private
from forecast.data.sources.connections import (
    connect_postgresql,
    is_postgresql,
    postgres_message,
    quoted_names,
    secrets_of,
    sqlite_file,
)
from forecast.errors import OutputError
from forecast.redaction import without_password

if TYPE_CHECKING:
    import polars as pl

_LOG = logging.getLogger(__name__)
_LOCK_SECONDS: Final = 30
_NOTICE_SECONDS: Final = 5.0
_STATEMENT_SECONDS: Final = 1800.0


class Database:
    """A transaction: all its changes become visible at its end, or none."""

    def __init__(self, cursor: Any, *, postgresql: bool) -> None:
        self._cursor, self._postgresql = cursor, postgresql

    @property
    def is_postgresql(self) -> bool:
        """Whether the database is PostgreSQL, else SQLite."""
        return self._postgresql

    def execute(self, statement: str, values: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """Run a statement with a `?` for each value; return its rows, if any, as dicts by column name."""
        if self._postgresql:
            number = count(1)
            statement = re.sub(r"\?", lambda _: f"${next(number)}", statement)
        self._cursor.execute(statement, *([tuple(values)] if values else []))
        names = [column[0] for column in self._cursor.description or ()]
        return [dict(zip(names, row, strict=True)) for row in self._cursor.fetchall()] if names else []

    def acquire_lock(self, number: int, seconds: float = _LOCK_SECONDS) -> None:
        """Acquire the advisory lock of a number until this transaction ends; SQLite has only one writer anyway.

        Raises OutputError if another client holds it for longer than `seconds`.
        """
        if not self._postgresql:
            return
        started, is_silent = time.monotonic(), True
        while not self.execute(f"select pg_try_advisory_xact_lock({number}) as taken")[0]["taken"]:
            waited = time.monotonic() - started
            if waited > seconds:
                raise OutputError(f"another client has held its lock for {seconds:g} s; end that one's transaction")
            if is_silent and waited > _NOTICE_SECONDS:
                _LOG.warning("waiting for another client that holds a lock, up to %g s", seconds)
                is_silent = False
            time.sleep(0.05)

    def limit_waits(self, seconds: float) -> None:
        """Let statements of this transaction fail after waiting `seconds` for a lock; SQLite waits 5 s."""
        if self._postgresql:
            self.execute(f"set local lock_timeout = '{seconds * 1000:.0f}ms'")

    def has_table(self, table: str) -> bool:
        """Return whether a table or view of this name exists."""
        query = f"select to_regclass('\"{table}\"') is not null"
        if not self._postgresql:
            query = f"select exists (select 1 from sqlite_master where type in ('table', 'view') and name = '{table}')"
        return bool(self._scalar(query))

    def columns(self, table: str) -> list[str]:
        """Return the column names of a table; empty if it does not exist."""
        if not self.has_table(table):
            return []
        self._cursor.execute(f'select * from "{table}" limit 0')
        return [column[0] for column in self._cursor.description]

    def insert(self, table: str, frames: "Iterable[pl.DataFrame]") -> None:
        """Insert rows; columns of the table that a frame lacks are null."""
        import polars as pl

        for frame in frames:
            if self._postgresql:
                rows = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
                self._cursor.adbc_ingest(table, rows, mode="append")
            else:
                marks = ", ".join("?" * frame.width)
                times = [
                    _as_text(name, dtype) for name, dtype in frame.schema.items() if isinstance(dtype, pl.Datetime)
                ]
                into = f'insert into "{table}" ({", ".join(quoted_names(frame.columns))}) values ({marks})'
                self._cursor.executemany(into, frame.with_columns(times).iter_rows())

    def rows(self, table: str, condition: str) -> int:
        """Count the rows that fulfil a condition; 0 if the table does not exist."""
        if not self.has_table(table):
            return 0
        return int(self._scalar(f'select count(*) from "{table}" where {condition}'))

    def _scalar(self, query: str) -> Any:
        self._cursor.execute(query)
        return self._cursor.fetchone()[0]


@contextmanager
def transaction(
    uri: str, key: str, *, writes: bool = True, private: bool = False, limit: float = _STATEMENT_SECONDS
) -> Iterator[Database]:
    """Yield a transaction in the database at `uri`, the value of the setting `key`.

    A transaction that does not write need not wait for writers. Only its owner can read a SQLite file created here if
    it is `private`. A call to PostgreSQL may take `limit` seconds, as long as the server answers.

    Raises OutputError if the database does not answer or refuses a statement; nothing has changed then.
    """
    if is_postgresql(uri, key):
        postgresql = connect_postgresql(uri, key, OutputError, limit)
        import adbc_driver_manager

        address, secrets = without_password(uri), secrets_of(uri)
        try:
            with postgresql, postgresql.cursor() as cursor:
                yield Database(cursor, postgresql=True)
                postgresql.commit()
        except adbc_driver_manager.Error as error:
            raise OutputError(f"{key}={address}: {postgres_message(error, secrets)}; nothing was changed") from None
        except TimeoutError as error:
            raise OutputError(f"{key}={address}: {error}") from None
        except OutputError as error:
            raise OutputError(f"{key}={address}: {error}") from None
        return
    file = sqlite_file(uri, key)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if private:
            make_private(file)
        with closing(sqlite3.connect(file, isolation_level=None)) as connection:
            connection.execute("begin immediate" if writes else "begin")
            try:
                yield Database(connection.cursor(), postgresql=False)
                connection.execute("commit")
            finally:
                connection.rollback()  # A cursor that an error holds would keep the transaction open.
    except (sqlite3.Error, OSError) as error:
        raise OutputError(f"{key}={uri}: {error}; nothing was changed") from None
    except OutputError as error:
        raise OutputError(f"{key}={uri}: {error}") from None


def sql_type(dtype: "pl.DataType") -> str:
    """Return the type of a column in both databases."""
    import polars as pl

    if isinstance(dtype, pl.Datetime):
        return "timestamp with time zone" if dtype.time_zone else "timestamp"
    return {pl.String(): "text", pl.Int32(): "integer", pl.Int64(): "bigint"}.get(dtype, "double precision")


def _as_text(name: str, dtype: "pl.Datetime") -> "pl.Expr":
    """Return timestamps as text for SQLite, those with a time zone in UTC."""
    import polars as pl

    moment = pl.col(name) if dtype.time_zone is None else pl.col(name).dt.convert_time_zone("UTC")
    zone = "" if dtype.time_zone is None else "+00:00"
    seconds, exact = (moment.dt.to_string(f"%Y-%m-%d %H:%M:%S{part}{zone}") for part in ("", "%.6f"))
    return pl.when(moment.dt.microsecond() == 0).then(seconds).otherwise(exact).alias(name)  # As `literal`.
