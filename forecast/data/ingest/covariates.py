"""Past, known and static covariates, lag features and the calendar of a panel."""

from dataclasses import replace

import numpy as np
import polars as pl

from forecast.config import DataConfig
from forecast.data.features.calendar import calendar_features, clock_shift, holiday_names
from forecast.data.features.lags import past_features
from forecast.data.ingest import validate
from forecast.data.ingest.outliers import without_outliers
from forecast.data.ingest.placement import RowPlacer
from forecast.data.ingest.regularise import Steps, known_steps, shared_known_steps
from forecast.data.ingest.rejects import Counts, Rejects, check_steps
from forecast.data.ingest.rows import Rows, Runs
from forecast.data.ingest.timestamps import Times
from forecast.data.ingest.weights import has_static_weight
from forecast.data.panel import FloatArray, IntArray, Panel
from forecast.data.sources.open import Tables
from forecast.names import SERIES_ID, TIMESTAMP


def row_columns(tables: Tables, data: DataConfig) -> validate.Columns:
    """Return the columns that are read from the table of rows; data.available may be in the table of known ones."""
    known_keys = ["known_covariates"] if tables.known is None else []
    if tables.known is None or data.available in tables.rows.collect_schema():
        known_keys.append("available")
    elif data.available not in tables.known.collect_schema():
        known_keys.append("available")  # It is missing: the check of the columns reports it.
    static_keys = ["static_covariates"] if tables.static is None else []
    if data.weight is not None and not has_static_weight(tables, data):
        known_keys.append("weight")
    return validate.columns_of(data, "series_id", "timestamp", "target", "past_covariates", *known_keys, *static_keys)


def with_features(panel: Panel, data: DataConfig) -> Panel:
    """Return the panel with the features of data.lags and data.rolling behind the user's past covariates."""
    if not data.lags and not data.rolling:
        return panel
    features = np.empty((len(data.lags) + len(data.rolling), len(panel.target)), dtype=np.float32)
    end = 0
    for shard in panel.shards():
        begin, end = end, end + len(shard.target)
        features[:, begin:end] = past_features(without_outliers(shard), shard.offsets, data)[1]
    return replace(panel, past=np.concatenate([panel.past[: len(data.past_covariates)], features]))


def with_calendar(panel: Panel, data: DataConfig, counts: Counts) -> tuple[Panel, DataConfig]:
    """Return the panel with its calendar features, and the settings with the holiday names that occur in it."""
    first, last = int(panel.start.min()), panel.last_index + panel.horizon
    check_steps(last - first + 1, counts.rows_in, panel.grid, "the panel", first, last)
    if data.holidays is not None and data.holiday_names is None:
        data = data.model_copy(update={"holiday_names": holiday_names(panel.grid, first, last, data.holidays)})
    panel = replace(
        panel,
        calendar=calendar_features(panel.grid, first, last, data)[1],
        calendar_start=first,
        clock_shift=clock_shift(panel.grid, first, last),
    )
    return panel, data


def split_by_runs(columns: validate.Columns) -> tuple[validate.Columns, validate.Columns]:
    """Return the columns that are read as runs of equal rows, and the columns that are read row by row."""
    by_runs = ("data.columns.series_id", "data.static_covariates")
    return [item for item in columns if item[1] in by_runs], [item for item in columns if item[1] not in by_runs]


def read_known(frame: pl.LazyFrame, placer: RowPlacer, steps: Steps, horizon: int) -> tuple[FloatArray, Counts]:
    """Return `Rows.ahead` of a separate table, with or without a series_id, and the counts of its rows."""
    data, names, rejects = placer.resolved.data, placer.names, placer.rejects
    names_of_table = frame.collect_schema()
    shared, has_available = data.columns.series_id not in names_of_table, data.available in names_of_table
    keys = ["timestamp", "known_covariates", *(["available"] if has_available else [])]
    if not shared:
        keys.insert(0, "series_id")
    run_columns, other_columns = split_by_runs(validate.columns_of(data, *keys))
    table = validate.read(frame, other_columns, placer.categories)
    rows_in = table.height
    if shared:
        runs = Runs(np.zeros(min(1, rows_in), dtype=np.int64), np.full(min(1, rows_in), rows_in))
        nameless = pl.Series([None], dtype=pl.String)
        placer = replace(placer, names=nameless, rejects=Rejects(nameless, placer.resolved.grid))
        unused = 0
    else:
        series = validate.run_lengths(validate.read_runs(frame, run_columns, placer.categories), rows_in)
        runs = Runs.of(series, names)[0]
        foreign = np.repeat((runs.series < 0) & series[SERIES_ID].is_not_null().to_numpy(), runs.length)
        unused = int(foreign.sum())
        if unused:
            table = table.filter(pl.Series(~foreign))
            runs = runs.keep(~foreign)
    times = Times.of(table[TIMESTAMP], placer.resolved)
    rows = Rows(
        runs=runs,
        index=times.clock,
        target=np.full(table.height, np.nan),
        past=[],
        known=[table[validate.KNOWN + name].to_numpy() for name in data.known_covariates],
        after=None,
        instant=times.instant,
        available=table[validate.AVAILABLE].to_numpy() if has_available else None,
    )
    rows = placer(rows, times, data.known_covariates, "data.known_path: ")
    values = shared_known_steps(steps, rows, horizon) if shared else known_steps(steps, rows, len(names), horizon)
    if shared:
        rejects.include(placer.rejects)
    n_kept = rows.count()
    return values, Counts(
        known_rows_in=rows_in,
        known_rows_kept=n_kept,
        known_rows_rejected=rows_in - unused - n_kept,
        known_rows_unused=unused,
    )


def static_values(
    tables: Tables, runs: pl.DataFrame, names: pl.Series, data: DataConfig, categories: validate.Categories
) -> pl.DataFrame:
    """Return the static covariates of each series, in the order of `names`."""
    if not data.static_covariates:
        return names.to_frame()
    if tables.static is None:
        return validate.static_values(runs, data)
    columns = validate.columns_of(data, "series_id", "static_covariates")
    values = validate.static_values(validate.read(tables.static, columns, categories), data)
    return names.to_frame(SERIES_ID).join(values, on=SERIES_ID, how="left", maintain_order="left")


def encode_static(
    values: pl.DataFrame, data: DataConfig, categories: validate.Categories
) -> tuple[IntArray, FloatArray]:
    """Return codes and numbers of the static covariates, [series, covariates] each."""
    names = {name: values[validate.STATIC + name] for name in data.static_covariates}
    texts = [name for name in names if name in categories]
    codes = np.zeros((values.height, len(texts)), dtype=np.int64)
    for position, name in enumerate(texts):
        code = names[name].cast(pl.Enum(categories[name]), strict=False).to_physical().cast(pl.Int64) + 1
        codes[:, position] = code.fill_null(0).to_numpy()
    numbers = [
        column.cast(pl.Float32).fill_null(np.nan).to_numpy() for name, column in names.items() if name not in texts
    ]
    return codes, np.stack(numbers, axis=1) if numbers else np.empty((values.height, 0), dtype=np.float32)
