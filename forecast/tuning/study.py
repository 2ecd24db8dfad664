"""The study on disk: trials, their states and the best."""

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

_STUDY, BEST = "study.db", "best"


STATES: Final = {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}


def import_optuna() -> Any:
    """Return the module optuna. Raises ConfigError that says how to install it."""
    try:
        import optuna
    except ImportError:
        raise ConfigError("a search needs: pip install 'gatecast[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def judge_trial(loaded: Loaded, windows: WindowIndex, horizon: int, metric: str) -> Callable[[Artifact], float]:
    """Return what gives the metric of a model on the windows; of classes the log-loss."""
    panel, season = loaded.panel, loaded.data.season_length
    assert season is not None
    actual = future_values(panel, windows, horizon)
    scale, root_scale = seasonal_naive_errors(panel, windows, season)

    def judged(artifact: Artifact) -> float:
        stated = predict(artifact, panel, windows).tuned.astype(np.float64)
        if artifact.classes is not None:
            scores = score_classes(actual, stated)
            return float(scores["log_loss"].sum() / scores["n_steps"].sum())
        levels = artifact.model.quantile_levels
        scores = score_windows(actual, stated, levels=levels, scale=scale, root_scale=root_scale)
        if metric == "mase":
            return float(np.nanmean(scores["mase"]))
        return float(scores["pinball"].sum() / scores["abs_target"].sum())

    return judged


# --- the folder


@contextmanager
def open_study(
    optuna: Any, folder: Path, key: str, loaded: Loaded, config: FitSettings, settings: TuneSettings
) -> "Iterator[Study]":
    """Open the search in a folder, new or gone on with."""
    described = {
        "panel": loaded.panel.digest(),
        "space": dict(settings.space),
        "metric": settings.metric,
        **config.model_dump(mode="json", include={"window", "model", "fit"}),
    }
    try:
        storage = optuna.storages.RDBStorage(f"sqlite:///{folder / _STUDY}")
        study = optuna.create_study(study_name="gatecast", storage=storage, load_if_exists=True)
    except Exception as error:
        raise OutputError(f"{folder / _STUDY} is no search that can be gone on with: {error}") from error
    before = study.user_attrs.get(SETTINGS)
    now = json.dumps(described, sort_keys=True, default=str)
    if before not in (None, now):
        old, new = json.loads(before), json.loads(now)
        changed = [name for name in new if old.get(name) != new[name]]
        raise ConfigError(
            f"{key}: {folder} holds a search with another {listing(changed)}; give another folder, or those settings"
        )
    if before is None:
        study.set_user_attr(SETTINGS, now)
        study.enqueue_trial({}, user_attrs={GIVEN: True})
    for trial in study.trials:
        if trial.state == optuna.trial.TrialState.RUNNING:  # Of a process that was killed.
            study._storage.set_trial_user_attr(trial._trial_id, KILLED, True)
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            study.enqueue_trial(trial.params, user_attrs=trial.user_attrs)
    # Drawn anew after each start, so that one that goes on does not repeat what there is.
    study.sampler = optuna.samplers.TPESampler(seed=config.fit.seed + len(study.trials))
    rung = settings.first_rung or config.fit.validation_every
    study.pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=rung, reduction_factor=settings.reduction)
    try:
        yield study
    finally:
        storage.remove_session()
        storage.engine.dispose()


def best_trial(study: "Study") -> "FrozenTrial | None":
    """Return the best trial that was not stopped early."""
    done = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    return min(done, key=lambda trial: trial.value or 0.0, default=None)


def finished_trials(study: "Study") -> "list[FrozenTrial]":
    """Return the trials that ended, but for those that were killed."""
    return [trial for trial in study.trials if trial.state.is_finished() and KILLED not in trial.user_attrs]


def keep_artifact(artifact: Artifact, folder: Path) -> None:
    """Put a model in the place of the best so far."""
    made = folder.with_name(f".{folder.name}")
    shutil.rmtree(made, ignore_errors=True)
    artifact.save(made)
    shutil.rmtree(folder, ignore_errors=True)
    made.rename(folder)


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
