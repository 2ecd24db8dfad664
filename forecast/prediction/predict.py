"""Forecasts from a trained model: a plain loop over windows, no trainer."""

from collections.abc import Iterator
from dataclasses import fields

import numpy as np
import torch

from forecast.artifact import Artifact
from forecast.data.panel import Panel
from forecast.data.windows import WindowIndex
from forecast.metrics.scores import midpoints
from forecast.models.adapters.bank import HEAD
from forecast.models.adapters.stacked import FROZEN
from forecast.models.inputs.batch import PanelTensors
from forecast.models.network.carried_state import StateStore
from forecast.models.network.losses import window_sizes
from forecast.models.postprocess.copula import coupled_ranks
from forecast.models.runtime.onnx import Forward
from forecast.models.runtime.torch_setup import prepare
from forecast.prediction.one_pass import Task, plan_one_pass, plan_windows
from forecast.prediction.postprocess import (
    ForecastSpec,
    OriginBatch,
    SeriesRows,
    postprocess,
    series_rows,
    split_columns,
)
from forecast.prediction.result import Predicted
from forecast.prediction.rolling import roll


def predict(
    artifact: Artifact,
    panel: Panel,
    windows: WindowIndex,
    *,
    points: int = 0,
    samples: int = 0,
    forward: Forward | None = None,
    carried: StateStore | None = None,
    one_pass: bool = False,
    device: str = "cpu",
) -> Predicted:
    """Return forecasts of windows, with the weights of `artifact` itself, never those of its final fit.

    Nothing after a window's cutoff is read except known covariates, and the forecast of a window does not depend on the
    other windows. Beyond the horizon of the network, forecasts are rolled (`rolling.roll`, which has no `samples`,
    `carried` and `one_pass`); a shorter horizon is a prefix.

    - `points`: a number of quantiles, at the midpoints of equal shares, instead of the model's own levels.
    - `samples`: a number of paths, of a model that `with_samples` has returned.
    - `forward`: runs the network in its place.
    - `carried`: encoder states by series of the panel, on any device; the encoder continues from them instead of
      starting at the beginning of the window.
    - `one_pass`: the encoder runs once over the history of each series, and the forecasts of all its windows start from
      the states at their cutoffs (`plan_one_pass`).
    - `device`: a copy of the network is used if it is on another one.
    """
    artifact, trained = artifact.on(device), artifact.network.shape.horizon
    if artifact.horizon > trained:
        assert carried is None, "rolled forecasts start from windows"
        assert not any((samples, one_pass)), "rolled forecasts have quantiles of single windows"
        return roll(artifact, panel, windows, points=points, forward=forward, device=device)
    levels = torch.tensor(midpoints(points)) if points else None
    order = np.arange(len(windows))
    if artifact.bank and artifact.bank.kind not in (HEAD, *FROZEN):
        # Windows of a series stand together, so that its weights are gathered once per batch.
        order = windows.series.argsort(kind="stable")
    data = PanelTensors.of(panel, artifact.network, device)
    if one_pass:
        tasks, order = plan_one_pass(artifact.network, panel, data, windows)
    else:
        tasks = plan_windows(windows[order], data, carried)
    spec = ForecastSpec(levels, samples)
    parts = list(_predict_batches(artifact, panel, data, tasks, spec, forward))
    shape = (0, trained, spec.n_columns(artifact) + samples)
    no_values, no_mean = np.zeros(shape, np.float32), np.zeros(shape[:2])
    parts = parts or [Predicted(no_values, no_values, no_mean, no_mean, np.zeros(0, bool))]
    names = [field.name for field in fields(Predicted)]
    positions = np.empty(len(windows), np.int64)
    requested = np.flatnonzero(order >= 0)
    positions[order[requested]] = requested
    result = Predicted(*(np.concatenate([getattr(part, name) for part in parts])[positions] for name in names))
    return result if artifact.horizon == trained else result.until(artifact.horizon)


@torch.inference_mode()
def _predict_batches(
    artifact: Artifact,
    panel: Panel,
    data: PanelTensors,
    tasks: Iterator[Task],
    spec: ForecastSpec,
    forward: Forward | None,
) -> Iterator[Predicted]:
    """Yield the forecasts of each batch of windows, a row per window and origin."""
    prepare()
    device = data.device
    network = artifact.network
    forward = forward or network
    order = None
    if spec.n_samples and artifact.coupling is not None:
        order = coupled_ranks(artifact.coupling, spec.n_samples).to(device)
    all_rows = series_rows(artifact, panel.series_id.tolist())
    for series, first, origins, states in tasks:
        span = int(origins[-1]) + 1
        batch = data.gather(series, first, first + span, **window_sizes(network, span))
        output = forward(batch, origins) if states is None else network(batch, origins, states)
        output = output.by_origin()
        series = series.repeat_interleave(len(origins))
        cutoff = (first[:, None] + origins).flatten()
        positions = data.horizon_positions(series, cutoff, network.shape.horizon)
        rows = SeriesRows(*(values[series.cpu()] for values in all_rows))
        windows = OriginBatch(batch, origins, output, positions, states)
        base_columns, tuned_columns = postprocess(artifact, windows, rows, spec)
        base, base_mean = tuned, tuned_mean = split_columns(base_columns, spec, order, artifact)
        if tuned_columns is not base_columns:
            tuned, tuned_mean = split_columns(tuned_columns, spec, order, artifact)
        yield Predicted(base, tuned, base_mean, tuned_mean, (rows.adapter >= 0).numpy())
