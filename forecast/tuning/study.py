"""The study in a folder: its trials and their states, and the artifact of the best one."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import polars as pl

from forecast.artifact import Artifact
from forecast.config import FitSettings, TuneSettings
from forecast.data.ingest.loaded import Loaded
from forecast.data.windows import WindowIndex
from forecast.errors import ConfigError, OutputError, listing
from forecast.metrics.scores import score_classes, score_windows
from forecast.metrics.seasonal_naive import future_values, seasonal_naive_errors
from forecast.prediction.predict import predict

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial
from forecast.tuning.space import GIVEN, KILLED, SETTINGS, Space, drawn_values

_STUDY, _SHARED_STUDY, BEST = "study.db", "study.log", "best"
_CANDIDATE: Final = ".trial-"
"""Start of the names of folders with models that may be the best."""
_BUSY_SECONDS: Final = 60
_NAME: Final = "gatecast"

STATES: Final = {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}


def import_optuna() -> Any:
    """Return the module optuna. Raises ConfigError if it is not installed."""
    try:
        import optuna
    except ImportError:
        raise ConfigError("a search needs: pip install 'gatecast[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def judge_trial(loaded: Loaded, windows: WindowIndex, horizon: int, metric: str) -> Callable[[Artifact], float]:
    """Return a function from a model to its metric on the windows; the log-loss for classes."""
    panel, season = loaded.panel, loaded.data.season_length
    assert season is not None
    actual = future_values(panel, windows, horizon)
    scale, root_scale = seasonal_naive_errors(panel, windows, season)

    def score(artifact: Artifact) -> float:
        forecasts = predict(artifact, panel, windows).tuned.astype(np.float64)
        if artifact.classes is not None:
            scores = score_classes(actual, forecasts)
            return float(scores["log_loss"].sum() / scores["n_steps"].sum())
        levels = artifact.model.quantile_levels
        scores = score_windows(actual, forecasts, levels=levels, scale=scale, root_scale=root_scale)
        if metric == "mase":
            return float(np.nanmean(scores["mase"]))
        return float(scores["pinball"].sum() / scores["abs_target"].sum())

    return score


def _storage(optuna: Any, folder: Path, *, shared: bool) -> Any:
    """Return the storage of the study: SQLite, or for a new study that workers share, a log that any disk can hold."""
    log = folder / _SHARED_STUDY
    if log.exists() or (shared and not (folder / _STUDY).exists()):
        return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(log)))
    options = {"connect_args": {"timeout": _BUSY_SECONDS}}
    return optuna.storages.RDBStorage(f"sqlite:///{folder / _STUDY}", engine_kwargs=options)


def join_study(optuna: Any, folder: Path, config: FitSettings, settings: TuneSettings) -> "Study":
    """Return the study of a search that another process leads. Raises OutputError if this one does not see it."""
    if not folder.is_dir():
        raise OutputError(
            f"a worker does not see {folder}; the folder of the search must be on a disk that all machines share, with "
            "the same path on each"
        )
    study: Study = optuna.load_study(study_name=_NAME, storage=_storage(optuna, folder, shared=True))
    study.pruner = _pruner(optuna, config, settings)
    return study


def _pruner(optuna: Any, config: FitSettings, settings: TuneSettings) -> Any:
    rung = settings.first_rung or config.fit.validation_every
    return optuna.pruners.SuccessiveHalvingPruner(min_resource=rung, reduction_factor=settings.reduction)


@contextmanager
def open_study(
    optuna: Any,
    folder: Path,
    key: str,
    loaded: Loaded,
    config: FitSettings,
    settings: TuneSettings,
    *,
    shared: bool = False,
) -> "Iterator[Study]":
    """Open the study in a folder, a new one or one to resume. `shared` with the workers of an engine."""
    description = {
        "panel": loaded.panel.digest(),
        "space": dict(settings.space),
        "metric": settings.metric,
        **config.model_dump(mode="json", include={"window", "model", "fit"}),
    }
    try:
        storage = _storage(optuna, folder, shared=shared)
        study = optuna.create_study(study_name=_NAME, storage=storage, load_if_exists=True)
    except Exception as error:
        raise OutputError(f"{folder / _STUDY} is no search that can be gone on with: {error}") from error
    stored = study.user_attrs.get(SETTINGS)
    current = json.dumps(description, sort_keys=True, default=str)
    if stored not in (None, current):
        old, new = json.loads(stored), json.loads(current)
        changed = [name for name in new if old.get(name) != new[name]]
        raise ConfigError(
            f"{key}: {folder} holds a search with another {listing(changed)}; give another folder, or those settings"
        )
    if stored is None:
        study.set_user_attr(SETTINGS, current)
        study.enqueue_trial({}, user_attrs={GIVEN: True})
    for trial in study.trials:
        if trial.state == optuna.trial.TrialState.RUNNING:  # Its process was killed.
            study._storage.set_trial_user_attr(trial._trial_id, KILLED, True)
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            study.enqueue_trial(trial.params, user_attrs=trial.user_attrs)
    # Another seed after each start, so that a resumed search does not repeat earlier draws.
    # Trials that run count as bad ones, so that the next are drawn elsewhere.
    study.sampler = optuna.samplers.TPESampler(seed=config.fit.seed + len(study.trials), constant_liar=True)
    study.pruner = _pruner(optuna, config, settings)
    for leftover in folder.glob(f"{_CANDIDATE}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        yield study
    finally:
        storage.remove_session()
        if hasattr(storage, "engine"):
            storage.engine.dispose()


def best_trial(study: "Study") -> "FrozenTrial | None":
    """Return the best trial that was not stopped early, None if there is none."""
    complete = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    return min(complete, key=lambda trial: trial.value or 0.0, default=None)


def finished_trials(study: "Study") -> "list[FrozenTrial]":
    """Return the trials that ended, except killed ones."""
    return [trial for trial in study.trials if trial.state.is_finished() and KILLED not in trial.user_attrs]


def is_best(study: "Study", value: float | None) -> bool:
    """Return whether a trial with this value is better than all that were not stopped early."""
    best = best_trial(study)
    return value is not None and (best is None or value < (best.value or 0.0))


def save_candidate(artifact: Artifact, folder: Path, number: int) -> None:
    """Save the model of a trial that may be the best."""
    candidate = folder / f"{_CANDIDATE}{number}"
    shutil.rmtree(candidate, ignore_errors=True)
    artifact.save(candidate)


def settle_candidate(folder: Path, number: int, *, best: bool) -> None:
    """Replace the stored best model by that of a trial, or drop the model of the trial."""
    candidate = folder / f"{_CANDIDATE}{number}"
    if best:
        shutil.rmtree(folder / BEST, ignore_errors=True)
        candidate.rename(folder / BEST)
    else:
        shutil.rmtree(candidate, ignore_errors=True)


def trial_table(study: "Study", space: Space) -> pl.DataFrame:
    """Return the table of all trials."""
    rows = [
        {
            "number": trial.number,
            "state": next((name for name, state in STATES.items() if state == trial.state.name), "failed"),
            "value": trial.value,
            "step": max(trial.intermediate_values, default=0),
            "seconds": trial.duration.total_seconds() if trial.duration else None,
            "settings": json.dumps(drawn_values(trial, space)),
        }
        for trial in finished_trials(study)
    ]
    schema = {"number": pl.Int64, "state": pl.String, "value": pl.Float64, "step": pl.Int64, "seconds": pl.Float64}
    return pl.DataFrame(rows, schema={**schema, "settings": pl.String})
