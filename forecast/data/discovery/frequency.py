"""Frequency of the rows, the reading of times that fits it best, and a default horizon."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl

from forecast.config import DataConfig
from forecast.data.discovery.dates import TimeReading
from forecast.data.ingest.timestamps import longest_series
from forecast.data.time.frequency import Frequency, IntArray, Unit, business_days, clock
from forecast.data.time.grid import Grid
from forecast.data.time.inference import infer_frequency
from forecast.errors import DataError

# Two readings of times are told apart if one fills its steps this many times better.
_CLEARLY: Final = 2.0
_HORIZONS: Final[dict[Unit, int]] = {"d": 14, "bd": 10, "w": 13, "mo": 12, "bm": 12, "q": 8, "y": 5}
_LONGEST_DAY: Final = 288
_LEAST_HORIZONS: Final = 4


@dataclass(frozen=True)
class Steps:
    """The steps of series in one reading of their times."""

    reading: TimeReading
    frequency: Frequency
    fill_share: float
    """Share of the steps from the first to the last row of a series that have a row."""
    reason: str
    lengths: IntArray
    """Steps from the first to the last row of each series, [S]."""


def find_steps(
    name: str, text: pl.Series, readings: Sequence[TimeReading], series: IntArray, data: DataConfig
) -> Steps:
    """Return the reading of times, and the frequency in it.

    `text` are the values in the file, `series` the number of the series of each row. Of several readings, the one with
    the fewest gaps is taken. Raises DataError if two are as good, or the rows have no regular steps.
    """
    steps: list[Steps] = []
    failure = None
    for reading in readings:
        try:
            steps.append(_steps(reading, series, data))
        except DataError as error:
            failure = failure or error
    if not steps:
        assert failure is not None
        raise DataError(
            f"column {name!r}: {failure}. If a row is a single sale or event, put rows together: data.freq=1d "
            "data.aggregate=sum (or mean, last)"
        ) from None
    best, *others = sorted(steps, key=lambda step: -step.fill_share)
    if others and best.fill_share < _CLEARLY * others[0].fill_share:
        raise DataError(_ambiguity(name, text, (best, others[0])))
    return best


def _steps(reading: TimeReading, series: IntArray, data: DataConfig) -> Steps:
    times = reading.values.cast(pl.Datetime("us")) if reading.values.dtype == pl.Date else reading.values
    time_zone = data.time_zone or times.dtype.time_zone  # type: ignore[attr-defined]
    usable = times.is_not_null().to_numpy() & (series >= 0)
    times, series = times.filter(pl.Series(usable)), series[usable]
    if data.freq is None:
        longest = np.isin(series, longest_series(np.bincount(series)))
        week = {} if data.weekmask is None else {"week": business_days(data.weekmask)}
        frequency = infer_frequency(series[longest], times.filter(pl.Series(longest)), time_zone, **week)
    else:
        frequency = Frequency.parse(data.freq, data.weekmask)
    on_clock = clock(times, frequency, time_zone)
    valid = on_clock.is_not_null().to_numpy()
    moments = on_clock.filter(pl.Series(valid)).to_numpy()
    grid = Grid.natural(frequency, time_zone) if data.aggregate else Grid.through(moments, frequency, time_zone)
    rows = pl.DataFrame({"series": series[valid], "step": grid.floor_of(moments)})
    span = pl.col("step").max() - pl.col("step").min() + 1
    spans = rows.group_by("series").agg(pl.col("step").n_unique().alias("rows"), span.alias("steps"))
    fill_share = int(spans["rows"].sum()) / int(spans["steps"].sum())
    reason = "as set" if data.freq else "from the steps between rows"
    reason += f"; {min(fill_share, 0.999):.1%} of the steps have a row" if fill_share < 1 else "; every step has a row"
    return Steps(reading, frequency, fill_share, reason, spans["steps"].to_numpy())


def _ambiguity(name: str, text: pl.Series, steps: tuple[Steps, Steps]) -> str:
    """Return the message for two readings that fit as well."""
    value = next(value for value in text.cast(pl.String).drop_nulls() if value)
    readings = (f"{step.reading.example(value)} ({step.reading.form!r}, steps of {step.frequency})" for step in steps)
    return (
        f"column {name!r}: {value!r} may be {' or '.join(readings)}, and no value or step decides; set "
        f"data.timestamp_format={steps[0].reading.form!r} or data.timestamp_format={steps[1].reading.form!r}"
    )


def default_horizon(frequency: Frequency, lengths: IntArray) -> tuple[int, str]:
    """Return a horizon for series of these `lengths` [S], in steps, and why.

    A day of hours or minutes, two weeks of days, a quarter of weeks, a year of months, two years of quarters, five
    years; at most a quarter of a typical series.
    """
    if frequency.sub_daily:
        season_steps, about = min(frequency.season_length, _LONGEST_DAY), "a day"
    else:
        abouts = {"d": "two weeks", "bd": "two weeks", "w": "a quarter", "q": "two years", "y": "five years"}
        season_steps, about = -(-_HORIZONS[frequency.unit] // frequency.n), abouts.get(frequency.unit, "a year")
    most = max(1, int(np.median(lengths)) // _LEAST_HORIZONS)
    if season_steps <= most:
        return max(1, season_steps), about
    return (
        most,
        f"a quarter of a typical series, which has {int(np.median(lengths)):,} steps ({about} would be {season_steps})",
    )
