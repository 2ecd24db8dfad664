"""What reading, scoring and their outputs need of a model, whatever runs it. Nothing here imports torch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Self

import numpy as np
import polars as pl

from forecast.config import DataConfig, SourceConfig, WindowConfig
from forecast.data.ingest.extent import any_late_at
from forecast.data.ingest.load import load_panel
from forecast.data.ingest.loaded import Loaded
from forecast.data.panel import Panel
from forecast.data.read import read_panel
from forecast.data.sources.open import Tables
from forecast.data.sources.side_tables import with_side_tables
from forecast.data.time.grid import Grid
from forecast.errors import DataError
from forecast.models.inputs.shape import NetworkShape
from forecast.names import class_column, quantile_column

# Smallest number of intervals between values from which the frequency of a table is judged.
_MIN_STEPS = 10


class ForecastingModel:
    """The facts of a model and the panels that it reads: the base of `Artifact` and `Bundle`, which are dataclasses."""

    data: DataConfig
    """Settings to read a panel: resolved frequency, season, columns; without path, end and error policy."""
    window: WindowConfig
    categories: dict[str, tuple[str, ...]]
    """Values of each categorical covariate; code = position + 1, 0 for unknown values. For a target of classes also its
    classes; code = position."""
    grid: Grid
    trained_until: int
    """Grid index of the last step that any weight, closed form, gate or calibration has seen, of any series."""
    final: Any
    """The same model after the final fit on all rows of the panel, None without one."""
    side_tables: Mapping[str, str]
    """Locations of the tables of covariates in training, by setting, for sources that do not name any."""

    @property
    def shape(self) -> NetworkShape:
        """The shape of the network."""
        raise NotImplementedError

    @property
    def quantile_levels(self) -> tuple[float, ...]:
        """Levels of the forecast quantiles."""
        raise NotImplementedError

    @property
    def horizon(self) -> int:
        """Number of steps of a forecast."""
        return self.window.horizon

    @property
    def reach(self) -> int:
        """Number of steps after the cutoff whose known covariates a forecast reads: at least the trained horizon."""
        return max(self.window.horizon, self.shape.horizon)

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Classes of the target in the order of their codes; None for numbers."""
        return self.categories.get(self.data.columns.target)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the forecast columns: one for each quantile, or for each class."""
        if self.classes is not None:
            return tuple(class_column(name) for name in self.classes)
        return tuple(quantile_column(level) for level in self.quantile_levels)

    @property
    def trained_until_timestamp(self) -> datetime:
        """The timestamp of `trained_until`: forecasts from earlier cutoffs are in-sample."""
        timestamp: datetime = self.grid.timestamps(np.array([self.trained_until]))[0]
        return timestamp

    @property
    def latest(self) -> Self:
        """The model after its final fit, if there is one; otherwise the model itself."""
        latest: Self = self.final or self
        return latest

    def for_cutoff(self, cutoff: int) -> Self:
        """Return the model with the weights for forecasts from grid index `cutoff`.

        These are the weights of the final fit if the cutoff is not before the end of their data; otherwise the
        evaluated ones, which have not seen the holdout of the training.
        """
        final: Self | None = self.final
        return final if final is not None and cutoff >= final.trained_until else self

    def until(self, horizon: int) -> Self:
        """Return the model with forecasts of `horizon` steps."""
        window = self.window.model_copy(update={"horizon": horizon})
        shorter: Self = replace(self, window=window)  # type: ignore[type-var]  # of dataclasses
        return shorter

    def reading(self, source: SourceConfig) -> DataConfig:
        """Return the settings to read `source`: columns and frequency of the model, its own path and error policy."""
        return self.data.with_source(source)

    def reading_with_tables(self, source: SourceConfig) -> DataConfig:
        """Return the settings of `reading`, with `side_tables` for the tables that `source` does not name."""
        return self.reading(with_side_tables(source, self.side_tables, self.data))

    def read(self, tables: Tables | pl.LazyFrame, cutoffs: Sequence[datetime | None] = ()) -> Loaded:
        """Return the panel in a table, read with the settings of the training table.

        Rows after the common end of the series are rejects, unless one is at one of the requested `cutoffs`. Raises
        DataError as `load_panel`, and for a table that is not on the grid of the model.
        """
        return self._read(lambda data: load_panel(tables, data, self.reach, self.categories), self.data, cutoffs)

    def open(self, source: SourceConfig, cutoffs: Sequence[datetime | None] = (), *, in_memory: bool = True) -> Loaded:
        """Return the panel at `source.path` (prepared or not) or in its database, as `read` does.

        Tables of covariates that `source` does not name default to `side_tables`. Without `in_memory`, a prepared panel
        in an object store is read by the ranges in use.
        """
        data = self.reading_with_tables(source)

        def read(data: DataConfig) -> Loaded:
            return read_panel(data, self.reach, self.categories, in_memory=in_memory)

        return self._read(read, data, cutoffs)

    def _read(
        self, read: Callable[[DataConfig], Loaded], data: DataConfig, cutoffs: Sequence[datetime | None]
    ) -> Loaded:
        loaded = read(data)
        if any_late_at(loaded.rejects, loaded.panel.grid, cutoffs):
            loaded = read(data.model_copy(update={"end_share": 0.0}))
            loaded = replace(loaded, data=loaded.data.model_copy(update={"end_share": data.end_share}))
        check_grid(self.grid, loaded.panel)
        return loaded


def check_grid(model_grid: Grid, panel: Panel) -> None:
    """Raise DataError for a panel that is not on the grid of a model: another time zone, clock or frequency."""
    table_grid = panel.grid
    if model_grid.time_zone is None and table_grid.time_zone is not None:
        raise DataError(
            f"the table's timestamps are in {table_grid.time_zone}, those that the model was trained on had no "
            "time zone; drop the time zone from the column, or train with data.time_zone"
        )
    span = np.array([panel.start.min(), (panel.start + panel.lengths).max() - 1])
    if (model_grid.clock(span) != table_grid.clock(span)).any():
        table_time, expected = (grid.timestamps(span)[0] for grid in (table_grid, model_grid))
        raise DataError(
            f"the table's rows are every {model_grid.frequency} like those that the model was trained on, but at "
            f"other moments: {table_time}, where the model has {expected}; shift the timestamps, or train on a "
            "table like this"
        )
    steps = []
    for shard in panel.shards(1 << 18):  # The first shard usually suffices.
        observed = np.flatnonzero(~np.isnan(shard.target))
        step = np.diff(observed)[np.diff(np.searchsorted(shard.offsets, observed, side="right")) == 0]
        if (step == 1).any():
            return
        steps.append(step)
    step = np.concatenate(steps)
    if len(step) >= _MIN_STEPS:
        raise DataError(
            f"the model has a value every {model_grid.frequency}, the table only every {int(np.median(step)):,} of "
            f"these steps: no series has values at two neighbouring ones; give a table every "
            f"{model_grid.frequency}, or train on one like this"
        )
