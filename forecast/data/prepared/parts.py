"""Preparation of a panel in parts: leftover files, chunks of series, and the time resolved for all parts."""

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import polars as pl

from forecast.config import DataConfig
from forecast.data.files import LOCK, check_writable
from forecast.data.ingest import validate
from forecast.data.ingest.timestamps import (
    ResolvedTime,
    instants,
    latest_of,
    longest_series,
    parse_timestamps,
    resolve_time_from,
)
from forecast.data.panel import IntArray
from forecast.data.prepared.storage import DATA_FOLDER, SCHEMA_VERSION
from forecast.data.sources.frames import collect, column
from forecast.data.sources.open import Tables, is_prepared
from forecast.errors import DataError, OutputError, listing
from forecast.names import SERIES_ID, TIMESTAMP

PARTS: Final = ".parts"
_UNFINISHED: Final = re.compile(r"\.data-\d+|\.panel\.json\.\d+\.tmp")


def clear_leftovers(folder: Path, keep: str | None) -> None:
    """Remove leftovers of killed jobs from a locked folder, except the parts under the key `keep`."""
    parts = folder / PARTS
    leftovers = [path for path in folder.iterdir() if _UNFINISHED.fullmatch(path.name)]
    leftovers += [path for path in parts.glob("*") if path.name != keep] if keep else [parts]
    for path in leftovers:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def check_panel_folder(folder: Path) -> None:
    """Raise OutputError for a folder that holds other files than a prepared panel."""
    check_writable(folder)
    is_ours = is_prepared(folder) or (folder / PARTS).exists()
    foreign_files = sorted(
        path.name
        for path in folder.iterdir()
        if path.name != LOCK and not DATA_FOLDER.fullmatch(path.name) and not _UNFINISHED.fullmatch(path.name)
    )
    if foreign_files and not is_ours:
        raise OutputError(
            f"{folder} holds other files ({listing(foreign_files)}); choose an empty folder as output.path"
        )


def content_key(data: DataConfig, horizon: int, fingerprint: str | None) -> str:
    """Return a hash of everything that determines a prepared panel."""
    content = [SCHEMA_VERSION, data.model_dump_json(), horizon, fingerprint]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def series_of(tables: Tables, data: DataConfig) -> pl.DataFrame:
    """Return series_id and number of rows of each series, sorted, including rows with a null series_id."""
    columns = validate.select(tables.rows, validate.columns_of(data, "series_id"), {})
    series = collect(columns.group_by(SERIES_ID).len("rows")).sort(SERIES_ID)
    if series.is_empty():
        raise DataError("the table has no rows")
    return series


def resolve_panel_time(tables: Tables, data: DataConfig, series: pl.DataFrame) -> ResolvedTime:
    """Return time zone, frequency and grid of the panel, from its longest series."""
    named_series = series.drop_nulls(SERIES_ID)
    if named_series.is_empty():
        raise DataError("no row has both a series_id and a timestamp")
    longest = longest_series(named_series["rows"].to_numpy())
    names = named_series[SERIES_ID].gather(longest)
    times = validate.select(tables.rows, validate.columns_of(data, "series_id", "timestamp"), {})
    sample = collect(times.filter(pl.col(SERIES_ID).is_in(names.implode())))
    timestamp = parse_timestamps(sample[TIMESTAMP])
    time_zone = data.time_zone or timestamp.dtype.time_zone  # type: ignore[attr-defined]
    if timestamp.null_count() == len(timestamp):
        raise DataError("no row has both a series_id and a timestamp")
    latest = _latest(times, data, time_zone) if data.aggregate else 0
    code = sample[SERIES_ID].cast(pl.Enum(names)).to_physical().cast(pl.Int64).to_numpy()
    is_time = timestamp.is_not_null()
    return resolve_time_from(timestamp.filter(is_time), code[is_time.to_numpy()], data, time_zone, latest)


def _latest(times: pl.LazyFrame, data: DataConfig, time_zone: str | None) -> int:
    """Return the latest instant up to the end of the panel."""
    rows = times.drop_nulls()

    def instants_in(rows: pl.DataFrame) -> IntArray:
        return instants(parse_timestamps(rows[TIMESTAMP]), time_zone).drop_nulls().to_numpy()

    limits = collect(
        rows.group_by(SERIES_ID).agg(pl.col(TIMESTAMP).min().alias("first"), pl.col(TIMESTAMP).max().alias("last"))
    )
    first, last = (instants(parse_timestamps(limits[name]), time_zone) for name in ("first", "last"))
    valid = first.is_not_null() & last.is_not_null()
    names = limits[SERIES_ID].filter(valid)
    return latest_of(
        first.filter(valid).to_numpy(),
        last.filter(valid).to_numpy(),
        lambda position: instants_in(collect(rows.filter(pl.col(SERIES_ID) == names[position]))),
        data,
        time_zone,
    )


def chunk_series(series: pl.DataFrame, rows: int) -> Iterator[tuple[str | None, str | None]]:
    """Yield first and last series of each part, of about `rows` rows; null as first: rows without a series_id too."""
    n_rows = pl.when(pl.col(SERIES_ID).is_null()).then(0).otherwise("rows")
    before = series.select(n_rows.cum_sum().cast(pl.Int64) - n_rows.cast(pl.Int64)).to_series()
    for _, names in series.select(SERIES_ID, part=before // rows).group_by("part", maintain_order=True):
        yield names[SERIES_ID][0], names[SERIES_ID][-1]


def select_series(tables: Tables, data: DataConfig, first: str | None, last: str | None) -> Tables:
    """Return the tables with the rows of the series from `first` to `last`."""
    name = data.columns.series_id

    def between(frame: pl.LazyFrame) -> pl.LazyFrame:
        text = column(name) if frame.collect_schema()[name] == pl.String else column(name).cast(pl.String)
        inside = text.is_between(pl.lit(first or ""), pl.lit(last or ""))
        return frame.filter(inside | text.is_null() if first is None else inside)

    known = tables.known
    if known is not None and name in known.collect_schema():
        known = between(known)
    return Tables(between(tables.rows), known, tables.static)
