"""Export of a model for other programs: the network as ONNX, and a JSON file that describes inputs and outputs."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from forecast.artifact import Artifact
from forecast.data.features.calendar import calendar_features
from forecast.data.features.lags import feature_names
from forecast.data.panel import Panel
from forecast.data.windows import WindowIndex, windows_at
from forecast.environment import gatecast_version
from forecast.errors import DataError
from forecast.metrics.scores import score_windows
from forecast.metrics.seasonal_naive import future_values
from forecast.models.adapters.bank import head_feature_count
from forecast.models.inputs.batch import Batch, PanelTensors
from forecast.models.network.ensemble import Forecaster, recurrent_members
from forecast.models.network.losses import window_sizes
from forecast.models.runtime.onnx import (
    OPSET,
    OUTPUTS,
    Forward,
    OnnxForecaster,
    check_bank,
    example_windows,
    exported,
    inputs_of,
    quantised,
)
from forecast.prediction.predict import predict

GRAPH: Final = "model.onnx"
SIDECAR: Final = "onnx.json"

# Largest number of windows on which two graphs are compared.
_MAX_WINDOWS: Final = 256

# Meanings of the arguments of each head, in units of the frame unless stated otherwise.
_ARGUMENTS: Final = {
    "quantile": ("quantile at each level",),
    "normal": ("mean", "standard deviation"),
    "student_t": ("location", "scale", "degrees of freedom"),
    "poisson": ("location", "divisor", "mean of the target itself"),
    "negative_binomial": ("location", "divisor", "mean of the target itself", "root of the variance beyond the mean"),
    "tweedie": ("location", "divisor", "mean of the target itself", "dispersion"),
}


@dataclass(frozen=True)
class Quantised:
    """The cost of 8-bit weights: differences between quantiles of both graphs, in units of each window's scale."""

    bytes: int
    float_bytes: int
    max_difference: float
    mean_difference: float
    windows: int
    """Number of windows compared: those of the last horizon of a table, or synthetic ones."""
    wql: float | None = None
    float_wql: float | None = None
    """Both on the last horizon of the table; None without one."""

    @property
    def line(self) -> str:
        """The comparison in one line."""
        wql_text = "" if self.wql is None else f", WQL {self.wql:.4f} (float {self.float_wql:.4f}) on the last horizon"
        windows = "made-up windows" if self.wql is None else "windows"
        return (
            f"int8 {self.bytes / 1024:,.0f} KB (float {self.float_bytes / 1024:,.0f} KB), quantiles off by "
            f"{self.mean_difference:.2%} of the scale on average, {self.max_difference:.2%} at most, on "
            f"{self.windows:,} {windows}{wql_text}"
        )


def export_onnx(
    artifact: Artifact, folder: Path, *, int8: bool = False, panel: Panel | None = None
) -> Quantised | None:
    """Write GRAPH and SIDECAR, which belong beside the files of the model; with `int8`, return the cost of 8 bits.

    The weights are those of the final fit, if there is one. The cost is measured on the last horizon of the panel, or
    on synthetic windows without a panel. Raises ConfigError for a model that can't be a single graph, or if onnx is not
    installed; DataError for a panel that is not longer than the horizon.
    """
    bank_file = "final-bank" if artifact.final and artifact.final.bank is not artifact.bank else "bank"
    artifact = artifact.latest
    check_bank(artifact.bank)
    graph, cost = exported(artifact.network), None
    sidecar = _sidecar(artifact, bank_file, inputs_of(graph))
    if int8:
        small = quantised(graph, artifact.network)
        cost = _cost(artifact, graph, small, panel)
        graph, sidecar = small, sidecar | {"quantised": asdict(cost)}
    (folder / GRAPH).write_bytes(graph)
    (folder / SIDECAR).write_text(json.dumps(sidecar, indent=1) + "\n", encoding="utf-8")
    return cost


def _cost(artifact: Artifact, graph: bytes, small: bytes, panel: Panel | None) -> Quantised:
    network, sizes = artifact.network, {"bytes": len(small), "float_bytes": len(graph)}
    forwards = [OnnxForecaster(network, onnx_graph) for onnx_graph in (graph, small)]
    scores: list[float | None] = [None, None]
    if panel is None:
        batch = _synthetic_windows(network)
    else:
        cutoff = panel.last_index - artifact.horizon
        available = windows_at(panel, cutoff)
        if not len(available):
            raise DataError(f"data.path: no series is longer than the horizon of {artifact.horizon:,} steps")
        scores = [_wql(artifact, panel, available, forward) for forward in forwards]
        windows = available[np.unique(np.linspace(0, len(available) - 1, _MAX_WINDOWS).astype(np.int64))]
        series, ends = torch.from_numpy(windows.series), torch.from_numpy(windows.cutoff)
        data = PanelTensors.of(panel, network)
        batch = data.gather(series, ends, ends + 1, **window_sizes(network, 1))
    outputs = [forward(batch, torch.zeros(1, dtype=torch.long)) for forward in forwards]
    valid = outputs[0].frame.begun & (outputs[0].frame.scale > 0)
    difference = (outputs[0].quantiles - outputs[1].quantiles)[valid].abs()
    largest, mean = (float(difference.max()), float(difference.mean())) if difference.numel() else (0.0, 0.0)
    return Quantised(
        **sizes,
        max_difference=largest,
        mean_difference=mean,
        windows=int(valid.sum()),
        wql=scores[1],
        float_wql=scores[0],
    )


def _synthetic_windows(network: Forecaster) -> Batch:
    """Return windows of season and random walk around a level, with covariates at their means in training."""
    shape, generator = network.shape, torch.Generator().manual_seed(0)
    batch = example_windows(network, _MAX_WINDOWS)
    steps = batch.target.shape[1]
    season = torch.randn(_MAX_WINDOWS, shape.season_length, generator=generator)
    noise = torch.randn(batch.target.shape, generator=generator).cumsum(1) / steps**0.5
    target = 10 + season[:, torch.arange(steps) % shape.season_length] + noise
    observed = torch.ones_like(batch.observed)
    observed[:, shape.context_length :] = False
    sizes = [shape.n_past, shape.n_known, shape.n_static_numbers]
    means = [member.covariate_mean for member in recurrent_members(network)]
    past, known, numbers = (means[0] if means else torch.zeros(sum(sizes))).split(sizes)
    calendar = torch.rand(_MAX_WINDOWS, steps, shape.n_calendar, generator=generator)
    return batch._replace(
        target=target * observed,
        observed=observed,
        there=torch.ones_like(batch.there),
        past=past.expand_as(batch.past),
        known=torch.cat([known.expand(_MAX_WINDOWS, steps, -1), calendar], dim=-1),
        static_numbers=numbers.expand_as(batch.static_numbers),
    )


def _wql(artifact: Artifact, panel: Panel, windows: WindowIndex, forward: Forward) -> float:
    """Return the WQL of windows: sum of pinball losses / sum of absolute targets."""
    quantiles = predict(artifact, panel, windows, forward=forward).tuned.astype(np.float64)
    actual = future_values(panel, windows, artifact.horizon)
    valid = np.isfinite(quantiles).all((1, 2))
    levels = artifact.model.quantile_levels
    ones = np.ones(int(valid.sum()))  # Scales of scores that are not used here.
    scores = score_windows(actual[valid], quantiles[valid], levels=levels, scale=ones, root_scale=ones)
    return float(scores["pinball"].sum() / scores["abs_target"].sum())


def _input_fields(artifact: Artifact) -> dict[str, Any]:
    """Return type, shape and meaning of each input of a graph, by name."""
    shape, data = artifact.network.shape, artifact.data
    steps = shape.context_length + shape.horizon
    index = artifact.trained_until
    statics = data.static_covariates
    coded = [name for name in statics if name in artifact.categories]
    scale = "asinh(target / unit)" if shape.unit else "target"
    return {
        "target": {"dtype": "float32", "shape": ["window", steps], "is": f"{scale}; 0 where not observed"},
        "observed": {"dtype": "bool", "shape": ["window", steps], "is": "false over the horizon"},
        "past": {
            "dtype": "float32",
            "shape": ["window", steps, shape.n_past],
            "columns": [*data.past_covariates, *feature_names(data)],
            "is": "NaN where missing, and over the horizon",
        },
        "known": {
            "dtype": "float32",
            "shape": ["window", steps, shape.n_known + shape.n_calendar],
            "columns": [*data.known_covariates, *calendar_features(artifact.grid, index, index, data)[0]],
            "is": "NaN where missing, 0 before the series begins",
        },
        "there": {"dtype": "bool", "shape": ["window", steps], "is": "false before the series begins"},
        "static_categories": {"dtype": "int64", "shape": ["window", len(coded)], "columns": coded},
        "static_numbers": {
            "dtype": "float32",
            "shape": ["window", shape.n_static_numbers],
            "columns": [name for name in statics if name not in coded],
        },
    }


def _sidecar(artifact: Artifact, bank_file: str, graph_inputs: frozenset[str]) -> dict[str, Any]:
    """Return the content of SIDECAR: all that a program needs to run the graph and use its outputs."""
    shape, data = artifact.network.shape, artifact.data
    return {
        "gatecast": gatecast_version(),
        "opset": OPSET,
        "context_length": shape.context_length,
        "horizon": shape.horizon,
        "freq": data.freq,
        "trained_until": artifact.trained_until_timestamp.isoformat(),
        "inputs": {name: field for name, field in _input_fields(artifact).items() if name in graph_inputs},
        "outputs": list(OUTPUTS),
        "head": artifact.model.head,
        "quantile_levels": artifact.model.quantile_levels,
        "arguments": _ARGUMENTS[artifact.model.head],
        "unit": shape.unit,
        "value": "location + scale * quantile" if not shape.unit else "unit * sinh(location + scale * quantile)",
        "codes": "of categories: their place in `categories` of config.json, from 1 on; 0 for all others",
        "calibrated": None
        if artifact.calibration is None
        else {
            "shift": "[row, bucket, level] of calibration.safetensors; `bucket` there has that of each step",
            "row": "the place of the series in calibration.json, from 1 on; 0 for all others",
            "quantile": "quantile + shift * (last quantile - first quantile), in the units of the target; then, from "
            "the median outward, never less far from it than the quantile before",
        },
        "fine_tuned": None
        if artifact.bank is None
        else {
            "series_id": f"{bank_file}.json, in the order of the rows of {bank_file}.safetensors",
            "features": f"[1, the last {head_feature_count(shape, 0) - 1} of window, state]",
            "quantile": "median + width * (quantile - median) + features @ weight",
        },
    }
