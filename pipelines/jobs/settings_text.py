"""Text settings on the command line and in YAML: exact text, and references.

A text setting keeps the exact text, even if it looks like a number, a list or a date to Hydra.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from forecast.config import Config, TextForm, fields, group_of, is_optional, text_form
from forecast.errors import ConfigError

_QUOTED: Final = r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*\""""
_END: Final = r"\s*(?:,|$)"
_ELEMENT: Final = re.compile(rf"\s*({_QUOTED})(?={_END})|\s*((?:\$\{{[^{{}}]*\}}|\\,|[^,])*+)", re.DOTALL)
_GROUP: Final = re.compile(rf"\s*\[((?:{_QUOTED}|[^\[\]])*)\](?={_END})", re.DOTALL)
_SEPARATOR: Final = re.compile(r"\s*,")
_WHOLE_NUMBER: Final = re.compile(r"0|-?[1-9]\d*")


def text_settings(kind: type[Config]) -> dict[str, tuple[TextForm, bool]]:
    """Return the text settings of a verb by path, with their form, and whether they may be null."""
    forms = ((path, field, text_form(field.annotation)) for path, field in fields(kind) if not group_of(field))
    return {path: (form, is_optional(field.annotation)) for path, field, form in forms if form}


def read_text(key: str, value: str, form: TextForm, *, optional: bool) -> Any:
    """Return the value of a text on the command line: the text, a list of texts for [a,b], or None for null.

    Quotes around the whole text, or around an element, are removed. Raises ConfigError for an empty element.
    """
    if value == "null" and optional:
        return None
    stripped = value.strip()
    if form != "text" and stripped.startswith("[") and stripped.endswith("]"):
        return _elements(key, stripped[1:-1], groups=form == "groups")
    return _unquoted(value)


def _elements(key: str, inside: str, *, groups: bool) -> list[Any]:
    elements: list[Any] = []
    position = 0
    while inside.strip():
        if groups and (group := _GROUP.match(inside, position)):
            elements.append(_elements(key, group[1], groups=False))
            position = group.end()
        else:
            element = _ELEMENT.match(inside, position)
            assert element is not None  # its second half matches anything
            quoted, text = element.groups()
            if quoted is None and not text.strip():
                raise ConfigError(f"{key}=[{inside}]: element {len(elements) + 1} is empty; leave it out, or write ''")
            elements.append(_unquoted(quoted) if quoted is not None else text.strip().replace("\\,", ","))
            position = element.end()
        separator = _SEPARATOR.match(inside, position)
        if separator is None:
            break
        position = separator.end()
    return elements


def _unquoted(text: str) -> str:
    """Return a text without quotes around the whole of it, as in Hydra."""
    if not re.fullmatch(_QUOTED, text, re.DOTALL):
        return text
    quote = text[0]
    # Backslashes are only doubled before a quote, or at the end.
    return re.sub(rf"(\\+)({quote}|$)", lambda match: "\\" * (len(match[1]) // 2) + match[2], text[1:-1])


def quoted(value: Any) -> str:
    """Return text, a list of texts or None, quoted for Hydra so that only references have a meaning."""
    from hydra.core.override_parser.types import Quote, QuotedString

    if value is None:
        return "null"
    if isinstance(value, list):
        return f"[{','.join(map(quoted, value))}]"
    return str(QuotedString(value, Quote.single).with_quotes())


def escaped(value: Any, groups: Iterable[str] = ()) -> Any:
    r"""Return a value whose texts OmegaConf reads literally: each ${ becomes \${.

    With `groups`, references stay: ${oc.env:NAME}, and ${group.name} of these groups.

    >>> escaped({"series": ["a${b}", "c"]})
    {'series': ['a\\${b}', 'c']}
    >>> escaped("${oc.env:HOME}/${b}/${data.path}", ["data"])
    '${oc.env:HOME}/\\${b}/${data.path}'
    """
    if isinstance(value, str):
        known_groups = frozenset(groups)
        return re.sub(
            r"(\\*)\$\{",
            lambda match: match[0] if _is_reference(value[match.end() :], known_groups) else f"{match[1] * 2}\\${{",
            value,
        )
    if isinstance(value, Mapping):
        return {name: escaped(value_inside, groups) for name, value_inside in value.items()}
    if isinstance(value, list | tuple):
        return [escaped(value_inside, groups) for value_inside in value]
    return value


def has_reference(text: str, groups: Iterable[str]) -> bool:
    """Return whether a text contains ${oc.env:NAME}, or ${group.name} of these groups."""
    return re.search(r"(?<!\\)(?:\\\\)*\$\{", escaped(text, groups)) is not None


def _is_reference(text: str, groups: frozenset[str]) -> bool:
    from omegaconf import OmegaConf

    if not groups:
        return False
    if function := re.match(r"\s*([A-Za-z_][\w.]*)\s*:", text):
        return OmegaConf.has_resolver(function[1])
    name = re.match(r"\s*(\w+)\s*[.}\[]", text)
    return name is not None and name[1] in groups


def check_whole_numbers(kind: type[Config], values: Mapping[str, Any], files: Iterable[Path]) -> None:
    """Raise ConfigError for a text setting that is a whole number in another spelling in the YAML files.

    YAML reads 007 as 7 and 0x10 as 16: an unquoted id in such a spelling would become another one.
    """
    numbers = {
        path: leaf for path in text_settings(kind) for leaf in _whole_numbers(_value_at(values, path.split(".")))
    }
    if not numbers:
        return
    spellings = {value: (text, file) for file in files for value, text in _odd_spellings(file)}
    for path, number in numbers.items():
        if number in spellings:
            text, file = spellings[number]
            raise ConfigError(f"{path}: must be text, and YAML reads {text} in {file} as {number}; write it in quotes")


def _value_at(values: Any, names: list[str]) -> Any:
    for name in names:
        values = values.get(name) if isinstance(values, Mapping) else None
    return values


def _whole_numbers(value: Any) -> list[int]:
    if isinstance(value, list):
        return [number for element in value for number in _whole_numbers(element)]
    return [value] if isinstance(value, int) and not isinstance(value, bool) else []


def _odd_spellings(file: Path) -> list[tuple[int, str]]:
    """Return the whole numbers in a YAML file whose spelling differs from Python's."""
    import yaml

    tokens = yaml.scan(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    plain = [
        token.value
        for token in tokens
        if isinstance(token, yaml.ScalarToken) and token.plain and not _WHOLE_NUMBER.fullmatch(token.value)
    ]
    numbers = ((yaml.safe_load(text), text) for text in plain if re.fullmatch(r"[-+\w:]*\d[\w:]*", text))
    return [(number, text) for number, text in numbers if isinstance(number, int) and not isinstance(number, bool)]
