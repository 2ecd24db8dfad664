"""Calendar features: known covariates that depend on the timestamp only."""

import math

import numpy as np
import numpy.typing as npt

from forecast.data.panel import FloatArray, IntArray
from forecast.frequency import DAY, Grid


def calendar_features(grid: Grid, first_index: int, last_index: int) -> tuple[tuple[str, ...], FloatArray]:
    """Return names and values [features, T] of the calendar from one grid index to another, both included.

    Waves of the time of day (steps below a day), a column for each weekday (days and below) and waves of the time of
    year (quarters and below), in the local time of the grid; nothing for years.
    """
    frequency = grid.frequency
    local = grid.timestamps(np.arange(first_index, last_index + 1)).dt.replace_time_zone(None)
    features: dict[str, npt.NDArray[np.floating]] = {}
    if frequency.base == "month":
        steps = 12 // math.gcd(12, frequency.size)
        features |= _waves("year", (local.dt.month().to_numpy() - 1) / 12, min(2, steps // 2))
    else:
        if frequency.sub_daily:
            features |= _waves("day", local.to_physical().to_numpy() % DAY / DAY, min(3, DAY // frequency.size // 2))
        if frequency.sub_daily or frequency.size % 7:
            weekday = local.dt.weekday().to_numpy()
            features |= {f"weekday {day}": weekday == day for day in range(1, 6 if frequency.unit == "bd" else 8)}
        days_in_year = 365.0 + local.dt.is_leap_year().to_numpy()
        features |= _waves("year", (local.dt.ordinal_day().to_numpy() - 1) / days_in_year, 2)
    values = np.empty((len(features), len(local)), dtype=np.float32)
    for row, feature in zip(values, features.values(), strict=True):
        row[:] = feature
    return tuple(features), values


def clock_shift(grid: Grid, first_index: int, last_index: int) -> IntArray:
    """Return by how many steps the local clock is ahead of where it stood at `first_index`, [T].

    0, 1 or -1 hour in most time zones.
    """
    if grid.time_zone is None or not grid.frequency.sub_daily:
        return np.zeros(last_index - first_index + 1, dtype=np.int64)
    instants = grid.timestamps(np.arange(first_index, last_index + 1))
    ahead = (instants.dt.replace_time_zone(None).to_physical() - instants.to_physical()).to_numpy()
    shift: IntArray = (ahead - ahead[0]) // grid.frequency.size
    return shift


def _waves(name: str, cycle: npt.NDArray[np.floating], count: int) -> dict[str, npt.NDArray[np.floating]]:
    """Return sine and cosine of the first `count` harmonics of a position in [0, 1) within a cycle."""
    waves: dict[str, npt.NDArray[np.floating]] = {}
    for harmonic in range(1, count + 1):
        angle = 2 * math.pi * harmonic * cycle
        waves |= {f"{name} sin {harmonic}": np.sin(angle), f"{name} cos {harmonic}": np.cos(angle)}
    return waves
