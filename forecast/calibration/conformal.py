"""Shifts of the quantiles, by series or by volume, chosen on past cutoffs."""

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

# By how much of the outermost interval's width a shift follows one miss; which is best is told by the pinball loss.
RATES = (0.02, 0.05, 0.1, 0.2)
# Errors of which shifts are made for steps of their own, and parts that a horizon is taken in, at most.
_LEAST, _MOST_BUCKETS = 2000, 24


def bucket_edges(windows: Sequence[Window], horizon: int) -> IntArray:
    """Return the first step of each part of the horizon that has shifts of its own."""
    known = sum(int(np.isfinite(window.actual).sum()) for window in windows)
    count = int(np.clip(known // _LEAST, 1, min(horizon, _MOST_BUCKETS)))
    return np.arange(count) * horizon // count


class Calibrator:
    """Shifts [row, bucket, level] from windows; row 0 is that of all series."""

    def __init__(self, levels: Sequence[float], edges: IntArray, horizon: int, n_series: int, *, shrink: bool) -> None:
        self._levels, self._edges, self._n_series, self._shrink = levels, edges, n_series, shrink
        self._level, self._median = np.array(levels), list(levels).index(0.5)
        self.bucket = torch.from_numpy(np.searchsorted(edges, np.arange(horizon), side="right") - 1)

    def shared(self, windows: Sequence[Window]) -> Array:
        """Return the conformal quantiles of all errors, [1, bucket, level]. Raises DataError if there are too few.

        Shrunk, if that is wanted, by the share of their square that is the square of their standard error over the
        cutoffs, as many as would not overlap (the positive part of James & Stein 1961, one shift at a time).
        """
        shift = self._quantiles(windows)
        if not self._shrink or len(windows) < 2:
            return shift
        each = np.concatenate([self._quantiles([window], least=0) for window in windows])
        horizon = windows[0].actual.shape[1]
        apart = max(1.0, (windows[-1].cutoff - windows[0].cutoff + horizon) / horizon)
        with np.errstate(invalid="ignore", divide="ignore"):
            kept = 1.0 - np.nanvar(each, axis=0, ddof=1) / apart / shift[0] ** 2
        shrunk: Array = shift * np.clip(np.nan_to_num(kept, neginf=0.0), 0.0, 1.0)
        return shrunk

    def _quantiles(self, windows: Sequence[Window], least: int = 1) -> Array:
        """Return the conformal quantiles [1, bucket, level]; with `least` 0, NaN where there are too few errors."""
        parts = np.split(np.concatenate([window.errors() for window in windows]), self._edges[1:], axis=1)
        shift = np.zeros((1, len(parts), len(self._levels)))
        for bucket, errors in enumerate(parts):
            for k, level in enumerate(self._levels):
                found = np.sort(errors[..., k][np.isfinite(errors[..., k])])
                rank = (np.ceil if level > 0.5 else np.floor)(round((len(found) + 1) * level, 9))
                if not 1 <= rank <= len(found):
                    if not least:
                        shift[0, bucket, k] = np.nan
                        continue
                    raise DataError(
                        f"{len(found):,} errors of past forecasts are too few to calibrate the level {level:g}; raise "
                        "calibrate.n_windows, or lower calibrate.step_size"
                    )
                shift[0, bucket, k] = 0.0 if k == self._median else found[int(rank) - 1]
        return shift

    def best_rate(self, windows: Sequence[Window]) -> float:
        """Return the rate that would have done best from cutoff to cutoff; 0 if none clearly beats the shared shifts.

        The shared shifts are of the first half. Judged are the windows that begin when all targets of that half are
        there: what the shifts have seen is no part of them. A rate must save more than a standard error, which allows
        for the targets that these windows share among each other.
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
        self, first: Sequence[Window], rest: Sequence[Window], rate: float, begin: int
    ) -> npt.NDArray[np.float64]:
        """Return the pinball loss, in widths, of the windows of `rest` from grid index `begin` on, [window]."""
        found = []
        for window, shifted in self.followed(first, rest, rate):
            if window.cutoff < begin:
                continue
            width = window.stated[..., -1:] - window.stated[..., :1]
            with np.errstate(invalid="ignore", divide="ignore"):
                found.append(np.nansum(pinball(window.actual / width[..., 0], shifted / width, self._level)))
        return np.array(found, dtype=np.float64)

    def begun(self, windows: Sequence[Window], rate: float) -> tuple[Sequence[Window], Sequence[Window]]:
        """Return the windows that the shared shifts come from, and those that shifts of a series follow from there."""
        half = len(windows) if rate == 0 else max(1, len(windows) // 2)
        return windows[:half], windows[half:]

    def followed(self, first: Sequence[Window], rest: Sequence[Window], rate: float) -> Iterator[tuple[Window, Array]]:
        """Yield `rest` with their quantiles as shifted by what could be known at each of them, from `first` on."""
        shift = self._rows(first, rate)
        waiting: list[Window] = []
        for window in rest:
            while waiting and waiting[0].cutoff + window.actual.shape[1] <= window.cutoff:
                self._follow(shift, waiting.pop(0), rate)
            yield window, self._apply(shift, window, rate)
            waiting.append(window)

    def last(self, windows: Sequence[Window], rate: float) -> Array:
        """Return the shifts after all windows, those of all series first: [row, bucket, level]."""
        first, rest = self.begun(windows, rate)
        shift = self._rows(first, rate)
        for window in rest:
            self._follow(shift, window, rate)
        return shift if rate == 0 else np.concatenate([self.shared(windows), shift])

    def _rows(self, windows: Sequence[Window], rate: float) -> Array:
        shared = self.shared(windows)
        return shared if rate == 0 else shared.repeat(self._n_series, 0)

    def _follow(self, shift: Array, window: Window, rate: float) -> None:
        if rate == 0:
            return
        errors, own = window.errors(), shift[window.series]
        known = np.isfinite(errors)
        below = (errors <= own[:, self.bucket.numpy()]) & known
        n, hits = (np.add.reduceat(values, self._edges, axis=1, dtype=np.float64) for values in (known, below))
        with np.errstate(invalid="ignore", divide="ignore"):
            missed = np.where(n > 0, self._level - hits / n, 0.0)
        missed[..., self._median] = 0.0
        shift[window.series] = own + rate * missed

    def _apply(self, shift: Array, window: Window, rate: float) -> Array:
        rows = torch.from_numpy(window.series if rate else np.zeros_like(window.series))
        calibration = Calibration(self._levels, self.bucket, torch.from_numpy(shift.astype(np.float32)))
        return calibration.applied(torch.from_numpy(window.stated), rows).numpy()


def _error_factor(cutoffs: Sequence[int], horizon: int) -> float:
    """Return the standard error of a mean over windows by their standard deviation, if steps have effects of their own.

    >>> round(_error_factor([0, 8, 16, 24], 8), 6), round(_error_factor([0, 4], 8), 6)
    (0.5, 1.224745)
    """
    n = len(cutoffs)
    shared = np.clip(1 - np.abs(np.subtract.outer(cutoffs, cutoffs)) / horizon, 0, None)
    alike = (shared.sum() - n) / (n * (n - 1))
    return float(np.sqrt((1 + (n - 1) * alike) / (n * (1 - alike))))


def share_below(made: Sequence[tuple[Window, Array]], levels: Sequence[float]) -> pl.DataFrame:
    """Return how often actuals were below each quantile, before and after."""
    found = []
    for name, shifted in ((BEFORE, False), (AFTER, True)):
        hits, count = np.zeros(len(levels)), 0
        for window, after in made:
            stated = after if shifted else window.stated
            known = np.isfinite(window.actual) & np.isfinite(stated).all(-1)
            hits += (window.actual[known][:, None] <= stated[known]).sum(0)
            count += int(known.sum())
        if count:
            found.append(
                pl.DataFrame({"level": levels, "coverage": hits / count}).select(pl.lit(name).alias(MODEL), pl.all())
            )
    return pl.concat(found) if found else pl.DataFrame(schema={MODEL: pl.String, "level": float, "coverage": float})
