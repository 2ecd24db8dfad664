"""The graphs of a bundle in ONNX Runtime, as the model of a scoring job."""

import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from forecast.bundle.bundle import FORECAST_GRAPH, NAIVE_GRAPH, PARTS, Bundle
from forecast.data.ingest.outliers import outlier_mask
from forecast.data.panel import Panel
from forecast.data.windows import WindowIndex
from forecast.errors import ConfigError
from forecast.metrics.seasonal_naive import seasonal_naive, seasonal_naive_errors
from forecast.prediction.result import DoubleArray, Predicted

if TYPE_CHECKING:
    from forecast.models.network.carried_state import StateStore

FORECASTS: Final = ("base", "tuned", "base_mean", "tuned_mean")
"""Outputs of FORECAST_GRAPH: fields of `Predicted`."""
NAIVE: Final = ("columns", "mean")
"""Outputs of NAIVE_GRAPH."""
WINDOWS: Final = 64
"""Windows that a graph takes at once. A fixed number makes a graph quick to open, and each forecast independent of how
many there are."""


class BundleModel:
    """The model of a scoring job from a bundle (`scoring.cutoff_model.CutoffModel`): the weights for a cutoff."""

    runtime = "bundle"

    def __init__(self, bundle: Bundle) -> None:
        self.artifact = bundle
        self.weights = bundle.latest
        self._predictors: dict[int, BundlePredictor] = {}

    @property
    def is_latest(self) -> bool:
        """Whether the weights are the latest ones, those of the final fit if there is one."""
        return self.weights is self.artifact.latest

    @property
    def predictor(self) -> "BundlePredictor":
        """What forecasts windows with `weights`."""
        return self._predictors.setdefault(id(self.weights), BundlePredictor(self.weights))

    def select(self, cutoff: int) -> None:
        """Select the weights for a cutoff, a grid index."""
        self.weights = self.artifact.for_cutoff(cutoff)


class BundlePredictor:
    """Forecasts windows with the graphs of a bundle, which are opened when they are needed."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle

    @cached_property
    def _forecast(self) -> Any:
        return _session(self._bundle.path(FORECAST_GRAPH))

    @cached_property
    def _naive(self) -> Any:
        return _session(self._bundle.path(NAIVE_GRAPH))

    def predict(
        self,
        model: Bundle,
        panel: Panel,
        windows: WindowIndex,
        *,
        samples: int = 0,
        carried: "StateStore | None" = None,
    ) -> Predicted:
        """Return the forecasts of windows up to the horizon of `model`."""
        assert not samples, "BundleScoreConfig refuses them"
        assert carried is None, "BundleScoreConfig refuses them"
        if not len(windows):
            size = 0, model.horizon, len(model.levels)
            no_values, no_mean = np.zeros(size, np.float32), np.zeros(size[:2])
            return Predicted(no_values, no_values, no_mean, no_mean, np.zeros(0, bool))
        names = [field.name for field in self._forecast.get_inputs()]
        inputs = panel_inputs(panel, self._bundle.shape.unit)
        rows = {"series": windows.series, "cutoff": windows.cutoff}
        is_tuned = np.zeros(len(windows), dtype=bool)
        for part in PARTS:
            if f"{part}_row" in names:
                places, missing = self._bundle.rows[part], _MISSING[part]
                series = [places.get(name, missing) for name in panel.series_id.tolist()]
                rows[f"{part}_row"] = np.array(series, dtype=np.int64)[windows.series]
                inputs |= self._bundle.arrays(part)
        if "adapter_row" in rows:
            is_tuned = rows["adapter_row"] >= 0
        inputs = {name: np.ascontiguousarray(values) for name, values in inputs.items() if name in names}
        parts = _run_in_batches(self._forecast, FORECASTS, inputs, rows, len(windows))
        steps = slice(model.horizon)
        base, tuned, base_mean, tuned_mean = (values[:, steps] for values in parts)
        return Predicted(base, tuned, base_mean, tuned_mean, is_tuned)

    def naive(
        self, model: Bundle, panel: Panel, windows: WindowIndex, *, samples: int = 0
    ) -> tuple[DoubleArray, DoubleArray]:
        """Return seasonal naive in the form of a forecast: quantiles, [n, horizon, level], and means, [n, horizon]."""
        assert not samples, "BundleScoreConfig refuses them"
        season = model.shape.season_length
        columns = seasonal_naive(panel, windows, horizon=model.reach, season=season, levels=model.levels)
        _, sigma = seasonal_naive_errors(panel, windows, season)
        rows = {"quantiles": columns.astype(np.float64), "without_scale": np.isnan(sigma)}
        outputs = _run_in_batches(self._naive, NAIVE, {}, rows, len(windows))
        columns, mean = (np.asarray(part, np.float64) for part in outputs)
        return columns[:, : model.horizon], mean[:, : model.horizon]


_MISSING: Final = {"adapter": -1, "calibration": 0}
"""Row of a series that a part does not name: without changes, and the shifts of all other series."""


def panel_inputs(panel: Panel, unit: float) -> dict[str, np.ndarray]:
    """Return a panel as inputs of a graph (PANEL_BUFFERS); `unit` is that of the scale of the model."""
    mask = outlier_mask(panel, unit)
    return {
        "offsets": panel.offsets,
        "start": panel.start,
        "lengths": panel.lengths,
        "target": panel.target.astype(np.float64),
        "outlier": np.zeros(len(panel.target), np.uint8) if mask is None else mask,
        "past": panel.past,
        "known": panel.known,
        "calendar": panel.calendar,
        "clock_shift": panel.clock_shift,
        "static_categories": panel.static_categories,
        "static_numbers": panel.static_numbers,
        "horizon": np.array(panel.horizon, dtype=np.int64),
        "calendar_start": np.array(panel.calendar_start, dtype=np.int64),
    }


def _run_in_batches(
    session: Any,
    outputs: tuple[str, ...],
    inputs: Mapping[str, np.ndarray],
    rows: Mapping[str, np.ndarray],
    count: int,
) -> list[np.ndarray]:
    """Return the outputs of `count` windows, at least one; `rows` are the inputs with an entry each, [count, ...]."""
    parts = []
    for first in range(0, count, WINDOWS):
        # The last window stands in for those that the last batch lacks.
        index = np.minimum(np.arange(first, first + WINDOWS), count - 1)
        batch = {name: values[index] for name, values in rows.items()}
        parts.append([values[: count - first] for values in session.run(outputs, {**inputs, **batch})])
    return [np.concatenate(values) for values in zip(*parts, strict=True)]


def _session(path: Path) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise ConfigError("bundle: needs ONNX Runtime: pip install gatecast-score, or 'gatecast[onnx]'") from None
    options = onnxruntime.SessionOptions()
    threads = os.environ.get("OMP_NUM_THREADS", "")  # That of torch; without it, every core.
    options.intra_op_num_threads, options.inter_op_num_threads = int(threads) if threads.isdigit() else 0, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # Done at the export.
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
