"""`forecast finetune`: a registered model -> adapters for the series that gain from them, as `challenger`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from forecast.config import FinetuneConfig, JobShare
from pipelines.jobs import console
from pipelines.jobs.job import note, recorded

if TYPE_CHECKING:
    import polars as pl

    from forecast.data.ingest.loaded import Loaded
    from forecast.finetuning.result import FinetuneResult
    from forecast.tracking.run import Run
    from forecast.tracking.versions import Version


@recorded(FinetuneConfig)
def main(config: FinetuneConfig) -> None:
    """Run the verb."""
    if isinstance(config.shard, JobShare):
        run_share(config, config.shard)
        return
    version, line, _ = run(config)
    note(output=str(version))
    print(f"{version} ({version.kind}): {line}")


def run(config: FinetuneConfig) -> "tuple[Version, str, pl.DataFrame]":
    """Fine-tune, log and register; return the version, a line about it, and the decisions."""
    from forecast.engines.engine import open_engine
    from forecast.finetuning.checkpoint import clear_checkpoint
    from forecast.finetuning.eligibility import check_engine
    from forecast.finetuning.finetune import finetune
    from forecast.names import CHALLENGER
    from pipelines import report
    from pipelines.jobs.reading import open_registry, open_with_data
    from pipelines.jobs.registration import Registration
    from pipelines.jobs.run_logging import log_data
    from pipelines.jobs.version_tags import child_tags, final_fit_text, uplift_text

    check_engine(config.finetune, config.engine)
    registry = open_registry(config)
    parent, base, loaded = open_with_data(registry, config.registry.alias, config.data)
    with _lock(config), registry.run("finetune", config, {"parent_version": str(parent.number)}) as run:
        data_digest = log_data(run, loaded, "training", parent)
        with console.stage("finetune") as stage, open_engine(config.engine) as engine:
            result = finetune(
                base,
                loaded.panel,
                config.finetune,
                progress=lambda share, text: stage.update(f"{share:.0%}, {text}"),
                engine=engine,
                commit=config.shard is not None,
                keep_checkpoint=True,
            )
            summary = result.summary
            expected = {"expected": f"{summary['posterior_gain']:.2%}"} if "posterior_gain" in summary else {}
            stage.note(
                series=summary["series"], tuned=summary["series_tuned"], **expected, uplift=f"{summary['uplift']:.2%}"
            )
        tags = child_tags(parent, config.finetune.kind, summary["series_tuned"])
        metrics = {f"finetune/{name}": value for name, value in summary.items()}
        registration = Registration(
            registry, run, result.artifact, config, data_digest, alias=CHALLENGER, tags=tags, metrics=metrics
        )
        with console.stage("register") as stage, registration:
            _log_result(run, result, loaded)
            version = registration.register()
            tables = {"decisions": result.decisions, "forecasts": result.shown}
            report.log(run, "finetune", version, result.artifact, loaded, tables)
            stage.note(version=str(version))
        if config.finetune.checkpoint:
            clear_checkpoint(Path(config.finetune.checkpoint))
    line = (
        f"from v{parent.number}, {summary['series_tuned']:,} of {summary['series']:,} series tuned, "
        f"{loaded.counts.rows_in:,} rows, {loaded.rejects.height:,} rejects, "
        f"uplift {summary['uplift']:.2%} (per series "
        f"{uplift_text(summary['uplift_per_series'], summary['uplift_interval'])})"
        f"{final_fit_text(result.artifact)}, run {run.id}"
    )
    return version, line, result.decisions


def _log_result(run: "Run", result: "FinetuneResult", loaded: "Loaded") -> None:
    """Log the decisions, and example forecasts with their history."""
    import numpy as np

    from forecast.data.panel import is_among
    from forecast.names import SERIES_ID
    from forecast.reports import diagnostic_figures, figures

    run.table(result.decisions, "decisions.parquet")
    run.table(result.shown, "forecasts.parquet")
    run.figure(diagnostic_figures.uplift_histogram(result.decisions), "plots/uplift.png")
    rows = np.flatnonzero(is_among(loaded.panel.series_id, result.shown[SERIES_ID]))
    history = loaded.panel.frame(rows, result.artifact.classes)
    run.figure(figures.best_and_worst(history, result.shown, result.decisions), "plots/best_and_worst.png")


def run_share(config: FinetuneConfig, share: JobShare) -> None:
    """Try or fit the groups of a share. The registry is only read; nothing is registered or recorded."""
    from forecast.engines.engine import open_engine
    from forecast.finetuning.eligibility import check_engine
    from forecast.finetuning.finetune import finetune_share
    from forecast.tracking.registry import Registry
    from pipelines.jobs.reading import open_with_data

    check_engine(config.finetune, config.engine)
    parent, base, loaded = open_with_data(Registry(config.registry), config.registry.alias, config.data)
    with _lock(config, shared=True), open_engine(config.engine) as engine, console.stage(f"shard {share}") as stage:
        result = finetune_share(
            base,
            loaded.panel,
            config.finetune,
            share,
            progress=lambda done, text: stage.update(f"{done:.0%}, {text}"),
            engine=engine,
        )
        stage.note(groups=result.n_groups, new=result.n_new, series=result.n_series)
    verb = "fitted" if result.is_fitted else "tried"
    if not result.missing:
        following = "all shards are fitted: `forecast commit finetune` with the same settings registers the version"
    elif result.is_fitted:
        following = f"not fitted yet: {result.missing}; run these again, then `forecast commit finetune`"
    else:
        following = f"not tried yet: {result.missing}; run these, then all shards once more for the fits"
    console.say(
        f"shard {share} of the fine-tuning of {parent}: {result.n_series:,} series {verb} in {result.n_groups:,} "
        f"groups, {result.n_new:,} of them new; {following}"
    )


@contextmanager
def _lock(config: FinetuneConfig, *, shared: bool = False) -> Iterator[None]:
    """Lock finetune.checkpoint, if there is one; `shared` with the other shares of a job."""
    from forecast.data.files import locked

    if config.finetune.checkpoint is None:
        yield
    else:
        with locked(Path(config.finetune.checkpoint), "finetune.checkpoint", shared=shared):
            yield
