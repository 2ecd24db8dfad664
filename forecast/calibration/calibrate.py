"""Conformal calibration of a model: quantiles shifted by its errors at past cutoffs."""

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
from forecast.engines.engine import Engine
from forecast.errors import ConfigError
from forecast.models.postprocess.conformal import Calibration


@dataclass(frozen=True, repr=False)
class CalibrationResult:
    """A calibrated model, and the coverage of its intervals on held-out cutoffs."""

    artifact: Artifact
    coverage: pl.DataFrame
    """by, value, level, n, coverage_before, coverage_after, width_before, width_after: for each interval of nominal
    coverage `level`, overall (`all`), by step of the horizon (`step`), and by each categorical static covariate. Widths
    are means, in the units of the target. Empty without calibrate.check_windows."""
    quantiles: pl.DataFrame
    """model (`before`, `after`), level, coverage: the share of targets at or below each quantile. Empty without
    calibrate.check_windows."""
    summary: dict[str, float]
    """windows, check_windows, series, rate; moved, the mean absolute shift; and, with calibrate.check_windows,
    pinball_before and _after, the mean loss, and error_before and _after, the mean distance of `quantiles` from their
    levels."""

    def __repr__(self) -> str:
        summary, change = self.summary, ""
        if "error_before" in summary:
            before, after = summary["error_before"], summary["error_after"]
            change = f"distance from nominal levels {before:.3g} before, {after:.3g} after, "
        return f"CalibrationResult({summary['windows']:,.0f} windows, {change}{self.artifact!r})"


def calibrate(
    artifact: Artifact, panel: Panel, settings: CalibrateSettings, *, engine: Engine | None = None
) -> CalibrationResult:
    """Return the model with each quantile shifted so that its level is the share of past targets below it.

    `split`: one shift for each level and part of the horizon, from the errors of all series at cutoffs that the model
    has not seen: the ceil((n + 1) level)-th of n errors, for levels below the median the floor (split conformal
    quantiles: Romano, Patterson & Candes 2019, NeurIPS, one side at a time). `shrink` reduces shifts on which cutoffs
    disagree. Errors are in units of the width of the forecast's outermost interval.

    `adaptive`: starting from these, the shift s of each series is updated after every cutoff, s += rate (level - share
    of targets below), once all targets of the cutoff are observed (Gibbs & Candes 2021, NeurIPS; the quantile tracker
    of Angelopoulos, Candes & Tibshirani 2023, NeurIPS). The rate is the one with the least pinball loss, in widths, on
    later cutoffs that share no target with those of the initial shifts; 0, unless it is better by a standard error.

    The cutoffs are forecast by `engine`, in this process without one, with the same result for the same number of
    threads, which is one in workers.

    The last `check_windows` cutoffs measure the improvement; the returned calibration uses all cutoffs.

    Raises ConfigError for models of classes or of one quantile; DataError if the panel has too few cutoffs that the
    model has not seen, or too few errors; EngineError if the workers fail.
    """
    levels = artifact.model.quantile_levels
    if artifact.classes is not None:
        raise ConfigError("model.head: probabilities of classes have no intervals to calibrate")
    if len(levels) < 2:
        raise ConfigError("model.quantile_levels: a model of one quantile has no intervals to calibrate")
    cutoffs, n_fit = calibration_cutoffs(artifact, panel, settings)
    windows = calibration_forecasts(artifact, panel, cutoffs, all_series=settings.method == "adaptive", engine=engine)
    check = windows[len(windows) - settings.check_windows :] if settings.check_windows else []
    edges = bucket_edges(windows[:n_fit], artifact.horizon)
    calibrator = Calibrator(levels, edges, artifact.horizon, panel.n_series, shrink=settings.shrink)
    rate = calibrator.best_rate(windows[:n_fit]) if settings.method == "adaptive" else 0.0
    checked = []
    if check:
        first, remaining = calibrator.split(windows[:n_fit], rate)
        shifted_windows = calibrator.shifted_by_history(first, [*remaining, *windows[n_fit:]], rate)
        checked = [(window, shifted) for window, shifted in shifted_windows if window.cutoff >= check[0].cutoff]
    shift = calibrator.final_shift(windows, rate)
    series_ids = [] if rate == 0 else panel.series_id.tolist()
    calibration = Calibration(levels, calibrator.bucket, torch.from_numpy(shift.astype(np.float32)), series_ids)
    until = cutoffs[-1] + artifact.horizon
    quantile_coverage = share_below(checked, levels)
    summary = {
        "windows": float(len(windows)),
        "check_windows": float(len(check)),
        "series": float(len(np.unique(np.concatenate([window.series for window in windows])))),
        "rate": rate,
        "moved": float(np.abs(shift).mean()),
        **summary_of(checked, quantile_coverage, levels),
    }
    child = artifact.with_calibration(calibration, trained_until=until)
    return CalibrationResult(child, coverage_of(checked, levels, panel, artifact), quantile_coverage, summary)
