"""Data sets of gluonts: files with a line of JSON per series, which holds its start and all of its values."""

import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from forecast.config import DataConfig
from forecast.data.sources.columns import possible_names
from forecast.data.sources.frames import UNREADABLE, spool, unreadable
from forecast.data.sources.storage import Location
from forecast.data.time.frequency import Frequency, clock
from forecast.data.time.grid import Grid
from forecast.data.time.inference import check_settings
from forecast.errors import ConfigError, DataError, listing
from forecast.names import REASON, SERIES_ID, TARGET, TIMESTAMP

if TYPE_CHECKING:
    import pyarrow as pa

_LINES: Final = re.compile(r"\.(json|jsonl)(\.gz)?$", re.IGNORECASE)
# Fields with covariates: one with n covariates makes columns FIELD_0 to FIELD_(n - 1). Other fields are not read.
_CATEGORIES: Final = "feat_static_cat"
_NUMBERS: Final = "feat_static_real"
_KNOWN: Final = "feat_dynamic_real"
_PAST: Final = "past_feat_dynamic_real"

_Values = npt.NDArray[np.float64]

# Approximate number of rows in memory at a time.
_BLOCK: Final = 1 << 20


@dataclass(frozen=True)
class Unread:
    """Unreadable lines and counts."""

    rejects: pl.DataFrame
    """series_id, reason: a row for each unreadable line."""
    n_lines: int
    """Number of all lines."""
    n_series: int
    """Number of series without any readable line."""


def is_lines(path: str | None) -> bool:
    """Return whether a path names files with lines of JSON."""
    return path is not None and _LINES.search(path) is not None


def read_lines(path: str, data: DataConfig) -> tuple[pl.LazyFrame, Unread]:
    """Return the rows of the series in the files at a path, and their unreadable lines.

    Column names follow `data`, or gluonts (item_id, timestamp, target); those of covariates are field and number. A
    series starts with the period that contains `start`, in steps of data.freq. Raises ConfigError
    without data.freq, DataError if no line can be read.
    """
    location = Location.of(path, f"data.path={path}")
    check_settings(data)
    if data.freq is None:
        raise ConfigError(
            f"data.freq: missing; {location.label} says when series start, not their step: give data.freq=1h"
        )
    if data.layout == "wide":
        raise ConfigError(f"data.layout=wide: {location.label} has a line per series; leave it out")
    reader = _Reader(location)
    first_series = next(series := iter(reader), None)
    if first_series is None:
        problem = f"none of {reader.n_lines:,} lines can be read ({listing(dict(reader.faults).values())})"
        raise DataError(
            f"{location.label}: {problem if reader.faults else 'no line'}; a line of gluonts is "
            '{"item_id": "a", "start": "2024-01-01", "target": [1, 2, 3]}'
        )
    table = _Table(data)
    schema = table.of([first_series]).schema

    def batches() -> "Iterator[pa.RecordBatch]":
        pending, steps = [first_series], first_series.steps
        for item in series:
            pending.append(item)
            steps += item.steps
            if steps >= _BLOCK:
                yield from table.of(pending).to_batches()
                pending, steps = [], 0
        if pending:
            yield from table.of(pending).to_batches()

    rows = spool(batches(), schema)
    rejects = pl.DataFrame(reader.faults, schema={SERIES_ID: pl.String, REASON: pl.String}, orient="row")
    return rows, Unread(rejects, reader.n_lines, len({name for name, _ in reader.faults} - reader.read))


@dataclass(frozen=True)
class _Series:
    """The series of a line."""

    series_id: str
    start: datetime
    target: _Values
    static: Mapping[str, Any]
    dynamic: Mapping[str, _Values]

    @property
    def steps(self) -> int:
        """Number of steps with any value: covariates may reach further than the target."""
        return max(len(self.target), *map(len, self.dynamic.values()), 0)


class _Reader:
    """Yields the series of readable lines and collects the faults of the others."""

    def __init__(self, location: Location) -> None:
        self._location = location
        self.faults: list[tuple[str, str]] = []
        """Series and reason of each line that can't be read."""
        self.read: set[str] = set()
        """Series of the readable lines."""
        self.n_lines = 0

    def __iter__(self) -> Iterator[_Series]:
        columns: set[str] | None = None
        for number, line in self._lines():
            self.n_lines += 1
            name = number
            try:
                entry = _entry(line)
                name = number if entry.get("item_id") is None else str(entry["item_id"])
                series = _series(entry, name)
                covariates = {*series.static, *series.dynamic}
                columns = covariates if columns is None else columns
                _check(covariates == columns, "has other covariates than the first line")
            except _Fault as fault:
                self.faults.append((name, str(fault)))
            else:
                self.read.add(name)
                yield series

    def _lines(self) -> Iterator[tuple[str, bytes]]:
        """Yield the lines that are not empty, with their number: FILE:NUMBER where there are several files."""
        _, files = self._location.find(_LINES)
        for file in files:
            prefix = f"{PurePath(file.address).name}:" if len(files) > 1 else "line "
            try:
                for number, line in enumerate(io.BufferedReader(self._location.open(file.address)), start=1):
                    if line.strip():
                        yield f"{prefix}{number}", line
            except UNREADABLE as error:
                raise unreadable(error, f"{self._location.label}: {file.address}") from error


class _Fault(Exception):
    """Why a line can't be read."""


def _check(holds: bool, fault: str) -> None:
    if not holds:
        raise _Fault(fault)


def _entry(line: bytes) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError:
        raise _Fault("line is not JSON") from None
    _check(isinstance(entry, dict), "line is not an object with start and target")
    result: dict[str, Any] = entry
    return result


def _series(entry: Mapping[str, Any], series_id: str) -> _Series:
    """Return the series of a line. Raises _Fault."""
    (target,) = _numbers([entry.get("target")], "target")
    _check(len(target) > 0, "target is empty")
    static: dict[str, Any] = {}
    for name in (_CATEGORIES, _NUMBERS):
        (values,) = _numbers([entry.get(name) or []], name)
        static |= {f"{name}_{k}": f"{x:.0f}" if name == _CATEGORIES else x for k, x in enumerate(values.tolist())}
    dynamic: dict[str, _Values] = {}
    for name in (_KNOWN, _PAST):
        covariates = _numbers(entry.get(name) or [], name)
        fits = all(len(row) == len(target) if name == _PAST else len(row) >= len(target) for row in covariates)
        _check(fits, f"{name} has not the length of target")
        dynamic |= {f"{name}_{k}": row for k, row in enumerate(covariates)}
    return _Series(series_id, _start(entry.get("start")), target, static, dynamic)


def _numbers(rows: Any, name: str) -> list[_Values]:
    """Return lists of numbers as arrays, with NaN for "NaN" and null."""
    _check(isinstance(rows, list) and all(isinstance(row, list) for row in rows), f"{name} is not a list of numbers")
    try:
        values = [np.asarray(row, dtype=np.float64) for row in rows]
    except (ValueError, TypeError, OverflowError):
        raise _Fault(f"{name} is not a list of numbers") from None
    _check(all(row.ndim == 1 for row in values), f"{name} has more than one dimension")
    return values


def _start(text: Any) -> datetime:
    """Return the start time in a text: ISO 8601, or a period of pandas such as 2024-01 or 2024-01-01/2024-01-07."""
    text = str(text).partition("/")[0].strip()
    padded = text + {4: "-01-01", 7: "-01"}.get(len(text), "")
    try:
        start = datetime.fromisoformat(padded)
    except ValueError:
        raise _Fault("start is not ISO 8601") from None
    _check(start.tzinfo is None, "start has an offset from UTC")
    return start


class _Table:
    """Converts series into rows."""

    def __init__(self, data: DataConfig) -> None:
        self._series_id, self._timestamp, self._target = (
            possible_names(data, role)[-1 if role == SERIES_ID else 0] for role in (SERIES_ID, TIMESTAMP, TARGET)
        )
        frequency = Frequency.parse(data.freq or "", data.weekmask)
        unit = replace(frequency, n=1)
        # As in pandas, any time within a period denotes that period.
        phases: dict[str, tuple[int, ...]] = {"bd": (0, 0), "bm": (0, 31, 0)}
        phase = phases.get(unit.unit)
        self._grid = Grid.natural(unit, None) if phase is None else Grid(unit, phase, None)
        self._periods = Grid.natural(Frequency(1, "mo"), None) if unit.unit == "bm" else self._grid
        self._stride = frequency.n

    def of(self, series: Sequence[_Series]) -> "pa.Table":
        """Return a row for each step of some series."""
        steps = np.array([item.steps for item in series], dtype=np.int64)
        start = clock(pl.Series([item.start for item in series], dtype=pl.Datetime("us")), self._grid.frequency, None)
        step = np.arange(steps.sum()) - np.repeat(np.cumsum(steps) - steps, steps)
        index = np.repeat(self._periods.floor_of(start.to_numpy()), steps) + self._stride * step

        def column(values: Iterable[_Values]) -> pl.Series:
            rows = [
                np.pad(row, (0, n - len(row)), constant_values=np.nan) for row, n in zip(values, steps, strict=True)
            ]
            return pl.Series(np.concatenate(rows)).fill_nan(None)

        def repeated(values: Sequence[Any]) -> pl.Series:
            return pl.Series(values).gather(np.repeat(np.arange(len(series)), steps))

        columns = {
            self._series_id: repeated([item.series_id for item in series]),
            self._timestamp: self._grid.timestamps(index),
            self._target: column(item.target for item in series),
            **{name: column(item.dynamic[name] for item in series) for name in series[0].dynamic},
            **{name: repeated([item.static[name] for item in series]) for name in series[0].static},
        }
        return pl.DataFrame(columns).to_arrow()
