"""How a network forecasts series of a stream that it was not trained on."""

import numpy as np

from forecast.models.universal.forecasting import forecast_series
from forecast.models.universal.network import LEVELS, MEDIAN, UniversalNetwork
from forecast.pretraining.batches import HORIZON, Series

_LOW, _HIGH = LEVELS.index(0.1), LEVELS.index(0.9)
_LONGEST = 24


def validate(network: UniversalNetwork, series: Series) -> dict[str, float]:
    """Return figures of median and 80 % interval over the first season after each history, 6 to 24 steps.

    `validation/mae` is relative to seasonal naive, the geometric mean over series; `validation/coverage` is the share
    of targets inside the interval; `validation/wql` is the pinball loss over seasonal naive's absolute error.
    """
    values = np.where(series.observed, series.values, np.nan).astype(np.float64)
    first = series.observed.argmax(1)
    past = [row[begin:-HORIZON] for row, begin in zip(values, first, strict=True)]
    season = np.minimum(series.season, [len(row) for row in past])
    quantiles = forecast_series(network, past, series.season.tolist(), series.second.tolist(), _LONGEST)
    actual = values[:, -HORIZON:][:, :_LONGEST]
    steps = np.arange(_LONGEST)
    naive = np.stack([_filled(row)[-length:][steps % length] for row, length in zip(past, season, strict=True)])
    counted = ~np.isnan(actual) & (steps < np.maximum(series.season, 6)[:, None])
    error = np.abs(np.where(counted, actual - quantiles[..., MEDIAN], 0)).sum(1)
    reference = np.abs(np.where(counted, actual - naive, 0)).sum(1)
    usable = (reference > 0) & (error > 0)
    inside = (actual >= quantiles[..., _LOW]) & (actual <= quantiles[..., _HIGH])
    distance = np.where(counted, actual, 0)[..., None] - np.where(counted[..., None], quantiles, 0)
    loss = 2 * np.maximum(np.multiply(LEVELS, distance), np.subtract(LEVELS, 1) * distance).mean(-1).sum(1)
    return {
        "validation/mae": float(np.exp(np.log(error[usable] / reference[usable]).mean())),
        "validation/wql": float(np.exp(np.log(loss[usable] / reference[usable]).mean())),
        "validation/coverage": float(inside[counted].mean()),
    }


def _filled(values: np.ndarray) -> np.ndarray:
    latest = np.maximum.accumulate(np.where(np.isnan(values), 0, np.arange(len(values))))
    return values[latest]
