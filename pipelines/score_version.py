"""`forecast score registry.alias=VERSION`: a version and a panel -> forecasts, rejects, a manifest for each cutoff."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from forecast.config import JobShare, ScoreConfig
from forecast.errors import GatecastError
from forecast.imports import without_collection
from pipelines.jobs import console
from pipelines.jobs.cutoffs import check_failures, grid_cutoffs, requested_cutoffs, warn_in_sample, write_cutoffs
from pipelines.jobs.job import manifest_of, note, recorded
from pipelines.jobs.run_logging import log_data, log_missing
from pipelines.jobs.scenario import log_differences, open_scenario
from pipelines.jobs.score_jobs import names_of, shadow_job, shadow_version_of
from pipelines.jobs.score_summary import log_scores, summary_line

if TYPE_CHECKING:
    from forecast.artifact import Artifact
    from forecast.data.ingest.loaded import Loaded
    from forecast.scoring.overrides import Overrides
    from forecast.scoring.parts import Output
    from forecast.tracking.registry import Registry
    from forecast.tracking.versions import Version

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scored:
    """Result of a scoring job."""

    version: "Version"
    line: str
    """Line about the job for the terminal."""
    outputs: "list[Output]"
    """Outputs of the completed cutoffs."""
    failed: dict[str, GatecastError]
    """Errors by failed cutoff."""

    def check(self) -> None:
        """Raise an error that lists all failures, if there is any."""
        check_failures(self.failed, len(self.outputs))


@recorded(ScoreConfig)
def main(config: ScoreConfig) -> None:
    """Run the verb."""
    if isinstance(config.shard, JobShare):
        run_share(config, config.shard)
        return
    scored = run(config)
    note(output=manifest_of([output.manifest for output in scored.outputs]))
    if scored.outputs:
        console.say(f"{scored.version} ({scored.version.kind}): {scored.line}")
    scored.check()


def run(config: ScoreConfig) -> Scored:
    """Forecast every series from each cutoff and write the output; a failed cutoff does not stop the others."""
    with without_collection():
        from forecast.engines.engine import open_engine
        from forecast.names import SHADOW
        from forecast.scoring.job import ScoreJob
        from forecast.tracking.registry import Registry

    start = time.monotonic()
    registry = Registry(config.registry)
    version, artifact, loaded = _open(registry, config)
    overrides = _read_overrides(config, loaded)
    scenario = open_scenario(config, artifact, loaded, requested_cutoffs(config.score))
    output_settings = scenario.output if scenario else config.output
    shadow_version = shadow_version_of(registry, config, version)
    scored: Scored | None = None
    try:
        with (
            _locks(config),
            registry.run("score", config, {"version": str(version.number)}) as run,
            open_engine(config.engine) as engine,
        ):
            log_data(run, loaded, "scoring", version)
            cutoffs = grid_cutoffs(config.score, loaded)
            note(cutoff="..".join(dict.fromkeys(pick(cutoffs, key=cutoffs.__getitem__) for pick in (min, max))))
            run.label(version, list(cutoffs))
            log_missing(run, loaded, horizon=artifact.horizon, cutoffs=list(cutoffs.values()))
            warn_in_sample(version, artifact, cutoffs)
            settings = artifact, loaded, config.score, output_settings, names_of(version)
            job = ScoreJob(*settings, run_id=run.id, engine=engine, overrides=overrides, scenario=scenario)
            outputs, failed = write_cutoffs(job, cutoffs, "score", commit=config.shard is not None)
            line = ""
            if outputs:
                job.write_latest()
                plan = job.write_plan()
                line = f", plan {plan}" if plan else ""
                line += log_differences(run, scenario, outputs) if scenario else ""
            if shadow_version:
                try:  # The forecasts above are complete, even if these fail.
                    shadow = shadow_job(
                        registry, config, shadow_version, artifact, loaded, engine=engine, run_id=run.id
                    )
                    warn_in_sample(shadow_version, shadow.artifact, cutoffs)
                    shadow_outputs, failed_too = write_cutoffs(shadow, cutoffs, SHADOW, commit=config.shard is not None)
                except GatecastError as error:
                    failed[f"score.shadow, {shadow_version}"] = error
                else:
                    failed |= {
                        f"{cutoff}, score.shadow, {shadow_version}": error for cutoff, error in failed_too.items()
                    }
                    run.tags({SHADOW: shadow_version.number})
                    run.json([output.content for output in shadow_outputs], "shadow_manifests.json")
                    line += f", shadow v{shadow_version.number} on {shadow.loaded.panel.n_series:,} series"
            seconds = time.monotonic() - start
            log_scores(run, outputs, failed, seconds)
            scored = Scored(version, summary_line(outputs, Path(output_settings.path), seconds) + line, outputs, failed)
            scored.check()  # Raised here, so that the run ends as failed, too.
    except GatecastError:
        if scored is None:
            raise
    return scored


def run_share(config: ScoreConfig, share: JobShare) -> None:
    """Write the parts of a share of the shards. The registry is only read; nothing is published or recorded."""
    from forecast.engines.engine import open_engine
    from forecast.names import SHADOW
    from forecast.scoring.job import ScoreJob
    from forecast.tracking.registry import Registry

    registry = Registry(config.registry)
    version, artifact, loaded = _open(registry, config)
    overrides = _read_overrides(config, loaded)
    scenario = open_scenario(config, artifact, loaded, requested_cutoffs(config.score))
    shadow_version = shadow_version_of(registry, config, version)
    cutoffs = grid_cutoffs(config.score, loaded)
    with _locks(config, shared=True), open_engine(config.engine) as engine:
        output_settings = scenario.output if scenario else config.output
        settings = artifact, loaded, config.score, output_settings, names_of(version)
        jobs = {"": (version, ScoreJob(*settings, engine=engine, overrides=overrides, scenario=scenario))}
        if shadow_version:
            shadow = shadow_job(registry, config, shadow_version, artifact, loaded, engine=engine)
            jobs[f"{SHADOW} "] = shadow_version, shadow
        for (label, (job_version, job)), cutoff in product(jobs.items(), cutoffs.values()):
            with console.stage(f"{label}shard {share}") as stage:
                written = job.write_share(cutoff, share, lambda n: stage.update(f"{n:,} series"))
                stage.note(shards=written.n_shards, written=written.n_written, series=written.n_series)
            console.say(
                f"{label}shard {share} of {job_version}: cutoff {written.cutoff}, {written.n_series:,} series in "
                f"{written.n_shards:,} parts, {written.n_written:,} of them new; `forecast commit score` with the same "
                "settings publishes all"
            )


def _open(registry: "Registry", config: ScoreConfig) -> "tuple[Version, Artifact, Loaded]":
    """Return the version, its model and the panel. Opened once: the alias may move, and the version go, meanwhile."""
    from forecast.data.files import check_writable
    from forecast.data.ingest.cold import with_cold_series
    from pipelines.jobs.builtin import open_builtin
    from pipelines.jobs.reading import open_with_data

    check_writable(Path(config.output.path))
    cutoffs = requested_cutoffs(config.score)
    if config.is_builtin:
        return open_builtin(config, cutoffs)
    source, horizon = config.data.source(), config.score.horizon
    version, artifact, loaded = open_with_data(
        registry, config.registry.alias, source, cutoffs, in_memory=False, horizon=horizon
    )
    if config.score.cold_start:
        loaded = with_cold_series(loaded, artifact.reading_with_tables(source))
    return version, artifact, loaded


def _read_overrides(config: ScoreConfig, loaded: "Loaded") -> "Overrides | None":
    """Return the overrides of score.overrides, None without it. Raises DataError."""
    from forecast.scoring.overrides import read_overrides

    path, output = config.score.overrides, config.output
    return None if path is None else read_overrides(path, loaded.panel, output.min, output.max)


@contextmanager
def _locks(config: ScoreConfig, *, shared: bool = False) -> Iterator[None]:
    """Lock the folders that this job writes into; `shared` with the other shares of a job."""
    from forecast.data.files import locked

    with locked(Path(config.output.path), shared=shared):
        if config.score.state is None:
            yield
        else:
            with locked(Path(config.score.state), "score.state", shared=shared):
                yield
