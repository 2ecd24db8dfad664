"""Creation and upgrade of the tables of a database sink."""

import zlib
from collections.abc import Sequence
from typing import Final

import polars as pl

from forecast.data.sources.connections import quoted_names
from forecast.data.sources.database import Database, sql_type
from forecast.errors import OutputError, listing

_SHOWN: Final = 30


def check_columns(database: Database, table: str, required: Sequence[str]) -> None:
    """Raise OutputError if the table exists and lacks required columns."""
    columns = database.columns(table)
    if columns and not set(required) <= set(columns):
        raise OutputError(
            f"its table {table} has the columns {listing(columns, _SHOWN)}, where {listing(required, _SHOWN)} are to "
            "be written; choose another output.table"
        )


def ensure_table(database: Database, table: str, schema: pl.Schema, key: Sequence[str] = ()) -> None:
    """Create a table, or add the columns that an existing one lacks.

    Columns of `key` are its primary key, which replaces another one. In PostgreSQL, the table is locked afterwards:
    writers wait, readers see the previous rows.
    """
    existing = database.columns(table)
    if not existing:
        database.acquire_lock(zlib.crc32(table.encode()))  # PostgreSQL fails if two processes create a table at once.
        existing = database.columns(table)
    if not existing:
        columns = [_definition(name, dtype) for name, dtype in schema.items()]
        columns += [f"primary key ({', '.join(quoted_names(key))})"] if key else []
        database.execute(f'create table if not exists "{table}" ({", ".join(columns)})')
    if database.is_postgresql:
        database.execute(f'lock table "{table}" in share row exclusive mode')
    if not existing:
        return
    for name in (name for name in schema if name not in existing):
        default = " not null default ''" if name in key else ""
        database.execute(f'alter table "{table}" add column {_definition(name, schema[name])}{default}')
    if key and (primary := _primary_key(database, table)) and set(primary) != set(key):
        _replace_key(database, table, key)


def ensure_index(database: Database, table: str, columns: Sequence[str]) -> None:
    """Create an index of a table if there is none."""
    names = ", ".join(quoted_names(columns))
    database.execute(f'create index if not exists "{table}_key" on "{table}" ({names})')


def _definition(name: str, dtype: pl.DataType) -> str:
    (quoted,) = quoted_names([name])
    return f"{quoted} {sql_type(dtype)}"


def _primary_key(database: Database, table: str) -> list[str]:
    if database.is_postgresql:
        rows = database.execute(
            "select a.attname as name from pg_index i join pg_attribute a on a.attrelid = i.indrelid and "
            f"a.attnum = any(i.indkey) where i.indisprimary and i.indrelid = to_regclass('\"{table}\"')"
        )
    else:
        rows = database.execute(f"select name from pragma_table_info('{table}') where pk > 0")
    return [row["name"] for row in rows]


def _replace_key(database: Database, table: str, key: Sequence[str]) -> None:
    """Replace the primary key of a table."""
    names = ", ".join(quoted_names(key))
    if database.is_postgresql:
        query = f"select conname from pg_constraint where contype = 'p' and conrelid = to_regclass('\"{table}\"')"
        (row,) = database.execute(query)
        (constraint,) = quoted_names([row["conname"]])
        database.execute(f'alter table "{table}" drop constraint {constraint}, add primary key ({names})')
        return
    # SQLite can't change a key: the rows move to a new table, which takes over the name.
    columns = database.execute(f"select name, type from pragma_table_info('{table}') order by cid")
    definitions = database.execute(
        f"select sql from sqlite_master where tbl_name = '{table}' and type in ('index', 'trigger') and sql is not null"
    )
    quoted = quoted_names([row["name"] for row in columns])
    types = [f"{name} {row['type']}" for name, row in zip(quoted, columns, strict=True)]
    database.execute(f'create table "{table}_new" ({", ".join(types)}, primary key ({names}))')
    database.execute(f'insert into "{table}_new" ({", ".join(quoted)}) select {", ".join(quoted)} from "{table}"')
    database.execute(f'drop table "{table}"')
    database.execute("pragma legacy_alter_table = on")  # Keeps the views of the table unchanged.
    database.execute(f'alter table "{table}_new" rename to "{table}"')
    database.execute("pragma legacy_alter_table = off")
    for row in definitions:
        database.execute(row["sql"])
