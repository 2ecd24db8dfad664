"""The search space of `forecast tune`: ranges and choices per key, with their validation."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from forecast.config import CLASS_HEADS, FitSettings, TuneSettings, fields, group_of, load
from forecast.errors import ConfigError, listing

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial
    from optuna.trial import Trial as Running


_GROUPS: Final = ("window", "model", "fit")
# Settings that all trials share, so that they are comparable.
_COMPARED: Final = (
    "window.horizon",
    "model.quantile_levels",
    "fit.holdout_windows",
    "fit.validation_windows",
    "fit.seed",
)
_NOT_SEARCHABLE: Final = ("fit.ensemble", "fit.devices", "fit.checkpoint")
_ONE_NETWORK: Final = "a search trains one network after another; set it when training with what is found"
# Keys of the attributes of a study and its trials.
SETTINGS, ERROR, GIVEN, KILLED = "settings", "error", "given", "killed"


def check(config: FitSettings, settings: TuneSettings) -> "Space":
    """Return the search space. Raises ConfigError for settings that a search does not allow."""
    if several := [
        key for key in _NOT_SEARCHABLE if getattr(config.fit, key.removeprefix("fit.")) not in (1, None, "")
    ]:
        raise ConfigError(f"{listing(several)}: {_ONE_NETWORK}")
    if config.fit.max_steps == 0:
        raise ConfigError("fit.max_steps: 0 trains nothing that could be searched for")
    return space_of(config, settings)


@dataclass(frozen=True)
class _Range:
    low: float
    high: float
    log: bool
    integer: bool


Space = Mapping[str, "_Range | tuple[Any, ...]"]


def space_of(config: FitSettings, settings: TuneSettings) -> Space:
    """Return the search space: a range or choices for each key. Raises ConfigError that lists all mistakes."""
    keys = {path for path, field in fields(FitSettings) if not group_of(field)}
    searched: dict[str, _Range | tuple[Any, ...]] = {}
    mistakes = []
    for key, choices in _leaves(settings.space):
        name = f"tune.space.{key}"
        if key not in keys or key.partition(".")[0] not in _GROUPS:
            advice = f"; it is the same for all trials: set {key} itself" if key in keys else ""
            mistakes.append(f"{name}: no setting of {', '.join(_GROUPS)}{advice}")
            continue
        if key in _COMPARED:
            mistakes.append(
                f"{name}: trials are compared by it, and must share it; set {key} itself, and take it out of tune.space"
            )
            continue
        if key in _NOT_SEARCHABLE:
            mistakes.append(f"{name}: {_ONE_NETWORK}")
            continue
        try:
            searched[key] = _range(choices) if isinstance(choices, Mapping) else tuple(choices)
            ends = [choices["low"], choices["high"]] if isinstance(choices, Mapping) else searched[key]
            for value in ends:  # type: ignore[union-attr]
                _check_metric(config, with_values(config, {key: value}))
        except (ConfigError, KeyError, TypeError, ValueError) as error:
            mistakes.append(f"{name}: {_short(error)}")
    if not searched and not mistakes:
        mistakes.append("tune.space: is empty; give a list for a key, or low and high")
    if mistakes:
        raise ConfigError("\n  ".join(mistakes))
    return searched


def _check_metric(config: FitSettings, trial: FitSettings) -> None:
    """Raise ConfigError for a head whose metric is not comparable with that of the configured head."""
    head, trial_head = config.model.head, trial.model.head
    if (head in CLASS_HEADS) != (trial_head in CLASS_HEADS):
        raise ConfigError(
            f"{head} and {trial_head} are compared by different metrics, one of numbers and one of classes; set "
            f"model.head={trial_head} itself, or take it out of the list"
        )


def _short(error: Exception) -> str:
    """Return the message of an error about one setting, without its heading."""
    _, _, details = str(error).partition("in the config:\n")
    return " ".join(details.split()) or str(error)


def _leaves(space: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in space.items():
        if isinstance(value, Mapping) and not {"low", "high"} & value.keys():
            yield from _leaves(value, f"{prefix}{name}.")
        elif value is not None:
            yield prefix + name, value


def _range(bounds: Mapping[str, Any]) -> _Range:
    unknown = bounds.keys() - {"low", "high", "log"}
    if unknown or not {"low", "high"} <= bounds.keys():
        raise ValueError(f"takes low and high, and log (given: {', '.join(bounds)})")
    low, high = bounds["low"], bounds["high"]
    if not low < high:
        raise ValueError(f"low ({low}) is not less than high ({high})")
    log = bool(bounds.get("log", low > 0 and high >= 10 * low))
    if log and low <= 0:
        raise ValueError(f"on a logarithmic scale low must be more than 0 (given: {low})")
    return _Range(low, high, log, isinstance(low, int) and isinstance(high, int))


def draw_values(trial: "Running", space: Space) -> dict[str, Any]:
    """Return the values that a trial draws from the space."""
    values: dict[str, Any] = {}
    for key, choices in space.items():
        if isinstance(choices, _Range):
            suggest: Any = trial.suggest_int if choices.integer else trial.suggest_float
            values[key] = suggest(key, choices.low, choices.high, log=choices.log)
        else:
            values[key] = choices[trial.suggest_categorical(key, list(range(len(choices))))]
    return values


def drawn_values(trial: "FrozenTrial", space: Space) -> dict[str, Any]:
    """Return the drawn settings of a trial; empty for the trial with the settings as given."""
    if GIVEN in trial.user_attrs:
        return {}
    return {key: value if isinstance(space[key], _Range) else space[key][value] for key, value in trial.params.items()}  # type: ignore[index]


def with_values(config: FitSettings, drawn_settings: Mapping[str, Any]) -> FitSettings:
    """Return the settings updated by the drawn ones. Raises ConfigError if they contradict each other."""
    values = config.model_dump(exclude_unset=True)
    for key, value in drawn_settings.items():
        group, name = key.split(".")
        values.setdefault(group, {})[name] = value
    return load(FitSettings, values)
