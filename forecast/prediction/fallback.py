"""The forecast of each series with its fallbacks: fine-tuned, pretrained, seasonal naive, last value."""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import polars as pl

from forecast.config import AUTO
from forecast.data.ages import ENDED, MaxAge, age_limit, ages, have_ended
from forecast.data.availability import closed_ahead
from forecast.data.panel import Panel
from forecast.data.windows import WindowIndex, windows_at
from forecast.forecasting_model import ForecastingModel
from forecast.metrics.scores import midpoints
from forecast.metrics.seasonal_naive import SEASONS_BACK
from forecast.names import (
    SOURCE_CLOSED,
    SOURCE_COLD,
    SOURCE_FINE_TUNED,
    SOURCE_LAST_VALUE,
    SOURCE_PRETRAINED,
    SOURCE_SEASONAL_NAIVE,
)
from forecast.prediction.cold import ColdProfile
from forecast.prediction.frames import Predictions, forecast_rows, rejected_series
from forecast.prediction.predictor import Predictor
from forecast.prediction.result import DoubleArray, Forecasts, Predicted

if TYPE_CHECKING:
    from forecast.models.network.carried_state import StateStore

# A mean further from the history of its series than this many times its range is not plausible; the check needs this
# many observations.
_PLAUSIBLE_RANGES, _MIN_OBSERVATIONS = 10, 8
# Latest steps that are checked before the whole history is read.
_RECENT = 32


def forecast_shard(
    model: ForecastingModel,
    panel: Panel,
    cutoff: int,
    *,
    refused: npt.NDArray[np.bool_] | None = None,
    carried: "StateStore | None" = None,
    max_age: MaxAge = AUTO,
    model_version: str = "",
    samples: int = 0,
    predictor: Predictor | None = None,
    cold: ColdProfile | None = None,
) -> Forecasts:
    """Return the forecasts of every series from grid index `cutoff`; the panel may be a shard of a larger one.

    The weights are those of `model` itself, never those of its final fit. Sources in order: fine-tuned; pretrained;
    seasonal naive, if the model's forecast is not finite (no observation within its context) or its mean lies further
    from the history of the series than ten times its range; last value, if there is no recent full season. A step where
    nothing is available (data.available) is 0, with the source `closed`.

    Rejects are series that begin after the cutoff or have no observation up to it, those whose last observation is
    older than `max_age`, and those `refused`, [S], because known covariates are missing. `samples` and `carried` as in
    `predict`; the `predictor` is torch when None. With `cold`, series without any observation are forecast from it.
    """
    predictor = predictor or _torch_predictor()
    windows = windows_at(panel, cutoff)
    not_started = np.setdiff1d(np.arange(panel.n_series), windows.series)
    assert model.window.context_length is not None
    limit = age_limit(max_age, model.window.context_length, panel.grid, cutoff)
    over = have_ended(panel, windows, limit)
    ended, windows = windows[np.flatnonzero(over)], windows[np.flatnonzero(~over)]
    missing_known = np.zeros(0, np.int64)
    if refused is not None:
        missing_known = windows.series[refused[windows.series]]
        windows = windows[np.flatnonzero(~refused[windows.series])]
    # A shorter horizon is a prefix of the trained one, with the same sources.
    longest = model.until(model.reach)
    predicted = predictor.predict(longest, panel, windows, samples=samples, carried=carried)
    forecasts = _with_fallbacks(longest, panel, windows, predicted, predictor, samples)
    if cold is not None:
        forecasts = _with_cold(longest, panel, forecasts, samples, cold)
    valid = _finite(forecasts.values, forecasts.mean)
    forecasts = forecasts.until(model.horizon)
    forecasts = _with_closures(panel, forecasts)
    frame = forecast_rows(model, panel, forecasts.select(valid), samples, cutoff, model_version)
    rejects = pl.concat(
        [
            rejected_series(panel, windows.series[~valid], "no observation up to the cutoff"),
            rejected_series(panel, not_started, "begins after the cutoff"),
            rejected_series(panel, missing_known, "known covariates missing over the horizon"),
            rejected_series(panel, ended.series, ENDED, cutoff - ages(panel, ended)),
        ]
    )
    return Forecasts(frame, rejects)


def _torch_predictor() -> Predictor:
    from forecast.prediction.torch_predictor import TorchPredictor

    return TorchPredictor()


def _with_fallbacks(
    model: ForecastingModel,
    panel: Panel,
    windows: WindowIndex,
    predicted: Predicted,
    predictor: Predictor,
    samples: int,
) -> Predictions:
    """Return the forecast of each window from the first source that gives a plausible one, else from the naive ones."""
    values, mean = predicted.tuned.astype(np.float64), predicted.tuned_mean
    source = np.where(predicted.is_tuned, SOURCE_FINE_TUNED, SOURCE_PRETRAINED).astype(object)
    context = None if model.classes is not None else model.shape.context_length
    plausible = _plausible(values, mean, panel, windows, context)
    use_base = ~plausible & _plausible(predicted.base, predicted.base_mean, panel, windows, context)
    values[use_base], mean[use_base] = predicted.base[use_base], predicted.base_mean[use_base]
    source[use_base] = SOURCE_PRETRAINED
    fallback = np.flatnonzero(~plausible & ~use_base)
    if len(fallback):
        season = model.shape.season_length
        values[fallback], mean[fallback] = predictor.naive(model, panel, windows[fallback], samples=samples)
        end = np.minimum(windows.cutoff, panel.lengths[windows.series] - 1)[fallback]
        has_season = (end >= season - 1) & (windows.cutoff[fallback] - end < season * SEASONS_BACK)
        source[fallback] = np.where(has_season, SOURCE_SEASONAL_NAIVE, SOURCE_LAST_VALUE)
    return Predictions(windows, values, mean, np.repeat(source[:, None], mean.shape[1], axis=1))


def _with_cold(
    model: ForecastingModel, panel: Panel, forecasts: Predictions, samples: int, cold: ColdProfile
) -> Predictions:
    """Return the forecasts with those of the profile for the series that have no observation at all."""
    source, levels = forecasts.source.copy(), (*model.quantile_levels, *midpoints(samples))
    for row in np.flatnonzero(~_finite(forecasts.values, forecasts.mean)):
        series = forecasts.windows.series[row]
        if np.isfinite(panel.target[panel.offsets[series] : panel.offsets[series + 1]]).any():
            continue
        covariates = panel.static_categories[series], panel.static_numbers[series]
        forecasts.values[row], forecasts.mean[row] = cold.forecast(*covariates, model.horizon, levels)
        source[row] = SOURCE_COLD
    return forecasts._replace(source=source)


def _with_closures(panel: Panel, forecasts: Predictions) -> Predictions:
    """Return the forecasts with 0 for the steps where nothing is available."""
    closed = closed_ahead(panel, forecasts.windows, forecasts.mean.shape[1])
    if not closed.any():
        return forecasts
    values, mean = np.where(closed[..., None], 0.0, forecasts.values), np.where(closed, 0.0, forecasts.mean)
    return Predictions(forecasts.windows, values, mean, np.where(closed, SOURCE_CLOSED, forecasts.source))


def _finite(values: np.ndarray, mean: np.ndarray) -> npt.NDArray[np.bool_]:
    """Return a mask of the windows whose values and means are all finite, [n]."""
    finite: npt.NDArray[np.bool_] = np.isfinite(values).all((1, 2)) & np.isfinite(mean).all(1)
    return finite


def _plausible(
    values: np.ndarray, mean: DoubleArray, panel: Panel, windows: WindowIndex, context: int | None
) -> npt.NDArray[np.bool_]:
    """Return a mask of the windows with finite values and plausible means, [n].

    Means, [n, horizon], are plausible within ten times the range of the observations up to the cutoff, on either side
    of them. Series of few observations or of one value have no limits, and neither have classes, whose `context` is
    None.
    """
    plausible = _finite(values, mean)
    if context is None or not plausible.any():
        return plausible
    first, end = panel.offsets[windows.series], np.minimum(windows.cutoff + 1, panel.lengths[windows.series])
    ago = end[:, None] - np.arange(1, min(context, _RECENT) + 1)
    recent = np.where(ago >= 0, panel.target[first[:, None] + np.maximum(ago, 0)], np.nan)
    # Within the limits of recent values implies within those of the history, which is then read for few series only.
    has_limits, within = _within_limits(mean, recent)
    for row in np.flatnonzero(plausible & ~(has_limits & within)):
        has_limits, within = _within_limits(mean[[row]], panel.target[None, first[row] : first[row] + end[row]])
        plausible[row] = bool((within | ~has_limits)[0])
    return plausible


def _within_limits(mean: DoubleArray, values: np.ndarray) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return masks of windows with limits by `values`, [n, step], and of those whose means are within, [n] both.

    Limits need enough values that are not all equal.
    """
    missing = np.isnan(values)
    lowest, highest = np.where(missing, np.inf, values).min(1), np.where(missing, -np.inf, values).max(1)
    has_limits = ((~missing).sum(1) >= _MIN_OBSERVATIONS) & (highest > lowest)
    margin = _PLAUSIBLE_RANGES * np.where(has_limits, highest - lowest, 0.0)
    return has_limits, has_limits & (mean.min(1) >= lowest - margin) & (mean.max(1) <= highest + margin)
