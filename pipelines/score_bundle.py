"""`forecast score bundle=PATH`: a bundle and a panel -> forecasts, rejects and a manifest for each cutoff.

Without a registry, MLflow, the ledger and torch: the manifests are the record of the job.
"""

import time
from pathlib import Path

from forecast.config import BundleScoreConfig
from forecast.imports import without_collection
from pipelines.jobs import console
from pipelines.jobs.command_line import verb_config
from pipelines.jobs.cutoffs import check_failures, grid_cutoffs, requested_cutoffs, warn_in_sample, write_cutoffs


def main(argv: list[str]) -> None:
    """Run the verb."""
    config = verb_config(BundleScoreConfig, "score bundle", argv)
    console.setup()
    with without_collection():
        from forecast.bundle.bundle import load
        from forecast.data.files import check_location, check_writable, locked
        from forecast.data.ingest.cold import with_cold_series
        from forecast.data.sources.open import fingerprint
        from forecast.scoring.job import ScoreJob
        from forecast.scoring.overrides import read_overrides
        from pipelines.jobs.score_summary import summary_line

    start, folder = time.monotonic(), Path(config.output.path)
    fingerprint(config.data)
    check_location(folder, "output.path")
    check_writable(folder)
    bundle = load(Path(config.bundle)).at_horizon(config.score.horizon)
    name = f"{bundle.names['model']} v{bundle.names['model_version']}"
    with console.stage("read") as stage:
        loaded = bundle.open(config.data, requested_cutoffs(config.score), in_memory=False)
        if config.score.cold_start:
            loaded = with_cold_series(loaded, bundle.reading_with_tables(config.data))
        stage.note(rows=loaded.counts.rows_in, series=loaded.counts.series_kept)
    overrides = None
    if config.score.overrides is not None:
        overrides = read_overrides(config.score.overrides, loaded.panel, config.output.min, config.output.max)
    cutoffs = grid_cutoffs(config.score, loaded)
    warn_in_sample(name, bundle, cutoffs)
    with locked(folder):
        job = ScoreJob(bundle, loaded, config.score, config.output, bundle.names, overrides=overrides)
        outputs, failed = write_cutoffs(job, cutoffs, "score", commit=False)
        plan = None
        if outputs:
            job.write_latest()
            plan = job.write_plan()
    if outputs:
        line = summary_line(outputs, folder, time.monotonic() - start)
        console.say(f"{name} (bundle): {line}" + (f", plan {plan}" if plan else ""))
    check_failures(failed, len(outputs))
