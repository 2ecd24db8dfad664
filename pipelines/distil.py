"""`forecast distil`: a registered model and its table -> a smaller model trained on its forecasts, as `challenger`."""

from pathlib import Path
from typing import TYPE_CHECKING

from forecast.config import DistilConfig
from pipelines.jobs import console
from pipelines.jobs.job import note, recorded

if TYPE_CHECKING:
    from forecast.compression.distil import DistilResult
    from forecast.tracking.versions import Version

_SHOWN = ("model", "parameters", "bytes", "cpu_ms", "mase", "wql", "coverage")


@recorded(DistilConfig)
def main(config: DistilConfig) -> None:
    """Run the verb."""
    version, line, result = run(config)
    note(output=str(version))
    console.table(result.comparison.select(_SHOWN))
    print(f"{version} ({version.kind}): {line}")


def run(config: DistilConfig) -> "tuple[Version, str, DistilResult]":
    """Distil, log and register; return the version, a line about it, and the result."""
    from forecast.compression.distil import distil
    from forecast.data.files import check_writable, write_parquet_atomic
    from forecast.names import CHALLENGER
    from forecast.reports import diagnostic_figures
    from pipelines.jobs.reading import open_registry, open_with_data
    from pipelines.jobs.registration import Registration
    from pipelines.jobs.run_logging import log_data
    from pipelines.jobs.version_tags import DISTILLED, final_fit_text, tags_of_parent

    if config.output.path:
        check_writable(Path(config.output.path))
    registry = open_registry(config)
    parent, artifact, loaded = open_with_data(registry, config.registry.alias, config.data)
    with registry.run("distil", config, {"parent_version": str(parent.number)}) as run:
        data_digest = log_data(run, loaded, "training", parent)
        with console.stage("distil") as stage:
            result = distil(
                artifact,
                loaded.panel,
                config.distil,
                config.fit,
                progress=lambda share, text: stage.update(f"{share:.0%}, {text}"),
            )
            stage.note(steps=result.summary["steps"], val_loss=result.summary["val/loss"])
        tags = {**tags_of_parent(parent), DISTILLED: str(result.artifact.model.hidden_size)}
        metrics = {**result.summary}
        for row in result.comparison.rows(named=True):
            model = row["model"]
            metrics |= {f"distil/{model}/{name}": value for name, value in row.items() if name != "model"}
        registration = Registration(
            registry, run, result.artifact, config, data_digest, alias=CHALLENGER, tags=tags, metrics=metrics
        )
        with console.stage("register") as stage, registration:
            run.curve(result.curve)
            run.table(result.comparison, "comparison.parquet")
            run.figure(diagnostic_figures.loss_curves(result.curve), "plots/loss.png")
            version = registration.register()
            stage.note(version=str(version))
        if config.output.path:
            write_parquet_atomic(result.comparison, Path(config.output.path) / "comparison.parquet")
    final_fit = final_fit_text(result.artifact)
    return version, f"from v{parent.number}, {result.line}{final_fit}, run {run.id}", result
