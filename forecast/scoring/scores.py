"""Reader of scored forecasts: a frame of the forecasts that manifests name, with their lineage."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import polars as pl

from forecast.config import SinkConfig
from forecast.config import load as validated
from forecast.data.objects import is_object_store
from forecast.errors import ConfigError, DataError, OutputError, listing
from forecast.names import CUTOFF, MODEL_COLUMNS, SERIES_ID, SOURCE, STEP, TIMESTAMP
from forecast.scoring.manifests import (
    FORECASTS,
    current,
    cutoff_moment,
    in_order,
    models_of,
    read_manifests,
    training_end,
    written_at,
)
from forecast.scoring.sinks.base import Sink
from forecast.scoring.sinks.objects import ObjectSink
from forecast.scoring.sinks.open import open_stored
from forecast.scoring.sinks.sql import SqlSink

RUN_ID: Final = "run_id"
TRAINED_UNTIL: Final = "trained_until"
WRITTEN_AT: Final = "written_at"
_LINEAGE: Final = (SOURCE, *MODEL_COLUMNS, RUN_ID, TRAINED_UNTIL, WRITTEN_AT)
# Attempts to read a cutoff that is being replaced.
_ATTEMPTS: Final = 3


class Scores:
    """The forecasts in a folder, an object store or a database, by cutoff.

    `place` is the output.path of scoring (Parquet files or Delta Lake tables), or its output.uri: an object store, or a
    database, whose table is `table`. Raises DataError if it holds no manifest; ConfigError, OutputError.
    """

    def __init__(self, place: str | Path, table: str = "forecasts") -> None:
        self.place = place
        self._sink: Sink
        if is_object_store(place):
            objects = ObjectSink(str(place), "path", Path())
            self._sink, self.contents = objects, in_order(objects.manifests())
        elif "://" in str(place):
            database = SqlSink(str(place), table, "path", Path())
            self._sink, self.contents = database, in_order(database.manifests())
        else:
            self.contents = read_manifests(Path(place))
            self._sink = _sink_of(Path(place), self.contents)
        if not self.contents:
            source = "the database" if isinstance(self._sink, SqlSink) else place
            raise DataError(
                f"{source}: no forecasts (there are no manifests); give the "
                "output.path of a forecast score that is done, or the URI and the table of its database"
            )

    def select(
        self, cutoff: datetime | None = None, model: str | None = None, *, latest: bool = False
    ) -> list[dict[str, Any]]:
        """Return the manifests of a cutoff and a model, or of all; with `latest`, one of each model.

        That is the latest cutoff, or the requested one, by the current version. Raises DataError if there is none.
        """
        contents = [content for content in self.contents if model in (None, content["model"])]
        if not contents:
            raise DataError(f"{model}: no forecasts of this model; there are: {listing(models_of(self.contents))}")
        if cutoff is not None:
            moments = dict.fromkeys(content[CUTOFF] for content in contents)
            contents = [content for content in contents if _is_same(cutoff_moment(content), cutoff)]
            if not contents:
                raise DataError(f"no forecasts from {cutoff.isoformat()}; there are: {listing(moments)}")
        if latest:
            contents = list({content["model"]: content for content in current(contents)}.values())
        return contents

    def read(self, contents: Sequence[Mapping[str, Any]], series: Collection[str] | None = None) -> pl.DataFrame:
        """Return the forecasts of the given manifests, of some series or all, by cutoff, model, series and step.

        Columns that a manifest lacks are null in its rows. Raises OutputError for missing files or rows.
        """
        frame = pl.concat((self._rows(content, series) for content in contents), how="diagonal_relaxed")
        last = [name for name in _LINEAGE if name in frame.columns]
        first = [name for name in frame.columns if name not in last]
        return frame.select(*first, *last)

    def _rows(self, content: Mapping[str, Any], series: Collection[str] | None) -> pl.DataFrame:
        parts = list(self._sink.forecasts(content))
        frame = pl.concat(parts).collect()
        if frame.height != content["rows"]["written"]:
            raise OutputError(
                f"the cutoff {content[CUTOFF]} of {content['model']} has {frame.height:,} rows of {FORECASTS}, its "
                f"manifest says {content['rows']['written']:,}; score it again (score.cutoff={content[CUTOFF]})"
            )
        if series is not None:
            frame = frame.filter(pl.col(SERIES_ID).is_in(list(series)))
        kind = frame.schema[TIMESTAMP]
        names = ("model", "model_version", "model_digest")
        facts = {column: str(content[name]) for column, name in zip(MODEL_COLUMNS, names, strict=True)}
        end = training_end(content)
        return frame.with_columns(
            *(pl.lit(value).alias(column) for column, value in facts.items()),
            pl.lit(content.get("run_id"), pl.String).alias(RUN_ID),
            pl.lit(end).cast(kind).alias(TRAINED_UNTIL),
            pl.lit(written_at(content)).cast(pl.Datetime("us", "UTC")).alias(WRITTEN_AT),
        ).sort(SERIES_ID, STEP)


def read_scores(
    place: str | Path,
    *,
    cutoff: datetime | None = None,
    latest: bool = False,
    model: str | None = None,
    series: Collection[str] | None = None,
    table: str = "forecasts",
) -> pl.DataFrame:
    """Return scored forecasts; see `forecast.api.read_scores`.

    A cutoff replaced during the read is read again, by its new manifest.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        scores = Scores(place, table)
        contents = scores.select(cutoff, model, latest=latest)
        try:
            return scores.read(contents, series)
        except OutputError:
            if attempt == _ATTEMPTS or Scores(place, table).contents == scores.contents:
                raise
    raise AssertionError


def _sink_of(folder: Path, contents: Sequence[Mapping[str, Any]]) -> Sink:
    """Return the sink that reads the forecasts of a folder. Raises ConfigError if they are in a database."""
    is_delta = (folder / FORECASTS / "_delta_log").is_dir()
    if not is_delta and any("files" not in content for content in contents):
        raise ConfigError(
            f"{folder}: its forecasts are in a database; give its URI and table instead "
            "(postgresql://user@host/db or sqlite:///file.db)"
        )
    config = validated(SinkConfig, {"path": str(folder), "sink": "delta" if is_delta else "parquet"})
    return open_stored(config, contents)


def _is_same(moment: datetime, requested: datetime) -> bool:
    """Return whether a cutoff equals the requested one; a request without time zone is in local time."""
    if moment.tzinfo is not None and requested.tzinfo is None:
        return moment.replace(tzinfo=None) == requested
    return (moment.tzinfo is None) == (requested.tzinfo is None) and moment == requested
