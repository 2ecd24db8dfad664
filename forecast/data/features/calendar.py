"""Calendar features: known covariates that depend on the timestamp only, never on the requested range."""

import difflib
import math
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from forecast.config import DataConfig
from forecast.data.panel import FloatArray, IntArray
from forecast.data.time.frequency import DAY
from forecast.data.time.grid import Grid
from forecast.errors import ConfigError, listing

AROUND_HOLIDAYS: Final = ("day before a holiday", "day after a holiday")
"""Features that accompany any choice of holidays."""

Rows = dict[str, npt.NDArray[Any]]


def calendar_features(
    grid: Grid, first_index: int, last_index: int, data: DataConfig
) -> tuple[tuple[str, ...], FloatArray]:
    """Return names and values [features, T] of the calendar from one grid index to another, both included.

    In this order:

    - data.calendar: waves of the time of day (steps below a day), a column for each weekday (days and below) and waves
      of the time of year (quarters and below), in the local time of the grid; nothing for years.
    - data.fourier: sine and cosine of each harmonic, the shortest period first. Grid index 0 has phase 0. In a time
      zone, periods of whole days, or of which a day is a whole number, follow the local clock.
    - data.holidays: for each name in data.holiday_names (those of `holiday_names` when None) how many days of the step
      are that holiday, in local time; then how many are the day before or after one of them. 0 or 1 for steps up to a
      day. With business days, weekends do not count: the day before Monday is Friday. Business months are whole months.

    Raises ConfigError as `holiday_names`, for a holiday that the country does not have, and for harmonics with a period
    of less than two steps.
    """
    features: Rows = {}
    if data.calendar:
        features |= _time(grid, first_index, last_index)
    if data.fourier:
        features |= _fourier(grid, first_index, last_index, data.fourier)
    if data.holidays is not None:
        names = data.holiday_names
        if names is None:
            names = holiday_names(grid, first_index, last_index, data.holidays)
        features |= _holidays(grid, first_index, last_index, data.holidays, names)
    values = np.empty((len(features), last_index - first_index + 1), dtype=np.float32)
    for row, feature in zip(values, features.values(), strict=True):
        row[:] = feature
    return tuple(features), values


def holiday_names(grid: Grid, first_index: int, last_index: int, country: str) -> tuple[str, ...]:
    """Return the holidays of a country or of a part of it (US, US-NY) within a range of the grid, sorted.

    Raises ConfigError when the country, or its part, is unknown or the package `holidays` is not installed.
    """
    days, begin, end = _days(grid, first_index, last_index)
    within = days[begin[0] : end[-1]]
    return tuple(sorted(name for name, dates in _dates(country, *_years(days)).items() if np.isin(dates, within).any()))


def clock_shift(grid: Grid, first_index: int, last_index: int) -> IntArray:
    """Return the shift of the local clock in steps, relative to `first_index`, [T].

    It is 0, 1 or -1 hour in most time zones.
    """
    ahead = _ahead(grid, first_index, last_index)
    shift: IntArray = (ahead - ahead[0]) // grid.frequency.size
    return shift


def _time(grid: Grid, first_index: int, last_index: int) -> Rows:
    frequency = grid.frequency
    local = grid.timestamps(np.arange(first_index, last_index + 1)).dt.replace_time_zone(None)
    features: Rows = {}
    if frequency.base == "month":
        steps = 12 // math.gcd(12, frequency.size)
        return _waves("year", (local.dt.month().to_numpy() - 1) / 12, min(2, steps // 2))
    if frequency.sub_daily:
        features |= _waves("day", local.to_physical().to_numpy() % DAY / DAY, min(3, DAY // frequency.size // 2))
    if frequency.sub_daily or frequency.size % 7:
        weekday = local.dt.weekday().to_numpy()
        open_days = frequency.week if frequency.unit == "bd" else range(7)
        features |= {f"weekday {day + 1}": weekday == day + 1 for day in open_days}
    days_in_year = 365.0 + local.dt.is_leap_year().to_numpy()
    return features | _waves("year", (local.dt.ordinal_day().to_numpy() - 1) / days_in_year, 2)


def _fourier(grid: Grid, first_index: int, last_index: int, fourier: Mapping[float, int]) -> Rows:
    size = grid.frequency.size
    index = np.arange(first_index, last_index + 1, dtype=np.float64)
    local = index + _ahead(grid, first_index, last_index) / size
    features: Rows = {}
    for period, harmonics in sorted(fourier.items()):
        if 2 * harmonics > period:
            raise ConfigError(
                f"data.fourier: a period of {period:g} steps has {int(period / 2)} harmonics at most "
                f"(given: {harmonics}); the others would be shorter than two steps"
            )
        follows_clock = grid.frequency.sub_daily and (period * size % DAY == 0 or DAY % (period * size) == 0)
        position = local if follows_clock else index
        features |= _waves(f"period {period:.12g}", position % period / period, harmonics)
    return features


def _waves(name: str, cycle: npt.NDArray[np.floating], count: int) -> Rows:
    """Return sine and cosine of the first `count` harmonics of a position in [0, 1) within a cycle."""
    waves: Rows = {}
    for harmonic in range(1, count + 1):
        angle = 2 * math.pi * harmonic * cycle
        waves |= {f"{name} sin {harmonic}": np.sin(angle), f"{name} cos {harmonic}": np.cos(angle)}
    return waves


def _ahead(grid: Grid, first_index: int, last_index: int) -> IntArray:
    """Return the offset of the local clock from UTC in microseconds, [T]; 0 for steps of a day and more."""
    if grid.time_zone is None or not grid.frequency.sub_daily:
        return np.zeros(last_index - first_index + 1, dtype=np.int64)
    instants = grid.timestamps(np.arange(first_index, last_index + 1))
    return (instants.dt.replace_time_zone(None).to_physical() - instants.to_physical()).to_numpy()


def _holidays(grid: Grid, first_index: int, last_index: int, country: str, names: tuple[str, ...]) -> Rows:
    days, begin, end = _days(grid, first_index, last_index)
    dates = _dates(country, *_years(days))
    if unknown := [name for name in names if name not in dates]:
        _check_names(unknown, country)
    flags_by_name = {name: np.isin(days, dates.get(name, ())) for name in names}
    any_holiday = np.any([np.zeros_like(days), *flags_by_name.values()], axis=0)
    # The first and last of `days` are outside the range: values rolled around are not used.
    flags_by_name |= dict(zip(AROUND_HOLIDAYS, (np.roll(any_holiday, -1), np.roll(any_holiday, 1)), strict=True))
    features: Rows = {}
    for name, flags in flags_by_name.items():
        total = np.append(0, np.cumsum(flags))
        features[name] = total[end] - total[begin]
    return features


def _days(grid: Grid, first_index: int, last_index: int) -> tuple[IntArray, IntArray, IntArray]:
    """Return the local days around a range, counted from 1970, and the range of days of each step, [T].

    The ranges are positions in the days: the first, and the one after the last. A step at the end of a month stands for
    the months that end with it.
    """
    ends = grid.frequency.base == "month" and grid.phase[1] == 31
    index = np.arange(first_index - ends, last_index + 2 - ends)
    timestamps = grid.timestamps(index).dt.replace_time_zone(None)
    if grid.frequency.unit == "bm":
        timestamps = (timestamps.dt.month_end() if ends else timestamps.dt.month_start()).dt.truncate("1d")
    local = timestamps.to_physical().to_numpy() // DAY + ends
    begin, end = local[:-1], np.maximum(local[1:], local[:-1] + 1)
    days = np.arange(begin.min() - 7, end.max() + 7)
    if grid.frequency.base == "business day":
        days = days[np.isin((days + 3) % 7, grid.frequency.week)]  # 1970-01-01 was a Thursday.
    return days, np.searchsorted(days, begin), np.searchsorted(days, end)


def _years(days: IntArray) -> tuple[int, int]:
    """Return the years of the first and the last day, clipped to those of Python dates."""
    first_year, last_year = (
        (days[[0, -1]].astype("M8[D]").astype("M8[Y]").astype(np.int64) + 1970).clip(1, 9999).tolist()
    )
    return first_year, last_year


@lru_cache(maxsize=16)
def _dates(country: str, first_year: int, last_year: int) -> dict[str, IntArray]:
    """Return the days, counted from 1970, of each holiday of some years; none in years that the package lacks."""
    try:
        import holidays
    except ImportError:
        raise ConfigError("data.holidays needs a package: pip install 'gatecast[holidays]'") from None
    code, dash, part = country.partition("-")
    countries = holidays.list_supported_countries()
    if code not in countries:
        by_name = getattr(getattr(holidays, code.title().replace(" ", ""), None), "country", None)
        raise ConfigError(
            f"data.holidays: unknown country {code!r}; give a code of two letters, such as US, "
            f"or US-NY for a part of it{_hint(by_name or code, countries)}"
        )
    parts = [*countries[code], *getattr(holidays, code).subdivisions_aliases]
    if dash and part not in parts:
        raise ConfigError(
            f"data.holidays: {code} has no part {part!r}, "
            f"it has {listing(parts, limit=10) or 'none'}{_hint(part, parts)}"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The package warns of years that it lacks.
        calendar = holidays.country_holidays(
            code, subdiv=part or None, years=range(first_year, last_year + 1), expand=False, language="en_US"
        )
    dates: dict[str, list[int]] = {}
    for date in calendar:
        for name in calendar.get_list(date):
            dates.setdefault(_LABEL.sub("", name), []).append(date.toordinal() - _EPOCH)
    return {name: np.array(days, dtype=np.int64) for name, days in dates.items()}


_EPOCH: Final = 719163
"""The ordinal of 1970-01-01 in Python."""

_LABEL: Final = re.compile(r" \((?:observed|estimated|observed, estimated|in lieu|substitut[^()]*)\)$")
"""Suffix that the package adds to the name of a holiday that is moved, or whose day is estimated."""


def _check_names(names: Sequence[str], country: str) -> None:
    """Raise ConfigError for names that a country does not have in any of 200 years."""
    dates = _dates(country, 1900, 2100)
    if wrong := [name for name in names if name not in dates]:
        raise ConfigError(
            f"data.holiday_names: {listing(map(repr, wrong))} unknown in {country}, "
            f"it has {listing(sorted(dates), limit=20)}{_hint(wrong[0], dates)} "
            "(names can change with the version of the package holidays)"
        )


def _hint(unknown_name: str, options: Iterable[str]) -> str:
    folded = {name.casefold(): name for name in options}
    close = difflib.get_close_matches(unknown_name.casefold(), folded, n=1)
    return f"; did you mean {folded[close[0]]}?" if close else ""
