"""The interface of what forecasts windows with a model: torch, or the graphs of a bundle."""

from typing import TYPE_CHECKING, Any, Protocol

from forecast.data.panel import Panel
from forecast.data.windows import WindowIndex
from forecast.prediction.result import DoubleArray, Predicted

if TYPE_CHECKING:
    from forecast.models.network.carried_state import StateStore


class Predictor(Protocol):
    """Forecasts windows with the weights of a model."""

    def predict(
        self,
        model: Any,
        panel: Panel,
        windows: WindowIndex,
        *,
        samples: int = 0,
        carried: "StateStore | None" = None,
    ) -> Predicted:
        """Return the forecasts of windows; `samples` and `carried` as in `predict.predict`."""

    def naive(
        self, model: Any, panel: Panel, windows: WindowIndex, *, samples: int = 0
    ) -> tuple[DoubleArray, DoubleArray]:
        """Return seasonal naive in the form of a forecast: columns and samples, [n, horizon, column], and means."""
