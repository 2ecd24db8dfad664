"""Forecasts from past cutoffs and their errors, the input of calibration."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from forecast.artifact import Artifact
from forecast.config import CalibrateSettings
from forecast.data.panel import IntArray, Panel
from forecast.data.windows import windows_at
from forecast.errors import DataError
from forecast.metrics.seasonal_naive import future_values
from forecast.prediction.predict import predict

Array = npt.NDArray[np.floating]
# Largest number of series for the shared shifts, evenly spaced.
_MAX_SERIES = 20_000

BEFORE, AFTER = "before", "after"


class Window(NamedTuple):
    """The forecasts of n series from one cutoff."""

    cutoff: int
    series: IntArray
    quantiles: Array
    """[n, horizon, level]"""
    actual: Array
    """[n, horizon], NaN where not observed."""

    def errors(self) -> Array:
        """Return target - quantile in units of the width, [n, horizon, level]; NaN without target or width."""
        width = self.quantiles[..., -1:] - self.quantiles[..., :1]
        with np.errstate(invalid="ignore", divide="ignore"):
            errors = (self.actual[..., None] - self.quantiles) / width
        errors[~(width > 0).repeat(errors.shape[-1], -1)] = np.nan
        return errors


def calibration_cutoffs(artifact: Artifact, panel: Panel, settings: CalibrateSettings) -> tuple[list[int], int]:
    """Return the cutoffs, oldest first, and the number of them whose targets lie before those of the check.

    Raises DataError if there are too few.
    """
    horizon = artifact.horizon
    step = settings.step_size or max(1, horizon // 4)
    last = panel.last_index - (settings.holdout_windows + 1) * horizon
    first = max(artifact.trained_until, int(panel.start.min()))
    cutoffs = [last - k * step for k in range(settings.n_windows) if last - k * step >= first][::-1]
    check = settings.check_windows
    n_fit = len(cutoffs)
    if check and n_fit:
        n_fit = sum(cutoff + horizon <= cutoffs[max(0, n_fit - check)] for cutoff in cutoffs)
    n_required = 3 if settings.method == "adaptive" else 1
    if n_fit < n_required:
        until = panel.grid.timestamps(np.array([artifact.trained_until]))[0]
        condition = f" and lie a horizon before the last {check} that are checked" if check else ""
        raise DataError(
            f"calibration ({settings.method}) needs at least {n_required} cutoff(s) that the model has not seen"
            f"{condition}; of {len(cutoffs)} after {until} there are {n_fit}; append data, lower "
            "calibrate.holdout_windows, calibrate.check_windows or calibrate.step_size, or train with a larger "
            "fit.holdout_windows"
        )
    return cutoffs, n_fit


def calibration_forecasts(
    artifact: Artifact, panel: Panel, cutoffs: Sequence[int], *, all_series: bool
) -> list[Window]:
    """Return forecasts and actuals at the cutoffs, of at most _MAX_SERIES series unless `all_series`."""
    plain = artifact.uncalibrated()
    is_used = np.ones(panel.n_series, bool)
    if not all_series and panel.n_series > _MAX_SERIES:
        is_used[:] = False
        is_used[np.linspace(0, panel.n_series - 1, _MAX_SERIES).astype(int)] = True
    forecasts = []
    for cutoff in cutoffs:
        windows = windows_at(panel, cutoff)
        windows = windows[np.flatnonzero(is_used[windows.series])]
        actual = future_values(panel, windows, artifact.horizon).astype(np.float32)
        forecasts.append(Window(cutoff, windows.series, predict(plain, panel, windows).tuned, actual))
    return forecasts


def pinball(actual: Array, quantiles: Array, levels: Array) -> Array:
    """Return twice the mean pinball loss over the levels, [observed target]."""
    observed = np.isfinite(actual) & np.isfinite(quantiles).all(-1)
    error = actual[observed][:, None].astype(np.float64) - quantiles[observed]
    loss: Array = 2.0 * np.maximum(levels * error, (levels - 1.0) * error).mean(-1)
    return loss
