"""Search for the settings of a training, with early stopping of unpromising trials."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from forecast import artifact as artifacts
from forecast.artifact import Artifact
from forecast.config import FitSettings, TuneSettings
from forecast.data.ingest.loaded import Loaded
from forecast.engines.engine import Engine
from forecast.errors import DataError, listing
from forecast.pretraining.pretrained_network import PretrainedNetwork
from forecast.training.split import split_panel, training_data
from forecast.tuning.space import ERROR, GIVEN, Space, check, draw_values, drawn_values, with_values
from forecast.tuning.study import (
    BEST,
    STATES,
    best_trial,
    finished_trials,
    import_optuna,
    is_best,
    open_study,
    settle_candidate,
    trial_table,
)
from forecast.tuning.trial import Trial, Trials, TrialTask, TrialWork

if TYPE_CHECKING:
    from optuna import Study


@dataclass(frozen=True, repr=False)
class TuneResult:
    """The result of a search."""

    artifact: Artifact
    """The best model."""
    config: FitSettings
    """Its settings."""
    trials: pl.DataFrame
    """number, state, value, step, seconds, and the settings that were drawn, as JSON; of all runs of the search."""
    best: int
    """The number of the best trial."""
    metric: str

    def __repr__(self) -> str:
        best, configured = self.values
        comparison = "" if configured is None else f", {configured:.4g} with the settings as given"
        trial = f"trial {self.best} of {self.trials.height:,}"
        return f"TuneResult({trial}: {self.metric} {best:.4g}{comparison}; {self.artifact!r})"

    @property
    def values(self) -> tuple[float, float | None]:
        """The metric of the best trial, and with the settings as given; None if that one failed."""
        value_by_number = dict(self.trials.select("number", "value").iter_rows())
        configured = self.trials.filter(settings="{}")["number"]
        return value_by_number[self.best], value_by_number[configured[0]] if len(configured) else None


def tune(
    loaded: Loaded,
    config: FitSettings,
    settings: TuneSettings,
    folder: Path,
    *,
    key: str = "output.path",
    init: PretrainedNetwork | None = None,
    engine: Engine | None = None,
    on_trial: Callable[[Trial], None] = lambda _: None,
    progress: Callable[[float, str], None] | None = None,
) -> TuneResult:
    """Return the best of `tune.n_trials` trainings with settings out of `tune.space`.

    The first trial has the settings as given. The next are drawn by a tree of Parzen estimators (Bergstra et al. 2011),
    and stopped early by asynchronous successive halving (Li et al. 2020): at a third, a ninth, ... of the longest
    training only the best third of the trials so far continues. `tune.metric` is computed in the units of the target,
    on the validation windows of training, which all trials share; later data is not used. The linear skip of the
    returned model is refitted with these windows afterwards.

    The search is stored in `folder`: a stopped search resumes there, and an interrupted trial restarts. `on_trial` is
    called with each trial. `key` is the setting that names the folder. `init` is the pretrained network of a registered
    version, with which all trials begin.

    With an `engine` its workers run the trials, several at a time. A trial is drawn when a worker is free, and those
    that run count as bad ones; so the result depends on the order in which trials end. The folder is then on a disk
    that all workers share. A trial whose worker is lost starts again, three times at most.

    Raises ConfigError if optuna is not installed, a key of the space can't be searched, or the folder holds another
    search; DataError if no trial gave a model; OutputError if the folder can't be written.
    """
    space = check(config, settings)
    optuna = import_optuna()
    loaded = training_data(loaded, config.window.horizon, config.model, config.fit)
    split_panel(loaded.panel, config.window.horizon, config.fit)
    work = TrialWork(replace(loaded, rejects=loaded.rejects.clear()), config, settings, folder, init)
    with open_study(optuna, folder, key, loaded, config, settings, shared=engine is not None) as study:
        tasks = _ask(study, space, settings.n_trials)
        for task, trial in _outcomes(engine, work, study, tasks):
            is_new_best = trial.state == "complete" and is_best(study, trial.value)
            settle_candidate(folder, trial.number, best=is_new_best)
            study._storage.set_trial_user_attr(task.key, ERROR, trial.error)
            state = getattr(optuna.trial.TrialState, STATES[trial.state])
            study.tell(trial.number, trial.value if trial.state == "complete" else None, state=state)
            on_trial(trial)
            best = best_trial(study)
            if progress and best is not None:
                text = f"trial {best.number} has {settings.metric} {best.value:.4f}"
                progress(len(finished_trials(study)) / settings.n_trials, text)
        best = best_trial(study)
        if best is None:
            finished = finished_trials(study)
            errors = {str(trial.user_attrs[ERROR]) for trial in finished}
            raise DataError(f"none of {len(finished)} trials gave a model: {listing(errors)}")
        best_config = with_values(config, drawn_values(best, space))
        return TuneResult(
            artifacts.load(folder / BEST), best_config, trial_table(study, space), best.number, settings.metric
        )


def _ask(study: "Study", space: Space, n_trials: int) -> Iterator[TrialTask]:
    """Yield trials, each drawn when it is taken, from all that is known by then."""
    for _ in range(n_trials - len(finished_trials(study))):
        running = study.ask()
        as_configured = GIVEN in running.user_attrs
        yield TrialTask(
            running.number, running._trial_id, {} if as_configured else draw_values(running, space), as_configured
        )


def _outcomes(
    engine: Engine | None, work: TrialWork, study: "Study", tasks: Iterator[TrialTask]
) -> Iterator[tuple[TrialTask, Trial]]:
    """Yield the trials as they end. One whose worker is lost on all attempts has failed."""
    if engine is None:
        trials = Trials(work, study)
        yield from ((task, trials.run(task)) for task in tasks)
        return
    for outcome in engine.run(work, tasks):
        task = outcome.task
        lost = Trial(task.number, task.params, work.config, "failed", None, None, outcome.failure)
        yield task, outcome.result or lost
