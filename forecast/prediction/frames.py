"""Tables of forecasts and rejects."""

from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import polars as pl

from forecast.data.panel import IntArray, Panel
from forecast.data.windows import WindowIndex
from forecast.forecasting_model import ForecastingModel
from forecast.names import (
    CLASS,
    CUTOFF,
    MEAN,
    MODEL_VERSION,
    REASON,
    SERIES_ID,
    SOURCE,
    STEP,
    TIMESTAMP,
    VALUE,
    sample_column,
)


def rejected_series(panel: Panel, series: np.ndarray, reason: str, index: IntArray | None = None) -> pl.DataFrame:
    """Return rejects of `series` ([n] rows of the panel); `index`, [n], gives their timestamps, null when None."""
    n, timestamp = len(series), panel.grid.timestamps(np.zeros(0, np.int64) if index is None else index)
    return pl.DataFrame(
        {
            SERIES_ID: pl.Series(panel.series_id[series].tolist(), dtype=pl.String),
            TIMESTAMP: pl.repeat(None, n, dtype=timestamp.dtype, eager=True) if index is None else timestamp,
            REASON: pl.repeat(reason, n, dtype=pl.String, eager=True),
            VALUE: pl.repeat(None, n, dtype=pl.Float64, eager=True),
        }
    )


class Predictions(NamedTuple):
    """Forecasts of n windows with the source of each."""

    windows: WindowIndex
    values: np.ndarray
    """[n, horizon, column], quantiles or probabilities, followed by samples."""
    mean: np.ndarray
    """[n, horizon]; for classes the code of the most probable one."""
    source: np.ndarray
    """[n, horizon]."""

    def until(self, horizon: int) -> Self:
        """Return the first `horizon` steps."""
        values, mean, source = (part[:, :horizon] for part in self[1:])
        return type(self)(self.windows, values, mean, source)

    def select(self, mask: npt.NDArray[np.bool_]) -> Self:
        """Return the forecasts of the windows in `mask`, [n]."""
        if mask.all():
            return self
        index = np.flatnonzero(mask)
        return type(self)(self.windows[index], self.values[mask], self.mean[mask], self.source[mask])


def forecast_rows(
    model: ForecastingModel, panel: Panel, predictions: Predictions, samples: int, cutoff: int, model_version: str
) -> pl.DataFrame:
    """Return the table of forecasts from grid index `cutoff`, by series and step (`Forecasts.frame`)."""
    windows, values, mean, source = predictions
    n, horizon = len(windows), model.horizon
    classes = model.classes
    location_columns: dict[str, Any] = {MEAN: mean.ravel()}
    if classes is not None:
        location_columns = {CLASS: pl.Series(classes, dtype=pl.String).gather(mean.ravel().astype(np.int64))}
    ahead = panel.grid.timestamps(np.arange(cutoff, cutoff + horizon + 1))
    return pl.DataFrame(
        {
            SERIES_ID: pl.Series(panel.series_id[windows.series].tolist(), dtype=pl.String).gather(
                np.repeat(np.arange(n), horizon)
            ),
            TIMESTAMP: ahead[1:].gather(np.tile(np.arange(horizon), n)),
            CUTOFF: ahead[:1].gather(np.zeros(n * horizon, dtype=np.int64)),
            STEP: np.tile(np.arange(1, horizon + 1, dtype=np.int32), n),
            **location_columns,
            **{
                name: values[..., k].ravel()
                for k, name in enumerate((*model.columns, *map(sample_column, range(samples))))
            },
            SOURCE: pl.Series(source.ravel(), dtype=pl.String),
            MODEL_VERSION: pl.repeat(model_version, n * horizon, dtype=pl.String, eager=True),
        }
    )
