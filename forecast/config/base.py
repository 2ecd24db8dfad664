"""What every config model is made of: the frozen base class, text forms, and types that several groups share."""

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


def auto_or_windows(least: int) -> BeforeValidator:
    """Return what refuses anything but `auto` and a number of windows."""

    def check(given: Any) -> Any:
        text = given.strip() if isinstance(given, str) else given
        if text == "auto" or (isinstance(text, int) and not isinstance(text, bool) and text >= least):
            return text
        if isinstance(text, str) and re.fullmatch(r"\d+", text) and int(text) >= least:
            return int(text)
        raise ValueError(f"must be auto, or a whole number of {least} and more")

    return BeforeValidator(check)


Windows = int | Literal["auto"]
"""How many horizons are held out, or as many as follow from the lengths of the series."""
Level = Annotated[float, Field(gt=0.0, lt=1.0)]


def _serialized(secret: SecretStr) -> str:
    """Return an address without its password; any other secret is hidden whole."""
    value = secret.get_secret_value()
    return without_password(value) if "://" in value else HIDDEN


Secret = Annotated[SecretStr, PlainSerializer(_serialized, when_used="json")]
"""The address of a database, which may hold a password, or another text that is not to be shown."""
Store = Annotated[SecretStr, PlainSerializer(lambda uri: without_password(uri.get_secret_value()), when_used="json")]
"""The address of a store, which may hold a password, or a folder."""


class Config(BaseModel):
    """Base of all config models: frozen, and an unknown key is an error."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        coerce_numbers_to_str=True,  # registry.alias=3
        use_attribute_docstrings=True,  # the text of --help
    )

    @field_validator("*", mode="before")
    @classmethod
    def _as_written(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse values that would be converted to something else than what was written."""
        kinds = _leaf_types(cls, str(info.field_name))
        for leaf in _scalars(value):
            _check_scalar(leaf, kinds)
        return value


@functools.cache
def _leaf_types(kind: type[BaseModel], name: str) -> frozenset[Any]:
    """Return the types that the single values of a field may have."""
    found: set[Any] = set()
    pending = [kind.model_fields[name].annotation]
    while pending:
        annotation: Any = pending.pop()
        origin = get_origin(annotation)
        if origin in (Annotated, tuple):
            pending.append(get_args(annotation)[0])
        elif origin in (Union, types.UnionType):
            pending.extend(get_args(annotation))
        else:
            found.add(annotation)
    return frozenset(found)


def _scalars(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for element in value:
            yield from _scalars(element)
    else:
        yield value


def _check_scalar(value: Any, kinds: frozenset[Any]) -> None:
    """Raise ValueError for a number or a truth value where text, a timestamp or a number is wanted."""
    if kinds <= {str, SecretStr, type(None)}:
        if isinstance(value, float | bool):
            what = "a truth value" if isinstance(value, bool) else "a number"
            raise ValueError(f"must be text, and {value!r} is {what}; write it as text, in quotes (given: {value!r})")
    elif datetime in kinds:
        number = isinstance(value, int | float) or (isinstance(value, str) and re.fullmatch(r"\s*[-+\d.]+\s*", value))
        if number and not re.fullmatch(r"\s*\d{4}-\d{2}-\d{2}\s*", str(value)):
            raise ValueError(f"must be a timestamp such as 2024-01-31 or 2024-01-31T06:00 (given: {value!r})")
    elif isinstance(value, bool) and kinds & {int, float} and bool not in kinds:
        raise ValueError(f"must be a number (given: {value!r})")


TextForm = Literal["text", "texts", "groups"]
"""How a setting holds text: one, a list, or a list whose elements may be lists."""


def text_form(annotation: Any) -> TextForm | None:
    """Return how a setting with this annotation holds text, None where it holds something else.

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
        if str in elements and all(each is str or text_form(each) == "texts" for each in elements):
            return "groups"
    return None


def is_optional(annotation: Any) -> bool:
    """Return whether a setting with this annotation may be null."""
    return type(None) in _options(annotation, without=())


def _options(annotation: Any, without: Iterable[Any] = (type(None),)) -> set[Any]:
    """Return the alternatives of a union, of which those `without` are left out."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _options(get_args(annotation)[0], without)
    if origin in (Union, types.UnionType):
        return {option for each in get_args(annotation) for option in _options(each, without)}
    return {annotation} - set(without)


AUTO: Final = "auto"
"""What is chosen for the user: the name of a column that is recognised, the greatest age of a series."""
"""Settings of a source that stay as they were in training where a later verb does not give them."""
"""Those of `model.head` whose targets are whole numbers, 0 and more."""
"""Those whose targets are 0 and more."""
"""Those whose targets are classes."""
VERSION: Final = "models:/"


def is_version(name: object) -> bool:
    """Return whether a name is that of a registered version, as MLflow has it: models:/NAME@ALIAS, models:/NAME/3."""
    return isinstance(name, str) and re.fullmatch(r"models:/[^/@]+(@[^/@]+|/\d+)", name) is not None


def version_of(name: str) -> tuple[str, str]:
    """Return name and alias, or number, of a registered version.

    >>> version_of("models:/loads@champion"), version_of("models:/loads/3")
    (('loads', 'champion'), ('loads', '3'))
    """
    model, which = re.split("[@/]", name.removeprefix(VERSION))
    return model, which


def _cutoffs(given: Any) -> Any:
    """Return the timestamps of a range FIRST..LAST/STEP; anything else as it is."""
    if not isinstance(given, str) or ".." not in given:
        return given
    import polars as pl

    found = re.fullmatch(r"\s*(\S.*?)\s*\.\.\s*(.*?\S)\s*/\s*([1-9]\d*(?:m|h|d|w|mo|q|y))\s*", given)
    if found is None:
        raise ValueError(
            "a range is FIRST..LAST/STEP, with a step such as 1d, 6h, 1w or 1mo: 2013-11-01..2013-12-01/1d"
        )
    try:
        first, last = (datetime.fromisoformat(moment) for moment in found.groups()[:2])
        moments = pl.datetime_range(first, last, found[3], eager=True).to_list()
    except (ValueError, TypeError, pl.exceptions.PolarsError) as error:
        raise ValueError(f"not a range of timestamps ({error})") from None
    if not moments:
        raise ValueError("the range ends before it begins")
    return moments


Cutoffs = Annotated[tuple[datetime, ...], BeforeValidator(_cutoffs), Field(min_length=1)]


def _age(given: Any) -> Any:
    """Return steps as a number, `none` as None, and a duration or `auto` as it is."""
    text = given.strip() if isinstance(given, str) else given
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
    """Return whether a setting is not to be shown."""
    return SecretStr in _options(field.annotation)
