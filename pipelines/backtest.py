"""`forecast backtest`: a registered model on past cutoffs, against baselines, its base and the current champion."""

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Final

from forecast.config import BacktestConfig, JobShare
from pipelines.jobs import console
from pipelines.jobs.job import note, recorded

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

    from forecast.artifact import Artifact
    from forecast.backtesting.result import BacktestResult, Contender
    from forecast.data.ingest.loaded import Loaded
    from forecast.data.panel import Panel
    from forecast.tracking.registry import Registry
    from forecast.tracking.run import Run
    from forecast.tracking.versions import Version

_SHOWN: Final = (
    *("mase", "smape", "rmsse", "wql", "crps", "wape", "bias", "coverage"),
    *("log_loss", "brier", "accuracy", "macro_f1"),
    *("w_mase", "w_rmsse", "w_wql", "w_crps", "w_wape", "w_bias", "w_coverage", "w_log_loss", "w_brier", "w_accuracy"),
)

_MAIN: Final = ("mase", "wql", "coverage", "log_loss", "accuracy", "macro_f1")
"""Metrics of a version, by which MLflow ranks models."""
_OF_JUDGED: Final = (*_SHOWN, "width", "n_windows", "n_series")
_OF_OTHERS: Final = ("mase", "wql", "log_loss", "w_mase", "w_wql", "w_log_loss")
_OF_WINS: Final = ("mase", "pinball", "log_loss")
"""Metrics `backtest/MODEL/METRIC` of the judged model, of each other one, and of the comparison by series."""


@recorded(BacktestConfig)
def main(config: BacktestConfig) -> None:
    """Run the verb."""
    if isinstance(config.shard, JobShare):
        run_share(config, config.shard)
        return
    version, line, result = run(config)
    note(output=config.output.path or "")
    columns = [name for name in _SHOWN if name in result.summary.columns]
    console.table(result.summary.select("model", *columns, "n_windows"))
    console.table(result.wins, "Share of series on which a model is better than a baseline")
    for (segment,), part in result.segments.group_by("segment", maintain_order=True):
        console.table(part.select("value", "model", *columns, "n_series"), f"By {segment}")
    if result.failures.height:
        console.table(_failed(result.failures), "Baselines that could not be fitted: they have no row there")
    print(f"{version} ({version.kind}): {line}")


def run(
    config: BacktestConfig, others: "Mapping[str, Contender] | None" = None
) -> "tuple[Version, str, BacktestResult]":
    """Score the version at each cutoff, log the scores and record their run in the tags of the version.

    `others` are further models for the comparison, by name.

    A backtest with refits judges the way a version is trained, not the version itself: it is not recorded in its tags,
    and does not include the champion. One of another horizon is not recorded either. Returns the version, a line about
    it, and the result.
    """
    from forecast.backtesting.backtest import backtest
    from forecast.backtesting.result import FORECASTS, SCORES
    from forecast.data.files import locked
    from forecast.engines.engine import open_engine
    from forecast.names import BACKTEST_RUN
    from forecast.tracking.registry import Registry
    from pipelines import report
    from pipelines.jobs.run_logging import log_data

    folder = Path(config.output.path) if config.output.path else None
    registry = Registry(config.registry)
    version, champion, artifact, loaded, contenders = _open(registry, config, others)
    with (
        locked(folder) if folder else nullcontext(),
        registry.run("backtest", config, {"version": str(version.number)}) as run,
    ):
        log_data(run, loaded, "evaluation", version)
        with open_engine(config.engine) as engine, console.stage("backtest") as stage:
            result = backtest(
                contenders,
                config.backtest,
                folder=folder,
                progress=lambda share, text: stage.update(f"{share:.0%} {text}"),
                engine=engine,
                commit=config.shard is not None,
            )
            stage.note(
                windows=int(result.summary["n_windows"].max()),  # type: ignore[arg-type]
                skipped_series=result.skipped.height,
                failed_baselines=result.failures.height,
            )
        run.label(version, [cutoff.isoformat() for cutoff in result.cutoffs])
        run.json(_facts(result, version, champion, artifact, loaded), "backtest.json")
        _log(run, result, loaded, artifact, folder)
        run.metrics(_metrics(result))
        tables: dict[str, pl.DataFrame | pl.LazyFrame] = {**result.tables()}
        tables |= {SCORES: result.scan(SCORES), FORECASTS: result.scan(FORECASTS)}
        report.log(run, "backtest", version, artifact, loaded, tables, folder=folder)
        if config.backtest.refit == "never" and config.backtest.horizon is None:
            _publish(run, result, registry, version, champion)
            run.tag_version(version, {BACKTEST_RUN: run.id})
    line = (
        f"{_headline(result)}, {result.skipped.height:,} series skipped, {loaded.rejects.height:,} rejects, "
        f"{result.failures.height:,} baselines failed, run {run.id}"
    )
    return version, line, result


def run_share(config: BacktestConfig, share: JobShare) -> None:
    """Write the parts of a share of the blocks. The registry is only read; nothing is logged or recorded."""
    from forecast.backtesting.backtest import backtest_share
    from forecast.data.files import locked
    from forecast.engines.engine import open_engine
    from forecast.tracking.registry import Registry

    folder = Path(str(config.output.path))
    version, *_, contenders = _open(Registry(config.registry), config)
    with (
        locked(folder, shared=True),
        open_engine(config.engine) as engine,
        console.stage(f"shard {share}") as stage,
    ):
        output = backtest_share(
            contenders,
            config.backtest,
            share,
            folder=folder,
            progress=lambda done, text: stage.update(f"{done:.0%} {text}"),
            engine=engine,
        )
        stage.note(blocks=output.n_blocks, written=output.n_written)
    console.say(
        f"shard {share} of the backtest of {version}: {output.n_blocks:,} parts, {output.n_written:,} of them new; "
        "`forecast commit backtest` with the same settings joins all"
    )


def _open(
    registry: "Registry", config: BacktestConfig, others: "Mapping[str, Contender] | None" = None
) -> "tuple[Version, Version | None, Artifact, Loaded, dict[str, Contender]]":
    """Return the version, the champion beside it, the model, the panel, and all models to compare."""
    from forecast.backtesting.result import Contender
    from forecast.data.files import check_writable
    from forecast.names import CHAMPION, SOURCE_PRETRAINED
    from forecast.prediction.horizons import with_horizon
    from pipelines.jobs.reading import load_version, open_with_data, read_alike

    if config.output.path:
        check_writable(Path(config.output.path))
    in_memory = not isinstance(config.shard, JobShare)
    horizon, key = config.backtest.horizon, "backtest.horizon"
    version, artifact, loaded = open_with_data(
        registry, config.registry.alias, config.data, in_memory=in_memory, horizon=horizon, key=key
    )
    contenders = {SOURCE_PRETRAINED: Contender(artifact.base(), loaded.panel, f"{version.digest}/base")}
    contenders[artifact.kind] = Contender(artifact, loaded.panel, version.digest)
    contenders |= others or {}
    champion = registry.find(CHAMPION) if config.backtest.refit == "never" else None
    if champion and champion.number != version.number:
        model = with_horizon(load_version(registry, champion), horizon, key)
        panel = read_alike(model, artifact, loaded, config.data, in_memory=in_memory).panel
        contenders[CHAMPION] = Contender(model, panel, champion.digest)
    return version, champion, artifact, loaded, contenders


def _facts(
    result: "BacktestResult", version: "Version", champion: "Version | None", artifact: "Artifact", loaded: "Loaded"
) -> dict[str, object]:
    """Return the compared versions, the cutoffs, and the last target of each."""
    grid = loaded.panel.grid
    ends = grid.timestamps(grid.index(result.cutoffs).to_numpy() + artifact.horizon)
    return {
        "challenger": artifact.kind,
        "version": version.number,
        "champion": champion.number if champion else None,
        "cutoffs": [str(cutoff) for cutoff in result.cutoffs],
        "targets_until": [str(end) for end in ends],
    }


def _log(
    run: "Run",
    result: "BacktestResult",
    loaded: "Loaded",
    artifact: "Artifact",
    folder: Path | None,
) -> None:
    """Log tables and figures, and write those missing into the output folder."""
    import polars as pl

    from forecast.backtesting.result import FORECASTS, SCORES
    from forecast.data.files import write_parquet_atomic
    from forecast.names import CUTOFF, MODEL, SERIES_ID
    from forecast.reports import diagnostic_figures, figures
    from pipelines.jobs.run_logging import pick

    for name in (SCORES, FORECASTS):
        run.file(result.folder / f"{name}.parquet")
    for name, table in result.tables().items():
        run.table(table, f"{name}.parquet")
        if folder:
            write_parquet_atomic(table, folder / f"{name}.parquet")
    run.figure(diagnostic_figures.error_by_step(result.steps), "plots/error_by_step.png")
    run.figure(diagnostic_figures.calibration(result.levels), "plots/calibration.png")
    kind = _judged_model(result)
    last = result.scan(FORECASTS).filter(pl.col(CUTOFF) == result.cutoffs[-1], pl.col(MODEL) == kind)
    sample = pick(last.select(pl.col(SERIES_ID).unique().sort()).collect(engine="streaming")[SERIES_ID].to_list())
    history = loaded.panel.frame(_rows(loaded.panel, sample), classes=artifact.classes)
    forecasts = last.filter(pl.col(SERIES_ID).is_in(sample)).collect(engine="streaming")
    run.figure(figures.sample_forecasts(history, forecasts, sample), "plots/sample_forecasts.png")
    if result.confusion is not None:
        run.figure(diagnostic_figures.confusion(result.confusion, kind), "plots/confusion.png")


def _metrics(result: "BacktestResult") -> dict[str, float]:
    """Return the metrics of the run: those of the judged model, and the main ones of the others; tables have all."""
    from forecast.names import MODEL

    judged = _judged_model(result)
    values: dict[str, float] = {}
    for row in result.summary.iter_rows(named=True):
        names = _OF_JUDGED if row[MODEL] == judged else _OF_OTHERS
        values |= {f"backtest/{row[MODEL]}/{name}": row[name] for name in names if row.get(name) is not None}
    for row in result.wins.filter(**{MODEL: judged}).iter_rows(named=True):
        shares = {name: value for name, value in row.items() if name in _OF_WINS and value is not None}
        values |= {f"backtest/{judged}/wins_{row['baseline']}/{name}": value for name, value in shares.items()}
    return values


def _publish(
    run: "Run", result: "BacktestResult", registry: "Registry", version: "Version", champion: "Version | None"
) -> None:
    """Show the accuracy of the version, and of those beside it, on the pages of MLflow.

    The metrics of the version have the same names in every backtest, and are linked to its model and the data.
    """
    from forecast.names import CHAMPION, MODEL, SOURCE_FINE_TUNED, SOURCE_PRETRAINED, SOURCE_SEASONAL_NAIVE
    from forecast.tracking.cards import card_of, with_accuracy, with_card
    from pipelines.jobs.model_card import accuracy_text

    rows = result.summary.rows_by_key(MODEL, named=True, unique=True)
    main = {model: {name: row[name] for name in _MAIN if row.get(name) is not None} for model, row in rows.items()}
    judged = _judged_model(result)
    run.metrics(main[judged], version=version)
    naive = {f"{SOURCE_SEASONAL_NAIVE}/{name}": value for name, value in main[SOURCE_SEASONAL_NAIVE].items()}
    beside = [(champion, main[CHAMPION])] if champion and CHAMPION in main else []
    if judged == SOURCE_FINE_TUNED and version.parent and not (champion and champion.number == version.parent):
        base = registry.find(str(version.parent))
        beside += [(base, main[SOURCE_PRETRAINED])] if base and base.kind == SOURCE_PRETRAINED else []
    run.chart(version, [(version, main[judged] | naive), *beside])
    if card := card_of(version.description):
        data = f"{run.data.name} {run.data.digest[:8]}" if run.data else "other data"
        accuracy = accuracy_text(rows, judged, _level(result), data)
        if description := with_card(version.description, with_accuracy(card, accuracy)):
            run.describe(version, description)


def _level(result: "BacktestResult") -> float:
    """Return the level of the outermost interval; 0 for classes."""
    levels = result.intervals["level"].to_list()
    return max(levels, default=0.0)


def _judged_model(result: "BacktestResult") -> str:
    """Return the name of the judged model; with refits, that of the last refit."""
    from forecast.names import MODEL, SOURCE_FINE_TUNED, SOURCE_PRETRAINED

    return SOURCE_FINE_TUNED if SOURCE_FINE_TUNED in result.summary[MODEL] else SOURCE_PRETRAINED


def _headline(result: "BacktestResult") -> str:
    """Return the main metrics as text, with those of seasonal naive."""
    rows = result.summary.rows_by_key("model", named=True, unique=True)
    of_model, naive = rows[_judged_model(result)], rows["seasonal_naive"]
    metrics = {"MASE": "mase", "WQL": "wql", "CRPS": "crps", "log-loss": "log_loss", "macro F1": "macro_f1"}
    metrics |= {"weighted MASE": "w_mase", "weighted WQL": "w_wql"}
    parts = [
        f"{label} {of_model[name]:.4f} ({'seasonal naive ' * (number == 0)}{naive[name]:.4f})"
        for number, (label, name) in enumerate((label, name) for label, name in metrics.items() if name in of_model)
    ]
    return f"{', '.join(parts)} on {of_model['n_windows']:,} windows of {of_model['n_series']:,} series"


def _rows(panel: "Panel", series: "list[str]") -> "np.ndarray":
    """Return the rows of some series of a panel."""
    import numpy as np

    return np.searchsorted(panel.series_id, series)


def _failed(failures: "pl.DataFrame") -> "pl.DataFrame":
    """Return model, reason, and number of windows and series as text."""
    import polars as pl

    from forecast.names import MODEL, REASON, SERIES_ID

    counts = pl.len().alias("windows"), pl.col(SERIES_ID).n_unique().alias("series")
    return failures.group_by(MODEL, REASON).agg(*counts).sort(MODEL, "windows", descending=[False, True]).head(10)
