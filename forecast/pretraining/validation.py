"""Validation of a network on series of a stream that it was not trained on."""

import numpy as np

from forecast.models.universal.forecasting import forecast_series
from forecast.models.universal.network import LEVELS, MEDIAN, UniversalNetwork
from forecast.pretraining.batches import HORIZON, Series

_LOW, _HIGH = LEVELS.index(0.1), LEVELS.index(0.9)
_MAX_STEPS = 24


def validate(network: UniversalNetwork, series: Series) -> dict[str, float]:
    """Return metrics of median and 80 % interval over the first season after each history, 6 to 24 steps.

    `validation/mae` is relative to seasonal naive, the geometric mean over series; `validation/coverage` is the share
    of targets inside the interval; `validation/wql` is the pinball loss over seasonal naive's absolute error.
    """
    values = np.where(series.observed, series.values, np.nan).astype(np.float64)
    first = series.observed.argmax(1)
    histories = [row[begin:-HORIZON] for row, begin in zip(values, first, strict=True)]
    season = np.minimum(series.season, [len(row) for row in histories])
    quantiles = forecast_series(network, histories, series.season.tolist(), series.second.tolist(), _MAX_STEPS)
    actual = values[:, -HORIZON:][:, :_MAX_STEPS]
    steps = np.arange(_MAX_STEPS)
    naive = np.stack(
        [_fill_forward(row)[-length:][steps % length] for row, length in zip(histories, season, strict=True)]
    )
    is_scored = ~np.isnan(actual) & (steps < np.maximum(series.season, 6)[:, None])
    error = np.abs(np.where(is_scored, actual - quantiles[..., MEDIAN], 0)).sum(1)
    reference = np.abs(np.where(is_scored, actual - naive, 0)).sum(1)
    usable = (reference > 0) & (error > 0)
    is_covered = (actual >= quantiles[..., _LOW]) & (actual <= quantiles[..., _HIGH])
    error_by_level = np.where(is_scored, actual, 0)[..., None] - np.where(is_scored[..., None], quantiles, 0)
    loss = 2 * np.maximum(np.multiply(LEVELS, error_by_level), np.subtract(LEVELS, 1) * error_by_level).mean(-1).sum(1)
    return {
        "validation/mae": float(np.exp(np.log(error[usable] / reference[usable]).mean())),
        "validation/wql": float(np.exp(np.log(loss[usable] / reference[usable]).mean())),
        "validation/coverage": float(is_covered[is_scored].mean()),
    }


def _fill_forward(values: np.ndarray) -> np.ndarray:
    last_observed = np.maximum.accumulate(np.where(np.isnan(values), 0, np.arange(len(values))))
    return values[last_observed]
