"""Checks of the arguments of the Python functions: mistakes are ConfigErrors, as on the command line."""

import difflib
import functools
import inspect
import operator
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeAlias, TypeVar

import numpy as np

from forecast.artifact import Artifact
from forecast.checkpoints import names as pretrained_names
from forecast.config import AUTO, Config, DataConfig, EngineSettings, FitSettings, MaxAge, ScoreSettings, paths
from forecast.config import load as validated
from forecast.errors import ConfigError, listing

Cutoff: TypeAlias = str | date | datetime | np.datetime64
"""A point in time: text such as "2024-05-01" or "2024-05-01T06:00", a date (its midnight), a datetime or a pandas
Timestamp. Without a time zone it is local time of the panel."""

P = ParamSpec("P")
R = TypeVar("R")

_GROUPS: Final = ("data", "model", "fit")


class _Moment(Config):
    """A single cutoff, for validation."""

    cutoff: datetime


class _Engine(Config):
    """An engine, for validation."""

    engine: EngineSettings


def verb(function: Callable[P, R]) -> Callable[P, R]:
    """Return the function with checks: ConfigError for unknown arguments, and for an `artifact` that is no model."""
    signature = inspect.signature(function)
    name = f"fc.{function.__name__}"

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            unknown = [key for key in kwargs if key not in signature.parameters]
            raise ConfigError(f"{name}: {_hint(signature, unknown[0]) if unknown else error}") from None
        if "artifact" in bound.arguments:
            model = bound.arguments["artifact"]
            if not ("horizon" in signature.parameters and isinstance(model, str) and model in pretrained_names()):
                check_artifact(model)
        return function(*args, **kwargs)

    return wrapper


def _hint(signature: inspect.Signature, key: str) -> str:
    """Return a hint on an unknown argument of a function."""
    groups = [group for group in _GROUPS if group in signature.parameters]
    settings = [path for path in paths(FitSettings) if path.partition(".")[0] in groups and path.endswith(f".{key}")]
    if settings:
        group, _, setting = settings[0].partition(".")
        return f"{key}: unknown argument; it is a setting of the group {group}: {group}={{{setting!r}: ...}}"
    close = difflib.get_close_matches(key, signature.parameters, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are: {listing(signature.parameters, limit=20)}"
    return f"{key}: unknown argument; {hint}"


def check_artifact(model: object, key: str = "artifact") -> None:
    """Raise ConfigError unless `model` is an Artifact; `key` is the name of the argument."""
    if isinstance(model, Artifact):
        return
    type_name = type(model).__name__
    if isinstance(getattr(model, "artifact", None), Artifact):
        hint = f"pass the .artifact of this {type_name}"
    elif isinstance(model, str | Path):
        hint = f"fc.load(folder) reads one; pretrained networks of the package are {listing(pretrained_names())}"
    else:
        hint = "it is the .artifact of what fc.train returns, or what fc.load returns"
        hint += ", and comes before the table" * (key == "artifact")
    raise ConfigError(f"{key}: expected a model, found {type_name}; {hint}")


def moment(value: Cutoff | None, key: str = "cutoff") -> datetime | None:
    """Return a point in time as a datetime, or None for None. Raises ConfigError."""
    if value is None:
        return None
    time: Any = value.astype("M8[us]").item() if isinstance(value, np.datetime64) else value
    if time is None or str(time) == "NaT":
        raise ConfigError(f"{key}: must be a timestamp such as 2024-01-31 (given: {value!r})")
    if isinstance(time, str):
        time = time.strip()
    if hasattr(time, "to_pydatetime"):
        time = time.to_pydatetime(warn=False)
    try:
        return validated(_Moment, {"cutoff": time}).cutoff
    except ConfigError as error:
        reason = str(error).partition("cutoff: ")[2]
        raise ConfigError(f"{key}: {reason}") from None


def with_moments(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with `cutoff` and `cutoffs` as datetimes; a range of cutoffs is unchanged."""
    result = dict(settings)
    if result.get("cutoff") is not None:
        result["cutoff"] = moment(result["cutoff"])
    cutoffs = result.get("cutoffs")
    if isinstance(cutoffs, Iterable) and not isinstance(cutoffs, str):
        result["cutoffs"] = [moment(value, "cutoffs") for value in cutoffs]
    return result


def age(max_age: MaxAge) -> MaxAge:
    """Return the greatest age of a series in the form of the settings. Raises ConfigError."""
    return max_age if max_age == AUTO else validated(ScoreSettings, {"max_age": max_age}).max_age


def folder(path: object, key: str = "folder") -> Path:
    """Return a path. Raises ConfigError for other types."""
    if not isinstance(path, str | Path):
        raise ConfigError(f"{key}: must be the path of a folder (given: {path!r})")
    return Path(path)


def group(settings: Mapping[str, Any] | None, key: str) -> dict[str, Any]:
    """Return a group of settings, empty for None. Raises ConfigError for other types than mappings."""
    if settings is not None and not isinstance(settings, Mapping):
        raise ConfigError(f"{key}: must be a dictionary of settings, such as {{'key': value}} (given: {settings!r})")
    return dict(settings or {})


def engine_settings(engine: str | Mapping[str, Any]) -> EngineSettings:
    """Return the settings of an engine, from its name or all of them. Raises ConfigError."""
    settings = {"kind": engine} if isinstance(engine, str) else group(engine, "engine")
    return validated(_Engine, {"engine": settings}).engine


def whole_number(value: object, key: str, least: int) -> int:
    """Return an integer of at least `least`. Raises ConfigError."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = least - 1
    if isinstance(value, bool) or number < least:
        raise ConfigError(f"{key}: must be a whole number, {least} or more (given: {value!r})")
    return number


def check_side_tables(data: DataConfig, known: object, static: object) -> None:
    """Raise ConfigError for a table of covariates if the settings name no covariates of its kind."""
    for kind, table in (("known", known), ("static", static)):
        if table is not None and not data.side_columns(kind):
            raise ConfigError(
                f"{kind}: there are no {kind} covariates to read from this table; leave it out, or name them in "
                f"training: data={{'{kind}_covariates': [...]}}"
            )
