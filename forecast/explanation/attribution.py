"""Attributions of one forecast: integrated gradients and occlusion."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
from forecast.errors import ConfigError, DataError
from forecast.explanation.references import interpolation_hook, mean_baseline, spread_windows
from forecast.explanation.result import ATTRIBUTION, CALENDAR, CATEGORY, INPUT, KIND, LAG, STEPS
from forecast.models.inputs.batch import Batch, PanelTensors
from forecast.models.inputs.scaling import running_statistics
from forecast.models.inputs.transform import to_data
from forecast.models.network.ensemble import members_of, recurrent_members
from forecast.models.network.losses import window_sizes
from forecast.names import CUTOFF, MEAN, SERIES_ID, STEP, TARGET, TIMESTAMP, VALUE, quantile_column
from forecast.prediction.postprocess import (
    ForecastSpec,
    OriginBatch,
    SeriesRows,
    forecast_columns,
    postprocess,
    published_mean,
    series_rows,
)

# Windows per forward pass.
_BATCH = 64
# Approximate number of blocks of the context for occlusion, if explain.block is not set.
_DEFAULT_BLOCKS = 24


class _Column(NamedTuple):
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


class Attribution:
    """The window of an explained forecast, and attributions of the forecast to its inputs."""

    def __init__(self, artifact: Artifact, panel: Panel, origin: Origin, settings: ExplainSettings) -> None:
        self._artifact, self._panel, self._origin, self._settings = artifact, panel, origin, settings
        self._shape = artifact.network.shape
        self._data = PanelTensors.of(panel, artifact.network)
        cutoff = origin.cutoff - int(panel.start[origin.row])
        self._window_index = torch.tensor([origin.row]), torch.tensor([cutoff])
        self._batch = self._gather(WindowIndex(np.array([origin.row]), np.array([cutoff])))
        self._references = self._gather(spread_windows(panel, origin.cutoff, settings.n_references, self._shape))
        self._positions = self._data.horizon_positions(*self._window_index, self._shape.horizon)
        self._rows = series_rows(artifact, [origin.series_id])
        self.output = MEAN if settings.level == MEAN else quantile_column(float(settings.level))
        for member in recurrent_members(artifact.network):
            member.reference_batch = self._batch.since(self._shape.context_length - member.shape.context_length)
        with torch.no_grad():
            self.forecast = float(self._forecasts(self._batch))
        if not np.isfinite(self.forecast):
            raise DataError(
                f"{origin.series_id} has no observation in the {self._shape.context_length:,} steps up to the cutoff: "
                "its forecast is not the model's; set another explain.cutoff"
            )

    def _gather(self, windows: WindowIndex) -> Batch:
        """Return the batch of windows, in float64."""
        series, cutoff = torch.from_numpy(windows.series), torch.from_numpy(windows.cutoff)
        batch = self._data.gather(series, cutoff, cutoff + 1, **window_sizes(self._artifact.network, 1))
        return batch.map(lambda values: values.double() if values.is_floating_point() else values)

    def _forecasts(self, batch: Batch) -> Float[Tensor, " batch"]:
        """Return the explained output for each window of the batch, forecast as windows of the explained series."""
        artifact, count, step = self._artifact, len(batch.target), self._settings.step
        rows = SeriesRows(*(values.expand(count) for values in self._rows))
        positions = None if self._positions is None else self._positions.expand(count, -1)
        origins = torch.zeros(1, dtype=torch.long)
        output = artifact.network(batch, origins)
        columns = postprocess(artifact, OriginBatch(batch, origins, output, positions), rows, ForecastSpec())[1]
        names = forecast_columns(artifact)
        quantiles, points = columns.tensor_split([len(names)], dim=-1)
        if self.output == MEAN:
            forecast = published_mean(artifact, quantiles, points)
        else:
            forecast = quantiles[..., names.index(self.output)]
        return forecast.mean(1) if step is None else forecast[:, step - 1]

    def _columns(self) -> list[_Column]:
        """Return all inputs except the target."""
        data, shape, coded = self._artifact.data, self._shape, self._artifact.categories
        past = [*data.past_covariates, *feature_names(data)]
        columns = [_Column(name, "past", "past", k, k + 1) for k, name in enumerate(past)]
        columns += [_Column(name, "known", "known", k, k + 1) for k, name in enumerate(data.known_covariates)]
        if shape.n_calendar:
            columns.append(_Column(CALENDAR, CALENDAR, "known", shape.n_known, shape.n_known + shape.n_calendar))
        texts = [name for name in data.static_covariates if name in coded]
        numbers = [name for name in data.static_covariates if name not in coded]
        columns += [_Column(name, "static", "static_categories", k, k + 1) for k, name in enumerate(texts)]
        columns += [_Column(name, "static", "static_numbers", k, k + 1) for k, name in enumerate(numbers)]
        return columns

    def _target_baseline(self) -> Float[Tensor, "1 time"]:
        """Return the baseline of the target, its level at the cutoff; unobserved steps are unchanged."""
        length = members_of(self._artifact.network)[0].shape.scale_length
        level = running_statistics(self._batch.target, self._batch.observed, length).level
        return torch.where(self._batch.observed, level[:, self._shape.context_length - 1, None], self._batch.target)

    # ---- Integrated gradients ----

    def gradients(self) -> tuple[list[dict[str, Any]], float, float]:
        """Return the rows of the table, the forecast of the baseline, and the error of the integral.

        The error is forecast - baseline - sum of attributions. Raises ConfigError if captum is not installed.
        """
        try:
            from captum.attr import IntegratedGradients
        except ImportError:
            raise ConfigError(
                "explain.method=integrated_gradients needs: pip install 'gatecast[explain]'; or set "
                "explain.method=occlusion"
            ) from None
        inputs, baselines = self._endpoints()
        names = [name for name, values in inputs.items() if values.numel()]
        shares: dict[str, Tensor] = {}

        def forward(*tensors: Tensor) -> Tensor:
            parts = {name: values.expand(len(tensors[0]), *values.shape[1:]) for name, values in inputs.items()}
            parts |= dict(zip(names, tensors, strict=True))
            shares.update(parts)
            forecast = self._forecasts(self._batch_with(parts))
            # Columns of text enter by their embeddings only; the product with 0 keeps them in the graph.
            return forecast + 0.0 * torch.stack([values.flatten(1).sum(1) for values in tensors]).sum(0)

        with self._interpolated_embeddings(shares):
            integrals = IntegratedGradients(forward).attribute(
                tuple(inputs[name] for name in names),
                tuple(baselines[name] for name in names),
                n_steps=self._settings.n_steps,
                method="gausslegendre",
                internal_batch_size=_BATCH,
            )
            with torch.no_grad():
                baseline = float(forward(*(baselines[name] for name in names)))
        attributions = dict(zip(names, (values[0] for values in integrals), strict=True))
        total = sum(float(values.sum()) for values in attributions.values())
        for name in ("past", "known"):
            if f"{name}_share" in attributions:
                attributions[name] = attributions[name].clone()
                attributions[name][:, : attributions[f"{name}_share"].shape[1]] += attributions[f"{name}_share"]
        context = self._shape.context_length
        rows = self._rows_by_step(TARGET, TARGET, attributions["target"][:context], self._values)
        for column in self._columns():
            values = attributions["static_share" if column.field == "static_categories" else column.field]
            values = values[..., column.first : column.last].sum(-1)
            labels = self._values_of(column)
            if column.kind == "static":
                rows.append({INPUT: column.name, KIND: column.kind, ATTRIBUTION: float(values), **labels[0]})
            else:
                steps = values[:context] if column.kind == "past" else values
                rows += self._rows_by_step(column.name, column.kind, steps, labels)
        return rows, baseline, self.forecast - baseline - total

    def _endpoints(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the tensors at the inputs and at the baseline, [1, ...] each; missing values are 0.

        The shares of categories interpolate from the mean embedding (0) to that of the category (1).
        """
        batch, references = self._batch, self._references
        inputs = {
            "target": batch.target,
            "past": batch.past.nan_to_num(0.0),
            "known": batch.known.nan_to_num(0.0),
            "static_numbers": batch.static_numbers.nan_to_num(0.0),
            "static_share": torch.ones_like(batch.static_categories, dtype=torch.float64),
        }
        baselines = {
            "target": self._target_baseline(),
            "past": mean_baseline(
                inputs["past"], batch.past, references.past, references.there, self._shape.past_categories
            ),
            "known": mean_baseline(
                inputs["known"], batch.known, references.known, references.there, self._shape.known_categories
            ),
            "static_numbers": mean_baseline(
                inputs["static_numbers"], batch.static_numbers, references.static_numbers, None
            ),
            "static_share": torch.zeros_like(inputs["static_share"]),
        }
        baselines["known"] = torch.where(batch.there[..., None], baselines["known"], inputs["known"])
        for name in ("past", "known"):
            n_coded = len(getattr(self._shape, f"{name}_categories"))
            inputs[f"{name}_share"] = torch.ones_like(inputs[name][..., :n_coded])
            baselines[f"{name}_share"] = torch.zeros_like(inputs[f"{name}_share"])
        return inputs, baselines

    def _batch_with(self, parts: dict[str, Tensor]) -> Batch:
        """Return windows with the values in `parts`; values that are missing in the series stay missing."""
        count, batch = len(parts["target"]), self._batch
        expanded = batch.expand(count)

        def numbers(name: str) -> Tensor:
            return torch.where(torch.isfinite(getattr(batch, name)), parts[name], torch.nan)

        return expanded._replace(
            target=parts["target"] * batch.observed,
            past=numbers("past"),
            known=numbers("known"),
            static_numbers=numbers("static_numbers"),
        )

    @contextmanager
    def _interpolated_embeddings(self, shares: dict[str, Tensor]) -> Iterator[None]:
        """Interpolate embeddings between the mean over the reference windows and their own value, by `shares`."""
        handles = []
        for member in recurrent_members(self._artifact.network):
            for column, table in enumerate(member.embeddings):
                codes = self._references.static_categories[:, column]
                handles.append(table.register_forward_hook(interpolation_hook(shares, "static_share", column, codes)))
            for name, tables in (("past", member.past_embeddings), ("known", member.known_embeddings)):
                values = getattr(self._references, name)
                for key, table in tables.items():
                    column = int(key)
                    present = torch.isfinite(values[..., column]) & self._references.there
                    codes = values[..., column][present].long()
                    handles.append(
                        table.register_forward_hook(interpolation_hook(shares, f"{name}_share", column, codes))
                    )
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    # ---- Occlusion ----

    @torch.no_grad()
    def occlusion(self) -> list[dict[str, Any]]:
        """Return the rows of the table."""
        batch, baseline, context = self._batch, self._target_baseline(), self._shape.context_length
        block = self._settings.block or max(self._shape.segment_length, -(-context // _DEFAULT_BLOCKS))
        rows: list[dict[str, Any]] = []
        for lag in range(0, context, block):
            steps = slice(max(0, context - lag - block), context - lag)
            if not batch.observed[:, steps].any():
                continue
            target = batch.target.clone()
            target[:, steps] = baseline[:, steps]
            change = self._forecast_change(batch._replace(target=target))
            position = {LAG: lag, STEPS: steps.stop - steps.start, TIMESTAMP: self._timestamps[context - 1 - lag]}
            rows.append({INPUT: TARGET, KIND: TARGET, ATTRIBUTION: change, **position})
        for column in self._columns():
            inputs, references = getattr(batch, column.field), getattr(self._references, column.field)
            occluded = inputs.expand(len(references), *inputs.shape[1:]).clone()
            replacement = references[..., column.first : column.last]
            if inputs.ndim == 3:
                replacement = torch.where(
                    batch.there[..., None], replacement, occluded[..., column.first : column.last]
                )
            occluded[..., column.first : column.last] = replacement
            expanded = batch.expand(len(references))
            labels = self._values_of(column)[0] if column.kind == "static" else {}
            change = self._forecast_change(expanded._replace(**{column.field: occluded}))
            rows.append({INPUT: column.name, KIND: column.kind, ATTRIBUTION: change, **labels})
        return rows

    def _forecast_change(self, occluded: Batch) -> float:
        """Return forecast - mean forecast of `occluded`, windows without an input."""
        rows = (slice(first, first + _BATCH) for first in range(0, len(occluded.target), _BATCH))
        parts = [self._forecasts(occluded.rows(row)) for row in rows]
        return self.forecast - float(torch.cat(parts).mean())

    # ---- The table ----

    @cached_property
    def _timestamps(self) -> list[datetime]:
        """The timestamp of each step of the window."""
        begin = torch.full_like(self._window_index[1], 1 - self._shape.context_length)
        steps, _ = self._data.steps(*self._window_index, begin, self._batch.target.shape[1])
        index = steps[0].numpy() + self._panel.start[self._origin.row]
        timestamps: list[datetime] = self._panel.grid.timestamps(index).to_list()
        return timestamps

    @cached_property
    def _values(self) -> list[dict[str, Any]]:
        """The target at each step of the window, in data units; None if not observed."""
        values = to_data(self._batch.target[0], self._shape.unit, self._batch.level)
        return [
            {VALUE: value if is_observed else None}
            for value, is_observed in zip(values.tolist(), self._batch.observed[0].tolist(), strict=True)
        ]

    def _values_of(self, column: _Column) -> list[dict[str, Any]]:
        """Return value or category of an input for each step; for a static covariate, a single one."""
        values = getattr(self._batch, column.field)[0][..., column.first].reshape(-1).tolist()
        if column.kind == CALENDAR:
            return [{} for _ in values]
        names = self._artifact.categories.get(column.name)
        if names is None:
            return [{VALUE: value if math.isfinite(value) else None} for value in values]
        # Code 0 stands for values that did not occur in training.
        name_of_code = {float(code): name for code, name in enumerate(names, 1)}
        return [{CATEGORY: name_of_code.get(value)} for value in values]

    def _rows_by_step(
        self, name: str, kind: str, attributions: Float[Tensor, " time"], labels: Sequence[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """Return a row for each step since the start of the series."""
        has_begun, latest = self._batch.there[0].tolist(), self._shape.context_length - 1
        return [
            {
                INPUT: name,
                KIND: kind,
                LAG: latest - t,
                STEPS: 1,
                TIMESTAMP: self._timestamps[t],
                ATTRIBUTION: attribution,
            }
            | labels[t]
            for t, attribution in enumerate(attributions.tolist())
            if has_begun[t]
        ]

    def frame(self, rows: Sequence[dict[str, Any]]) -> pl.DataFrame:
        """Return the table of an explanation."""
        cutoff = self._panel.grid.timestamps(np.array([self._origin.cutoff]))
        step = self._settings.step
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
