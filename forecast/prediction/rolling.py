"""Forecasts beyond the trained horizon: sample paths continue the history, and the model forecasts again from each."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from forecast.artifact import Artifact
from forecast.data.availability import closed_ahead
from forecast.data.panel import Panel
from forecast.data.windows import BATCH_SIZE, WindowIndex
from forecast.metrics.scores import midpoints
from forecast.models.inputs.batch import Batch, PanelTensors
from forecast.models.inputs.transform import to_model
from forecast.models.network.decoders import uniforms
from forecast.models.network.forecaster import RecurrentForecaster
from forecast.models.runtime.onnx import Forward
from forecast.models.runtime.torch_setup import prepare
from forecast.prediction.one_pass import plan_windows
from forecast.prediction.postprocess import (
    ForecastSpec,
    OriginBatch,
    SeriesRows,
    postprocess,
    published_mean,
    series_rows,
)
from forecast.prediction.result import Predicted

_PATHS: Final = 64
"""Sample paths of a series."""
_SAMPLES: Final = 32
"""Samples of the distribution of a step given a path; the mixture of all paths has this many times the paths."""
_SAMPLES_STEP_BY_STEP: Final = 16
"""The same if the decoder draws them one step after another."""


class _Columns(NamedTuple):
    """Forecasts of a block of steps, in units of the target."""

    quantiles: Tensor
    """[row, step, quantile]."""
    mean: Tensor
    """[row, step]."""
    samples: Tensor
    """[row, step, sample]."""


def paths_of(artifact: Artifact) -> int:
    """Return the number of sample paths of a series: no more than an autoregressive decoder draws for a forecast."""
    return _PATHS if artifact.coupling is not None else min(_PATHS, artifact.network.n_paths)


def roll(
    artifact: Artifact,
    panel: Panel,
    windows: WindowIndex,
    *,
    points: int = 0,
    forward: Forward | None = None,
    device: str = "cpu",
) -> Predicted:
    """Return forecasts of `artifact.horizon` steps, more than its network has; arguments as of `predict`.

    The first trained horizon is that of `predict`. Sample paths of it, whose steps depend on each other as errors did
    in validation, continue the history of the series, and the model forecasts the next horizon from the end of each, as
    it would from observations. The forecast of a step is the mixture over the paths, so uncertainty about the earlier
    steps widens the intervals of the later ones. Random numbers are the same for all series and calls.

    Known covariates reach to the end of the forecast. Past covariates beyond the cutoff take their values of a season
    before (those of the last step, if the context holds no season).
    """
    levels = torch.tensor(midpoints(points)) if points else None
    shared = replace(artifact, bank=None, calibration=None)
    tuned = _Roller(artifact, panel, levels, forward, device).forecast(windows)
    same = artifact.bank is None and artifact.calibration is None
    base = tuned if same else _Roller(shared, panel, levels, forward, device).forecast(windows)
    is_tuned = (series_rows(artifact, panel.series_id[windows.series].tolist()).adapter >= 0).numpy()
    return Predicted(base[0], tuned[0], base[1], tuned[1], is_tuned)


class _Roller:
    """Forecasts windows of a panel; `levels` are those of the quantiles, of the model when None."""

    def __init__(
        self, artifact: Artifact, panel: Panel, levels: Tensor | None, forward: Forward | None, device: str
    ) -> None:
        self.artifact, self.panel, self.levels = artifact, panel, levels
        self.shape = artifact.network.shape
        self.forward = forward or artifact.network
        self.data = PanelTensors.of(panel, artifact.network, device)
        self.rows = series_rows(artifact, panel.series_id.tolist())
        self.n_blocks = -(-artifact.horizon // self.shape.horizon)
        self.n_paths, self.n_samples = paths_of(artifact), _SAMPLES
        self.later, self.later_forward = artifact, self.forward
        if artifact.coupling is None:
            assert isinstance(artifact.network, RecurrentForecaster)
            self.n_samples = _SAMPLES_STEP_BY_STEP
            network = artifact.network.sampling(self.n_samples)
            self.later, self.later_forward = replace(artifact, network=network), network
        self.draws = [draw.to(self.data.device) for draw in self._draws()]

    def _draws(self) -> list[Tensor]:
        """Return the number of the sample that each path takes at each step of a block, [step, path] by block."""
        horizon, n_paths, coupling = self.shape.horizon, self.n_paths, self.artifact.coupling
        counts = [n_paths] + [self.n_samples] * (self.n_blocks - 1)
        if coupling is None:  # Samples are paths of the block.
            generator = torch.Generator().manual_seed(0)
            orders = [torch.arange(n_paths)] + [torch.randperm(n_paths, generator=generator) for _ in counts[1:]]
            return [(order % count).expand(horizon, -1) for order, count in zip(orders, counts, strict=True)]
        root = torch.linalg.cholesky(coupling.double())
        scores = torch.special.ndtri(uniforms(n_paths, horizon * self.n_blocks).double()).split(horizon, dim=1)
        ranks = [(score @ root.T).argsort(0).argsort(0).T for score in scores]
        return [rank * count // n_paths for rank, count in zip(ranks, counts, strict=True)]

    @torch.inference_mode()
    def forecast(self, windows: WindowIndex) -> tuple[np.ndarray, np.ndarray]:
        """Return quantiles, [n, horizon, quantile], and means, [n, horizon]."""
        prepare()
        horizon, n_levels = self.artifact.horizon, len(self._levels)
        values, means = [torch.zeros(0, horizon, n_levels)], [torch.zeros(0, horizon, dtype=torch.float64)]
        for series, cutoff, origins, _ in plan_windows(windows, self.data, None):
            batch = self._batch(series, cutoff)
            rows = SeriesRows(*(row[series.cpu()] for row in self.rows))
            index = WindowIndex(series.cpu().numpy(), cutoff.cpu().numpy())
            closed = torch.from_numpy(closed_ahead(self.panel, index, self.n_blocks * self.shape.horizon))
            blocks = self._blocks(batch, origins, rows, closed.to(self.data.device).split(self.shape.horizon, dim=1))
            quantiles, mean = (torch.cat(parts, dim=1) for parts in zip(*blocks, strict=True))
            positions = self.data.horizon_positions(series, cutoff, quantiles.shape[1])
            if positions is not None:
                quantiles = quantiles.gather(1, positions[..., None].expand(-1, -1, n_levels))
                mean = mean.gather(1, positions)
            values.append(quantiles[:, :horizon].cpu())
            means.append(mean[:, :horizon].cpu())
        dtype = torch.promote_types(values[-1].dtype, torch.float32)
        return torch.cat([part.to(dtype) for part in values]).numpy(), torch.cat(means).numpy()

    @property
    def _levels(self) -> Tensor:
        return self.artifact.network.head.levels if self.levels is None else self.levels

    def _batch(self, series: Tensor, cutoff: Tensor) -> Batch:
        """Return windows that reach to the end of the last block, with covariates as if they were known."""
        context, ahead = self.shape.context_length, self.n_blocks * self.shape.horizon
        batch = self.data.stretch(
            series, cutoff, cutoff + 1, torch.full_like(cutoff, 1 - context), context + ahead
        )._replace(outcome=None)
        end, known, past = context + self.artifact.horizon, batch.known.clone(), batch.past.clone()
        known[:, end:] = known[:, end - 1 : end]
        season = self.shape.season_length if self.shape.season_length <= context else 1
        for first in range(context, past.shape[1], season):
            part = past[:, first : first + season]
            part.copy_(past[:, first - season : first - season + part.shape[1]].clone())
        return batch._replace(known=known, past=past)

    def _blocks(
        self, batch: Batch, origins: Tensor, rows: SeriesRows, closed: Sequence[Tensor]
    ) -> list[tuple[Tensor, Tensor]]:
        """Return quantiles and means of each block of a batch: [window, step, quantile], [window, step].

        `closed`, [window, step], are the steps of each block where nothing is available: they are not observed.
        """
        first, quantiles = self._first(batch, origins, rows)
        later: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(self.n_blocks - 1)]
        size = max(1, BATCH_SIZE // self.n_paths)
        for begin in range(0, len(batch.target), size):
            chunk = slice(begin, begin + size)
            paths = first.samples[chunk].gather(-1, self.draws[0].expand(len(first.samples[chunk]), -1, -1)).mT
            continued = batch.rows(chunk).map(lambda values: values.repeat_interleave(self.n_paths, 0))
            repeated = SeriesRows(*(row[chunk].repeat_interleave(self.n_paths) for row in rows))
            for number, parts in enumerate(later, 1):
                paths = paths.masked_fill(closed[number - 1][chunk, None], torch.nan)
                continued = self._continue(continued, paths.flatten(0, 1), number)
                columns = self._columns(self.later, self.later_forward, continued, origins, repeated, number)
                samples = columns.samples.unflatten(0, (-1, self.n_paths))
                parts.append((self._pooled(samples), columns.mean.unflatten(0, (-1, self.n_paths)).mean(1)))
                draw = self.draws[number].T[None, ..., None].expand(len(samples), -1, -1, -1)
                paths = samples.gather(-1, draw)[..., 0]
        joined = [tuple(torch.cat(values) for values in zip(*parts, strict=True)) for parts in later]
        return [(quantiles, first.mean), *joined]  # type: ignore[list-item]

    def _first(self, batch: Batch, origins: Tensor, rows: SeriesRows) -> tuple[_Columns, Tensor]:
        """Return the first block with as many samples as paths, and its quantiles at the levels."""
        columns = self._columns(self.artifact, self.forward, batch, origins, rows, 0)
        if self.levels is None:
            return columns, columns.quantiles
        part = batch.steps(slice(0, self.shape.context_length + self.shape.horizon))
        windows = OriginBatch(part, origins, self.forward(part, origins).by_origin(), None)
        return columns, postprocess(self.artifact, windows, rows, ForecastSpec(self.levels))[1]

    def _columns(
        self, artifact: Artifact, forward: Forward, batch: Batch, origins: Tensor, rows: SeriesRows, number: int
    ) -> _Columns:
        """Return the forecasts of block `number`."""
        begin, spec = number * self.shape.horizon, ForecastSpec(None, self.n_samples if number else self.n_paths)
        part = batch.steps(slice(begin, begin + self.shape.context_length + self.shape.horizon))
        windows = OriginBatch(part, origins, forward(part, origins).by_origin(), None)
        n_columns = spec.n_columns(artifact)
        _, columns = postprocess(artifact, windows, rows, spec)
        quantiles, samples, points = columns.tensor_split([n_columns, n_columns + spec.n_samples], dim=-1)
        return _Columns(quantiles, published_mean(artifact, quantiles, points), samples)

    def _continue(self, batch: Batch, paths: Tensor, number: int) -> Batch:
        """Return windows in which the steps before block `number` are observed, with the values of paths."""
        end = self.shape.context_length + number * self.shape.horizon
        steps = slice(end - self.shape.horizon, end)
        values = to_model(paths.double(), self.shape.unit)
        if batch.level is not None:
            values = values - batch.level[:, None]
        valid = batch.there[:, steps] & torch.isfinite(values)
        target, observed = batch.target.clone(), batch.observed.clone()
        target[:, steps] = values.to(target.dtype).masked_fill(~valid, 0.0)
        observed[:, steps] = valid
        return batch._replace(target=target, observed=observed)

    def _pooled(self, samples: Tensor) -> Tensor:
        """Return the quantiles of the mixture over paths, [window, step, quantile]; samples are [window, path, ...]."""
        values = samples.movedim(1, 2).flatten(2).sort(dim=-1).values
        index = (self._levels.double() * values.shape[-1]).long().clamp(max=values.shape[-1] - 1)
        return values[..., index.to(values.device)]
