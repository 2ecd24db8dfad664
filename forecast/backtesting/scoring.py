"""Scores of models and baselines on a block: a range of series at some cutoffs."""

from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import polars as pl

from forecast.artifact import Artifact
from forecast.backtesting.baselines import forecast_baseline
from forecast.backtesting.result import Contender
from forecast.config import BacktestSettings
from forecast.data.availability import closed_ahead
from forecast.data.panel import Panel
from forecast.data.windows import WindowIndex, windows_at
from forecast.metrics.scores import midpoints, score_classes, score_points, score_windows
from forecast.metrics.seasonal_naive import future_values, future_weights, last_values, seasonal_naive_errors
from forecast.names import CLASS, CRPS, CUTOFF, MEAN, MODEL, NAIVE, REASON, SERIES_ID, STEP, TARGET, TIMESTAMP, WEIGHT
from forecast.prediction.naive import mean_of_naive, naive_forecasts, within_support
from forecast.prediction.predict import predict

# Number of equal shares of a distribution whose midpoints the CRPS is computed from.
_N_POINTS = 100


@dataclass(frozen=True)
class BlockPlan:
    """Settings that all blocks of a backtest share."""

    settings: BacktestSettings
    fitted: list[str]
    """Baselines that are fitted to each series (`check_baselines`)."""
    pool: Executor | None


class ScoredBlock(NamedTuple):
    """The scored windows of a range of neighbouring series."""

    scores: pl.DataFrame
    forecasts: pl.DataFrame
    failures: pl.DataFrame


@dataclass(frozen=True)
class _Windows:
    """The windows of a block, their actuals, and what baselines need to know of the models."""

    panel: Panel
    history: Panel
    """The panel as baselines see it: nothing before the window if that slides."""
    index: WindowIndex
    artifact: Artifact
    """The first model, whose horizon, quantile levels and season are those of the baselines."""
    bounded: Artifact
    """The model whose support of the target baselines respect."""
    n_points: int
    """Points of the distribution that the CRPS is computed from; 0 without CRPS."""
    actual: np.ndarray
    """[n, horizon], NaN where not observed, or where nothing was available for one of the models (data.available)."""

    @cached_property
    def scales(self) -> tuple[np.ndarray, np.ndarray]:
        """The scales of MASE and RMSSE, [n]: of the whole history up to the cutoff, even if the window slides."""
        return seasonal_naive_errors(self.panel, self.index, self.artifact.network.shape.season_length)

    @cached_property
    def weight(self) -> np.ndarray | None:
        """[n], mean weight of the observed steps of each window; None without data.weight."""
        if not len(self.panel.weight):
            return None
        observed = np.isfinite(self.actual)
        weights = future_weights(self.panel, self.index, self.artifact.horizon)
        mean: np.ndarray = (weights * observed).sum(1) / observed.sum(1)
        return mean

    def score(
        self, name: str, columns: np.ndarray, mean: np.ndarray | None, points: np.ndarray | None, rows: np.ndarray
    ) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Return scores and forecasts of one model on the windows `rows`; arguments are of all windows."""
        windows, actual, (scale, root_scale) = self.index[rows], self.actual[rows], self.scales
        levels = self.artifact.model.quantile_levels
        if self.artifact.classes is not None:
            scores, mean = score_classes(actual, columns[rows]), None
        else:
            mean = (columns[..., list(levels).index(0.5)] if mean is None else mean)[rows]
            scores = score_windows(
                actual, columns[rows], levels=levels, scale=scale[rows], root_scale=root_scale[rows], mean=mean
            )
            scores |= {} if points is None else {CRPS: score_points(actual, points[rows])}
        if self.weight is not None:
            scores[WEIGHT] = self.weight[rows]
        table = pl.DataFrame({**_keys(self.panel, windows, name), **scores})
        return table, _forecast_rows(self, windows, actual, name, columns[rows], mean)


def score_block(
    plan: BlockPlan, models: dict[str, Contender], cutoffs: list[int], begin: int, end: int
) -> ScoredBlock | None:
    """Return the forecasts of series `begin` up to `end` at the cutoffs, scored; None without a window to score."""
    windows = _windows_of(plan, models, cutoffs, begin, end)
    if windows is None:
        return None
    index, n_points = windows.index, windows.n_points
    parts, failures = [], [_failures(windows.panel, index, NAIVE, [""] * len(index))]
    all_rows = np.arange(len(index))
    for baseline in plan.settings.baselines:
        name: str = baseline
        if name in plan.fitted:
            columns, points, reasons = _fitted_baseline(plan, windows, name)
            valid = np.flatnonzero([not reason for reason in reasons])
            parts.append(windows.score(name, columns, None, points, valid))
            failures.append(_failures(windows.panel, index, name, reasons))
        else:
            season = 1 if name == NAIVE else windows.artifact.network.shape.season_length
            columns = naive_forecasts(windows.bounded, windows.history, index, season=season)
            points = None
            if n_points:
                points = naive_forecasts(windows.bounded, windows.history, index, season=season, points=n_points)
            parts.append(windows.score(name, columns, None, points, all_rows))
    first_panel, one_pass = next(iter(models.values())).panel, plan.settings.one_pass
    for name, (artifact, panel, _) in models.items():
        shard = windows.panel if panel is first_panel else panel.rows(begin, end).in_memory()
        columns, mean = _with_fallback(artifact, shard, windows, 0, one_pass=one_pass)
        points = None
        if n_points:
            points, _ = _with_fallback(artifact, shard, windows, n_points, one_pass=one_pass)
        parts.append(windows.score(name, columns, mean, points, all_rows))
    scores, forecasts = (pl.concat(tables) for tables in zip(*parts, strict=True))
    return ScoredBlock(scores, forecasts, pl.concat(failures))


def _windows_of(
    plan: BlockPlan, models: dict[str, Contender], cutoffs: list[int], begin: int, end: int
) -> _Windows | None:
    """Return the windows with history and at least one observed target; None without any."""
    first, whole_panel, _ = next(iter(models.values()))
    panel = whole_panel.rows(begin, end).in_memory()
    by_cutoff = [windows_at(panel, cutoff) for cutoff in cutoffs]
    index = WindowIndex(
        np.concatenate([part.series for part in by_cutoff]), np.concatenate([part.cutoff for part in by_cutoff])
    )
    index = index[index.series.argsort(kind="stable")]
    # A sliding window has one cutoff, and nothing before the window is seen.
    length = plan.settings.window_length
    history = panel if length is None else panel.since(cutoffs[0] - length + 1)
    actual = future_values(panel, index, first.horizon)
    for _, other, _ in models.values():
        if other is whole_panel:
            continue
        shard = other.rows(begin, end)
        actual[closed_ahead(shard, _aligned(index, panel, shard), first.horizon)] = np.nan
    usable = np.flatnonzero(np.isfinite(actual).any(1) & np.isfinite(last_values(history, index)))
    index, actual = index[usable], actual[usable]
    if not len(index):
        return None
    # The CRPS completes the pinball loss at a few levels if a model forecasts whole distributions of targets that are
    # often 0. Baselines respect the support of such a model.
    positive = [artifact for artifact, *_ in models.values() if artifact.network.head.positive]
    bounded = positive[0] if positive else first
    return _Windows(panel, history, index, first, bounded, _N_POINTS * bool(positive), actual)


def _fitted_baseline(plan: BlockPlan, windows: _Windows, name: str) -> tuple[np.ndarray, np.ndarray | None, list[str]]:
    """Return quantiles, points for the CRPS (None without it), and why a window has neither, "" if it has."""
    levels, points = windows.artifact.model.quantile_levels, midpoints(windows.n_points)
    requested = sorted({*levels, *points})
    forecasts, reasons = forecast_baseline(
        name,
        windows.history,
        windows.index,
        horizon=windows.artifact.horizon,
        season=windows.artifact.network.shape.season_length,
        levels=requested,
        history=plan.settings.baseline_history,
        pool=plan.pool,
    )
    forecasts = within_support(windows.bounded, forecasts)
    columns, values = (forecasts[..., [requested.index(level) for level in part]] for part in (levels, points))
    return columns, values if points else None, reasons


def _with_fallback(
    artifact: Artifact, panel: Panel, block: _Windows, points: int, *, one_pass: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return forecasts and means as in scoring: seasonal naive replaces those of the model that are not finite.

    `panel` are the series of the block as the model reads them.
    """
    windows, history = block.index, block.history
    predicted = predict(artifact, panel, _aligned(windows, block.panel, panel), points=points, one_pass=one_pass)
    columns, mean = predicted.tuned.astype(np.float64), predicted.tuned_mean.copy()
    invalid = np.flatnonzero(~np.isfinite(columns).all((1, 2)))
    columns[invalid] = naive_forecasts(artifact, history, windows[invalid], points=points)
    mean[invalid] = mean_of_naive(artifact, columns[invalid])
    return columns, mean


def _aligned(windows: WindowIndex, panel: Panel, other: Panel) -> WindowIndex:
    """Return windows of a panel as those of another one of the same series, which may begin at other steps."""
    return WindowIndex(windows.series, windows.cutoff + (panel.start - other.start)[windows.series])


def _failures(panel: Panel, windows: WindowIndex, model: str, reasons: list[str]) -> pl.DataFrame:
    return pl.DataFrame({**_keys(panel, windows, model), REASON: pl.Series(reasons, dtype=pl.String)}).filter(
        pl.col(REASON) != ""
    )


def _keys(panel: Panel, windows: WindowIndex, model: str) -> dict[str, pl.Series]:
    return {
        SERIES_ID: pl.Series(panel.series_id[windows.series].tolist(), dtype=pl.String),
        CUTOFF: panel.grid.timestamps(panel.start[windows.series] + windows.cutoff),
        MODEL: pl.repeat(model, len(windows), dtype=pl.String, eager=True),
    }


def _forecast_rows(
    block: _Windows,
    windows: WindowIndex,
    actual: np.ndarray,
    name: str,
    columns: np.ndarray,
    mean: np.ndarray | None,
) -> pl.DataFrame:
    """Return the forecasts of some windows of a block, a row per step (`BacktestResult.forecasts`)."""
    panel, artifact = block.panel, block.artifact
    n, horizon = actual.shape
    target = pl.Series(actual.ravel()).fill_nan(None)
    location = {} if mean is None else {MEAN: pl.Series(mean.ravel())}
    if artifact.classes is not None:
        names = pl.Series(artifact.classes, dtype=pl.String)
        target = names.gather(target.cast(pl.Int64))
        location = {CLASS: names.gather(columns.argmax(-1).ravel())}
    index = (panel.start[windows.series] + windows.cutoff)[:, None] + np.arange(horizon + 1)
    window = np.repeat(np.arange(n), horizon)
    return pl.DataFrame(
        {
            SERIES_ID: pl.Series(panel.series_id[windows.series].tolist(), dtype=pl.String).gather(window),
            TIMESTAMP: panel.grid.timestamps(index[:, 1:].ravel()),
            CUTOFF: panel.grid.timestamps(index[:, 0]).gather(window),
            STEP: np.tile(np.arange(1, horizon + 1, dtype=np.int32), n),
            MODEL: pl.repeat(name, n * horizon, dtype=pl.String, eager=True),
            TARGET: target,
            **location,
            **{name_: columns[..., k].ravel() for k, name_ in enumerate(artifact.columns)},
        }
    )
