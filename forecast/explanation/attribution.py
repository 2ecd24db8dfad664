"""Attributions of one forecast: integrated gradients and occlusion."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor, nn

from forecast.artifact import Artifact
from forecast.config import ExplainSettings
from forecast.data.features.lags import feature_names
from forecast.data.panel import Panel
from forecast.data.windows import WindowIndex
from forecast.errors import ConfigError, DataError
from forecast.explanation.result import ATTRIBUTION, CALENDAR, CATEGORY, INPUT, KIND, LAG, STEPS
from forecast.models.inputs.batch import Batch, PanelTensors
from forecast.models.inputs.scaling import running_statistics
from forecast.models.inputs.shape import NetworkShape
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

# Windows that are forecast at a time.
_BATCH = 64
# Blocks that the context is hidden in, about, if explain.block does not say how long they are.
_BLOCKS = 24


class _Column(NamedTuple):
    """An input: entries [..., first:last] of a tensor of the batch."""

    name: str
    kind: str
    field: str
    first: int
    last: int


class Origin(NamedTuple):
    """Which forecast is explained."""

    row: int
    series_id: str
    cutoff: int


class Attribution:
    """One window, and how to attribute its forecast to what is in it."""

    def __init__(self, artifact: Artifact, panel: Panel, place: Origin, settings: ExplainSettings) -> None:
        self._artifact, self._panel, self._place, self._settings = artifact, panel, place, settings
        self._shape = artifact.network.shape
        self._data = PanelTensors.of(panel, artifact.network)
        cutoff = place.cutoff - int(panel.start[place.row])
        self._at = torch.tensor([place.row]), torch.tensor([cutoff])
        self._x = self._gather(WindowIndex(np.array([place.row]), np.array([cutoff])))
        self._references = self._gather(_spread_windows(panel, place.cutoff, settings.n_references, self._shape))
        self._positions = self._data.horizon_positions(*self._at, self._shape.horizon)
        self._rows = series_rows(artifact, [place.series_id])
        self.output = MEAN if settings.level == MEAN else quantile_column(float(settings.level))
        for member in recurrent_members(artifact.network):
            member.reference_batch = self._x.since(self._shape.context_length - member.shape.context_length)
        with torch.no_grad():
            self.forecast = float(self._forecasts(self._x))
        if not np.isfinite(self.forecast):
            raise DataError(
                f"{place.series_id} has no observation in the {self._shape.context_length:,} steps up to the cutoff: "
                "its forecast is not the model's; set another explain.cutoff"
            )

    def _gather(self, windows: WindowIndex) -> Batch:
        """Return windows in float64."""
        series, cutoff = torch.from_numpy(windows.series), torch.from_numpy(windows.cutoff)
        batch = self._data.gather(series, cutoff, cutoff + 1, **window_sizes(self._artifact.network, 1))
        return batch.map(lambda values: values.double() if values.is_floating_point() else values)

    def _forecasts(self, batch: Batch) -> Float[Tensor, " batch"]:
        """Return what is explained, of windows that are seen as those of the series."""
        artifact, count, step = self._artifact, len(batch.target), self._settings.step
        rows = SeriesRows(*(values.expand(count) for values in self._rows))
        positions = None if self._positions is None else self._positions.expand(count, -1)
        origins = torch.zeros(1, dtype=torch.long)
        output = artifact.network(batch, origins)
        columns = postprocess(artifact, OriginBatch(batch, origins, output, positions), rows, ForecastSpec())[1]
        names = forecast_columns(artifact)
        stated, points = columns.tensor_split([len(names)], dim=-1)
        if self.output == MEAN:
            found = published_mean(artifact, stated, points)
        else:
            found = stated[..., names.index(self.output)]
        return found.mean(1) if step is None else found[:, step - 1]

    def _columns(self) -> list[_Column]:
        """Return the inputs besides the target."""
        data, shape, coded = self._artifact.data, self._shape, self._artifact.categories
        past = [*data.past_covariates, *feature_names(data)]
        found = [_Column(name, "past", "past", k, k + 1) for k, name in enumerate(past)]
        found += [_Column(name, "known", "known", k, k + 1) for k, name in enumerate(data.known_covariates)]
        if shape.n_calendar:
            found.append(_Column(CALENDAR, CALENDAR, "known", shape.n_known, shape.n_known + shape.n_calendar))
        texts = [name for name in data.static_covariates if name in coded]
        numbers = [name for name in data.static_covariates if name not in coded]
        found += [_Column(name, "static", "static_categories", k, k + 1) for k, name in enumerate(texts)]
        found += [_Column(name, "static", "static_numbers", k, k + 1) for k, name in enumerate(numbers)]
        return found

    def _level(self) -> Float[Tensor, "1 time"]:
        """Return the baseline of the target: its level at the cutoff."""
        length = members_of(self._artifact.network)[0].shape.scale_length
        level = running_statistics(self._x.target, self._x.observed, length).level
        return torch.where(self._x.observed, level[:, self._shape.context_length - 1, None], self._x.target)

    # ---- Integrated gradients ----

    def gradients(self) -> tuple[list[dict[str, Any]], float, float]:
        """Return the rows of the table, the forecast from the baseline, and what the attributions leave over."""
        try:
            from captum.attr import IntegratedGradients
        except ImportError:
            raise ConfigError(
                "explain.method=integrated_gradients needs: pip install 'gatecast[explain]'; or set "
                "explain.method=occlusion"
            ) from None
        x, baselines = self._points()
        names = [name for name, values in x.items() if values.numel()]
        shares: dict[str, Tensor] = {}

        def forward(*given: Tensor) -> Tensor:
            parts = {name: values.expand(len(given[0]), *values.shape[1:]) for name, values in x.items()}
            parts |= dict(zip(names, given, strict=True))
            shares.update(parts)
            made = self._forecasts(self._between(parts))
            # Columns of text alone are in no product: what they say enters by their embeddings.
            return made + 0.0 * torch.stack([values.flatten(1).sum(1) for values in given]).sum(0)

        with self._embedded(shares):
            found = IntegratedGradients(forward).attribute(
                tuple(x[name] for name in names),
                tuple(baselines[name] for name in names),
                n_steps=self._settings.n_steps,
                method="gausslegendre",
                internal_batch_size=_BATCH,
            )
            with torch.no_grad():
                baseline = float(forward(*(baselines[name] for name in names)))
        got = dict(zip(names, (values[0] for values in found), strict=True))
        total = sum(float(values.sum()) for values in got.values())
        for name in ("past", "known"):
            if f"{name}_share" in got:
                got[name] = got[name].clone()
                got[name][:, : got[f"{name}_share"].shape[1]] += got[f"{name}_share"]
        context = self._shape.context_length
        rows = self._by_step(TARGET, TARGET, got["target"][:context], self._values)
        for column in self._columns():
            values = got["static_share" if column.field == "static_categories" else column.field]
            values = values[..., column.first : column.last].sum(-1)
            said = self._said(column)
            if column.kind == "static":
                rows.append({INPUT: column.name, KIND: column.kind, ATTRIBUTION: float(values), **said[0]})
            else:
                steps = values[:context] if column.kind == "past" else values
                rows += self._by_step(column.name, column.kind, steps, said)
        return rows, baseline, self.forecast - baseline - total

    def _points(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return what is attributed to at its own values, and at the baseline, [1, ...] each; 0 for what is missing.

        Shares say how much of the way from the mean embedding to its own a category has gone.
        """
        batch, references = self._x, self._references
        x = {
            "target": batch.target,
            "past": batch.past.nan_to_num(0.0),
            "known": batch.known.nan_to_num(0.0),
            "static_numbers": batch.static_numbers.nan_to_num(0.0),
            "static_share": torch.ones_like(batch.static_categories, dtype=torch.float64),
        }
        baselines = {
            "target": self._level(),
            "past": _baseline(x["past"], batch.past, references.past, references.there, self._shape.past_categories),
            "known": _baseline(
                x["known"], batch.known, references.known, references.there, self._shape.known_categories
            ),
            "static_numbers": _baseline(x["static_numbers"], batch.static_numbers, references.static_numbers, None),
            "static_share": torch.zeros_like(x["static_share"]),
        }
        baselines["known"] = torch.where(batch.there[..., None], baselines["known"], x["known"])
        for name in ("past", "known"):
            n_coded = len(getattr(self._shape, f"{name}_categories"))
            x[f"{name}_share"] = torch.ones_like(x[name][..., :n_coded])
            baselines[f"{name}_share"] = torch.zeros_like(x[f"{name}_share"])
        return x, baselines

    def _between(self, parts: dict[str, Tensor]) -> Batch:
        """Return windows with the given numbers, missing what the series' own is missing."""
        count, own = len(parts["target"]), self._x
        every = own.expand(count)

        def numbers(name: str) -> Tensor:
            return torch.where(torch.isfinite(getattr(own, name)), parts[name], torch.nan)

        return every._replace(
            target=parts["target"] * own.observed,
            past=numbers("past"),
            known=numbers("known"),
            static_numbers=numbers("static_numbers"),
        )

    @contextmanager
    def _embedded(self, shares: dict[str, Tensor]) -> Iterator[None]:
        """Put embeddings between the mean of the reference windows' and their own, as far as `shares` says."""
        handles = []
        for member in recurrent_members(self._artifact.network):
            for column, table in enumerate(member.embeddings):
                codes = self._references.static_categories[:, column]
                handles.append(table.register_forward_hook(_mixing(shares, "static_share", column, codes)))
            for name, tables in (("past", member.past_embeddings), ("known", member.known_embeddings)):
                values = getattr(self._references, name)
                for key, table in tables.items():
                    column = int(key)
                    present = torch.isfinite(values[..., column]) & self._references.there
                    codes = values[..., column][present].long()
                    handles.append(table.register_forward_hook(_mixing(shares, f"{name}_share", column, codes)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    # ---- Occlusion ----

    @torch.no_grad()
    def occlusion(self) -> list[dict[str, Any]]:
        """Return the rows of the table."""
        x, baseline, context = self._x, self._level(), self._shape.context_length
        block = self._settings.block or max(self._shape.segment_length, -(-context // _BLOCKS))
        rows: list[dict[str, Any]] = []
        for lag in range(0, context, block):
            steps = slice(max(0, context - lag - block), context - lag)
            if not x.observed[:, steps].any():
                continue
            target = x.target.clone()
            target[:, steps] = baseline[:, steps]
            moved = self._gain(x._replace(target=target))
            found = {LAG: lag, STEPS: steps.stop - steps.start, TIMESTAMP: self._moments[context - 1 - lag]}
            rows.append({INPUT: TARGET, KIND: TARGET, ATTRIBUTION: moved, **found})
        for column in self._columns():
            own, others = getattr(x, column.field), getattr(self._references, column.field)
            values = own.expand(len(others), *own.shape[1:]).clone()
            taken = others[..., column.first : column.last]
            if own.ndim == 3:
                taken = torch.where(x.there[..., None], taken, values[..., column.first : column.last])
            values[..., column.first : column.last] = taken
            every = x.expand(len(others))
            said = self._said(column)[0] if column.kind == "static" else {}
            moved = self._gain(every._replace(**{column.field: values}))
            rows.append({INPUT: column.name, KIND: column.kind, ATTRIBUTION: moved, **said})
        return rows

    def _gain(self, without: Batch) -> float:
        """Return by how much the forecast is higher than those of windows without an input, on average."""
        rows = (slice(first, first + _BATCH) for first in range(0, len(without.target), _BATCH))
        parts = [self._forecasts(without.rows(row)) for row in rows]
        return self.forecast - float(torch.cat(parts).mean())

    # ---- The table ----

    @cached_property
    def _moments(self) -> list[datetime]:
        """The timestamp of each step of the window."""
        begin = torch.full_like(self._at[1], 1 - self._shape.context_length)
        steps, _ = self._data.steps(*self._at, begin, self._x.target.shape[1])
        index = steps[0].numpy() + self._panel.start[self._place.row]
        found: list[datetime] = self._panel.grid.timestamps(index).to_list()
        return found

    @cached_property
    def _values(self) -> list[dict[str, Any]]:
        """The target at each step of the window, as it was given."""
        values = to_data(self._x.target[0], self._shape.unit, self._x.level)
        return [
            {VALUE: value if seen else None}
            for value, seen in zip(values.tolist(), self._x.observed[0].tolist(), strict=True)
        ]

    def _said(self, column: _Column) -> list[dict[str, Any]]:
        """Return the value or category of an input at each step, or the one of a static covariate."""
        values = getattr(self._x, column.field)[0][..., column.first].reshape(-1).tolist()
        if column.kind == CALENDAR:
            return [{} for _ in values]
        names = self._artifact.categories.get(column.name)
        if names is None:
            return [{VALUE: value if math.isfinite(value) else None} for value in values]
        # 0 is a value that training has not seen.
        known = {float(code): name for code, name in enumerate(names, 1)}
        return [{CATEGORY: known.get(value)} for value in values]

    def _by_step(
        self, name: str, kind: str, attributions: Float[Tensor, " time"], said: Sequence[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """Return a row for each step that there is."""
        there, latest = self._x.there[0].tolist(), self._shape.context_length - 1
        return [
            {INPUT: name, KIND: kind, LAG: latest - t, STEPS: 1, TIMESTAMP: self._moments[t], ATTRIBUTION: moved}
            | said[t]
            for t, moved in enumerate(attributions.tolist())
            if there[t]
        ]

    def frame(self, rows: Sequence[dict[str, Any]]) -> pl.DataFrame:
        """Return the table of an explanation."""
        moment = self._panel.grid.timestamps(np.array([self._place.cutoff]))
        step = self._settings.step
        schema: dict[str, Any] = {
            INPUT: pl.String,
            KIND: pl.String,
            LAG: pl.Int32,
            STEPS: pl.Int32,
            TIMESTAMP: moment.dtype,
            ATTRIBUTION: pl.Float64,
            VALUE: pl.Float64,
            CATEGORY: pl.String,
        }
        return pl.DataFrame(list(rows), schema=schema).select(
            pl.lit(self._place.series_id).alias(SERIES_ID),
            pl.lit(moment[0], dtype=moment.dtype).alias(CUTOFF),
            pl.lit(MEAN if step is None else str(step)).alias(STEP),
            pl.all(),
        )


def _spread_windows(panel: Panel, cutoff: int, count: int, shape: NetworkShape) -> WindowIndex:
    """Return windows evenly spread over all series up to a grid index, with a whole context where there is one."""
    last = np.minimum(cutoff - panel.start, panel.lengths - 1)
    available = np.where(last >= 0, np.maximum(last - shape.context_length + 2, 1), 0)
    ends = np.cumsum(available)
    picked = np.unique(np.linspace(0, ends[-1] - 1, count).astype(np.int64))
    series = np.searchsorted(ends, picked, side="right")
    back = picked - (ends - available)[series]
    return WindowIndex(series, last[series] - back)


def _baseline(own: Tensor, values: Tensor, others: Tensor, there: Tensor | None, coded: Sequence[int] = ()) -> Tensor:
    """Return the mean of each column over the reference windows; `own` for codes, and where values are missing."""
    present = torch.isfinite(others)
    if there is not None:
        present &= there[..., None]
    flat, count = torch.where(present, others, 0.0).flatten(0, -2), present.flatten(0, -2).sum(0)
    mean = torch.where(count > 0, flat.sum(0) / count.clamp(min=1), own)
    kept = ~torch.isfinite(values)
    if coded:
        is_code = torch.zeros(own.shape[-1], dtype=torch.bool)
        is_code[: len(coded)] = torch.tensor(coded) > 0
        kept = kept | is_code
    return torch.where(kept, own, mean)


def _mixing(shares: dict[str, Tensor], name: str, column: int, codes: Tensor) -> Callable[..., Tensor]:
    """Return a hook that puts the output of an embedding between the mean of that of `codes` and itself."""

    def mixed(table: nn.Module, given: tuple[Tensor], output: Tensor) -> Tensor:
        assert isinstance(table, nn.Embedding)
        mean = table.weight[codes].mean(0) if len(codes) else torch.zeros_like(table.weight[0])
        share = shares[name][..., column]
        if share.ndim == 2:  # Past covariates end with the context.
            share = share[:, : given[0].shape[1]]
        return mean + share[..., None] * (output - mean)

    return mixed
