"""A table to a panel: check it, place its rows on the grid, and account for every one."""

from dataclasses import replace

import numpy as np
import polars as pl

from forecast.config import DataConfig
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
from forecast.data.ingest.loaded import Loaded, reclassed, recoded, used_categories, with_unread
from forecast.data.ingest.notation import as_numbers
from forecast.data.ingest.outliers import warn_of_outliers
from forecast.data.ingest.placement import Placing, count_rows, hide_rows
from forecast.data.ingest.regularise import known_steps, regularise
from forecast.data.ingest.rejects import NO_TARGET, Rejects, check_rejects
from forecast.data.ingest.rows import Rows, Runs
from forecast.data.ingest.timestamps import Settled, Times, settle
from forecast.data.ingest.wide import to_long
from forecast.data.panel import Panel, as_names
from forecast.data.sources.columns import recognise
from forecast.data.sources.open import Tables
from forecast.data.time.inference import check_settings
from forecast.errors import DataError, listing
from forecast.names import TARGET, TIMESTAMP


def load_panel(
    tables: Tables | pl.LazyFrame,
    data: DataConfig,
    horizon: int,
    categories: validate.Categories | None = None,
) -> Loaded:
    """Return the panel in a table, whatever the order of its rows.

    `categories` are those of training, when there was one. Targets and past covariates after `data.until` are hidden;
    known covariates are read up to `horizon` steps after the last observed target of a series. Raises DataError for a
    table that can't be used, or of which more than `data.max_reject_share` of the rows is rejected.
    """
    check_settings(data)
    if isinstance(tables, pl.LazyFrame):
        tables = Tables(tables)
    tables, data = long(tables, data, categories)
    found = find_categories(tables, data) if categories is None else own_classes(tables, data, categories)
    loaded = with_unread(load_part(tables, data, horizon, found, whole=True), tables)
    if categories is not None:
        loaded = reclassed(loaded, categories)
    warn_extent(loaded)
    check_rejects(loaded.rejects, loaded.counts, loaded.data, loaded.panel.grid)
    if categories is None:
        loaded = recoded(loaded, used_categories(found, data, [loaded.panel]))
    panel, data = with_calendar(with_features(loaded.panel, loaded.data), loaded.data, loaded.counts)
    return replace(loaded, panel=panel, data=data)


def long(tables: Tables, data: DataConfig, categories: validate.Categories | None = None) -> tuple[Tables, DataConfig]:
    """Return the tables with a row for each series and timestamp, whatever data.layout is, and how to read them.

    Text that means numbers is numbers then, but for `categories`, which are those of training, when there was one.
    """
    data = recognise(validate.schema_of(tables.rows), data)
    tables, data = as_numbers(tables, data, categories)
    return (replace(tables, rows=to_long(tables.rows, data)) if data.layout == "wide" else tables), data


def find_categories(tables: Tables, data: DataConfig) -> dict[str, tuple[str, ...]]:
    """Return the values of each covariate that is text, and of a target of classes."""
    found = validate.find_categories(tables.rows, row_columns(tables, data))
    if tables.known is not None:
        found |= validate.find_categories(tables.known, validate.columns_of(data, "known_covariates"))
    if tables.static is not None:
        found |= validate.find_categories(tables.static, validate.columns_of(data, "static_covariates"))
    if found.get(data.columns.target) == validate.TRUTH and data.aggregate in ("sum", "mean"):
        del found[data.columns.target]  # How often, or how mostly, is a number.
    _check_target(found, data)
    return found


def own_classes(tables: Tables, data: DataConfig, categories: validate.Categories) -> validate.Categories:
    """Return the categories of training, with the classes that the target of a table has, where it is one of classes.

    Truth values are numbers where training had numbers.
    """
    target = data.columns.target
    if target not in categories:
        return categories
    own = validate.find_classes(tables.rows, target)
    rest = {name: values for name, values in categories.items() if name != target}
    return rest if own is None else {**rest, target: own}


def _check_target(categories: validate.Categories, data: DataConfig) -> None:
    """Raise DataError for settings that make a number of the target, where it is text."""
    if categories.get(data.columns.target, validate.TRUTH) == validate.TRUTH:
        return
    given = {
        "data.aggregate": data.aggregate in ("sum", "mean") and data.aggregate,
        "data.lags": data.lags,
        "data.rolling": data.rolling,
    }
    wrong = [f"{key}={value}" for key, value in given.items() if value]
    if wrong:
        raise DataError(
            f"column {data.columns.target!r} (data.columns.target) holds classes, of which {listing(wrong)} can't be "
            "taken; leave it out (data.aggregate=last puts classes together)"
        )


def load_part(
    tables: Tables,
    settled: Settled | DataConfig,
    horizon: int,
    categories: validate.Categories,
    *,
    whole: bool = False,
) -> Loaded:
    """Return the panel in the rows of some series, without calendar and derived features.

    What is settled for the whole panel is settled from these rows if only settings are given. Where these are the
    `whole` panel, rows beyond the end on which its series agree are rejects.
    """
    data = settled.data if isinstance(settled, Settled) else settled
    once, rest = split_by_runs(row_columns(tables, data))
    validate.select(tables.rows, [*once, *rest], categories)  # All that is wrong with the columns, at once.
    series = validate.read_runs(tables.rows, once, categories)
    table = validate.read(tables.rows, rest, categories)
    rows_in = table.height
    series = validate.run_lengths(series, rows_in)
    if not rows_in:
        raise DataError("the table has no rows")
    runs, names = Runs.of(series)
    static = static_values(tables, series, names, data, categories)
    if isinstance(settled, DataConfig):
        settled = settle(table[TIMESTAMP], runs, settled)
    data, grid = settled.data, settled.grid
    times = Times.of(table.drop_in_place(TIMESTAMP), settled)
    known = data.known_covariates if tables.known is None else ()

    rows = Rows(
        runs=runs,
        index=times.clock,
        target=hide_rows(table.drop_in_place(TARGET).to_numpy(), times.after),
        past=[
            hide_rows(table.drop_in_place(validate.PAST + name).to_numpy(), times.after)
            for name in data.past_covariates
        ],
        known=[table.drop_in_place(validate.KNOWN + name).to_numpy() for name in known],
        after=times.after,
        instant=times.instant,
    )
    del table
    place = Placing(settled, names, Rejects(names, grid), categories, whole=whole)
    rows = place(rows, times, [TARGET, *data.past_covariates, *known])
    del times, runs
    steps = regularise(rows, len(names))
    place.rejects.add(NO_TARGET, series=np.setdiff1d(np.arange(len(names)), steps.series))
    counts = count_rows(rows_in, len(names), rows, steps)
    if tables.known is None:
        known_values = known_steps(steps, rows, len(names), horizon)
    else:
        known_values, known_counts = read_known(tables.known, place, steps, horizon)
        counts += known_counts
    codes, numbers = encode_static(static[steps.series], data, categories)
    panel = Panel(
        grid=grid,
        series_id=as_names(names.gather(steps.series)),
        offsets=steps.offsets,
        start=steps.start,
        target=steps.target,
        past=steps.past,
        known=known_values,
        calendar=np.empty((0, 0), dtype=np.float32),
        calendar_start=0,
        clock_shift=np.empty(0, dtype=np.int64),
        horizon=horizon,
        static_categories=codes,
        static_numbers=numbers,
    )
    if data.columns.target not in categories:
        warn_of_outliers(panel)
    return Loaded(panel, data, dict(categories), place.rejects.table(), counts)


def warn_extent(loaded: Loaded) -> None:
    """Log which rows are beyond the end of the panel or far from their series, and what its end rests on."""
    panel = loaded.panel
    if not panel.n_series or not loaded.data.end_share:
        return
    warn_distant(loaded.rejects)
    warn_late(loaded.rejects, panel.last_index, panel.grid, panel.n_series)
    warn_hole(panel)
    warn_lone(panel)
