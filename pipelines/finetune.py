"""`forecast finetune`: a registered model -> adapters for the series that gain from them, as `challenger`."""

from typing import TYPE_CHECKING

from forecast.config import FinetuneConfig
from pipelines.jobs import console
from pipelines.jobs.job import note, recorded

if TYPE_CHECKING:
    import polars as pl

    from forecast.tracking.versions import Version


@recorded(FinetuneConfig)
def main(config: FinetuneConfig) -> None:
    """Run the verb."""
    version, line, _ = run(config)
    note(output=str(version))
    print(f"{version} ({version.kind}): {line}")


def run(config: FinetuneConfig) -> "tuple[Version, str, pl.DataFrame]":
    """Fine-tune, log and register; return the version, a line about it, and the decisions."""
    import numpy as np

    from forecast.finetuning.finetune import finetune
    from forecast.names import CHALLENGER, SERIES_ID
    from forecast.reports import diagnostic_figures, figures
    from pipelines import report
    from pipelines.jobs.reading import open_registry, open_with_data
    from pipelines.jobs.registration import Registration
    from pipelines.jobs.run_logging import log_data
    from pipelines.jobs.version_tags import child_tags, final_fit_text, uplift_text

    registry = open_registry(config)
    parent, base, loaded = open_with_data(registry, config.registry.alias, config.data)
    with registry.run("finetune", config, {"parent_version": str(parent.number)}) as run:
        data_digest = log_data(run, loaded, "training", parent)
        with console.stage("finetune") as stage:
            result = finetune(
                base, loaded.panel, config.finetune, progress=lambda share, text: stage.update(f"{share:.0%}, {text}")
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
            run.table(result.decisions, "decisions.parquet")
            run.table(result.shown, "forecasts.parquet")
            run.figure(diagnostic_figures.uplift_histogram(result.decisions), "plots/uplift.png")
            rows = np.flatnonzero(np.isin(loaded.panel.series_id, result.shown[SERIES_ID].unique().to_list()))
            history = loaded.panel.frame(rows, base.classes)
            figure = figures.best_and_worst(history, result.shown, result.decisions)
            run.figure(figure, "plots/best_and_worst.png")
            version = registration.register()
            tables = {"decisions": result.decisions, "forecasts": result.shown}
            report.log(run, "finetune", version, result.artifact, loaded, tables)
            stage.note(version=str(version))
    line = (
        f"from v{parent.number}, {summary['series_tuned']:,} of {summary['series']:,} series tuned, "
        f"{loaded.counts.rows_in:,} rows, {loaded.rejects.height:,} rejects, "
        f"uplift {summary['uplift']:.2%} (per series "
        f"{uplift_text(summary['uplift_per_series'], summary['uplift_interval'])})"
        f"{final_fit_text(result.artifact)}, run {run.id}"
    )
    return version, line, result.decisions
