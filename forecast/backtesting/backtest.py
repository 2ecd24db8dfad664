"""Rolling origins: the forecasts a version, or one made anew on the way, would have made, scored beside baselines."""

import tempfile
from pathlib import Path

import numpy as np
import polars as pl

from forecast.artifact import Artifact
from forecast.backtesting.baselines import check, processes
from forecast.backtesting.cutoffs import moments_of, rolling_cutoffs
from forecast.backtesting.refit import refit_rounds
from forecast.backtesting.result import FORECASTS, SCORES, BacktestResult, Contender, Progress, result_of
from forecast.backtesting.scoring import score_block
from forecast.config import BacktestSettings
from forecast.data.files import parquet_blocks
from forecast.data.panel import Panel
from forecast.errors import ConfigError, DataError
from forecast.prediction.cutoffs import check_model
from forecast.prediction.one_pass import BATCH_SIZE
from forecast.segments import SEGMENTS, segments_of

# Windows that are forecast, scored and written together, about.
_BLOCK = 16 * BATCH_SIZE
"""Tag of a version: the run that holds its latest backtest."""
"""What series are grouped by, besides their static covariates; all as they are at the first cutoff.

length and volume are thirds of the series, by their steps and by the mean of |y|; intermittency is `demand` of
`profile`, the classes of Syntetos, Boylan & Croston (2005).
"""
"""Told the share of the work done, and a few words."""


def backtest(
    contenders: dict[str, Contender],
    settings: BacktestSettings,
    *,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> BacktestResult:
    """Return the scores of models (by name; all of one horizon and frequency) beside baselines.

    Each model forecasts as it would have in scoring from the first cutoff: with the weights of its final fit, if all
    that these have seen lies before. With `refit` it is not they that are judged, but what is made from
    the first of them at the cutoffs (`pretrained`, `fine_tuned`). Windows without an observed target, or without
    history, are skipped. Forecasts and scores are written to `folder` (a temporary one when None) block by block.

    Raises ConfigError if the models can't be compared or a setting does not fit them, DataError if the panel is too
    short or was seen in training, OutputError if nothing can be written.
    """
    first, panel = next(iter(contenders.values()))
    _check_alike(contenders)
    fitted = check(settings.baselines, first.classes)
    _check_settings(contenders, settings)
    judged = [artifact.trained_until for artifact, _ in contenders.values()]
    seen = {"never": max(judged), "finetune": first.base().trained_until, "scratch": None}[settings.refit]
    cutoffs = rolling_cutoffs(panel, horizon=first.horizon, settings=settings, trained_until=seen)
    groups = segments_of(first, panel, cutoffs[0], settings.segments)
    temporary = None if folder else tempfile.TemporaryDirectory(prefix="gatecast-")
    folder = folder or Path(str(temporary and temporary.name))
    scored = np.zeros(panel.n_series, dtype=bool)
    failures: list[pl.DataFrame] = []
    with (
        processes(settings.n_jobs if fitted else 1) as pool,
        parquet_blocks(folder / f"{SCORES}.parquet") as write_scores,
        parquet_blocks(folder / f"{FORECASTS}.parquet") as write_forecasts,
    ):
        done = 0
        for own, models in refit_rounds(contenders, settings, cutoffs):
            size = max(1, _BLOCK // len(own))
            for begin in range(0, panel.n_series, size):
                end = min(begin + size, panel.n_series)
                block = score_block(models, begin, end, own, settings, fitted, pool)
                if block is not None:
                    scored[begin + block.series] = True
                    write_scores(block.scores)
                    write_forecasts(block.forecasts)
                    failures.append(block.failures)
                if progress:
                    share = (done + len(own) * end / panel.n_series) / len(cutoffs)
                    progress(share, f"{moments_of(panel, own[-1:])}, {end:,} series")
            done += len(own)
        if not scored.any():
            raise DataError(
                "no series has both history and observations behind the cutoffs; check data.path and the cutoffs "
                "(backtest.n_windows, backtest.cutoffs)"
            )
    return result_of(folder, temporary, groups, panel, scored, pl.concat(failures))


# --- what is asked for


def _check_alike(contenders: dict[str, Contender]) -> None:
    first, panel = next(iter(contenders.values()))
    for name, (artifact, other) in contenders.items():
        ours, theirs = _what_it_forecasts(artifact, other), _what_it_forecasts(first, panel)
        if ours != theirs or not np.array_equal(other.series_id, panel.series_id):
            raise ConfigError(
                f"{name} forecasts {ours}, the others {theirs}: they can't be compared; register it under another "
                "registry.name"
            )


def _what_it_forecasts(artifact: Artifact, panel: Panel) -> str:
    if artifact.classes is None:
        what = f"quantiles {', '.join(f'{level:g}' for level in artifact.model.quantile_levels)}"
    else:
        what = f"classes {', '.join(artifact.classes)}"
    return f"{what} of {artifact.horizon} steps on {panel.grid} for {panel.n_series:,} series"


def _check_settings(contenders: dict[str, Contender], settings: BacktestSettings) -> None:
    """Raise ConfigError for what does not fit the models."""
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
    known = (*data.static_covariates, *(SEGMENTS if classes is None else SEGMENTS[:1]))
    unknown = [name for name in settings.segments if name not in known]
    if unknown:
        raise ConfigError(f"backtest.segments: {', '.join(unknown)} unknown; there are: {', '.join(known)}")
