"""The model of a scoring job: its weights for a cutoff, in the runtime of the job."""

from contextlib import suppress
from pathlib import Path
from typing import Literal

import torch

from forecast.artifact import Artifact
from forecast.config import ScoreSettings
from forecast.data.files import write_text_once
from forecast.data.windows import BATCH_SIZE
from forecast.errors import ConfigError
from forecast.models.runtime.onnx import Forward, OnnxForecaster, is_faster
from forecast.prediction.torch_predictor import TorchPredictor


class CutoffModel:
    """A model with the weights for the current cutoff, in ONNX Runtime or torch (`score.runtime`).

    The choice of score.runtime=auto is kept in the scores folder: files must not depend on the load of the machine.
    Raises ConfigError if ONNX Runtime is asked for and can't run the model, or a GPU and there is none.
    """

    def __init__(self, artifact: Artifact, score: ScoreSettings, choice: Path, n_series: int) -> None:
        if score.runtime == "cuda" and not torch.cuda.is_available():
            raise ConfigError("score.runtime: cuda asked for, but torch finds no GPU here; set it to torch or auto")
        self.artifact = artifact
        self.device: Literal["cpu", "cuda"] = "cuda" if score.runtime == "cuda" else "cpu"
        self.weights = artifact.latest
        """The model with the weights for the cutoff."""
        self.forward = self._forward(score, choice, n_series)
        """The network in ONNX Runtime, None to run it in torch."""

    @property
    def predictor(self) -> TorchPredictor:
        """What forecasts windows with `weights`."""
        return TorchPredictor(self.forward, self.device)

    @property
    def runtime(self) -> str:
        """`onnx`, `torch` or `cuda`."""
        if self.device == "cuda":
            return self.device
        return "torch" if self.forward is None else "onnx"

    @property
    def is_latest(self) -> bool:
        """Whether the weights are the latest ones, those of the final fit if there is one."""
        return self.weights is self.artifact.latest

    def select(self, cutoff: int) -> None:
        """Select the weights for a cutoff, a grid index."""
        weights = self.artifact.for_cutoff(cutoff)
        if weights is not self.weights and self.forward is not None:
            self.forward = OnnxForecaster(weights.network)
        self.weights = weights

    def _forward(self, score: ScoreSettings, choice: Path, n_series: int) -> Forward | None:
        """Return the network in ONNX Runtime, None to run it in torch; `choice` is the file that keeps the faster."""
        if score.runtime in ("torch", "cuda") or score.state is not None:
            return None  # An ONNX graph cannot resume from a state.
        if score.runtime == "onnx":
            return OnnxForecaster(self.weights.network)
        with suppress(OSError):
            if choice.read_text() == "torch":
                return None
        try:
            onnx = OnnxForecaster(self.weights.network)
        except ConfigError:  # Not installed, or unable to run this model.
            return None
        if choice.exists():
            return onnx
        faster = is_faster(onnx, self.weights.network, min(n_series, BATCH_SIZE))
        # Of several shares of a job that measure at once, all take the choice of the first.
        return None if write_text_once("onnx" if faster else "torch", choice) == "torch" else onnx
