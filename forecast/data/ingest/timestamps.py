"""Times of rows: time zone, frequency and grid are resolved once for the panel, then each row gets a time."""

import logging
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from forecast.config import DataConfig
from forecast.data.ingest import stamps
from forecast.data.ingest.extent import Observed, common_end
from forecast.data.ingest.rows import BoolArray, Runs, span
from forecast.data.panel import IntArray
from forecast.data.time.frequency import DAY, DAYS_OF_WEEK, Frequency, business_days, clock
from forecast.data.time.grid import Grid, moment_clock
from forecast.data.time.inference import infer_frequency
from forecast.errors import ConfigError, DataError, listing

log = logging.getLogger(__name__)

# Instants are counted in microseconds of UTC (of the naive clock where there is no time zone).
_INSTANT: Final = Frequency(1, "h")

_SECOND: Final = 1_000_000

# Frequency and grid are inferred from this many series, the longest ones.
LONGEST: Final = 100


@dataclass(frozen=True)
class ResolvedTime:
    """Time zone, frequency and grid, which are resolved once for all rows of a panel."""

    data: DataConfig
    """The settings, with frequency, season length and time zone filled in."""
    grid: Grid
    finer: Grid | None = None
    """The grid of rows that are to be aggregated, None if there is no aggregation, or they are irregular."""
    complete_until: int | None = None
    """With aggregation, the instant up to which the rows are complete: periods that end later are not over."""


@dataclass(frozen=True)
class Times:
    """The time of each row."""

    faults: list[tuple[str, BoolArray]]
    """Reasons why a row has no time, each with a mask of rows."""
    valid: BoolArray
    """[rows], whether the row has a time."""
    clock: IntArray
    """[rows], time on the clock of the grid, 0 if not valid."""
    instant: IntArray | None
    """[rows], the instant of each row, if rows are to be aggregated."""
    after: BoolArray | None
    """[rows], whether the row is after data.until; None without data.until."""

    @classmethod
    def of(cls, source: pl.Series, resolved: ResolvedTime) -> "Times":
        """Return the times of rows from the timestamp column of the table."""
        data, grid = resolved.data, resolved.grid
        timestamp = parse_timestamps(source)
        on_grid_clock = clock(timestamp, grid.frequency, grid.time_zone)
        valid = on_grid_clock.is_not_null().to_numpy()
        faults = []
        if not valid.all():
            null, unread = source.is_null().to_numpy(), timestamp.is_null().to_numpy()
            faults = [
                ("null timestamp", null),
                ("timestamp is not ISO 8601", unread & ~null),
                (f"timestamp skipped by the clock of {grid.time_zone}", ~valid & ~unread),
            ]
        micros = on_grid_clock.fill_null(0).to_numpy()
        after = None
        if data.until is not None:
            after = valid & (micros > moment_clock(data.until, grid.frequency, grid.time_zone))
        instant = instants(timestamp, grid.time_zone).fill_null(0).to_numpy() if data.aggregate else None
        return cls(faults, valid, micros, instant, after)


def parse_timestamps(source: pl.Series) -> pl.Series:
    """Return timestamps as a Datetime: text is read as ISO 8601, null if it is not."""
    return stamps.parse(source) if source.dtype == pl.String else source


def instants(timestamp: pl.Series, time_zone: str | None) -> pl.Series:
    """Return the instants of timestamps."""
    return clock(timestamp, _INSTANT, time_zone)


def resolve_time(source: pl.Series, runs: Runs, data: DataConfig) -> ResolvedTime:
    """Return time zone, frequency and grid of a table, from its longest series up to data.until.

    Raises ConfigError for impossible settings, DataError if the frequency does not follow from the rows.
    """
    timestamp = parse_timestamps(source)
    time_zone = data.time_zone or timestamp.dtype.time_zone  # type: ignore[attr-defined]
    instant = instants(timestamp, time_zone)
    usable = instant.is_not_null().to_numpy()
    if (runs.series < 0).any():
        usable = usable & np.repeat(runs.series >= 0, runs.length)
    if data.until is not None:
        usable = usable & (instant <= moment_clock(data.until, _INSTANT, time_zone)).fill_null(False).to_numpy()
    if not usable.any():
        limit = "" if data.until is None else f" up to data.until={data.until}"
        raise DataError(f"no row has both a series_id and a timestamp{limit}")
    latest = 0
    if data.aggregate:
        rows, values = runs.keep(usable), instant.filter(pl.Series(usable)).to_numpy()
        numbers = np.unique(rows.series)
        first, last = (limit[numbers] for limit in span(rows, values, int(numbers[-1]) + 1))
        latest = latest_of(
            first, last, lambda position: values[rows.series_by_row() == numbers[position]], data, time_zone
        )
    all_usable = bool(usable.all())
    count = np.bincount(runs.series, runs.length) if all_usable else np.bincount(runs.series_by_row()[usable])
    sampled_runs = np.isin(runs.series, longest_series(count))
    series, sample = (
        np.repeat(runs.series[sampled_runs], runs.length[sampled_runs]),
        np.repeat(sampled_runs, runs.length),
    )
    timestamp, usable = timestamp.filter(pl.Series(sample)), usable[sample]
    if not usable.all():
        series, timestamp = series[usable], timestamp.filter(pl.Series(usable))
    return resolve_time_from(timestamp, series, data, time_zone, latest)


def latest_of(first: IntArray, last: IntArray, instants_of: Observed, data: DataConfig, time_zone: str | None) -> int:
    """Return the latest instant up to the end of the panel in steps of data.freq.

    `first` and `last` [S] are those of each series, `instants_of` returns all of a series by its position.
    """
    assert data.freq is not None
    grid = Grid.natural(Frequency.parse(data.freq, data.weekmask), time_zone)
    instant = [last]

    def steps(instant: IntArray) -> IntArray:
        return grid.floor_of(on_clock(instant, grid))

    def observed(position: int) -> IntArray:
        instant.append(instants_of(position))
        return np.unique(steps(instant[-1]))

    end = common_end(steps(first), steps(last), observed, data.end_share)
    candidates = np.concatenate(instant)
    return int(candidates[steps(candidates) <= end].max())


def longest_series(rows: npt.NDArray[Any]) -> IntArray:
    """Return the numbers of the series with most rows, given the rows of each."""
    return np.argsort(-rows, kind="stable")[:LONGEST]


def resolve_time_from(
    timestamp: pl.Series, series: IntArray, data: DataConfig, time_zone: str | None, latest: int
) -> ResolvedTime:
    """Return time zone, frequency and grid, from rows of some series up to data.until and the latest instant."""
    data = _with_local_time(timestamp, data, time_zone)
    if data.aggregate is None:
        frequency = _frequency(series, timestamp, data, time_zone)
        moments = clock(timestamp, frequency, time_zone).drop_nulls()
        if moments.is_empty():
            raise DataError(f"no timestamp exists in data.time_zone={time_zone}: its clock skips them all")
        return ResolvedTime(_filled(data, frequency, time_zone), Grid.through(moments.to_numpy(), frequency, time_zone))

    assert data.freq is not None
    frequency = Frequency.parse(data.freq, data.weekmask)
    grid = Grid.natural(frequency, time_zone)
    resolved = _filled(data, frequency, time_zone)
    try:
        step = infer_frequency(series, timestamp, time_zone)
    except DataError:
        # Irregular rows, such as single sales: the period of the latest one is not over, unless data.until says so.
        complete_until = latest if data.until is None else moment_clock(data.until, _INSTANT, time_zone) + _SECOND
        return ResolvedTime(resolved, grid, complete_until=complete_until)
    finer = Grid.through(clock(timestamp, step, time_zone).drop_nulls().to_numpy(), step, time_zone)
    index = int(finer.floor_of(on_clock(np.array([latest]), finer))[0])
    begin, end = instants(finer.timestamps(np.array([index, index + 1])), time_zone).to_list()
    longest = int(np.diff(instants(grid.timestamps(np.arange(13)), time_zone).to_numpy()).max())
    if end - begin > longest:
        raise ConfigError(
            f"data.aggregate: rows every {step} can't be put together to data.freq={frequency}; give a longer data.freq"
        )
    return ResolvedTime(resolved, grid, finer, complete_until=end)


def _with_local_time(timestamp: pl.Series, data: DataConfig, time_zone: str | None) -> DataConfig:
    """Return the settings with data.local_time filled in. Raises DataError if the rows lack a time zone."""
    if time_zone is None:
        return data
    has_zone = timestamp.dtype.time_zone is not None  # type: ignore[attr-defined]
    if data.local_time is False and not has_zone:
        raise DataError(
            f"column {data.columns.timestamp!r}: its timestamps have no time zone, and those of training had one. Give "
            f"them their zone (Polars: .dt.replace_time_zone({time_zone!r}), "
            f"pandas: .dt.tz_localize({time_zone!r}), text: 2024-01-31T06:00+01:00, or Z for UTC), or set "
            f"data.local_time=true if they are local time of {time_zone}"
        )
    return data.model_copy(update={"local_time": bool(data.local_time) or not has_zone})


def _frequency(series: IntArray, timestamp: pl.Series, data: DataConfig, time_zone: str | None) -> Frequency:
    """Return the frequency of rows that are not aggregated."""
    if data.freq is not None:
        return Frequency.parse(data.freq, data.weekmask)
    if data.weekmask is None:
        frequency = infer_frequency(series, timestamp, time_zone)
        if frequency == Frequency(1, "d"):
            _mention_closed_days(timestamp, time_zone)
        return frequency
    frequency = infer_frequency(series, timestamp, time_zone, business_days(data.weekmask))
    return frequency if frequency.unit != "d" or frequency.n > 1 else Frequency(1, "bd").with_week(data.weekmask)


def _mention_closed_days(timestamp: pl.Series, time_zone: str | None) -> None:
    """Log the days of the week without a row in four weeks or more."""
    days = clock(timestamp, Frequency(1, "d"), time_zone).drop_nulls().to_numpy() // DAY
    week = np.unique((days + 3) % 7)  # 1970-01-01 was a Thursday.
    if 1 < len(week) < 7 and days.max() - days.min() >= 28:
        log.info(
            "no row is on %s: data.freq=1bd data.weekmask=[%s] would make the next day follow",
            listing(DAYS_OF_WEEK[day] for day in range(7) if day not in week),
            ",".join(DAYS_OF_WEEK[day] for day in week),
        )


def _filled(data: DataConfig, frequency: Frequency, time_zone: str | None) -> DataConfig:
    season_length = data.season_length or frequency.season_length
    return data.model_copy(update={"freq": str(frequency), "season_length": season_length, "time_zone": time_zone})


def on_clock(instant: IntArray, grid: Grid) -> IntArray:
    """Return instants as times on the clock of a grid."""
    moment = pl.Series(instant).cast(pl.Datetime("us"))
    if grid.time_zone is not None:
        moment = moment.dt.replace_time_zone("UTC").dt.convert_time_zone(grid.time_zone)
    return clock(moment, grid.frequency, grid.time_zone).to_numpy()


def period_ends(index: IntArray, resolved: ResolvedTime) -> tuple[IntArray, IntArray | None]:
    """Return the instant at which each period of the grid ends, and its number of finer steps (None: any)."""
    grid = resolved.grid
    first, last = int(index.min()), int(index.max())
    instant = instants(grid.timestamps(np.arange(first, last + 2)), grid.time_zone).to_numpy()
    count = None
    if resolved.finer is not None:
        count = np.diff(resolved.finer.floor_of(on_clock(instant - 1, resolved.finer)))[index - first]
    return instant[1:][index - first], count
