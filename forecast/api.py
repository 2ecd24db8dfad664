"""The verbs on tables, for notebooks and programs: no registry."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import polars as pl

from forecast import artifact as artifacts
from forecast.artifact import Artifact
from forecast.backtest import BacktestResult, Contender
from forecast.backtest import backtest as backtest_models
from forecast.calibrate import CalibrationResult
from forecast.calibrate import calibrate as calibrate_model
from forecast.config import (
    AUTO,
    BacktestSettings,
    CalibrateSettings,
    DataConfig,
    DistilSettings,
    ExplainSettings,
    FinetuneSettings,
    FitConfig,
    FitSettings,
    ReconcileSettings,
    ScoreSettings,
    SourceConfig,
    TuneSettings,
)
from forecast.config import load as validated
from forecast.data.ages import ENDED, MaxAge
from forecast.data.folders import locked
from forecast.data.frames import to_lazy
from forecast.data.io import collect
from forecast.data.load import Loaded, load_panel
from forecast.data.prepared import prepare as prepare_panel
from forecast.data.read import read_panel
from forecast.data.source import Tables, fingerprint, open_tables, unchanged, used_columns
from forecast.distil import DistilResult
from forecast.distil import distil as distil_model
from forecast.errors import ConfigError, listing
from forecast.explain import Explanation
from forecast.explain import explain as explain_forecast
from forecast.finetune import FinetuneResult
from forecast.finetune import finetune as finetune_series
from forecast.fit import FitResult, Progress
from forecast.fit import fit as fit_panel
from forecast.names import REASON, SERIES_ID, SOURCE_PRETRAINED, TARGET, TIMESTAMP
from forecast.predict import Forecasts, forecast_loaded
from forecast.predict import attention as attention_of
from forecast.predict import sample_paths as paths_of
from forecast.reconcile import Hierarchy, Reconciled, aggregated, hierarchy_of, past_errors
from forecast.reconcile import reconcile as reconcile_forecasts
from forecast.tune import TuneResult
from forecast.tune import tune as tune_settings

Settings = Mapping[str, Any]


def train(
    table: object,
    *,
    horizon: int,
    known: object = None,
    static: object = None,
    context_length: int | None = None,
    data: Settings | None = None,
    model: Settings | None = None,
    fit: Settings | None = None,
    progress: Progress | None = None,
) -> FitResult:
    """Return a model trained on a table; `.artifact` is what forecasts.

    `table` is a Polars, pandas or Arrow one, or the path of one (or of a prepared panel). `known` and `static` are
    tables of their own with the known covariates, reaching over the horizon, and the static ones, where these are not
    columns of the first. `data`, `model` and `fit` take the keys of the config groups of the same names. Raises
    ConfigError, DataError.
    """
    loaded, config = _training(table, known, static, horizon, context_length, data, model, fit)
    return fit_panel(
        loaded.panel,
        data=loaded.data,
        categories=loaded.categories,
        window=config.window,
        model=config.model,
        fit=config.fit,
        progress=progress,
    )


def tune(
    table: object,
    folder: str | Path,
    *,
    horizon: int,
    known: object = None,
    static: object = None,
    context_length: int | None = None,
    data: Settings | None = None,
    model: Settings | None = None,
    fit: Settings | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> TuneResult:
    """Return the best of several trainings with other settings; arguments as of `train`, `settings` the keys of `tune`.

    The search lies in `folder`, and goes on there if it was stopped. Raises ConfigError, DataError, OutputError.
    """
    loaded, config = _training(table, known, static, horizon, context_length, data, model, fit)
    with locked(Path(folder), "folder"):
        wanted = validated(TuneSettings, settings)
        return tune_settings(loaded, config, wanted, Path(folder), key="folder", progress=progress)


def read(
    artifact: Artifact,
    table: object,
    known: object = None,
    static: object = None,
    *,
    cutoff: datetime | None = None,
) -> Loaded:
    """Return the panel in a table (as in `train`), read as the table of training was.

    Rows beyond the end on which its series agree are rejects, unless one is at `cutoff`. Raises ConfigError, DataError.
    """
    if isinstance(table, str | Path):
        return artifact.open(_at(SourceConfig(), table, known, static), [cutoff])
    return artifact.read(_tables(table, known, static, artifact.data), [cutoff])


def prepare(
    table: object,
    folder: str | Path,
    *,
    horizon: int,
    known: object = None,
    static: object = None,
    data: Settings | None = None,
) -> Loaded:
    """Write a panel into a folder, which the other functions take as `table` and map into memory; return it.

    Raises ConfigError, DataError, OutputError.
    """
    config = validated(DataConfig, data or {})
    if isinstance(table, str | Path):
        config = _at(config, table, known, static)
        with unchanged(config) as check_source:
            key = fingerprint(config)
            tables = open_tables(config)
            return prepare_panel(
                tables, config, horizon, Path(folder), fingerprint=key, check_source=check_source
            ).loaded
    return prepare_panel(_tables(table, known, static, config), config, horizon, Path(folder)).loaded


def finetune(
    artifact: Artifact, table: object, *, known: object = None, static: object = None, **settings: Any
) -> FinetuneResult:
    """Return the model with changes for each series that gains from them; `settings` are the keys of `finetune`."""
    panel = read(artifact, table, known, static).panel
    return finetune_series(artifact, panel, validated(FinetuneSettings, settings))


def backtest(
    artifact: Artifact, table: object, *, known: object = None, static: object = None, **settings: Any
) -> BacktestResult:
    """Return the scores of a model on past cutoffs beside seasonal naive, and beside its base if it is fine-tuned."""
    panel = read(artifact, table, known, static).panel
    contenders = {SOURCE_PRETRAINED: Contender(artifact.base(), panel)}
    contenders[artifact.kind] = Contender(artifact, panel)
    return backtest_models(contenders, validated(BacktestSettings, settings))


def calibrate(
    artifact: Artifact, table: object, *, known: object = None, static: object = None, **settings: Any
) -> CalibrationResult:
    """Return the model with intervals that cover what they say; `settings` are the keys of `calibrate`."""
    panel = read(artifact, table, known, static).panel
    return calibrate_model(artifact, panel, validated(CalibrateSettings, settings))


def distil(
    artifact: Artifact,
    table: object,
    *,
    known: object = None,
    static: object = None,
    fit: Settings | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> DistilResult:
    """Return a smaller model that has learnt the forecasts of a model, and both beside each other.

    `settings` are the keys of `distil`, `fit` those of the training.
    """
    panel = read(artifact, table, known, static).panel
    chosen = validated(DistilSettings, settings), validated(FitConfig, fit or {})
    return distil_model(artifact, panel, *chosen, progress=progress)


def explain(
    artifact: Artifact, table: object, *, series: str, known: object = None, static: object = None, **settings: Any
) -> Explanation:
    """Return what the forecast of one series is made of; `settings` are the other keys of `explain`: `cutoff`, ..."""
    wanted = validated(ExplainSettings, {"series": series, **settings})
    return explain_forecast(artifact, read(artifact, table, known, static, cutoff=wanted.cutoff).panel, wanted)


def forecast(
    artifact: Artifact,
    table: object,
    *,
    known: object = None,
    static: object = None,
    cutoff: datetime | None = None,
    max_age: MaxAge = AUTO,
) -> Forecasts:
    """Return the forecasts of every series in the table from `cutoff`, the end on which they agree when None.

    A series whose last observation is older than `max_age` (steps, a duration such as "90d", or None for any age; the
    context length of the model by default) is a reject with the reason `ended`.
    """
    age = validated(ScoreSettings, {"max_age": max_age}).max_age
    loaded = read(artifact, table, known, static, cutoff=cutoff)
    return forecast_loaded(artifact, loaded, cutoff=cutoff, max_age=age)


def reconcile(
    forecasts: pl.DataFrame | Forecasts,
    hierarchy: object,
    *,
    by: Sequence[str | Sequence[str]],
    past: pl.DataFrame | None = None,
    actuals: object = None,
    **settings: Any,
) -> Reconciled:
    """Return forecasts of one cutoff that add up, of all series and their sums (`forecast.reconcile.reconcile`).

    `hierarchy` is a table with series_id and the columns of `by`; `settings` are the other keys of `reconcile`. `past`
    are forecasts of earlier cutoffs and `actuals` a table with what came (series_id, timestamp, target): their errors
    say how series hang together. Series that are rejects of `forecast` because they have ended add nothing.
    """
    config = validated(ReconcileSettings, {"by": by, **settings})
    ended: list[str] = []
    if isinstance(forecasts, Forecasts):
        ended = forecasts.rejects.filter(pl.col(REASON) == ENDED)[SERIES_ID].to_list()
        forecasts = forecasts.frame
    if (past is None) != (actuals is None):
        raise ConfigError("past and actuals go together: forecasts of earlier cutoffs, and what came")
    tree = _hierarchy(hierarchy, config.by)
    errors = None if past is None else past_errors(past, collect(to_lazy(actuals, _ROWS)), tree, ended)
    return reconcile_forecasts(forecasts, tree, config, errors=errors, ended=ended)


def aggregate(
    table: object, hierarchy: object, *, by: Sequence[str | Sequence[str]], max_age: int | None = None
) -> pl.DataFrame:
    """Return series_id, timestamp and target of all series and of their sums, to train on and score.

    `hierarchy` and `by` as in `reconcile`. A sum is null where one of its series has no value. With `max_age`, a series
    whose last value is more than so many timestamps before the end of the table adds nothing after it.
    """
    levels = validated(ReconcileSettings, {"by": by}).by
    if max_age is not None and (isinstance(max_age, bool) or not isinstance(max_age, int) or max_age < 0):
        raise ConfigError(f"max_age: must be a number of timestamps, 0 or more (given: {max_age!r})")
    return aggregated(collect(to_lazy(table, _ROWS)), _hierarchy(hierarchy, levels), max_age=max_age)


_ROWS: Final = (SERIES_ID, TIMESTAMP, TARGET)


def _hierarchy(table: object, by: Sequence[str | tuple[str, ...]]) -> Hierarchy:
    """Return the hierarchy of the series in a table, of which no other columns need be readable."""
    names = [name for level in by for name in ((level,) if isinstance(level, str) else level)]
    return hierarchy_of(collect(to_lazy(table, [SERIES_ID, *names])), by)


def attention(
    artifact: Artifact, table: object, *, known: object = None, static: object = None, cutoff: datetime | None = None
) -> pl.DataFrame:
    """Return how much each step of the context weighs in the forecast of each series (`predict.attention`).

    Raises ConfigError if the model was trained without model.attention.
    """
    panel = read(artifact, table, known, static, cutoff=cutoff).panel
    return attention_of(artifact, panel, cutoff=None if cutoff is None else panel.grid.floor(cutoff))


def sample_paths(
    artifact: Artifact,
    table: object,
    *,
    n: int | None = None,
    known: object = None,
    static: object = None,
    cutoff: datetime | None = None,
) -> pl.DataFrame:
    """Return `n` possible futures of each series, model.n_paths of them when None (`predict.sample_paths`).

    Raises ConfigError for a model of classes that was trained without model.decoder=autoregressive.
    """
    panel = read(artifact, table, known, static, cutoff=cutoff).panel
    return paths_of(artifact, panel, n=n, cutoff=None if cutoff is None else panel.grid.floor(cutoff))


def load(folder: str | Path) -> Artifact:
    """Return a model that `artifact.save(folder)` or `forecast models export` has written."""
    return artifacts.load(Path(folder))


def _training(
    table: object,
    known: object,
    static: object,
    horizon: int,
    context_length: int | None,
    data: Settings | None,
    model: Settings | None,
    fit: Settings | None,
) -> tuple[Loaded, FitSettings]:
    window = {"horizon": horizon, "context_length": context_length}
    config = validated(FitSettings, {"data": data or {}, "window": window, "model": model or {}, "fit": fit or {}})
    if isinstance(table, str | Path):
        loaded = read_panel(_at(config.data, table, known, static), horizon)
    else:
        loaded = load_panel(_tables(table, known, static, config.data), config.data, horizon)
    return loaded, config


Source = TypeVar("Source", bound=SourceConfig)


def _at(source: Source, path: object, known: object, static: object) -> Source:
    """Return how to read tables that are given by their paths."""
    paths = {"path": path, "known_path": known, "static_path": static}
    wrong = [name for name, given in paths.items() if given is not None and not isinstance(given, str | Path)]
    if wrong:
        raise ConfigError(f"{listing(wrong)}: the first table is given by its path, so the others must be too")
    return source.model_copy(update={name: str(given) for name, given in paths.items() if given is not None})


def _tables(rows: object, known: object, static: object, data: DataConfig) -> Tables:
    """Return the tables that are given as frames. Columns that no setting names need not be readable."""
    used = used_columns(data, known=known is not None, static=static is not None)
    return Tables(
        to_lazy(rows, used.rows),
        None if known is None else to_lazy(known, used.known),
        None if static is None else to_lazy(static, used.static),
    )
