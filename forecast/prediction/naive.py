"""Seasonal naive in the form of a model's forecast: with its columns, levels and support of the target."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from forecast.artifact import Artifact
from forecast.data.panel import Panel
from forecast.data.windows import WindowIndex
from forecast.metrics.scores import midpoints
from forecast.metrics.seasonal_naive import seasonal_naive, seasonal_naive_classes, seasonal_naive_errors
from forecast.models.inputs.transform import to_data, to_model
from forecast.models.network.ensemble import Forecaster, members_of
from forecast.models.tensors import untraced
from forecast.prediction.postprocess import mean_of
from forecast.prediction.result import DoubleArray


def naive_forecasts(
    artifact: Artifact,
    panel: Panel,
    windows: WindowIndex,
    *,
    season: int | None = None,
    points: int = 0,
    horizon: int | None = None,
    levels: Sequence[float] | None = None,
) -> DoubleArray:
    """Return seasonal naive in the form of the model's forecasts, [n, horizon, column].

    Forecasts of counts are whole numbers; those of counts and amounts are not below 0. `season`, `horizon` and `levels`
    (of numbers) are those of the model when None; `points` as in `predict`.
    """
    season = season or artifact.network.shape.season_length
    horizon = horizon or artifact.horizon
    levels = midpoints(points) if points else levels or artifact.model.quantile_levels
    if artifact.classes is not None:
        n_classes = len(artifact.classes)
        classes = seasonal_naive_classes(panel, windows, horizon=horizon, season=season, n_classes=n_classes)
        return classes.astype(np.float64)
    naive = seasonal_naive(panel, windows, horizon=horizon, season=season, levels=levels)
    _, sigma = seasonal_naive_errors(panel, windows, season)
    without_scale = np.isnan(sigma)
    if without_scale.any():
        point = torch.from_numpy(naive[without_scale]).double()
        naive[without_scale] = with_panel_scale(artifact.network, point, levels, season).numpy()
    return within_support(artifact, naive)


def with_panel_scale(
    network: Forecaster, point: Float[Tensor, "window horizon level"], levels: Sequence[float], season: int
) -> Float[Tensor, "window horizon level"]:
    """Return normal quantiles around `point`, in float64, with the panel's scale, as the series has none."""
    relative, absolute = (float(value) for value in members_of(network)[0].cold_scale)
    unit = network.shape.unit
    location = to_model(point, unit)
    with untraced():
        seasons_ahead = -(-torch.arange(1, point.shape[1] + 1) // season)
        growth, deviates = seasons_ahead[:, None].sqrt(), torch.special.ndtri(torch.tensor(levels, dtype=torch.float64))
    scale = (relative * location.abs()).clamp(min=absolute) * growth
    return to_data(location + scale * deviates, unit)


def mean_of_naive(artifact: Artifact, quantiles: DoubleArray) -> DoubleArray:
    """Return the means of the forecasts of `naive_forecasts`, [n, horizon]."""
    return np.asarray(mean_of(torch.from_numpy(quantiles), torch.empty(0), artifact.network.head).numpy())


def within_support(artifact: Artifact, quantiles: npt.NDArray[np.floating]) -> DoubleArray:
    """Return quantiles of a baseline, clipped to the support of the model's target (`Head.within_support`)."""
    values = torch.from_numpy(quantiles.astype(np.float64))
    return np.asarray(artifact.network.head.within_support(values).numpy())
