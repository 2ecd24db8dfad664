"""Conformal calibration: intervals that cover what they say, from how forecasts of the past have done."""

from dataclasses import dataclass

import numpy as np
import polars as pl
import torch

from forecast.artifact import Artifact
from forecast.calibration.conformal import Calibrator, bucket_edges, share_below
from forecast.calibration.coverage import coverage_of, summary_of
from forecast.calibration.windows import calibration_cutoffs, calibration_forecasts
from forecast.config import CalibrateSettings
from forecast.data.panel import Panel
from forecast.errors import ConfigError
from forecast.models.postprocess.conformal import Calibration


@dataclass(frozen=True, repr=False)
class CalibrationResult:
    """A calibrated model, and how its intervals did on cutoffs that its calibration was not made from."""

    artifact: Artifact
    coverage: pl.DataFrame
    """by, value, level, n, coverage_before, coverage_after, width_before, width_after: of each interval (`level` is
    what it should cover), over all (`all`), by step of the horizon (`step`), and by each categorical static covariate.
    Widths are means, in the units of the target. Empty without calibrate.check_windows."""
    quantiles: pl.DataFrame
    """model (`before`, `after`), level, coverage: the share of targets at or below each quantile. Empty likewise."""
    summary: dict[str, float]
    """windows, check_windows, series, rate; moved, the mean absolute shift; and, where checked, pinball_before and
    _after, the mean loss, and error_before and _after, the mean distance of `quantiles` from their levels."""

    def __repr__(self) -> str:
        summary, checked = self.summary, ""
        if "error_before" in summary:
            before, after = summary["error_before"], summary["error_after"]
            checked = f"distance from nominal levels {before:.3g} before, {after:.3g} after, "
        return f"CalibrationResult({summary['windows']:,.0f} windows, {checked}{self.artifact!r})"


def calibrate(artifact: Artifact, panel: Panel, settings: CalibrateSettings) -> CalibrationResult:
    """Return the model with its quantiles shifted so that each has its share of past targets below it.

    `split`: one shift for each level and part of the horizon, from the errors of all series at cutoffs that the model
    has not seen: of n errors the ceil((n + 1) level)-th, of lower levels the floor (split conformal quantiles: Romano,
    Patterson & Candes 2019, NeurIPS, one side at a time); with `shrink` less, where cutoffs do not agree. Errors are
    in units of the width of the forecast's outermost interval. `adaptive`: from there, the shift s of each series
    follows its own misses from cutoff to cutoff, s += rate (level - share of targets below), as soon as all the
    targets of a cutoff are there (Gibbs & Candes 2021, NeurIPS; the quantile tracker of Angelopoulos, Candes &
    Tibshirani 2023, NeurIPS). The rate is the one whose shifts had the least pinball loss, in widths, on later cutoffs
    that share no target with those that the shifts begin from; none, unless it is better by a standard error.

    The last `check_windows` cutoffs tell what is won; the calibration that is returned is made from all of them.

    Raises ConfigError for models of classes, or of one quantile; DataError if the panel has too few cutoffs after those
    that the model has seen, or too few errors.
    """
    levels = artifact.model.quantile_levels
    if artifact.classes is not None:
        raise ConfigError("model.head: probabilities of classes have no intervals to calibrate")
    if len(levels) < 2:
        raise ConfigError("model.quantile_levels: a model of one quantile has no intervals to calibrate")
    cutoffs, n_fit = calibration_cutoffs(artifact, panel, settings)
    windows = calibration_forecasts(artifact, panel, cutoffs, every=settings.method == "adaptive")
    check = windows[len(windows) - settings.check_windows :] if settings.check_windows else []
    edges = bucket_edges(windows[:n_fit], artifact.horizon)
    work = Calibrator(levels, edges, artifact.horizon, panel.n_series, shrink=settings.shrink)
    rate = work.best_rate(windows[:n_fit]) if settings.method == "adaptive" else 0.0
    made = []
    if check:
        first, rest = work.begun(windows[:n_fit], rate)
        followed = work.followed(first, [*rest, *windows[n_fit:]], rate)
        made = [(window, shifted) for window, shifted in followed if window.cutoff >= check[0].cutoff]
    shift = work.last(windows, rate)
    own = [] if rate == 0 else panel.series_id.tolist()
    calibration = Calibration(levels, work.bucket, torch.from_numpy(shift.astype(np.float32)), own)
    until = cutoffs[-1] + artifact.horizon
    below = share_below(made, levels)
    summary = {
        "windows": float(len(windows)),
        "check_windows": float(len(check)),
        "series": float(len(np.unique(np.concatenate([window.series for window in windows])))),
        "rate": rate,
        "moved": float(np.abs(shift).mean()),
        **summary_of(made, below, levels),
    }
    child = artifact.with_calibration(calibration, trained_until=until)
    return CalibrationResult(child, coverage_of(made, levels, panel, artifact), below, summary)
