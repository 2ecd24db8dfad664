"""Inference of the frequency from timestamps, and checks of the settings for it."""

import difflib
import zoneinfo
from dataclasses import replace
from typing import Final

import numpy as np
import polars as pl

from forecast.config import DataConfig
from forecast.data.time.frequency import (
    DAY,
    HOUR,
    MINUTE,
    WEEKDAYS,
    BoolArray,
    Frequency,
    IntArray,
    Unit,
    business_days,
    clock,
)
from forecast.data.time.grid import Grid, mode, month_day
from forecast.errors import ConfigError, DataError


def check_settings(data: DataConfig) -> None:
    """Raise ConfigError for a frequency or a time zone that does not exist."""
    if data.freq is not None:
        Frequency.parse(data.freq, data.weekmask)
    elif data.weekmask is not None:
        business_days(data.weekmask)
    if data.time_zone is not None:
        try:
            pl.Series([], dtype=pl.Datetime("us")).dt.replace_time_zone(data.time_zone)
        except pl.exceptions.ComputeError:
            close = difflib.get_close_matches(data.time_zone, sorted(zoneinfo.available_timezones()), n=1)
            hint = f"did you mean {close[0]}?" if close else "use an IANA name, such as Europe/Paris"
            raise ConfigError(f"data.time_zone: unknown time zone {data.time_zone!r}; {hint}") from None


# Share of steps between rows that must fit an inferred frequency.
_FIT: Final = 0.95


def infer_frequency(
    series: IntArray, timestamp: pl.Series, time_zone: str | None, week: tuple[int, ...] = WEEKDAYS
) -> Frequency:
    """Return the frequency of rows in any order, from the steps between neighbours within a series.

    Daily rows have the frequency of business days, those of `week`, if none is on another day although a series crosses
    a weekend; rows on the first or last business day of a month have that of business months. Raises DataError, with
    the steps, if they do not agree on a frequency.
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
    common = mode(step)
    if common < 23 * HOUR:
        if _share(step % common == 0) < _FIT or common % MINUTE:
            raise _ambiguous(step)
        return Frequency(common // HOUR, "h") if common % HOUR == 0 else Frequency(common // MINUTE, "m")

    local_clock, before = pairs["local"].to_numpy(), pairs["local_before"].to_numpy()
    days, days_before = local_clock // DAY, before // DAY
    step_days = days - days_before
    common = mode(step_days)
    # A time that the clock skips on some day is an hour later there.
    time = rows["local"].to_numpy() % DAY
    if common >= 1 and _share(time == mode(time)) >= _FIT:
        if common >= 28 and _share(step_days % 7 == 0) < _FIT:
            grid = Grid.through(rows["local"].to_numpy(), Frequency(1, "mo"), None)
            step_months = month_day(local_clock)[0] - month_day(before)[0]
            months = max(1, mode(step_months))
            regular = step_months % months == 0
            if _share(grid.place(local_clock)[1] & regular) >= _FIT:
                units: tuple[tuple[int, Unit], ...] = ((12, "y"), (3, "q"), (1, "mo"))
                return next(Frequency(months // size, unit) for size, unit in units if months % size == 0)
            business = Frequency(1, "bm", week)
            grid = Grid.through(rows["local"].to_numpy(), business, None)
            if _share(grid.place(local_clock)[1] & regular) >= _FIT:
                return replace(business, n=months)
        if common == 1:
            weekdays = np.unique((rows["local"].to_numpy() // DAY + 3) % 7)
            crossed = (days + 3) // 7 != (days_before + 3) // 7
            return Frequency(1, "bd", week) if crossed.any() and np.isin(weekdays, week).all() else Frequency(1, "d")
        if _share(step_days % common == 0) >= _FIT:
            return Frequency(common // 7, "w") if common % 7 == 0 else Frequency(common, "d")
        if common in (28, 35) and _share(np.isin(step_days, (28, 35))) >= _FIT:
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
