"""`forecast calibrate`: a registered model -> the same with calibrated intervals, as `challenger`."""

from pathlib import Path
from typing import TYPE_CHECKING

from forecast.config import CalibrateConfig
from pipelines.jobs import console
from pipelines.jobs.job import note, recorded

if TYPE_CHECKING:
    from forecast.calibration.calibrate import CalibrationResult
    from forecast.tracking.versions import Version


@recorded(CalibrateConfig)
def main(config: CalibrateConfig) -> None:
    """Run the verb."""
    version, line, result = run(config)
    note(output=str(version))
    overall = result.coverage.filter(by="all")
    if len(overall):
        console.table(overall.drop("by", "value"))
    print(f"{version} ({version.kind}): {line}")


def run(config: CalibrateConfig) -> "tuple[Version, str, CalibrationResult]":
    """Calibrate, log and register; return the version, a line about it, and the result."""
    from forecast.calibration.calibrate import calibrate
    from forecast.data.files import check_writable, write_parquet_atomic
    from forecast.engines.engine import open_engine
    from forecast.names import CHALLENGER
    from forecast.reports import diagnostic_figures
    from pipelines.jobs.reading import open_registry, open_with_data
    from pipelines.jobs.registration import Registration
    from pipelines.jobs.run_logging import log_data
    from pipelines.jobs.version_tags import CALIBRATED, final_fit_text, tags_of_parent

    if config.output.path:
        check_writable(Path(config.output.path))
    registry = open_registry(config)
    parent, artifact, loaded = open_with_data(registry, config.registry.alias, config.data)
    with registry.run("calibrate", config, {"parent_version": str(parent.number)}) as run:
        data_digest = log_data(run, loaded, "validation", parent)
        with console.stage("calibrate") as stage, open_engine(config.engine) as engine:
            result = calibrate(artifact, loaded.panel, config.calibrate, engine=engine)
            summary = result.summary
            stage.note(cutoffs=f"{summary['windows']:.0f}", series=f"{summary['series']:,.0f}")
        tags = {**tags_of_parent(parent), CALIBRATED: config.calibrate.method}
        metrics = {f"calibrate/{name}": value for name, value in summary.items()}
        registration = Registration(
            registry, run, result.artifact, config, data_digest, alias=CHALLENGER, tags=tags, metrics=metrics
        )
        with console.stage("register") as stage, registration:
            run.table(result.coverage, "coverage.parquet")
            run.table(result.quantiles, "quantiles.parquet")
            if len(result.quantiles):
                run.figure(diagnostic_figures.calibration(result.quantiles), "plots/calibration.png")
            version = registration.register()
            stage.note(version=str(version))
        if config.output.path:
            write_parquet_atomic(result.coverage, Path(config.output.path) / "coverage.parquet")
    line = f"from v{parent.number}, {summary['windows']:.0f} cutoffs of {summary['series']:,.0f} series"
    if summary["check_windows"]:
        line += (
            f", on the last {summary['check_windows']:.0f} the shares below quantiles were "
            f"{summary['error_before']:.2%} off their levels, now {summary['error_after']:.2%}; pinball loss "
            f"{summary['pinball_after'] / summary['pinball_before'] - 1:+.2%}"
        )
    return version, f"{line}{final_fit_text(result.artifact)}, run {run.id}", result
