"""Forecasts in PostgreSQL and SQLite."""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import polars as pl

from forecast.config import table_names
from forecast.data.sources.connections import literal
from forecast.data.sources.database import Database, transaction
from forecast.data.sources.sql import rows_where
from forecast.errors import OutputError
from forecast.names import (
    CUTOFF,
    MODEL_COLUMNS,
    MODEL_NAME,
    MODEL_VERSION,
    REASON,
    SERIES_ID,
    SOURCE,
    STEP,
    TIMESTAMP,
    VALUE,
)
from forecast.scoring.manifests import (
    FORECASTS,
    KINDS,
    REJECTS,
    ForecastKey,
    Kind,
    current_since,
    file_name,
    is_superseded,
    legacy_key,
)
from forecast.scoring.sinks.base import Files, check_rows, expected_rows
from forecast.scoring.sinks.sql_tables import check_columns, ensure_index, ensure_table
from forecast.scoring.sinks.tables import TableSink, frames_of

_KEY: Final = (CUTOFF, SERIES_ID, STEP, *MODEL_COLUMNS)
_REQUIRED: Final[dict[Kind, tuple[str, ...]]] = {
    FORECASTS: (SERIES_ID, TIMESTAMP, CUTOFF, STEP, SOURCE, MODEL_VERSION),
    REJECTS: (SERIES_ID, TIMESTAMP, CUTOFF, REASON, VALUE),
}


class SqlSink(TableSink):
    """Tables of a database: forecasts, rejects and manifests, and the view `_latest` of the current forecasts.

    One transaction replaces a key in all tables. Missing columns are added, and are null in older rows.
    """

    def __init__(self, uri: str, table: str, key: str, folder: Path) -> None:
        self._uri, self._key, self._folder = uri, key, folder
        forecasts, rejects, self._manifests = table_names(table)
        self._tables: dict[Kind, str] = {FORECASTS: forecasts, REJECTS: rejects}
        self._view = f"{table}_latest"
        with transaction(uri, key):
            pass  # Only to check that the database answers.

    def check(self) -> None:
        """Raise OutputError if tables of these names are not tables of forecasts."""
        with transaction(self._uri, self._key, writes=False) as database:
            for kind, table in self._tables.items():
                check_columns(database, table, _REQUIRED[kind])

    def inventory(self, key: ForecastKey) -> dict[str, Any]:
        """Return the number of rows in each table, and the key of the manifest."""
        with transaction(self._uri, self._key, writes=False) as database:
            rows = {
                kind: database.rows(table, _condition(key, database.columns(table)))
                for kind, table in self._tables.items()
            }
            contents: dict[str, Any] = {"tables": {kind: rows[kind] for kind in KINDS}}
            if not key.is_legacy:
                contents["key"] = self._stored_key(database, key.folder)
        return contents

    def replace(self, key: ForecastKey, files: Files, content: Mapping[str, Any]) -> dict[str, Any]:
        """Delete, insert and count the rows in one transaction."""
        legacy = legacy_key(self._folder, key)
        inventory = {"tables": {kind: expected_rows(kind, content) for kind in KINDS}}
        schemas = {kind: next(frames_of(files, kind)).schema for kind in KINDS}
        with transaction(
            self._uri, self._key
        ) as database:  # A separate transaction, as other processes that create tables wait for its end.
            for kind in KINDS:
                self._ensure(database, kind, schemas[kind])
            ensure_table(database, self._manifests, _row({}, schemas[FORECASTS][CUTOFF]).schema, ("name",))
        with transaction(self._uri, self._key) as database:
            for kind in KINDS:
                table, frames = self._tables[kind], frames_of(files, kind)
                self._ensure(database, kind, schemas[kind])
                columns = database.columns(table)
                for replaced_key in filter(None, (key, legacy)):
                    database.execute(f'delete from "{table}" where {_condition(replaced_key, columns)}')
                database.insert(table, frames)
                check_rows(kind, database.rows(table, _condition(key, columns)), content)
            self._put_row(
                database, key.folder, _manifest_row(key, {**content, **inventory}, schemas[FORECASTS][CUTOFF])
            )
            self._create_view(database)
        return inventory

    def is_superseded(self, content: Mapping[str, Any]) -> bool:
        """Return whether a manifest in the table or in the folder became current later."""
        if is_superseded(self._folder, content):
            return True
        key = ForecastKey.of(content)
        condition = (
            f"model_name = {literal(key.model)} and cutoff = {literal(key.cutoff)} and name <> {literal(key.folder)}"
        )
        with transaction(self._uri, self._key, writes=False) as database:
            if not database.has_table(self._manifests):
                return False
            manifests = database.execute(f'select content from "{self._manifests}" where {condition}')
        return any(current_since(json.loads(row["content"])) > current_since(content) for row in manifests)

    def record(self, content: Mapping[str, Any]) -> None:
        """Update the manifest in its table."""
        key = ForecastKey.of(content)
        timestamp = datetime.fromisoformat(current_since(content))
        with transaction(self._uri, self._key) as database:
            database.execute(
                f'update "{self._manifests}" set content = ?, current_since = {literal(timestamp)} where name = ?',
                (json.dumps(content), key.folder),
            )

    def replace_rows(self, model: str, rejects: pl.DataFrame, digest: str) -> None:
        """Replace the rows without a cutoff, unless the table of manifests has their digest."""
        name = f"rows.{file_name(model)}"
        condition = f"cutoff is null and model_name = {literal(model)}"
        table = self._tables[REJECTS]
        with transaction(self._uri, self._key) as database:
            self._ensure(database, REJECTS, rejects.schema)
            key = self._stored_key(database, name)
            if key == digest and database.rows(table, condition) == rejects.height:
                return
            database.execute(f'delete from "{table}" where {condition}')
            database.insert(table, [rejects])
            self._put_row(database, name, _rows_row(name, model, digest, rejects.schema[CUTOFF]))

    def free(self, key: ForecastKey) -> int:
        """Delete the rows of a key from all tables in one transaction; return 0: the database reuses the space."""
        with transaction(self._uri, self._key) as database:
            for table in self._tables.values():
                if columns := database.columns(table):
                    database.execute(f'delete from "{table}" where {_condition(key, columns)}')
            if database.has_table(self._manifests):
                database.execute(f'delete from "{self._manifests}" where name = ?', (key.folder,))
        return 0

    def forecasts(self, content: Mapping[str, Any]) -> Iterator[pl.LazyFrame]:
        """Yield the rows of the key. Raises OutputError if there are none."""
        key, table = ForecastKey.of(content), self._tables[FORECASTS]
        with transaction(self._uri, self._key, writes=False) as database:
            condition = _condition(key, database.columns(table))
            count = database.rows(table, condition)
        if not count:
            raise OutputError(
                f"{self._key}: the table {table} has no forecasts of {key.model} v{key.version} from the cutoff "
                f"{content[CUTOFF]}; score it again (score.cutoff={content[CUTOFF]})"
            )
        yield _typed(rows_where(self._uri, table, condition, content.get("columns", ())))

    def rejects(self, content: Mapping[str, Any]) -> Iterator[pl.LazyFrame]:
        """Yield the rejects of the cutoff and those of reading."""
        key, table = ForecastKey.of(content), self._tables[REJECTS]
        with transaction(self._uri, self._key, writes=False) as database:
            condition = _condition(key, database.columns(table))
            if not key.is_legacy:
                condition = f"({condition}) or (cutoff is null and model_name = {literal(key.model)})"
            if not database.rows(table, condition):
                return
        yield rows_where(self._uri, table, condition, ())

    def manifests(self) -> list[dict[str, Any]]:
        """Return the contents of the manifests in their table; none before the first job."""
        with transaction(self._uri, self._key, writes=False) as database:
            if not database.has_table(self._manifests):
                return []
            rows = database.execute(f'select content from "{self._manifests}" where cutoff is not null')
        return [json.loads(row["content"]) for row in rows]

    def _ensure(self, database: Database, kind: Kind, schema: pl.Schema) -> None:
        table = self._tables[kind]
        check_columns(database, table, _REQUIRED[kind])
        ensure_table(database, table, schema, _KEY if kind == FORECASTS else ())
        if kind == REJECTS:
            ensure_index(database, table, (CUTOFF, MODEL_NAME))

    def _stored_key(self, database: Database, name: str) -> str | None:
        """Return the key of a name in the table of manifests, None if there is none."""
        if not database.has_table(self._manifests):
            return None
        rows = database.execute(f'select key from "{self._manifests}" where name = ?', (name,))
        return str(rows[0]["key"]) if rows else None

    def _put_row(self, database: Database, name: str, row: pl.DataFrame) -> None:
        """Replace the row of the same name in the table of manifests."""
        ensure_table(database, self._manifests, row.schema, ("name",))
        database.execute(f'delete from "{self._manifests}" where name = ?', (name,))
        database.insert(self._manifests, [row])

    def _create_view(self, database: Database) -> None:
        """Create the view of each model's latest cutoff, by the current version."""
        join_condition = " and ".join(f"f.{name} = m.{name}" for name in (CUTOFF, *MODEL_COLUMNS))
        later = "o.cutoff > m.cutoff or (o.cutoff = m.cutoff and o.current_since > m.current_since)"
        create = "create or replace view"
        if not database.is_postgresql:
            database.execute(f'drop view if exists "{self._view}"')
            create = "create view"
        database.execute(
            f'{create} "{self._view}" as select m.run_id, m.trained_until, m.written_at, f.* '
            f'from "{self._tables[FORECASTS]}" f join "{self._manifests}" m on {join_condition} where not exists '
            f'(select 1 from "{self._manifests}" o where o.model_name = m.model_name and ({later}))'
        )


def _condition(key: ForecastKey, columns: Sequence[str]) -> str:
    """Return the SQL condition that selects the rows of a key, in a table with these columns."""
    same_cutoff = f"cutoff = {literal(key.cutoff)}"
    if not key.is_legacy:
        if MODEL_NAME not in columns:
            return "1 = 0"
        values = zip(MODEL_COLUMNS, key[1:4], strict=True)
        return " and ".join([same_cutoff, *(f"{name} = {literal(value)}" for name, value in values)])
    if MODEL_NAME not in columns:
        return same_cutoff
    version = f" and {MODEL_VERSION} = {literal(key.version)}" if STEP in columns else ""
    return f"{same_cutoff} and coalesce({MODEL_NAME}, '') = ''{version}"


def _manifest_row(key: ForecastKey, content: Mapping[str, Any], dtype: pl.DataType) -> pl.DataFrame:
    """Return a manifest as a row: the columns for joins, and the whole content as JSON."""
    until = content.get("trained_until")
    row = {
        "name": key.folder,
        **dict(zip(MODEL_COLUMNS, key[1:4], strict=True)),
        CUTOFF: key.cutoff,
        "key": content["key"],
        "run_id": content.get("run_id"),
        "trained_until": datetime.fromisoformat(until) if until else None,
        "written_at": datetime.fromisoformat(content["written_at"]),
        "current_since": datetime.fromisoformat(current_since(content)),
        "content": json.dumps(content),
    }
    return _row(row, dtype)


def _rows_row(name: str, model: str, digest: str, dtype: pl.DataType) -> pl.DataFrame:
    """Return the row of the rejects of reading in the table of manifests."""
    now = datetime.now(UTC)
    return _row({"name": name, MODEL_NAME: model, "key": digest, "written_at": now}, dtype)


def _row(values: dict[str, Any], dtype: pl.DataType) -> pl.DataFrame:
    time = pl.Datetime("us", "UTC")
    texts = ("name", *MODEL_COLUMNS, "key", "run_id", "content")
    types = {
        **dict.fromkeys(texts, pl.String()),
        **dict.fromkeys((CUTOFF, "trained_until"), dtype),
        **dict.fromkeys(("written_at", "current_since"), time),
    }
    columns = {name: pl.Series([values.get(name)]).cast(kind) for name, kind in types.items()}
    return pl.DataFrame(columns)


def _typed(frame: pl.LazyFrame) -> pl.LazyFrame:
    """Return forecasts with the data types of the files, some of which databases lack."""
    return frame.with_columns(pl.col(STEP).cast(pl.Int32)) if STEP in frame.collect_schema() else frame
