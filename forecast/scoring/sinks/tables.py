"""Forecasts and rejects in Delta Lake tables, or in tables of a database: see `sinks`."""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any, Final

import polars as pl

from forecast.config import table_names
from forecast.data.files import write_text_atomic
from forecast.data.sources.connections import literal
from forecast.data.sources.database import Database, transaction
from forecast.data.sources.sql import rows_where
from forecast.errors import ConfigError, OutputError
from forecast.names import (
    CUTOFF,
    MODEL_COLUMNS,
    MODEL_DIGEST,
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
from forecast.scoring.sinks.base import Files, check_rows, expected_rows, scan_file
from forecast.scoring.sinks.sql_tables import check_columns, ensure_index, ensure_table

_KEY: Final = (CUTOFF, SERIES_ID, STEP, *MODEL_COLUMNS)
_REQUIRED: Final[dict[Kind, tuple[str, ...]]] = {
    FORECASTS: (SERIES_ID, TIMESTAMP, CUTOFF, STEP, SOURCE, MODEL_VERSION),
    REJECTS: (SERIES_ID, TIMESTAMP, CUTOFF, REASON, VALUE),
}


class _TableSink:
    """Tables with a column `cutoff` and columns that name the model; their files are not ours."""

    def check(self) -> None:
        """Do nothing: columns that are missing are added."""

    def folder(self, kind: Kind, key: ForecastKey) -> Path | None:  # noqa: ARG002
        """Return None: the files go once their rows are in the tables."""
        return None

    def clean(self, key: ForecastKey, files: Files) -> None:
        """Do nothing: the tables hold no rows of the key but the new ones."""


class DeltaSink(_TableSink):
    """Delta Lake tables FORECASTS and REJECTS in a folder, partitioned by cutoff; a commit each replaces a key.

    Columns that the table lacks are added, and are null in older rows.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            import deltalake
        except ImportError:
            raise ConfigError("output.sink=delta needs: pip install 'gatecast[delta]'") from None
        self._delta = deltalake

    def found(self, key: ForecastKey) -> dict[str, Any]:
        """Return the rows of each table."""
        return {"tables": {kind: self._rows(kind, key) for kind in KINDS}}

    def replace(self, key: ForecastKey, files: Files, content: Mapping[str, Any]) -> dict[str, Any]:
        """Overwrite the rows of the key in each table."""
        legacy = legacy_key(self._folder, key)
        same = [f"{name} = {literal(value)}" for name, value in zip(MODEL_COLUMNS, key[1:4], strict=True)]
        model = " AND ".join(same)
        if legacy:
            model = f"(({model}) OR {MODEL_NAME} IS NULL)"
        for kind in KINDS:
            predicate = f"{CUTOFF} = {literal(key.cutoff)} AND {model}"
            if files[kind] or legacy or self._rows(kind, key):
                self._overwrite(kind, _frames(files, kind), predicate)
            check_rows(kind, self._rows(kind, key), content)
        return {"tables": {kind: expected_rows(kind, content) for kind in KINDS}}

    def is_superseded(self, content: Mapping[str, Any]) -> bool:
        """Return whether a manifest in the folder says so."""
        return is_superseded(self._folder, content)

    def record(self, content: Mapping[str, Any]) -> None:
        """Do nothing: the manifests are in the folder."""

    def replace_rows(self, model: str, rejects: pl.DataFrame, digest: str) -> None:
        """Overwrite the rows without a cutoff, unless a file beside the tables says that they are these."""
        file = self._folder / f".rows.{file_name(model)}"
        condition = (pl.col(CUTOFF).is_null(), pl.col(MODEL_NAME) == model)
        if file.is_file() and file.read_text() == digest and self._count(REJECTS, *condition) == rejects.height:
            return
        self._overwrite(REJECTS, iter([rejects]), f"{CUTOFF} IS NULL AND {MODEL_NAME} = {literal(model)}")
        write_text_atomic(digest, file)

    def forecasts(self, content: Mapping[str, Any]) -> Iterator[pl.LazyFrame]:
        """Yield the rows of the key."""
        frame = self._scan(FORECASTS, *self._conditions(FORECASTS, ForecastKey.of(content)))
        yield frame.select(content["columns"]) if "columns" in content else frame

    def rejects(self, content: Mapping[str, Any]) -> Iterator[pl.LazyFrame]:
        """Yield the rejects of the cutoff and those of reading."""
        key = ForecastKey.of(content)
        if not self._is_table(REJECTS):
            return
        yield self._scan(REJECTS, *self._conditions(REJECTS, key))
        if not key.is_legacy:
            yield self._scan(REJECTS, pl.col(CUTOFF).is_null(), pl.col(MODEL_NAME) == key.model)

    def _overwrite(self, kind: Kind, frames: Iterator[pl.DataFrame], predicate: str) -> None:
        import pyarrow as pa

        path = str(self._folder / kind)
        first = next(frames)
        schema = _arrow(first).schema
        batches = (batch for frame in chain([first], frames) for batch in _arrow(frame).to_batches())
        is_table = self._is_table(kind)
        try:
            if is_table:
                self._add_model_columns(path)
            self._delta.write_deltalake(
                path,
                pa.RecordBatchReader.from_batches(schema, batches),
                mode="overwrite",
                partition_by=[CUTOFF],
                predicate=predicate if is_table else None,
                schema_mode="merge" if is_table else None,
            )
        except (self._delta.exceptions.DeltaError, pa.ArrowException, OSError) as error:
            raise OutputError(f"the Delta Lake table {path} can't be written: {error}") from error

    def _add_model_columns(self, path: str) -> None:
        """Add the columns that name the model to a table of an earlier release."""
        table = self._delta.DeltaTable(path)
        names = {field.name for field in table.schema().fields}
        text = self._delta.schema.PrimitiveType("string")
        if missing := [self._delta.Field(name, text) for name in MODEL_COLUMNS if name not in names]:
            table.alter.add_columns(missing)

    def _is_table(self, kind: Kind) -> bool:
        return bool(self._delta.DeltaTable.is_deltatable(str(self._folder / kind)))

    def _rows(self, kind: Kind, key: ForecastKey) -> int:
        return self._count(kind, *self._conditions(kind, key)) if self._is_table(kind) else 0

    def _count(self, kind: Kind, *conditions: pl.Expr) -> int:
        if not self._is_table(kind) or not self._names_models(kind):
            return 0
        return int(self._scan(kind, *conditions).select(pl.len()).collect().item())

    def _conditions(self, kind: Kind, key: ForecastKey) -> list[pl.Expr]:
        """Return what rows of a key fulfil."""
        conditions = [pl.col(CUTOFF).dt.epoch() == pl.lit(key.cutoff).dt.epoch()]
        if not key.is_legacy:
            return conditions + [pl.col(name) == value for name, value in zip(MODEL_COLUMNS, key[1:4], strict=True)]
        return [*conditions, pl.col(MODEL_NAME).is_null()] if self._names_models(kind) else conditions

    def _names_models(self, kind: Kind) -> bool:
        return MODEL_NAME in self._scan(kind).collect_schema()

    def _scan(self, kind: Kind, *conditions: pl.Expr) -> pl.LazyFrame:
        frame = pl.scan_delta(str(self._folder / kind))
        return frame.filter(*conditions) if conditions else frame


class SqlSink(_TableSink):
    """Tables of a database: forecasts, rejects, and manifests, from which `_latest` is a view of what is current.

    One transaction replaces a key in all. Columns that a table lacks are added, and are null in older rows.
    """

    def __init__(self, uri: str, table: str, key: str, folder: Path) -> None:
        self._uri, self._key, self._folder = uri, key, folder
        forecasts, rejects, self._manifests = table_names(table)
        self._tables: dict[Kind, str] = {FORECASTS: forecasts, REJECTS: rejects}
        self._view = f"{table}_latest"
        with transaction(uri, key):
            pass  # It answers.

    def check(self) -> None:
        """Raise OutputError if there are tables of these names that are not of forecasts."""
        with transaction(self._uri, self._key, writes=False) as database:
            for kind, table in self._tables.items():
                check_columns(database, table, _REQUIRED[kind])

    def found(self, key: ForecastKey) -> dict[str, Any]:
        """Return the rows of each table, and the key of the manifest."""
        with transaction(self._uri, self._key, writes=False) as database:
            rows = {
                kind: database.rows(table, _condition(key, database.columns(table)))
                for kind, table in self._tables.items()
            }
            found: dict[str, Any] = {"tables": {kind: rows[kind] for kind in KINDS}}
            if not key.is_legacy:
                found["key"] = self._held(database, key.folder)
        return found

    def replace(self, key: ForecastKey, files: Files, content: Mapping[str, Any]) -> dict[str, Any]:
        """Delete and insert in one transaction, in which rows are counted too."""
        legacy = legacy_key(self._folder, key)
        stored = {"tables": {kind: expected_rows(kind, content) for kind in KINDS}}
        schemas = {kind: next(_frames(files, kind)).schema for kind in KINDS}
        with transaction(self._uri, self._key) as database:  # By itself: others who make tables wait for its end.
            for kind in KINDS:
                self._ensure(database, kind, schemas[kind])
            ensure_table(database, self._manifests, _row({}, schemas[FORECASTS][CUTOFF]).schema, ("name",))
        with transaction(self._uri, self._key) as database:
            for kind in KINDS:
                table, frames = self._tables[kind], _frames(files, kind)
                self._ensure(database, kind, schemas[kind])
                columns = database.columns(table)
                for old in filter(None, (key, legacy)):
                    database.execute(f'delete from "{table}" where {_condition(old, columns)}')
                database.insert(table, frames)
                check_rows(kind, database.rows(table, _condition(key, columns)), content)
            self._keep(database, key.folder, _manifest_row(key, {**content, **stored}, schemas[FORECASTS][CUTOFF]))
            self._create_view(database)
        return stored

    def is_superseded(self, content: Mapping[str, Any]) -> bool:
        """Return whether the table of manifests, or one in the folder, says so."""
        if is_superseded(self._folder, content):
            return True
        key = ForecastKey.of(content)
        same = f"model_name = {literal(key.model)} and cutoff = {literal(key.cutoff)} and name <> {literal(key.folder)}"
        with transaction(self._uri, self._key, writes=False) as database:
            if not database.has_table(self._manifests):
                return False
            others = database.execute(f'select content from "{self._manifests}" where {same}')
        return any(current_since(json.loads(row["content"])) > current_since(content) for row in others)

    def record(self, content: Mapping[str, Any]) -> None:
        """Update the manifest in its table."""
        key = ForecastKey.of(content)
        since = datetime.fromisoformat(current_since(content))
        with transaction(self._uri, self._key) as database:
            database.execute(
                f'update "{self._manifests}" set content = ?, current_since = {literal(since)} where name = ?',
                (json.dumps(content), key.folder),
            )

    def replace_rows(self, model: str, rejects: pl.DataFrame, digest: str) -> None:
        """Delete and insert the rows without a cutoff, unless the table of manifests says that they are these."""
        name = f"rows.{file_name(model)}"
        own = f"cutoff is null and model_name = {literal(model)}"
        table = self._tables[REJECTS]
        with transaction(self._uri, self._key) as database:
            self._ensure(database, REJECTS, rejects.schema)
            held = self._held(database, name)
            if held == digest and database.rows(table, own) == rejects.height:
                return
            database.execute(f'delete from "{table}" where {own}')
            database.insert(table, [rejects])
            self._keep(database, name, _rows_row(name, model, digest, rejects.schema[CUTOFF]))

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
        """Return the contents of the manifests in their table, which is there once a job has written."""
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

    def _held(self, database: Database, name: str) -> str | None:
        """Return the key under a name in the table of manifests."""
        if not database.has_table(self._manifests):
            return None
        rows = database.execute(f'select key from "{self._manifests}" where name = ?', (name,))
        return str(rows[0]["key"]) if rows else None

    def _keep(self, database: Database, name: str, row: pl.DataFrame) -> None:
        """Put a row in the place of the one of the same name in the table of manifests."""
        ensure_table(database, self._manifests, row.schema, ("name",))
        database.execute(f'delete from "{self._manifests}" where name = ?', (name,))
        database.insert(self._manifests, [row])

    def _create_view(self, database: Database) -> None:
        """Make the view of the latest cutoff of each model, as the version that is current forecasts it."""
        same = " and ".join(f"f.{name} = m.{name}" for name in (CUTOFF, *MODEL_COLUMNS))
        later = "o.cutoff > m.cutoff or (o.cutoff = m.cutoff and o.current_since > m.current_since)"
        create = "create or replace view"
        if not database.is_postgresql:
            database.execute(f'drop view if exists "{self._view}"')
            create = "create view"
        database.execute(
            f'{create} "{self._view}" as select m.run_id, m.trained_until, m.written_at, f.* '
            f'from "{self._tables[FORECASTS]}" f join "{self._manifests}" m on {same} where not exists '
            f'(select 1 from "{self._manifests}" o where o.model_name = m.model_name and ({later}))'
        )


def _condition(key: ForecastKey, columns: Sequence[str]) -> str:
    """Return what rows of a key fulfil, in a table with these columns."""
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
    """Return a manifest as a row: what other tools join by, and all of it as JSON."""
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
    """Return what the table of manifests says of the rejects of reading."""
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


def _frames(files: Files, kind: Kind) -> Iterator[pl.DataFrame]:
    """Yield the rows of each file; of no file, the columns of rejects."""
    for file in files[kind]:
        yield scan_file(file).collect()
    if not files[kind]:
        time = scan_file(files[FORECASTS][0]).collect_schema()[TIMESTAMP]
        texts = dict.fromkeys((SERIES_ID, REASON, MODEL_NAME, MODEL_VERSION, MODEL_DIGEST), pl.String())
        yield pl.DataFrame(schema={**texts, VALUE: pl.Float64(), TIMESTAMP: time, CUTOFF: time})


def _typed(frame: pl.LazyFrame) -> pl.LazyFrame:
    """Return forecasts with the types that files have, where a database knows fewer."""
    return frame.with_columns(pl.col(STEP).cast(pl.Int32)) if STEP in frame.collect_schema() else frame


def _arrow(frame: pl.DataFrame) -> Any:
    return frame.to_arrow(compat_level=pl.CompatLevel.oldest())
