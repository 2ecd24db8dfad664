"""Forecasts of a panel, and of a table."""

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
from forecast.prediction.cutoffs import check_cutoff
from forecast.prediction.fallback import forecast_shard
from forecast.prediction.result import Forecasts


def forecast(
    artifact: Artifact,
    panel: Panel,
    *,
    cutoff: int | None = None,
    max_age: MaxAge = AUTO,
    model_version: str = "",
    device: str = "cpu",
) -> Forecasts:
    """Return the forecasts of every series from grid index `cutoff`, the latest step of the panel when None.

    Series older than `max_age` are rejects. Raises DataError if the panel ends before the cutoff, or begins after it.
    """
    cutoff = check_cutoff(panel, cutoff)
    artifact = artifact.for_cutoff(cutoff)
    return forecast_shard(artifact, panel, cutoff, max_age=max_age, model_version=model_version, device=device)


def forecast_loaded(
    artifact: Artifact,
    loaded: Loaded,
    *,
    cutoff: datetime | None = None,
    max_age: MaxAge = AUTO,
    model_version: str = "",
) -> Forecasts:
    """Return the forecasts of every series of a panel that `artifact` has read, with the rejects of rows and series.

    `cutoff` is the last timestamp a forecast may see, the latest of the panel when None. Series older than `max_age`
    are rejects.
    """
    at = None if cutoff is None else loaded.panel.grid.floor(cutoff)
    made = forecast(artifact, loaded.panel, cutoff=at, max_age=max_age, model_version=model_version)
    return Forecasts(made.frame, pl.concat([loaded.rejects, made.rejects]))


def forecast_frame(
    artifact: Artifact,
    frame: object,
    *,
    cutoff: datetime | None = None,
    max_age: MaxAge = AUTO,
    model_version: str = "",
) -> Forecasts:
    """Return the forecasts of every series in a Polars, pandas or Arrow table, as `forecast_loaded`.

    Raises DataError as `Artifact.read`.
    """
    rows = to_lazy(frame, used_columns(artifact.data).rows)
    loaded = artifact.read(rows, [cutoff])
    return forecast_loaded(artifact, loaded, cutoff=cutoff, max_age=max_age, model_version=model_version)


def example(artifact: Artifact) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return a made-up table that the model can read, and its forecasts: the model's signature, and how to call it."""
    columns, data = artifact.data.columns, artifact.data
    length = max(artifact.network.shape.season_length, 2) + 1
    steps = np.arange(artifact.trained_until - length + 1, artifact.trained_until + 1)
    values: Any = 10.0 + np.round(5.0 * np.sin(2 * np.pi * np.arange(length) / (length - 1)), 3)
    if artifact.classes is not None:
        values = [artifact.classes[step % len(artifact.classes)] for step in range(length)]
    wide = data.layout == "wide"
    table = pl.DataFrame(
        {
            **({} if wide else {columns.series_id: ["example"] * length}),
            columns.timestamp: artifact.grid.timestamps(steps),
            ("example" if wide else columns.target): values,
            **{
                name: [(artifact.categories[name] or ("",))[0] if name in artifact.categories else 0.0] * length
                for name in (
                    *data.past_covariates,
                    *data.known_covariates,
                    *(() if wide else data.static_covariates),
                )
            },
        }
    )
    return table, forecast_frame(artifact, table).frame
