"""A table to a panel: check it, place its rows on the grid, and account for every one."""

import difflib
import zoneinfo
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from forecast.config import DataConfig
from forecast.data import validate
from forecast.data.calendar import calendar_features, clock_shift
from forecast.data.panel import FloatArray, IntArray, Panel
from forecast.data.regularise import BoolArray, Rows, Runs, Steps, duplicates, regularise, span
from forecast.errors import ConfigError, DataError
from forecast.frequency import Frequency, Grid, clock, infer_frequency, moment_clock
from forecast.names import MAX_MAGNITUDE, REASON, SERIES_ID, TARGET, TIMESTAMP, VALUE

NO_TARGET = "no observed target"

# Steps that a table may make of each of its rows, on average, before a date or the frequency is taken for wrong.
_MAX_STEPS_PER_ROW = 200
_MANY_STEPS = 10_000_000

# Rejects of each reason that a message shows.
_SHOWN = 5

# Series whose rows tell the frequency when it is not given: the longest ones.
_INFER_FROM = 100


@dataclass(frozen=True)
class Counts:
    """Where the rows went: rows_in = rows_kept + rows_rejected + rows_future + rows_after_until."""

    rows_in: int
    rows_kept: int
    rows_rejected: int
    """Bad rows, and all rows of series without an observed target."""
    rows_future: int
    """Rows without a target after the last observed one of their series: read for known covariates only."""
    rows_after_until: int
    steps_filled: int
    """Steps of the panel without a row, or with a null target."""
    series_in: int
    series_kept: int
    series_rejected: int


@dataclass(frozen=True)
class Loaded:
    """A panel, and what reading it has settled and refused."""

    panel: Panel
    data: DataConfig
    """The settings, with frequency, season length and time zone filled in."""
    categories: dict[str, tuple[str, ...]]
    """Values of each categorical static covariate: code = position + 1, 0 for any other value."""
    rejects: pl.DataFrame
    """series_id, timestamp, reason, value: a row for each bad row, and for each series without an observed target."""
    counts: Counts


def load_panel(
    frame: pl.LazyFrame, data: DataConfig, horizon: int, categories: validate.Categories | None = None
) -> Loaded:
    """Return the panel in a long table, whatever the order of its rows.

    `categories` are those of training, when there was one. Targets and past covariates after `data.until` are hidden;
    known covariates are read up to `horizon` steps after the last observed target of a series. Raises DataError for a
    table that can't be used, or of which more than `data.max_reject_share` of the rows is rejected.
    """
    _check_settings(data)
    table = validate.read(frame, data, categories)
    if table.is_empty():
        raise DataError("the table has no rows")
    rows_in = table.height
    runs, names = Runs.of(table[SERIES_ID])
    static = validate.static_values(table, data) if data.static_covariates else names.to_frame()
    times = _Times.of(table[TIMESTAMP], runs, data)
    grid, data = times.grid, times.data
    table = table.drop(SERIES_ID, TIMESTAMP)

    rejects = _Rejects(names, grid)
    rows = _good_rows(table, runs, times, data, rejects)
    del table, times, runs
    rows = _unique_rows(rows, names, grid, rejects)
    steps = regularise(rows, len(names), horizon)

    rejects.add(NO_TARGET, series=np.setdiff1d(np.arange(len(names)), steps.series))
    counts = _counts(rows_in, len(names), rows, steps)
    table_of_rejects = rejects.table()
    _check_rejects(table_of_rejects, counts, data, grid)
    first, last = int(steps.start.min()), int((steps.start + np.diff(steps.offsets)).max()) - 1 + horizon
    _check_steps(last - first + 1, rows_in, grid, "the panel", first, last)
    codes, numbers, categories = _static(static[steps.series], data, categories)
    panel = Panel(
        grid=grid,
        series_id=names.gather(steps.series).to_numpy().astype(np.str_),
        offsets=steps.offsets,
        start=steps.start,
        target=steps.target,
        past=steps.past,
        known=steps.known,
        calendar=calendar_features(grid, first, last)[1]
        if data.calendar
        else np.empty((0, last - first + 1), dtype=np.float32),
        calendar_start=first,
        clock_shift=clock_shift(grid, first, last),
        horizon=horizon,
        static_categories=codes,
        static_numbers=numbers,
    )
    return Loaded(panel=panel, data=data, categories=categories, rejects=table_of_rejects, counts=counts)


def _check_settings(data: DataConfig) -> None:
    if data.freq is not None:
        Frequency.parse(data.freq)
    if data.time_zone is not None:
        try:
            pl.Series([], dtype=pl.Datetime("us")).dt.replace_time_zone(data.time_zone)
        except pl.exceptions.ComputeError:
            close = difflib.get_close_matches(data.time_zone, sorted(zoneinfo.available_timezones()), n=1)
            hint = f"did you mean {close[0]}?" if close else "use an IANA name, such as Europe/Paris"
            raise ConfigError(f"data.time_zone: unknown time zone {data.time_zone!r}; {hint}") from None


@dataclass(frozen=True)
class _Times:
    """The timestamp of each row."""

    faults: list[tuple[str, BoolArray]]
    """Reasons why a row has no time, and which rows."""
    known: BoolArray
    clock: IntArray
    """Time on the clock of the grid, 0 if not known."""
    after: BoolArray | None
    """Rows after data.until, None without one."""
    grid: Grid
    data: DataConfig
    """The settings, with frequency, season length and time zone filled in."""

    @classmethod
    def of(cls, stated: pl.Series, runs: Runs, data: DataConfig) -> "_Times":
        timestamp = validate.parse_times(stated) if stated.dtype == pl.String else stated
        time_zone = data.time_zone or timestamp.dtype.time_zone  # type: ignore[attr-defined]
        frequency = Frequency.parse(data.freq) if data.freq else _infer(timestamp, runs, data, time_zone)
        found = clock(timestamp, frequency, time_zone)
        known = found.is_not_null().to_numpy()
        faults = []
        if not known.all():
            null, unread = stated.is_null().to_numpy(), timestamp.is_null().to_numpy()
            faults = [
                ("null timestamp", null),
                ("timestamp is not ISO 8601", unread & ~null),
                (f"timestamp skipped by the clock of {time_zone}", ~known & ~unread),
            ]
        micros = found.fill_null(0).to_numpy()
        after = None if data.until is None else known & (micros > moment_clock(data.until, frequency, time_zone))
        usable = known & np.repeat(runs.series >= 0, runs.length)
        if after is not None:
            usable &= ~after
        if not usable.any():
            limit = "" if data.until is None else f" up to data.until={data.until}"
            raise DataError(f"no row has both a series_id and a timestamp{limit}")
        grid = Grid.through(micros if usable.all() else micros[usable], frequency, time_zone)
        season_length = data.season_length or frequency.season_length
        settled = {"freq": str(frequency), "season_length": season_length, "time_zone": time_zone}
        return cls(faults, known, micros, after, grid, data.model_copy(update=settled))


def _infer(timestamp: pl.Series, runs: Runs, data: DataConfig, time_zone: str | None) -> Frequency:
    """Return the frequency from the rows, up to data.until, of the longest series."""
    known = runs.series >= 0
    lengths = np.bincount(runs.series[known], weights=runs.length[known])
    longest = np.argsort(-lengths, kind="stable")[:_INFER_FROM]
    chosen = np.isin(runs.series, longest)
    series = np.repeat(runs.series[chosen], runs.length[chosen])
    timestamp = timestamp.filter(pl.Series(np.repeat(chosen, runs.length)))
    if data.until is not None:
        hour = Frequency(1, "h")
        early = clock(timestamp, hour, time_zone) <= moment_clock(data.until, hour, time_zone)
        series, timestamp = series[early.fill_null(False).to_numpy()], timestamp.filter(early)
    return infer_frequency(series, timestamp, time_zone)


class _Rejects:
    """Collects the table of rejects."""

    def __init__(self, names: pl.Series, grid: Grid) -> None:
        self._names, self._grid = names, grid
        self._parts: list[pl.DataFrame] = []
        self.add("", series=np.empty(0, dtype=np.int64))  # The columns, should nothing else be added.

    def add(
        self,
        reason: str,
        *,
        series: IntArray,
        clock: pl.Series | None = None,
        value: npt.NDArray[np.floating] | None = None,
    ) -> None:
        """Add a reject for each entry of `series` (-1: no series_id); clock and value are null by default."""
        nothing = pl.repeat(None, len(series), eager=True)
        number = pl.Series(series)
        self._parts.append(
            pl.DataFrame(
                {
                    SERIES_ID: self._names.gather(number.set(number < 0, None)),
                    TIMESTAMP: self._grid.from_clock(nothing.cast(pl.Int64) if clock is None else clock),
                    REASON: pl.repeat(reason, len(series), dtype=pl.String, eager=True),
                    VALUE: (nothing if value is None else pl.Series(value).fill_nan(None)).cast(pl.Float64),
                }
            )
        )

    def table(self) -> pl.DataFrame:
        """Return all rejects, in an order that does not depend on the table's."""
        return pl.concat(self._parts).sort(SERIES_ID, TIMESTAMP, REASON, VALUE)


def _good_rows(table: pl.DataFrame, runs: Runs, times: _Times, data: DataConfig, rejects: _Rejects) -> Rows:
    """Return the rows that break no rule of their own."""
    target = table[TARGET].to_numpy()
    past = [table[validate.PAST + name].to_numpy() for name in data.past_covariates]
    known = [table[validate.KNOWN + name].to_numpy() for name in data.known_covariates]
    if times.after is not None:
        target, *past = [
            np.where(times.after, np.nan, column).astype(column.dtype, copy=False) for column in (target, *past)
        ]
    index, on_grid = times.grid.place(times.clock)
    rows = Rows(runs=runs, index=index, target=target, past=past, known=known, after=times.after)

    bad = np.zeros(len(rows), dtype=np.bool_)
    for reason, mask, value in _faults(rows, times, on_grid, data):
        fresh = mask & ~bad
        if fresh.any():
            clock = pl.select(pl.when(pl.Series(times.known[fresh])).then(pl.Series(times.clock[fresh]))).to_series()
            rejects.add(reason, series=runs.each()[fresh], clock=clock, value=value[fresh])
            bad |= fresh
    return rows.keep(~bad) if bad.any() else rows


def _faults(
    rows: Rows, times: _Times, on_grid: BoolArray, data: DataConfig
) -> Iterator[tuple[str, BoolArray, npt.NDArray[np.floating]]]:
    """Yield each rule that a row can break by itself: reason, which rows break it, and the value at fault."""
    yield "null series_id", np.repeat(rows.runs.series < 0, rows.runs.length), rows.target
    for reason, mask in times.faults:
        yield reason, mask, rows.target
    yield "off-grid timestamp", ~on_grid, rows.target
    names = ["target", *data.past_covariates, *data.known_covariates]
    columns: list[npt.NDArray[np.floating]] = [rows.target, *rows.past, *rows.known]
    for name, value in zip(names, columns, strict=True):
        yield f"{name} not finite", np.isinf(value), value
        yield f"{name} beyond {MAX_MAGNITUDE:g}", (value > MAX_MAGNITUDE) | (value < -MAX_MAGNITUDE), value


def _unique_rows(rows: Rows, names: pl.Series, grid: Grid, rejects: _Rejects) -> Rows:
    """Return one row for each key."""
    first, last = span(rows.runs, rows.index, len(names))
    widest = int(np.argmax(last - first))
    _check_steps(
        int(np.maximum(last - first + 1, 0).sum()), len(rows), grid, names[widest], first[widest], last[widest]
    )
    found = duplicates(rows, first, last)
    if found is None:
        return rows
    for reason, mask in zip(("duplicate key", "duplicate key with different values"), found, strict=True):
        clock = pl.Series(grid.clock(rows.index[mask]))
        rejects.add(reason, series=rows.runs.each()[mask], clock=clock, value=rows.target[mask])
    return rows.keep(~(found[0] | found[1]))


def _counts(rows_in: int, series_in: int, rows: Rows, steps: Steps) -> Counts:
    """Return where all rows went, from those that are left and their steps."""
    after = np.zeros(len(rows), dtype=np.bool_) if rows.after is None else rows.after
    n_after = int(np.count_nonzero(after))
    n_future = 0 if steps.future is None else int(np.count_nonzero(steps.future & ~after))
    n_unobserved = 0 if steps.unobserved is None else int(np.count_nonzero(steps.unobserved & ~after))
    return Counts(
        rows_in=rows_in,
        rows_kept=len(rows) - n_after - n_future - n_unobserved,
        rows_rejected=rows_in - len(rows) + n_unobserved,
        rows_future=n_future,
        rows_after_until=n_after,
        steps_filled=int(np.count_nonzero(np.isnan(steps.target))),
        series_in=series_in,
        series_kept=len(steps.series),
        series_rejected=series_in - len(steps.series),
    )


def _check_rejects(rejects: pl.DataFrame, counts: Counts, data: DataConfig, grid: Grid) -> None:
    """Raise DataError if there are more rejects than allowed, or no series is left."""
    share = counts.rows_rejected / counts.rows_in
    if data.on_error == "fail" and counts.rows_rejected:
        limit = "data.on_error=fail allows none; mend the table or set data.on_error=quarantine"
    elif share > data.max_reject_share:
        limit = f"more than data.max_reject_share={data.max_reject_share:g}; mend the table or raise it"
    elif not counts.series_kept:
        limit = "no series is left to forecast"
    else:
        return
    lines = [
        f"{counts.rows_rejected:,} of {counts.rows_in:,} rows ({share:.1%}) and "
        f"{counts.series_rejected:,} of {counts.series_in:,} series were rejected, {limit}:"
    ]
    for (reason,), part in rejects.group_by(REASON, maintain_order=True):
        lines.append(f"  {reason}: {part.height:,}, e.g. {', '.join(_offenders(part.head(_SHOWN)))}")
        if reason == "off-grid timestamp":
            grid_of = f"most rows are every {grid.frequency}"
            lines.append(f"    {grid_of}: in training, data.freq and data.time_zone set the grid")
    raise DataError("\n".join(lines))


def _offenders(rejects: pl.DataFrame) -> Iterator[str]:
    for series_id, timestamp, _, value in rejects.with_columns(_as_text(pl.col(TIMESTAMP))).iter_rows():
        where = f"{series_id}" + ("" if timestamp is None else f" at {timestamp}")
        yield where + ("" if value is None else f" ({value:g})")


def _as_text(timestamp: pl.Expr) -> pl.Expr:
    # By Polars: Python's datetime ends with the year 9999.
    return timestamp.dt.to_string("%Y-%m-%d %H:%M:%S")


def _static(
    values: pl.DataFrame, data: DataConfig, categories: validate.Categories | None
) -> tuple[IntArray, FloatArray, dict[str, tuple[str, ...]]]:
    """Return codes and numbers of the static covariates, [series, covariates] each, and the values of the codes."""
    names = {name: values[validate.STATIC + name] for name in data.static_covariates}
    texts = {name: column for name, column in names.items() if column.dtype == pl.String}
    if categories is None:
        categories = {name: tuple(column.drop_nulls().unique().sort()) for name, column in texts.items()}
    codes = np.zeros((values.height, len(texts)), dtype=np.int64)
    for position, (name, column) in enumerate(texts.items()):
        code = column.cast(pl.Enum(categories[name]), strict=False).to_physical().cast(pl.Int64) + 1
        codes[:, position] = code.fill_null(0).to_numpy()
    numbers = [column.cast(pl.Float32).to_numpy() for name, column in names.items() if name not in texts]
    stacked = np.stack(numbers, axis=1) if numbers else np.empty((values.height, 0), dtype=np.float32)
    return codes, stacked, dict(categories)


def _check_steps(steps: int, rows: int, grid: Grid, what: str, first: int, last: int) -> None:
    """Raise DataError if so few rows make so many steps that one of them must be wrong."""
    if steps > max(_MANY_STEPS, _MAX_STEPS_PER_ROW * rows):
        start, end = grid.timestamps(np.array([first, last])).to_frame().select(_as_text(pl.all())).to_series()
        raise DataError(
            f"{rows:,} rows make {steps:,} steps of {grid.frequency}: {what} runs from {start} to {end}; "
            "look for dates far off (1900, 9999), or set data.freq"
        )
