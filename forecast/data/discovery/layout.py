"""The layout of a file: which columns are time, series and target, how they are written, and how to read them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from forecast.config import DataConfig
from forecast.config import load as validated
from forecast.data.discovery.arrange import arrange
from forecast.data.discovery.frequency import Steps, default_horizon, find_steps
from forecast.data.discovery.normalise import Roles, series_numbers
from forecast.data.discovery.profile import Column, profile
from forecast.data.discovery.reading import RawTable, read_raw
from forecast.data.discovery.roles import find_series, find_target, find_time
from forecast.data.discovery.signs import find_sign
from forecast.errors import DataError, listing


class Choice(NamedTuple):
    """What was taken for one role, and why."""

    role: str
    value: str
    reason: str
    setting: str
    """The setting that changes it."""


@dataclass(frozen=True)
class Layout:
    """What a file holds, and how to read it."""

    description: str
    """Kind of file and format."""
    data: DataConfig
    """Settings that read the file, or `frame` if the file can't be read with any; without a path."""
    frame: pl.DataFrame
    """The table with times and numbers parsed, and one column for the series."""
    obstacles: tuple[str, ...]
    """Reasons why no settings read the file itself; empty if `data` reads it."""
    horizon: int
    """Default horizon, in steps."""
    choices: tuple[Choice, ...]
    others: tuple[str, ...]
    """Columns that have no role."""
    n_series: int
    steps: int
    """Steps of a typical series."""


def discover(path: str, data: DataConfig) -> Layout:
    """Return the layout of a CSV, Excel, Parquet or Arrow file. Settings in `data` take precedence over the evidence.

    Raises DataError for a file without a panel, or with two readings that are as likely: the message names both, and
    the setting that decides.
    """
    raw = read_raw(path, data.separator)
    if not raw.frame.height:
        raise DataError(f"data.path={path}: a header without rows; give a file with both")
    return layout_of(raw, data)


def layout_of(raw: RawTable, data: DataConfig) -> Layout:
    """Return the layout of a table, as `discover`."""
    raw = arrange(raw, data)
    columns = profile(raw.frame, data)
    time, why_time = find_time(columns, data)
    key, why_series = find_series(columns, time, data)
    covariates = (*data.past_covariates, *data.known_covariates, *data.static_covariates)
    targets = find_target(columns, time, key, data, covariates)
    sign, why_sign = find_sign(columns, targets.names, raw.separator, data)
    series = series_numbers(columns, key, raw.frame.height)
    steps = find_steps(time, columns[time].values, columns[time].times, series, data)
    roles = Roles(columns, time, key, targets, steps, sign)
    obstacles = (*raw.obstacles, *roles.obstacles(covariates))
    if obstacles:
        frame, update = roles.normalise()
    else:
        frame, update = raw.frame, roles.settings() | {"separator": None if raw.separator == "," else raw.separator}
    horizon, why_horizon = default_horizon(steps.frequency, steps.lengths)
    n_series = len(targets.names) if targets.wide else key.n_series
    series_text = "a column per series" if targets.wide else " and ".join(map(repr, key.names)) or "a single one"
    choices = (
        Choice(
            "time", _time_text(time, steps), why_time + _why_reading(columns[time], steps), "data.columns.timestamp"
        ),
        Choice(
            "series",
            f"{series_text}, {n_series:,}" if n_series > 1 else series_text,
            why_series,
            "data.columns.series_id",
        ),
        Choice("target", listing(map(repr, targets.names)), targets.reason + why_sign, "data.columns.target"),
        Choice("frequency", str(steps.frequency), steps.reason, "data.freq"),
        Choice("horizon", f"{horizon:,} step{'s' * (horizon > 1)}", why_horizon, "window.horizon"),
    )
    others = tuple(column.name for column in roles.others if not column.is_row_number)
    settings = validated(DataConfig, _merged(data.model_dump(exclude={"path"}), update))
    return Layout(
        raw.description, settings, frame, obstacles, horizon, choices, others, n_series, int(np.median(steps.lengths))
    )


def _merged(settings: dict[str, Any], update: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with those of discovery, which keeps configured texts for missing values."""
    nulls = dict.fromkeys([*settings["null_values"], *update.get("null_values", ())])
    return {**settings, **update, "null_values": tuple(nulls), "columns": {**update["columns"]}}


def _time_text(name: str, steps: Steps) -> str:
    times = steps.reading.values.drop_nulls()
    form = f", {steps.reading.form!r}" if steps.reading.form else ""
    first, last = (re.sub(r" 00:00:00$|\.\d+", "", str(moment)) for moment in (times.min(), times.max()))
    return f"{name!r}, {first} to {last}{form}"


def _why_reading(column: Column, steps: Steps) -> str:
    n_unread = steps.reading.unread
    unread = f"; {n_unread:,} value{'s' * (n_unread > 1)} can't be read: rejects" if n_unread else ""
    if len(column.times) < 2:
        return unread
    forms = listing(repr(reading.form) for reading in column.times)
    return f"; {forms} read it, and this one fills its steps best{unread}"
