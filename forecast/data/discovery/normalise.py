"""Settings that read a file, or else the table in a form that needs none."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import polars as pl

from forecast.data.discovery.frequency import Steps
from forecast.data.discovery.numbers import as_numbers
from forecast.data.discovery.profile import Column
from forecast.data.discovery.roles import SeriesKey, Targets
from forecast.data.time.frequency import IntArray
from forecast.errors import listing
from forecast.names import SERIES_ID, TIMESTAMP

_JOINED: Final = " / "


@dataclass(frozen=True)
class Roles:
    """The columns of a table with their roles and notation."""

    columns: Mapping[str, Column]
    time: str
    key: SeriesKey
    targets: Targets
    steps: Steps
    sign: str | None
    """The decimal sign; None if no number of the targets has a mark."""

    @property
    def others(self) -> list[Column]:
        """Columns without a role."""
        roles = {self.time, *self.key.names, *self.targets.names}
        return [column for column in self.columns.values() if column.name not in roles]

    @property
    def placeholders(self) -> tuple[str, ...]:
        """Texts that stand for a missing target."""
        numbers = [self.columns[name].numbers for name in self.targets.names]
        return tuple(sorted({text for reading in numbers if reading for text in reading.placeholders}))

    def obstacles(self, covariates: Sequence[str]) -> list[str]:
        """Return the reasons why the ordinary reader can't take the columns as they are."""
        reasons = []
        if len(self.key.names) > 1:
            reasons.append(f"{len(self.key.names)} columns name a series")
        others = [column.name for column in self.others if column.name not in covariates]
        if not self.key.names and others:
            reasons.append(f"it has other columns ({listing(map(repr, others))}) and none that names the series")
        if any(reading.units for name in self.targets.names if (reading := self.columns[name].numbers)):
            reasons.append("its numbers have signs of a currency or of percent")
        if not self.columns[self.time].has_name:
            reasons.append("the column of times has no name")
        return reasons

    def settings(self) -> dict[str, Any]:
        """Return the settings that read the file."""
        wide = not self.key.names
        readings = [self.columns[name].numbers for name in self.targets.names]
        notation = any(reading.commas or reading.placeholders for reading in readings if reading)
        names = {"timestamp": self.time} if wide else {"timestamp": self.time, "series_id": self.key.names[0]}
        return {
            "layout": "wide" if wide else "long",
            "columns": names if wide else {**names, "target": self.targets.names[0]},
            "freq": str(self.steps.frequency),
            "timestamp_format": self.steps.reading.form,
            "null_values": self.placeholders,
            "decimal": self.sign if notation else None,
        }

    def normalise(self) -> tuple[pl.DataFrame, dict[str, Any]]:
        """Return the table with times and numbers parsed and one column for the series, and the settings that read it.

        Columns without a role stay as they are.
        """
        time = self.time if self.columns[self.time].has_name else _free(TIMESTAMP, self.columns)
        parts = [self.steps.reading.values.alias(time)]
        settings: dict[str, Any] = {
            "layout": "wide" if self.targets.wide else "long",
            "freq": str(self.steps.frequency),
        }
        columns = {"timestamp": time}
        if not self.targets.wide:
            name, series = self._series()
            parts = [series.alias(name), *parts]
            columns |= {"series_id": name, "target": self.targets.names[0]}
        parts += [self._numbers(self.columns[name]) for name in self.targets.names]
        if not self.targets.wide:
            parts += [column.values for column in self.others if not column.is_row_number]
        return pl.DataFrame(parts), {**settings, "columns": columns, "timestamp_format": None, "separator": None}

    def _series(self) -> tuple[str, pl.Series]:
        """Return the name of the column of series, and its values."""
        names = self.key.names
        height = len(self.columns[self.time].values)
        if not names:
            return _free(SERIES_ID, self.columns), pl.Series([self.targets.names[0]] * height, dtype=pl.String)
        texts = pl.DataFrame([self.columns[name].values.cast(pl.String).str.strip_chars() for name in names])
        name = names[0] if len(names) == 1 else _free(SERIES_ID, self.columns)
        return name, texts.select(pl.concat_str(pl.all(), separator=_JOINED).alias(name)).to_series()

    def _numbers(self, column: Column) -> pl.Series:
        if column.numbers is None:
            return column.values
        return as_numbers(column.values, self.sign or ".", self.placeholders)


def series_numbers(columns: Mapping[str, Column], key: SeriesKey, height: int) -> IntArray:
    """Return the number of the series of each row, [rows]; -1 where a column of the key has no value."""
    if not key.names:
        return np.zeros(height, dtype=np.int64)
    frame = pl.DataFrame([columns[name].values for name in key.names])
    missing = frame.select(pl.any_horizontal(pl.all().is_null())).to_series()
    number = frame.select(pl.struct(pl.all()).rank("dense").cast(pl.Int64) - 1).to_series()
    result: IntArray = number.set(missing, -1).fill_null(-1).to_numpy()
    return result


def _free(name: str, names: Collection[str]) -> str:
    """Return a name of a column that no other has."""
    while name in names:
        name += "_"
    return name
