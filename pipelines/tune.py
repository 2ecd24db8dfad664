"""`forecast tune`: search for the settings of a training, and register the best model as `pretrained`."""

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from forecast.config import TrainConfig, TuneConfig, load
from pipelines.jobs import console
from pipelines.jobs.job import note, recorded
from pipelines.jobs.settings_text import escaped

if TYPE_CHECKING:
    from forecast.tracking.registry import Registry
    from forecast.tracking.run import Run
    from forecast.tracking.versions import Version
    from forecast.tuning.trial import Trial
    from forecast.tuning.tune import TuneResult


@recorded(TuneConfig)
def main(config: TuneConfig) -> None:
    """Run the verb."""
    version, line, result = run(config)
    note(model=str(version), output=config.output.path)
    best = result.trials.filter(state="complete").sort("value").drop("state").head(5)
    console.table(best)
    print(f"{version} ({version.kind}): {line}")


def run(config: TuneConfig) -> "tuple[Version, str, TuneResult]":
    """Search, log each trial as a run inside the run of the search, and register the best model.

    Returns the version, a line about it, and the result.
    """
    from forecast.config import FitSettings
    from forecast.data.files import locked
    from forecast.engines.engine import open_engine
    from forecast.names import PRETRAINED
    from forecast.tuning.space import check
    from forecast.tuning.tune import tune
    from pipelines.jobs.reading import open_registry, read_table, with_init
    from pipelines.jobs.registration import Registration
    from pipelines.jobs.run_logging import log_data

    folder = Path(config.output.path)
    settings = load(FitSettings, config.model_dump(exclude_unset=True, include={"data", "window", "model", "fit"}))
    check(settings, config.tune)
    registry = open_registry(config)
    registry.check_runs()
    config, init, tags = with_init(config)
    settings = load(FitSettings, config.model_dump(exclude_unset=True, include={"data", "window", "model", "fit"}))
    loaded = read_table(config.data, config.window.horizon)
    with locked(folder), registry.run("tune", config) as run:
        data_digest = log_data(run, loaded, "training")
        with console.stage("tune") as stage, open_engine(config.engine) as engine:
            result = tune(
                loaded,
                settings,
                config.tune,
                folder,
                init=init,
                engine=engine,
                on_trial=partial(_log_trial, registry, run, config),
                progress=lambda share, text: stage.update(f"{share:.0%}, {text}"),
            )
            states = {f"{state}": count for state, count in result.trials["state"].value_counts().iter_rows()}
            stage.note(**states, best=result.best)
        best = _training(config, result.config)
        metrics = {f"tune/{config.tune.metric}": result.values[0], "tune/trials": float(len(result.trials))}
        registration = Registration(
            registry, run, result.artifact, best, data_digest, alias=PRETRAINED, tags=tags, metrics=metrics
        )
        with console.stage("register") as stage, registration:
            _log_result(run, config, result, best)
            version = registration.register()
            stage.note(version=str(version))
    value, baseline_value = result.values
    comparison = "" if baseline_value is None else f" ({baseline_value:.4f} with the settings as given)"
    line = (
        f"trial {result.best} of {len(result.trials)} is best, validation {result.metric} {value:.4f}{comparison}; "
        f"train again with forecast train --config {folder / 'best.yaml'}, run {run.id}"
    )
    return version, line, result


def _log_trial(registry: "Registry", run: "Run", config: TuneConfig, trial: "Trial") -> None:
    """Log a trial as a run inside the run of the search."""
    from forecast.tracking.run_store import PARENT_RUN

    tags = {PARENT_RUN: run.id, "state": trial.state, **({"failure": trial.error} if trial.error else {})}
    with registry.run(f"trial {trial.number}", _training(config, trial.config), tags) as trial_run:
        if trial.value is not None:
            trial_run.curve(trial.curve)
            summary = {name: value for name, value in trial.summary.items() if not isinstance(value, str)}
            trial_run.metrics({**summary, config.tune.metric: trial.value})


def _log_result(run: "Run", config: TuneConfig, result: "TuneResult", best: TrainConfig) -> None:
    """Log the trials and the best settings, and write both into the output folder."""
    from forecast.data.files import write_parquet_atomic, write_text_atomic

    folder = Path(config.output.path)
    text = json.dumps(escaped(best.model_dump(mode="json", exclude_unset=True, exclude={"ledger"})), indent=2)
    write_text_atomic(text + "\n", folder / "best.yaml")
    write_parquet_atomic(result.trials, folder / "trials.parquet")
    run.table(result.trials, "trials.parquet")
    run.text(text, "best.yaml")


def _training(config: TuneConfig, trial_config: object) -> TrainConfig:
    """Return the config of a training with the settings of a trial."""
    groups = {name: getattr(trial_config, name) for name in ("window", "model", "fit")}
    shared_groups = {name: getattr(config, name) for name in ("registry", "ledger", "data")}
    return TrainConfig(**shared_groups, **groups)
