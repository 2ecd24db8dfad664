"""From values to a config model: every mistake at once, with its path and a suggestion."""

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeVar

from pydantic import SecretStr, ValidationError
from pydantic.fields import FieldInfo

from forecast.checkpoints import NANO
from forecast.config.base import Config, is_secret
from forecast.config.data import DataConfig, SourceConfig
from forecast.errors import ConfigError
from forecast.redaction import HIDDEN, add_secret

T = TypeVar("T", bound=Config)


def load(kind: type[T], values: Mapping[str, Any]) -> T:
    """Return `values` as a `kind`; its secrets are shown nowhere from then on.

    Raises ConfigError that lists every mistake with its path.
    """
    for path, field in fields(kind):
        if is_secret(field):
            _keep_secret(_value_at(values, path))
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        lines = [line for detail in error.errors() for line in _explain(kind, detail)]
        count = "1 mistake" if len(lines) == 1 else f"{len(lines)} mistakes"
        raise ConfigError(f"{count} in the config:\n" + "\n".join(f"  {line}" for line in sorted(lines))) from None


def paths(kind: type[Config], prefix: str = "") -> list[str]:
    """Return the dotted paths of every key of a config model, groups included.

    >>> from forecast.config.commands import UiConfig
    >>> paths(UiConfig)[-3:]
    ['ui', 'ui.host', 'ui.port']
    """
    return [path for path, _ in fields(kind, prefix)]


def fields(kind: type[Config], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield the dotted path and the pydantic field of every key, groups before their keys."""
    for name, field in kind.model_fields.items():
        yield prefix + name, field
        if group := group_of(field):
            yield from fields(group, f"{prefix}{name}.")


def group_of(field: FieldInfo) -> type[Config] | None:
    """Return the config model that a field holds, None for a single value."""
    annotation = field.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, Config) else None


def _keep_secret(value: object) -> None:
    if isinstance(value, SecretStr):
        _keep_secret(value.get_secret_value())
    elif isinstance(value, list | tuple):
        for element in value:
            _keep_secret(element)
    elif isinstance(value, str) and "://" in value:
        add_secret(value)


def _value_at(values: Any, path: str) -> Any:
    for name in path.split("."):
        values = values.get(name) if isinstance(values, Mapping) else getattr(values, name, None)
    return values


def _explain(kind: type[Config], detail: Any) -> list[str]:  # noqa: PLR0911  one for each kind of mistake
    path, given = ".".join(str(part) for part in detail["loc"]), detail["input"]
    if detail["type"] == "extra_forbidden":
        return [f"{leaf}: {_unknown(kind, leaf)}" for leaf in _leaves(path, given)]
    secret = [name for name, field in fields(kind) if is_secret(field)]
    if any(name == path or path.startswith(f"{name}.") for name in secret):
        given = HIDDEN
    group = group_of(dict(fields(kind))[path]) if detail["type"] == "missing" else None
    if detail["type"] == "no_table" or (group and issubclass(group, SourceConfig)):
        return ["data.path: missing; give data.path=VALUE, or data.uri and data.query for a database"]
    if detail["type"] == "missing":
        keys = [name for name, field in group.model_fields.items() if field.is_required()] if group else []
        missing = [f"{path}.{name}" for name in keys] or [path]
        return [f"{leaf}: missing; give {leaf}=VALUE" for leaf in missing]
    message = str(detail["msg"]).removeprefix("Value error, ").replace("Input should be", "must be")
    if detail["type"] == "fixed_by_model":
        advice = f"; or name a pretrained network of the package, registry.alias={NANO}"
        return [f"{path}.{key}: {_FIXED}{advice}" for key in detail["ctx"]["keys"]]
    if detail["type"] == "value_error":
        return [f"{path}: {message}" if path else message]
    if detail["type"] == "model_type":
        return [f"{path}: a group of settings ({', '.join(_keys(kind, path))}), not a value (given: {given!r})"]
    if detail["type"] == "tuple_type":
        return [f"{path}: must be a list: {path}=[{given}]"]
    if detail["type"] == "literal_error" and isinstance(given, str):
        close = difflib.get_close_matches(given, re.findall(r"'(.*?)'", detail["ctx"]["expected"]), n=1)
        message += f"; did you mean {close[0]}?" if close else ""
    return [f"{path}: {message} (given: {given!r})"]


_FIXED: Final = "fixed by the trained model, can't be set here; train a model with the value you want"


def _unknown(kind: type[Config], path: str) -> str:
    """Return what to tell about a key that `kind` does not have."""
    group = path.rpartition(".")[0]
    data = group_of(kind.model_fields["data"]) if "data" in kind.model_fields else None
    trained = data is None or not issubclass(data, DataConfig) or "score" in kind.model_fields
    if trained and (path in _FIXED_BY_MODEL or (group or path) in ("window", "model")):
        return _FIXED
    known, leaf = paths(kind), path.rsplit(".", 1)[-1]
    same_name = [other for other in known if other.rsplit(".", 1)[-1] == leaf]
    close = same_name or difflib.get_close_matches(path, known, n=1, cutoff=0.7)
    if close:
        return f"unknown key; did you mean {' or '.join(close)}?"
    group = group if group in known else ""
    return f"unknown key; {f'keys of {group}' if group else 'there are'}: {', '.join(_keys(kind, group))}"


def _keys(kind: type[Config], group: str) -> list[str]:
    prefix = f"{group}." if group else ""
    inside = [path.removeprefix(prefix) for path in paths(kind) if path.startswith(prefix)]
    return [key for key in inside if "." not in key]


def _leaves(path: str, value: Any) -> Iterator[str]:
    if not isinstance(value, Mapping) or not value:
        yield path
        return
    for key, inner in value.items():
        yield from _leaves(f"{path}.{key}", inner)


# What a trained model fixes besides its window and network: all of `data` that does not say where the rows are.
# Naming one of these after training is a misunderstanding worth a better message.
_FIXED_BY_MODEL = {f"data.{path}" for path in set(paths(DataConfig)) - set(paths(SourceConfig))}
