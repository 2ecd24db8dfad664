"""From a table to a panel: validation, placement on the grid, and a count of what became of every row."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import polars as pl

from forecast.config import DataConfig
from forecast.data.availability import mask_unavailable, trim
from forecast.data.ingest import validate
from forecast.data.ingest.covariates import (
    encode_static,
    read_known,
    row_columns,
    split_by_runs,
    static_values,
    with_calendar,
    with_features,
)
from forecast.data.ingest.extent import (
    warn_distant,
    warn_hole,
    warn_late,
    warn_lone,
)
from forecast.data.ingest.loaded import Loaded, recode, recode_classes, used_categories, with_unread
from forecast.data.ingest.notation import as_numbers
from forecast.data.ingest.outliers import warn_of_outliers
from forecast.data.ingest.placement import RowPlacer, count_rows, hide_rows
from forecast.data.ingest.regularise import known_steps, regularise
from forecast.data.ingest.rejects import NO_TARGET, Rejects, check_rejects
from forecast.data.ingest.rows import Rows, Runs
from forecast.data.ingest.timestamps import ResolvedTime, Times, resolve_time
from forecast.data.ingest.weights import check_weights, static_weights, warn_of_missing, without_missing_weight
from forecast.data.ingest.wide import to_long
from forecast.data.panel import FloatArray, Panel, as_names
from forecast.data.sources.columns import recognise
from forecast.data.sources.open import Tables
from forecast.data.time.inference import check_settings
from forecast.errors import DataError, listing
from forecast.names import REASON, SERIES_ID, TARGET, TIMESTAMP


def load_panel(
    tables: Tables | pl.LazyFrame,
    data: DataConfig,
    horizon: int,
    categories: validate.Categories | None = None,
) -> Loaded:
    """Return the panel in a table; the order of its rows does not matter.

    `categories` are those of a trained model, if there is one. Targets and past covariates after `data.until` are
    hidden; known covariates are read up to `horizon` steps after the last observed target of a series. Raises DataError
    for a table that can't be used, or of which more than `data.max_reject_share` of the rows is rejected.
    """
    check_settings(data)
    if isinstance(tables, pl.LazyFrame):
        tables = Tables(tables)
    if categories is not None:
        data = without_missing_weight(tables, data)
    tables, data = as_long(tables, data, categories)
    all_categories = (
        find_categories(tables, data) if categories is None else with_table_classes(tables, data, categories)
    )
    loaded = without_unavailable(load_part(tables, data, horizon, all_categories, complete=True))
    loaded = with_unread(loaded, tables)
    if categories is not None:
        loaded = recode_classes(loaded, categories)
    else:
        check_weights([loaded.panel], loaded.data)
    warn_extent(loaded)
    check_rejects(loaded.rejects, loaded.counts, loaded.data, loaded.panel.grid)
    if categories is None:
        loaded = recode(loaded, used_categories(all_categories, data, [loaded.panel]))
    panel, data = with_calendar(with_features(loaded.panel, loaded.data), loaded.data, loaded.counts)
    return replace(loaded, panel=panel, data=data)


def as_long(
    tables: Tables, data: DataConfig, categories: validate.Categories | None = None
) -> tuple[Tables, DataConfig]:
    """Return the tables in long layout, whatever data.layout is, and the settings that match them.

    Text that means numbers becomes numbers, except in `categories`, those of a trained model, if there is one.
    """
    data = recognise(validate.schema_of(tables.rows), data)
    tables, data = as_numbers(tables, data, categories)
    return (replace(tables, rows=to_long(tables.rows, data)) if data.layout == "wide" else tables), data


def find_categories(tables: Tables, data: DataConfig) -> dict[str, tuple[str, ...]]:
    """Return the values of each covariate that is text, and of a target of classes."""
    categories = validate.find_categories(tables.rows, row_columns(tables, data))
    if tables.known is not None:
        categories |= validate.find_categories(tables.known, validate.columns_of(data, "known_covariates"))
    if tables.static is not None:
        categories |= validate.find_categories(tables.static, validate.columns_of(data, "static_covariates"))
    if categories.get(data.columns.target) == validate.TRUTH and data.aggregate in ("sum", "mean"):
        del categories[data.columns.target]  # A count or a share is a number.
    _check_target(categories, data)
    return categories


def with_table_classes(tables: Tables, data: DataConfig, categories: validate.Categories) -> validate.Categories:
    """Return the categories of training, with the classes of the table in place of those of the target, if it has any.

    Truth values are numbers where training had numbers.
    """
    target = data.columns.target
    if target not in categories:
        return categories
    classes = validate.find_classes(tables.rows, target)
    covariate_categories = {name: values for name, values in categories.items() if name != target}
    return covariate_categories if classes is None else {**covariate_categories, target: classes}


def _check_target(categories: validate.Categories, data: DataConfig) -> None:
    """Raise DataError for settings that need a numeric target, where it is text."""
    if categories.get(data.columns.target, validate.TRUTH) == validate.TRUTH:
        return
    numeric_settings = {
        "data.aggregate": data.aggregate in ("sum", "mean") and data.aggregate,
        "data.lags": data.lags,
        "data.rolling": data.rolling,
        "data.available": data.available,
    }
    wrong = [f"{key}={value}" for key, value in numeric_settings.items() if value]
    if wrong:
        raise DataError(
            f"column {data.columns.target!r} (data.columns.target) holds classes, of which {listing(wrong)} can't be "
            "taken; leave it out (data.aggregate=last puts classes together)"
        )


def load_part(
    tables: Tables,
    resolved: ResolvedTime | DataConfig,
    horizon: int,
    categories: validate.Categories,
    *,
    complete: bool = False,
) -> Loaded:
    """Return the panel in the rows of some series, without calendar and derived features.

    Given only settings, time zone, frequency and grid are resolved from these rows. With `complete`, the rows are the
    complete panel, and those beyond the end on which its series agree are rejects.
    """
    data = resolved.data if isinstance(resolved, ResolvedTime) else resolved
    run_columns, other_columns = split_by_runs(row_columns(tables, data))
    validate.select(tables.rows, [*run_columns, *other_columns], categories)  # Reports all mistakes at once.
    series = validate.read_runs(tables.rows, run_columns, categories)
    table = validate.read(tables.rows, other_columns, categories)
    series, rows_in = validate.run_lengths(series, table.height), table.height
    if not rows_in:
        raise DataError("the table has no rows")
    runs, names = Runs.of(series)
    static_table = static_values(tables, series, names, data, categories)
    if isinstance(resolved, DataConfig):
        resolved = resolve_time(table[TIMESTAMP], runs, resolved)
    data, grid = resolved.data, resolved.grid
    times = Times.of(table.drop_in_place(TIMESTAMP), resolved)
    known_names = data.known_covariates if tables.known is None else ()
    has_weight = validate.WEIGHT in table.columns
    rows = _take_rows(table, runs, times, data.past_covariates, known_names)
    del table
    placer = RowPlacer(resolved, names, Rejects(names, grid), categories, complete=complete)
    rows = placer(
        rows, times, [TARGET, *data.past_covariates, *([str(data.weight)] if has_weight else []), *known_names]
    )
    del times, runs
    steps = regularise(rows, len(names))
    placer.rejects.add(NO_TARGET, series=np.setdiff1d(np.arange(len(names)), steps.series))
    counts = count_rows(rows_in, len(names), rows, steps)
    ahead = known_steps(steps, rows, len(names), horizon)
    known_values, available = ahead[: len(known_names)], [ahead[len(known_names) :]]
    if tables.known is not None:
        ahead, known_counts = read_known(tables.known, placer, steps, horizon)
        known_values = ahead[: len(data.known_covariates)]
        available.append(ahead[len(data.known_covariates) :])
        counts += known_counts
    codes, numbers = encode_static(static_table[steps.series], data, categories)
    panel = Panel(
        grid=grid,
        series_id=as_names(names.gather(steps.series)),
        offsets=steps.offsets,
        start=steps.start,
        target=steps.target,
        past=steps.past[: len(data.past_covariates)],
        known=known_values,
        calendar=np.empty((0, 0), dtype=np.float32),
        calendar_start=0,
        clock_shift=np.empty(0, dtype=np.int64),
        horizon=horizon,
        static_categories=codes,
        static_numbers=numbers,
        available=_least(available),
        weight=steps.past[len(data.past_covariates) :],
    )
    if data.weight is not None and not has_weight:
        by_series = static_weights(tables, data, names.gather(steps.series))
        panel = replace(panel, weight=np.repeat(by_series, panel.lengths)[None])
    panel, n_masked = mask_unavailable(panel)
    warn_of_missing(panel, data)
    if data.columns.target not in categories:
        warn_of_outliers(panel)
    counts = replace(counts, rows_masked=n_masked, steps_filled=counts.steps_filled + n_masked)
    return Loaded(panel, data, dict(categories), placer.rejects.table(), counts)


def _least(parts: Sequence[FloatArray]) -> FloatArray:
    """Return the least of each step in tables of availability, [0 or 1 row each]: closed if one table says so."""
    values = np.concatenate(parts)
    return np.fmin.reduce(values, axis=0, keepdims=True) if len(values) > 1 else values


def without_unavailable(loaded: Loaded) -> Loaded:
    """Return the panel with series that begin with an observed target; others are rejects."""
    trimmed = trim(loaded.panel)
    if trimmed.panel is loaded.panel:
        return loaded
    names = loaded.panel.series_id[trimmed.without_target].tolist()
    rejects = pl.DataFrame(
        {SERIES_ID: names, REASON: [NO_TARGET] * len(names)}, schema={SERIES_ID: pl.String, REASON: pl.String}
    )
    counts = replace(
        loaded.counts,
        rows_kept=loaded.counts.rows_kept - trimmed.n_rows,
        rows_rejected=loaded.counts.rows_rejected + trimmed.n_rows,
        steps_filled=int(np.isnan(trimmed.panel.target).sum()),
        series_kept=trimmed.panel.n_series,
        series_rejected=loaded.counts.series_rejected + len(names),
    )
    rejects = pl.concat([loaded.rejects, rejects], how="diagonal").sort(loaded.rejects.columns)
    return replace(loaded, panel=trimmed.panel, counts=counts, rejects=rejects, stored_digest=None)


def _take_rows(
    table: pl.DataFrame, runs: Runs, times: Times, past_names: Sequence[str], known_names: Sequence[str]
) -> Rows:
    """Return the rows of a table; its columns are dropped from it, so that memory does not hold them twice.

    Weights are the last of the past covariates, if there are weights by row.
    """
    past = [validate.PAST + name for name in past_names] + [validate.WEIGHT] * (validate.WEIGHT in table.columns)
    return Rows(
        runs=runs,
        index=times.clock,
        target=hide_rows(table.drop_in_place(TARGET).to_numpy(), times.after),
        past=[hide_rows(table.drop_in_place(name).to_numpy(), times.after) for name in past],
        known=[table.drop_in_place(validate.KNOWN + name).to_numpy() for name in known_names],
        after=times.after,
        instant=times.instant,
        available=table.drop_in_place(validate.AVAILABLE).to_numpy() if validate.AVAILABLE in table.columns else None,
    )


def warn_extent(loaded: Loaded) -> None:
    """Log rows beyond the end of the panel or far from their series, and a weakly supported end."""
    panel = loaded.panel
    if not panel.n_series or not loaded.data.end_share:
        return
    warn_distant(loaded.rejects)
    warn_late(loaded.rejects, panel.last_index, panel.grid, panel.n_series)
    warn_hole(panel)
    warn_lone(panel)
