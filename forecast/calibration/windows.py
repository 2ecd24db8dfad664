"""Forecasts of the past cutoffs that calibration looks at."""

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
# Series whose errors the shared shifts come from, at most, evenly chosen.
_MOST_SERIES = 20_000

BEFORE, AFTER = "before", "after"


class Window(NamedTuple):
    """The forecasts of n series from one cutoff."""

    cutoff: int
    series: IntArray
    stated: Array
    """[n, horizon, level]"""
    actual: Array
    """[n, horizon], NaN where not observed."""

    def errors(self) -> Array:
        """Return how far targets lie above each quantile, in widths, [n, horizon, level]; NaN where not known."""
        width = self.stated[..., -1:] - self.stated[..., :1]
        with np.errstate(invalid="ignore", divide="ignore"):
            errors = (self.actual[..., None] - self.stated) / width
        errors[~(width > 0).repeat(errors.shape[-1], -1)] = np.nan
        return errors


def calibration_cutoffs(artifact: Artifact, panel: Panel, settings: CalibrateSettings) -> tuple[list[int], int]:
    """Return the cutoffs, oldest first, and from how many the check is calibrated: those whose targets lie before it.

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
    needed = 3 if settings.method == "adaptive" else 1
    if n_fit < needed:
        until = panel.grid.timestamps(np.array([artifact.trained_until]))[0]
        apart = f" and lie a horizon before the last {check} that are checked" if check else ""
        raise DataError(
            f"calibration ({settings.method}) needs at least {needed} cutoff(s) that the model has not seen{apart}; of "
            f"{len(cutoffs)} after {until} there are {n_fit}; append data, lower calibrate.holdout_windows, "
            "calibrate.check_windows or calibrate.step_size, or train with a larger fit.holdout_windows"
        )
    return cutoffs, n_fit


def calibration_forecasts(artifact: Artifact, panel: Panel, cutoffs: Sequence[int], *, every: bool) -> list[Window]:
    """Return forecasts and actuals of the cutoffs, of a share of the series unless `every`."""
    plain = artifact.uncalibrated()
    chosen = np.ones(panel.n_series, bool)
    if not every and panel.n_series > _MOST_SERIES:
        chosen[:] = False
        chosen[np.linspace(0, panel.n_series - 1, _MOST_SERIES).astype(int)] = True
    made = []
    for cutoff in cutoffs:
        windows = windows_at(panel, cutoff)
        windows = windows[np.flatnonzero(chosen[windows.series])]
        actual = future_values(panel, windows, artifact.horizon).astype(np.float32)
        made.append(Window(cutoff, windows.series, predict(plain, panel, windows).tuned, actual))
    return made


def pinball(actual: Array, stated: Array, levels: Array) -> Array:
    """Return twice the mean pinball loss over the levels of each observed target."""
    known = np.isfinite(actual) & np.isfinite(stated).all(-1)
    error = actual[known][:, None].astype(np.float64) - stated[known]
    loss: Array = 2.0 * np.maximum(levels * error, (levels - 1.0) * error).mean(-1)
    return loss
