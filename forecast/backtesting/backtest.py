"""Backtests with rolling origins: forecasts of models or refits from past cutoffs, scored beside baselines."""

import tempfile
from pathlib import Path

import numpy as np
import polars as pl

from forecast.artifact import Artifact
from forecast.backtesting.baselines import check_baselines, processes
from forecast.backtesting.cutoffs import moments_of, rolling_cutoffs
from forecast.backtesting.refit import refit_rounds
from forecast.backtesting.result import FORECASTS, SCORES, BacktestResult, Contender, Progress, result_of
from forecast.backtesting.scoring import BlockPlan, score_block
from forecast.config import BacktestSettings
from forecast.data.files import parquet_blocks
from forecast.data.panel import Panel
from forecast.errors import ConfigError, DataError
from forecast.prediction.cutoffs import check_model
from forecast.prediction.one_pass import BATCH_SIZE
from forecast.segments import SEGMENTS, segments_of

# Approximate number of windows that are forecast, scored and written together.
_BLOCK = 16 * BATCH_SIZE


def backtest(
    contenders: dict[str, Contender],
    settings: BacktestSettings,
    *,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> BacktestResult:
    """Return the scores of models (by name; all with the same horizon and frequency) beside baselines.

    Each model forecasts as in scoring from the first cutoff: with the weights of its final fit, if these have seen no
    later data. With `refit`, models refitted from the first contender at the cutoffs are scored instead (`pretrained`,
    `fine_tuned`). Windows without an observed target, or without history, are skipped. Forecasts and scores are written
    to `folder` (a temporary one when None) block by block.

    Raises ConfigError if the models can't be compared or a setting does not fit them, DataError if the panel is too
    short or was seen in training, OutputError if files can't be written.
    """
    first_model, panel = next(iter(contenders.values()))
    _check_alike(contenders)
    fitted = check_baselines(settings.baselines, first_model.classes)
    _check_settings(contenders, settings)
    trained_until = [artifact.trained_until for artifact, _ in contenders.values()]
    last_seen = {"never": max(trained_until), "finetune": first_model.base().trained_until, "scratch": None}[
        settings.refit
    ]
    cutoffs = rolling_cutoffs(panel, horizon=first_model.horizon, settings=settings, trained_until=last_seen)
    groups = segments_of(first_model, panel, cutoffs[0], settings.segments)
    temporary = None if folder else tempfile.TemporaryDirectory(prefix="gatecast-")
    folder = folder or Path(str(temporary and temporary.name))
    scored = np.zeros(panel.n_series, dtype=bool)
    failures: list[pl.DataFrame] = []
    with (
        processes(settings.n_jobs if fitted else 1) as pool,
        parquet_blocks(folder / f"{SCORES}.parquet") as write_scores,
        parquet_blocks(folder / f"{FORECASTS}.parquet") as write_forecasts,
    ):
        plan, n_done = BlockPlan(settings, fitted, pool), 0
        for round_cutoffs, models in refit_rounds(contenders, settings, cutoffs):
            size = max(1, _BLOCK // len(round_cutoffs))
            for start in range(0, panel.n_series, size):
                end = min(start + size, panel.n_series)
                block = score_block(plan, models, round_cutoffs, start, end)
                if block is not None:
                    scored[start + block.series] = True
                    write_scores(block.scores)
                    write_forecasts(block.forecasts)
                    failures.append(block.failures)
                if progress:
                    share = (n_done + len(round_cutoffs) * end / panel.n_series) / len(cutoffs)
                    progress(share, f"{moments_of(panel, round_cutoffs[-1:])}, {end:,} series")
            n_done += len(round_cutoffs)
        if not scored.any():
            raise DataError(
                "no series has both history and observations behind the cutoffs; check data.path and the cutoffs "
                "(backtest.n_windows, backtest.cutoffs)"
            )
    return result_of(folder, temporary, groups, panel, scored, pl.concat(failures))


# --- checks


def _check_alike(contenders: dict[str, Contender]) -> None:
    first, panel = next(iter(contenders.values()))
    for name, (artifact, contender_panel) in contenders.items():
        description, expected = _what_it_forecasts(artifact, contender_panel), _what_it_forecasts(first, panel)
        if description != expected or not np.array_equal(contender_panel.series_id, panel.series_id):
            raise ConfigError(
                f"{name} forecasts {description}, the others {expected}: they can't be compared; register it under "
                "another registry.name"
            )


def _what_it_forecasts(artifact: Artifact, panel: Panel) -> str:
    if artifact.classes is None:
        target = f"quantiles {', '.join(f'{level:g}' for level in artifact.model.quantile_levels)}"
    else:
        target = f"classes {', '.join(artifact.classes)}"
    return f"{target} of {artifact.horizon} steps on {panel.grid} for {panel.n_series:,} series"


def _check_settings(contenders: dict[str, Contender], settings: BacktestSettings) -> None:
    """Raise ConfigError for settings that do not fit the models."""
    for artifact, _ in contenders.values():
        if settings.one_pass:
            check_model(artifact, "backtest.one_pass")
        context = artifact.network.shape.context_length
        if settings.window_length is not None and settings.window_length < context + artifact.horizon:
            raise ConfigError(
                f"backtest.window_length: {settings.window_length} steps are less than the context ({context}) and the "
                f"horizon ({artifact.horizon}) of the model together; give {context + artifact.horizon} or more"
            )
    data, classes = contenders[next(iter(contenders))].artifact.data, next(iter(contenders.values())).artifact.classes
    segments = (*data.static_covariates, *(SEGMENTS if classes is None else SEGMENTS[:1]))
    unknown = [name for name in settings.segments if name not in segments]
    if unknown:
        raise ConfigError(f"backtest.segments: {', '.join(unknown)} unknown; there are: {', '.join(segments)}")
