"""Tables from a query: PostgreSQL and SQLite."""

import sqlite3
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import polars as pl

from forecast.data.sources.frames import spool
from forecast.errors import DataError, listing
from forecast.names import CUTOFF, TIMESTAMP
from forecast.redaction import without_password

if TYPE_CHECKING:
    import pyarrow as pa
from forecast.data.sources.connections import (
    connect_postgresql,
    is_postgresql,
    postgres_message,
    quoted_names,
    secrets_of,
    sqlite_file,
)

# Rows fetched as Python objects at a time.
_SQLITE_ROWS: Final = 50_000

# Types of PostgreSQL that can be read. Others have to be cast in the query, as their meaning is up to the user.
_POSTGRES_TYPES: Final = {
    "bool", "int2", "int4", "int8", "float4", "float8", "numeric", "text", "varchar", "bpchar", "name",
    "date", "timestamp", "timestamptz",
}  # fmt: skip


def read_sql(uri: str, query: str, columns: Collection[str] | None = None) -> pl.LazyFrame:
    """Return the rows of a query, which runs once, read-only; see `spool` for their storage.

    In PostgreSQL, numeric becomes Float64 and timestamptz a Datetime in UTC. In SQLite, a column is Int64, Float64
    (some value has a fraction) or text (some value is text); timestamps keep their stored form.
    A column that can't be read is left out unless `columns` has its name; None stands for all. Raises ConfigError for
    an invalid URI, DataError for errors of the database, both without the password.
    """
    rows = (
        _read_postgresql(uri, query, columns) if is_postgresql(uri, "data.uri") else _read_sqlite(uri, query, columns)
    )
    if not rows.select(pl.len()).collect().item():
        raise DataError("data.query returns no rows")
    return rows


def rows_where(uri: str, table: str, condition: str, columns: Sequence[str]) -> pl.LazyFrame:
    """Return columns of the rows of a table that fulfil a condition, with SQLite timestamps parsed.

    Raises as `read_sql`.
    """
    selected = ", ".join(quoted_names(columns)) or "*"
    rows = read_sql(uri, f'select {selected} from "{table}" where {condition}')
    texts = [name for name, kind in rows.collect_schema().items() if kind == pl.String and name in (CUTOFF, TIMESTAMP)]
    if not texts:
        return rows
    example = rows.select(pl.coalesce(pl.col(name).drop_nulls().first() for name in texts)).collect().item()
    form = "%Y-%m-%d %H:%M:%S%.f" + "%z" * (example is not None and example.endswith("+00:00"))
    return rows.with_columns(pl.col(texts).str.to_datetime(form, time_unit="us"))


def _read_postgresql(uri: str, query: str, columns: Collection[str] | None) -> pl.LazyFrame:
    connection = connect_postgresql(uri, "data.uri", DataError)
    import adbc_driver_manager

    address, secrets = without_password(uri), secrets_of(uri)
    with connection, connection.cursor() as cursor:
        try:
            cursor.execute("set transaction read only")
            cursor.execute(_statement(query))
            reader = cursor.fetch_record_batch()
            schema = _postgres_schema(reader.schema, columns)
            return spool(_postgres_batches(reader, schema, address, secrets), schema)
        except (adbc_driver_manager.Error, TimeoutError) as error:
            raise DataError(f"data.query at {address}: {postgres_message(error, secrets)}") from None


def _postgres_schema(result_schema: "pa.Schema", columns: Collection[str] | None) -> "pa.Schema":
    """Return the columns with the types in which they are stored. Raises DataError for types that can't be read."""
    import pyarrow as pa

    types = {field.name: (field.metadata or {}).get(b"POSTGRESQL:type", b"").decode() for field in result_schema}
    odd = _repeated_names(result_schema.names, columns) | {
        name for name, kind in types.items() if kind not in _POSTGRES_TYPES
    }
    offending = [f"{name} ({types[name]})" for name in types if name in odd and (columns is None or name in columns)]
    if offending:
        raise DataError(
            f"data.query returns {len(offending):,} column(s) of types that can't be read: {listing(offending)}; "
            "cast them in the query (column::text, column::float8) or leave them out"
        )
    readable = [field for field in result_schema if field.name not in odd]
    return pa.schema(
        [(field.name, pa.float64() if types[field.name] == "numeric" else field.type) for field in readable]
    )


def _postgres_batches(reader: Any, schema: "pa.Schema", address: str, secrets: list[str]) -> "Iterator[pa.RecordBatch]":
    import pyarrow as pa

    try:
        for source_batch in reader:
            batch = source_batch.select(schema.names)
            plain = [column.storage if isinstance(column, pa.ExtensionArray) else column for column in batch.columns]
            _check_finite(batch.schema.names, plain)
            columns = [column.cast(dtype) for column, dtype in zip(plain, schema.types, strict=True)]
            yield pa.record_batch(columns, schema=schema)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"data.query at {address}: {postgres_message(error, secrets)}") from None


def _check_finite(names: list[str], columns: "list[pa.Array]") -> None:
    """Raise DataError for infinite dates and timestamps, which arrive as numbers beyond any date."""
    import pyarrow as pa
    from pyarrow import compute

    for name, column in zip(names, columns, strict=True):
        if pa.types.is_temporal(column.type):
            days, ticks = pa.types.is_date32(column.type), pa.int32() if pa.types.is_date32(column.type) else pa.int64()
            max_value = 3_650_000 * (1 if days else 86_400_000_000)  # about 10,000 years
            limits = compute.min_max(column.view(ticks)).as_py()
            if limits["min"] is not None and max(-limits["min"], limits["max"]) > max_value:
                raise DataError(f"data.query returns infinite dates or timestamps in the column {name!r}; filter them")


def _read_sqlite(uri: str, query: str, columns: Collection[str] | None) -> pl.LazyFrame:
    import pyarrow as pa

    file = sqlite_file(uri, "data.uri")
    if not file.is_file():
        raise DataError(f"data.uri={uri}: no such file (from {Path.cwd()})")
    # Inside parentheses a query can only select.
    source = f"with given as (\n{_statement(query)}) select"
    try:
        with closing(sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True)) as connection:
            connection.execute("begin")  # Both statements see the same rows.
            names = [column[0] for column in connection.execute(f"{source} * from given limit 0").description]
            odd = _repeated_names(names, columns)
            types = _sqlite_types(connection, [name for name in names if name not in odd], source, columns)
            schema = pa.schema(list(types.items()))
            selected = ", ".join(quoted_names(types))
            return spool(_sqlite_batches(connection.execute(f"{source} {selected} from given"), schema), schema)
    except sqlite3.Error as error:
        raise DataError(f"data.query at {uri}: {error}") from None


def _sqlite_types(
    connection: sqlite3.Connection, names: list[str], source: str, columns: Collection[str] | None
) -> "dict[str, pa.DataType]":
    """Return a type for all values of each column: in SQLite, every value has its own type."""
    import pyarrow as pa

    kinds = "case typeof({}) when 'null' then 0 when 'integer' then 1 when 'real' then 2 when 'text' then 3 else 4 end"
    quoted = quoted_names(names)
    selected = ", ".join(f"max({kinds.format(name)})" for name in quoted)
    widest = [kind or 0 for kind in connection.execute(f"{source} {selected} from given").fetchone()]
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
    return query.strip().rstrip(";") + "\n"  # The query may end with a comment.


def _repeated_names(names: list[str], columns: Collection[str] | None) -> set[str]:
    """Return the names that a query gives to several columns. Raises DataError if one is required."""
    if not names:
        raise DataError("data.query returns no columns; it has to be a SELECT")
    repeated = {name for name in names if names.count(name) > 1}
    twice = sorted(name for name in repeated if columns is None or name in columns)
    if twice:
        raise DataError(
            f"data.query returns {len(twice):,} column name(s) more than once: {listing(twice)}; rename them"
        )
    return repeated
