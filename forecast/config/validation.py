"""Validation of config values: all mistakes in one error, each with its path and a suggestion."""

import ast
import difflib
import functools
import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping
from itertools import pairwise
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
    """Return `values` as a config of type `kind`, and register its secrets for redaction.

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


def descriptions(kind: type[Config], prefix: str = "") -> dict[str, str]:
    """Return the text of every key below its field, by dotted path: that of --help and of the reference.

    It is read from the source here, as a verb that needs no texts would spend a tenth of a second on them.
    """
    texts: dict[str, str] = {}
    for name, field in kind.model_fields.items():
        owner = next(base for base in kind.__mro__ if name in inspect.get_annotations(base))
        texts[prefix + name] = _docstrings(owner).get(name, "")
        if group := group_of(field):
            texts |= descriptions(group, f"{prefix}{name}.")
    return texts


@functools.cache
def _docstrings(model: type) -> dict[str, str]:
    """Return the texts below the fields of a class."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    assert isinstance(definition, ast.ClassDef)
    return {
        statement.target.id: inspect.cleandoc(text.value.value)
        for statement, text in pairwise(definition.body)
        if isinstance(statement, ast.AnnAssign)
        and isinstance(statement.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


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
    path, value = ".".join(str(part) for part in detail["loc"]), detail["input"]
    if detail["type"] == "extra_forbidden":
        return [f"{leaf}: {_unknown(kind, leaf)}" for leaf in _leaves(path, value)]
    secret = [name for name, field in fields(kind) if is_secret(field)]
    if any(name == path or path.startswith(f"{name}.") for name in secret):
        value = HIDDEN
    group = group_of(dict(fields(kind))[path]) if detail["type"] == "missing" else None
    if detail["type"] == "no_table" or (group and issubclass(group, SourceConfig)):
        return ["data.path: missing; give data.path=VALUE, or data.uri and data.query for a database"]
    if detail["type"] == "missing":
        keys = [name for name, field in group.model_fields.items() if field.is_required()] if group else []
        missing_keys = [f"{path}.{name}" for name in keys] or [path]
        return [f"{leaf}: missing; give {leaf}=VALUE" for leaf in missing_keys]
    message = str(detail["msg"]).removeprefix("Value error, ").replace("Input should be", "must be")
    if detail["type"] == "fixed_by_model":
        advice = f"; or name a pretrained network of the package, registry.alias={NANO}"
        return [f"{path}.{key}: {_FIXED}{advice}" for key in detail["ctx"]["keys"]]
    if detail["type"] == "value_error":
        return [f"{path}: {message}" if path else message]
    if detail["type"] == "model_type":
        return [f"{path}: a group of settings ({', '.join(_keys(kind, path))}), not a value (given: {value!r})"]
    if detail["type"] == "tuple_type":
        return [f"{path}: must be a list: {path}=[{value}]"]
    if detail["type"] == "literal_error" and isinstance(value, str):
        close = difflib.get_close_matches(value, re.findall(r"'(.*?)'", detail["ctx"]["expected"]), n=1)
        message += f"; did you mean {close[0]}?" if close else ""
    return [f"{path}: {message} (given: {value!r})"]


_FIXED: Final = "fixed by the trained model, can't be set here; train a model with the value you want"


def _unknown(kind: type[Config], path: str) -> str:
    """Return the message for a key that `kind` does not have."""
    group = path.rpartition(".")[0]
    data = group_of(kind.model_fields["data"]) if "data" in kind.model_fields else None
    trained = data is None or not issubclass(data, DataConfig) or "score" in kind.model_fields
    if trained and (path in _FIXED_BY_MODEL or (group or path) in ("window", "model")):
        return _FIXED
    all_keys, leaf = paths(kind), path.rsplit(".", 1)[-1]
    same_name = [key for key in all_keys if key.rsplit(".", 1)[-1] == leaf]
    close = same_name or difflib.get_close_matches(path, all_keys, n=1, cutoff=0.7)
    if close:
        return f"unknown key; did you mean {' or '.join(close)}?"
    group = group if group in all_keys else ""
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


# Settings that a trained model fixes besides its window and network: all of `data` except the source.
# Giving one of these after training gets a specific message.
_FIXED_BY_MODEL = {f"data.{path}" for path in set(paths(DataConfig)) - set(paths(SourceConfig))}
