"""The verbs on frames, for notebooks and programs: no files, no registry."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from forecast import artifact as artifacts
from forecast.artifact import Artifact
from forecast.backtest import BacktestResult, Contender
from forecast.backtest import backtest as backtest_models
from forecast.config import BacktestSettings, FinetuneSettings, FitSettings
from forecast.config import load as validated
from forecast.data.io import to_lazy
from forecast.data.load import load_panel
from forecast.finetune import FinetuneResult
from forecast.finetune import finetune as finetune_series
from forecast.fit import FitResult, Progress
from forecast.fit import fit as fit_panel
from forecast.names import SOURCE_PRETRAINED
from forecast.predict import Forecasts, forecast_frame

Settings = Mapping[str, Any]


def train(
    table: object,
    *,
    horizon: int,
    context_length: int | None = None,
    data: Settings | None = None,
    model: Settings | None = None,
    fit: Settings | None = None,
    progress: Progress | None = None,
) -> FitResult:
    """Return a model trained on a table; `.artifact` is what forecasts.

    `data`, `model` and `fit` take the keys of the config groups of the same names. Raises ConfigError, DataError.
    """
    window = {"horizon": horizon, "context_length": context_length}
    config = validated(FitSettings, {"data": data or {}, "window": window, "model": model or {}, "fit": fit or {}})
    loaded = load_panel(to_lazy(table), config.data, horizon)
    return fit_panel(
        loaded.panel,
        data=loaded.data,
        categories=loaded.categories,
        window=config.window,
        model=config.model,
        fit=config.fit,
        progress=progress,
    )


def finetune(artifact: Artifact, table: object, **settings: Any) -> FinetuneResult:
    """Return the model with changes for each series that gains from them; `settings` are the keys of `finetune`."""
    loaded = artifact.read(to_lazy(table))
    return finetune_series(artifact, loaded.panel, validated(FinetuneSettings, settings))


def backtest(artifact: Artifact, table: object, **settings: Any) -> BacktestResult:
    """Return the scores of a model on past cutoffs beside seasonal naive, and beside its base if it is fine-tuned."""
    loaded = artifact.read(to_lazy(table))
    contenders = {SOURCE_PRETRAINED: Contender(artifact.base(), loaded.panel)}
    contenders[artifact.kind] = Contender(artifact, loaded.panel)
    return backtest_models(contenders, validated(BacktestSettings, settings))


def forecast(artifact: Artifact, table: object, *, cutoff: datetime | None = None) -> Forecasts:
    """Return the forecasts of every series in the table from `cutoff`, its latest timestamp when None."""
    return forecast_frame(artifact, table, cutoff=cutoff)


def load(folder: str | Path) -> Artifact:
    """Return a model that `artifact.save(folder)` or `forecast models export` has written."""
    return artifacts.load(Path(folder))
