"""Effects of the calendar: weekdays, ends of months, days in a month, holidays."""

import numpy as np
import numpy.typing as npt

from forecast.synthetic.components import (
    Array,
    Integers,
    Layout,
    chance,
    express,
    log_uniform,
    noise,
    seasonality,
    standardise,
    uniform,
    walk,
)

SEASONS = (5, 7, 12, 24, 48, 52, 96)
_DAYS = {5: 1.4, 7: 1.0, 12: 30.436875, 52: 7.0}  # days of a step; steps of less than a day: 1 / season


def calendar(random: np.random.Generator, layout: Layout) -> Array:
    """Draw a slow level with the marks of a civil calendar, [series, time]; days start at random dates.

    Weekdays have a level each, week-ends are low or high, the last or first days of a month are a peak, eight dates
    of the year are holidays with some days before and after, and months count by their working days.
    """
    n = len(layout)
    dates = dates_of(random, layout)
    weekday = (dates.astype(np.int64) + 3) % 7
    weekly = np.take_along_axis(random.standard_normal((n, 7)), weekday, 1) * uniform(random, 0, 0.5, n)
    weekly = weekly - (weekday >= 5) * random.normal(0.8, 0.8, (n, 1))
    within, year_day, length = month_days(dates)
    monthly = (layout.season == 12)[:, None]
    to_end = length - 1 - within
    late = chance(random, 0.5, n)
    month = np.exp(-np.where(late, to_end, within) / log_uniform(random, 0.3, 3, n)) * random.normal(0, 1.2, (n, 1))
    effect = np.where(monthly, 0.35 * (length - 30.4), weekly + month * chance(random, 0.6, n))
    effect = effect + holidays(random, year_day, layout) * chance(random, 0.7, n)
    level = standardise(walk(random, layout), layout) * log_uniform(random, 0.1, 1.5, n)
    pattern = seasonality(random, layout) * log_uniform(random, 0.3, 2, n)
    daily = np.isin(layout.season, (24, 48, 96))[:, None]
    pattern = np.where(daily, pattern * (1 + np.tanh(0.4 * effect)), pattern * 0.5)
    error = noise(random, n, layout.n_steps) * log_uniform(random, 0.03, 0.5, n)
    return express(random, standardise(level + pattern + effect + error, layout), layout, multiplicative=0.6)


def dates_of(random: np.random.Generator, layout: Layout) -> npt.NDArray[np.datetime64]:
    """The date of each step, days [series, time]; a month's is its first day."""
    start = random.integers(7_300, 18_250, (len(layout), 1))  # 1990 to 2019
    days = np.array([_DAYS.get(season, 1 / season) for season in layout.season.tolist()])[:, None]
    dates: npt.NDArray[np.datetime64] = (
        start + np.floor((layout.age + random.integers(0, 2000, (len(layout), 1))) * days)
    ).astype("M8[D]")
    rows = layout.season == 5  # five working days: Monday to Friday
    week, day = np.divmod(layout.age[rows] + start[rows], 5)
    dates[rows] = (week * 7 + day + 4).astype("M8[D]")
    months = layout.season == 12
    dates[months] = (layout.age[months] + start[months] // 30).astype("M8[M]").astype("M8[D]")
    return dates


def month_days(dates: npt.NDArray[np.datetime64]) -> tuple[Integers, Integers, Integers]:
    """Days since the start of the month and of the year, and the days of the month, [series, time] each."""
    month = dates.astype("M8[M]")
    first_day = month.astype("M8[D]")
    length = ((month + 1).astype("M8[D]") - first_day).astype(np.int64)
    year_day = (dates - dates.astype("M8[Y]").astype("M8[D]")).astype(np.int64)
    return (dates - first_day).astype(np.int64), year_day, length


def holidays(random: np.random.Generator, year_day: Integers, layout: Layout) -> Array:
    """Draw the effect of eight dates a year with a few days around them, [series, time]."""
    n, effect = len(layout), np.zeros(year_day.shape)
    days_per_step = np.where(layout.season == 52, 7, np.where(layout.season == 12, 30, 1))[:, None]
    for _ in range(8):
        day, before, after = (
            random.integers(0, 365, (n, 1)),
            random.integers(0, 4, (n, 1)),
            random.integers(1, 4, (n, 1)),
        )
        inside = (year_day >= day - before * days_per_step) & (year_day < day + after * days_per_step)
        effect = np.where(inside, random.normal(-0.7, 1.5, (n, 1)), effect)
    return effect
