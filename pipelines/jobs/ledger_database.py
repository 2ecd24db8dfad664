"""The database of the ledger: transactions with its tables, which are created or migrated at the first write."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from forecast.data.sources.database import Database, transaction
from forecast.errors import LedgerError, OutputError
from forecast.redaction import without_password
from pipelines.jobs.ledger_schema import ADDED, COLUMNS, KEY, VERSION, create_indices, is_prepared

_ANSWER_SECONDS: Final = 60.0
"""Longest duration of a statement."""
_LOCK_SECONDS: Final = 10.0
"""Longest wait for the lock; transactions of other processes take milliseconds."""
_LOCK: Final = 7_211_061  # arbitrary, the same in all processes


class LedgerDatabase:
    """Transactions in the database at `uri`. They raise LedgerError if it does not answer."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    @property
    def shown(self) -> str:
        """The URI without its password."""
        return f"{KEY}={without_password(self.uri)}"

    @contextmanager
    def open(self) -> Iterator[Database]:
        """Yield a transaction, one at a time over all processes, in a database with the tables of the ledger."""
        with self._transaction(writes=True) as database:
            database.acquire_lock(_LOCK, _LOCK_SECONDS)
            self._prepare(database)
            yield database

    @contextmanager
    def read(self) -> Iterator[Database]:
        """Yield a transaction that waits for no other; an empty ledger if the tables do not exist."""
        with self._transaction(writes=False) as database:
            if not database.has_table("gatecast_ledger"):
                yield _Nothing(database)
                return
            if is_prepared(database):
                yield database
                return
        with self.open() as database:
            yield database

    @contextmanager
    def _transaction(self, *, writes: bool) -> Iterator[Database]:
        try:
            with transaction(self.uri, KEY, writes=writes, private=True, limit=_ANSWER_SECONDS) as database:
                database.limit_waits(_LOCK_SECONDS)
                yield database
        except OutputError as error:
            raise LedgerError(f"the ledger does not answer: {error}") from None

    def _prepare(self, database: Database) -> None:
        columns = ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
        database.execute("create table if not exists gatecast_ledger (version bigint)")
        versions = database.execute("select version from gatecast_ledger")
        if not versions:
            database.execute("insert into gatecast_ledger (version) values (?)", [VERSION])
            database.execute(f"create table gatecast_runs ({columns})")
            create_indices(database)
            database.execute("create table gatecast_schedules (name text primary key, settled text)")
        elif versions[0]["version"] < VERSION:
            # A row with all columns, even for an empty table.
            query = "select r.* from (select 1 as one) o left join (select * from gatecast_runs limit 1) r on 1 = 1"
            (row,) = database.execute(query)
            for name in (name for number in sorted(ADDED) for name in ADDED[number] if name not in row):
                database.execute(f"alter table gatecast_runs add column {name} text default ''")
            create_indices(database)
            database.execute("update gatecast_ledger set version = ?", [VERSION])
        elif versions[0]["version"] > VERSION:
            raise LedgerError(
                f"{self.shown} has the format {versions[0]['version']}, this gatecast reads {VERSION}; "
                f"use the gatecast that wrote it, or another {KEY}"
            )


class _Nothing(Database):
    """An empty ledger, for reading before the first use."""

    def __init__(self, database: Database) -> None:
        vars(self).update(vars(database))

    def execute(self, _statement: str, _values: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """Return no rows."""
        return []
