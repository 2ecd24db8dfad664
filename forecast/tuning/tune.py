"""Search for the settings of a training, with early stopping of unpromising trials."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from forecast import artifact as artifacts
from forecast.artifact import Artifact
from forecast.config import FitSettings, TuneSettings
from forecast.data.ingest.loaded import Loaded
from forecast.errors import ConfigError, DataError, listing
from forecast.pretraining.pretrained_network import PretrainedNetwork
from forecast.training.fit import fit
from forecast.training.result import FitResult
from forecast.training.split import split_panel, training_data

if TYPE_CHECKING:
    from optuna.trial import Trial as Running
from forecast.tuning.space import ERROR, GIVEN, Space, check, draw_values, drawn_values, with_values
from forecast.tuning.study import (
    BEST,
    STATES,
    best_trial,
    finished_trials,
    import_optuna,
    judge_trial,
    keep_artifact,
    open_study,
    trial_table,
)


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
    error: str = ""


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

    Raises ConfigError if optuna is not installed, a key of the space can't be searched, or the folder holds another
    search; DataError if no trial gave a model; OutputError if the folder can't be written.
    """
    space = check(config, settings)
    optuna = import_optuna()
    loaded = training_data(loaded, config.window.horizon, config.model, config.fit)
    windows = split_panel(loaded.panel, config.window.horizon, config.fit).validation
    score = judge_trial(loaded, windows, config.window.horizon, settings.metric)
    with open_study(optuna, folder, key, loaded, config, settings) as study:
        while len(finished := finished_trials(study)) < settings.n_trials:
            running = study.ask()
            trial = _run_trial(running, loaded, config, space, score, init)
            best_before = best_trial(study)
            improved = trial.state == "complete" and (best_before is None or trial.value < best_before.value)  # type: ignore[operator]
            if improved and trial.result is not None:
                # Only a new best trial gets a final fit.
                keep_artifact(trial.result.finish() if trial.result.finish else trial.result.artifact, folder / BEST)
            running.set_user_attr(ERROR, trial.error)
            state = getattr(optuna.trial.TrialState, STATES[trial.state])
            study.tell(running, trial.value if trial.state == "complete" else None, state=state)
            on_trial(trial)
            best = best_trial(study)
            if progress and best is not None:
                text = f"trial {best.number} has {settings.metric} {best.value:.4f}"
                progress((len(finished) + 1) / settings.n_trials, text)
        best = best_trial(study)
        if best is None:
            errors = {str(trial.user_attrs[ERROR]) for trial in finished}
            raise DataError(f"none of {len(finished)} trials gave a model: {listing(errors)}")
        best_config = with_values(config, drawn_values(best, space))
        return TuneResult(
            artifacts.load(folder / BEST), best_config, trial_table(study, space), best.number, settings.metric
        )


def _run_trial(
    running: "Running",
    loaded: Loaded,
    config: FitSettings,
    space: Space,
    score: Callable[[Artifact], float],
    init: PretrainedNetwork | None,
) -> Trial:
    as_configured = GIVEN in running.user_attrs
    drawn_settings = {} if as_configured else draw_values(running, space)
    trial_config = config

    def watch(artifact: Artifact, step: int) -> bool:
        running.report(score(artifact), step)
        # The trial with the settings as given is never stopped: it is the reference.
        return not as_configured and running.should_prune()

    try:
        trial_config = with_values(config, drawn_settings)
        result = fit(
            loaded.panel,
            data=loaded.data,
            categories=loaded.categories,
            window=trial_config.window,
            model=trial_config.model,
            fit=trial_config.fit,
            init=init,
            watch=watch,
        )
    except (ConfigError, DataError) as error:  # The settings contradict each other or the panel.
        return Trial(running.number, drawn_settings, trial_config, "failed", None, None, str(error))
    value = score(result.validation_artifact)
    return Trial(
        running.number, drawn_settings, trial_config, "pruned" if result.stopped else "complete", value, result
    )
