"""A table to a panel: check it, place its rows on the grid, and account for every one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from forecast.config import DataConfig
from forecast.data.features.calendar import calendar_features, clock_shift, holiday_names
from forecast.data.features.lags import past_features
from forecast.data.ingest import aggregate, validate
from forecast.data.ingest.categories import with_codes
from forecast.data.ingest.classes import with_classes
from forecast.data.ingest.extent import (
    common_end,
    distant,
    observed_rows,
    warn_distant,
    warn_hole,
    warn_late,
    warn_lone,
)
from forecast.data.ingest.notation import as_numbers
from forecast.data.ingest.outliers import warn_of_outliers, without_outliers
from forecast.data.ingest.regularise import (
    BoolArray,
    Rows,
    Runs,
    Steps,
    duplicates,
    known_steps,
    regularise,
    shared_known_steps,
)
from forecast.data.ingest.rejects import DISTANT, LATE, NO_TARGET, Counts, Rejects, check_rejects, check_steps
from forecast.data.ingest.timestamps import Settled, Times, check_settings, on_clock, settle
from forecast.data.ingest.wide import to_long
from forecast.data.panel import FloatArray, IntArray, Panel, as_names
from forecast.data.sources.columns import recognise
from forecast.data.sources.open import Tables
from forecast.data.time.frequency import Grid
from forecast.errors import DataError, listing
from forecast.names import MAX_MAGNITUDE, SERIES_ID, TARGET, TIMESTAMP


@dataclass(frozen=True, repr=False)
class Loaded:
    """A panel, and what reading it has settled and refused."""

    panel: Panel
    data: DataConfig
    """The settings, with frequency, season length, time zone and holidays filled in."""
    categories: dict[str, tuple[str, ...]]
    """Values of each categorical covariate: code = position + 1, 0 for any other value. Classes of the target, if it
    is one of classes: code = position."""
    rejects: pl.DataFrame
    """series_id, timestamp, reason, value: a row for each bad row, and for each series without an observed target."""
    counts: Counts
    stored_digest: str | None = None
    """The digest of the panel, if it is known."""

    def __repr__(self) -> str:
        return f"Loaded({self.panel!r}, {self.rejects.height:,} rejects)"

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Classes of the target, by their codes; None for numbers."""
        return self.categories.get(self.data.columns.target)

    @cached_property
    def digest(self) -> str:
        """A hash of the panel's content."""
        return self.stored_digest or self.panel.digest()


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


def row_columns(tables: Tables, data: DataConfig) -> validate.Columns:
    """Return the columns that are read from the table of rows."""
    known = ["known_covariates"] if tables.known is None else []
    static = ["static_covariates"] if tables.static is None else []
    return validate.columns_of(data, "series_id", "timestamp", "target", "past_covariates", *known, *static)


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


def with_unread(found: Loaded, tables: Tables) -> Loaded:
    """Return the panel with the lines of its source that could not be read among the rejects."""
    if tables.unread is None:
        return found
    unread = tables.unread
    n = unread.rejects.height
    counts = found.counts + Counts(
        rows_in=n,
        rows_rejected=n,
        series_in=unread.n_series,
        series_rejected=unread.n_series,
        lines_in=unread.n_lines,
        lines_rejected=n,
    )
    rejects = pl.concat([found.rejects, unread.rejects], how="diagonal").sort(found.rejects.columns)
    return replace(found, rejects=rejects, counts=counts)


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


def reclassed(found: Loaded, categories: validate.Categories) -> Loaded:
    """Return the panel with the codes of the classes in `categories`, those of training; others are rejects."""
    target = found.data.columns.target
    own, classes = (known.get(target) for known in (found.categories, categories))
    if own == classes:
        return found
    panel, rejects, counts = with_classes(found.panel, found.rejects, found.counts, own, classes)
    rest = {name: values for name, values in found.categories.items() if name != target}
    kept = rest if classes is None else {**rest, target: classes}
    return replace(found, panel=panel, rejects=rejects, counts=counts, categories=kept, stored_digest=None)


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
    once, rest = _split(row_columns(tables, data))
    validate.select(tables.rows, [*once, *rest], categories)  # All that is wrong with the columns, at once.
    series = validate.read_runs(tables.rows, once, categories)
    table = validate.read(tables.rows, rest, categories)
    rows_in = table.height
    series = validate.run_lengths(series, rows_in)
    if not rows_in:
        raise DataError("the table has no rows")
    runs, names = Runs.of(series)
    static = _static_values(tables, series, names, data, categories)
    if isinstance(settled, DataConfig):
        settled = settle(table[TIMESTAMP], runs, settled)
    data, grid = settled.data, settled.grid
    times = Times.of(table.drop_in_place(TIMESTAMP), settled)
    known = data.known_covariates if tables.known is None else ()

    rows = Rows(
        runs=runs,
        index=times.clock,
        target=_hidden(table.drop_in_place(TARGET).to_numpy(), times.after),
        past=[
            _hidden(table.drop_in_place(validate.PAST + name).to_numpy(), times.after) for name in data.past_covariates
        ],
        known=[table.drop_in_place(validate.KNOWN + name).to_numpy() for name in known],
        after=times.after,
        instant=times.instant,
    )
    del table
    place = _Placing(settled, names, Rejects(names, grid), categories, whole=whole)
    rows = place(rows, times, [TARGET, *data.past_covariates, *known])
    del times, runs
    steps = regularise(rows, len(names))
    place.rejects.add(NO_TARGET, series=np.setdiff1d(np.arange(len(names)), steps.series))
    counts = _counts(rows_in, len(names), rows, steps)
    if tables.known is None:
        known_values = known_steps(steps, rows, len(names), horizon)
    else:
        known_values, known_counts = _read_known(tables.known, place, steps, horizon)
        counts += known_counts
    codes, numbers = _static(static[steps.series], data, categories)
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
    """Return the panel with its calendar, and the settings with the names of the holidays in it."""
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


def used_categories(
    categories: validate.Categories, data: DataConfig, panels: Sequence[Panel]
) -> dict[str, tuple[str, ...]]:
    """Return the categories without those values of static covariates that no series has: they can't be learnt."""
    used = dict(categories)
    names = [name for name in data.static_covariates if name in categories]
    for column, name in enumerate(names):
        codes = np.unique(np.concatenate([panel.static_categories[:, column] for panel in panels]))
        used[name] = tuple(categories[name][code - 1] for code in codes if code)
    return used


def recoded(found: Loaded, categories: validate.Categories) -> Loaded:
    """Return the panel with the codes that a model was trained with, 0 for values that it has not seen."""
    found = reclassed(found, categories)
    own, data, panel = found.categories, found.data, found.panel
    if dict(categories) == own:
        return found
    if categories.keys() != own.keys():
        raise DataError(
            f"text covariates of the panel are {listing(own) or 'none'}, of the model {listing(categories) or 'none'}; "
            "prepare the panel from a table like the one of training"
        )
    panel = with_codes(panel, own, categories, data)
    return replace(found, panel=panel, categories=dict(categories), stored_digest=None)


def missing_known(panel: Panel, data: DataConfig, *, horizon: int, cutoff: int | None = None) -> pl.DataFrame:
    """Return how many cells of each known covariate are missing up to a cutoff, and over the `horizon` steps after it.

    The cutoff is a grid index, or the end of each series when None. Columns series_id, covariate, missing_history,
    missing_horizon; only series and covariates that miss any.
    """
    parts = []
    for shard in panel.shards():
        held = shard.lengths + panel.horizon
        begin = np.cumsum(held) - held
        seen = shard.lengths if cutoff is None else np.clip(cutoff + 1 - shard.start, 0, None)
        middle, end = begin + np.minimum(seen, held), begin + np.minimum(seen + horizon, held)
        for name, values in zip(data.known_covariates, shard.known, strict=True):
            missing = np.append(0, np.cumsum(np.isnan(values)))
            history = missing[middle] - missing[begin]
            ahead = missing[end] - missing[middle] + horizon - (end - middle)
            some = (seen > 0) & ((history > 0) | (ahead > 0))
            parts.append(
                pl.DataFrame(
                    {
                        SERIES_ID: pl.Series(shard.series_id[some].tolist(), dtype=pl.String),
                        "covariate": pl.repeat(name, int(some.sum()), dtype=pl.String, eager=True),
                        "missing_history": history[some],
                        "missing_horizon": ahead[some],
                    }
                )
            )
    schema = {SERIES_ID: pl.String, "covariate": pl.String, "missing_history": pl.Int64, "missing_horizon": pl.Int64}
    return pl.concat([pl.DataFrame(schema=schema), *parts])


def _split(columns: validate.Columns) -> tuple[validate.Columns, validate.Columns]:
    """Return the columns that are read by runs, and the others."""
    by_runs = ("data.columns.series_id", "data.static_covariates")
    return [item for item in columns if item[1] in by_runs], [item for item in columns if item[1] not in by_runs]


def _hidden(values: npt.NDArray[Any], rows: BoolArray | None) -> npt.NDArray[Any]:
    return values if rows is None else np.where(rows, np.nan, values).astype(values.dtype, copy=False)


@dataclass(frozen=True)
class _Placing:
    """Puts the rows of a table on the grid and refuses those that break a rule."""

    settled: Settled
    names: pl.Series
    rejects: Rejects
    categories: validate.Categories
    whole: bool
    """Whether these are all series of the panel, so that they tell where it ends."""

    def __call__(self, rows: Rows, times: Times, labels: Sequence[str], table: str = "") -> Rows:
        """Return one row per series and step; `labels` name the columns of values, `table` begins the reasons."""
        data, grid, finer = self.settled.data, self.settled.grid, self.settled.finer
        if data.aggregate is None:
            index, on_grid = grid.place(times.clock)
        elif finer is not None:
            assert times.instant is not None
            index, on_grid = finer.place(on_clock(times.instant, finer))
        else:
            assert times.instant is not None
            index, on_grid = times.instant, np.ones(len(rows), dtype=np.bool_)
        rows = replace(rows, index=index)
        bad = np.zeros(len(rows), dtype=np.bool_)
        for reason, mask, value in _faults(rows, times, on_grid, labels):
            fresh = mask & ~bad
            if fresh.any():
                known = pl.Series(times.known[fresh])
                clock = pl.select(pl.when(known).then(pl.Series(times.clock[fresh]))).to_series()
                self.rejects.add(table + reason, series=rows.runs.each()[fresh], clock=clock, value=value[fresh])
                bad |= fresh
        if bad.any():
            rows = rows.keep(~bad)
        if data.aggregate is None or finer is not None:
            rows = self._unique(self._near(rows, table), finer or grid, table)
        if data.aggregate is None:
            return self._up_to_end(rows)
        assert rows.instant is not None
        rows = replace(rows, index=grid.floor_of(on_clock(rows.instant, grid)))
        return self._put_together(self._near(rows, table))

    def _near(self, rows: Rows, table: str) -> Rows:
        """Return the rows without those that are far from the rest of their series."""
        apart = distant(rows, len(self.names)) if self.settled.data.end_share else None
        if apart is None:
            return rows
        self._reject(table + DISTANT, rows, apart)
        return rows.keep(~apart)

    def _up_to_end(self, rows: Rows) -> Rows:
        """Return the rows without those that are observed beyond the end of the panel."""
        if not self.whole or not self.settled.data.end_share or not len(rows):
            return rows
        first, last, observed = observed_rows(rows, len(self.names))
        if not len(last):
            return rows
        late = (rows.index > common_end(first, last, observed, self.settled.data.end_share)) & ~np.isnan(rows.target)
        if not late.any():
            return rows
        self._reject(LATE, rows, late)
        return rows.keep(~late)

    def _unique(self, rows: Rows, grid: Grid, table: str) -> Rows:
        """Return one row for each series and time."""
        if not len(rows):
            return rows
        first, last = rows.limits(len(self.names))
        widest = int(np.argmax(last - first))
        steps = int(np.maximum(last - first + 1, 0).sum())
        check_steps(steps, len(rows), grid, self.names[widest], first[widest], last[widest])
        found = duplicates(rows, first, last)
        if found is None:
            return rows
        for reason, mask in zip(("duplicate key", "duplicate key with different values"), found, strict=True):
            self._reject(table + reason, rows, mask)
        return rows.keep(~(found[0] | found[1]))

    def _put_together(self, rows: Rows) -> Rows:
        bad = np.zeros(len(rows), dtype=np.bool_)
        if len(rows):
            for reason, mask in aggregate.faults(rows, self.settled, len(self.names)):
                self._reject(reason, rows, mask)
                bad |= mask
        rows = self._up_to_end(rows.keep(~bad) if bad.any() else rows)
        return aggregate.put_together(rows, self.settled.data, self.categories)

    def _reject(self, reason: str, rows: Rows, mask: BoolArray) -> None:
        grid = self.settled.grid
        clock = grid.clock(rows.index[mask]) if rows.instant is None else on_clock(rows.instant[mask], grid)
        self.rejects.add(reason, series=rows.runs.each()[mask], clock=pl.Series(clock), value=rows.target[mask])


def _faults(
    rows: Rows, times: Times, on_grid: BoolArray, labels: Sequence[str]
) -> Iterator[tuple[str, BoolArray, npt.NDArray[np.floating]]]:
    """Yield each rule that a row can break by itself: reason, which rows break it, and the value at fault."""
    if (rows.runs.series < 0).any():
        yield "null series_id", np.repeat(rows.runs.series < 0, rows.runs.length), rows.target
    for reason, mask in times.faults:
        yield reason, mask, rows.target
    yield "off-grid timestamp", ~on_grid, rows.target
    for name, value in zip(labels, rows.columns()[-len(labels) :], strict=True):
        if max(np.fmax.reduce(value, initial=0), -np.fmin.reduce(value, initial=0)) > MAX_MAGNITUDE:
            yield f"{name} not finite", np.isinf(value), value
            yield f"{name} beyond {MAX_MAGNITUDE:g}", (value > MAX_MAGNITUDE) | (value < -MAX_MAGNITUDE), value


def _read_known(frame: pl.LazyFrame, place: _Placing, steps: Steps, horizon: int) -> tuple[FloatArray, Counts]:
    """Return the known covariates from a table of their own, with or without a series_id, and where its rows went."""
    data, names, rejects = place.settled.data, place.names, place.rejects
    shared = data.columns.series_id not in frame.collect_schema()
    keys = ["timestamp", "known_covariates"] if shared else ["series_id", "timestamp", "known_covariates"]
    once, rest = _split(validate.columns_of(data, *keys))
    table = validate.read(frame, rest, place.categories)
    rows_in = table.height
    if shared:
        runs = Runs(np.zeros(min(1, rows_in), dtype=np.int64), np.full(min(1, rows_in), rows_in))
        nameless = pl.Series([None], dtype=pl.String)
        place = replace(place, names=nameless, rejects=Rejects(nameless, place.settled.grid))
        unused = 0
    else:
        series = validate.run_lengths(validate.read_runs(frame, once, place.categories), rows_in)
        runs = Runs.of(series, names)[0]
        foreign = np.repeat((runs.series < 0) & series[SERIES_ID].is_not_null().to_numpy(), runs.length)
        unused = int(foreign.sum())
        if unused:
            table = table.filter(pl.Series(~foreign))
            runs = runs.keep(~foreign)
    times = Times.of(table[TIMESTAMP], place.settled)
    rows = Rows(
        runs=runs,
        index=times.clock,
        target=np.full(table.height, np.nan),
        past=[],
        known=[table[validate.KNOWN + name].to_numpy() for name in data.known_covariates],
        after=None,
        instant=times.instant,
    )
    rows = place(rows, times, data.known_covariates, "data.known_path: ")
    values = shared_known_steps(steps, rows, horizon) if shared else known_steps(steps, rows, len(names), horizon)
    if shared:
        rejects.include(place.rejects)
    kept = rows.count()
    return values, Counts(
        known_rows_in=rows_in,
        known_rows_kept=kept,
        known_rows_rejected=rows_in - unused - kept,
        known_rows_unused=unused,
    )


def _counts(rows_in: int, series_in: int, rows: Rows, steps: Steps) -> Counts:
    """Return where all rows went, from those that are left and their steps."""
    after = np.zeros(len(rows), dtype=np.bool_) if rows.after is None else rows.after
    n_after = rows.count(after)
    n_future = 0 if steps.future is None else rows.count(steps.future & ~after)
    n_unobserved = 0 if steps.unobserved is None else rows.count(steps.unobserved & ~after)
    return Counts(
        rows_in=rows_in,
        rows_kept=rows.count() - n_after - n_future - n_unobserved,
        rows_rejected=rows_in - rows.count() + n_unobserved,
        rows_future=n_future,
        rows_after_until=n_after,
        steps_filled=int(np.count_nonzero(np.isnan(steps.target))),
        series_in=series_in,
        series_kept=len(steps.series),
        series_rejected=series_in - len(steps.series),
    )


def _static_values(
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


def _static(values: pl.DataFrame, data: DataConfig, categories: validate.Categories) -> tuple[IntArray, FloatArray]:
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
