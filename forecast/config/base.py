"""The base class of all config models, and types and helpers that several groups share."""

import functools
import re
import types
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SecretStr,
    ValidationInfo,
    field_validator,
)
from pydantic.fields import FieldInfo

from forecast.redaction import HIDDEN, without_password

Share = Annotated[float, Field(ge=0.0, le=1.0)]


def auto_or_windows(minimum: int) -> BeforeValidator:
    """Return a validator that accepts `auto` or a number of windows from `minimum` on."""

    def check(value: Any) -> Any:
        text = value.strip() if isinstance(value, str) else value
        if text == "auto" or (isinstance(text, int) and not isinstance(text, bool) and text >= minimum):
            return text
        if isinstance(text, str) and re.fullmatch(r"\d+", text) and int(text) >= minimum:
            return int(text)
        raise ValueError(f"must be auto, or a whole number of {minimum} and more")

    return BeforeValidator(check)


Windows = int | Literal["auto"]
"""Number of horizons held out; auto: by the lengths of the series."""
Level = Annotated[float, Field(gt=0.0, lt=1.0)]


def _serialized(secret: SecretStr) -> str:
    """Return an address without its password; any other secret is hidden completely."""
    value = secret.get_secret_value()
    return without_password(value) if "://" in value else HIDDEN


Secret = Annotated[SecretStr, PlainSerializer(_serialized, when_used="json")]
"""The address of a database, which may hold a password, or another secret text."""
Store = Annotated[SecretStr, PlainSerializer(lambda uri: without_password(uri.get_secret_value()), when_used="json")]
"""The address of a store, which may hold a password, or a folder."""


class Config(BaseModel):
    """Base of all config models: frozen, and an unknown key is an error."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        coerce_numbers_to_str=True,  # registry.alias=3
        defer_build=True,  # A verb builds the few models that it uses.
    )

    @field_validator("*", mode="before")
    @classmethod
    def _as_written(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse values that pydantic would convert to another value than the user wrote."""
        kinds = _leaf_types(cls, str(info.field_name))
        for leaf in _scalars(value):
            _check_scalar(leaf, kinds)
        return value


@functools.cache
def _leaf_types(kind: type[BaseModel], name: str) -> frozenset[Any]:
    """Return the possible types of the single values in a field."""
    leaves: set[Any] = set()
    pending = [kind.model_fields[name].annotation]
    while pending:
        annotation: Any = pending.pop()
        origin = get_origin(annotation)
        if origin in (Annotated, tuple):
            pending.append(get_args(annotation)[0])
        elif origin in (Union, types.UnionType):
            pending.extend(get_args(annotation))
        else:
            leaves.add(annotation)
    return frozenset(leaves)


def _scalars(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for element in value:
            yield from _scalars(element)
    else:
        yield value


def _check_scalar(value: Any, kinds: frozenset[Any]) -> None:
    """Raise ValueError for a number or truth value in place of text, or a truth value in place of a number."""
    if kinds <= {str, SecretStr, type(None)}:
        if isinstance(value, float | bool):
            kind = "a truth value" if isinstance(value, bool) else "a number"
            raise ValueError(f"must be text, and {value!r} is {kind}; write it as text, in quotes (given: {value!r})")
    elif datetime in kinds:
        number = isinstance(value, int | float) or (isinstance(value, str) and re.fullmatch(r"\s*[-+\d.]+\s*", value))
        if number and not re.fullmatch(r"\s*\d{4}-\d{2}-\d{2}\s*", str(value)):
            raise ValueError(f"must be a timestamp such as 2024-01-31 or 2024-01-31T06:00 (given: {value!r})")
    elif isinstance(value, bool) and kinds & {int, float} and bool not in kinds:
        raise ValueError(f"must be a number (given: {value!r})")


TextForm = Literal["text", "texts", "groups"]
"""Forms of text settings: a single text, a list, or a list whose elements may be lists."""


def text_form(annotation: Any) -> TextForm | None:
    """Return the form of a text setting with this annotation, None if it holds no text.

    >>> text_form(str | None), text_form(tuple[str, ...]), text_form(int | str)
    ('text', 'texts', None)
    """
    options = _options(annotation)
    if options <= {str, SecretStr}:
        return "text"
    if len(options) == 1 and get_origin(sequence := next(iter(options))) is tuple:
        elements = _options(get_args(sequence)[0])
        if elements == {str}:
            return "texts"
        if str in elements and all(element is str or text_form(element) == "texts" for element in elements):
            return "groups"
    return None


def is_optional(annotation: Any) -> bool:
    """Return whether a setting with this annotation may be null."""
    return type(None) in _options(annotation, without=())


def _options(annotation: Any, without: Iterable[Any] = (type(None),)) -> set[Any]:
    """Return the alternatives of a union, except those in `without`."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _options(get_args(annotation)[0], without)
    if origin in (Union, types.UnionType):
        return {option for alternative in get_args(annotation) for option in _options(alternative, without)}
    return {annotation} - set(without)


AUTO: Final = "auto"
"""The value of settings that are determined automatically, such as column names and the greatest age of a series."""
VERSION: Final = "models:/"


def is_version(name: object) -> bool:
    """Return whether a name is that of a registered version in MLflow: models:/NAME@ALIAS or models:/NAME/3."""
    return isinstance(name, str) and re.fullmatch(r"models:/[^/@]+(@[^/@]+|/\d+)", name) is not None


def version_of(name: str) -> tuple[str, str]:
    """Return name and alias, or number, of a registered version.

    >>> version_of("models:/loads@champion"), version_of("models:/loads/3")
    (('loads', 'champion'), ('loads', '3'))
    """
    model, alias = re.split("[@/]", name.removeprefix(VERSION))
    return model, alias


def _cutoffs(value: Any) -> Any:
    """Return the timestamps of a range FIRST..LAST/STEP; any other value unchanged."""
    if not isinstance(value, str) or ".." not in value:
        return value
    import polars as pl

    match = re.fullmatch(r"\s*(\S.*?)\s*\.\.\s*(.*?\S)\s*/\s*([1-9]\d*(?:m|h|d|w|mo|q|y))\s*", value)
    if match is None:
        raise ValueError(
            "a range is FIRST..LAST/STEP, with a step such as 1d, 6h, 1w or 1mo: 2013-11-01..2013-12-01/1d"
        )
    try:
        start, end = (datetime.fromisoformat(moment) for moment in match.groups()[:2])
        moments = pl.datetime_range(start, end, match[3], eager=True).to_list()
    except (ValueError, TypeError, pl.exceptions.PolarsError) as error:
        raise ValueError(f"not a range of timestamps ({error})") from None
    if not moments:
        raise ValueError("the range ends before it begins")
    return moments


Cutoffs = Annotated[tuple[datetime, ...], BeforeValidator(_cutoffs), Field(min_length=1)]


def _age(value: Any) -> Any:
    """Return steps as a number, `none` as None, and a duration or `auto` unchanged."""
    text = value.strip() if isinstance(value, str) else value
    if text is None or text == "none":
        return None
    if isinstance(text, int) or (isinstance(text, str) and re.fullmatch(r"\d+", text)):
        if int(text) < 0:
            raise ValueError("must be 0 or more steps")
        return int(text)
    if text == AUTO or (isinstance(text, str) and re.fullmatch(r"[1-9]\d{0,4}(m|h|d|w|mo|q|y)", text)):
        return text
    raise ValueError("must be a number of steps, a duration such as 12h, 90d, 8w, 6mo or 2y, auto, or none")


MaxAge = Annotated[int | str | None, BeforeValidator(_age)]


def is_secret(field: FieldInfo) -> bool:
    """Return whether a setting is secret."""
    return SecretStr in _options(field.annotation)
