"""Forecasts of windows by torch, or with a network that another runtime runs."""

from dataclasses import dataclass

import numpy as np

from forecast.artifact import Artifact
from forecast.data.panel import Panel
from forecast.data.windows import WindowIndex
from forecast.models.network.carried_state import StateStore
from forecast.models.runtime.onnx import Forward
from forecast.prediction.naive import mean_of_naive, naive_forecasts
from forecast.prediction.predict import predict
from forecast.prediction.result import DoubleArray, Predicted


@dataclass(frozen=True)
class TorchPredictor:
    """Forecasts with an `Artifact`; `forward` and `device` as in `predict.predict`."""

    forward: Forward | None = None
    device: str = "cpu"

    def predict(
        self,
        model: Artifact,
        panel: Panel,
        windows: WindowIndex,
        *,
        samples: int = 0,
        carried: StateStore | None = None,
    ) -> Predicted:
        """Return the forecasts of windows."""
        return predict(
            model, panel, windows, samples=samples, forward=self.forward, device=self.device, carried=carried
        )

    def naive(
        self, model: Artifact, panel: Panel, windows: WindowIndex, *, samples: int = 0
    ) -> tuple[DoubleArray, DoubleArray]:
        """Return seasonal naive in the form of a forecast."""
        columns = naive_forecasts(model, panel, windows)
        mean = mean_of_naive(model, columns)
        if samples:
            columns = np.concatenate([columns, naive_forecasts(model, panel, windows, points=samples)], axis=-1)
        return columns, mean
