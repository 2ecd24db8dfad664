"""The plan that people open: the forecasts of the latest cutoff of a model, as a spreadsheet."""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, Literal

import polars as pl

from forecast.config import ScoreOutput
from forecast.data.files import write_text_atomic
from forecast.data.spreadsheets import SUFFIXES, UNFINISHED, Heading, check_xlsx, local_times, sheet_blocks
from forecast.errors import ConfigError, DataError, listing
from forecast.forecasting_model import ForecastingModel
from forecast.names import (
    CLASS,
    CUTOFF,
    MEAN,
    MODEL_DIGEST,
    MODEL_NAME,
    MODEL_VERSION,
    SERIES_ID,
    SOURCE,
    STEP,
    TIMESTAMP,
    quantile_columns,
)
from forecast.scoring.latest import latest_manifest
from forecast.scoring.manifests import file_name
from forecast.scoring.parts import digest_of
from forecast.scoring.sinks.base import Sink
from forecast.scoring.sinks.objects import ObjectSink

PLANS: Final = "plans"
Layout = Literal["long", "wide"]

_FACTS: Final = (SOURCE, MODEL_NAME, MODEL_VERSION, CUTOFF)
_HEADINGS: Final[Mapping[str, str]] = {
    SERIES_ID: "series",
    TIMESTAMP: "date",
    MEAN: "forecast",
    CLASS: "forecast",
    MODEL_NAME: "model",
    MODEL_VERSION: "version",
}
_VALUE: Final = "value"
_KEY: Final = "gatecast"


class Plan:
    """The table of a plan, for all forecasts of the cutoff and model of the first rows.

    - `long`: a row per series and step: series, date, forecast, low, high, source, model, version, cutoff, step, then
      all other columns. Low and high are the outermost quantiles; their names say which. Samples are left out.
    - `wide`: a row per series and a column per step with one `value`, a column of the forecasts, then source, model,
      version, cutoff and the name of the value.

    Dates have no time of day if all timestamps are at midnight. Raises ConfigError for an unknown value.
    """

    def __init__(self, first: pl.DataFrame, layout: Layout = "long", value: str = MEAN) -> None:
        if value == MEAN and MEAN not in first.columns:
            value = CLASS
        self.layout, self._value = layout, value
        self._times = [name for name in (TIMESTAMP, CUTOFF) if name in first.columns]
        self._is_daily = _at_midnight(first, self._times)
        if layout == "wide":
            _check_value(value, [name for name in first.columns if _is_value(name)])
            self._facts = [name for name in _FACTS if name in first.columns]
            steps = first.filter(pl.col(SERIES_ID) == first[SERIES_ID][0])[TIMESTAMP]
            self._n_steps = len(steps)
            headings = (_HEADINGS.get(name, name) for name in self._facts)
            self.header: list[Heading] = ["series", *self._step_headings(steps), *headings, _VALUE]
        else:
            self._columns = _long_columns(first.columns)
            self.header = list(self._columns.values())

    def rows(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Return the rows of whole series. Raises ConfigError for series with other steps in the wide layout."""
        frame = self._with_dates(frame.sort(SERIES_ID, STEP))
        if self.layout == "long":
            return frame.select(self._columns.keys())
        facts = [pl.col(name).first() for name in self._facts if name != SOURCE]
        sources = [pl.col(SOURCE).unique(maintain_order=True).str.join(", ")] if SOURCE in self._facts else []
        series = frame.group_by(SERIES_ID, maintain_order=True).agg(
            pl.col(self._value).alias("_values"), *sources, *facts
        )
        lengths = series["_values"].list.len().unique()
        if lengths.to_list() != [self._n_steps]:
            raise ConfigError(
                f"the wide layout has a column for each of {self._n_steps:,} steps, but series have "
                f"{listing(lengths.sort().cast(pl.String))}; give the forecasts of one cutoff and model"
            )
        names = [f"_{step}" for step in range(self._n_steps)]
        steps = series["_values"].list.to_struct(fields=names).struct.unnest()
        value = pl.Series(_VALUE, [self._value]).new_from_index(0, series.height)
        return pl.concat(
            [series.select(SERIES_ID), steps, series.select(self._facts), value.to_frame()], how="horizontal"
        )

    def _with_dates(self, frame: pl.DataFrame) -> pl.DataFrame:
        frame = local_times(frame)
        return frame.with_columns(pl.col(self._times).dt.date()) if self._is_daily else frame

    def _step_headings(self, stamps: pl.Series) -> Sequence[Heading]:
        """Return a heading for each step; a time that occurs twice, when clocks are set back, has its UTC offset."""
        times: list[datetime] = local_times(stamps.to_frame())[TIMESTAMP].to_list()
        if self._is_daily:
            return [moment.date() for moment in times]
        zoned = stamps.to_list()
        return [
            moment if times.count(moment) == 1 else zoned[index].isoformat(" ") for index, moment in enumerate(times)
        ]


def check_plan(output: ScoreOutput, artifact: ForecastingModel, n_series: int) -> None:
    """Raise ConfigError if the plan of a job can't be written: an unknown value, or too many rows for a sheet."""
    if output.format == "parquet":
        return
    columns = artifact.columns
    if output.layout == "wide" and output.value != MEAN:
        _check_value(output.value, [MEAN if artifact.classes is None else CLASS, *columns], "output.value")
    if output.format == "xlsx":
        is_wide = output.layout == "wide"
        n_rows, n_columns = (1, artifact.horizon) if is_wide else (artifact.horizon, len(columns))
        check_xlsx(
            f"output.format=xlsx output.layout={output.layout}",
            n_series * n_rows,
            n_columns + len(_FACTS) + 5,
            "set output.format=csv" if is_wide else "set output.layout=wide (a row per series) or output.format=csv",
        )


def write_plan(folder: Path, sink: Sink, model: str, output: ScoreOutput) -> str | None:
    """Write the forecasts of the latest cutoff of a model into its file in `plans`; return where, None if unchanged.

    The current version counts. The file is replaced atomically, one of the other format is removed; it is in the object
    store of the sink if there is one. A file that somebody has edited stays until the forecasts change. Raises
    OutputError.
    """
    content = latest_manifest(folder, model)
    if content is None:
        return None
    key = digest_of(content["key"], output.layout, output.value)
    name = f"{PLANS}/{file_name(model)}.{output.format}"
    others = [f"{PLANS}/{file_name(model)}{suffix}" for suffix in SUFFIXES if not name.endswith(suffix)]
    parts = sink.forecasts(content)
    if isinstance(sink, ObjectSink):
        if (sink.store.metadata(name) or {}).get(_KEY) == key:
            return None
        with TemporaryDirectory(prefix=".plan-", dir=folder) as temporary:
            file = Path(temporary) / Path(name).name
            _write(file, parts, output)
            sink.store.write(name, file, {_KEY: key})
        sink.store.remove(others)
        return f"{sink.store.uri}/{name}"
    file = folder / name
    mark = file.with_name(f".{file.name}.key")
    if file.is_file() and mark.is_file() and mark.read_text(encoding="utf-8") == key:
        return None
    _remove_leftovers(file.parent)
    mark.unlink(missing_ok=True)
    _write(file, parts, output)
    write_text_atomic(key, mark)
    for other in others:
        (folder / other).unlink(missing_ok=True)
        (folder / PLANS / f".{Path(other).name}.key").unlink(missing_ok=True)
    return str(file)


def _remove_leftovers(folder: Path) -> None:
    """Remove what killed jobs have left; the caller holds the lock."""
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink()
    for leftover in folder.glob(f"{UNFINISHED}*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _write(file: Path, parts: Iterable[pl.LazyFrame], output: ScoreOutput) -> None:
    """Write the rows of parts, which have whole series, one part at a time."""
    frames = (frame for part in parts if not (frame := part.collect()).is_empty())
    first = next(frames)
    plan = Plan(first, output.layout, output.value)
    with sheet_blocks(file, plan.header) as add:
        add(plan.rows(first))
        del first
        for frame in frames:
            add(plan.rows(frame))


def write_plan_of(frame: pl.DataFrame, file: Path, layout: Layout = "long", value: str = MEAN) -> None:
    """Write a frame of forecasts as a plan into a file ending in .csv or .xlsx; see `forecast.api.write_plan`."""
    if file.suffix not in SUFFIXES:
        raise ConfigError(f"file: must end with {' or '.join(SUFFIXES)} (given: {str(file)!r})")
    if layout not in ("long", "wide"):
        raise ConfigError(f"layout: must be long or wide (given: {layout!r})")
    if frame.is_empty():
        raise DataError("forecasts: no rows, so there is no plan to write")
    keys = [name for name in (CUTOFF, MODEL_NAME, MODEL_VERSION, MODEL_DIGEST) if name in frame.columns]
    if layout == "wide" and (n := frame.select(keys).n_unique()) > 1:
        raise ConfigError(f"layout=wide needs the forecasts of one cutoff and model; there are {n:,}: select one")
    plan = Plan(frame, layout, value)
    if layout == "wide":
        rows = plan.rows(frame)
    else:
        rows = pl.concat([plan.rows(part) for part in frame.partition_by(keys, maintain_order=True)])
    if file.suffix == ".xlsx":
        check_xlsx(f"file={file}", rows.height, rows.width, "write a .csv file")
    with sheet_blocks(file, plan.header, "file") as add:
        add(rows)


def _long_columns(columns: Sequence[str]) -> dict[str, str]:
    """Return the headings of the columns of the long layout, in order, by the names of the forecasts."""
    quantiles = quantile_columns(columns)
    outer = {quantiles[0]: f"low_{quantiles[0]}", quantiles[-1]: f"high_{quantiles[-1]}"} if len(quantiles) > 1 else {}
    first = [SERIES_ID, TIMESTAMP, MEAN, CLASS, *outer, *_FACTS, STEP]
    names = [*(name for name in first if name in columns), *(name for name in columns if name not in first)]
    headings = {**_HEADINGS, **outer}
    return {name: headings.get(name, name) for name in names if name != MODEL_DIGEST and not _is_sample(name)}


def _check_value(value: str, columns: Sequence[str], key: str = "value") -> None:
    if value not in columns:
        raise ConfigError(f"{key}: the forecasts have no {value!r}; there are: {listing(columns, 30)}")


def _is_value(name: str) -> bool:
    return name in (MEAN, CLASS) or name.startswith("p_") or bool(quantile_columns([name]))


def _is_sample(name: str) -> bool:
    return name.startswith("sample_") and name.removeprefix("sample_").isdigit()


def _at_midnight(frame: pl.DataFrame, columns: Sequence[str]) -> bool:
    return all((local_times(frame.select(name))[name].dt.time() == time()).all() for name in columns)
