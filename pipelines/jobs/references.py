"""Settings given as references, such as ${oc.env:NAME}: their paths, and how they are stored.

A reference stays unresolved in the ledger, in `--cfg job` and on the way to a job; its value is shown nowhere.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from forecast.config import Config, fields, group_of, is_secret
from forecast.errors import ConfigError
from forecast.redaction import HIDDEN, add_secret, is_secret_name, redacted_values, without_password
from pipelines.jobs.settings_text import text_settings

OVERRIDES: Final = "GATECAST_OVERRIDES"
"""Environment variable with the settings of a started job: all users of the machine could read them as arguments."""

_REFERENCE: Final = re.compile(r"(?<!\\)(?:\\\\)*\$\{")
_VARIABLE: Final = re.compile(r"\$\{\s*oc\.env\s*:\s*([^\s,{}]+)")
_PUBLIC: Final = ("registry.name", "registry.alias")
"""Settings whose values MLflow needs."""


def references_of(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the settings that contain a reference, by path, unresolved: text, or a list with text."""
    references: dict[str, Any] = {}
    for name, value in values.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            references |= references_of(value, f"{path}.")
        elif any(_REFERENCE.search(text) for text in _texts(value)):
            references[path] = value
    return references


def hide_environment(kind: type[Config], references: Mapping[str, Any]) -> None:
    """Register the values of references to the environment, to be shown as the references."""
    secret = {path for path, field in fields(kind) if is_secret(field)}
    texts = text_settings(kind).keys() - {*_PUBLIC}
    for path, reference in references.items():
        for name in (name for text in _texts(reference) for name in _VARIABLE.findall(text)):
            value = os.environ.get(name, "")
            certain = path in secret or is_secret_name(path) or is_secret_name(name)
            harmless = path == "registry.tracking_uri" and without_password(value) == value
            if (certain or path in texts) and not harmless:
                add_secret(value, f"${{oc.env:{name}}}", certain=certain)


def with_references(values: dict[str, Any], references: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with values replaced by their references, in existing groups."""
    for path, reference in references.items():
        *parents, leaf = path.split(".")
        group: Any = values
        for name in parents:
            group = group.get(name) if isinstance(group, dict) else None
        if isinstance(group, dict) and leaf in group:
            group[leaf] = reference
    return values


def without_secrets(kind: type[Config], values: dict[str, Any]) -> dict[str, Any]:
    """Return settings without secrets; invalid ones are allowed."""
    result: dict[str, Any] = redacted_values(values)
    for path, field in fields(kind):
        if is_secret(field) and not group_of(field):
            *parents, leaf = path.split(".")
            group: Any = result
            for name in parents:
                group = group.get(name) if isinstance(group, dict) else None
            if isinstance(group, dict) and group.get(leaf) and not _is_address(group[leaf]):
                group[leaf] = HIDDEN
    return result


def _is_address(value: Any) -> bool:
    return isinstance(value, str) and ("://" in value or value == "???" or _REFERENCE.search(value) is not None)


def unresolved_words(kind: type[Config], words: Any, resolved: Sequence[str]) -> list[str]:
    """Return the overrides of a file: unresolved if they contain only text of the environment, else resolved.

    `words` are the overrides in the file, `resolved` the same with all references resolved.
    """
    if not isinstance(words, list) or len(words) != len(resolved):
        return list(resolved)
    texts = text_settings(kind)
    return [
        word if _is_environment_text(word, texts) else resolved_word
        for word, resolved_word in zip(words, resolved, strict=True)
    ]


def with_environment(word: str) -> str:
    """Return an override with values of the environment inserted."""
    return re.sub(rf"{_VARIABLE.pattern}[^{{}}]*\}}", lambda match: os.environ.get(match[1], match[0]), word)


def _is_environment_text(word: Any, texts: Mapping[str, tuple[str, bool]]) -> bool:
    if not isinstance(word, str):
        return False
    key, _, value = word.partition("=")
    form, _ = texts.get(key.strip().lstrip("+"), ("", False))
    is_text = form == "text" or (form == "texts" and value.strip().startswith("["))
    return is_text and len(_VARIABLE.findall(value)) == value.count("${") > 0


def overrides_of(variable: str) -> list[str]:
    """Return the settings for this job in an environment variable. Raises ConfigError."""
    try:
        words = json.loads(os.environ[variable])
    except (KeyError, ValueError):
        raise ConfigError(f"--overrides-env {variable}: the variable is not set, or is no JSON list") from None
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ConfigError(f"--overrides-env {variable}: not a list of KEY=VALUE")
    return words


def job_command(flow: str, settings: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """Return the arguments of `forecast` that run a verb, and its environment variables."""
    return [*flow.split(), "--overrides-env", OVERRIDES], {OVERRIDES: json.dumps(list(settings))}


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for element in value:
            yield from _texts(element)
