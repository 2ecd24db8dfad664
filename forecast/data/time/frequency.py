"""Frequencies: units, bases, and clocks."""

import re
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Final, Literal, Self, cast

import numpy as np
import numpy.typing as npt
import polars as pl

from forecast.errors import ConfigError

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

# Names in other libraries, for a better error message.
_OTHER_NAMES: Final = {
    "min": "m", "t": "m", "minute": "m", "hour": "h", "hourly": "h", "day": "d", "daily": "d", "b": "bd", "week": "w",
    "weekly": "w", "ms": "mo", "me": "mo", "month": "mo", "monthly": "mo", "bms": "bm", "bme": "bm", "qs": "q",
    "qe": "q", "quarter": "q", "quarterly": "q", "a": "y", "ys": "y", "ye": "y", "year": "y", "yearly": "y",
}  # fmt: skip


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
        match = re.fullmatch(r"([1-9]\d{0,5})(m|h|d|bd|w|mo|bm|q|y)", text)
        if match is None:
            number, name = cast(re.Match[str], re.fullmatch(r"\s*(\d*)(.*?)\s*", text, re.DOTALL)).groups()
            unit = "mo" if name == "M" else _OTHER_NAMES.get(name.lower(), name.lower())
            hint = f", did you mean {int(number or 1) or 1}{unit}" if unit in _UNITS else ""
            raise ConfigError(
                f"data.freq: unknown frequency {text!r}{hint}? Give a number and a unit: "
                "15m (minutes), 1h, 1d, 1bd (business days), 1w, 1mo (months), 1bm (business months), 1q, 1y"
            )
        frequency = cls(int(match[1]), cast(Unit, match[2]))
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
        """The unit in which `size` is counted."""
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

    Naive timestamps are local time of `time_zone`. An ambiguous hour is the first one; a timestamp that
    the clock skips is null.
    """
    zone = cast(pl.Datetime, timestamp.dtype).time_zone
    if frequency.sub_daily:
        if zone is None and time_zone is not None:
            timestamp = timestamp.dt.replace_time_zone(time_zone, ambiguous="earliest", non_existent="null")
    elif zone is not None:
        timestamp = timestamp.dt.convert_time_zone(time_zone or zone).dt.replace_time_zone(None)
    return timestamp.to_physical()


local_clock: ContextVar[bool] = ContextVar("local_clock", default=False)
"""Whether a moment with a time zone is read as local time if the panel has no time zone."""
