"""Shifts of the quantiles from past errors: shared by all series, or adapted per series."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from forecast.calibration.windows import AFTER, BEFORE, Array, Window, pinball
from forecast.data.panel import IntArray
from forecast.errors import DataError
from forecast.models.postprocess.conformal import Calibration
from forecast.names import MODEL

# Candidate update rates of adaptive shifts, in widths of the outermost interval; the pinball loss selects one.
RATES = (0.02, 0.05, 0.1, 0.2)
# Errors needed for each part of the horizon with shifts of its own, and the largest number of these parts.
_MIN_ERRORS, _MAX_BUCKETS = 2000, 24


def bucket_edges(windows: Sequence[Window], horizon: int) -> IntArray:
    """Return the first step of each part of the horizon (bucket) that has shifts of its own, [bucket]."""
    n_actuals = sum(int(np.isfinite(window.actual).sum()) for window in windows)
    count = int(np.clip(n_actuals // _MIN_ERRORS, 1, min(horizon, _MAX_BUCKETS)))
    return np.arange(count) * horizon // count


class Calibrator:
    """Computes shifts [row, bucket, level] from windows: a single shared row, or a row per series."""

    def __init__(self, levels: Sequence[float], edges: IntArray, horizon: int, n_series: int, *, shrink: bool) -> None:
        self._levels, self._edges, self._n_series, self._shrink = levels, edges, n_series, shrink
        self._level, self._median = np.array(levels), list(levels).index(0.5)
        self.bucket = torch.from_numpy(np.searchsorted(edges, np.arange(horizon), side="right") - 1)

    def shared(self, windows: Sequence[Window]) -> Array:
        """Return the conformal quantiles of all errors, [1, bucket, level]. Raises DataError if there are too few.

        With `shrink`, each is multiplied by 1 - (standard error / shift)^2, at least 0, the standard error from the
        variance over cutoffs and the number of cutoffs that would not overlap (positive-part James & Stein 1961).
        """
        shift = self._quantiles(windows)
        if not self._shrink or len(windows) < 2:
            return shift
        by_window = np.concatenate([self._quantiles([window], least=0) for window in windows])
        horizon = windows[0].actual.shape[1]
        n_independent = max(1.0, (windows[-1].cutoff - windows[0].cutoff + horizon) / horizon)
        with np.errstate(invalid="ignore", divide="ignore"):
            shrinkage = 1.0 - np.nanvar(by_window, axis=0, ddof=1) / n_independent / shift[0] ** 2
        shrunk: Array = shift * np.clip(np.nan_to_num(shrinkage, neginf=0.0), 0.0, 1.0)
        return shrunk

    def _quantiles(self, windows: Sequence[Window], least: int = 1) -> Array:
        """Return the conformal quantiles [1, bucket, level]; with `least` 0, NaN where there are too few errors."""
        parts = np.split(np.concatenate([window.errors() for window in windows]), self._edges[1:], axis=1)
        shift = np.zeros((1, len(parts), len(self._levels)))
        for bucket, errors in enumerate(parts):
            for k, level in enumerate(self._levels):
                ranked = np.sort(errors[..., k][np.isfinite(errors[..., k])])
                rank = (np.ceil if level > 0.5 else np.floor)(round((len(ranked) + 1) * level, 9))
                if not 1 <= rank <= len(ranked):
                    if not least:
                        shift[0, bucket, k] = np.nan
                        continue
                    raise DataError(
                        f"{len(ranked):,} errors of past forecasts are too few to calibrate the level {level:g}; raise "
                        "calibrate.n_windows, or lower calibrate.step_size"
                    )
                shift[0, bucket, k] = 0.0 if k == self._median else ranked[int(rank) - 1]
        return shift

    def best_rate(self, windows: Sequence[Window]) -> float:
        """Return the rate with the least loss over past cutoffs; 0 if none clearly beats the shared shifts.

        The initial shifts come from the first half of the windows. Losses are taken over windows that share no target
        with that half. A rate must save more than a standard error, which allows for targets that these windows share.
        """
        half, horizon = len(windows) // 2, windows[0].actual.shape[1]
        begin = windows[half - 1].cutoff + horizon if half else 0
        rates = (0.0, *RATES)
        losses = np.array([self._losses(windows[:half], windows[half:], rate, begin) for rate in rates])
        gains = losses[0] - losses
        count = gains.shape[1]
        if count < 2:
            return 0.0
        mean = gains.mean(1)
        error = gains.std(1, ddof=1) * _error_factor([window.cutoff for window in windows[-count:]], horizon)
        best = int(mean.argmax())
        return rates[best] if mean[best] > error[best] else 0.0

    def _losses(
        self, first: Sequence[Window], remaining: Sequence[Window], rate: float, begin: int
    ) -> npt.NDArray[np.float64]:
        """Return the pinball loss, in widths, of the `remaining` windows with cutoffs from `begin`, [window]."""
        losses = []
        for window, shifted in self.shifted_by_history(first, remaining, rate):
            if window.cutoff < begin:
                continue
            width = window.quantiles[..., -1:] - window.quantiles[..., :1]
            with np.errstate(invalid="ignore", divide="ignore"):
                losses.append(np.nansum(pinball(window.actual / width[..., 0], shifted / width, self._level)))
        return np.array(losses, dtype=np.float64)

    def split(self, windows: Sequence[Window], rate: float) -> tuple[Sequence[Window], Sequence[Window]]:
        """Return the windows for the initial shared shifts, and those for the updates per series (none at rate 0)."""
        half = len(windows) if rate == 0 else max(1, len(windows) // 2)
        return windows[:half], windows[half:]

    def shifted_by_history(
        self, first: Sequence[Window], remaining: Sequence[Window], rate: float
    ) -> Iterator[tuple[Window, Array]]:
        """Yield `remaining` windows with quantiles shifted by data up to each cutoff, starting with `first`."""
        shift = self._initial_shift(first, rate)
        waiting: list[Window] = []
        for window in remaining:
            while waiting and waiting[0].cutoff + window.actual.shape[1] <= window.cutoff:
                self._update(shift, waiting.pop(0), rate)
            yield window, self._apply(shift, window, rate)
            waiting.append(window)

    def final_shift(self, windows: Sequence[Window], rate: float) -> Array:
        """Return the shifts after all windows, [row, bucket, level]; row 0 is shared, the others are per series."""
        first, remaining = self.split(windows, rate)
        shift = self._initial_shift(first, rate)
        for window in remaining:
            self._update(shift, window, rate)
        return shift if rate == 0 else np.concatenate([self.shared(windows), shift])

    def _initial_shift(self, windows: Sequence[Window], rate: float) -> Array:
        shared = self.shared(windows)
        return shared if rate == 0 else shared.repeat(self._n_series, 0)

    def _update(self, shift: Array, window: Window, rate: float) -> None:
        if rate == 0:
            return
        errors, series_shift = window.errors(), shift[window.series]
        observed = np.isfinite(errors)
        below = (errors <= series_shift[:, self.bucket.numpy()]) & observed
        n, hits = (np.add.reduceat(values, self._edges, axis=1, dtype=np.float64) for values in (observed, below))
        with np.errstate(invalid="ignore", divide="ignore"):
            excess = np.where(n > 0, self._level - hits / n, 0.0)
        excess[..., self._median] = 0.0
        shift[window.series] = series_shift + rate * excess

    def _apply(self, shift: Array, window: Window, rate: float) -> Array:
        rows = torch.from_numpy(window.series if rate else np.zeros_like(window.series))
        calibration = Calibration(self._levels, self.bucket, torch.from_numpy(shift.astype(np.float32)))
        return calibration.applied(torch.from_numpy(window.quantiles), rows).numpy()


def _error_factor(cutoffs: Sequence[int], horizon: int) -> float:
    """Return standard error / standard deviation of a mean over windows whose overlapping targets are correlated.

    >>> round(_error_factor([0, 8, 16, 24], 8), 6), round(_error_factor([0, 4], 8), 6)
    (0.5, 1.224745)
    """
    n = len(cutoffs)
    overlap = np.clip(1 - np.abs(np.subtract.outer(cutoffs, cutoffs)) / horizon, 0, None)
    correlation = (overlap.sum() - n) / (n * (n - 1))
    return float(np.sqrt((1 + (n - 1) * correlation) / (n * (1 - correlation))))


def share_below(windows: Sequence[tuple[Window, Array]], levels: Sequence[float]) -> pl.DataFrame:
    """Return model (before, after), level, coverage: the share of actuals at or below each quantile.

    Each of `windows` comes with its shifted quantiles.
    """
    parts = []
    for name, shifted in ((BEFORE, False), (AFTER, True)):
        hits, count = np.zeros(len(levels)), 0
        for window, after in windows:
            quantiles = after if shifted else window.quantiles
            observed = np.isfinite(window.actual) & np.isfinite(quantiles).all(-1)
            hits += (window.actual[observed][:, None] <= quantiles[observed]).sum(0)
            count += int(observed.sum())
        if count:
            parts.append(
                pl.DataFrame({"level": levels, "coverage": hits / count}).select(pl.lit(name).alias(MODEL), pl.all())
            )
    return pl.concat(parts) if parts else pl.DataFrame(schema={MODEL: pl.String, "level": float, "coverage": float})
