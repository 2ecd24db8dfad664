"""Rolling origins: the forecasts a version would have made, scored beside seasonal naive."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl

from forecast.artifact import Artifact
from forecast.config import BacktestSettings
from forecast.data.panel import Panel
from forecast.data.windows import WindowIndex, windows_at
from forecast.errors import ConfigError, DataError, listing
from forecast.metrics import (
    CRPS,
    LOG_LOSS,
    MODEL,
    confusion,
    future_values,
    last_values,
    macro_f1,
    midpoints,
    score_classes,
    score_points,
    score_windows,
    seasonal_naive,
    seasonal_naive_errors,
    summarise,
)
from forecast.names import CLASS, CUTOFF, SERIES_ID, SOURCE_SEASONAL_NAIVE, STEP, TARGET, TIMESTAMP
from forecast.predict import BATCH_SIZE, naive_forecasts, predict, stated_columns

# Windows that are forecast and scored together: full batches, so that blocks change no forecast.
_BLOCK = 16 * BATCH_SIZE
# Equal shares of a distribution whose midpoints the CRPS is taken over.
_POINTS = 100

BACKTEST_RUN = "backtest_run"
"""Tag of a version: the run that holds its latest backtest."""


class Contender(NamedTuple):
    """A model, and the panel as it reads it."""

    artifact: Artifact
    panel: Panel


@dataclass(frozen=True)
class BacktestResult:
    """Scores and forecasts of all models on the same windows."""

    scores: pl.DataFrame
    """series_id, cutoff, model, and the columns of `metrics.score_windows` (crps: `metrics.score_points`, for heads of
    targets of 0 and more), or of `metrics.score_classes`."""
    forecasts: pl.DataFrame
    """series_id, timestamp, cutoff, step, model, target, one column per quantile; of classes also class, the most
    probable one, and one column per class."""
    summary: pl.DataFrame
    """One row per model (`metrics.summarise`)."""
    skipped: pl.DataFrame
    """series_id, reason: series without a scored window."""
    confusion: pl.DataFrame | None = None
    """model, target, class, n: how often each class was the most probable one where another came."""


def rolling_cutoffs(panel: Panel, *, horizon: int, settings: BacktestSettings, trained_until: int) -> list[int]:
    """Return the grid indices of the latest cutoffs with a full horizon in the panel, oldest first.

    Raises DataError if the panel is too short for them, or the model has already seen what lies behind one of them.
    """
    step = settings.step_size or horizon
    last = panel.last_index
    cutoffs = [last - horizon - k * step for k in reversed(range(settings.n_windows))]
    if cutoffs[0] < int(panel.start.min()):
        raise DataError(
            f"{settings.n_windows} windows {step} steps apart begin before the panel does; lower backtest.n_windows or "
            "backtest.step_size"
        )
    seen = [cutoff for cutoff in cutoffs if cutoff < trained_until]
    if seen:
        until = panel.grid.timestamps(np.array([trained_until]))[0]
        names = listing(panel.grid.timestamps(np.array(seen)).to_list())
        raise DataError(
            f"the model was trained on data up to {until}, and {len(seen)} of {len(cutoffs)} cutoffs lie before that "
            f"({names}): their scores would flatter it; lower backtest.n_windows, or train with a larger "
            "fit.holdout_windows"
        )
    return cutoffs


def backtest(contenders: dict[str, Contender], settings: BacktestSettings) -> BacktestResult:
    """Return the scores of models (by name; all of one horizon and frequency) beside seasonal naive.

    Each model forecasts as it would have in scoring. Windows without an observed target, or without history, are
    skipped. Raises ConfigError if the models can't be compared, DataError if the panel is too short or was seen in
    training.
    """
    first, panel = next(iter(contenders.values()))
    for name, (artifact, other) in contenders.items():
        ours, theirs = _what_it_forecasts(artifact, other), _what_it_forecasts(first, panel)
        if ours != theirs or not np.array_equal(other.series_id, panel.series_id):
            raise ConfigError(
                f"{name} forecasts {ours}, the others {theirs}: they can't be compared; register it under another "
                "registry.name"
            )
    horizon, season, levels = first.horizon, first.network.shape.season_length, first.model.quantile_levels
    # Beside the pinball loss at a few levels: what it is over the whole distribution, where one of the models states it
    # for targets that are often 0.
    points = _POINTS * any(artifact.network.head.positive for artifact, _ in contenders.values())
    seen = max(artifact.trained_until for artifact, _ in contenders.values())
    cutoffs = rolling_cutoffs(panel, horizon=horizon, settings=settings, trained_until=seen)
    parts = [windows_at(panel, cutoff) for cutoff in cutoffs]
    windows = WindowIndex(np.concatenate([p.series for p in parts]), np.concatenate([p.cutoff for p in parts]))
    windows = windows[np.flatnonzero(_can_be_scored(panel, windows, horizon))]
    if not len(windows):
        raise DataError(
            "no series has both history and observations behind the cutoffs; check data.path and backtest.n_windows"
        )
    tables: dict[str, list[tuple[pl.DataFrame, pl.DataFrame]]] = {}
    for block in _blocks(windows):
        begin, end = int(block.series.min()), int(block.series.max()) + 1
        shard, own = panel.rows(begin, end), WindowIndex(block.series - begin, block.cutoff)
        actual = future_values(shard, own, horizon)
        made = {SOURCE_SEASONAL_NAIVE: _naive(first, shard, own)}
        dense = {} if not points else {SOURCE_SEASONAL_NAIVE: _naive(first, shard, own, points)}
        for name, (artifact, other) in contenders.items():
            made[name] = _ladder(artifact, other.rows(begin, end), own)
            if points:
                dense[name] = _ladder(artifact, other.rows(begin, end), own, points)
        for name, values in made.items():
            if first.classes is not None:
                scored = score_classes(actual, values)
            else:
                scale, _ = seasonal_naive_errors(shard, own, season)
                scored = score_windows(actual, values, levels=levels, scale=scale)
                scored |= {CRPS: score_points(actual, dense[name])} if points else {}
            pair = _scores(shard, own, name, scored), _long(shard, own, actual, name, values, first)
            tables.setdefault(name, []).append(pair)
    scores, forecasts = (pl.concat(pair[kind] for parts in tables.values() for pair in parts) for kind in (0, 1))
    absent = np.setdiff1d(np.arange(panel.n_series), windows.series)
    skipped = pl.DataFrame(
        {
            SERIES_ID: panel.series_id[absent].tolist(),
            "reason": ["no history or no observation at any cutoff"] * len(absent),
        },
        schema={SERIES_ID: pl.String, "reason": pl.String},
    )
    summary = summarise(scores)
    if first.classes is None:
        return BacktestResult(scores, forecasts, summary, skipped)
    counts = confusion(forecasts)
    summary = summary.join(macro_f1(counts), on=MODEL, maintain_order="left")
    first_columns = [MODEL, LOG_LOSS, "brier", "accuracy", "macro_f1"]
    summary = summary.select(*first_columns, pl.exclude(first_columns))
    return BacktestResult(scores, forecasts, summary, skipped, counts)


def _what_it_forecasts(artifact: Artifact, panel: Panel) -> str:
    if artifact.classes is None:
        what = f"quantiles {', '.join(f'{level:g}' for level in artifact.model.quantile_levels)}"
    else:
        what = f"classes {', '.join(artifact.classes)}"
    return f"{what} of {artifact.horizon} steps on {panel.grid} for {panel.n_series:,} series"


def _ladder(artifact: Artifact, panel: Panel, windows: WindowIndex, points: int = 0) -> np.ndarray:
    """Return forecasts as scoring makes them: where the model gives nothing, seasonal naive speaks."""
    made = predict(artifact, panel, windows, points=points).tuned.astype(np.float64)
    silent = np.flatnonzero(~np.isfinite(made).all((1, 2)))
    made[silent] = naive_forecasts(artifact, panel, windows[silent], points=points)
    return made


def _naive(artifact: Artifact, panel: Panel, windows: WindowIndex, points: int = 0) -> np.ndarray:
    """Return the baseline: seasonal naive as it is."""
    season = artifact.network.shape.season_length
    if artifact.classes is not None:
        return naive_forecasts(artifact, panel, windows)
    levels = midpoints(points) if points else artifact.model.quantile_levels
    return seasonal_naive(panel, windows, horizon=artifact.horizon, season=season, levels=levels)


def _blocks(windows: WindowIndex) -> Iterator[WindowIndex]:
    """Yield the windows a block at a time, in their order."""
    for first in range(0, len(windows), _BLOCK):
        yield windows[slice(first, first + _BLOCK)]


def _can_be_scored(panel: Panel, windows: WindowIndex, horizon: int) -> np.ndarray:
    """Return whether each window has an observed target, and a value before it, [n]."""
    behind = [np.isfinite(future_values(panel, block, horizon)).any(1) for block in _blocks(windows)]
    return np.concatenate(behind) & np.isfinite(last_values(panel, windows))


def _scores(panel: Panel, windows: WindowIndex, name: str, scored: dict[str, np.ndarray]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            SERIES_ID: pl.Series(panel.series_id[windows.series].tolist(), dtype=pl.String),
            CUTOFF: panel.grid.timestamps(panel.start[windows.series] + windows.cutoff),
            MODEL: [name] * len(windows),
            **scored,
        }
    )


def _long(
    panel: Panel, windows: WindowIndex, actual: np.ndarray, name: str, stated: np.ndarray, artifact: Artifact
) -> pl.DataFrame:
    n, horizon = actual.shape
    target = pl.Series(actual.ravel()).fill_nan(None)
    centre: dict[str, pl.Series] = {}
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
            **{column: stated[..., k].ravel() for k, column in enumerate(stated_columns(artifact))},
        }
    )
