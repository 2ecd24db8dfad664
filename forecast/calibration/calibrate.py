"""Conformal calibration: intervals that cover what they say, from how forecasts of the past have done."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from forecast.artifact import Artifact
from forecast.config import CalibrateSettings
from forecast.data.panel import IntArray, Panel
from forecast.data.windows import windows_at
from forecast.errors import ConfigError, DataError
from forecast.metrics.seasonal_naive import future_values
from forecast.models.postprocess.conformal import Calibration
from forecast.names import MODEL
from forecast.prediction.predict import predict

Array = npt.NDArray[np.floating]

# By how much of the outermost interval's width a shift follows one miss; which is best is told by the pinball loss.
RATES = (0.02, 0.05, 0.1, 0.2)
# Errors of which shifts are made for steps of their own, and parts that a horizon is taken in, at most.
_LEAST, _MOST_BUCKETS = 2000, 24
# Series whose errors the shared shifts come from, at most, evenly chosen.
_MOST_SERIES = 20_000

BEFORE, AFTER = "before", "after"


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


class _Window(NamedTuple):
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
    cutoffs, n_fit = _cutoffs(artifact, panel, settings)
    windows = _forecasts(artifact, panel, cutoffs, every=settings.method == "adaptive")
    check = windows[len(windows) - settings.check_windows :] if settings.check_windows else []
    edges = _edges(windows[:n_fit], artifact.horizon)
    work = _Work(levels, edges, artifact.horizon, panel.n_series, shrink=settings.shrink)
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
    below = _below(made, levels)
    summary = {
        "windows": float(len(windows)),
        "check_windows": float(len(check)),
        "series": float(len(np.unique(np.concatenate([window.series for window in windows])))),
        "rate": rate,
        "moved": float(np.abs(shift).mean()),
        **_summary(made, below, levels),
    }
    child = artifact.with_calibration(calibration, trained_until=until)
    return CalibrationResult(child, _coverage(made, levels, panel, artifact), below, summary)


def _cutoffs(artifact: Artifact, panel: Panel, settings: CalibrateSettings) -> tuple[list[int], int]:
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


def _forecasts(artifact: Artifact, panel: Panel, cutoffs: Sequence[int], *, every: bool) -> list[_Window]:
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
        made.append(_Window(cutoff, windows.series, predict(plain, panel, windows).tuned, actual))
    return made


def _edges(windows: Sequence[_Window], horizon: int) -> IntArray:
    """Return the first step of each part of the horizon that has shifts of its own."""
    known = sum(int(np.isfinite(window.actual).sum()) for window in windows)
    count = int(np.clip(known // _LEAST, 1, min(horizon, _MOST_BUCKETS)))
    return np.arange(count) * horizon // count


class _Work:
    """Shifts [row, bucket, level] from windows; row 0 is that of all series."""

    def __init__(self, levels: Sequence[float], edges: IntArray, horizon: int, n_series: int, *, shrink: bool) -> None:
        self._levels, self._edges, self._n_series, self._shrink = levels, edges, n_series, shrink
        self._level, self._median = np.array(levels), list(levels).index(0.5)
        self.bucket = torch.from_numpy(np.searchsorted(edges, np.arange(horizon), side="right") - 1)

    def shared(self, windows: Sequence[_Window]) -> Array:
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

    def _quantiles(self, windows: Sequence[_Window], least: int = 1) -> Array:
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

    def best_rate(self, windows: Sequence[_Window]) -> float:
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
        self, first: Sequence[_Window], rest: Sequence[_Window], rate: float, begin: int
    ) -> npt.NDArray[np.float64]:
        """Return the pinball loss, in widths, of the windows of `rest` from grid index `begin` on, [window]."""
        found = []
        for window, shifted in self.followed(first, rest, rate):
            if window.cutoff < begin:
                continue
            width = window.stated[..., -1:] - window.stated[..., :1]
            with np.errstate(invalid="ignore", divide="ignore"):
                found.append(np.nansum(_pinball(window.actual / width[..., 0], shifted / width, self._level)))
        return np.array(found, dtype=np.float64)

    def begun(self, windows: Sequence[_Window], rate: float) -> tuple[Sequence[_Window], Sequence[_Window]]:
        """Return the windows that the shared shifts come from, and those that shifts of a series follow from there."""
        half = len(windows) if rate == 0 else max(1, len(windows) // 2)
        return windows[:half], windows[half:]

    def followed(
        self, first: Sequence[_Window], rest: Sequence[_Window], rate: float
    ) -> Iterator[tuple[_Window, Array]]:
        """Yield `rest` with their quantiles as shifted by what could be known at each of them, from `first` on."""
        shift = self._rows(first, rate)
        waiting: list[_Window] = []
        for window in rest:
            while waiting and waiting[0].cutoff + window.actual.shape[1] <= window.cutoff:
                self._follow(shift, waiting.pop(0), rate)
            yield window, self._apply(shift, window, rate)
            waiting.append(window)

    def last(self, windows: Sequence[_Window], rate: float) -> Array:
        """Return the shifts after all windows, those of all series first: [row, bucket, level]."""
        first, rest = self.begun(windows, rate)
        shift = self._rows(first, rate)
        for window in rest:
            self._follow(shift, window, rate)
        return shift if rate == 0 else np.concatenate([self.shared(windows), shift])

    def _rows(self, windows: Sequence[_Window], rate: float) -> Array:
        shared = self.shared(windows)
        return shared if rate == 0 else shared.repeat(self._n_series, 0)

    def _follow(self, shift: Array, window: _Window, rate: float) -> None:
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

    def _apply(self, shift: Array, window: _Window, rate: float) -> Array:
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


def _pinball(actual: Array, stated: Array, levels: Array) -> Array:
    """Return twice the mean pinball loss over the levels of each observed target."""
    known = np.isfinite(actual) & np.isfinite(stated).all(-1)
    error = actual[known][:, None].astype(np.float64) - stated[known]
    loss: Array = 2.0 * np.maximum(levels * error, (levels - 1.0) * error).mean(-1)
    return loss


def _below(made: Sequence[tuple[_Window, Array]], levels: Sequence[float]) -> pl.DataFrame:
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


def _summary(made: Sequence[tuple[_Window, Array]], below: pl.DataFrame, levels: Sequence[float]) -> dict[str, float]:
    found = {}
    for (name,), part in below.group_by(MODEL, maintain_order=True):
        found[f"error_{name}"] = float((part["coverage"] - part["level"]).abs().mean())  # type: ignore[arg-type]
        losses = [
            _pinball(window.actual, after if name == AFTER else window.stated, np.array(levels))
            for window, after in made
        ]
        found[f"pinball_{name}"] = float(np.concatenate(losses).mean())
    return found


def _coverage(
    made: Sequence[tuple[_Window, Array]], levels: Sequence[float], panel: Panel, artifact: Artifact
) -> pl.DataFrame:
    pairs = [(k, len(levels) - 1 - k) for k in range(len(levels) // 2) if abs(levels[k] + levels[-1 - k] - 1) < 1e-9]
    each = []
    for window, shifted in made:
        known = np.isfinite(window.actual) & np.isfinite(window.stated).all(-1)
        row, step = np.nonzero(known)
        actual = window.actual[known]
        for low, high in pairs:
            values: dict[str, object] = {"series": window.series[row], "step": step + 1}
            for name, stated in ((BEFORE, window.stated), (AFTER, shifted)):
                lower, upper = stated[..., low][known], stated[..., high][known]
                values[f"coverage_{name}"] = (actual >= lower) & (actual <= upper)
                values[f"width_{name}"] = (upper - lower).astype(np.float64)
            level = round(levels[high] - levels[low], 9)
            each.append(pl.DataFrame(values).with_columns(level=pl.lit(level)))
    if not each:
        return pl.DataFrame(schema=_COVERAGE)
    frame = pl.concat(each)
    groups = [
        frame.with_columns(by=pl.lit("all"), value=pl.lit("")),
        frame.with_columns(by=pl.lit("step"), value=pl.col("step")),
    ]
    for name, codes in _segments(panel, artifact).items():
        groups.append(frame.with_columns(by=pl.lit(name), value=codes.gather(frame["series"])))
    found = [
        group.with_columns(pl.col("value").cast(pl.String))
        .group_by("by", "value", "level", maintain_order=True)
        .agg(pl.len().cast(pl.Int64).alias("n"), pl.col("^(coverage|width)_.*$").mean())
        for group in groups
    ]
    return pl.concat(found).select(list(_COVERAGE))


def _segments(panel: Panel, artifact: Artifact) -> dict[str, pl.Series]:
    """Return the values of each categorical static covariate, by series."""
    names = [name for name in artifact.data.static_covariates if name in artifact.categories]
    return {
        name: pl.Series(["", *artifact.categories[name]]).gather(panel.static_categories[:, k])
        for k, name in enumerate(names)
    }


_COVERAGE = {
    "by": pl.String,
    "value": pl.String,
    "level": pl.Float64,
    "n": pl.Int64,
    "coverage_before": pl.Float64,
    "coverage_after": pl.Float64,
    "width_before": pl.Float64,
    "width_after": pl.Float64,
}
