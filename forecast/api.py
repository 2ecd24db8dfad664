"""The verbs as functions on tables, for notebooks and programs, without a registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

import polars as pl

from forecast import arguments
from forecast import artifact as artifacts
from forecast.arguments import Cutoff, verb
from forecast.artifact import Artifact
from forecast.backtesting.backtest import backtest as backtest_models
from forecast.backtesting.result import BacktestResult, Contender
from forecast.calibration.calibrate import CalibrationResult
from forecast.calibration.calibrate import calibrate as calibrate_model
from forecast.comparison.decompose import COVARIATES, DATA, MODEL, decompose
from forecast.compression.distil import DistilResult
from forecast.compression.distil import distil as distil_model
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
    MonitorSettings,
    ReconcileSettings,
    SinkConfig,
    SourceConfig,
    TuneSettings,
    WindowConfig,
)
from forecast.config import load as validated
from forecast.data.ages import ENDED
from forecast.data.files import locked
from forecast.data.ingest.cold import with_cold_series
from forecast.data.ingest.load import load_panel
from forecast.data.ingest.loaded import Loaded
from forecast.data.prepared.prepare import prepare as prepare_panel
from forecast.data.read import read_panel
from forecast.data.sources.frames import collect, to_lazy
from forecast.data.sources.open import Tables, fingerprint, open_tables, unchanged, used_columns
from forecast.engines.engine import open_engine
from forecast.errors import ConfigError, DataError, listing
from forecast.explanation.explain import explain as explain_forecast
from forecast.explanation.result import Explanation
from forecast.finetuning.eligibility import check_engine
from forecast.finetuning.finetune import finetune as finetune_series
from forecast.finetuning.result import FinetuneResult
from forecast.monitoring.evaluation import monitor as evaluate_scores
from forecast.monitoring.forecasts import ScoredForecasts
from forecast.monitoring.result import MonitorResult
from forecast.names import CUTOFF, MEAN, REASON, SERIES_ID, SOURCE, SOURCE_PRETRAINED, STEP, TARGET, TIMESTAMP
from forecast.prediction.attention import attention as attention_of
from forecast.prediction.from_table import forecast_loaded
from forecast.prediction.horizons import with_horizon
from forecast.prediction.paths import sample_paths as paths_of
from forecast.prediction.result import Forecasts
from forecast.pretraining.pretrained_network import of_model, of_package
from forecast.pretraining.zero_shot import drop_text, zero_shot, zero_shot_data
from forecast.reconciliation.hierarchy import Hierarchy, aggregated, hierarchy_of
from forecast.reconciliation.reconcile import Reconciled, past_errors
from forecast.reconciliation.reconcile import reconcile as reconcile_forecasts
from forecast.scoring.overrides import overrides_of, read_overrides
from forecast.scoring.plans import Layout, write_plan_of
from forecast.scoring.scenarios import scenario_folder
from forecast.scoring.scores import read_scores as scores_of
from forecast.training.fit import fit as fit_panel
from forecast.training.result import FitResult, Progress
from forecast.tuning.tune import TuneResult
from forecast.tuning.tune import tune as tune_settings

Settings: TypeAlias = Mapping[str, Any]
"""Keys of a group of settings and their values."""

Table: TypeAlias = Any
"""A Polars, pandas or Arrow frame (or any Arrow-compatible object), or the path of a file or folder: Parquet, CSV,
Arrow, Delta Lake, JSON lines, or a panel that `prepare` wrote."""


@verb
def train(
    table: Table,
    *,
    horizon: int,
    known: Table = None,
    static: Table = None,
    context_length: int | None = None,
    data: Settings | None = None,
    model: Settings | None = None,
    fit: Settings | None = None,
    init: Artifact | str | None = None,
    progress: Progress | None = None,
) -> FitResult:
    """Return a model trained on all series of a table, as `.artifact` of the result.

    - `table`: a row per series and timestamp (series_id, timestamp, target, and covariates that `data` names), as a
      Polars, pandas or Arrow frame or the path of one, or of a prepared panel.
    - `horizon`: number of steps to forecast, 1 or more.
    - `known`, `static`: separate tables with known covariates, which include the horizon, and with static covariates,
      if these are not columns of `table`.
    - `context_length`: number of past steps that a forecast uses; when None, it follows from frequency, season and the
      length of the series.
    - `data`, `model`, `fit`: the keys of the config groups of the same names, such as `data={"freq": "1h"}`,
      `model={"head": "negative_binomial"}`, `fit={"max_steps": 500}`.
    - `init`: a model whose pretrained network becomes a member of the new one, instead of the package's
      (`model={"init": ...}`): one of `pretrained`, or fine-tuned from it with `kind="global"`; or its name.
    - `progress`: a function that is called with the finished share, from 0 to 1, and a text.

    Raises ConfigError for arguments and settings, DataError for a table that can't be read or is too short.
    """
    network = of_package(init) if isinstance(init, str) else None
    if init is not None and not isinstance(init, str):
        arguments.check_artifact(init, "init")
        network = of_model(init, "the model of init")
    window = {"horizon": horizon, "context_length": context_length}
    loaded, config = _training(_TableInput(table, known, static), window, data=data, model=model, fit=fit)
    return fit_panel(
        loaded.panel,
        data=loaded.data,
        categories=loaded.categories,
        window=config.window,
        model=config.model,
        fit=config.fit,
        init=network,
        progress=progress,
    )


@verb
def tune(
    table: Table,
    folder: str | Path,
    *,
    horizon: int,
    known: Table = None,
    static: Table = None,
    context_length: int | None = None,
    data: Settings | None = None,
    model: Settings | None = None,
    fit: Settings | None = None,
    engine: str | Settings = "local",
    progress: Progress | None = None,
    **settings: Any,
) -> TuneResult:
    """Return the best of several trainings with different settings (`.artifact`, `.config`, `.trials`).

    - `folder`: the folder of the search, which resumes there after an interruption.
    - `settings`: the keys of `tune`, such as `n_trials=20`, `space={"model": {"hidden_size": [32, 64]}}`.
    - `engine`: as of `finetune`; its workers run the trials, and must see `folder`.
    - all others as of `train`.

    Raises ConfigError, DataError, OutputError.
    """
    study_folder = arguments.folder(folder)
    tune_config, where = validated(TuneSettings, settings), arguments.engine_settings(engine)
    window = {"horizon": horizon, "context_length": context_length}
    loaded, config = _training(_TableInput(table, known, static), window, data=data, model=model, fit=fit)
    with locked(study_folder, "folder"), open_engine(where) as workers:
        return tune_settings(loaded, config, tune_config, study_folder, key="folder", engine=workers, progress=progress)


def read(
    artifact: Artifact, table: Table, known: Table = None, static: Table = None, *, cutoff: datetime | None = None
) -> Loaded:
    """Return the panel in a table (as in `train`), read with the settings of the training table.

    Rows after the common end of the series are rejects, unless one is at `cutoff`. Raises ConfigError, DataError.
    """
    arguments.check_side_tables(artifact.data, known, static)
    if isinstance(table, str | Path):
        return artifact.open(_with_paths(SourceConfig(), table, known, static), [cutoff])
    return artifact.read(_tables(table, known, static, artifact.data), [cutoff])


@verb
def prepare(
    table: Table,
    folder: str | Path,
    *,
    horizon: int,
    known: Table = None,
    static: Table = None,
    data: Settings | None = None,
) -> Loaded:
    """Write a panel into a folder and return it; other functions accept the folder as `table` and map it into memory.

    - `horizon`: number of steps after the end of each series with known covariates, 1 or more.
    - all others as of `train`.

    Raises ConfigError, DataError, OutputError.
    """
    panel_folder = arguments.folder(folder)
    config = validated(DataConfig, arguments.group(data, "data"))
    steps = validated(WindowConfig, {"horizon": horizon}).horizon
    arguments.check_side_tables(config, known, static)
    if isinstance(table, str | Path):
        config = _with_paths(config, table, known, static)
        with unchanged(config) as check_source:
            key = fingerprint(config)
            tables = open_tables(config)
            return prepare_panel(tables, config, steps, panel_folder, fingerprint=key, check_source=check_source).loaded
    return prepare_panel(_tables(table, known, static, config), config, steps, panel_folder).loaded


@verb
def finetune(
    artifact: Artifact,
    table: Table,
    *,
    known: Table = None,
    static: Table = None,
    engine: str | Settings = "local",
    **settings: Any,
) -> FinetuneResult:
    """Return the model with changes for each series that gains from them on held-out windows.

    - `artifact`: a model that is not fine-tuned yet; with `incremental=True` a fine-tuned one.
    - `table`, `known`, `static`: as of `train`, read as the model's own.
    - `settings`: the keys of `finetune`, such as `kind="lora"`, `series=["a", "b"]`, `gate_windows=4`.
    - `engine`: `"processes"` for every core of this machine (in a script, below `if __name__ == "__main__":`), `"ray"`,
      or the keys of `engine`, such as `{"kind": "processes", "workers": 4}`.

    `.artifact` is the model; `.decisions` has a row per series with its losses before and after, and the reason.
    Raises ConfigError, DataError.
    """
    config, where = validated(FinetuneSettings, settings), arguments.engine_settings(engine)
    check_engine(config, where)
    panel = read(artifact, table, known, static).panel
    with open_engine(where) as workers:
        return finetune_series(artifact, panel, config, engine=workers)


@verb
def backtest(
    artifact: Artifact, table: Table, *, known: Table = None, static: Table = None, **settings: Any
) -> BacktestResult:
    """Return the scores of a model on past cutoffs beside seasonal naive, and beside its base if it is fine-tuned.

    - `table`, `known`, `static`: as of `train`, read as the model's own.
    - `settings`: the keys of `backtest`, such as `n_windows=8`, `cutoffs=["2024-05-01"]`, `segments=["city"]`,
      `baselines=["seasonal_naive", "auto_ets"]`.

    `.summary` has a row per model (MASE and WQL have no unit; MAE, RMSE and bias are in units of the target), `.scores`
    a row per series, cutoff and model, `.forecasts` a row per step. Raises ConfigError, also for cutoffs that the model
    has seen in training, and DataError.
    """
    config = validated(BacktestSettings, arguments.with_moments(settings))
    artifact = with_horizon(artifact, config.horizon, "horizon")
    panel = read(artifact, table, known, static).panel
    contenders = {SOURCE_PRETRAINED: Contender(artifact.base(), panel)}
    contenders[artifact.kind] = Contender(artifact, panel)
    return backtest_models(contenders, config)


@verb
def calibrate(
    artifact: Artifact,
    table: Table,
    *,
    known: Table = None,
    static: Table = None,
    engine: str | Settings = "local",
    **settings: Any,
) -> CalibrationResult:
    """Return the model with quantiles shifted until their empirical coverage matches the nominal levels.

    - `table`, `known`, `static`: as of `train`, read as the model's own; it needs cutoffs that the model has not seen.
    - `settings`: the keys of `calibrate`, such as `method="adaptive"`, `n_windows=8`.
    - `engine`: as of `finetune`.

    `.artifact` is the model; `.coverage` has the coverage of intervals on later cutoffs. Raises ConfigError, DataError.
    """
    config, where = validated(CalibrateSettings, settings), arguments.engine_settings(engine)
    panel = read(artifact, table, known, static).panel
    with open_engine(where) as workers:
        return calibrate_model(artifact, panel, config, engine=workers)


@verb
def distil(
    artifact: Artifact,
    table: Table,
    *,
    known: Table = None,
    static: Table = None,
    fit: Settings | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> DistilResult:
    """Return a smaller model trained on the forecasts of a model, and a comparison of both.

    - `settings`: the keys of `distil`, such as `hidden_size=16`; `fit`: those of the training.
    - all others as of `train`.

    `.artifact` is the small model; `.comparison` has errors, sizes and milliseconds of both. Raises ConfigError,
    DataError.
    """
    distil_config, config = validated(DistilSettings, settings), validated(FitConfig, arguments.group(fit, "fit"))
    panel = read(artifact, table, known, static).panel
    return distil_model(artifact, panel, distil_config, config, progress=progress)


@verb
def explain(
    artifact: Artifact, table: Table, *, series: str, known: Table = None, static: Table = None, **settings: Any
) -> Explanation:
    """Return the attributions of one series' forecast to its inputs.

    - `series`: the id of the series.
    - `table`, `known`, `static`: as of `train`, read as the model's own.
    - `settings`: the other keys of `explain`, such as `cutoff="2024-05-01"`, `step=1`, `method="occlusion"`.

    `.summary` has a row per input with its attribution in units of the target, `.frame` a row per input and step.
    Raises ConfigError, DataError.
    """
    config = validated(ExplainSettings, arguments.with_moments({"series": series, **settings}))
    return explain_forecast(artifact, read(artifact, table, known, static, cutoff=config.cutoff).panel, config)


@verb
def pretrained(
    name: str,
    table: Table,
    *,
    horizon: int,
    known: Table = None,
    context_length: int | None = None,
    data: Settings | None = None,
    model: Settings | None = None,
) -> Artifact:
    """Return a model that needs no training: a pretrained network of the package, for the series of a table.

    - `name`: `gatecast-nano`, or one version of it, `gatecast-nano-1`.
    - `horizon`: number of steps to forecast, 1 to 1,024.
    - `model`: only `quantile_levels` applies.
    - all others as of `train`. Past and known covariates that are numbers, holidays and `fourier` are used: the model
      includes a regression on them if that improves the forecasts of the last horizons of the table.

    `forecast`, `finetune`, `backtest` and the other functions accept the model. It has not been trained on the table,
    so a backtest may use any cutoff.
    Raises ConfigError, also for a target of classes, and DataError.
    """
    window = {"horizon": horizon, "context_length": context_length}
    return _pretrained(name, _TableInput(table, known), window, data=data, model=model)[0]


class _TableInput(NamedTuple):
    """A table and its side tables, as given to a verb."""

    table: Table
    known: Table = None
    static: Table = None


def _pretrained(
    name: str, tables: _TableInput, window: Settings, *, data: Settings | None, model: Settings | None = None
) -> tuple[Artifact, Loaded]:
    """Return the model of `pretrained`, and the panel in the table."""
    loaded, config = _training(tables, window, data=data, model=model, read=zero_shot_data)
    loaded = drop_text(loaded)
    return zero_shot(name, loaded, config.window, config.model), loaded


@verb
def forecast(
    artifact: Artifact | str,
    table: Table,
    *,
    horizon: int | None = None,
    data: Settings | None = None,
    known: Table = None,
    static: Table = None,
    cutoff: Cutoff | None = None,
    max_age: int | str | None = AUTO,
    overrides: Table = None,
    cold_start: bool = False,
) -> Forecasts:
    """Return the forecasts of every series in a table from one cutoff.

    - `artifact`: a model: the `.artifact` of a result of `train`, `finetune` and others, or the result of `load` or
      `pretrained`; or the name of a pretrained network of the package, `"gatecast-nano"`, with `horizon` and `data` as
      of `train`.
    - `table`, `known`, `static`: as of `train`, read as the model's own: the history of any series, including series
      that were not in training.
    - `horizon`: for a model, the number of steps, as score.horizon; by default those that it is trained for.
    - `cutoff`: the last timestamp that the forecast may see: text such as "2024-05-01" or "2024-05-01T06:00", a date
      (its midnight), a datetime or pandas Timestamp; without a time zone it is local time of the panel. When None, the
      common end of the series.
    - `max_age`: the greatest age of a series, from its last observation to the cutoff: steps, a duration such as "90d",
      None for any; the context length of the model by default. An older series is a reject with the reason `ended`.
    - `overrides`: values that people set in place of forecasts: series_id, timestamp, value or factor, author, and
      optionally note and valid_until. Such rows have the source `override`, the model's mean as `model_mean`, and
      `override_author` and `override_note`; overrides that can't be applied are rejects with a reason.
    - `cold_start`: forecast series without any observation, those of the static table among them, from the series
      nearest by static covariates; their source is `cold`.

    `.frame` has horizon rows per series: series_id, timestamp, cutoff, step (1 to horizon), mean and quantiles (q10 to
    q90) in units of the target, or class and probabilities, then source (fine_tuned, pretrained, seasonal_naive,
    last_value, cold, closed). `.rejects` has series_id, timestamp, reason and value of each bad row and of each series
    without a forecast: series in = series in `.frame` + rejected series.

    Raises ConfigError for arguments; DataError for a table that can't be read, has too many rejects, or ends before the
    cutoff.
    """
    cutoff_time, age_limit = arguments.moment(cutoff), arguments.age(max_age)
    if isinstance(artifact, str):
        if horizon is None:
            raise ConfigError(f"horizon: missing; give the steps that {artifact} forecasts, such as horizon=24")
        if cold_start:
            raise ConfigError(f"cold_start: it is for trained models; {artifact} has seen no other series of the panel")
        artifact, loaded = _pretrained(artifact, _TableInput(table, known, static), {"horizon": horizon}, data=data)
        if cutoff_time is None:  # With a cutoff, rows after the common end may be needed.
            return _overridden(forecast_loaded(artifact, loaded, max_age=age_limit), artifact, loaded, overrides)
        known, static = (known if artifact.data.side_columns("known") else None), None
    elif data is not None:
        raise ConfigError("data goes with the name of a pretrained network; a model has its own: leave it out")
    elif horizon is not None:
        artifact = with_horizon(artifact, arguments.whole_number(horizon, "horizon", 1), "horizon")
    loaded = read(artifact, table, known, static, cutoff=cutoff_time)
    if cold_start:
        loaded = _with_cold_series(artifact, loaded, _TableInput(table, known, static))
    result = forecast_loaded(artifact, loaded, cutoff=cutoff_time, max_age=age_limit, cold_start=cold_start)
    return _overridden(result, artifact, loaded, overrides)


@verb
def compare(
    before: Artifact,
    after: Artifact,
    table: Table,
    *,
    cutoffs: tuple[Cutoff, Cutoff],
    known: tuple[Table, Table] = (None, None),
    static: Table = None,
) -> pl.DataFrame:
    """Return why the forecasts of the same timestamps differ: new data, another model, or other known covariates.

    - `before`, `after`: the models of the earlier and the later forecast; the same one if only the data is newer.
    - `table`, `static`: as of `forecast`, with rows up to the later cutoff.
    - `cutoffs`: the cutoffs of the two forecasts, less than a horizon apart.
    - `known`: the tables of known covariates of the two; the same one if the plan has not changed.

    The result has series_id, timestamp, mean_before, mean_after, change, and its parts: data, model, covariates, and
    other, which is 0 up to rounding. The parts are Shapley values (Shapley 1953) and add up to the change.

    Raises ConfigError for models of classes, DataError for tables as `forecast`, or without common timestamps.
    """
    if before.classes is not None or after.classes is not None:
        raise ConfigError("compare: it is for numbers; a model forecasts classes")
    differing = {
        DATA: arguments.moment(cutoffs[0]) != arguments.moment(cutoffs[1]),
        MODEL: before.digest() != after.digest(),
        COVARIATES: known[0] is not known[1],
    }

    @cache
    def forecast_with(changed: frozenset[str]) -> pl.DataFrame:
        model, plan, cutoff = (before, after)[MODEL in changed], known[COVARIATES in changed], cutoffs[DATA in changed]
        return forecast(model, table, known=plan, static=static, cutoff=cutoff).frame

    causes = [name for name, differs in differing.items() if differs]
    changes = decompose(forecast_with(frozenset()), forecast_with(frozenset(causes)), causes, forecast_with)
    if changes.is_empty():
        raise DataError(
            "cutoffs: the two forecasts have no timestamp in common; give cutoffs less than a horizon apart"
        )
    return changes


def _with_cold_series(artifact: Artifact, loaded: Loaded, tables: _TableInput) -> Loaded:
    """Return the panel with the series that have no observation. Raises ConfigError for models of classes."""
    if artifact.classes is not None:
        raise ConfigError("cold_start: it is for numbers; this model forecasts classes")
    if isinstance(tables.table, str | Path):
        return with_cold_series(loaded, artifact.reading(_with_paths(SourceConfig(), *tables)))
    return with_cold_series(loaded, _tables(*tables, artifact.data))


def _overridden(forecasts: Forecasts, artifact: Artifact, loaded: Loaded, table: Table) -> Forecasts:
    """Return forecasts with the overrides in a table, unchanged if it is None. Raises ConfigError, DataError."""
    if table is None or forecasts.frame.is_empty():
        return forecasts
    if artifact.classes is not None:
        raise ConfigError("overrides: they are numbers; this model forecasts classes")
    is_path = isinstance(table, str | Path)
    valid = read_overrides(str(table), loaded.panel) if is_path else overrides_of(table, loaded.panel)
    cutoff = int(loaded.panel.grid.index(forecasts.frame[CUTOFF].head(1)).item())
    overrides = valid.at(cutoff, artifact.horizon)
    frame = overrides.apply(forecasts.frame, [MEAN, *artifact.columns])[0]
    rejects = overrides.rejects.cast(pl.Schema(forecasts.rejects.schema))
    return Forecasts(frame, pl.concat([forecasts.rejects, rejects]))


@verb
def read_scores(
    path: str | Path,
    *,
    cutoff: Cutoff | None = None,
    latest: bool = False,
    model: str | None = None,
    series: str | Sequence[str] | None = None,
    table: str = "forecasts",
    scenario: str | None = None,
) -> pl.DataFrame:
    """Return forecasts that `forecast score` has written, of finished runs only.

    - `path`: the output.path of scoring (Parquet files or Delta Lake tables), or its output.uri: an object store,
      "s3://bucket/folder", or a database, "postgresql://user@host/db" or "sqlite:///file.db".
    - `cutoff`: the cutoff to read, as of `forecast`; all when None.
    - `latest`: for each model only one cutoff, `cutoff` or the latest, from the version that scored last.
    - `model`: the name of a registered model, if several write there; all when None.
    - `series`: ids of the series to read, or one id; all when None.
    - `table`: the output.table of a database.
    - `scenario`: the name of a scenario in the folder (score.scenario), which is also in the column `scenario`; the
      plain forecasts when None.

    The frame has the rows of the files by cutoff, model, series and step: series_id, timestamp, cutoff, step, mean and
    quantiles (or class and probabilities, and samples), null if a cutoff has no such column, then source, model_name,
    model_version and model_digest, and from the manifest run_id (the MLflow run that wrote them), trained_until and
    written_at (UTC).

    Raises ConfigError for arguments, DataError if there are no forecasts, OutputError for missing files or rows.
    """
    source = path if "://" in str(path) else arguments.folder(path, "path")
    if scenario is not None:
        source = scenario_folder(Path(source), scenario)
    cutoff_time = arguments.moment(cutoff)
    names = [series] if isinstance(series, str) else series
    return scores_of(source, cutoff=cutoff_time, latest=latest, model=model, series=names, table=table)


@verb
def write_plan(forecasts: Forecasts | Table, file: str | Path, *, layout: Layout = "long", value: str = MEAN) -> None:
    """Write forecasts into a file that people open in a spreadsheet, .csv or .xlsx (gatecast[excel]).

    - `forecasts`: what `forecast` or `read_scores` returns; for the wide layout, those of one cutoff and model.
    - `layout`: `long`, a row per series and step (series, date, forecast, low, high, source, model, ...), or `wide`, a
      row per series and a column per step.
    - `value`: the number in the cells of the wide layout: `mean`, or a column of the forecasts such as `q90`.

    Ids stay text in a workbook, and dates are dates. Raises ConfigError for arguments and for a table that is larger
    than a sheet, DataError for other tables, OutputError if the file can't be written.
    """
    write_plan_of(_rows(forecasts, "forecasts", (SERIES_ID, TIMESTAMP, STEP)), Path(file), layout, value)


@verb
def monitor(
    artifact: Artifact,
    table: Table,
    scores: str | Path,
    *,
    known: Table = None,
    static: Table = None,
    model: str | None = None,
    **settings: Any,
) -> MonitorResult:
    """Return the evaluation of written forecasts against the observations in a table.

    - `artifact`: the model whose reading of tables, segments and seasonal naive forecasts apply.
    - `table`, `known`, `static`: as of `train`, read as the model's own.
    - `scores`: the output.path of `forecast score`.
    - `model`: the name of the registered model, if several write there.
    - `settings`: the keys of `monitor`, such as `as_of="2024-05-01"`, `recent=168`, `anomaly_rate=0.001`.

    `.metrics`, `.alarms`, `.anomalies` and `.drift` are tables. The clock for late scores is the end of the table.
    Raises ConfigError for arguments, DataError for tables and forecasts that do not fit together.
    """
    folder = arguments.folder(scores, "scores")
    as_of = arguments.moment(settings.get("as_of"), "as_of")
    config = validated(MonitorSettings, settings | {"as_of": as_of})
    forecasts = ScoredForecasts(SinkConfig(path=str(folder)), model=model)
    if model is None and len(forecasts.models) > 1:
        raise ConfigError(f"model: {folder} has forecasts of {listing(forecasts.models)}; give the name of one")
    if not forecasts.contents:
        raise ConfigError(f"model: no forecasts of {model} in {folder}; there are: {listing(forecasts.models)}")
    arguments.check_side_tables(artifact.data, known, static)
    if isinstance(table, str | Path):
        loaded = artifact.open(_with_paths(SourceConfig(until=as_of), table, known, static))
    else:
        reader = replace(artifact, data=artifact.data.model_copy(update={"until": as_of}))
        loaded = reader.read(_tables(table, known, static, artifact.data))
    return evaluate_scores(artifact, loaded, forecasts, None, config)


@verb
def reconcile(
    forecasts: Forecasts | Table,
    hierarchy: Table,
    *,
    by: Sequence[str | Sequence[str]],
    past: Forecasts | Table = None,
    actuals: Table = None,
    **settings: Any,
) -> Reconciled:
    """Return coherent forecasts of one cutoff, of all series and their sums.

    - `forecasts`: the result of `forecast`, or a frame with its columns. Series that it rejects as ended count as 0.
    - `hierarchy`: a table with series_id and the columns of `by`; rows of a series may repeat.
    - `by`: names of nested levels, `["state", "store"]`, or lists, which may cross: `[["state"], ["brand"]]`.
    - `past`, `actuals`: forecasts of earlier cutoffs and a table of actuals (series_id, timestamp, target), from
      which the covariance of errors is estimated.
    - `settings`: the other keys of `reconcile`, such as `method="mint_shrink"`, `missing="drop"`.

    `.frame` has the forecasts of all nodes, in units of the target; `.summary` has the adjustment of each level. Raises
    ConfigError for arguments, DataError for tables that do not fit together, OutputError if sums do not add up.
    """
    config = validated(ReconcileSettings, {"by": by, **settings})
    ended: list[str] = []
    if isinstance(forecasts, Forecasts):
        ended = forecasts.rejects.filter(pl.col(REASON) == ENDED)[SERIES_ID].to_list()
    frame = _rows(forecasts, "forecasts", (SERIES_ID, TIMESTAMP, CUTOFF, STEP, SOURCE))
    if (past is None) != (actuals is None):
        raise ConfigError("past and actuals go together: forecasts of earlier cutoffs, and what came")
    tree = _hierarchy(hierarchy, config.by)
    errors = None
    if past is not None:
        earlier = _rows(past, "past", (SERIES_ID, TIMESTAMP, CUTOFF, STEP, MEAN))
        errors = past_errors(earlier, collect(to_lazy(actuals, _ROWS)), tree, ended)
    return reconcile_forecasts(frame, tree, config, errors=errors, ended=ended)


@verb
def aggregate(
    table: Table, hierarchy: Table, *, by: Sequence[str | Sequence[str]], max_age: int | None = None
) -> pl.DataFrame:
    """Return series_id, timestamp and target of all series and of their sums, for training and scoring.

    - `table`: the series, with series_id, timestamp and target.
    - `hierarchy`, `by`: as in `reconcile`.
    - `max_age`: a series whose last value is more than `max_age` timestamps before the end of the table counts as 0
      after it. When None, a sum is null wherever one of its series has no value.

    Raises ConfigError for arguments, DataError for tables that can't be read or do not fit together.
    """
    levels = validated(ReconcileSettings, {"by": by}).by
    age_limit = None if max_age is None else arguments.whole_number(max_age, "max_age", 0)
    return aggregated(collect(to_lazy(table, _ROWS)), _hierarchy(hierarchy, levels), max_age=age_limit)


_ROWS: Final = (SERIES_ID, TIMESTAMP, TARGET)


def _rows(forecasts: Forecasts | Table, key: str, columns: Sequence[str]) -> pl.DataFrame:
    """Return the rows of forecasts. Raises DataError if one of `columns` is missing."""
    rows = forecasts.frame if isinstance(forecasts, Forecasts) else collect(to_lazy(forecasts))
    if missing := [name for name in columns if name not in rows.columns]:
        raise DataError(f"{key}: no column {listing(missing)}; give the frame of what fc.forecast returns")
    return rows


def _hierarchy(table: Table, by: Sequence[str | tuple[str, ...]]) -> Hierarchy:
    """Return the hierarchy in a table. Columns other than series_id and those of `by` are not read."""
    names = [name for level in by for name in ((level,) if isinstance(level, str) else level)]
    return hierarchy_of(collect(to_lazy(table, [SERIES_ID, *names])), by)


@verb
def attention(
    artifact: Artifact, table: Table, *, known: Table = None, static: Table = None, cutoff: Cutoff | None = None
) -> pl.DataFrame:
    """Return the attention weight of each encoder step in the forecast of each series.

    Arguments as of `forecast`. Columns: series_id, cutoff, timestamp (of the last row of an encoder step), step (0 at
    the cutoff, -1 before it), weight; the weights of a series sum to 1. Raises ConfigError, also if the model was
    trained without model.attention, and DataError.
    """
    cutoff_time = arguments.moment(cutoff)
    panel = read(artifact, table, known, static, cutoff=cutoff_time).panel
    return attention_of(artifact, panel, cutoff=None if cutoff_time is None else panel.grid.floor(cutoff_time))


@verb
def sample_paths(
    artifact: Artifact,
    table: Table,
    *,
    n: int | None = None,
    known: Table = None,
    static: Table = None,
    cutoff: Cutoff | None = None,
) -> pl.DataFrame:
    """Return sample paths (possible futures) of each series.

    - `n`: number of paths, 2 or more; model.n_paths when None.
    - all others as of `forecast`.

    Columns: series_id, cutoff, path (1 to n), step (1 to horizon), timestamp, value in units of the target, or a class;
    null if the context holds no observation. Raises ConfigError, also for models without paths (those of classes
    without model.decoder=autoregressive), and DataError.
    """
    cutoff_time, count = arguments.moment(cutoff), None if n is None else arguments.whole_number(n, "n", 2)
    panel = read(artifact, table, known, static, cutoff=cutoff_time).panel
    return paths_of(artifact, panel, n=count, cutoff=None if cutoff_time is None else panel.grid.floor(cutoff_time))


@verb
def load(folder: str | Path) -> Artifact:
    """Return a model that `artifact.save(folder)` or `forecast models export` has written.

    Raises ArtifactError for a folder without a model, or with a damaged one.
    """
    return artifacts.load(arguments.folder(folder))


def _training(
    tables: _TableInput,
    window: Settings,
    *,
    data: Settings | None,
    model: Settings | None,
    fit: Settings | None = None,
    read: Callable[[DataConfig], DataConfig] = lambda data: data,
) -> tuple[Loaded, FitSettings]:
    """Return the panel in a table, and the validated settings of a training; `read` adapts the data settings."""
    table, known, static = tables
    groups = {key: arguments.group(values, key) for key, values in (("data", data), ("model", model), ("fit", fit))}
    config = validated(FitSettings, {"window": window, **groups})
    arguments.check_side_tables(config.data, known, static)
    config = config.model_copy(update={"data": read(config.data)})
    static = static if config.data.side_columns("static") else None
    if isinstance(table, str | Path):
        loaded = read_panel(_with_paths(config.data, table, known, static), config.window.horizon)
    else:
        loaded = load_panel(_tables(table, known, static, config.data), config.data, config.window.horizon)
    return loaded, config


Source = TypeVar("Source", bound=SourceConfig)


def _with_paths(source: Source, path: Table, known: Table, static: Table) -> Source:
    """Return the source settings with the paths of tables. Raises ConfigError if a side table is no path."""
    paths = {"path": path, "known_path": known, "static_path": static}
    wrong = [name for name, table in paths.items() if table is not None and not isinstance(table, str | Path)]
    if wrong:
        raise ConfigError(f"{listing(wrong)}: the first table is given by its path, so the others must be too")
    return source.model_copy(update={name: str(table) for name, table in paths.items() if table is not None})


def _tables(rows: Table, known: Table, static: Table, data: DataConfig) -> Tables:
    """Return lazy tables of frames. Columns that no setting names are not read."""
    used = used_columns(data, known=known is not None, static=static is not None)
    return Tables(
        to_lazy(rows, used.rows),
        None if known is None else to_lazy(known, used.known),
        None if static is None else to_lazy(static, used.static),
    )
