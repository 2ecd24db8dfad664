"""Frozen config models: types, choices and ranges. The values of a deployment live in `conf/`.

Each verb has one model (`TrainConfig`, `FinetuneConfig`, ...). Unknown keys are refused, and every mistake in a config
is reported at once with its path (`load`).
"""

import difflib
import functools
import os
import re
import shlex
import types
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeVar, Union, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from forecast.checkpoints import NANO, names
from forecast.errors import ConfigError
from forecast.names import CHAMPION
from forecast.redaction import HIDDEN, add_secret, without_password

Share = Annotated[float, Field(ge=0.0, le=1.0)]


def _windows(least: int) -> BeforeValidator:
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


class ColumnsConfig(Config):
    """Which columns of the user's table hold the panel."""

    series_id: str = AUTO
    """Column with the name of the series; auto: series_id, unique_id or item_id, the one that is there."""
    timestamp: str = AUTO
    """Column with the time; auto: timestamp, ds or time, the one that is there."""
    target: str = AUTO
    """Column with the values to forecast; auto: target or y, the one that is there."""


def _rolling(name: str) -> str:
    if not re.fullmatch(r"(mean|std|min|max|median|sum)_[1-9]\d{0,5}", name):
        raise ValueError("must be mean, std, min, max, median or sum, and a number of steps: mean_7")
    return name


class SourceConfig(Config):
    """Where the rows are, and what to do with bad ones. The same for every verb."""

    path: str | None = None
    """A Parquet, CSV or Arrow file, a folder of them, a glob, a Delta table or an s3:// address of these; a file with a
    line of JSON per series (gluonts); or a folder that `forecast data prepare` wrote."""
    uri: Secret | None = None
    """A database instead of a path: postgresql://user@host/db (password from PGPASSWORD) or sqlite:///file.db."""
    query: str | None = None
    """The SQL query that gives the table, with data.uri."""
    known_path: str | None = None
    """A second table with the known covariates, reaching over the horizon; without a series_id it is for all series."""
    static_path: str | None = None
    """A table with one row per series, where the static covariates are."""
    separator: Annotated[str, Field(min_length=1, max_length=1)] | None = None
    """What separates the fields of CSV files; found in the header when not given: a comma, semicolon, tab or bar."""
    decimal: Literal[".", ","] | None = None
    """The decimal sign of numbers that are text; the other one may group thousands. Found in the values when not
    given, where they can be read in one way only."""
    null_values: tuple[str, ...] = ()
    """What stands for a missing value, besides NA, NaN and null: [-, "-999"]. Names of series are never missing."""
    timestamp_format: str | None = None
    """How timestamps are written (strftime: "%d/%m/%Y %H:%M"), or s, ms, us or ns for numbers that count from 1970 on;
    ISO 8601, years and dates such as 20230131 are read without."""
    local_time: bool | None = None
    """Timestamps without a time zone are local time of data.time_zone, or of the model's; false refuses them. As in
    training when not given: true where those had none, false where they had one."""
    until: datetime | None = None
    """Use rows up to and including this timestamp (naive: in the panel's own time zone)."""
    end_share: Share = 0.05
    """Share of the series that must reach the end of the panel: rows beyond the step on which all but so few of them
    end are rejects, and so are single rows that a long hole parts from their series. 0: all rows count."""
    on_error: Literal["quarantine", "fail"] = "quarantine"
    """Put bad rows into the rejects table, or stop at the first kind of them."""
    max_reject_share: Share = 0.05
    """Stop if a larger share of the rows is rejected."""

    @field_validator("separator", mode="before")
    @classmethod
    def _tab(cls, separator: object) -> object:
        return "\t" if separator in ("tab", "\\t") else separator

    @field_validator("timestamp_format")
    @classmethod
    def _is_format(cls, form: str | None) -> str | None:
        if form is not None and "%" not in form and form not in ("s", "ms", "us", "ns"):
            raise ValueError("must be a format of strftime, such as %d/%m/%Y, or s, ms, us or ns")
        return form

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.path is not None and self.uri is not None:
            raise ValueError("path and uri are both given; the table is in one of them")
        if (self.uri is None) != (self.query is None):
            raise ValueError("uri and query go together: uri=postgresql://user@host/db query='select ...'")
        return self


NOTATION: Final = ("separator", "decimal", "null_values", "timestamp_format", "local_time")
"""Settings of a source that stay as they were in training where a later verb does not give them."""


def _days_joined(days: Any) -> Any:
    return ",".join(map(str, days)) if isinstance(days, list | tuple) else days


class DataConfig(SourceConfig):
    """How to read the table a model is trained on. The choices are stored with the model and hold for later verbs."""

    layout: Literal["long", "wide"] = "long"
    """`wide`: a column per series, named after it, besides the timestamp and the past and known covariates."""
    freq: str | None = None
    """Step between rows: 15m, 1h, 1d, 1w, 1mo, 1q, 1y, 1bd (business days), 1bm (the last or first business day of a
    month) and multiples; inferred when not given."""
    weekmask: Annotated[str | None, BeforeValidator(_days_joined)] = None
    """Business days of 1bd and 1bm: sun-thu, mon-sat, or [mon,wed,fri]; Monday to Friday when not given."""
    aggregate: Literal["sum", "mean", "last"] | None = None
    """Put finer rows together to steps of data.freq; covariates by their mean (categories: the last)."""
    season_length: Annotated[int, Field(ge=1)] | None = None
    """Steps in one season (MASE, seasonal naive, seasonal inputs); from the frequency when not given."""
    time_zone: str | None = None
    """Time zone of the calendar (IANA name). Naive timestamps are read as local time of it."""
    calendar: bool = True
    """Add calendar features (hour, weekday, time of year) as known covariates."""
    holidays: str | None = None
    """Add the public holidays of a country, or of a part of it, as known covariates: US, US-NY, DE-BY."""
    holiday_names: tuple[str, ...] | None = None
    """Which of them; all that fall into the panel when not given."""
    fourier: dict[Annotated[float, Field(gt=1)], Annotated[int, Field(ge=1)]] = {}
    """Add waves of further seasons as known covariates: {168: 3} is three harmonics of a period of 168 steps."""
    lags: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Add earlier targets as past covariates: [24, 168] is the value 24 and 168 steps before."""
    rolling: tuple[Annotated[str, AfterValidator(_rolling)], ...] = ()
    """Add statistics of the latest steps as past covariates: [mean_7, std_28]."""
    columns: ColumnsConfig = ColumnsConfig()
    past_covariates: tuple[str, ...] = ()
    """Columns known up to the cutoff only, numbers or text (embedded)."""
    known_covariates: tuple[str, ...] = ()
    """Columns known over the horizon too, numbers or text (embedded): rows with a null target, or data.known_path."""
    static_covariates: tuple[str, ...] = ()
    """Columns with one value per series, numbers or text (embedded)."""

    def at(self, source: SourceConfig) -> "DataConfig":
        """Return how to read another source; how numbers and times are written stays, where it does not say so.

        Raises ConfigError for a table of covariates where there are none.
        """
        for kind in ("known", "static"):
            if getattr(source, f"{kind}_path") and not getattr(self, f"{kind}_covariates"):
                raise ConfigError(f"data.{kind}_path: there are no {kind} covariates to read from it; leave it out")
        stated = {name: value for name, value in source.model_dump().items() if name not in NOTATION or value}
        return self.model_copy(update=stated)

    def source(self) -> SourceConfig:
        """Return where the rows are, without how they are read."""
        return SourceConfig.model_construct(**{name: getattr(self, name) for name in SourceConfig.model_fields})

    def without_source(self) -> "DataConfig":
        """Return what is stored with a model or a panel: all that does not say where the rows are."""
        defaults = {name: field.default for name, field in SourceConfig.model_fields.items() if name not in NOTATION}
        return self.model_copy(update=defaults)

    @model_validator(mode="after")
    def _columns_differ(self) -> Self:
        covariates = [*self.past_covariates, *self.known_covariates, *self.static_covariates]
        named = [name for name in self.columns.model_dump().values() if name != AUTO]
        used = [*named, *covariates]
        twice = sorted({name for name in used if used.count(name) > 1})
        if twice:
            raise ValueError(f"column(s) used twice: {', '.join(twice)}")
        return self

    @field_validator("lags", "rolling")
    @classmethod
    def _no_repeats(cls, features: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(features)) < len(features):
            raise ValueError("must not repeat")
        if "std_1" in features:
            raise ValueError("std_1: one value has no spread; give std_2 or more")
        return features

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.aggregate and not self.freq:
            raise ValueError("aggregate needs freq: the step to put rows together to")
        if self.holiday_names is not None and self.holidays is None:
            raise ValueError("holiday_names needs holidays: the country")
        if self.known_path and not self.known_covariates:
            raise ValueError("known_path is given, but no known_covariates: name the columns to read from it")
        if self.static_path and not self.static_covariates:
            raise ValueError("static_path is given, but no static_covariates: name the columns to read from it")
        if self.layout == "wide" and self.static_covariates and not self.static_path:
            raise ValueError("layout=wide has no place for static_covariates; give them in a table at static_path")
        return self


def _table_given(query: str | None, info: ValidationInfo) -> str | None:
    # Not a check of the whole group: those are left out where one of its settings is wrong.
    if all(info.data.get(name, "") is None for name in ("path", "uri")):
        raise PydanticCustomError("no_table", "missing")
    return query


_Query = Annotated[str | None, Field(validate_default=True), AfterValidator(_table_given)]


class SourceTable(SourceConfig):
    """`SourceConfig` on the command line, where the table has to be named."""

    query: _Query = None
    """The SQL query that gives the table, with data.uri."""


class DataTable(DataConfig):
    """`DataConfig` on the command line, where the table has to be named."""

    query: _Query = None
    """The SQL query that gives the table, with data.uri."""


class WindowConfig(Config):
    """How much of a series a forecast sees and how far it reaches, in steps."""

    context_length: Annotated[int, Field(ge=1)] | None = None
    """Steps the model sees; when not given, two weeks of hours, eight of days, two years of weeks, months and quarters,
    at least two seasons and two horizons, as far as typical series are long enough."""
    horizon: Annotated[int, Field(ge=1)]
    """Steps it forecasts."""


COUNT_HEADS = ("poisson", "negative_binomial")
"""Those of `model.head` whose targets are whole numbers, 0 and more."""
POSITIVE_HEADS = (*COUNT_HEADS, "tweedie")
"""Those whose targets are 0 and more."""
CLASS_HEADS = ("bernoulli", "categorical")
"""Those whose targets are classes."""
_VERSION: Final = "models:/"


def is_version(name: object) -> bool:
    """Return whether a name is that of a registered version, as MLflow has it: models:/NAME@ALIAS, models:/NAME/3."""
    return isinstance(name, str) and re.fullmatch(r"models:/[^/@]+(@[^/@]+|/\d+)", name) is not None


def version_of(name: str) -> tuple[str, str]:
    """Return name and alias, or number, of a registered version.

    >>> version_of("models:/loads@champion"), version_of("models:/loads/3")
    (('loads', 'champion'), ('loads', '3'))
    """
    model, which = re.split("[@/]", name.removeprefix(_VERSION))
    return model, which


class ModelConfig(Config):
    """The network."""

    cell: Literal["lstm", "gru", "rnn"] = "lstm"
    nonlinearity: Literal["tanh", "relu"] = "tanh"
    """Of cell=rnn."""
    hidden_size: Annotated[int, Field(ge=1)] = 64
    """Units of a layer; 64, or 128 for half a million steps to train on and more, when not given."""
    num_layers: Annotated[int, Field(ge=1)] = 1
    residual: bool = False
    """Add a layer's input to its output, from the second layer on."""
    dilations: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """How many encoder steps back each layer goes on from: [1, 2, 4] for three layers; 1 when not given."""
    forget_bias: float | None = None
    """Bias that the forget gate (lstm) or update gate (gru) starts with: the higher, the longer the memory. 1 for lstm
    and as drawn for gru when not given."""
    truncate: Annotated[int, Field(ge=2)] | None = None
    """Stop gradients every so many encoder steps (truncated backpropagation); the state is carried on."""
    segment_length: Annotated[int, Field(ge=1)] | None = None
    """Steps that the encoder takes in at once; a day for steps below a day, otherwise one, when not given."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Share of units dropped between layers and before the decoder."""
    recurrent_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share dropped of the inputs of each layer, in place of dropout between layers, and of the recurrent weights: the
    same at all steps of a window."""
    decoder: Literal["direct", "segment", "autoregressive"] = "direct"
    """How the steps of the horizon follow from the encoder's state: all at once by one linear map, by a recurrent step
    for each segment of segment_length steps (SegRNN), or one after another, each told the value or class before it:
    sampled paths, whose quantiles (of classes, mean probabilities) are the forecast (DeepAR)."""
    own_samples: Share = 0.0
    """With decoder=autoregressive, the share of steps that are told a value of its own instead of the true one at the
    end of training, from none at the start (scheduled sampling). More than 0 forgives mistakes, but makes paths follow
    themselves less than the data do."""
    n_paths: Annotated[int, Field(ge=2)] = 128
    """With decoder=autoregressive, the paths that are sampled for each forecast."""
    attention: bool = False
    """Add what the encoder put out at each step of the context, weighted, to what the decoder sees of its state."""
    decoder_size: Annotated[int, Field(ge=1)] = 16
    """Features that the decoder's first stage hands to each step of the horizon."""
    embedding_size: Annotated[int, Field(ge=1)] = 8
    """Size of the embedding of each categorical covariate."""
    anchor: Literal["auto", "last", "level"] = "auto"
    """What a window is centred on: its last value, its mean, or whichever validates better."""
    skip: bool = True
    """Add the linear skip, solved in closed form; of classes, what mostly follows the latest class and that of one
    season back."""
    smoothing: bool = True
    """Let the skip begin at exponential smoothing, by filters that each series weighs, if windows have at most 160
    steps; what validates surely better takes its place. Without effect for classes."""
    head: Literal[
        "quantile", "normal", "student_t", "poisson", "negative_binomial", "tweedie", "bernoulli", "categorical"
    ] = "quantile"
    """What is forecast: quantiles of any shape, or a distribution, trained by its likelihood. poisson and
    negative_binomial are for counts, tweedie for amounts of 0 and more, bernoulli and categorical for classes (text,
    truth values or whole numbers): their probabilities are forecast."""
    tweedie_power: Annotated[float, Field(ge=1.1, le=1.9)] = 1.5
    """Of head=tweedie: the variance grows with this power of the mean."""
    transform: Literal["auto", "none", "log"] = "auto"
    """Scale of the target: as it is, or logarithmic; auto: whichever validates better, if all values are positive.
    Counts, amounts and classes (head=poisson, negative_binomial, tweedie, ...) are taken as they are."""
    quantile_levels: tuple[Level, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    init: str | None = NANO
    """A pretrained network that forecasts beside the one that is trained here, with the share that validation gives it:
    gatecast-nano, of the package; models:/NAME@ALIAS or models:/NAME/VERSION, the one in a registered version; none to
    do without. Of head=quantile; it reads the target alone."""

    @field_validator("init", mode="before")
    @classmethod
    def _is_there(cls, name: object) -> object:
        if name in (None, "none"):
            return None
        if isinstance(name, str) and name.startswith(_VERSION) and not is_version(name):
            raise ValueError(f"a version is models:/NAME@ALIAS or models:/NAME/VERSION (given: {name})")
        if name not in names() and not is_version(name):
            raise ValueError(
                f"no such pretrained network; there are {', '.join(names())}, models:/NAME@ALIAS, none (given: {name})"
            )
        return name

    @field_validator("nonlinearity", "residual", "dilations", "forget_bias", "truncate", "recurrent_dropout")
    @classmethod
    def _fits_the_cell(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse what contradicts the keys above it."""
        cell, n = info.data.get("cell"), info.data.get("num_layers")
        match info.field_name:
            case "nonlinearity" if value != "tanh" and cell in ("lstm", "gru"):
                raise ValueError(f"{value} is for cell=rnn; the gates of cell={cell} have their own")
            case "residual" if value and n == 1:
                raise ValueError("needs num_layers of 2 or more: the first layer has no sum")
            case "dilations" if value and n is not None and len(value) != n:
                raise ValueError(f"one for each of the {n} layers (num_layers); {len(value)} are given")
            case "forget_bias" if value is not None and cell == "rnn":
                raise ValueError("cell=rnn has no gates; use cell=lstm or gru")
            case "truncate" if value is not None and value <= max(info.data.get("dilations", ()), default=1):
                raise ValueError("must be more than each of the dilations: no gradient would pass through that layer")
            case "recurrent_dropout" if value and info.data.get("nonlinearity") == "relu":
                raise ValueError("nonlinearity=relu grows without bound once kept weights are scaled up")
        return value

    @field_validator("own_samples", "n_paths")
    @classmethod
    def _fits_the_decoder(cls, value: Any, info: ValidationInfo) -> Any:
        decoder = info.data.get("decoder", "autoregressive")
        if decoder != "autoregressive" and value != cls.model_fields[str(info.field_name)].default:
            raise ValueError(f"is for decoder=autoregressive; decoder={decoder} samples nothing")
        return value

    @field_validator("transform")
    @classmethod
    def _fits_the_head(cls, transform: str, info: ValidationInfo) -> str:
        head = info.data.get("head")
        if transform == "log" and head in (*POSITIVE_HEADS, *CLASS_HEADS):
            kind = "counts" if head in COUNT_HEADS else "classes" if head in CLASS_HEADS else "values"
            raise ValueError(f"head={head} is of the {kind} themselves; set transform=auto or none")
        return transform

    @field_validator("quantile_levels")
    @classmethod
    def _levels(cls, levels: tuple[float, ...]) -> tuple[float, ...]:
        if 0.5 not in levels:
            raise ValueError("must contain 0.5 (the median)")
        if list(levels) != sorted(set(levels)):
            raise ValueError("must increase, without repeats")
        return levels


class FitConfig(Config):
    """Training."""

    max_steps: Annotated[int, Field(ge=0)] = 2000
    """Optimiser steps of the panel's network; with 0 it keeps the closed-form solution. `model.init` adds the
    pretrained network to it in either case."""
    max_minutes: Annotated[float, Field(gt=0)] | None = None
    """Stop training after so many minutes, whatever max_steps says."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Windows in one step; each window gives `origins` forecasts."""
    origins: Annotated[int, Field(ge=1)] | None = None
    """Cutoffs sampled in each window: the loss is taken at all of them (forking sequences). 4 to 32 when not given, the
    fewer the longer the horizon."""
    learning_rate: Annotated[float, Field(gt=0)] = 3e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    gradient_clip: Annotated[float, Field(gt=0)] = 1.0
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.995
    """Decay of the averaged weights, the ones that are validated and kept; 0 turns averaging off."""
    validation_windows: Annotated[Windows, _windows(1)] = "auto"
    """Cutoffs per series, a horizon apart, held out from fitting; they stop it early and choose the skip's penalty.
    `auto`: as many as leave 70 % of a typical series to fit on, one to four."""
    holdout_windows: Annotated[Windows, _windows(0)] = "auto"
    """Horizons at the end of the panel that training leaves untouched, for backtests. `auto`: as many as leave, with
    those of validation, 70 % of a typical series to fit on, none to four."""
    final: bool = True
    """Fit the chosen model once more, on all rows of the panel: it forecasts from the end of the panel on, while the
    weights that have not seen the holdout are kept for backtests. It takes a tenth of max_minutes."""
    validation_every: Annotated[int, Field(ge=1)] = 100
    """Steps between validations."""
    patience: Annotated[int, Field(ge=1)] = 8
    """Validations without improvement before training stops."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: Annotated[int, Field(ge=1)] = 1
    """GPUs to train on at once, or processes on a CPU; each takes `batch_size` windows in a step."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    seed: Annotated[int, Field(ge=0)] = 0
    ensemble: Annotated[int, Field(ge=1, le=99)] = 1
    """Networks trained one after another from different seeds, each for its share of max_minutes and with all of
    max_steps; the model forecasts the mean of their quantiles (of classes, of their probabilities)."""
    init_steps: Annotated[int, Field(ge=0)] = 0
    """Steps that the pretrained network of model.init is trained for on the panel, at a low rate and for a fifth of
    max_minutes at most, before it gets its share; of that way it goes as far as validates better. 0 takes it as it
    is."""
    deterministic: bool = False
    """Only algorithms that give the same bits each time, on a GPU too, where some are slower; a CPU does so anyway."""
    checkpoint: str | None = None
    """A folder for the state of the training, written at each validation: the same command, run again after a kill,
    goes on from there, to the very same model if no clock decides. It is emptied when the training is done."""


_MODEL_NAME_LENGTH: Final = 200


def check_model_name(name: str, *, dots: bool = False) -> str:
    """Return a name of a registered model that MLflow takes for all that is named after it.

    A model, an experiment, logged models and a folder are. Raises ValueError.
    """
    refused = sorted(set(re.findall(r"""[/\\:%"'\x00-\x1f\x7f]""" if dots else r"""[/\\:.%"'\x00-\x1f\x7f]""", name)))
    if refused:
        signs = " ".join(sign if sign.isprintable() else repr(sign) for sign in refused)
        raise ValueError(f"can't contain {signs} (given: {name!r}); use letters, digits, _ and -")
    if not name.strip() or name != name.strip():
        raise ValueError(f"must not be empty, or begin or end with a space (given: {name!r})")
    if len(name.encode()) > _MODEL_NAME_LENGTH:
        raise ValueError(f"has {len(name.encode()):,} bytes, and may have {_MODEL_NAME_LENGTH}")
    return name


def _alias(alias: str) -> str:
    if not re.fullmatch(r"[\w-]{1,255}", alias):
        raise ValueError(f"must be an alias, of letters, digits, _ and -, or a version number (given: {alias!r})")
    return alias


Alias = Annotated[str, AfterValidator(_alias)]


class RegistryConfig(Config):
    """Where models and runs are kept."""

    tracking_uri: Store | None = None
    """MLflow store; MLFLOW_TRACKING_URI, or sqlite:///mlflow.db here, when not given."""
    name: str = "forecaster"
    """Registered model; one per forecaster. Without slashes, : . % and quotes; on Databricks, catalog.schema.name."""
    alias: Alias | None = None
    """Which version: pretrained, challenger, champion, or a version number."""
    tracking: Literal["required", "best_effort"] = "required"
    """What becomes of a job whose MLflow store goes away while it works: it fails (required), or what it would log is
    kept in a folder and the job goes on (best_effort); `forecast runs sync` logs it later."""
    spool: str = "unlogged"
    """With best_effort: the folder of runs that are not logged yet."""

    @field_validator("name")
    @classmethod
    def _accepted_by_mlflow(cls, name: str, info: ValidationInfo) -> str:
        given = info.data.get("tracking_uri")
        uri = given.get_secret_value() if given else os.environ.get("MLFLOW_TRACKING_URI") or ""
        return check_model_name(name, dots=uri.startswith("databricks"))


class FinetuneSettings(Config):
    """Fine-tuning and its gate."""

    kind: Literal["head", "bias", "embedding", "lora", "full", "global"] = "head"
    """What is changed for each series: `head`: a linear map to the horizon, in closed form; by gradient `bias`: the
    network's numbers of each step, `embedding`: a vector that the decoder sees, `lora`: a low-rank change of the
    recurrent weights (of the pretrained network, of all matrices), `full`: all weights. `global`: all weights, for all
    series alike."""
    series: tuple[str, ...] | None = None
    """Ids of the series to fine-tune; the others keep what they have. All when not given."""
    where: str | None = None
    """Which series to fine-tune, as an SQL condition on series_id and the static covariates: "city = 'oslo'"."""
    worst: Annotated[float, Field(gt=0)] | None = None
    """Fine-tune those that the base forecasts worst on their gate windows: a share of them below 1, else how many."""
    incremental: bool = False
    """Go on from a fine-tuned version: only series whose data has changed since then are fine-tuned, again."""
    origins: Annotated[int, Field(ge=8)] = 512
    """Latest steps of each series that are fitted on: each is a cutoff, or one in about half a horizon with
    kind=head, whose accuracy loses nothing by it."""
    half_life: Annotated[float, Field(gt=0)] | None = None
    """Steps after which a cutoff weighs half as much; all weigh the same when not given."""
    steps: Annotated[int, Field(ge=0)] | None = None
    """Of the kinds by gradient, the most that a series takes (60 when not given); of `global`, in all (500)."""
    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    """Of the kinds by gradient, the rates that each series chooses from; by the kind when not given. `global` takes
    the first."""
    batch_size: Annotated[int, Field(ge=1)] | None = None
    """Of `lora` and `full`, windows of each series in one step (4 when not given); of `global`, in all (16)."""
    rank: Annotated[int, Field(ge=1)] = 4
    """Of `lora`, the rank of the changes."""
    gate_windows: Annotated[Windows, _windows(2)] = "auto"
    """Held-out cutoffs per series, one horizon apart, that choose its strength. `auto`: as many as leave 70 % of a
    typical series to fit on, two to four."""
    report_windows: Annotated[Windows, _windows(1)] = "auto"
    """Latest cutoffs, seen by neither fitting nor gating, on which the uplift is reported. `auto`: two, or one of short
    series."""
    holdout_windows: Annotated[Windows, _windows(0)] = "auto"
    """Horizons at the end of the panel that are left untouched, for backtests. `auto`: those that the base has not
    seen, four at most."""
    gate: Literal["pooled", "strict"] = "pooled"
    """Which series leave the base. `pooled`: those whose gain on the gate windows, shrunk to what all series of the
    panel gain there, is worth its risk. `strict`: each by its own windows alone. `strict` as well when not given and
    `min_gain` or `min_windows_better` is."""
    max_harm: Annotated[float, Field(gt=0.0, le=0.5)] = 0.1
    """With `gate=pooled`, the largest probability that a change makes a series worse."""
    min_gain: Share = 0.05
    """With `gate=strict`, the share by which a series must improve on its gate windows to leave the base."""
    min_windows_better: Share = 1.0
    """With `gate=strict`, the share of its gate windows with an observation on which it must improve; at least half of
    them need one."""
    blend: Share = 0.5
    """Weight of the tuned forecast (of the kinds by gradient, of the changes) where the gate lets it in, at most; the
    rest is the base. With `gate=pooled`, half of it is tried as well."""
    final: bool = True
    """Fit what is kept once more, on all rows of the panel, beside the final weights of the base: these changes
    forecast from the end of the panel on. The others are kept for backtests."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    checkpoint: str | None = None
    """A folder for what is done: the same command, run again after a kill, goes on with the next group of series. It
    is emptied when all are done."""

    @model_validator(mode="before")
    @classmethod
    def _gate_of_bounds(cls, values: Any) -> Any:
        """Fill in the gate whose bounds are set: the settings of versions from before there was another one."""
        strict = (
            isinstance(values, dict) and "gate" not in values and values.keys() & {"min_gain", "min_windows_better"}
        )
        return values | {"gate": "strict"} if strict else values

    @model_validator(mode="after")
    def _bounds_of_gate(self) -> Self:
        fields = type(self).model_fields
        idle = [name for name in ("min_gain", "min_windows_better") if getattr(self, name) != fields[name].default]
        if self.gate == "pooled" and idle:
            raise ValueError(f"gate=pooled does not look at {' and '.join(idle)}: set gate=strict, or leave it out")
        return self

    @field_validator("series", "learning_rates")
    @classmethod
    def _not_empty(cls, values: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        if values is not None and not values:
            raise ValueError("must name one at least; leave it out (null) for all")
        return values

    @field_validator("worst")
    @classmethod
    def _whole(cls, worst: float | None) -> float | None:
        if worst is not None and worst > 1 and worst % 1:
            raise ValueError("must be a share below 1, or a whole number of series")
        return worst

    @field_validator("incremental")
    @classmethod
    def _of_series(cls, incremental: bool, info: ValidationInfo) -> bool:
        if incremental and info.data.get("kind") == "global":
            raise ValueError("kind=global has no series of its own to go on from; fine-tune its version again")
        return incremental


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


class BacktestSettings(Config):
    """Rolling origins."""

    cutoffs: Cutoffs | None = None
    """Last timestamps that forecasts see: a list, or a range FIRST..LAST/STEP such as 2013-11-01..2013-12-01/1d. The
    latest n_windows that have a full horizon behind them when not given."""
    n_windows: Annotated[int, Field(ge=1)] | None = None
    """How many cutoffs; when not given 4, or as many of them as the model has not seen."""
    step_size: Annotated[int, Field(ge=1)] | None = None
    """Steps between them; the horizon when not given."""
    window: Literal["expanding", "sliding"] = "expanding"
    """What is seen before a cutoff: all of the history, or its last window_length steps."""
    window_length: Annotated[int | None, Field(ge=1, validate_default=True)] = None
    """Steps that are seen with window=sliding: at least the sum of the context length and the horizon."""
    refit: Literal["never", "finetune", "scratch"] = "never"
    """Judge the version as it is; or, at each cutoff, one that is fine-tuned from its base (finetune) or trained anew
    with its data, window and model (scratch, and fine-tuned if the version is) on what is seen there."""
    refit_every: Annotated[int, Field(ge=1)] | None = None
    """Refit at every so many cutoffs only; at each one when not given."""
    fit: FitConfig = FitConfig()
    """Of refit=scratch: how to train. Nothing is held out for backtests: the data end at the cutoff."""
    finetune: FinetuneSettings = FinetuneSettings()
    """Of refit: how to fine-tune, likewise."""
    one_pass: bool = False
    """Let one pass of the encoder over the history serve all cutoffs. It has then seen the whole history, as with
    score.state, and not the context alone."""
    segments: tuple[str, ...] = ()
    """Also score groups of series: by static covariates, by length, volume (thirds of the series) or intermittency."""
    baselines: tuple[Literal["naive", "seasonal_naive", "auto_ets", "dynamic_optimized_theta"], ...] = (
        "naive",
        "seasonal_naive",
    )
    """What the models are compared with. auto_ets and dynamic_optimized_theta are fitted to each series at each cutoff
    (gatecast[baselines])."""
    baseline_history: Annotated[int, Field(ge=2)] = 500
    """Latest steps that those two are fitted to, at most."""
    n_jobs: Annotated[int, Field(ge=1)] = 1
    """Processes that fit them."""

    @field_validator(
        "n_windows", "step_size", "window_length", "refit_every", "fit", "finetune", "one_pass", "segments", "baselines"
    )
    @classmethod
    def _fits_together(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse what contradicts the keys above it."""
        given, name = info.data, str(info.field_name)
        refit = given.get("refit", "scratch")
        changed = name in ("fit", "finetune") and value != cls.model_fields[name].default
        match name:
            case "n_windows" | "step_size" if value is not None and given.get("cutoffs") is not None:
                raise ValueError("cutoffs are given, which say it all; leave one of the two out")
            case "window_length" if value is None and given.get("window") == "sliding":
                raise ValueError("missing; window=sliding needs the number of steps that are seen")
            case "window_length" if value is not None and given.get("window") == "expanding":
                raise ValueError("is for window=sliding; window=expanding sees all of the history")
            case "refit_every" if value is not None and refit == "never":
                raise ValueError("refit=never has no refits; set refit=finetune or refit=scratch, or leave it out")
            case "fit" if changed and refit != "scratch":
                raise ValueError(f"is for refit=scratch (given: refit={refit})")
            case "finetune" if changed and refit == "never":
                raise ValueError("is for refit=finetune and refit=scratch (given: refit=never)")
            case "fit" | "finetune" if value.checkpoint is not None:
                raise ValueError("checkpoint can't be gone on from: every refit is a training of its own; leave it out")
            case "one_pass" if value and (refit != "never" or given.get("window") != "expanding"):
                raise ValueError("needs refit=never and window=expanding: one model, which has seen the whole history")
            case "segments" | "baselines" if len(set(value)) < len(value):
                raise ValueError("must not repeat")
            case "baselines" if "seasonal_naive" not in value:
                raise ValueError("must hold seasonal_naive: promotions are decided against it")
        return value


class CalibrateSettings(Config):
    """Intervals that cover what they say."""

    method: Literal["split", "adaptive"] = "split"
    """One shift of each quantile for all series, or shifts of each series that follow its misses over time."""
    n_windows: Annotated[int, Field(ge=1)] = 16
    """Cutoffs after those that the model has seen, at most."""
    step_size: Annotated[int, Field(ge=1)] | None = None
    """Steps between cutoffs; a quarter of the horizon when not given."""
    check_windows: Annotated[int, Field(ge=0)] = 1
    """The last of them tell what is won, before the calibration is made from all."""
    shrink: bool = True
    """Shift by less where cutoffs do not agree: what one period was like, the next may not be."""
    holdout_windows: Annotated[int, Field(ge=0)] = 1
    """Horizons at the end of the table that are left for a backtest."""


class DistilSettings(Config):
    """A smaller network that forecasts like a larger one."""

    hidden_size: Annotated[int, Field(ge=1)] | None = None
    """Width of the student's recurrent layers; a quarter of the teacher's when not given."""
    num_layers: Annotated[int, Field(ge=1)] = 1
    weight: Share = 0.5
    """Share of the loss that is against the teacher's quantiles; the rest is against what came."""
    n_windows: Annotated[int, Field(ge=1)] | None = None
    """Held-out cutoffs, a horizon apart, on which both are compared; when not given 4, or as many as neither has
    seen."""


class ExplainSettings(Config):
    """What a forecast is made of."""

    series: str
    """The id of the series whose forecast is explained."""
    cutoff: datetime | None = None
    """Last timestamp the forecast may see; the latest of the panel when not given."""
    method: Literal["auto", "integrated_gradients", "occlusion"] = "auto"
    """Gradients on the way from a baseline, whose parts sum to the forecast (gatecast[explain]); or what is forecast
    without an input, from forecasts alone. auto: gradients where the forecast has one."""
    level: float | Literal["mean"] = 0.5
    """The quantile that is explained, one of the model's, or the mean."""
    step: Annotated[int, Field(ge=1)] | None = None
    """The step of the horizon; the mean over all steps when not given."""
    n_steps: Annotated[int, Field(ge=8)] = 64
    """Points of the way from the baseline at which integrated gradients are taken."""
    n_references: Annotated[int, Field(ge=1)] = 32
    """Windows of the panel whose covariates are the baseline, on average."""
    block: Annotated[int, Field(ge=1)] | None = None
    """Steps of the target that occlusion hides together; about 24 blocks when not given."""


class ReconcileSettings(Config):
    """Forecasts that add up."""

    by: Annotated[tuple[str | tuple[str, ...], ...], Field(min_length=1)]
    """Columns whose values are summed up to: [state,store] for levels below each other, [[state],[brand]] for those
    that cross. There is a total, too."""
    method: Literal["bottom_up", "top_down", "middle_out", "ols", "wls_struct", "mint_shrink"] = "bottom_up"
    """bottom_up needs forecasts of the series alone; the others of all sums too (gatecast[reconcile])."""
    middle: str | None = None
    """Of middle_out, the level that stays as it is: a column, or several of them as state/store."""
    missing: Literal["fail", "drop"] = "fail"
    """Series of the hierarchy without a forecast: stop, or leave them out of the sums (bottom_up)."""
    tolerance: Annotated[float, Field(ge=0)] = 1e-6
    """The share of a sum that it may be off the sum of its series."""


class ReconcileSource(ReconcileSettings):
    """Scored forecasts, and where their hierarchy is."""

    path: str
    """The folder that `forecast score` has written to."""
    table: str
    """A table with series_id and the columns of reconcile.by: that of the static covariates, or the panel."""
    cutoff: datetime | None = None
    """Which of its forecasts; the latest when not given."""
    actuals: str | None = None
    """A table with series_id, timestamp and target: the errors of earlier cutoffs in reconcile.path tell how series
    hang together, which mint_shrink needs, and the intervals of sums should have."""


class OutputConfig(Config):
    """Where results are written."""

    path: str | None = None
    """A folder; it is made if it does not exist."""


class OutputFolder(OutputConfig):
    """`OutputConfig` where the folder has to be named."""

    path: str
    """A folder; it is made if it does not exist."""


def table_names(table: str) -> tuple[str, str, str]:
    """Return the tables of output.sink=sql: forecasts, rejects, manifests."""
    return table, f"{table}_rejects", f"{table}_manifests"


class SinkConfig(OutputFolder):
    """Where forecasts and rejects are."""

    sink: Literal["parquet", "delta", "sql"] = "parquet"
    """Parquet files or Delta Lake tables in output.path, or the database at output.uri."""
    uri: Secret | None = None
    """The database of output.sink=sql: postgresql://user@host/db (password from PGPASSWORD) or sqlite:///file.db."""
    table: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,50}$")] = "forecasts"
    """Its table; rejects and manifests go to tables of this name with _rejects and _manifests behind it, and a view
    with _latest shows the latest cutoff of each model. They are made if they do not exist."""

    @model_validator(mode="after")
    def _fits_the_sink(self) -> Self:
        if (self.sink == "sql") != (self.uri is not None):
            raise ValueError("sink=sql and uri go together: sink=sql uri=postgresql://user@host/db")
        return self


class ScoreOutput(SinkConfig):
    """`SinkConfig`, and what is done to forecasts on the way there."""

    min: float | None = None
    """Raise lower forecasts to this value, and count them."""
    max: float | None = None
    """Lower higher forecasts to this value, and count them."""
    n_samples: Annotated[int, Field(ge=0, le=1000)] = 0
    """Sample paths written with each forecast, as columns sample_000, sample_001, ...: possible futures, whose steps
    depend on each other as those of the errors did in validation."""
    latest: bool = True
    """Keep the forecasts of the latest cutoff in latest/MODEL.parquet of output.path too, for tools that read one file.
    output.sink=sql has a view instead."""

    @model_validator(mode="after")
    def _bounds_in_order(self) -> Self:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min={self.min:g} is above max={self.max:g}")
        return self


class ScoreSettings(Config):
    """Batch scoring."""

    cutoff: datetime | None = None
    """Last timestamp the forecast may see; the latest of the panel when not given."""
    cutoffs: Cutoffs | None = None
    """Many of them, in one job: a list, or a range FIRST..LAST/STEP such as 2013-11-01..2013-12-01/1d."""
    shard_size: Annotated[int, Field(ge=1)] | None = None
    """Series that are forecast and written at a time; as many as give about 65,000 rows when not given."""
    missing_known: Literal["mask", "fail", "quarantine", "carry_forward"] = "mask"
    """Known covariates that are missing over the horizon: tell the model so, stop, reject these series, or take the
    last value before."""
    state: str | None = None
    """A folder for what the encoder has seen of each series, to go on from at the next cutoff instead of reading the
    context again. It has then seen the whole history, not the context alone."""
    runtime: Literal["torch", "onnx", "auto"] = "torch"
    """What runs the network: torch, ONNX Runtime (gatecast[onnx]), or the one that takes less time here, if both can;
    that is measured once for each model and output.path, and remembered there."""
    force: bool = False
    """Forecast and write cutoffs that are done already, too."""
    min_model_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Least share of the forecast series that the model must speak for: the others are seasonal naive or last values. A
    cutoff with fewer fails, and so does one in which it speaks for no series, whatever this is; what was written for it
    before stays."""
    shadow: Alias | None = None
    """A second version that forecasts, too, for `forecast monitor` to compare: an alias, a number, or previous, the one
    that the champion replaced. Its forecasts are in the folder shadow of output.path, in Parquet files."""
    shadow_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the series that it forecasts, chosen by a hash of their ids: at every cutoff the same."""
    max_age: MaxAge = AUTO
    """Greatest age of a series, from its last observation to the cutoff: steps, or a duration such as 90d or 6mo. An
    older one has ended: it is a reject, and has no forecast. auto: the context length of the model; none: any age."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.cutoff is not None and self.cutoffs is not None:
            raise ValueError("cutoff and cutoffs are both given; cutoffs=[...] takes all of them")
        if self.state is not None and self.runtime == "onnx":
            raise ValueError("state and runtime=onnx are both given; an ONNX graph has no state to go on from")
        return self


class ServingSettings(Config):
    """Parameters of a request to a served model; MLflow passes each as text."""

    rejects: Literal["include", "omit", "fail"] = "include"
    """Rejected rows and series: rows with a reason behind the forecasts, nothing, or an error."""
    max_age: MaxAge = AUTO
    """As score.max_age."""


class VerbConfig(Config):
    """What every verb on the registry has."""

    registry: RegistryConfig = RegistryConfig()


class LedgerConfig(Config):
    """Where it is written down what ran."""

    uri: Secret | None = None
    """The database of the run ledger: sqlite:///file.db or postgresql://user@host/db (password from PGPASSWORD);
    GATECAST_LEDGER, or sqlite:///gatecast.db here, when not given."""


class JobConfig(VerbConfig):
    """What every verb has that is written into the ledger."""

    ledger: LedgerConfig = LedgerConfig()


class FitSettings(Config):
    """Training on a frame that is passed, in Python."""

    data: DataConfig = DataConfig()
    window: WindowConfig
    model: ModelConfig = ModelConfig()
    fit: FitConfig = FitConfig()


class TrainConfig(JobConfig):
    """`forecast train`."""

    data: DataTable
    window: WindowConfig
    model: ModelConfig = ModelConfig()
    fit: FitConfig = FitConfig()


_SPACE: Final[dict[str, Any]] = {
    "model": {
        "cell": ["lstm", "gru"],
        "hidden_size": [32, 64, 128],
        "decoder_size": [8, 16, 32],
        "dropout": {"low": 0.0, "high": 0.3},
    },
    "fit": {"learning_rate": {"low": 1e-3, "high": 2e-2}, "batch_size": [8, 16, 32, 64]},
}


class TuneSettings(Config):
    """The search for settings."""

    n_trials: Annotated[int, Field(ge=1)] = 20
    """Trainings, the first with the settings as given; those of a search that is gone on with count."""
    metric: Literal["wql", "mase"] = "wql"
    """What is to be small on the validation windows; of classes it is the log-loss."""
    space: dict[str, Any] = _SPACE
    """What is drawn, in the groups window, model and fit: a list to choose from, or low, high (and log) of a range. A
    space that is given takes the place of this one."""
    reduction: Annotated[int, Field(ge=2)] = 3
    """Of the trials that came to a rung, one in so many goes on; the next rung is so many times further."""
    first_rung: Annotated[int, Field(ge=1)] | None = None
    """Steps of training up to the first rung; fit.validation_every when not given."""


class TuneConfig(TrainConfig):
    """`forecast tune`: the settings of `forecast train`, and what is searched."""

    tune: TuneSettings = TuneSettings()
    output: OutputFolder


class PretrainSettings(Config):
    """A network for any series, trained on synthetic ones."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")] = "nano"
    """Name of the checkpoint, with its version: small letters, digits, dots and dashes."""
    cell: Literal["lstm", "gru"] = "lstm"
    hidden_size: Annotated[int, Field(ge=1)] = 160
    num_layers: Annotated[int, Field(ge=1)] = 2
    steps: Annotated[int, Field(ge=1)] = 100_000
    """Optimiser steps in all. A run with more of them in the same folder goes on from before its learning rate fell."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Series in one step."""
    origins: Annotated[int, Field(ge=1)] = 8
    """Cutoffs in each series at which the loss is taken, at most."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    """It rises for 300 steps, stays, and falls to 0 in the last fifth of the steps."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the first weights and of the stream of series."""
    every: Annotated[int, Field(ge=1)] = 500
    """Steps between validations on series that are held out; the state is written then, to go on from after a kill."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"


class PretrainConfig(JobConfig):
    """`forecast pretrain`."""

    pretrain: PretrainSettings = PretrainSettings()
    output: OutputFolder


class HorizonConfig(Config):
    """How far forecasts may reach."""

    horizon: Annotated[int, Field(ge=1)]
    """Steps for which known covariates are kept after the end of a series; a model's horizon may be shorter."""


class PrepareSettings(Config):
    """Prepared panels."""

    chunk_rows: Annotated[int, Field(ge=1)] = 10_000_000
    """Rows in memory at a time, about."""


class PrepareConfig(JobConfig):
    """`forecast data prepare`."""

    data: DataTable
    window: HorizonConfig
    prepare: PrepareSettings = PrepareSettings()
    output: OutputFolder


class AppendSettings(Config):
    """New rows for a prepared panel."""

    revisions: Literal["accept", "refuse", "fail"] = "accept"
    """What to do with values that differ from those of the panel: take them over, reject them, or stop."""


class AppendConfig(JobConfig):
    """`forecast data append`: `output.path` is the prepared panel, `data` the table with the new rows."""

    data: SourceTable
    append: AppendSettings = AppendSettings()
    output: OutputFolder


class ProfileSettings(Config):
    """What is looked for in a panel."""

    max_age: MaxAge = AUTO
    """Age beyond which a series has ended, as score.max_age; auto: the context that a model has by default."""


class ProfileConfig(VerbConfig):
    """`forecast data profile`."""

    data: DataTable
    profile: ProfileSettings = ProfileSettings()
    output: OutputConfig = OutputConfig()


class FinetuneConfig(JobConfig):
    """`forecast finetune`: `registry.alias` is the base."""

    data: SourceTable
    finetune: FinetuneSettings = FinetuneSettings()


class BacktestConfig(JobConfig):
    """`forecast backtest`: `registry.alias` is the version to judge."""

    data: SourceTable
    backtest: BacktestSettings = BacktestSettings()
    output: OutputConfig = OutputConfig()


class CalibrateConfig(JobConfig):
    """`forecast calibrate`: `registry.alias` is the version to calibrate."""

    data: SourceTable
    calibrate: CalibrateSettings = CalibrateSettings()
    output: OutputConfig = OutputConfig()


class DistilConfig(JobConfig):
    """`forecast distil`: `registry.alias` is the teacher."""

    data: SourceTable
    distil: DistilSettings = DistilSettings()
    fit: FitConfig = FitConfig()
    output: OutputConfig = OutputConfig()


class ExplainConfig(JobConfig):
    """`forecast explain`: `registry.alias` is the version that forecasts."""

    data: SourceTable
    explain: ExplainSettings
    output: OutputConfig = OutputConfig()


class ReconcileConfig(JobConfig):
    """`forecast reconcile`: of models, it needs only the forecasts."""

    reconcile: ReconcileSource
    output: OutputFolder


class PromoteSettings(Config):
    """What may become champion."""

    force: bool = False
    """Promote the version even if the gate refuses it: whatever its backtest says, without one, or rolled back
    before. Why it was refused becomes the tag `forced` of the version."""


class PromoteConfig(JobConfig):
    """`forecast promote`: challenger against champion, from their backtests."""

    promote: PromoteSettings = PromoteSettings()


class RefreshConfig(JobConfig):
    """`forecast refresh`: fine-tune, backtest and promote in one go. `registry.alias` is the base."""

    data: SourceTable
    finetune: FinetuneSettings = FinetuneSettings()
    backtest: BacktestSettings = BacktestSettings()


def _given_below(key: str, value: Any, usual: Any) -> list[str]:
    """Return the settings below a key that have another value than the usual one."""
    if not isinstance(value, Mapping):
        return [] if value == usual or (value == () and usual == []) else [key]
    defaults = usual if isinstance(usual, Mapping) else {}
    return [f"{key}.{name}" for below, each in value.items() for name in _given_below(below, each, defaults.get(below))]


class ScoreTable(DataTable):
    """`SourceTable`, and how a pretrained network of the package reads it; a registered model reads as in training."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        """Which tables of covariates there may be, a registered model knows; a pretrained network reads none."""
        return self


class ScoreWindow(Config):
    """How far a pretrained network of the package forecasts; a registered model has its own window."""

    horizon: Annotated[int, Field(ge=1)] | None = None
    """Steps it forecasts, with registry.alias=gatecast-nano."""


class ScoreConfig(JobConfig):
    """`forecast score`: `registry.alias` is the version that forecasts.

    Or a pretrained network of the package, gatecast-nano, which needs no registry: then `data` says how to read the
    table, as in training, and `window.horizon` how far to forecast.
    """

    data: ScoreTable
    window: ScoreWindow = ScoreWindow()
    score: ScoreSettings = ScoreSettings()
    output: ScoreOutput

    @property
    def is_builtin(self) -> bool:
        """Whether a pretrained network of the package forecasts."""
        return self.registry.alias in names()

    @field_validator("data", "window", mode="before")
    @classmethod
    def _of_a_pretrained_network(cls, group: Any, info: ValidationInfo) -> Any:
        """Refuse what a registered model has brought from its training."""
        if isinstance(group, Mapping) and "registry" in info.data and info.data["registry"].alias not in names():
            usual = DataConfig().without_source().model_dump(mode="json") | {"horizon": None}
            own = usual.keys() - SourceTable.model_fields.keys()
            fixed = [name for key in own & set(group) for name in _given_below(key, group[key], usual[key])]
            if fixed:
                raise PydanticCustomError("fixed_by_model", "fixed", {"keys": sorted(fixed)})
        return group

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if self.is_builtin and self.window.horizon is None:
            raise ValueError(f"window.horizon: missing; give the steps that {self.registry.alias} forecasts")
        if self.is_builtin and (self.score.state is not None or self.score.shadow is not None):
            raise ValueError("score.state and score.shadow are for registered models; `forecast models add` makes one")
        return self

    @model_validator(mode="after")
    def _two_folders(self) -> Self:
        if self.score.state is not None and Path(self.score.state).resolve() == Path(self.output.path).resolve():
            raise ValueError("score.state and output.path are the same folder; give each its own")
        return self


class AlarmSettings(Config):
    """When a series stands out."""

    ratio: Annotated[float, Field(ge=1)] = 1.5
    """Its recent MASE is so many times the median of its reference, ..."""
    deviations: Annotated[float, Field(ge=0)] = 4.0
    """... and above that median by so many robust deviations (1.4826 times the median absolute deviation)."""
    least: Annotated[float, Field(ge=0)] = 0.5
    """... and more than this: below, it is good whatever it was before."""
    min_periods: Annotated[int, Field(ge=2)] = 4
    """Days of its own history, with forecasts as old as the recent ones, that make a reference; a series with fewer is
    compared with its backtest."""
    min_steps: Annotated[int, Field(ge=1)] = 3
    """Observed recent steps that a series needs."""


class ThresholdSettings(Config):
    """What is a breach, in the recent window."""

    max_wql_naive: Annotated[float, Field(gt=0)] | None = 1.0
    """WQL over that of seasonal naive on the same steps."""
    max_wql_backtest: Annotated[float, Field(gt=0)] | None = None
    """WQL over that in the backtest of the version."""
    max_mase: Annotated[float, Field(gt=0)] | None = None
    min_coverage_80: Share | None = 0.65
    """Share of the observations inside the 80 % interval, if there is one. What may be below 80 % by chance is no
    breach; nothing is, of one series."""
    min_coverage: Share | None = None
    """Share of the observations inside the widest interval."""
    max_coverage: Share | None = None
    max_psi: Annotated[float, Field(gt=0)] | None = None
    """Population stability index of the target or a covariate: 0.1 is a little drift, 0.25 a lot. What it may reach by
    chance is no breach."""
    max_missing: Share | None = None
    """By how much the share of missing values of a column grew."""
    max_unseen: Share | None = None
    """Share of the values of a column that training has not seen."""
    max_alarmed: Share | None = 0.1
    """Share of the judged series that have an alarm."""
    min_judged: Share | None = 0.5
    """Share of the series that are judged: held against their history or their backtest."""
    max_scores_age: MaxAge = AUTO
    """Age of the latest scores, from their cutoff to the clock (monitor.as_of, or now): steps, or a duration such as
    36h or 10d. auto: three days or two steps, the longer one, and the usual gap between cutoffs but one step; none: any
    age."""
    max_observations_age: MaxAge = AUTO
    """Age of the latest observations on the same clock. auto: likewise."""
    max_scores_lag: MaxAge = AUTO
    """Age of the latest scores when the latest observations were made: how far scoring is behind the table. auto: two
    usual gaps between cutoffs but one step, and no more than for max_scores_age."""

    @model_validator(mode="after")
    def _a_band(self) -> Self:
        low, high = self.min_coverage, self.max_coverage
        if low is not None and high is not None and low >= high:
            raise ValueError(
                f"min_coverage={low:g} is not below max_coverage={high:g}: every coverage would be a breach"
            )
        return self


def _words(given: Any) -> Any:
    """Return the words of a text; a list as it is."""
    return shlex.split(given) if isinstance(given, str) else given


class MonitorSettings(Config):
    """Forecasts against what came."""

    as_of: datetime | None = None
    """Last timestamp that is looked at, as if it were now; the latest of the panel when not given."""
    recent: Annotated[int, Field(ge=1)] | None = None
    """Steps up to as_of that are judged. When not given, a season (a week at most) or a horizon, the longer one; of
    weeks, months and longer steps the last four."""
    history: Annotated[int, Field(ge=1)] | None = None
    """Steps before these that they are compared with; four times as many when not given."""
    ages: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    """Last steps of the groups of forecast ages: [24, 72, 168] is 1-24, 25-72 and 73-168. Quarters when not given."""
    segments: tuple[str, ...] | None = None
    """Static covariates that series are grouped by; all of the model's when not given, and where it has none length,
    volume and kind of demand."""
    by: Literal["day", "cutoff"] = "day"
    """Accuracy over time is that of the steps of each day, or of the forecasts of each cutoff."""
    min_steps: Annotated[int, Field(ge=1)] = 30
    """Observed recent steps, of all series, below which no threshold is judged; nor is one with observations of fewer
    than `monitor.alarms.min_steps` times, however many series these are of."""
    alarms: AlarmSettings = AlarmSettings()
    thresholds: ThresholdSettings = ThresholdSettings()
    keep: Annotated[int, Field(ge=1)] | None = 100
    """Days of which output.path keeps pages and tables, the latest ones; the runs in MLflow stay. null: all."""
    on_breach: str | None = None
    """A verb to start after a breach, once for each as_of: refresh, finetune, ..."""
    on_breach_overrides: Annotated[tuple[str, ...], BeforeValidator(_words)] = ()
    """Its settings, besides registry.name: 'data.path=panel finetune.kind=bias'."""
    rollback: bool = False
    """Give the champion's alias back to the version it replaced, if that is the shadow and better."""
    rollback_p: Annotated[float, Field(gt=0, le=0.5)] = 0.01
    """Significance that it takes: one-sided paired test over cutoffs, which knows that series share their dates and
    that targets of close cutoffs overlap."""
    rollback_blocks: Annotated[int, Field(ge=4)] = 6
    """Stretches of time, of a day at least and without an observed step in common, that it takes. Where whole horizons
    are fewer, only the first steps after each cutoff are compared."""
    rollback_min: Annotated[int, Field(ge=2)] = 10
    """Forecasts (of a series at a cutoff) by both, with observations since, that it takes."""

    @field_validator("ages")
    @classmethod
    def _increasing(cls, ages: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if ages is not None and (not ages or list(ages) != sorted(set(ages))):
            raise ValueError("must increase, without repeats")
        return ages

    @model_validator(mode="after")
    def _starts_something(self) -> Self:
        if self.on_breach_overrides and self.on_breach is None:
            raise ValueError("on_breach_overrides needs on_breach: the verb that they are for")
        return self


class MonitorConfig(JobConfig):
    """`forecast monitor`: `registry.alias` is the version whose forecasts are looked at."""

    data: SourceTable
    scores: SinkConfig
    monitor: MonitorSettings = MonitorSettings()
    output: OutputFolder

    @model_validator(mode="after")
    def _one_end(self) -> Self:
        if self.monitor.as_of is not None and self.data.until is not None:
            raise ValueError("monitor.as_of and data.until are both given; monitor.as_of hides what is later")
        if Path(self.scores.path).resolve() == Path(self.output.path).resolve():
            raise ValueError("scores.path and output.path are the same folder; give each its own")
        return self


class ShowSettings(Config):
    """Which forecasts are shown."""

    cutoff: datetime | None = None
    """Those from this cutoff; without a time zone, local time of the panel. The latest when not given."""
    model: str | None = None
    """Those of this registered model; of all when not given."""
    series: tuple[str, ...] | None = None
    """Those of these series; of all when not given."""
    every: bool = False
    """Every version that has forecast the cutoff, not only the one that scored last."""
    rows: Annotated[int, Field(ge=0)] = 24
    """So many rows are printed."""
    file: str | None = None
    """A file that all rows are written to: .parquet or .csv."""

    @field_validator("file")
    @classmethod
    def _known_kind(cls, file: str | None) -> str | None:
        if file is not None and Path(file).suffix not in (".parquet", ".csv"):
            raise ValueError(f"must end with .parquet or .csv (given: {file!r})")
        return file


class ScoresConfig(Config):
    """`forecast scores list`, `show` and `upgrade`: `scores` are the settings that `output` had."""

    scores: SinkConfig
    show: ShowSettings = ShowSettings()


class ReplaySettings(Config):
    """Weeks of nightly work."""

    days: Annotated[int, Field(ge=14, le=110)] = 60
    """Days that are replayed, from 9 September 2013 on."""


class ReplayConfig(Config):
    """`forecast replay`."""

    replay: ReplaySettings = ReplaySettings()
    output: OutputFolder


class ModelsConfig(VerbConfig):
    """`forecast models list` and `show`: `registry.alias` is the version to show."""


class DiffSettings(Config):
    """What a version is compared with."""

    against: Alias
    """The other version: an alias or a number."""
    rows: Annotated[int, Field(ge=0)] = 20
    """Series that are printed, the largest changes first."""


class DiffConfig(VerbConfig):
    """`forecast models diff`: `registry.alias` is the one version."""

    diff: DiffSettings
    output: OutputConfig = OutputConfig()


class RollbackSettings(Config):
    """What is taken back."""

    series: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Ids of series that forecast with the base again, in a new version of registry.alias (the champion when not
    given). The champion as a whole when not given."""
    to: Alias | None = None
    """The version to return to, any earlier champion; the one before the champion that was not rolled back itself when
    not given."""

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.series is not None and self.to is not None:
            raise ValueError(
                "rollback.to takes the champion back, rollback.series makes a new version; give one of both"
            )
        return self


class RollbackConfig(JobConfig):
    """`forecast models rollback`."""

    rollback: RollbackSettings = RollbackSettings()


class ExportSettings(Config):
    """What is exported of a version."""

    series: str | None = None
    """The id of a series that is fine-tuned: a model that forecasts like it alone. All when not given."""
    format: Literal["gatecast", "onnx", "onnx_int8"] = "gatecast"
    """`onnx` (gatecast[onnx]): its files, the network as model.onnx, and what is needed around that in onnx.json.
    `onnx_int8`: the same with weights of 8 bits, and what that costs."""


class ExportConfig(VerbConfig):
    """`forecast models export`: `registry.alias` is the version; `data` is what 8 bits are judged on."""

    data: SourceConfig = SourceConfig()
    export: ExportSettings = ExportSettings()
    output: OutputFolder


class SourceFolder(Config):
    """A model in a folder."""

    path: str
    """The folder that a job left whose model could not be registered, or one of `forecast models export`."""


class RegisterConfig(JobConfig):
    """`forecast models register`: `registry.alias` is what the version is called, as its job would have when not given.

    The champion is made by `forecast promote` alone.
    """

    source: SourceFolder

    @field_validator("registry")
    @classmethod
    def _new_alias(cls, registry: RegistryConfig) -> RegistryConfig:
        alias = registry.alias or ""
        if alias.lower() in (CHAMPION, "latest") or re.fullmatch(r"[vV]?\d+", alias):
            raise ValueError(f"alias {alias!r} can't be given to a version here: leave it out, or choose another one")
        return registry


class AddSettings(Config):
    """What is added."""

    checkpoint: str = NANO
    """The pretrained network of the package: gatecast-nano, or one version of it, gatecast-nano-1."""

    @field_validator("checkpoint")
    @classmethod
    def _is_there(cls, name: str) -> str:
        if name not in names():
            raise ValueError(f"no such pretrained network; there are {', '.join(names())} (given: {name})")
        return name


class AddConfig(JobConfig):
    """`forecast models add`: register a pretrained network of the package for the series of a table."""

    data: DataTable
    window: WindowConfig
    model: ModelConfig = ModelConfig()
    """`quantile_levels` alone counts."""
    add: AddSettings = AddSettings()


class DeleteSettings(Config):
    """What is deleted."""

    force: bool = False
    """Delete a version that an alias means, that others were made from, or that a rollback would need, too."""


class DeleteConfig(JobConfig):
    """`forecast models delete`: `registry.alias` is the number of the version."""

    delete: DeleteSettings = DeleteSettings()


class ReportSettings(Config):
    """What is on the page."""

    run: str | None = None
    """The id of a run of train, finetune, calibrate, distil, backtest or score."""
    scores: str | None = None
    """The output.path of a scoring job that writes Parquet files."""
    cutoff: datetime | None = None
    """The cutoff in report.scores; the latest there when not given."""
    cutoffs: Annotated[int, Field(ge=1)] = 4
    """So many of them, that one and those before it."""
    max_rows: Annotated[int, Field(ge=1)] = 2_000_000
    """Rows of forecasts in the page, about; of more, the latest cutoffs of series evenly picked."""


class ReportConfig(VerbConfig):
    """`forecast report`: of the version `registry.alias`, of a run, or of forecasts."""

    data: SourceConfig = SourceConfig()
    report: ReportSettings = ReportSettings()
    output: OutputFolder

    @model_validator(mode="after")
    def _one_subject(self) -> Self:
        if sum(value is not None for value in (self.registry.alias, self.report.run, self.report.scores)) != 1:
            raise ValueError("give one of registry.alias, report.run and report.scores: what the report is of")
        if self.report.cutoff is not None and self.report.scores is None:
            raise ValueError("report.cutoff is one of report.scores; give that folder, too")
        return self


class UiSettings(Config):
    """The web page of the runs."""

    host: str = "127.0.0.1"
    """Address to listen on; others than this one let other machines in."""
    port: Annotated[int, Field(ge=1, le=65535)] = 5000


class UiConfig(VerbConfig):
    """`forecast ui`."""

    ui: UiSettings = UiSettings()


class ServerSettings(Config):
    """MLflow's server, and the PostgreSQL behind it."""

    path: str = "server"
    """The folder of the database and of the artifacts."""
    host: str = "127.0.0.1"
    """Address to listen on; others than this one let other machines in."""
    port: Annotated[int, Field(ge=1, le=65535)] = 5000
    database: Secret | None = None
    """A PostgreSQL that there is already, postgresql://user:password@host/db; DATABASE_URL, or one that is started in
    the folder, when not given."""
    database_port: Annotated[int, Field(ge=1, le=65535)] = 5433
    """Of the one that is started, on 127.0.0.1."""
    workers: Annotated[int, Field(ge=1)] = 2


class ServerConfig(Config):
    """`forecast server`."""

    server: ServerSettings = ServerSettings()


class RunsSettings(Config):
    """Which runs are listed, and how."""

    flow: str | None = None
    """Only runs of this verb: score, train, ..."""
    status: Literal["running", "done", "failed", "abandoned", "waiting"] | None = None
    dataset: str | None = None
    """Only runs on this table, as the list shows it."""
    schedule: str | None = None
    """Only runs of this schedule."""
    since: datetime | None = None
    """Only runs that began at this time or later (naive: UTC)."""
    every: bool = False
    """Show every attempt, not the latest of each key alone."""
    limit: Annotated[int, Field(ge=1)] = 50
    """Show so many, the newest."""
    format: Literal["table", "json"] = "table"

    @field_validator("since")
    @classmethod
    def _utc(cls, since: datetime | None) -> datetime | None:
        return since.replace(tzinfo=UTC) if since and since.tzinfo is None else since


class RunsConfig(Config):
    """`forecast runs`."""

    runs: RunsSettings = RunsSettings()
    ledger: LedgerConfig = LedgerConfig()


class SyncConfig(VerbConfig):
    """`forecast runs sync`."""

    ledger: LedgerConfig = LedgerConfig()


class ScheduleSettings(Config):
    """The scheduler, and looking at its schedules."""

    path: str = "conf/schedule.yaml"
    """The file with the schedules."""
    now: datetime | None = None
    """A clock that stands at this time: do what is due then, without waiting between attempts, and end (naive: UTC)."""
    until: datetime | None = None
    """With preview: show what becomes due up to this time (naive: UTC); a week when not given."""
    cutoff: datetime | None = None
    """With once: the cutoff to run (naive: in the time zone of the schedule); the latest that is due when not given."""
    since: datetime | None = None
    """With repair: the schedule begins again with what became due since (naive: UTC); its last run when not given."""
    poll: Annotated[float, Field(gt=0)] = 30.0
    """Seconds between looks at the ledger besides those when something becomes due."""
    grace: Annotated[float, Field(ge=0)] = 30.0
    """Seconds that running jobs have to end after SIGTERM; then they are told to abandon their work."""

    @field_validator("now", "until", "since")
    @classmethod
    def _utc(cls, moment: datetime | None) -> datetime | None:
        return moment.replace(tzinfo=UTC) if moment and moment.tzinfo is None else moment


class SchedulerConfig(Config):
    """`forecast schedule`."""

    schedule: ScheduleSettings = ScheduleSettings()
    ledger: LedgerConfig = LedgerConfig()


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


def is_secret(field: FieldInfo) -> bool:
    """Return whether a setting is not to be shown."""
    return SecretStr in _options(field.annotation)


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
