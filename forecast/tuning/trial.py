"""One trial of a search: a training with settings that the study has drawn, here or in a worker of an engine."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forecast.artifact import Artifact
from forecast.config import FitSettings, TuneSettings
from forecast.data.ingest.loaded import Loaded
from forecast.errors import ConfigError, DataError
from forecast.pretraining.pretrained_network import PretrainedNetwork
from forecast.training.fit import fit
from forecast.training.result import Curve, FitResult, Summary
from forecast.training.split import split_panel
from forecast.tuning.space import with_values
from forecast.tuning.study import import_optuna, is_best, join_study, judge_trial, save_candidate

if TYPE_CHECKING:
    from optuna import Study


@dataclass(frozen=True)
class Trial:
    """One training of a search."""

    number: int
    params: Mapping[str, Any]
    """The settings that were drawn, by their keys."""
    config: FitSettings
    state: str
    """`complete`, `pruned` (stopped early), or `failed`."""
    value: float | None
    """The metric on the validation windows, at the step that the trial ended at; None for one that failed."""
    result: FitResult | None
    """None for a trial that failed, or that a worker has run."""
    error: str = ""
    curve: Curve = field(default_factory=list)
    """Losses of the training."""
    summary: Summary = field(default_factory=dict)


@dataclass(frozen=True)
class TrialTask:
    """A trial is to be run."""

    number: int
    key: int
    """Its number in the storage of the study."""
    params: dict[str, Any]
    """The settings that were drawn."""
    as_configured: bool
    """Whether it has the settings as given: it is the reference, and never stopped early."""


@dataclass(frozen=True)
class TrialWork:
    """What all trials of a search share."""

    loaded: Loaded
    """The data of training, without the holdout."""
    config: FitSettings
    settings: TuneSettings
    folder: Path
    init: PretrainedNetwork | None

    def open(self) -> Callable[[TrialTask], Trial]:
        """Return the function of a task, in a worker: it reports to the study, and saves a model that may be best."""
        trials = Trials(self, join_study(import_optuna(), self.folder, self.config, self.settings))
        return lambda task: replace(trials.run(task), result=None)


class Trials:
    """Runs trials of a study."""

    def __init__(self, work: TrialWork, study: "Study") -> None:
        self._work, self._study = work, study
        loaded, config = work.loaded, work.config
        windows = split_panel(loaded.panel, config.window.horizon, config.fit).validation
        self._score = judge_trial(loaded, windows, config.window.horizon, work.settings.metric)

    def run(self, task: TrialTask) -> Trial:
        """Return a trial after its training. The model of one that may be the best is saved in the folder."""
        from optuna.trial import Trial as Running

        work, running = self._work, Running(self._study, task.key)
        config = work.config

        def watch(artifact: Artifact, step: int) -> bool:
            running.report(self._score(artifact), step)
            return not task.as_configured and running.should_prune()

        try:
            config = with_values(config, task.params)
            result = fit(
                work.loaded.panel,
                data=work.loaded.data,
                categories=work.loaded.categories,
                window=config.window,
                model=config.model,
                fit=config.fit,
                init=work.init,
                watch=watch,
            )
        except (ConfigError, DataError) as error:  # The settings contradict each other or the panel.
            return Trial(task.number, task.params, config, "failed", None, None, str(error))
        value = self._score(result.validation_artifact)
        state = "pruned" if result.stopped else "complete"
        if state == "complete" and is_best(self._study, value):
            # Only such a trial gets a final fit.
            save_candidate(result.finish() if result.finish else result.artifact, work.folder, task.number)
        return Trial(task.number, task.params, config, state, value, result, curve=result.curve, summary=result.summary)
