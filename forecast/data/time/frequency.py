"""Frequencies and grids: which timestamps the rows of a panel can have, and the number of each.

Steps below a day are regular in UTC. Days and longer are steps of the calendar in local time, so that days of 23 and 25
hours, leap years and months of any length are one step each.
"""

import re
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final, Literal, Self, cast

import numpy as np
import numpy.typing as npt
import polars as pl

from forecast.errors import ConfigError, DataError

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

Unit = Literal["m", "h", "d", "bd", "w", "mo", "bm", "q", "y"]
Base = Literal["microsecond", "day", "business day", "month"]

MINUTE: Final = 60_000_000
"""Microseconds; so are the next two."""
HOUR: Final = 60 * MINUTE
DAY: Final = 24 * HOUR

DAYS_OF_WEEK: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
WEEKDAYS: Final = (0, 1, 2, 3, 4)
"""The usual business days, by their place in the week."""

# What each unit is made of, and how many of the unit are one season.
_UNITS: Final[dict[Unit, tuple[Base, int, float]]] = {
    "m": ("microsecond", MINUTE, 24 * 60),
    "h": ("microsecond", HOUR, 24),
    "d": ("day", 1, 7),
    "bd": ("business day", 1, 5),
    "w": ("day", 7, 52),
    "mo": ("month", 1, 12),
    "bm": ("month", 1, 12),
    "q": ("month", 3, 4),
    "y": ("month", 12, 1),
}

# Names of other libraries, for a better message.
_OTHER_NAMES: Final = {
    "min": "m", "t": "m", "minute": "m", "hour": "h", "hourly": "h", "day": "d", "daily": "d", "b": "bd", "week": "w",
    "weekly": "w", "ms": "mo", "me": "mo", "month": "mo", "monthly": "mo", "bms": "bm", "bme": "bm", "qs": "q",
    "qe": "q", "quarter": "q", "quarterly": "q", "a": "y", "ys": "y", "ye": "y", "year": "y", "yearly": "y",
}  # fmt: skip

# Times that are placed at once, so that what is in between stays in the cache.
_BLOCK: Final = 1 << 17

# Share of steps between rows that must fit an inferred frequency.
_FIT: Final = 0.95


@dataclass(frozen=True)
class Frequency:
    """A step of `n` units."""

    n: int
    unit: Unit
    week: tuple[int, ...] = WEEKDAYS
    """The business days, 0 for Monday, of units that count them."""

    @classmethod
    def parse(cls, text: str, weekmask: str | None = None) -> Self:
        """Return the frequency that `text` names, of the business days that `weekmask` names (None: Monday to Friday).

        Raises ConfigError, also for a `weekmask` where no business days are counted.

        >>> str(Frequency.parse("15m")), Frequency.parse("1h").season_length
        ('15m', 24)
        """
        found = re.fullmatch(r"([1-9]\d{0,5})(m|h|d|bd|w|mo|bm|q|y)", text)
        if found is None:
            number, name = cast(re.Match[str], re.fullmatch(r"\s*(\d*)(.*?)\s*", text, re.DOTALL)).groups()
            unit = "mo" if name == "M" else _OTHER_NAMES.get(name.lower(), name.lower())
            hint = f", did you mean {int(number or 1) or 1}{unit}" if unit in _UNITS else ""
            raise ConfigError(
                f"data.freq: unknown frequency {text!r}{hint}? Give a number and a unit: "
                "15m (minutes), 1h, 1d, 1bd (business days), 1w, 1mo (months), 1bm (business months), 1q, 1y"
            )
        frequency = cls(int(found[1]), cast(Unit, found[2]))
        return frequency if weekmask is None else frequency.with_week(weekmask)

    def with_week(self, weekmask: str) -> Self:
        """Return the frequency with other business days. Raises ConfigError if it has none."""
        if self.unit not in ("bd", "bm"):
            raise ConfigError(
                f"data.weekmask={weekmask}: steps of {self} have no business days; set data.freq=1bd (or 1bm), or "
                "leave data.weekmask out"
            )
        return replace(self, week=business_days(weekmask))

    def __str__(self) -> str:
        return f"{self.n}{self.unit}"

    @property
    def base(self) -> Base:
        """What the step is counted in."""
        return _UNITS[self.unit][0]

    @property
    def size(self) -> int:
        """Length of the step, counted in `base`."""
        return self.n * _UNITS[self.unit][1]

    @property
    def sub_daily(self) -> bool:
        """Whether steps are minutes or hours, regular in UTC."""
        return self.base == "microsecond"

    @property
    def season_length(self) -> int:
        """Steps in one season: a day below a day, a week of days, a year of weeks, months or quarters; at least 1."""
        if self.sub_daily and self.size >= DAY:
            return max(1, round(7 * DAY / self.size))
        if self.unit == "bd":
            return max(1, round(len(self.week) / self.n))
        return max(1, round(_UNITS[self.unit][2] / self.n))


def business_days(weekmask: str) -> tuple[int, ...]:
    """Return the days of the week that `weekmask` names, 0 for Monday, ascending. Raises ConfigError.

    >>> business_days("sun-thu"), business_days("mon,wed,fri")
    ((0, 1, 2, 3, 6), (0, 2, 4))
    """
    days: set[int] = set()
    for part in re.split(r"[,\s]+", weekmask.strip("[] ").lower()):
        ends = [DAYS_OF_WEEK.index(name[:3]) for name in part.split("-") if name[:3] in DAYS_OF_WEEK]
        if len(ends) != part.count("-") + 1 or len(ends) > 2:
            raise ConfigError(
                f"data.weekmask: {part!r} is no day of the week; name the business days, such as mon-fri, sun-thu, "
                "mon-sat or mon,wed,fri"
            )
        days |= {day % 7 for day in range(ends[0], ends[-1] + 1 + 7 * (ends[-1] < ends[0]))}
    return tuple(sorted(days))


def clock(timestamp: pl.Series, frequency: Frequency, time_zone: str | None) -> pl.Series:
    """Return the microseconds (Int64) of the clock on which a frequency is regular: UTC below a day, else local.

    Naive timestamps are local time of `time_zone`. An hour that the clock shows twice is the first one; a timestamp
    that the clock skips is null.
    """
    zone = cast(pl.Datetime, timestamp.dtype).time_zone
    if frequency.sub_daily:
        if zone is None and time_zone is not None:
            timestamp = timestamp.dt.replace_time_zone(time_zone, ambiguous="earliest", non_existent="null")
    elif zone is not None:
        timestamp = timestamp.dt.convert_time_zone(time_zone or zone).dt.replace_time_zone(None)
    return timestamp.to_physical()


@dataclass(frozen=True)
class Grid:
    """The regular timestamps of a panel, numbered by integers; 0 is the first one from 1970 on."""

    frequency: Frequency
    phase: tuple[int, ...]
    """Where 0 is, counted from 1970: (microseconds), (days, microseconds) or (months, day of month, microseconds).

    A day of month beyond the end of a month is its last day: 31 is month-end data. Of business months 31 is the last
    business day, 1 the first one.
    """
    time_zone: str | None

    @classmethod
    def through(cls, clock: IntArray, frequency: Frequency, time_zone: str | None) -> Self:
        """Return the grid on which most of the timestamps lie; `clock` as from `clock()`, not empty."""
        if frequency.sub_daily:
            return cls(frequency, (_mode(clock % frequency.size),), time_zone)
        time_of_day = clock % DAY
        time = _mode(time_of_day)
        at_time = time_of_day == time
        kept = clock if at_time.all() else clock[at_time]
        if frequency.base != "month":
            draft = cls(frequency, (0, time), time_zone)
            if frequency.size == 1:
                return draft
        else:
            month, day, last = _month_day(kept)
            # Of days that fit equally many timestamps the latest: 30 June and 30 September are month-ends.
            days = [*np.unique(day).tolist(), *([31] if (day == last).any() else [])]
            if frequency.unit == "bm":
                days = [1, 31]
            fits = [np.count_nonzero(day == _day_of_month(month, choice, frequency)) for choice in days]
            draft = cls(frequency, (0, max(zip(fits, days, strict=True))[1], time), time_zone)
        number, fits_unit = draft._number(kept)
        number = number[fits_unit] if fits_unit.any() else number
        return cls(frequency, (_mode(number % frequency.size), *draft.phase[1:]), time_zone)

    def index(self, timestamp: pl.Series) -> pl.Series:
        """Return the grid index (Int64) of timestamps, null where they are null or off the grid."""
        micros = clock(timestamp.cast(pl.Datetime("us", _zone(timestamp))), self.frequency, self.time_zone)
        index, on_grid = self.place(micros.fill_null(0).to_numpy())
        return pl.select(pl.when(pl.Series(on_grid) & micros.is_not_null()).then(pl.Series(index))).to_series()

    def place(self, clock: IntArray) -> tuple[IntArray, BoolArray]:
        """Return grid index and whether it is on the grid, for times as from `clock()`."""
        index, on_grid = np.empty_like(clock), np.empty(len(clock), dtype=np.bool_)
        for first in range(0, len(clock), _BLOCK):
            block = slice(first, first + _BLOCK)
            index[block], on_grid[block] = self._place(clock[block])
        if self.time_zone is not None and not self.frequency.sub_daily and not on_grid.all():
            # Where clocks change at midnight a day starts at 01:00.
            off = np.flatnonzero(~on_grid)
            earlier = pl.Series(clock[off] - HOUR).cast(pl.Datetime("us"))
            skipped = earlier.dt.replace_time_zone(self.time_zone, ambiguous="earliest", non_existent="null").is_null()
            off = off[skipped.to_numpy()]
            index[off], on_grid[off] = self._place(clock[off] - HOUR)
        return index, on_grid

    @classmethod
    def natural(cls, frequency: Frequency, time_zone: str | None) -> Self:
        """Return the grid of whole periods: from midnight, Monday, the first of the month or the first of January.

        Raises ConfigError for business days and months: they leave no place for what happens on a weekend.
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
        """Return what `from_json` reads."""
        week = self.frequency.week
        return {
            "frequency": str(self.frequency),
            "phase": list(self.phase),
            "time_zone": self.time_zone,
            **({} if week == WEEKDAYS else {"week": list(week)}),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return the grid that `to_json` described."""
        frequency = replace(Frequency.parse(values["frequency"]), week=tuple(values.get("week", WEEKDAYS)))
        return cls(frequency, tuple(values["phase"]), values["time_zone"])

    def _place(self, clock: IntArray) -> tuple[IntArray, BoolArray]:
        number, fits_unit = self._number(clock)
        number = number - self.phase[0]
        index = number // self.frequency.size
        return index, fits_unit & (index * self.frequency.size == number)

    def _number(self, clock: IntArray) -> tuple[IntArray, BoolArray]:
        """Return the microsecond, (business) day or month of each time, and whether it is where in it rows are."""
        if self.frequency.base == "microsecond":
            return clock, np.ones(len(clock), dtype=np.bool_)
        if self.frequency.base == "month":
            month, day, _ = _month_day(clock)
            _, wanted, time = self.phase
            return month, (day == _day_of_month(month, wanted, self.frequency)) & (clock % DAY == time)
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


local_clock: ContextVar[bool] = ContextVar("local_clock", default=False)
"""Whether a moment with a time zone is taken by what its clock shows where the panel has no time zone."""


def moment_clock(moment: datetime, frequency: Frequency, time_zone: str | None) -> int:
    """Return the time, as from `clock()`, of one moment (naive: in `time_zone`)."""
    if time_zone is None and local_clock.get():
        moment = moment.replace(tzinfo=None)
    if moment.tzinfo is None:
        found = clock(pl.Series([moment], dtype=pl.Datetime("us")), frequency, time_zone)[0]
        if found is None:
            raise ConfigError(f"{moment.isoformat()} does not exist in {time_zone}: the clock skips it")
    elif time_zone is None:
        raise ConfigError(f"{moment.isoformat()} has a time zone and the panel has none: give it without one")
    else:
        naive = pl.Series([moment.astimezone(UTC).replace(tzinfo=None)], dtype=pl.Datetime("us"))
        found = clock(naive.dt.replace_time_zone("UTC"), frequency, time_zone)[0]
    return int(found)


def infer_frequency(
    series: IntArray, timestamp: pl.Series, time_zone: str | None, week: tuple[int, ...] = WEEKDAYS
) -> Frequency:
    """Return the frequency of rows, given in any order, from the steps between neighbours within a series.

    Business days are those of `week`. They are the frequency of daily rows if none is on another day although a series
    goes from one week to the next, business months that of rows on the first or last of them in a month.
    Raises DataError, with the steps that were found, when they do not agree on one.
    """
    utc = clock(timestamp, Frequency(1, "h"), time_zone)
    local = clock(timestamp, Frequency(1, "d"), time_zone)
    rows = pl.DataFrame({"series": series, "utc": utc, "local": local}).drop_nulls().unique().sort("series", "utc")
    pairs = rows.with_columns(pl.all().shift(1).name.suffix("_before")).filter(
        pl.col("series") == pl.col("series_before")
    )
    if pairs.is_empty():
        raise DataError("can't tell the frequency: no series has two rows; give data.freq, e.g. data.freq=1d")
    step = (pairs["utc"] - pairs["utc_before"]).to_numpy()
    usual = _mode(step)
    if usual < 23 * HOUR:
        if _share(step % usual == 0) < _FIT or usual % MINUTE:
            raise _ambiguous(step)
        return Frequency(usual // HOUR, "h") if usual % HOUR == 0 else Frequency(usual // MINUTE, "m")

    local_clock, before = pairs["local"].to_numpy(), pairs["local_before"].to_numpy()
    days, days_before = local_clock // DAY, before // DAY
    step_days = days - days_before
    usual = _mode(step_days)
    # A time that the clock skips on some day is an hour later there.
    time = rows["local"].to_numpy() % DAY
    if usual >= 1 and _share(time == _mode(time)) >= _FIT:
        if usual >= 28 and _share(step_days % 7 == 0) < _FIT:
            grid = Grid.through(rows["local"].to_numpy(), Frequency(1, "mo"), None)
            step_months = _month_day(local_clock)[0] - _month_day(before)[0]
            months = max(1, _mode(step_months))
            regular = step_months % months == 0
            if _share(grid.place(local_clock)[1] & regular) >= _FIT:
                whole: tuple[tuple[int, Unit], ...] = ((12, "y"), (3, "q"), (1, "mo"))
                return next(Frequency(months // size, unit) for size, unit in whole if months % size == 0)
            business = Frequency(1, "bm", week)
            grid = Grid.through(rows["local"].to_numpy(), business, None)
            if _share(grid.place(local_clock)[1] & regular) >= _FIT:
                return replace(business, n=months)
        if usual == 1:
            every = np.unique((rows["local"].to_numpy() // DAY + 3) % 7)
            crossed = (days + 3) // 7 != (days_before + 3) // 7
            return Frequency(1, "bd", week) if crossed.any() and np.isin(every, week).all() else Frequency(1, "d")
        if _share(step_days % usual == 0) >= _FIT:
            return Frequency(usual // 7, "w") if usual % 7 == 0 else Frequency(usual, "d")
        if usual in (28, 35) and _share(np.isin(step_days, (28, 35))) >= _FIT:
            raise DataError(
                f"can't tell the frequency: steps between neighbouring rows of a series are {_steps(step)}: periods of "
                "4 and 5 weeks (a 4-4-5 calendar), which are no regular steps; forecast their weeks, from weekly rows "
                "(data.freq=1w) or daily ones (data.freq=1w data.aggregate=sum), and add these up; or date each period "
                "by the first day of its month (data.freq=1mo)"
            )
    raise _ambiguous(step)


def _ambiguous(step: IntArray) -> DataError:
    return DataError(
        f"can't tell the frequency: steps between neighbouring rows of a series are {_steps(step)}; "
        "give data.freq, e.g. data.freq=1d"
    )


def _steps(step: IntArray) -> str:
    """Return the most frequent steps with their shares."""
    sizes, counts = np.unique(step, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:5]
    return ", ".join(f"{_duration(int(sizes[i]))} ({counts[i] / len(step):.0%})" for i in order)


def _duration(micros: int) -> str:
    for size, unit in ((DAY, "d"), (HOUR, "h"), (MINUTE, "m")):
        if micros % size == 0:
            return f"{micros // size}{unit}"
    return f"{micros / 1e6:g}s"


def _share(flags: BoolArray) -> float:
    return float(np.mean(flags))


def _mode(values: IntArray) -> int:
    """Return the most common value, the smallest of several."""
    if (values == values[0]).all():
        return int(values[0])
    found, counts = np.unique(values, return_counts=True)
    return int(found[np.argmax(counts)])


def _month_day(clock: IntArray) -> tuple[IntArray, IntArray, IntArray]:
    """Return month (0 is January 1970), day of month, and last day of that month."""
    month = clock.view("M8[us]").astype("M8[M]")
    first, after = month.astype("M8[D]").astype(np.int64), (month + 1).astype("M8[D]").astype(np.int64)
    return month.astype(np.int64), clock // DAY - first + 1, after - first


def _day_of_month(month: IntArray, wanted: int, frequency: Frequency) -> IntArray:
    """Return the day of each month (0 is January 1970) on which rows are, where `wanted` is that of the grid."""
    first = month.astype("M8[M]").astype("M8[D]").astype(np.int64)
    after = (month + 1).astype("M8[M]").astype("M8[D]").astype(np.int64)
    day: IntArray = np.minimum(wanted, after - first)
    if frequency.unit != "bm":
        return day
    open_days = _open(frequency)
    if wanted == 31:
        back = np.array([next(k for k in range(7) if open_days[day - k]) for day in range(7)])
        day = after - first - back[(after + 2) % 7]
    else:
        ahead = np.array([next(k for k in range(7) if open_days[(day + k) % 7]) for day in range(7)])
        day = 1 + ahead[(first + 3) % 7]
    return day


def _open(frequency: Frequency) -> BoolArray:
    """Return whether each day of the week, from Monday on, is a business day."""
    return np.isin(np.arange(7), frequency.week)


def _zone(timestamp: pl.Series) -> str | None:
    return timestamp.dtype.time_zone if isinstance(timestamp.dtype, pl.Datetime) else None
