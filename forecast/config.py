"""Frozen config models: types, choices and ranges. The values of a deployment live in `conf/`.

Each verb has one model (`TrainConfig`, `FinetuneConfig`, ...). Unknown keys are refused, and every mistake in a config
is reported at once with its path (`load`).
"""

import difflib
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo

from forecast.errors import ConfigError

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Level = Annotated[float, Field(gt=0.0, lt=1.0)]


class Config(BaseModel):
    """Base of all config models: frozen, and an unknown key is an error."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        coerce_numbers_to_str=True,  # registry.alias=3
        use_attribute_docstrings=True,  # the text of --help
    )


class ColumnsConfig(Config):
    """Which columns of the user's table hold the panel."""

    series_id: str = "series_id"
    timestamp: str = "timestamp"
    target: str = "target"


class SourceConfig(Config):
    """Where the rows are, and what to do with bad ones. The same for every verb."""

    path: str | None = None
    """A Parquet, CSV or Arrow file, a folder of them, or a glob."""
    until: datetime | None = None
    """Use rows up to and including this timestamp (naive: in the panel's own time zone)."""
    on_error: Literal["quarantine", "fail"] = "quarantine"
    """Put bad rows into the rejects table, or stop at the first kind of them."""
    max_reject_share: Share = 0.05
    """Stop if a larger share of the rows is rejected."""


class DataConfig(SourceConfig):
    """How to read the table a model is trained on. The choices are stored with the model and hold for later verbs."""

    freq: str | None = None
    """Step between rows: 15m, 1h, 1d, 1w, 1mo, 1q, 1y, 1bd and multiples; inferred when not given."""
    season_length: Annotated[int, Field(ge=1)] | None = None
    """Steps in one season (MASE, seasonal naive, seasonal inputs); from the frequency when not given."""
    time_zone: str | None = None
    """Time zone of the calendar (IANA name). Naive timestamps are read as local time of it."""
    calendar: bool = True
    """Add calendar features (hour, weekday, time of year) as known covariates."""
    columns: ColumnsConfig = ColumnsConfig()
    past_covariates: tuple[str, ...] = ()
    """Numeric columns known up to the cutoff only."""
    known_covariates: tuple[str, ...] = ()
    """Numeric columns known over the horizon too: the table has rows with a null target for the future."""
    static_covariates: tuple[str, ...] = ()
    """Columns with one value per series, text (embedded) or numeric."""

    @model_validator(mode="after")
    def _columns_differ(self) -> Self:
        covariates = [*self.past_covariates, *self.known_covariates, *self.static_covariates]
        used = [*self.columns.model_dump().values(), *covariates]
        twice = sorted({name for name in used if used.count(name) > 1})
        if twice:
            raise ValueError(f"column(s) used twice: {', '.join(twice)}")
        return self


class SourceTable(SourceConfig):
    """`SourceConfig` on the command line, where the table has to be named."""

    path: str
    """A Parquet, CSV or Arrow file, a folder of them, or a glob."""


class DataTable(DataConfig):
    """`DataConfig` on the command line, where the table has to be named."""

    path: str
    """A Parquet, CSV or Arrow file, a folder of them, or a glob."""


class WindowConfig(Config):
    """How much of a series a forecast sees and how far it reaches, in steps."""

    context_length: Annotated[int, Field(ge=1)] | None = None
    """Steps the model sees; when not given, two seasons, but at least twice the horizon and 32 steps."""
    horizon: Annotated[int, Field(ge=1)]
    """Steps it forecasts."""


class ModelConfig(Config):
    """The network."""

    cell: Literal["lstm", "gru", "rnn"] = "lstm"
    hidden_size: Annotated[int, Field(ge=1)] = 64
    num_layers: Annotated[int, Field(ge=1)] = 1
    segment_length: Annotated[int, Field(ge=1)] | None = None
    """Steps that the encoder takes in at once; a day for steps below a day, otherwise one, when not given."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Share of units dropped between layers and before the decoder."""
    decoder_size: Annotated[int, Field(ge=1)] = 16
    """Features that the decoder's first stage hands to each step of the horizon."""
    embedding_size: Annotated[int, Field(ge=1)] = 8
    """Size of the embedding of each categorical static covariate."""
    anchor: Literal["auto", "last", "level"] = "auto"
    """What a window is centred on: its last value, its mean, or whichever validates better."""
    skip: bool = True
    """Add the linear skip, solved in closed form."""
    quantile_levels: tuple[Level, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

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
    """Optimiser steps; 0 keeps the closed-form solution."""
    max_minutes: Annotated[float, Field(gt=0)] | None = None
    """Stop training after so many minutes, whatever max_steps says."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Windows in one step; each window gives `origins` forecasts."""
    origins: Annotated[int, Field(ge=1)] = 32
    """Cutoffs sampled in each window: the loss is taken at all of them (forking sequences)."""
    learning_rate: Annotated[float, Field(gt=0)] = 3e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    gradient_clip: Annotated[float, Field(gt=0)] = 1.0
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.995
    """Decay of the averaged weights, the ones that are validated and kept; 0 turns averaging off."""
    validation_windows: Annotated[int, Field(ge=1)] = 4
    """Cutoffs per series, a horizon apart, held out from fitting; they stop it early and choose the skip's penalty."""
    holdout_windows: Annotated[int, Field(ge=0)] = 4
    """Horizons at the end of the panel that training leaves untouched, for backtests."""
    validation_every: Annotated[int, Field(ge=1)] = 100
    """Steps between validations."""
    patience: Annotated[int, Field(ge=1)] = 8
    """Validations without improvement before training stops."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    seed: Annotated[int, Field(ge=0)] = 0


class RegistryConfig(Config):
    """Where models and runs are kept."""

    name: str = "forecaster"
    """Registered model; one per forecaster."""
    alias: str | None = None
    """Which version: pretrained, challenger, champion, or a version number."""
    tracking_uri: str | None = None
    """MLflow store; MLFLOW_TRACKING_URI, or sqlite:///mlflow.db here, when not given."""


class FinetuneSettings(Config):
    """Per-series fine-tuning and its gate."""

    kind: Literal["head"] = "head"
    """`head`: a change of the linear map to the horizon, in closed form."""
    origins: Annotated[int, Field(ge=8)] = 512
    """Most recent cutoffs of each series that are fitted on."""
    gate_windows: Annotated[int, Field(ge=2)] = 4
    """Held-out cutoffs per series, one horizon apart, that choose its strength."""
    report_windows: Annotated[int, Field(ge=1)] = 2
    """Latest cutoffs, seen by neither fitting nor gating, on which the uplift is reported."""
    holdout_windows: Annotated[int, Field(ge=0)] = 4
    """Horizons at the end of the panel that are left untouched, for backtests."""
    min_gain: Share = 0.05
    """Share by which a series must improve on its gate windows to leave the base."""
    min_windows_better: Share = 0.75
    """Share of its gate windows on which it must improve."""
    blend: Share = 0.5
    """Weight of the tuned forecast where the gate lets it in; the rest is the base."""


class BacktestSettings(Config):
    """Rolling origins."""

    n_windows: Annotated[int, Field(ge=1)] = 4
    step_size: Annotated[int, Field(ge=1)] | None = None
    """Steps between cutoffs; the horizon when not given."""


class OutputConfig(Config):
    """Where results are written."""

    path: str | None = None
    """A folder; it is made if it does not exist."""


class OutputFolder(OutputConfig):
    """`OutputConfig` where the folder has to be named."""

    path: str
    """A folder; it is made if it does not exist."""


class ScoreSettings(Config):
    """Batch scoring."""

    cutoff: datetime | None = None
    """Last timestamp the forecast may see; the latest of the panel when not given."""


class VerbConfig(Config):
    """What every verb on the registry has."""

    registry: RegistryConfig = RegistryConfig()


class FitSettings(Config):
    """Training on a frame that is passed, in Python."""

    data: DataConfig = DataConfig()
    window: WindowConfig
    model: ModelConfig = ModelConfig()
    fit: FitConfig = FitConfig()


class TrainConfig(VerbConfig):
    """`forecast train`."""

    data: DataTable
    window: WindowConfig
    model: ModelConfig = ModelConfig()
    fit: FitConfig = FitConfig()


class FinetuneConfig(VerbConfig):
    """`forecast finetune`: `registry.alias` is the base."""

    data: SourceTable
    finetune: FinetuneSettings = FinetuneSettings()


class BacktestConfig(VerbConfig):
    """`forecast backtest`: `registry.alias` is the version to judge."""

    data: SourceTable
    backtest: BacktestSettings = BacktestSettings()
    output: OutputConfig = OutputConfig()


class PromoteConfig(VerbConfig):
    """`forecast promote`: challenger against champion, from their backtests."""


class ScoreConfig(VerbConfig):
    """`forecast score`: `registry.alias` is the version that forecasts."""

    data: SourceTable
    score: ScoreSettings = ScoreSettings()
    output: OutputFolder


class ModelsConfig(VerbConfig):
    """`forecast models`: `registry.alias` is the version to show or export."""

    output: OutputConfig = OutputConfig()


class UiSettings(Config):
    """The web page of the runs."""

    host: str = "127.0.0.1"
    """Address to listen on; others than this one let other machines in."""
    port: Annotated[int, Field(ge=1, le=65535)] = 5000


class UiConfig(VerbConfig):
    """`forecast ui`."""

    ui: UiSettings = UiSettings()


T = TypeVar("T", bound=Config)


def load(kind: type[T], values: Mapping[str, Any]) -> T:
    """Return `values` as a `kind`.

    Raises ConfigError that lists every mistake with its path.
    """
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


def _explain(kind: type[Config], detail: Any) -> list[str]:
    path, given = ".".join(str(part) for part in detail["loc"]), detail["input"]
    if detail["type"] == "extra_forbidden":
        return [f"{leaf}: {_unknown(kind, leaf)}" for leaf in _leaves(path, given)]
    if detail["type"] == "missing":
        group = group_of(dict(fields(kind))[path])
        keys = [name for name, field in group.model_fields.items() if field.is_required()] if group else []
        missing = [f"{path}.{name}" for name in keys] or [path]
        return [f"{leaf}: missing; give {leaf}=VALUE" for leaf in missing]
    message = str(detail["msg"]).removeprefix("Value error, ").replace("Input should be", "must be")
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


def _unknown(kind: type[Config], path: str) -> str:
    """Return what to tell about a key that `kind` does not have."""
    group = path.rpartition(".")[0]
    if kind not in (TrainConfig, FitSettings) and (path in _FIXED_BY_MODEL or (group or path) in ("window", "model")):
        return "fixed by the trained model, can't be set here; train a model with the value you want"
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
