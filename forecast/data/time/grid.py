"""The grid of a panel: every step between two timestamps has an index."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final, Self

import numpy as np
import polars as pl

from forecast.data.time.frequency import (
    DAY,
    DAYS_OF_WEEK,
    HOUR,
    WEEKDAYS,
    BoolArray,
    Frequency,
    IntArray,
    clock,
    local_clock,
)
from forecast.errors import ConfigError

# Times processed at a time, so that intermediate arrays stay in the cache.
_BLOCK: Final = 1 << 17


@dataclass(frozen=True)
class Grid:
    """The regular timestamps of a panel, numbered by integers; 0 is the first one from 1970 on."""

    frequency: Frequency
    phase: tuple[int, ...]
    """Offset of index 0 from 1970: (microseconds), (days, microseconds) or (months, day of month, microseconds).

    A day of month beyond the end of a month is its last day: 31 is month-end data. Of business months 31 is the last
    business day, 1 the first one.
    """
    time_zone: str | None

    @classmethod
    def through(cls, clock: IntArray, frequency: Frequency, time_zone: str | None) -> Self:
        """Return the grid on which most of the timestamps lie; `clock` as from `clock()`, not empty."""
        if frequency.sub_daily:
            return cls(frequency, (mode(clock % frequency.size),), time_zone)
        time_of_day = clock % DAY
        time = mode(time_of_day)
        at_time = time_of_day == time
        at_mode = clock if at_time.all() else clock[at_time]
        if frequency.base != "month":
            draft = cls(frequency, (0, time), time_zone)
            if frequency.size == 1:
                return draft
        else:
            month, day, last = month_day(at_mode)
            # The latest of the days that fit most timestamps: 30 June and 30 September are month-ends.
            days = [*np.unique(day).tolist(), *([31] if (day == last).any() else [])]
            if frequency.unit == "bm":
                days = [1, 31]
            fits = [np.count_nonzero(day == _day_of_month(month, choice, frequency)) for choice in days]
            draft = cls(frequency, (0, max(zip(fits, days, strict=True))[1], time), time_zone)
        number, fits_unit = draft._number(at_mode)
        number = number[fits_unit] if fits_unit.any() else number
        return cls(frequency, (mode(number % frequency.size), *draft.phase[1:]), time_zone)

    def index(self, timestamp: pl.Series) -> pl.Series:
        """Return the grid index (Int64) of timestamps, null where they are null or off the grid."""
        micros = clock(timestamp.cast(pl.Datetime("us", _zone(timestamp))), self.frequency, self.time_zone)
        index, on_grid = self.place(micros.fill_null(0).to_numpy())
        return pl.select(pl.when(pl.Series(on_grid) & micros.is_not_null()).then(pl.Series(index))).to_series()

    def place(self, clock: IntArray) -> tuple[IntArray, BoolArray]:
        """Return the grid index of times as from `clock()`, and whether they are on the grid."""
        index, on_grid = np.empty_like(clock), np.empty(len(clock), dtype=np.bool_)
        for begin in range(0, len(clock), _BLOCK):
            block = slice(begin, begin + _BLOCK)
            index[block], on_grid[block] = self._place(clock[block])
        if self.time_zone is not None and not self.frequency.sub_daily and not on_grid.all():
            # If the clock changes at midnight, the day starts at 01:00.
            off_grid = np.flatnonzero(~on_grid)
            earlier = pl.Series(clock[off_grid] - HOUR).cast(pl.Datetime("us"))
            skipped = earlier.dt.replace_time_zone(self.time_zone, ambiguous="earliest", non_existent="null").is_null()
            off_grid = off_grid[skipped.to_numpy()]
            index[off_grid], on_grid[off_grid] = self._place(clock[off_grid] - HOUR)
        return index, on_grid

    @classmethod
    def natural(cls, frequency: Frequency, time_zone: str | None) -> Self:
        """Return the grid of whole periods: from midnight, Monday, the first of the month or the first of January.

        Raises ConfigError for business days and months: rows on a weekend would fall into no period.
        """
        if frequency.unit in ("bd", "bm"):
            instead = "1d or 1w" if frequency.unit == "bd" else "1mo"
            raise ConfigError(f"data.aggregate: rows can't be put together to {frequency}; use data.freq={instead}")
        if frequency.base == "microsecond":
            midnight = moment_clock(datetime(2000, 1, 1), frequency, time_zone)
            return cls(frequency, (midnight % frequency.size,), time_zone)
        if frequency.base == "month":
            return cls(frequency, (0, 1, 0), time_zone)
        monday = 4 if frequency.unit == "w" else 0  # 1970-01-05
        return cls(frequency, (monday, 0), time_zone)

    def floor(self, moment: datetime) -> int:
        """Return the index of the last grid timestamp at or before `moment` (naive: in the time zone of the panel)."""
        return int(self.floor_of(np.array([self.clock_of(moment)]))[0])

    def floor_of(self, clock: IntArray) -> IntArray:
        """Return the index of the last grid timestamp at or before each time as from `clock()`."""
        index: IntArray = (self._number(clock)[0] - self.phase[0]) // self.frequency.size + 1
        while (late := self.clock(index) > clock).any():
            index = index - late
        return index

    def clock_of(self, moment: datetime) -> int:
        """Return the time, as from `clock()`, of one moment (naive: in the time zone of the panel)."""
        return moment_clock(moment, self.frequency, self.time_zone)

    def timestamps(self, index: IntArray) -> pl.Series:
        """Return the timestamps of grid indices: naive without a time zone, else in that zone."""
        return self.from_clock(self.clock(np.asarray(index, dtype=np.int64)))

    def from_clock(self, clock: IntArray | pl.Series) -> pl.Series:
        """Return the timestamps of times as from `clock()`, on the grid or not."""
        naive = pl.Series("timestamp", clock, dtype=pl.Int64).cast(pl.Datetime("us"))
        if self.time_zone is None:
            return naive
        if self.frequency.sub_daily:
            return naive.dt.replace_time_zone("UTC").dt.convert_time_zone(self.time_zone)
        local = naive.dt.replace_time_zone(self.time_zone, ambiguous="earliest", non_existent="null")
        if local.has_nulls():
            # A day that starts at 01:00, because the clock skips its midnight.
            later = naive.dt.offset_by("1h")
            later = later.dt.replace_time_zone(self.time_zone, ambiguous="earliest", non_existent="null")
            local = local.to_frame().select(pl.coalesce("timestamp", later)).to_series()
        return local

    def __str__(self) -> str:
        week = self.frequency.week
        days = "" if week == WEEKDAYS else f" {','.join(DAYS_OF_WEEK[day] for day in week)}"
        return f"{self.frequency} {','.join(map(str, self.phase))} {self.time_zone or 'naive'}{days}"

    def to_json(self) -> dict[str, Any]:
        """Return the grid as JSON values for `from_json`."""
        week = self.frequency.week
        return {
            "frequency": str(self.frequency),
            "phase": list(self.phase),
            "time_zone": self.time_zone,
            **({} if week == WEEKDAYS else {"week": list(week)}),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return the grid from the values of `to_json`."""
        frequency = replace(Frequency.parse(values["frequency"]), week=tuple(values.get("week", WEEKDAYS)))
        return cls(frequency, tuple(values["phase"]), values["time_zone"])

    def _place(self, clock: IntArray) -> tuple[IntArray, BoolArray]:
        number, fits_unit = self._number(clock)
        number = number - self.phase[0]
        index = number // self.frequency.size
        return index, fits_unit & (index * self.frequency.size == number)

    def _number(self, clock: IntArray) -> tuple[IntArray, BoolArray]:
        """Return the microsecond, (business) day or month of each time, and whether its remainder fits the grid."""
        if self.frequency.base == "microsecond":
            return clock, np.ones(len(clock), dtype=np.bool_)
        if self.frequency.base == "month":
            month, day, _ = month_day(clock)
            _, day_of_grid, time = self.phase
            return month, (day == _day_of_month(month, day_of_grid, self.frequency)) & (clock % DAY == time)
        days, time_of_day = np.divmod(clock, DAY)
        on_grid = time_of_day == self.phase[1]
        if self.frequency.base == "business day":
            week, weekday = np.divmod(days + 3, 7)  # 1970-01-01 was a Thursday.
            open_days = _open(self.frequency)
            on_grid &= open_days[weekday]
            days = len(self.frequency.week) * week + np.cumsum(open_days)[weekday] - 1
        return days, on_grid

    def clock(self, index: IntArray) -> IntArray:
        """Return the time, as from `clock()`, of grid indices."""
        number = index * self.frequency.size + self.phase[0]
        if self.frequency.base == "microsecond":
            return number
        if self.frequency.base == "month":
            first = number.astype("M8[M]").astype("M8[D]").astype(np.int64)
            day = _day_of_month(number, self.phase[1], self.frequency)
            return (first + day - 1) * DAY + self.phase[2]
        if self.frequency.base == "business day":
            week, place = np.divmod(number, len(self.frequency.week))
            number = 7 * week + np.array(self.frequency.week)[place] - 3
        return number * DAY + self.phase[1]


def moment_clock(moment: datetime, frequency: Frequency, time_zone: str | None) -> int:
    """Return the time, as from `clock()`, of one moment (naive: in `time_zone`)."""
    if time_zone is None and local_clock.get():
        moment = moment.replace(tzinfo=None)
    if moment.tzinfo is None:
        micros = clock(pl.Series([moment], dtype=pl.Datetime("us")), frequency, time_zone)[0]
        if micros is None:
            raise ConfigError(f"{moment.isoformat()} does not exist in {time_zone}: the clock skips it")
    elif time_zone is None:
        raise ConfigError(f"{moment.isoformat()} has a time zone and the panel has none: give it without one")
    else:
        naive = pl.Series([moment.astimezone(UTC).replace(tzinfo=None)], dtype=pl.Datetime("us"))
        micros = clock(naive.dt.replace_time_zone("UTC"), frequency, time_zone)[0]
    return int(micros)


def mode(values: IntArray) -> int:
    """Return the most common value, the smallest of several."""
    if (values == values[0]).all():
        return int(values[0])
    distinct, counts = np.unique(values, return_counts=True)
    return int(distinct[np.argmax(counts)])


def month_day(clock: IntArray) -> tuple[IntArray, IntArray, IntArray]:
    """Return month (0 is January 1970), day of month, and last day of that month."""
    month = clock.view("M8[us]").astype("M8[M]")
    first_day, next_first_day = month.astype("M8[D]").astype(np.int64), (month + 1).astype("M8[D]").astype(np.int64)
    return month.astype(np.int64), clock // DAY - first_day + 1, next_first_day - first_day


def _day_of_month(month: IntArray, day_of_grid: int, frequency: Frequency) -> IntArray:
    """Return the grid's day of each month (0 is January 1970), given its nominal day `day_of_grid`."""
    first_day = month.astype("M8[M]").astype("M8[D]").astype(np.int64)
    next_first_day = (month + 1).astype("M8[M]").astype("M8[D]").astype(np.int64)
    day: IntArray = np.minimum(day_of_grid, next_first_day - first_day)
    if frequency.unit != "bm":
        return day
    open_days = _open(frequency)
    if day_of_grid == 31:
        days_back = np.array([next(k for k in range(7) if open_days[day - k]) for day in range(7)])
        day = next_first_day - first_day - days_back[(next_first_day + 2) % 7]
    else:
        days_ahead = np.array([next(k for k in range(7) if open_days[(day + k) % 7]) for day in range(7)])
        day = 1 + days_ahead[(first_day + 3) % 7]
    return day


def _open(frequency: Frequency) -> BoolArray:
    """Return whether each day of the week, from Monday on, is a business day."""
    return np.isin(np.arange(7), frequency.week)


def _zone(timestamp: pl.Series) -> str | None:
    return timestamp.dtype.time_zone if isinstance(timestamp.dtype, pl.Datetime) else None
