"""`forecast backtest`: a registered model on past cutoffs, beside seasonal naive, its base and the present champion."""

from pathlib import Path
from typing import TYPE_CHECKING

from forecast.config import BacktestConfig
from pipelines import console
from pipelines.record import note, recorded

if TYPE_CHECKING:
    from forecast.backtest import BacktestResult
    from forecast.registry import Version


@recorded(BacktestConfig)
def main(config: BacktestConfig) -> None:
    """Run the verb."""
    version, line, result = run(config)
    note(output=config.output.path or "")
    shown = "mase", "smape", "wql", "crps", "wape", "bias", "coverage", "log_loss", "brier", "accuracy", "macro_f1"
    columns = [name for name in shown if name in result.summary.columns]
    console.table(result.summary.select("model", *columns, "n_windows"))
    print(f"{version} ({version.kind}): {line}")


def run(config: BacktestConfig) -> "tuple[Version, str, BacktestResult]":
    """Score the version at each cutoff, log the scores and tie them to the version.

    Returns the version, a line about it, and the result.
    """
    import polars as pl

    from forecast import artifact as artifacts
    from forecast import plots
    from forecast.backtest import BACKTEST_RUN, Contender, backtest
    from forecast.data.io import check_writable, write_parquet_atomic
    from forecast.metrics import MODEL, coverage_by_level, error_by_step
    from forecast.names import CHAMPION, CUTOFF, SERIES_ID, SOURCE_PRETRAINED
    from forecast.registry import Registry
    from pipelines.shared import log_data, open_version, pick, read_alike, read_for

    if config.output.path:
        check_writable(Path(config.output.path))
    registry = Registry(config.registry)
    version, artifact = open_version(registry, config.registry.alias)
    loaded = read_for(artifact, config.data)
    contenders = {SOURCE_PRETRAINED: Contender(artifact.base(), loaded.panel)}
    contenders[artifact.kind] = Contender(artifact, loaded.panel)
    champion = registry.find(CHAMPION)
    if champion and champion.number != version.number:
        theirs = artifacts.load(registry.download(champion))
        contenders[CHAMPION] = Contender(theirs, read_alike(theirs, artifact, loaded, config.data).panel)

    with registry.run("backtest", config, {"version": str(version.number)}) as run:
        log_data(run, loaded)
        with console.stage("backtest") as stage:
            result = backtest(contenders, config.backtest)
            stage.note(windows=result.scores.select(SERIES_ID, CUTOFF).n_unique(), skipped_series=result.skipped.height)
        steps, coverage = error_by_step(result.forecasts), coverage_by_level(result.forecasts)
        for row in result.summary.iter_rows(named=True):
            name = row.pop(MODEL)
            run.metrics({f"backtest/{name}/{metric}": value for metric, value in row.items() if value is not None})
        run.table(result.scores, "scores.parquet")
        run.table(result.forecasts, "forecasts.parquet")
        run.table(result.skipped, "skipped.parquet")
        run.json(
            {
                "challenger": artifact.kind,
                "version": version.number,
                "champion": champion.number if champion else None,
                "cutoffs": [str(cutoff) for cutoff in result.scores[CUTOFF].unique().sort()],
            },
            "backtest.json",
        )
        run.figure(plots.error_by_step(steps), "plots/error_by_step.png")
        run.figure(plots.calibration(coverage), "plots/calibration.png")
        last = result.forecasts.filter(pl.col(CUTOFF) == pl.col(CUTOFF).max(), pl.col(MODEL) == artifact.kind)
        sample = pick(last[SERIES_ID].unique().sort().to_list())
        history = loaded.panel.frame(classes=artifact.classes).filter(pl.col(SERIES_ID).is_in(sample))
        run.figure(plots.sample_forecasts(history, last, sample), "plots/sample_forecasts.png")
        if result.confusion is not None:
            run.table(result.confusion, "confusion.parquet")
            run.figure(plots.confusion(result.confusion, artifact.kind), "plots/confusion.png")
        if config.output.path:
            for name, frame in (
                ("scores", result.scores),
                ("forecasts", result.forecasts),
                ("summary", result.summary),
                *([] if result.confusion is None else [("confusion", result.confusion)]),
            ):
                write_parquet_atomic(frame, Path(config.output.path) / f"{name}.parquet")
        registry.tag(version, {BACKTEST_RUN: run.id})
    line = (
        f"{_scored(result, artifact.kind)}, {result.skipped.height:,} series skipped, "
        f"{loaded.rejects.height:,} rejects, run {run.id}"
    )
    return version, line, result


def _scored(result: "BacktestResult", kind: str) -> str:
    """Return the metrics that matter most, those of seasonal naive beside them."""
    rows = result.summary.rows_by_key("model", named=True, unique=True)
    own, naive = rows[kind], rows["seasonal_naive"]
    judged = {"MASE": "mase", "WQL": "wql", "CRPS": "crps", "log-loss": "log_loss", "macro F1": "macro_f1"}
    parts = [
        f"{label} {own[name]:.4f} ({'seasonal naive ' * (number == 0)}{naive[name]:.4f})"
        for number, (label, name) in enumerate((label, name) for label, name in judged.items() if name in own)
    ]
    return f"{', '.join(parts)} on {own['n_windows']:,} windows of {own['n_series']:,} series"
