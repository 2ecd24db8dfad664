"""Rows of a database, from it and to it.

PostgreSQL is read and written through ADBC: its driver streams COPY in binary form, twice as fast as connectorx and in
a third of the memory. SQLite is read and written through Python's own module: ADBC's driver takes the types of the
columns from the first rows, and stops at the first fraction or text behind nulls or whole numbers.
"""

import logging
import os
import re
import sqlite3
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, unquote

import polars as pl

from forecast.data.files import make_private
from forecast.data.sources.deadlines import Deadline, TimedConnection
from forecast.data.sources.tables import spool
from forecast.errors import ConfigError, DataError, GatecastError, OutputError, listing
from forecast.names import CUTOFF, TIMESTAMP
from forecast.redaction import without_password

if TYPE_CHECKING:
    import pyarrow as pa

_LOG = logging.getLogger(__name__)
_CONNECT_SECONDS: Final = 10
_LOCK_SECONDS: Final = 30
_NOTICE_SECONDS: Final = 5.0
_STATEMENT_SECONDS: Final = 1800.0
"""That a statement may take which changes many rows."""

# Rows that Python objects are made of at a time.
_SQLITE_ROWS: Final = 50_000

# Types of PostgreSQL that have one of ours. Others are to be cast in the query: what they mean is the user's to say.
_POSTGRES_TYPES: Final = {
    "bool", "int2", "int4", "int8", "float4", "float8", "numeric", "text", "varchar", "bpchar", "name",
    "date", "timestamp", "timestamptz",
}  # fmt: skip

# A URI that libpq would take apart elsewhere shows pieces of the password in its messages: it is refused before.
_HOST: Final = r"([\w.%-]*|\[[\da-f:.]+\])(:\d+)?"
_POSTGRES_URI: Final = re.compile(
    rf"postgres(ql)?(\+\w+)?://([^/@:?#\s]*(:[^/@:?#\s]*)?@)?{_HOST}(,{_HOST})*(/[^@?\s]*)?(\?[^@\s]*)?", re.IGNORECASE
)


def read_sql(uri: str, query: str, columns: Collection[str] | None = None) -> pl.LazyFrame:
    """Return the rows of a query, which runs once and can change nothing; see `spool` for where they are kept.

    Of PostgreSQL, numeric is Float64 and timestamptz a Datetime in UTC. Of SQLite, a column is Int64, Float64 (some
    value has a fraction) or text (some value is text): timestamps, which it does not know, stay what they are.
    A column that can't be read is left out unless `columns` has its name; None stands for all. Raises ConfigError for a
    URI that is not understood, DataError for what the database refuses. Neither tells the password.
    """
    rows = (
        _read_postgresql(uri, query, columns) if _is_postgresql(uri, "data.uri") else _read_sqlite(uri, query, columns)
    )
    if not rows.select(pl.len()).collect().item():
        raise DataError("data.query returns no rows")
    return rows


def rows_where(uri: str, table: str, condition: str, columns: Sequence[str]) -> pl.LazyFrame:
    """Return some columns of the rows of a table that fulfil a condition, timestamps of SQLite as such.

    Raises as `read_sql`.
    """
    chosen = ", ".join(quoted_names(columns)) or "*"
    rows = read_sql(uri, f'select {chosen} from "{table}" where {condition}')
    texts = [name for name, kind in rows.collect_schema().items() if kind == pl.String and name in (CUTOFF, TIMESTAMP)]
    if not texts:
        return rows
    first = rows.select(pl.coalesce(pl.col(name).drop_nulls().first() for name in texts)).collect().item()
    form = "%Y-%m-%d %H:%M:%S%.f" + "%z" * (first is not None and first.endswith("+00:00"))
    return rows.with_columns(pl.col(texts).str.to_datetime(form, time_unit="us"))


def _is_postgresql(uri: str, key: str) -> bool:
    """Return whether a URI is of PostgreSQL, else of SQLite. Raises ConfigError for any other; `key` is set to it."""
    scheme = uri.partition(":")[0].split("+")[0]
    if "://" in uri and scheme in ("postgresql", "postgres", "sqlite"):
        return scheme != "sqlite"
    shown = f"a database of kind {scheme!r} is not known" if "://" in uri else "not the URI of a database"
    raise ConfigError(f"{key}: {shown}; give postgresql://user@host:5432/database or sqlite:///file.db")


def _connect_postgresql(
    uri: str, key: str, failure: type[GatecastError], limit: float | None = None
) -> TimedConnection:
    """Return a connection whose calls may take `limit` seconds, as long as there is a server that answers.

    Raises ConfigError for a URI that is not understood, `failure` if there is no answer.
    """
    try:
        import adbc_driver_manager
        from adbc_driver_postgresql import dbapi
    except ImportError:
        raise ConfigError(f"{key}: PostgreSQL needs: pip install 'gatecast[sql]'") from None
    if not _POSTGRES_URI.fullmatch(uri):
        raise ConfigError(
            f"{key}: not of the form postgresql://user:password@host:5432/database; in a user or password, / @ : ? # "
            "and spaces are written %2F %40 %3A %3F %23 %20 (or set PGPASSWORD)"
        )
    deadline = Deadline(without_password(uri), lambda: dbapi.connect(_libpq_uri(uri)).close(), limit)
    try:
        return TimedConnection(deadline.run("connect", dbapi.connect, _libpq_uri(uri)), deadline)
    except (adbc_driver_manager.Error, TimeoutError) as error:
        raise failure(f"{key}={without_password(uri)}: {_postgres_message(error, _secrets(uri))}") from None


def _read_postgresql(uri: str, query: str, columns: Collection[str] | None) -> pl.LazyFrame:
    connection = _connect_postgresql(uri, "data.uri", DataError)
    import adbc_driver_manager

    shown, secrets = without_password(uri), _secrets(uri)
    with connection, connection.cursor() as cursor:
        try:
            cursor.execute("set transaction read only")
            cursor.execute(_statement(query))
            reader = cursor.fetch_record_batch()
            schema = _postgres_schema(reader.schema, columns)
            return spool(_postgres_batches(reader, schema, shown, secrets), schema)
        except (adbc_driver_manager.Error, TimeoutError) as error:
            raise DataError(f"data.query at {shown}: {_postgres_message(error, secrets)}") from None


def _libpq_uri(uri: str) -> str:
    """Return the URI as libpq takes it: without the driver of SQLAlchemy, and with a limit on the time to connect."""
    uri = re.sub(r"^postgres(ql)?(\+\w+)?:", "postgresql:", uri)
    if "connect_timeout=" in uri or "PGCONNECT_TIMEOUT" in os.environ:
        return uri
    return f"{uri}{'&' if '?' in uri else '?'}connect_timeout={_CONNECT_SECONDS}"


def _postgres_schema(found: "pa.Schema", columns: Collection[str] | None) -> "pa.Schema":
    """Return the columns as they are kept. Raises DataError for types that have to be cast in the query."""
    import pyarrow as pa

    types = {field.name: (field.metadata or {}).get(b"POSTGRESQL:type", b"").decode() for field in found}
    odd = _repeated_names(found.names, columns) | {name for name, kind in types.items() if kind not in _POSTGRES_TYPES}
    other = [f"{name} ({types[name]})" for name in types if name in odd and (columns is None or name in columns)]
    if other:
        raise DataError(
            f"data.query returns {len(other):,} column(s) of types that can't be read: {listing(other)}; "
            "cast them in the query (column::text, column::float8) or leave them out"
        )
    kept = [field for field in found if field.name not in odd]
    return pa.schema([(field.name, pa.float64() if types[field.name] == "numeric" else field.type) for field in kept])


def _postgres_batches(reader: Any, schema: "pa.Schema", shown: str, secrets: list[str]) -> "Iterator[pa.RecordBatch]":
    import pyarrow as pa

    try:
        for whole in reader:
            batch = whole.select(schema.names)
            plain = [column.storage if isinstance(column, pa.ExtensionArray) else column for column in batch.columns]
            _check_finite(batch.schema.names, plain)
            columns = [column.cast(dtype) for column, dtype in zip(plain, schema.types, strict=True)]
            yield pa.record_batch(columns, schema=schema)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"data.query at {shown}: {_postgres_message(error, secrets)}") from None


def _check_finite(names: list[str], columns: "list[pa.Array]") -> None:
    """Raise DataError for dates and timestamps that are infinite: they arrive as numbers that are no date."""
    import pyarrow as pa
    from pyarrow import compute

    for name, column in zip(names, columns, strict=True):
        if pa.types.is_temporal(column.type):
            days, ticks = pa.types.is_date32(column.type), pa.int32() if pa.types.is_date32(column.type) else pa.int64()
            limit = 3_650_000 * (1 if days else 86_400_000_000)  # about 10,000 years
            found = compute.min_max(column.view(ticks)).as_py()
            if found["min"] is not None and max(-found["min"], found["max"]) > limit:
                raise DataError(f"data.query returns infinite dates or timestamps in the column {name!r}; filter them")


def _postgres_message(error: Exception, secrets: list[str]) -> str:
    """Return what the server, or its client library, says: in a line, and without the password."""
    text = re.split(r"\s*Query was: |\.? SQLSTATE: ", str(error))[0]
    text = re.sub(r"^([A-Z_]+: |\[libpq\] |Failed to [\w ]+: |Execution error \[\w+\]: )*", "", text)
    text = re.sub(r"^.*\b(FATAL|ERROR):\s+", "", text, flags=re.DOTALL)
    text = text.replace("fe_sendauth: no password supplied", "no password supplied; set PGPASSWORD")
    for secret in secrets:
        text = text.replace(secret, "***")
    return "; ".join(line.strip() for line in text.splitlines() if line.strip(" ^"))


def database_of(uri: str) -> str:
    """Return which database a URI is of, in one way of writing it and without user and password.

    >>> database_of("postgresql+psycopg://me:x@db/any"), database_of("postgres://db:5432/any?sslmode=require")
    ('postgresql://db:5432/any', 'postgresql://db:5432/any')
    """
    if not _is_postgresql(uri, "output.uri"):
        return f"sqlite:///{_sqlite_file(uri, 'output.uri').resolve()}"
    address = uri.partition("://")[2].partition("?")[0].rpartition("@")[2]
    host, _, name = address.partition("/")
    return f"postgresql://{host if re.search(r':[0-9]+$', host) else f'{host}:5432'}/{name}"


def _secrets(uri: str) -> list[str]:
    """Return what must not be shown, longest first: passwords as they are written and as they are meant."""
    found = re.findall(r"://[^:@]*:(.*)@", uri)
    found += re.findall(r"(?:password|pwd|token|secret)[^=&;\s]*=([^&;\s]+)", uri, flags=re.IGNORECASE)
    found.append(os.environ.get("PGPASSWORD", ""))
    return sorted({form for secret in found for form in (secret, unquote(secret)) if form}, key=len, reverse=True)


def _read_sqlite(uri: str, query: str, columns: Collection[str] | None) -> pl.LazyFrame:
    import pyarrow as pa

    file = _sqlite_file(uri, "data.uri")
    if not file.is_file():
        raise DataError(f"data.uri={uri}: no such file (from {Path.cwd()})")
    # In parentheses of its own a query can do nothing but select.
    given = f"with given as (\n{_statement(query)}) select"
    try:
        with closing(sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True)) as connection:
            connection.execute("begin")  # All passes see the same rows.
            every = [column[0] for column in connection.execute(f"{given} * from given limit 0").description]
            odd = _repeated_names(every, columns)
            types = _sqlite_types(connection, [name for name in every if name not in odd], given, columns)
            schema = pa.schema(list(types.items()))
            chosen = ", ".join(quoted_names(types))
            return spool(_sqlite_batches(connection.execute(f"{given} {chosen} from given"), schema), schema)
    except sqlite3.Error as error:
        raise DataError(f"data.query at {uri}: {error}") from None


def _sqlite_file(uri: str, key: str) -> Path:
    address = uri.partition("://")[2].partition("?")[0]
    file = Path(address[1:])
    if not address.startswith("/") or not file.name:
        raise ConfigError(f"{key}: a SQLite file is given as sqlite:///relative.db or sqlite:////absolute.db")
    return file


def _sqlite_types(
    connection: sqlite3.Connection, names: list[str], given: str, columns: Collection[str] | None
) -> "dict[str, pa.DataType]":
    """Return the type that holds all values of each column: in SQLite, each value has a type of its own."""
    import pyarrow as pa

    kinds = "case typeof({}) when 'null' then 0 when 'integer' then 1 when 'real' then 2 when 'text' then 3 else 4 end"
    quoted = quoted_names(names)
    chosen = ", ".join(f"max({kinds.format(name)})" for name in quoted)
    widest = [kind or 0 for kind in connection.execute(f"{given} {chosen} from given").fetchone()]
    kinds_of = dict(zip(names, widest, strict=True))
    blobs = [name for name, kind in kinds_of.items() if kind == 4 and (columns is None or name in columns)]
    if blobs:
        raise DataError(
            f"data.query returns {len(blobs):,} column(s) that hold blobs: {listing(blobs)}; leave them out"
        )
    types = (pa.float64(), pa.int64(), pa.float64(), pa.string())
    return {name: types[kind] for name, kind in kinds_of.items() if kind != 4}


def _sqlite_batches(cursor: sqlite3.Cursor, schema: "pa.Schema") -> "Iterator[pa.RecordBatch]":
    import pyarrow as pa

    while rows := cursor.fetchmany(_SQLITE_ROWS):
        columns = []
        for values, dtype in zip(zip(*rows, strict=True), schema.types, strict=True):
            if dtype == pa.string():
                values = tuple(value if value is None else str(value) for value in values)
            elif dtype == pa.float64():
                values = tuple(value if value is None else float(value) for value in values)
            columns.append(pa.array(values, dtype))
        yield pa.record_batch(columns, schema=schema)


def _statement(query: str) -> str:
    return query.strip().rstrip(";") + "\n"  # A comment may be its end.


def _repeated_names(names: list[str], columns: Collection[str] | None) -> set[str]:
    """Return the names that a query gives to several columns. Raises DataError if one is wanted."""
    if not names:
        raise DataError("data.query returns no columns; it has to be a SELECT")
    repeated = {name for name in names if names.count(name) > 1}
    twice = sorted(name for name in repeated if columns is None or name in columns)
    if twice:
        raise DataError(
            f"data.query returns {len(twice):,} column name(s) more than once: {listing(twice)}; rename them"
        )
    return repeated


class Database:
    """A transaction: all that is done in it becomes visible at its end, or nothing."""

    def __init__(self, cursor: Any, *, postgresql: bool) -> None:
        self._cursor, self._postgresql = cursor, postgresql

    @property
    def is_postgresql(self) -> bool:
        """Whether it is PostgreSQL, else SQLite."""
        return self._postgresql

    def execute(self, statement: str, values: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """Run a statement with a `?` for each value; return its rows, if it gives any, by the names of columns."""
        if self._postgresql:
            number = count(1)
            statement = re.sub(r"\?", lambda _: f"${next(number)}", statement)
        self._cursor.execute(statement, *([tuple(values)] if values else []))
        names = [column[0] for column in self._cursor.description or ()]
        return [dict(zip(names, row, strict=True)) for row in self._cursor.fetchall()] if names else []

    def alone(self, number: int, seconds: float = _LOCK_SECONDS) -> None:
        """Wait for others who asked for the same number, until this transaction ends; SQLite has one writer anyway.

        Raises OutputError if one of them holds it for so many seconds.
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
        """Make statements of this transaction an error that wait so many seconds for a lock; SQLite waits 5 s."""
        if self._postgresql:
            self.execute(f"set local lock_timeout = '{seconds * 1000:.0f}ms'")

    def has_table(self, table: str) -> bool:
        """Return whether there is a table or view of this name."""
        query = f"select to_regclass('\"{table}\"') is not null"
        if not self._postgresql:
            query = f"select exists (select 1 from sqlite_master where type in ('table', 'view') and name = '{table}')"
        return bool(self._one(query))

    def columns(self, table: str) -> list[str]:
        """Return the names of the columns of a table; none if there is no such table."""
        if not self.has_table(table):
            return []
        self._cursor.execute(f'select * from "{table}" limit 0')
        return [column[0] for column in self._cursor.description]

    def insert(self, table: str, frames: Iterable[pl.DataFrame]) -> None:
        """Add rows; columns of the table that they lack are null."""
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
        """Return how many rows fulfil a condition; 0 if there is no such table."""
        if not self.has_table(table):
            return 0
        return int(self._one(f'select count(*) from "{table}" where {condition}'))

    def _one(self, query: str) -> Any:
        self._cursor.execute(query)
        return self._cursor.fetchone()[0]


@contextmanager
def transaction(
    uri: str, key: str, *, writes: bool = True, private: bool = False, limit: float = _STATEMENT_SECONDS
) -> Iterator[Database]:
    """Yield a transaction in the database at `uri`, to which the setting `key` is set.

    One that does not write need not wait for others that do. A SQLite file that is made here can be read by its owner
    alone if it is `private`. A call to PostgreSQL may take `limit` seconds, as long as there is a server that answers.

    Raises OutputError if the database does not answer or refuses something; nothing has changed then.
    """
    if _is_postgresql(uri, key):
        postgresql = _connect_postgresql(uri, key, OutputError, limit)
        import adbc_driver_manager

        shown, secrets = without_password(uri), _secrets(uri)
        try:
            with postgresql, postgresql.cursor() as cursor:
                yield Database(cursor, postgresql=True)
                postgresql.commit()
        except adbc_driver_manager.Error as error:
            raise OutputError(f"{key}={shown}: {_postgres_message(error, secrets)}; nothing was changed") from None
        except TimeoutError as error:
            raise OutputError(f"{key}={shown}: {error}") from None
        except OutputError as error:
            raise OutputError(f"{key}={shown}: {error}") from None
        return
    file = _sqlite_file(uri, key)
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


def sql_type(dtype: pl.DataType) -> str:
    """Return the type of a column in both databases."""
    if isinstance(dtype, pl.Datetime):
        return "timestamp with time zone" if dtype.time_zone else "timestamp"
    return {pl.String(): "text", pl.Int32(): "integer", pl.Int64(): "bigint"}.get(dtype, "double precision")


def quoted_names(names: Iterable[str]) -> list[str]:
    """Return names as SQL writes them."""
    return ['"{}"'.format(name.replace('"', '""')) for name in names]


def literal(value: datetime | str) -> str:
    """Return a text or a moment as both databases compare it: SQLite, which knows no timestamps, by its text."""
    if isinstance(value, datetime):
        return f"'{value.astimezone(UTC) if value.tzinfo else value}'"
    return "'{}'".format(value.replace("'", "''"))


def _as_text(name: str, dtype: pl.Datetime) -> pl.Expr:
    """Return timestamps as SQLite keeps them: text, those with a time zone in UTC."""
    moment = pl.col(name) if dtype.time_zone is None else pl.col(name).dt.convert_time_zone("UTC")
    zone = "" if dtype.time_zone is None else "+00:00"
    whole, exact = (moment.dt.to_string(f"%Y-%m-%d %H:%M:%S{part}{zone}") for part in ("", "%.6f"))
    return pl.when(moment.dt.microsecond() == 0).then(whole).otherwise(exact).alias(name)  # As `literal`.
