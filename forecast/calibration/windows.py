"""Forecasts from past cutoffs and their errors, the input of calibration."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from forecast.artifact import Artifact
from forecast.config import CalibrateSettings
from forecast.data.panel import IntArray, Panel
from forecast.data.windows import BATCH_SIZE, WindowIndex, windows_at
from forecast.engines.engine import Engine, results
from forecast.errors import DataError
from forecast.metrics.seasonal_naive import future_values
from forecast.prediction.predict import predict

Array = npt.NDArray[np.floating]
# Largest number of series for the shared shifts, evenly spaced.
_MAX_SERIES = 20_000
_RANGE: Final = 32 * BATCH_SIZE
"""Windows that are forecast in one task of an engine."""

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


@dataclass(frozen=True)
class RangeTask:
    """The forecasts of some series from a cutoff are wanted."""

    cutoff: int
    first: int
    """Index of the first one among the windows at the cutoff."""


@dataclass(frozen=True)
class ForecastWork:
    """Forecasts from past cutoffs, in ranges of whole batches, so that they don't depend on the ranges."""

    artifact: Artifact
    """Without calibration."""
    panel: Panel
    is_used: npt.NDArray[np.bool_]
    """[S], whether a series is forecast."""

    def open(self) -> Callable[[RangeTask], Window]:
        """Return the function of a task."""
        return self.forecast

    def tasks(self, cutoff: int) -> list[RangeTask]:
        """Return the tasks of a cutoff, one at least."""
        return [RangeTask(cutoff, first) for first in range(0, max(1, len(self._windows(cutoff))), _RANGE)]

    def forecast(self, task: RangeTask) -> Window:
        """Return forecasts and actuals of a task."""
        windows = self._windows(task.cutoff)[task.first : task.first + _RANGE]
        actual = future_values(self.panel, windows, self.artifact.horizon).astype(np.float32)
        return Window(task.cutoff, windows.series, predict(self.artifact, self.panel, windows).tuned, actual)

    def _windows(self, cutoff: int) -> WindowIndex:
        windows = windows_at(self.panel, cutoff)
        return windows[np.flatnonzero(self.is_used[windows.series])]


def calibration_forecasts(
    artifact: Artifact, panel: Panel, cutoffs: Sequence[int], *, all_series: bool, engine: Engine | None = None
) -> list[Window]:
    """Return forecasts and actuals at the cutoffs, of at most _MAX_SERIES series unless `all_series`.

    They are those of this process, whatever the `engine`. Raises EngineError if the workers fail.
    """
    is_used = np.ones(panel.n_series, bool)
    if not all_series and panel.n_series > _MAX_SERIES:
        is_used[:] = False
        is_used[np.linspace(0, panel.n_series - 1, _MAX_SERIES).astype(int)] = True
    work = ForecastWork(artifact.uncalibrated(), panel, is_used)
    tasks = [task for cutoff in cutoffs for task in work.tasks(cutoff)]
    ranges = {task: work.forecast(task) for task in tasks} if engine is None else dict(results(engine, work, tasks))
    forecasts = []
    for cutoff in cutoffs:
        parts = [ranges.pop(task) for task in tasks if task.cutoff == cutoff]
        series, quantiles, actual = (np.concatenate([part[field] for part in parts]) for field in (1, 2, 3))
        forecasts.append(Window(cutoff, series, quantiles, actual))
    return forecasts


def pinball(actual: Array, quantiles: Array, levels: Array) -> Array:
    """Return twice the mean pinball loss over the levels, [observed target]."""
    observed = np.isfinite(actual) & np.isfinite(quantiles).all(-1)
    error = actual[observed][:, None].astype(np.float64) - quantiles[observed]
    loss: Array = 2.0 * np.maximum(levels * error, (levels - 1.0) * error).mean(-1)
    return loss
