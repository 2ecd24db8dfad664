"""Forecasts of all series of a panel or a table, from one cutoff."""

from dataclasses import replace
from datetime import datetime
from typing import Any

import numpy as np
import polars as pl

from forecast.artifact import Artifact
from forecast.config import AUTO
from forecast.data.ages import MaxAge
from forecast.data.ingest.loaded import Loaded
from forecast.data.panel import Panel
from forecast.data.sources.frames import to_lazy
from forecast.data.sources.open import used_columns
from forecast.prediction.cold import ColdProfile
from forecast.prediction.cutoffs import check_cutoff
from forecast.prediction.fallback import forecast_shard
from forecast.prediction.result import Forecasts
from forecast.prediction.torch_predictor import TorchPredictor


def forecast(
    artifact: Artifact,
    panel: Panel,
    *,
    cutoff: int | None = None,
    max_age: MaxAge = AUTO,
    model_version: str = "",
    device: str = "cpu",
    cold_start: bool = False,
) -> Forecasts:
    """Return the forecasts of every series from grid index `cutoff`, the latest step of the panel when None.

    Series whose last observation is older than `max_age` are rejects; so are those without any, unless `cold_start`
    forecasts them from the others. Raises DataError if the panel ends before the
    cutoff, or begins after it.
    """
    cutoff = check_cutoff(panel, cutoff)
    artifact = artifact.for_cutoff(cutoff)
    cold = ColdProfile.of(panel, cutoff, artifact.network.shape.season_length) if cold_start else None
    return forecast_shard(
        artifact,
        panel,
        cutoff,
        max_age=max_age,
        model_version=model_version,
        predictor=TorchPredictor(device=device),
        cold=cold,
    )


def forecast_loaded(
    artifact: Artifact,
    loaded: Loaded,
    *,
    cutoff: datetime | None = None,
    max_age: MaxAge = AUTO,
    model_version: str = "",
    cold_start: bool = False,
) -> Forecasts:
    """Return the forecasts of every series of a panel that `artifact` has read, with rejected rows and series.

    `cutoff` is the last timestamp that a forecast may see, the latest of the panel when None. Series whose last
    observation is older than `max_age` are rejects. `cold_start` as in `forecast`.
    """
    index = None if cutoff is None else loaded.panel.grid.floor(cutoff)
    result = forecast(
        artifact, loaded.panel, cutoff=index, max_age=max_age, model_version=model_version, cold_start=cold_start
    )
    return Forecasts(result.frame, pl.concat([loaded.rejects, result.rejects]))


def forecast_frame(
    artifact: Artifact,
    frame: object,
    *,
    cutoff: datetime | None = None,
    max_age: MaxAge = AUTO,
    model_version: str = "",
) -> Forecasts:
    """Return the forecasts of every series of a Polars, pandas or Arrow table; arguments as in `forecast_loaded`.

    Raises DataError as `Artifact.read`.
    """
    if artifact.data.weight is not None:  # Weights change no forecast.
        artifact = replace(artifact, data=artifact.data.model_copy(update={"weight": None}))
    rows = to_lazy(frame, used_columns(artifact.data).rows)
    loaded = artifact.read(rows, [cutoff])
    return forecast_loaded(artifact, loaded, cutoff=cutoff, max_age=max_age, model_version=model_version)


def example(artifact: Artifact) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return a synthetic table that the model can read, and its forecasts: signature and input example of the model."""
    columns, data = artifact.data.columns, artifact.data
    length = max(artifact.network.shape.season_length, 2) + 1
    steps = np.arange(artifact.trained_until - length + 1, artifact.trained_until + 1)
    targets: Any = 10.0 + np.round(5.0 * np.sin(2 * np.pi * np.arange(length) / (length - 1)), 3)
    if artifact.classes is not None:
        targets = [artifact.classes[step % len(artifact.classes)] for step in range(length)]
    is_wide = data.layout == "wide"
    table = pl.DataFrame(
        {
            **({} if is_wide else {columns.series_id: ["example"] * length}),
            columns.timestamp: artifact.grid.timestamps(steps),
            ("example" if is_wide else columns.target): targets,
            **{
                name: [(artifact.categories[name] or ("",))[0] if name in artifact.categories else 0.0] * length
                for name in (
                    *data.past_covariates,
                    *data.known_covariates,
                    *(() if is_wide else data.static_covariates),
                )
            },
            **({data.available: [1.0] * length} if data.available else {}),
        }
    )
    return table, forecast_frame(artifact, table).frame
