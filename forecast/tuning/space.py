"""What is searched: ranges, choices, and what they may be combined with."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from forecast.config import CLASS_HEADS, FitSettings, TuneSettings, fields, group_of, load
from forecast.errors import ConfigError, listing

if TYPE_CHECKING:
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
# What is noted of a search, and of its trials.
SETTINGS, ERROR, GIVEN, KILLED = "settings", "error", "given", "killed"


def check(config: FitSettings, settings: TuneSettings) -> "Space":
    """Return what each key is drawn from. Raises ConfigError for settings that can't be searched with."""
    if several := [key for key in _ALONE if getattr(config.fit, key.removeprefix("fit.")) not in (1, None, "")]:
        raise ConfigError(f"{listing(several)}: {_ONE_NETWORK}")
    if config.fit.max_steps == 0:
        raise ConfigError("fit.max_steps: 0 trains nothing that could be searched for")
    return space_of(config, settings)


# --- the space


@dataclass(frozen=True)
class _Range:
    low: float
    high: float
    log: bool
    whole: bool


Space = Mapping[str, "_Range | tuple[Any, ...]"]


def space_of(config: FitSettings, settings: TuneSettings) -> Space:
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
                _check_metric(config, with_value(config, {key: value}))
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


def draw_value(trial: "Running", space: Space) -> dict[str, Any]:
    """Return the values that a trial draws from the space."""
    drawn: dict[str, Any] = {}
    for key, choices in space.items():
        if isinstance(choices, _Range):
            suggest: Any = trial.suggest_int if choices.whole else trial.suggest_float
            drawn[key] = suggest(key, choices.low, choices.high, log=choices.log)
        else:
            drawn[key] = choices[trial.suggest_categorical(key, list(range(len(choices))))]
    return drawn


def drawn_values(trial: "FrozenTrial", space: Space) -> dict[str, Any]:
    """Return the settings of a trial; none of the one that has those that were given."""
    if GIVEN in trial.user_attrs:
        return {}
    return {key: value if isinstance(space[key], _Range) else space[key][value] for key, value in trial.params.items()}  # type: ignore[index]


def with_value(config: FitSettings, drawn: Mapping[str, Any]) -> FitSettings:
    """Return the settings with those that were drawn. Raises ConfigError if they contradict each other."""
    values = config.model_dump(exclude_unset=True)
    for key, value in drawn.items():
        group, name = key.split(".")
        values.setdefault(group, {})[name] = value
    return load(FitSettings, values)
