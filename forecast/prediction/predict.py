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
from forecast.prediction.postprocess import outcome, own_rows, split_columns, stated_columns
from forecast.prediction.result import Predicted


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
    """Return forecasts of windows, with the weights of `artifact` itself, whatever its final fit.

    Nothing after a window's cutoff is read, but known covariates.

    A window's forecast does not depend on the other windows. With `points`, the quantiles are those at the midpoints
    of so many equal shares instead of the model's own levels. `samples` is a number of paths, of a model that
    `sampling` has returned. `forward` runs the network in its place. With `carried`, by the series of the panel, the
    encoder goes on from there instead of beginning with the window. With `one_pass`, it goes once over the history of
    each series, and the forecasts of all windows follow from its states there (`_along`).

    On another `device` than that of the model's network a copy of it is used. `carried` may be on any device.
    """
    artifact = artifact.on(device)
    levels = torch.tensor(midpoints(points)) if points else None
    order = np.arange(len(windows))
    if artifact.bank and artifact.bank.kind not in (HEAD, *FROZEN):
        # Weights of a series are taken once for its windows in a batch.
        order = windows.series.argsort(kind="stable")
    data = PanelTensors.of(panel, artifact.network, device)
    if one_pass:
        tasks, order = plan_one_pass(artifact.network, panel, data, windows)
    else:
        tasks = plan_windows(windows[order], data, carried)
    parts = list(_predict_batches(artifact, panel, data, tasks, levels, samples, forward))
    shape = (0, artifact.horizon, (points or len(stated_columns(artifact))) + samples)
    nothing, no_mean = np.zeros(shape, np.float32), np.zeros(shape[:2])
    parts = parts or [Predicted(nothing, nothing, no_mean, no_mean, np.zeros(0, bool))]
    names = [field.name for field in fields(Predicted)]
    back = np.empty(len(windows), np.int64)
    there = np.flatnonzero(order >= 0)
    back[order[there]] = there
    return Predicted(*(np.concatenate([getattr(part, name) for part in parts])[back] for name in names))


@torch.inference_mode()
def _predict_batches(
    artifact: Artifact,
    panel: Panel,
    data: PanelTensors,
    tasks: Iterator[Task],
    levels: torch.Tensor | None,
    samples: int,
    forward: Forward | None,
) -> Iterator[Predicted]:
    prepare()
    device = data.device
    network = artifact.network
    forward = forward or network
    order = None
    if samples and artifact.coupling is not None:
        order = coupled_ranks(artifact.coupling, samples).to(device)
    n_stated = len(stated_columns(artifact) if levels is None else levels)
    rows, shifts = own_rows(artifact, panel.series_id.tolist())
    for series, first, origins, pasts in tasks:
        span = int(origins[-1]) + 1
        batch = data.gather(series, first, first + span, **window_sizes(network, span))
        output = forward(batch, origins) if pasts is None else network(batch, origins, pasts)
        output = output.by_origin()
        series = series.repeat_interleave(len(origins))
        cutoff = (first[:, None] + origins).flatten()
        positions = data.horizon_positions(series, cutoff, network.shape.horizon)
        row = rows[series.cpu()]
        base, tuned = outcome(
            artifact,
            batch,
            origins,
            output,
            row,
            shifts[series.cpu()],
            positions,
            levels=levels,
            samples=samples,
            pasts=pasts,
        )
        (found, mean), (found_tuned, tuned_mean) = (
            split_columns(values, n_stated, samples, order, artifact) for values in (base, tuned)
        )
        yield Predicted(found, found_tuned, mean, tuned_mean, (row >= 0).numpy())
