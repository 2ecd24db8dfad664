"""A model for other programs: the network as ONNX, and what is needed around it as JSON."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from forecast.artifact import Artifact
from forecast.data.calendar import calendar_features
from forecast.data.features import feature_names
from forecast.errors import ConfigError
from forecast.models.bank import HEAD, head_feature_count
from forecast.models.onnx import OPSET, OUTPUTS, exported

GRAPH: Final = "model.onnx"
AROUND: Final = "onnx.json"

# What the arguments of a head are, in the frame's units but where it says otherwise.
_ARGUMENTS: Final = {
    "quantile": ("quantile at each level",),
    "normal": ("mean", "standard deviation"),
    "student_t": ("location", "scale", "degrees of freedom"),
    "poisson": ("location", "divisor", "mean of the target itself"),
    "negative_binomial": ("location", "divisor", "mean of the target itself", "root of the variance beyond the mean"),
    "tweedie": ("location", "divisor", "mean of the target itself", "dispersion"),
}


def export_onnx(artifact: Artifact, folder: Path) -> None:
    """Write GRAPH and AROUND, which go beside the files of the model.

    Raises ConfigError for a model that is no graph, or if onnx is not installed.
    """
    if artifact.bank is not None and artifact.bank.kind != HEAD:
        raise ConfigError(
            f"finetune.kind: with {artifact.bank.kind} each series has a network of its own, which is no one graph; "
            "export the pretrained version, or one fine-tuned with finetune.kind=head"
        )
    (folder / GRAPH).write_bytes(exported(artifact.network))
    (folder / AROUND).write_text(json.dumps(_around(artifact), indent=1) + "\n", encoding="utf-8")


def _around(artifact: Artifact) -> dict[str, Any]:
    shape, data = artifact.network.shape, artifact.data
    steps = shape.context_length + shape.horizon
    at = artifact.trained_until
    statics = data.static_covariates
    coded = [name for name in statics if name in artifact.categories]
    scale = "asinh(target / unit)" if shape.unit else "target"
    inputs: dict[str, Any] = {
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
            "columns": [*data.known_covariates, *calendar_features(artifact.grid, at, at, data)[0]],
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
    return {
        "gatecast": version("gatecast"),
        "opset": OPSET,
        "context_length": shape.context_length,
        "horizon": shape.horizon,
        "freq": data.freq,
        "inputs": {name: field for name, field in inputs.items() if field["shape"][-1]},
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
            "series_id": "bank.json, in the order of the rows of bank.safetensors",
            "features": f"[1, the last {head_feature_count(shape, 0) - 1} of window, state]",
            "quantile": "median + width * (quantile - median) + features @ weight",
        },
    }
