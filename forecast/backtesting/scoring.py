"""Scores of some cutoffs at a time, of each model."""

from concurrent.futures import Executor
from typing import NamedTuple

import numpy as np
import polars as pl

from forecast.artifact import Artifact
from forecast.backtesting.baselines import fitted_forecasts
from forecast.backtesting.result import Contender
from forecast.config import BacktestSettings
from forecast.data.panel import Panel
from forecast.data.windows import WindowIndex, windows_at
from forecast.metrics.scores import midpoints, score_classes, score_points, score_windows
from forecast.metrics.seasonal_naive import future_values, last_values, seasonal_naive_errors
from forecast.names import CLASS, CRPS, CUTOFF, MEAN, MODEL, NAIVE, REASON, SERIES_ID, STEP, TARGET, TIMESTAMP
from forecast.prediction.naive import mean_of_naive, naive_forecasts, within_support
from forecast.prediction.postprocess import forecast_columns
from forecast.prediction.predict import predict

# Equal shares of a distribution whose midpoints the CRPS is taken over.
_POINTS = 100


# --- forecasts and scores


class _Block(NamedTuple):
    """The windows of some neighbouring series."""

    series: np.ndarray
    """[n], counted from the first of them."""
    scores: pl.DataFrame
    forecasts: pl.DataFrame
    failures: pl.DataFrame


def score_block(
    models: dict[str, Contender],
    begin: int,
    end: int,
    cutoffs: list[int],
    settings: BacktestSettings,
    fitted: list[str],
    pool: Executor | None,
) -> _Block | None:
    """Return the forecasts of series `begin` up to `end` at some cutoffs, scored; None if none can be."""
    first, whole = next(iter(models.values()))
    horizon, levels, season = first.horizon, first.model.quantile_levels, first.network.shape.season_length
    panel = whole.rows(begin, end)
    at = [windows_at(panel, cutoff) for cutoff in cutoffs]
    windows = WindowIndex(np.concatenate([part.series for part in at]), np.concatenate([part.cutoff for part in at]))
    windows = windows[windows.series.argsort(kind="stable")]
    # What is seen before the one cutoff of a sliding window.
    length = settings.window_length
    history = panel if length is None else panel.since(cutoffs[0] - length + 1)
    usable = np.isfinite(future_values(panel, windows, horizon)).any(1) & np.isfinite(last_values(history, windows))
    windows = windows[np.flatnonzero(usable)]
    if not len(windows):
        return None
    # Beside the pinball loss at a few levels: what it is over the whole distribution, where one of the models states it
    # for targets that are often 0.
    positive = [artifact for artifact, _ in models.values() if artifact.network.head.positive]
    points = _POINTS * bool(positive)
    # Baselines keep to the values that targets can have, as far as a model says which these are.
    bounded = positive[0] if positive else first
    actual = future_values(panel, windows, horizon)
    # One yardstick for all kinds of windows: errors of the whole history up to the cutoff.
    scale, root_scale = seasonal_naive_errors(panel, windows, season)
    scores, forecasts, failures = [], [], [_failures(panel, windows, NAIVE, [""] * len(windows))]

    def judge(
        name: str, stated: np.ndarray, mean: np.ndarray | None, dense: np.ndarray | None, rows: np.ndarray
    ) -> None:
        own, came = windows[rows], actual[rows]
        if first.classes is not None:
            found, mean = score_classes(came, stated[rows]), None
        else:
            mean = (stated[..., list(levels).index(0.5)] if mean is None else mean)[rows]
            found = score_windows(
                came, stated[rows], levels=levels, scale=scale[rows], root_scale=root_scale[rows], mean=mean
            )
            found |= {} if dense is None else {CRPS: score_points(came, dense[rows])}
        scores.append(_scores(panel, own, name, found))
        forecasts.append(_long(panel, own, came, name, stated[rows], mean, first))

    every = np.arange(len(windows))
    for baseline in settings.baselines:
        name: str = baseline
        if name in fitted:
            asked = sorted({*levels, *midpoints(points)})
            made, reasons = fitted_forecasts(
                name,
                history,
                windows,
                horizon=horizon,
                season=season,
                levels=asked,
                history=settings.baseline_history,
                pool=pool,
            )
            made = within_support(bounded, made)
            stated, dense = (made[..., [asked.index(q) for q in some]] for some in (levels, midpoints(points)))
            solved = np.flatnonzero([not reason for reason in reasons])
            judge(name, stated, None, dense if points else None, solved)
            failures.append(_failures(panel, windows, name, reasons))
        else:
            lag = 1 if name == NAIVE else season
            stated = naive_forecasts(bounded, history, windows, season=lag)
            points_of_naive = naive_forecasts(bounded, history, windows, season=lag, points=points) if points else None
            judge(name, stated, None, points_of_naive, every)
    for name, (artifact, other) in models.items():
        shard = other.rows(begin, end)
        stated, mean = _ladder(artifact, shard, history, windows, 0, one_pass=settings.one_pass)
        points_of_model = None
        if points:
            points_of_model, _ = _ladder(artifact, shard, history, windows, points, one_pass=settings.one_pass)
        judge(name, stated, mean, points_of_model, every)
    return _Block(windows.series, pl.concat(scores), pl.concat(forecasts), pl.concat(failures))


def _ladder(
    artifact: Artifact, panel: Panel, history: Panel, windows: WindowIndex, points: int, *, one_pass: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return forecasts as scoring makes them, and their means: where the model gives nothing, seasonal naive speaks."""
    predicted = predict(artifact, panel, windows, points=points, one_pass=one_pass)
    stated, mean = predicted.tuned.astype(np.float64), predicted.tuned_mean.copy()
    silent = np.flatnonzero(~np.isfinite(stated).all((1, 2)))
    stated[silent] = naive_forecasts(artifact, history, windows[silent], points=points)
    mean[silent] = mean_of_naive(artifact, stated[silent])
    return stated, mean


def _failures(panel: Panel, windows: WindowIndex, name: str, reasons: list[str]) -> pl.DataFrame:
    return pl.DataFrame({**_keys(panel, windows, name), REASON: pl.Series(reasons, dtype=pl.String)}).filter(
        pl.col(REASON) != ""
    )


def _keys(panel: Panel, windows: WindowIndex, name: str) -> dict[str, pl.Series]:
    return {
        SERIES_ID: pl.Series(panel.series_id[windows.series].tolist(), dtype=pl.String),
        CUTOFF: panel.grid.timestamps(panel.start[windows.series] + windows.cutoff),
        MODEL: pl.repeat(name, len(windows), dtype=pl.String, eager=True),
    }


def _scores(panel: Panel, windows: WindowIndex, name: str, scored: dict[str, np.ndarray]) -> pl.DataFrame:
    return pl.DataFrame({**_keys(panel, windows, name), **scored})


def _long(
    panel: Panel,
    windows: WindowIndex,
    actual: np.ndarray,
    name: str,
    stated: np.ndarray,
    mean: np.ndarray | None,
    artifact: Artifact,
) -> pl.DataFrame:
    n, horizon = actual.shape
    target = pl.Series(actual.ravel()).fill_nan(None)
    centre = {} if mean is None else {MEAN: pl.Series(mean.ravel())}
    if artifact.classes is not None:
        names = pl.Series(artifact.classes, dtype=pl.String)
        target = names.gather(target.cast(pl.Int64))
        centre = {CLASS: names.gather(stated.argmax(-1).ravel())}
    at = (panel.start[windows.series] + windows.cutoff)[:, None] + np.arange(horizon + 1)
    each = np.repeat(np.arange(n), horizon)
    return pl.DataFrame(
        {
            SERIES_ID: pl.Series(panel.series_id[windows.series].tolist(), dtype=pl.String).gather(each),
            TIMESTAMP: panel.grid.timestamps(at[:, 1:].ravel()),
            CUTOFF: panel.grid.timestamps(at[:, 0]).gather(each),
            STEP: np.tile(np.arange(1, horizon + 1, dtype=np.int32), n),
            MODEL: pl.repeat(name, n * horizon, dtype=pl.String, eager=True),
            TARGET: target,
            **centre,
            **{column: stated[..., k].ravel() for k, column in enumerate(forecast_columns(artifact))},
        }
    )
