"""Data sets of gluonts: files with a line of JSON per series, which has its start and all of its values."""

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
from forecast.data.sources.columns import possible
from forecast.data.sources.frames import UNREADABLE, spool, unreadable
from forecast.data.sources.storage import Place
from forecast.data.time.frequency import Frequency, clock
from forecast.data.time.grid import Grid
from forecast.data.time.inference import check_settings
from forecast.errors import ConfigError, DataError, listing
from forecast.names import REASON, SERIES_ID, TARGET, TIMESTAMP

if TYPE_CHECKING:
    import pyarrow as pa

_LINES: Final = re.compile(r"\.(json|jsonl)(\.gz)?$", re.IGNORECASE)
# Fields with covariates: one of n makes n columns, FIELD_0 and on. Others are not read.
_CATEGORIES: Final = "feat_static_cat"
_NUMBERS: Final = "feat_static_real"
_KNOWN: Final = "feat_dynamic_real"
_PAST: Final = "past_feat_dynamic_real"

_Values = npt.NDArray[np.float64]

# Rows that are in memory at a time, about.
_BLOCK: Final = 1 << 20


@dataclass(frozen=True)
class Unread:
    """Lines that could not be read."""

    rejects: pl.DataFrame
    """series_id, reason: a row for each."""
    n_lines: int
    """All lines, with those that could be read."""
    n_series: int
    """Series that no other line has."""


def is_lines(path: str | None) -> bool:
    """Return whether a path names files with lines of JSON."""
    return path is not None and _LINES.search(path) is not None


def read_lines(path: str, data: DataConfig) -> tuple[pl.LazyFrame, Unread]:
    """Return the rows of the series in the files at a path, and which of their lines can't be read.

    The columns are called as `data` says, or as in gluonts (item_id, timestamp, target); those of covariates by their
    field and number. Series start with the period that `start` lies in, and go on by data.freq. Raises ConfigError
    without data.freq, DataError if no line can be read.
    """
    place = Place.of(path, f"data.path={path}")
    check_settings(data)
    if data.freq is None:
        raise ConfigError(f"data.freq: missing; {place.what} says when series start, not their step: give data.freq=1h")
    if data.layout == "wide":
        raise ConfigError(f"data.layout=wide: {place.what} has a line per series; leave it out")
    reader = _Reader(place)
    first = next(series := iter(reader), None)
    if first is None:
        shown = f"none of {reader.n_lines:,} lines can be read ({listing(dict(reader.faults).values())})"
        raise DataError(
            f"{place.what}: {shown if reader.faults else 'no line'}; a line of gluonts is "
            '{"item_id": "a", "start": "2024-01-01", "target": [1, 2, 3]}'
        )
    table = _Table(data)
    schema = table.of([first]).schema

    def batches() -> "Iterator[pa.RecordBatch]":
        waiting, steps = [first], first.steps
        for one in series:
            waiting.append(one)
            steps += one.steps
            if steps >= _BLOCK:
                yield from table.of(waiting).to_batches()
                waiting, steps = [], 0
        if waiting:
            yield from table.of(waiting).to_batches()

    rows = spool(batches(), schema)
    rejects = pl.DataFrame(reader.faults, schema={SERIES_ID: pl.String, REASON: pl.String}, orient="row")
    return rows, Unread(rejects, reader.n_lines, len({name for name, _ in reader.faults} - reader.read))


@dataclass(frozen=True)
class _Series:
    """What a line says."""

    series_id: str
    start: datetime
    target: _Values
    static: Mapping[str, Any]
    dynamic: Mapping[str, _Values]

    @property
    def steps(self) -> int:
        """Steps with a value: covariates may reach further than the target."""
        return max(len(self.target), *map(len, self.dynamic.values()), 0)


class _Reader:
    """Yields the series of all lines that can be read, and keeps which can't."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self.faults: list[tuple[str, str]] = []
        """Series and reason of each line that can't be read."""
        self.read: set[str] = set()
        """Series of the lines that can."""
        self.n_lines = 0

    def __iter__(self) -> Iterator[_Series]:
        columns: set[str] | None = None
        for number, line in self._lines():
            self.n_lines += 1
            named = number
            try:
                entry = _entry(line)
                named = number if entry.get("item_id") is None else str(entry["item_id"])
                found = _series(entry, named)
                own = {*found.static, *found.dynamic}
                columns = own if columns is None else columns
                _check(own == columns, "has other covariates than the first line")
            except _Fault as fault:
                self.faults.append((named, str(fault)))
            else:
                self.read.add(named)
                yield found

    def _lines(self) -> Iterator[tuple[str, bytes]]:
        """Yield the lines that are not empty, with their number: FILE:NUMBER where there are several files."""
        _, files = self._place.find(_LINES)
        for file in files:
            prefix = f"{PurePath(file.address).name}:" if len(files) > 1 else "line "
            try:
                for number, line in enumerate(io.BufferedReader(self._place.open(file.address)), start=1):
                    if line.strip():
                        yield f"{prefix}{number}", line
            except UNREADABLE as error:
                raise unreadable(error, f"{self._place.what}: {file.address}") from error


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
    found: dict[str, Any] = entry
    return found


def _series(entry: Mapping[str, Any], series_id: str) -> _Series:
    """Return what a line says. Raises _Fault."""
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
    """Return lists of numbers, in which "NaN" and null are missing ones."""
    _check(isinstance(rows, list) and all(isinstance(row, list) for row in rows), f"{name} is not a list of numbers")
    try:
        found = [np.asarray(row, dtype=np.float64) for row in rows]
    except (ValueError, TypeError, OverflowError):
        raise _Fault(f"{name} is not a list of numbers") from None
    _check(all(row.ndim == 1 for row in found), f"{name} has more than one dimension")
    return found


def _start(text: Any) -> datetime:
    """Return the time that text names: ISO 8601, or a period of pandas such as 2024-01 or 2024-01-01/2024-01-07."""
    text = str(text).partition("/")[0].strip()
    padded = text + {4: "-01-01", 7: "-01"}.get(len(text), "")
    try:
        start = datetime.fromisoformat(padded)
    except ValueError:
        raise _Fault("start is not ISO 8601") from None
    _check(start.tzinfo is None, "start has an offset from UTC")
    return start


class _Table:
    """Makes rows of series."""

    def __init__(self, data: DataConfig) -> None:
        self._series_id, self._timestamp, self._target = (
            possible(data, role)[-1 if role == SERIES_ID else 0] for role in (SERIES_ID, TIMESTAMP, TARGET)
        )
        frequency = Frequency.parse(data.freq or "", data.weekmask)
        unit = replace(frequency, n=1)
        # As with periods of pandas, any time within one means it.
        phases: dict[str, tuple[int, ...]] = {"bd": (0, 0), "bm": (0, 31, 0)}
        phase = phases.get(unit.unit)
        self._grid = Grid.natural(unit, None) if phase is None else Grid(unit, phase, None)
        self._periods = Grid.natural(Frequency(1, "mo"), None) if unit.unit == "bm" else self._grid
        self._stride = frequency.n

    def of(self, series: Sequence[_Series]) -> "pa.Table":
        """Return a row for each step of some series."""
        steps = np.array([one.steps for one in series], dtype=np.int64)
        start = clock(pl.Series([one.start for one in series], dtype=pl.Datetime("us")), self._grid.frequency, None)
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
            self._series_id: repeated([one.series_id for one in series]),
            self._timestamp: self._grid.timestamps(index),
            self._target: column(one.target for one in series),
            **{name: column(one.dynamic[name] for one in series) for name in series[0].dynamic},
            **{name: repeated([one.static[name] for one in series]) for name in series[0].static},
        }
        return pl.DataFrame(columns).to_arrow()
