"""The window of an explained forecast: its inputs, its forecast with other inputs, and the rows of the table."""

import math
from collections.abc import Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from forecast.artifact import Artifact
from forecast.config import ExplainSettings
from forecast.data.features.lags import feature_names
from forecast.data.panel import Panel
from forecast.data.windows import WindowIndex
from forecast.errors import DataError
from forecast.explanation.references import spread_windows
from forecast.explanation.result import ATTRIBUTION, CALENDAR, CATEGORY, INPUT, KIND, LAG, STEPS
from forecast.models.inputs.batch import Batch, PanelTensors
from forecast.models.inputs.scaling import running_statistics
from forecast.models.inputs.transform import to_data
from forecast.models.network.ensemble import members_of, recurrent_members
from forecast.models.network.losses import window_sizes
from forecast.names import CUTOFF, MEAN, SERIES_ID, STEP, TIMESTAMP, VALUE, quantile_column
from forecast.prediction.postprocess import (
    ForecastSpec,
    OriginBatch,
    SeriesRows,
    postprocess,
    published_mean,
    series_rows,
)


class Column(NamedTuple):
    """An input: entries [..., first:last] of the batch tensor `field`."""

    name: str
    kind: str
    field: str
    first: int
    last: int


class Origin(NamedTuple):
    """Series and cutoff of the explained forecast."""

    row: int
    series_id: str
    cutoff: int


class ExplainedWindow:
    """The window of an explained forecast, beside reference windows from the whole panel."""

    def __init__(self, artifact: Artifact, panel: Panel, origin: Origin, settings: ExplainSettings) -> None:
        self.artifact, self._panel, self._origin, self.settings = artifact, panel, origin, settings
        self.shape = artifact.network.shape
        self._data = PanelTensors.of(panel, artifact.network)
        cutoff = origin.cutoff - int(panel.start[origin.row])
        self._window_index = torch.tensor([origin.row]), torch.tensor([cutoff])
        self.batch = self._gather(WindowIndex(np.array([origin.row]), np.array([cutoff])))
        self.references = self._gather(spread_windows(panel, origin.cutoff, settings.n_references, self.shape))
        self._positions = self._data.horizon_positions(*self._window_index, self.shape.horizon)
        self._rows = series_rows(artifact, [origin.series_id])
        self.output = MEAN if settings.level == MEAN else quantile_column(float(settings.level))
        for member in recurrent_members(artifact.network):
            member.reference_batch = self.batch.since(self.shape.context_length - member.shape.context_length)
        with torch.no_grad():
            self.forecast = float(self.forecasts(self.batch))
        if not np.isfinite(self.forecast):
            raise DataError(
                f"{origin.series_id} has no observation in the {self.shape.context_length:,} steps up to the cutoff: "
                "its forecast is not the model's; set another explain.cutoff"
            )

    def _gather(self, windows: WindowIndex) -> Batch:
        """Return the batch of windows, in float64."""
        series, cutoff = torch.from_numpy(windows.series), torch.from_numpy(windows.cutoff)
        batch = self._data.gather(series, cutoff, cutoff + 1, **window_sizes(self.artifact.network, 1))
        return batch.map(lambda values: values.double() if values.is_floating_point() else values)

    def forecasts(self, batch: Batch) -> Float[Tensor, " batch"]:
        """Return the explained output for each window of the batch, forecast as windows of the explained series."""
        artifact, count, step = self.artifact, len(batch.target), self.settings.step
        rows = SeriesRows(*(values.expand(count) for values in self._rows))
        positions = None if self._positions is None else self._positions.expand(count, -1)
        origins = torch.zeros(1, dtype=torch.long)
        output = artifact.network(batch, origins)
        columns = postprocess(artifact, OriginBatch(batch, origins, output, positions), rows, ForecastSpec())[1]
        names = artifact.columns
        quantiles, points = columns.tensor_split([len(names)], dim=-1)
        if self.output == MEAN:
            forecast = published_mean(artifact, quantiles, points)
        else:
            forecast = quantiles[..., names.index(self.output)]
        return forecast.mean(1) if step is None else forecast[:, step - 1]

    def columns(self) -> list[Column]:
        """Return all inputs except the target."""
        data, shape, coded = self.artifact.data, self.shape, self.artifact.categories
        past = [*data.past_covariates, *feature_names(data)]
        columns = [Column(name, "past", "past", k, k + 1) for k, name in enumerate(past)]
        columns += [Column(name, "known", "known", k, k + 1) for k, name in enumerate(data.known_covariates)]
        if shape.n_calendar:
            columns.append(Column(CALENDAR, CALENDAR, "known", shape.n_known, shape.n_known + shape.n_calendar))
        texts = [name for name in data.static_covariates if name in coded]
        numbers = [name for name in data.static_covariates if name not in coded]
        columns += [Column(name, "static", "static_categories", k, k + 1) for k, name in enumerate(texts)]
        columns += [Column(name, "static", "static_numbers", k, k + 1) for k, name in enumerate(numbers)]
        return columns

    def target_baseline(self) -> Float[Tensor, "1 time"]:
        """Return the baseline of the target, its level at the cutoff; unobserved steps are unchanged."""
        length = members_of(self.artifact.network)[0].shape.scale_length
        level = running_statistics(self.batch.target, self.batch.observed, length).level
        return torch.where(self.batch.observed, level[:, self.shape.context_length - 1, None], self.batch.target)

    # ---- The table ----

    @cached_property
    def timestamps(self) -> list[datetime]:
        """The timestamp of each step of the window."""
        begin = torch.full_like(self._window_index[1], 1 - self.shape.context_length)
        steps = self._data.steps(*self._window_index, begin, self.batch.target.shape[1])
        index = steps[0].numpy() + self._panel.start[self._origin.row]
        timestamps: list[datetime] = self._panel.grid.timestamps(index).to_list()
        return timestamps

    @cached_property
    def target_labels(self) -> list[dict[str, Any]]:
        """The target at each step of the window, in data units; None if not observed."""
        values = to_data(self.batch.target[0], self.shape.unit, self.batch.level)
        return [
            {VALUE: value if is_observed else None}
            for value, is_observed in zip(values.tolist(), self.batch.observed[0].tolist(), strict=True)
        ]

    def labels_of(self, column: Column) -> list[dict[str, Any]]:
        """Return value or category of an input for each step; for a static covariate, a single one."""
        values = getattr(self.batch, column.field)[0][..., column.first].reshape(-1).tolist()
        if column.kind == CALENDAR:
            return [{} for _ in values]
        names = self.artifact.categories.get(column.name)
        if names is None:
            return [{VALUE: value if math.isfinite(value) else None} for value in values]
        # Code 0 stands for values that did not occur in training.
        name_of_code = {float(code): name for code, name in enumerate(names, 1)}
        return [{CATEGORY: name_of_code.get(value)} for value in values]

    def rows_by_step(
        self, name: str, kind: str, attributions: Float[Tensor, " time"], labels: Sequence[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """Return a row for each step since the start of the series."""
        has_begun, latest = self.batch.there[0].tolist(), self.shape.context_length - 1
        return [
            {
                INPUT: name,
                KIND: kind,
                LAG: latest - t,
                STEPS: 1,
                TIMESTAMP: self.timestamps[t],
                ATTRIBUTION: attribution,
            }
            | labels[t]
            for t, attribution in enumerate(attributions.tolist())
            if has_begun[t]
        ]

    def frame(self, rows: Sequence[dict[str, Any]]) -> pl.DataFrame:
        """Return the table of an explanation."""
        cutoff = self._panel.grid.timestamps(np.array([self._origin.cutoff]))
        step = self.settings.step
        schema: dict[str, Any] = {
            INPUT: pl.String,
            KIND: pl.String,
            LAG: pl.Int32,
            STEPS: pl.Int32,
            TIMESTAMP: cutoff.dtype,
            ATTRIBUTION: pl.Float64,
            VALUE: pl.Float64,
            CATEGORY: pl.String,
        }
        return pl.DataFrame(list(rows), schema=schema).select(
            pl.lit(self._origin.series_id).alias(SERIES_ID),
            pl.lit(cutoff[0], dtype=cutoff.dtype).alias(CUTOFF),
            pl.lit(MEAN if step is None else str(step)).alias(STEP),
            pl.all(),
        )
