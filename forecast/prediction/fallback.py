"""The forecast of each series, or what stands in for it: fine-tuned, pretrained, naive, last value."""

import numpy as np
import numpy.typing as npt
import polars as pl

from forecast.artifact import Artifact
from forecast.config import AUTO
from forecast.data.ages import ENDED, MaxAge, age_limit, ages, have_ended
from forecast.data.panel import Panel
from forecast.data.windows import WindowIndex, windows_at
from forecast.metrics.seasonal_naive import SEASONS_BACK
from forecast.models.network.carried_state import StateStore
from forecast.models.runtime.onnx import Forward
from forecast.names import SOURCE_FINE_TUNED, SOURCE_LAST_VALUE, SOURCE_PRETRAINED, SOURCE_SEASONAL_NAIVE
from forecast.prediction.frames import forecast_rows, rejected_series
from forecast.prediction.naive import mean_of_naive, naive_forecasts
from forecast.prediction.predict import predict
from forecast.prediction.result import DoubleArray, Forecasts

# A mean so many times the range of its series' history away from it is not plausible; that takes so many observations.
_PLAUSIBLE_RANGES, _FEW_OBSERVATIONS = 10, 8
# Latest steps that are looked at before the whole history is.
_RECENT = 32


def forecast_shard(
    artifact: Artifact,
    panel: Panel,
    cutoff: int,
    *,
    refused: npt.NDArray[np.bool_] | None = None,
    carried: StateStore | None = None,
    max_age: MaxAge = AUTO,
    model_version: str = "",
    samples: int = 0,
    forward: Forward | None = None,
    device: str = "cpu",
) -> Forecasts:
    """Return the forecasts of every series from grid index `cutoff`, which is anywhere: the panel may be part of one.

    With the weights of `artifact` itself, whatever its final fit.

    The ladder: fine-tuned, pretrained, seasonal naive where the model gives no finite forecast (no observation within
    its context) or means beyond ten times the range of the series' history, last value where there is no full season of
    late. Rejected are series without any observation up to
    the cutoff, those whose last one is older than `max_age`, and those that are `refused`, [S], for the known
    covariates that they lack. `samples`, `forward` and `carried` as in `predict`.
    """
    windows = windows_at(panel, cutoff)
    late = np.setdiff1d(np.arange(panel.n_series), windows.series)
    assert artifact.window.context_length is not None
    limit = age_limit(max_age, artifact.window.context_length, panel.grid, cutoff)
    over = have_ended(panel, windows, limit)
    ended, windows = windows[np.flatnonzero(over)], windows[np.flatnonzero(~over)]
    lacking = np.zeros(0, np.int64)
    if refused is not None:
        lacking = windows.series[refused[windows.series]]
        windows = windows[np.flatnonzero(~refused[windows.series])]
    predicted = predict(artifact, panel, windows, samples=samples, forward=forward, device=device, carried=carried)

    quantiles, mean = predicted.tuned.astype(np.float64), predicted.tuned_mean
    source = np.where(predicted.is_tuned, SOURCE_FINE_TUNED, SOURCE_PRETRAINED).astype(object)
    context = None if artifact.classes is not None else artifact.network.shape.context_length
    finite = _sound(quantiles, mean, panel, windows, context)
    back_to_base = ~finite & _sound(predicted.base, predicted.base_mean, panel, windows, context)
    quantiles[back_to_base], mean[back_to_base] = predicted.base[back_to_base], predicted.base_mean[back_to_base]
    source[back_to_base] = SOURCE_PRETRAINED
    fallen = np.flatnonzero(~finite & ~back_to_base)
    if len(fallen):
        season = artifact.network.shape.season_length
        naive = naive_forecasts(artifact, panel, windows[fallen])
        mean[fallen] = mean_of_naive(artifact, naive)
        if samples:
            drawn = naive_forecasts(artifact, panel, windows[fallen], points=samples)
            naive = np.concatenate([naive, drawn], axis=-1)
        quantiles[fallen] = naive
        end = np.minimum(windows.cutoff, panel.lengths[windows.series] - 1)[fallen]
        enough = (end >= season - 1) & (windows.cutoff[fallen] - end < season * SEASONS_BACK)
        source[fallen] = np.where(enough, SOURCE_SEASONAL_NAIVE, SOURCE_LAST_VALUE)
    given = _finite(quantiles, mean)

    frame = forecast_rows(
        artifact,
        panel,
        windows[np.flatnonzero(given)],
        quantiles[given],
        mean[given],
        source[given],
        samples,
        cutoff,
        model_version,
    )
    rejects = pl.concat(
        [
            rejected_series(panel, windows.series[~given], "no observation up to the cutoff"),
            rejected_series(panel, late, "begins after the cutoff"),
            rejected_series(panel, lacking, "known covariates missing over the horizon"),
            rejected_series(panel, ended.series, ENDED, cutoff - ages(panel, ended)),
        ]
    )
    return Forecasts(frame, rejects)


def _finite(stated: np.ndarray, mean: np.ndarray) -> npt.NDArray[np.bool_]:
    """Return whether all that is said of a window is finite, [n]."""
    finite: npt.NDArray[np.bool_] = np.isfinite(stated).all((1, 2)) & np.isfinite(mean).all(1)
    return finite


def _sound(
    stated: np.ndarray, mean: DoubleArray, panel: Panel, windows: WindowIndex, context: int | None
) -> npt.NDArray[np.bool_]:
    """Return whether all that is said of a window is finite, and its means, [n, horizon], are plausible, [n].

    Those within ten times the range of the observations up to the cutoff are, on either side of them. Series of few
    observations, or of one value only, set no limit; nor do classes, whose `context` is None.
    """
    sound = _finite(stated, mean)
    if context is None or not sound.any():
        return sound
    first, end = panel.offsets[windows.series], np.minimum(windows.cutoff + 1, panel.lengths[windows.series])
    ago = end[:, None] - np.arange(1, min(context, _RECENT) + 1)
    recent = np.where(ago >= 0, panel.target[first[:, None] + np.maximum(ago, 0)], np.nan)
    # What is near the latest values is near the whole history, too, which few series have to be read for.
    limited, near = _near(mean, recent)
    for row in np.flatnonzero(sound & ~(limited & near)):
        limited, near = _near(mean[[row]], panel.target[None, first[row] : first[row] + end[row]])
        sound[row] = bool((near | ~limited)[0])
    return sound


def _near(mean: DoubleArray, values: np.ndarray) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return whether values, [n, step], set a limit: enough of them, which differ; and whether means are within it."""
    missing = np.isnan(values)
    least, most = np.where(missing, np.inf, values).min(1), np.where(missing, -np.inf, values).max(1)
    limited = ((~missing).sum(1) >= _FEW_OBSERVATIONS) & (most > least)
    margin = _PLAUSIBLE_RANGES * np.where(limited, most - least, 0.0)
    return limited, limited & (mean.min(1) >= least - margin) & (mean.max(1) <= most + margin)
