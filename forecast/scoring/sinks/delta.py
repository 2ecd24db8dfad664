"""Forecasts in Delta Lake."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import polars as pl

from forecast.data.files import write_text_atomic
from forecast.data.sources.connections import literal
from forecast.errors import ConfigError, OutputError
from forecast.names import CUTOFF, MODEL_COLUMNS, MODEL_NAME
from forecast.scoring.manifests import (
    FORECASTS,
    KINDS,
    REJECTS,
    ForecastKey,
    Kind,
    file_name,
    is_superseded,
    legacy_key,
)
from forecast.scoring.sinks.base import Files, check_rows, expected_rows
from forecast.scoring.sinks.tables import TableSink, frames_of


class DeltaSink(TableSink):
    """Delta Lake tables FORECASTS and REJECTS in a folder, partitioned by cutoff; one commit each replaces a key.

    Columns that the table lacks are added, and are null in older rows.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            import deltalake
        except ImportError:
            raise ConfigError("output.sink=delta needs: pip install 'gatecast[delta]'") from None
        self._delta = deltalake

    def inventory(self, key: ForecastKey) -> dict[str, Any]:
        """Return the number of rows in each table."""
        return {"tables": {kind: self._rows(kind, key) for kind in KINDS}}

    def replace(self, key: ForecastKey, files: Files, content: Mapping[str, Any]) -> dict[str, Any]:
        """Replace the rows of the key in each table, by one commit each.

        Without earlier rows of the key, which is what happens every night, the files are added as they are.
        """
        legacy = legacy_key(self._folder, key)
        terms = [f"{name} = {literal(value)}" for name, value in zip(MODEL_COLUMNS, key[1:4], strict=True)]
        model = " AND ".join(terms)
        if legacy:
            model = f"(({model}) OR {MODEL_NAME} IS NULL)"
        for kind in KINDS:
            predicate = f"{CUTOFF} = {literal(key.cutoff)} AND {model}"
            count = self._rows(kind, key)
            if not legacy and not count and files[kind] and self._add(kind, key, files[kind], frames_of(files, kind)):
                pass
            elif files[kind] or legacy or count:
                self._overwrite(kind, frames_of(files, kind), predicate)
            check_rows(kind, self._rows(kind, key), content)
        return {"tables": {kind: expected_rows(kind, content) for kind in KINDS}}

    def is_superseded(self, content: Mapping[str, Any]) -> bool:
        """Return whether a manifest in the folder became current later."""
        return is_superseded(self._folder, content)

    def record(self, content: Mapping[str, Any]) -> None:
        """Do nothing: the manifests are in the folder."""

    def replace_rows(self, model: str, rejects: pl.DataFrame, digest: str) -> None:
        """Overwrite the rows without a cutoff, unless a file beside the tables has their digest."""
        file = self._folder / f".rows.{file_name(model)}"
        condition = (pl.col(CUTOFF).is_null(), pl.col(MODEL_NAME) == model)
        if file.is_file() and file.read_text() == digest and self._count(REJECTS, *condition) == rejects.height:
            return
        self._overwrite(REJECTS, iter([rejects]), f"{CUTOFF} IS NULL AND {MODEL_NAME} = {literal(model)}")
        write_text_atomic(digest, file)

    def free(self, key: ForecastKey) -> int:
        """Delete the rows of a key, and remove the files that no row needs any more; return the bytes freed."""
        before = self._bytes()
        for kind in KINDS:
            if self._is_table(kind) and self._rows(kind, key):
                table = self._delta.DeltaTable(str(self._folder / kind))
                try:
                    table.delete(self._predicate(key))
                except self._delta.exceptions.DeltaError as error:
                    raise OutputError(f"rows of {self._folder / kind} can't be deleted: {error}") from error
        for kind in filter(self._is_table, KINDS):  # Also after a kill, when the rows are gone already.
            table = self._delta.DeltaTable(str(self._folder / kind))
            table.vacuum(retention_hours=0, dry_run=False, enforce_retention_duration=False)
        return before - self._bytes()

    def _bytes(self) -> int:
        return sum(file.stat().st_size for kind in KINDS for file in (self._folder / kind).rglob("*.parquet"))

    def _predicate(self, key: ForecastKey) -> str:
        """Return the SQL condition that selects the rows of a key."""
        model = f"{MODEL_NAME} IS NULL"
        if not key.is_legacy:
            terms = [f"{name} = {literal(value)}" for name, value in zip(MODEL_COLUMNS, key[1:4], strict=True)]
            model = " AND ".join(terms)
        elif not self._names_models(FORECASTS):
            model = "true"
        return f"{CUTOFF} = {literal(key.cutoff)} AND {model}"

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

    def _add(self, kind: Kind, key: ForecastKey, files: Sequence[Path], frames: Iterator[pl.DataFrame]) -> bool:
        """Add files to a table as they are; return whether this is possible."""
        from forecast.scoring.sinks.delta_files import add_files, can_add, remove_orphans

        path, journal = self._folder / kind, self._folder / f".adding-{kind}.json"
        if not self._is_table(kind):
            self._overwrite(kind, iter([next(frames).clear()]), "")
        try:
            table = self._delta.DeltaTable(str(path))
            remove_orphans(table, path, journal)
            if not can_add(table, files, key.cutoff):
                return False
            add_files(table, path, files, key.cutoff, journal)
        except (self._delta.exceptions.DeltaError, OSError) as error:
            raise OutputError(f"the Delta Lake table {path} can't be written: {error}") from error
        return True

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
        """Return the conditions that select the rows of a key."""
        conditions = [pl.col(CUTOFF).dt.epoch() == pl.lit(key.cutoff).dt.epoch()]
        if not key.is_legacy:
            return conditions + [pl.col(name) == value for name, value in zip(MODEL_COLUMNS, key[1:4], strict=True)]
        return [*conditions, pl.col(MODEL_NAME).is_null()] if self._names_models(kind) else conditions

    def _names_models(self, kind: Kind) -> bool:
        return MODEL_NAME in self._scan(kind).collect_schema()

    def _scan(self, kind: Kind, *conditions: pl.Expr) -> pl.LazyFrame:
        frame = pl.scan_delta(str(self._folder / kind))
        return frame.filter(*conditions) if conditions else frame


def _arrow(frame: pl.DataFrame) -> Any:
    return frame.to_arrow(compat_level=pl.CompatLevel.oldest())
