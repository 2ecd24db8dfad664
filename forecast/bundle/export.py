"""Writes bundles."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from forecast.artifact import Artifact
from forecast.artifact_files import write_json
from forecast.bundle.bundle import (
    ADAPTER,
    CALIBRATION,
    FINAL,
    FORECAST_GRAPH,
    FORMAT_VERSION,
    MANIFEST,
    NAIVE_GRAPH,
    PARTS,
)
from forecast.bundle.graph import forecast_graph, naive_graph
from forecast.data.files import file_hash
from forecast.environment import gatecast_version
from forecast.errors import ConfigError
from forecast.models.inputs.shape import NetworkShape
from forecast.models.runtime.onnx import check_bank

_HEADS = ("quantile", "normal")
"""Heads whose quantiles ONNX has the functions for."""


def export_bundle(artifact: Artifact, names: dict[str, str], folder: Path) -> None:
    """Write a model as a bundle into an empty folder; `names` identifies its version (`Bundle.names`).

    Raises ConfigError for a model that has no such graph, or if onnx or ONNX Runtime is not installed.
    """
    _check(artifact)
    config: dict[str, Any] = {
        "shape": {field.name: getattr(artifact.shape, field.name) for field in fields(NetworkShape)},
        "data": artifact.data.without_source().model_dump(mode="json"),
        "window": artifact.window.model_dump(mode="json"),
        "quantile_levels": artifact.quantile_levels,
        "categories": artifact.categories,
        "grid": artifact.grid.to_json(),
        "trained_until": artifact.trained_until,
        "side_tables": dict(artifact.side_tables),
        "weights": _write_weights(artifact, folder, ""),
    }
    if artifact.final is not None:
        weights = _write_weights(artifact.final, folder, FINAL)
        config["final"] = {"trained_until": artifact.final.trained_until, "weights": weights}
    files = {path.name: file_hash(path) for path in sorted(folder.iterdir())}
    manifest = {
        "format_version": FORMAT_VERSION,
        "gatecast": gatecast_version(),
        "names": names,
        "config": config,
        "files": files,
    }
    write_json(folder / MANIFEST, manifest)


def _check(artifact: Artifact) -> None:
    check_bank(artifact.bank)
    if artifact.classes is None and artifact.model.head not in _HEADS:
        raise ConfigError(
            f"export.format=bundle: the quantiles of model.head={artifact.model.head} need functions that ONNX lacks; "
            f"train one with model.head={' or '.join(_HEADS)}, or score the registered version"
        )


def _write_weights(artifact: Artifact, folder: Path, prefix: str) -> dict[str, str]:
    """Write the files of a model without its final fit; return their names by what they hold (`Bundle.files`)."""
    bank, calibration = artifact.bank, artifact.calibration
    if bank is not None and not bank.series_id:  # No series has changes.
        bank = None
    artifact = replace(artifact, bank=bank)
    graphs = {FORECAST_GRAPH: forecast_graph(artifact), NAIVE_GRAPH: naive_graph(artifact)}
    arrays: dict[str, np.ndarray] = {}
    rows: dict[str, dict[str, int]] = {}
    if bank is not None:
        rows[ADAPTER] = {name: row for row, name in enumerate(bank.series_id)}
        arrays |= {f"{ADAPTER}_{name}": bank.tensors[name].numpy() for name in PARTS[ADAPTER]}
    if calibration is not None:
        rows[CALIBRATION] = {name: row for row, name in enumerate(calibration.series_id, 1)}
        arrays[f"{CALIBRATION}_shift"] = calibration.shift.numpy()
    for name, content in graphs.items():
        (folder / (prefix + name)).write_bytes(content)
    for name, values in arrays.items():
        np.save(folder / f"{prefix}{name}.npy", values)
    for part, places in rows.items():
        (folder / f"{prefix}{part}_row.json").write_text(json.dumps(places), encoding="utf-8")
    names = [*graphs, *(f"{name}.npy" for name in arrays), *(f"{part}_row.json" for part in rows)]
    return {name: prefix + name for name in names}
