"""Search for the settings of a training: many of them for a while, the best ones to the end."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import polars as pl

from forecast import artifact as artifacts
from forecast.artifact import Artifact
from forecast.config import CLASS_HEADS, FitSettings, TuneSettings, fields, group_of, load
from forecast.data.ingest.loaded import Loaded
from forecast.data.windows import WindowIndex
from forecast.errors import ConfigError, DataError, OutputError, listing
from forecast.metrics.scores import score_classes, score_windows
from forecast.metrics.seasonal_naive import future_values, seasonal_naive_errors
from forecast.prediction.predict import predict
from forecast.pretraining.pretrained_network import PretrainedNetwork
from forecast.training.fit import FitResult, fit, held_out, training_data

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial
    from optuna.trial import Trial as Running

_GROUPS: Final = ("window", "model", "fit")
# Settings that trials are compared by, and must share.
_COMPARED: Final = (
    "window.horizon",
    "model.quantile_levels",
    "fit.holdout_windows",
    "fit.validation_windows",
    "fit.seed",
)
_ALONE: Final = ("fit.ensemble", "fit.devices", "fit.checkpoint")
_ONE_NETWORK: Final = "a search trains one network after another; set it when training with what is found"
_STUDY, _BEST = "study.db", "best"
# What is noted of a search, and of its trials.
_SETTINGS, _ERROR, _GIVEN, _KILLED = "settings", "error", "given", "killed"


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
    """What a search has found."""

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
        best, first = self.values
        other = "" if first is None else f", {first:.4g} with the settings as given"
        trial = f"trial {self.best} of {self.trials.height:,}"
        return f"TuneResult({trial}: {self.metric} {best:.4g}{other}; {self.artifact!r})"

    @property
    def values(self) -> tuple[float, float | None]:
        """The metric of the best trial, and with the settings as given; None if that one failed."""
        found = dict(self.trials.select("number", "value").iter_rows())
        given = self.trials.filter(settings="{}")["number"]
        return found[self.best], found[given[0]] if len(given) else None


def tune(
    loaded: Loaded,
    config: FitSettings,
    settings: TuneSettings,
    folder: Path,
    *,
    key: str = "output.path",
    init: PretrainedNetwork | None = None,
    ended: Callable[[Trial], None] = lambda _: None,
    progress: Callable[[float, str], None] | None = None,
) -> TuneResult:
    """Return the best of `tune.n_trials` trainings with settings out of `tune.space`.

    The first trial has the settings as given. The next are drawn by a tree of Parzen estimators (Bergstra et al. 2011),
    and stopped early by asynchronous successive halving (Li et al. 2020): at a third, a ninth, ... of the longest
    training only the best third of those that came so far goes on. They are judged by `tune.metric` in the units of the
    target, on the validation windows of training, which are the same for all; nothing behind them is seen. The line of
    the model that is returned is solved on these windows as well, after they have judged.

    The search lies in `folder`: one that was stopped goes on there, and a trial that was under way begins again.
    `ended` is told of each trial. `key` is the setting that names the folder. `init` is the pretrained network of a
    version, which all trials begin with.

    Raises ConfigError if optuna is not installed, a key of the space can't be searched, or the folder holds another
    search; DataError if no trial gave a model; OutputError if the folder can't be written.
    """
    space = check(config, settings)
    optuna = _optuna()
    loaded = training_data(loaded, config.window.horizon, config.model, config.fit)
    windows = held_out(loaded.panel, config.window.horizon, config.fit).validation
    judged = _judge(loaded, windows, config.window.horizon, settings.metric)
    with _study(optuna, folder, key, loaded, config, settings) as study:
        while len(done := _ended(study)) < settings.n_trials:
            running = study.ask()
            trial = _trained(running, loaded, config, space, judged, init)
            best_before = _best(study)
            improved = trial.state == "complete" and (best_before is None or trial.value < best_before.value)  # type: ignore[operator]
            if improved and trial.result is not None:
                # Of all trials, the best ones alone get a final fit.
                _keep(trial.result.finish() if trial.result.finish else trial.result.artifact, folder / _BEST)
            running.set_user_attr(_ERROR, trial.error)
            state = getattr(optuna.trial.TrialState, _STATES[trial.state])
            study.tell(running, trial.value if trial.state == "complete" else None, state=state)
            ended(trial)
            best = _best(study)
            if progress and best is not None:
                text = f"trial {best.number} has {settings.metric} {best.value:.4f}"
                progress((len(done) + 1) / settings.n_trials, text)
        best = _best(study)
        if best is None:
            errors = {str(trial.user_attrs[_ERROR]) for trial in done}
            raise DataError(f"none of {len(done)} trials gave a model: {listing(errors)}")
        found = _set(config, _drawn(best, space))
        return TuneResult(artifacts.load(folder / _BEST), found, _table(study, space), best.number, settings.metric)


_STATES: Final = {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise ConfigError("a search needs: pip install 'gatecast[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def check(config: FitSettings, settings: TuneSettings) -> "_Space":
    """Return what each key is drawn from. Raises ConfigError for settings that can't be searched with."""
    if several := [key for key in _ALONE if getattr(config.fit, key.removeprefix("fit.")) not in (1, None, "")]:
        raise ConfigError(f"{listing(several)}: {_ONE_NETWORK}")
    if config.fit.max_steps == 0:
        raise ConfigError("fit.max_steps: 0 trains nothing that could be searched for")
    return _space(config, settings)


# --- the space


@dataclass(frozen=True)
class _Range:
    low: float
    high: float
    log: bool
    whole: bool


_Space = Mapping[str, "_Range | tuple[Any, ...]"]


def _space(config: FitSettings, settings: TuneSettings) -> _Space:
    """Return what each key is drawn from. Raises ConfigError that lists all mistakes."""
    known = {path for path, field in fields(FitSettings) if not group_of(field)}
    found: dict[str, _Range | tuple[Any, ...]] = {}
    mistakes = []
    for key, given in _leaves(settings.space):
        name = f"tune.space.{key}"
        if key not in known or key.partition(".")[0] not in _GROUPS:
            way_out = f"; it is the same for all trials: set {key} itself" if key in known else ""
            mistakes.append(f"{name}: no setting of {', '.join(_GROUPS)}{way_out}")
            continue
        if key in _COMPARED:
            mistakes.append(
                f"{name}: trials are compared by it, and must share it; set {key} itself, and take it out of tune.space"
            )
            continue
        if key in _ALONE:
            mistakes.append(f"{name}: {_ONE_NETWORK}")
            continue
        try:
            found[key] = _range(given) if isinstance(given, Mapping) else tuple(given)
            ends = [given["low"], given["high"]] if isinstance(given, Mapping) else found[key]
            for value in ends:  # type: ignore[union-attr]
                _check_metric(config, _set(config, {key: value}))
        except (ConfigError, KeyError, TypeError, ValueError) as error:
            mistakes.append(f"{name}: {_short(error)}")
    if not found and not mistakes:
        mistakes.append("tune.space: is empty; give a list for a key, or low and high")
    if mistakes:
        raise ConfigError("\n  ".join(mistakes))
    return found


def _check_metric(config: FitSettings, trial: FitSettings) -> None:
    """Raise ConfigError for a head whose metric can't be compared with that of the head in the settings."""
    head, other = config.model.head, trial.model.head
    if (head in CLASS_HEADS) != (other in CLASS_HEADS):
        raise ConfigError(
            f"{head} and {other} are compared by different metrics, one of numbers and one of classes; set "
            f"model.head={other} itself, or take it out of the list"
        )


def _short(error: Exception) -> str:
    """Return what is wrong with the one setting that was tried."""
    _, _, told = str(error).partition("in the config:\n")
    return " ".join(told.split()) or str(error)


def _leaves(space: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in space.items():
        if isinstance(value, Mapping) and not {"low", "high"} & value.keys():
            yield from _leaves(value, f"{prefix}{name}.")
        elif value is not None:
            yield prefix + name, value


def _range(given: Mapping[str, Any]) -> _Range:
    unknown = given.keys() - {"low", "high", "log"}
    if unknown or not {"low", "high"} <= given.keys():
        raise ValueError(f"takes low and high, and log (given: {', '.join(given)})")
    low, high = given["low"], given["high"]
    if not low < high:
        raise ValueError(f"low ({low}) is not less than high ({high})")
    log = bool(given.get("log", low > 0 and high >= 10 * low))
    if log and low <= 0:
        raise ValueError(f"on a logarithmic scale low must be more than 0 (given: {low})")
    return _Range(low, high, log, isinstance(low, int) and isinstance(high, int))


def _draw(trial: "Running", space: _Space) -> dict[str, Any]:
    drawn: dict[str, Any] = {}
    for key, choices in space.items():
        if isinstance(choices, _Range):
            suggest: Any = trial.suggest_int if choices.whole else trial.suggest_float
            drawn[key] = suggest(key, choices.low, choices.high, log=choices.log)
        else:
            drawn[key] = choices[trial.suggest_categorical(key, list(range(len(choices))))]
    return drawn


def _drawn(trial: "FrozenTrial", space: _Space) -> dict[str, Any]:
    """Return the settings of a trial; none of the one that has those that were given."""
    if _GIVEN in trial.user_attrs:
        return {}
    return {key: value if isinstance(space[key], _Range) else space[key][value] for key, value in trial.params.items()}  # type: ignore[index]


def _set(config: FitSettings, drawn: Mapping[str, Any]) -> FitSettings:
    """Return the settings with those that were drawn. Raises ConfigError if they contradict each other."""
    values = config.model_dump(exclude_unset=True)
    for key, value in drawn.items():
        group, name = key.split(".")
        values.setdefault(group, {})[name] = value
    return load(FitSettings, values)


# --- trials


def _trained(
    running: "Running",
    loaded: Loaded,
    config: FitSettings,
    space: _Space,
    judged: Callable[[Artifact], float],
    init: PretrainedNetwork | None,
) -> Trial:
    given = _GIVEN in running.user_attrs
    drawn = {} if given else _draw(running, space)
    own = config

    def watch(artifact: Artifact, step: int) -> bool:
        running.report(judged(artifact), step)
        # Not the settings as given: they are what the others are measured by.
        return not given and running.should_prune()

    try:
        own = _set(config, drawn)
        result = fit(
            loaded.panel,
            data=loaded.data,
            categories=loaded.categories,
            window=own.window,
            model=own.model,
            fit=own.fit,
            init=init,
            watch=watch,
        )
    except (ConfigError, DataError) as error:  # Of settings that do not go together, or not with the panel.
        return Trial(running.number, drawn, own, "failed", None, None, str(error))
    value = judged(result.validation_artifact)
    return Trial(running.number, drawn, own, "pruned" if result.stopped else "complete", value, result)


def _judge(loaded: Loaded, windows: WindowIndex, horizon: int, metric: str) -> Callable[[Artifact], float]:
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
def _study(
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
    before = study.user_attrs.get(_SETTINGS)
    now = json.dumps(described, sort_keys=True, default=str)
    if before not in (None, now):
        old, new = json.loads(before), json.loads(now)
        changed = [name for name in new if old.get(name) != new[name]]
        raise ConfigError(
            f"{key}: {folder} holds a search with another {listing(changed)}; give another folder, or those settings"
        )
    if before is None:
        study.set_user_attr(_SETTINGS, now)
        study.enqueue_trial({}, user_attrs={_GIVEN: True})
    for trial in study.trials:
        if trial.state == optuna.trial.TrialState.RUNNING:  # Of a process that was killed.
            study._storage.set_trial_user_attr(trial._trial_id, _KILLED, True)
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


def _best(study: "Study") -> "FrozenTrial | None":
    """Return the best trial that was not stopped early."""
    done = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    return min(done, key=lambda trial: trial.value or 0.0, default=None)


def _ended(study: "Study") -> "list[FrozenTrial]":
    return [trial for trial in study.trials if trial.state.is_finished() and _KILLED not in trial.user_attrs]


def _keep(artifact: Artifact, folder: Path) -> None:
    """Put a model in the place of the best so far."""
    made = folder.with_name(f".{folder.name}")
    shutil.rmtree(made, ignore_errors=True)
    artifact.save(made)
    shutil.rmtree(folder, ignore_errors=True)
    made.rename(folder)


def _table(study: "Study", space: _Space) -> pl.DataFrame:
    rows = [
        {
            "number": trial.number,
            "state": next((name for name, state in _STATES.items() if state == trial.state.name), "failed"),
            "value": trial.value,
            "step": max(trial.intermediate_values, default=0),
            "seconds": trial.duration.total_seconds() if trial.duration else None,
            "settings": json.dumps(_drawn(trial, space)),
        }
        for trial in _ended(study)
    ]
    schema = {"number": pl.Int64, "state": pl.String, "value": pl.Float64, "step": pl.Int64, "seconds": pl.Float64}
    return pl.DataFrame(rows, schema={**schema, "settings": pl.String})
