"""The forecasts of a model as ONNX graphs: from the buffers of a panel to quantiles and means.

The graphs are traces of the code that forecasts in torch: they gather windows, change and calibrate each series, and
return units of the target.
"""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from forecast.artifact import Artifact
from forecast.bundle.predictor import FORECASTS, NAIVE, WINDOWS
from forecast.models.adapters.bank import AdapterBank
from forecast.models.inputs.batch import PanelTensors
from forecast.models.inputs.shape import NetworkShape
from forecast.models.network.losses import window_sizes
from forecast.models.postprocess.conformal import Calibration
from forecast.models.runtime.onnx import check_exportable, graph_of
from forecast.prediction.naive import with_panel_scale
from forecast.prediction.postprocess import (
    ForecastSpec,
    OriginBatch,
    SeriesRows,
    mean_of,
    postprocess,
    published_mean,
)

_AXES: Final[Mapping[str, Mapping[int, str]]] = {
    "adapter_weight": {0: "adapter"},
    "adapter_width": {0: "adapter"},
    "calibration_shift": {0: "calibration"},
    "offsets": {0: "edge"},
    "start": {0: "series"},
    "lengths": {0: "series"},
    "target": {0: "entry"},
    "outlier": {0: "entry"},
    "past": {1: "entry"},
    "known": {1: "known_entry"},
    "calendar": {1: "index"},
    "clock_shift": {0: "index"},
    "static_categories": {0: "series"},
    "static_numbers": {0: "series"},
}


def forecast_graph(artifact: Artifact) -> bytes:
    """Return the forecasts of windows as a graph from the panel (PANEL_BUFFERS) and rows of windows to FORECASTS.

    Raises ConfigError as `check_exportable`.
    """
    check_exportable(artifact.network)
    inputs = _example(artifact)
    shape = artifact.network.shape
    length = shape.context_length + shape.horizon
    return _optimised(graph_of(_traced(artifact, list(inputs), _forecast), inputs, FORECASTS, _AXES, length))


def naive_graph(artifact: Artifact) -> bytes:
    """Return the form of seasonal naive as a graph from normal quantiles, and which lack a scale, to NAIVE."""
    size = WINDOWS, artifact.reach, len(artifact.quantile_levels)
    inputs = {
        "quantiles": torch.zeros(size, dtype=torch.float64),
        "without_scale": torch.zeros(WINDOWS, dtype=torch.bool),
    }
    return _optimised(graph_of(_traced(artifact, list(inputs), _naive), inputs, NAIVE, {}, artifact.reach))


def _optimised(graph: bytes) -> bytes:
    """Return the graph after the optimisations of ONNX Runtime that no processor and no release is bound to."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "graph.onnx")
        options.optimized_model_filepath = str(path)
        onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        return path.read_bytes()


def _traced(
    artifact: Artifact, names: list[str], work: Callable[[Artifact, Mapping[str, Tensor]], tuple[Tensor, ...]]
) -> nn.Module:
    """Return `work` of named tensors as a module that holds the weights."""

    class Traced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = artifact.network

        def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
            return work(artifact, dict(zip(names, values, strict=True)))

    return Traced()


def _forecast(artifact: Artifact, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Return FORECASTS of the windows `series` and `cutoff`."""
    network, series, cutoff = artifact.network, inputs["series"], inputs["cutoff"]
    shape: NetworkShape = network.shape
    empty = _empty_buffers(shape, inputs["start"])
    data = PanelTensors.of_buffers(empty | dict(inputs), network)
    batch = data.gather(series, cutoff, cutoff + 1, **window_sizes(network, 1))
    origins = torch.zeros(1, dtype=torch.long)
    output = network(batch, origins).by_origin()
    bank, calibration, missing = artifact.bank, artifact.calibration, torch.full_like(series, -1)
    if bank is not None:
        tensors = {"weight": inputs["adapter_weight"], "width": inputs["adapter_width"]}
        bank = AdapterBank(bank.kind, (), tensors)
    if calibration is not None:
        calibration = Calibration(calibration.levels, calibration.bucket, inputs["calibration_shift"])
    rows = SeriesRows(inputs.get("adapter_row", missing), inputs.get("calibration_row", missing))
    windows = OriginBatch(batch, origins, output, data.horizon_positions(series, cutoff, shape.horizon))
    spec = ForecastSpec()
    parts = postprocess(replace(artifact, bank=bank, calibration=calibration), windows, rows, spec)
    n_columns = spec.n_columns(artifact)
    quantiles = [part[..., :n_columns] for part in parts]
    means = [published_mean(artifact, part[..., :n_columns], part[..., n_columns:]) for part in parts]
    return *quantiles, *means


def _naive(artifact: Artifact, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Return NAIVE of the quantiles, [window, horizon, level]."""
    quantiles, network = inputs["quantiles"], artifact.network
    wide = with_panel_scale(network, quantiles, artifact.quantile_levels, network.shape.season_length)
    columns = network.head.within_support(torch.where(inputs["without_scale"][:, None, None], wide, quantiles))
    return columns, mean_of(columns, torch.empty(0), network.head)


def _example(artifact: Artifact) -> dict[str, Tensor]:
    """Return a panel of two series, WINDOWS of them, and what the model holds per series; inputs with entries only."""
    shape: NetworkShape = artifact.network.shape
    steps, n_series = shape.context_length + 3, 2
    known_steps = n_series * (steps + shape.horizon)
    inputs: dict[str, Tensor] = {
        "series": torch.zeros(WINDOWS, dtype=torch.long),
        "cutoff": torch.full((WINDOWS,), steps - 1),
        "offsets": torch.arange(n_series + 1) * steps,
        "start": torch.zeros(n_series, dtype=torch.long),
        "lengths": torch.full((n_series,), steps),
        "target": torch.zeros(n_series * steps, dtype=torch.float64),
        "outlier": torch.zeros(n_series * steps, dtype=torch.uint8),
        "past": torch.zeros(shape.n_past, n_series * steps),
        "known": torch.zeros(shape.n_known, known_steps),
        "calendar": torch.zeros(shape.n_calendar, steps + shape.horizon),
        "clock_shift": torch.zeros(steps + shape.horizon, dtype=torch.long),
        "static_categories": torch.zeros(n_series, len(shape.category_sizes), dtype=torch.long),
        "static_numbers": torch.zeros(n_series, shape.n_static_numbers),
        "horizon": torch.tensor(shape.horizon),
        "calendar_start": torch.tensor(0),
    }
    if artifact.bank is not None:
        inputs |= {f"adapter_{name}": artifact.bank.tensors[name] for name in ("weight", "width")}
        inputs["adapter_row"] = torch.zeros(WINDOWS, dtype=torch.long)
    if artifact.calibration is not None:
        inputs["calibration_shift"] = artifact.calibration.shift
        inputs["calibration_row"] = torch.zeros(WINDOWS, dtype=torch.long)
    return {name: values for name, values in inputs.items() if values.numel()}


def _empty_buffers(shape: NetworkShape, start: Tensor) -> dict[str, Tensor]:
    """Return the buffers without rows or columns, which a graph has no inputs for; `start` has an entry per series."""
    columns = torch.zeros_like(start)[:, None][:, :0]
    return {
        "past": torch.zeros(shape.n_past, 1),
        "known": torch.zeros(shape.n_known, 1),
        "calendar": torch.zeros(shape.n_calendar, 1),
        "static_categories": columns,
        "static_numbers": columns.float(),
    }
