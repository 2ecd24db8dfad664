"""`data.*` and `window.*`: tables, columns, frequency, covariates and horizon; preparing and profiling them."""

import re
from datetime import datetime
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from forecast.config.base import AUTO, Config, MaxAge, Secret, Share
from forecast.errors import ConfigError


class ColumnsConfig(Config):
    """The columns of the table that hold the panel."""

    series_id: str = AUTO
    """Column with the name of the series; auto: series_id, unique_id or item_id, whichever exists."""
    timestamp: str = AUTO
    """Column with the time; auto: timestamp, ds or time, whichever exists."""
    target: str = AUTO
    """Column with the values to forecast; auto: target or y, whichever exists."""


def _rolling(name: str) -> str:
    if not re.fullmatch(r"(mean|std|min|max|median|sum)_[1-9]\d{0,5}", name):
        raise ValueError("must be mean, std, min, max, median or sum, and a number of steps: mean_7")
    return name


class SourceConfig(Config):
    """The source of the rows, and the handling of bad ones; the same for every verb."""

    path: str | None = None
    """A Parquet, CSV or Arrow file, a folder of them, a glob, a Delta table or an s3:// address of these; a file with a
    line of JSON per series (gluonts); or a folder written by `forecast data prepare`, or a copy of it in S3."""
    uri: Secret | None = None
    """A database instead of a path: postgresql://user@host/db (password from PGPASSWORD) or sqlite:///file.db."""
    query: str | None = None
    """The SQL query that gives the table, with data.uri."""
    known_path: str | None = None
    """A second table with the known covariates, reaching over the horizon; without a series_id it is for all series."""
    static_path: str | None = None
    """A table with one row per series, where the static covariates are."""
    separator: Annotated[str, Field(min_length=1, max_length=1)] | None = None
    """Separator of fields in CSV files; by default detected in the header: a comma, semicolon, tab or bar."""
    decimal: Literal[".", ","] | None = None
    """The decimal sign of numbers that are text; the other one may group thousands. By default
    detected from the values, if they are unambiguous."""
    null_values: tuple[str, ...] = ()
    """Values that mean missing, besides NA, NaN and null: [-, "-999"]. Names of series are never missing."""
    timestamp_format: str | None = None
    """Format of timestamps (strftime: "%d/%m/%Y %H:%M"), or s, ms, us or ns for numbers that count from 1970 on; not
    needed for ISO 8601, years, and dates such as 20230131."""
    local_time: bool | None = None
    """Timestamps without a time zone are local time of data.time_zone, or that of the model; false refuses them. By
    default as in training: true if its timestamps had no time zone, false if they had one."""
    until: datetime | None = None
    """Use rows up to and including this timestamp (naive: in the panel's own time zone)."""
    end_share: Share = 0.05
    """Share of the series that must reach the end of the panel: rows after the step at which all but this share
    end are rejects, and so are single rows that a long gap separates from their series. 0: all rows count."""
    on_error: Literal["quarantine", "fail"] = "quarantine"
    """Put bad rows into the rejects table, or stop."""
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
"""Settings of a source that keep their values from training if a later verb does not give them."""


LATER: Final = ("available", "weight")
"""Settings of a panel that are stored only if they are set."""


def _days_joined(days: Any) -> Any:
    return ",".join(map(str, days)) if isinstance(days, list | tuple) else days


class DataConfig(SourceConfig):
    """Settings to read the training table. They are stored with the model and hold for later verbs."""

    layout: Literal["long", "wide"] = "long"
    """`wide`: a column per series, named after it, besides the timestamp and the past and known covariates."""
    freq: str | None = None
    """Step between rows: 15m, 1h, 1d, 1w, 1mo, 1q, 1y, 1bd (business days), 1bm (the last or first business day of a
    month) and multiples; inferred when not given."""
    weekmask: Annotated[str | None, BeforeValidator(_days_joined)] = None
    """Business days of 1bd and 1bm: sun-thu, mon-sat, or [mon,wed,fri]; Monday to Friday when not given."""
    aggregate: Literal["sum", "mean", "last"] | None = None
    """Aggregate higher-frequency rows to steps of data.freq; covariates by their mean (categories: the last)."""
    season_length: Annotated[int, Field(ge=1)] | None = None
    """Steps in one season (MASE, seasonal naive, seasonal inputs); from the frequency when not given."""
    time_zone: str | None = None
    """Time zone of the calendar (IANA name). Naive timestamps are read as local time in it."""
    calendar: bool = True
    """Add calendar features (hour, weekday, time of year) as known covariates."""
    holidays: str | None = None
    """Add the public holidays of a country, or of a part of it, as known covariates: US, US-NY, DE-BY."""
    holiday_names: tuple[str, ...] | None = None
    """The holidays to add; by default all that occur in the panel."""
    fourier: dict[Annotated[float, Field(gt=1)], Annotated[int, Field(ge=1)]] = {}
    """Add waves of further seasons as known covariates: {168: 3} is three harmonics of a period of 168 steps."""
    lags: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Add earlier targets as past covariates: [24, 168] adds the values 24 and 168 steps before."""
    rolling: tuple[Annotated[str, AfterValidator(_rolling)], ...] = ()
    """Add statistics of the latest steps as past covariates: [mean_7, std_28]."""
    columns: ColumnsConfig = ColumnsConfig()
    past_covariates: tuple[str, ...] = ()
    """Columns known up to the cutoff only, numbers or text (embedded)."""
    known_covariates: tuple[str, ...] = ()
    """Columns known over the horizon too, numbers or text (embedded): rows with a null target, or data.known_path."""
    static_covariates: tuple[str, ...] = ()
    """Columns with one value per series, numbers or text (embedded)."""
    available: str | None = None
    """Column of 0 and 1 (or truth values) in the rows, in data.known_path or in both: where it is 0, nothing could be
    sold. Such targets are not observed, and forecasts of such steps are 0 (source `closed`). Null is 1."""
    weight: str | None = None
    """Column of numbers from 0 on, in the rows (per step) or in data.static_path: revenue, cost of stock. Losses, gates
    and metrics count each step by it; its unit does not matter. Null counts as 0."""

    @model_serializer(mode="wrap")
    def _without_unset(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out later settings that are not set, so that digests of earlier settings stay the same."""
        values: dict[str, Any] = serialize(self)
        return {name: value for name, value in values.items() if value is not None or name not in LATER}

    def with_source(self, source: SourceConfig) -> "DataConfig":
        """Return the settings to read another source, which may override the notation of numbers and times.

        Raises ConfigError for a table of covariates that the panel does not have.
        """
        for kind in ("known", "static"):
            if getattr(source, f"{kind}_path") and not self.side_columns(kind):
                raise ConfigError(f"data.{kind}_path: there are no {kind} covariates to read from it; leave it out")
        updates = {name: value for name, value in source.model_dump().items() if name not in NOTATION or value}
        return self.model_copy(update=updates)

    def side_columns(self, kind: str) -> tuple[str, ...]:
        """Return the columns that the table of `kind`, known or static, may have besides series_id and timestamp."""
        covariates: tuple[str, ...] = getattr(self, f"{kind}_covariates")
        more = self.available if kind == "known" else self.weight
        return (*covariates, more) if more else covariates

    def source(self) -> SourceConfig:
        """Return the settings of the source alone."""
        return SourceConfig.model_construct(**{name: getattr(self, name) for name in SourceConfig.model_fields})

    def without_source(self) -> "DataConfig":
        """Return the settings stored with a model or a panel, without those of the source."""
        defaults = {name: field.default for name, field in SourceConfig.model_fields.items() if name not in NOTATION}
        return self.model_copy(update=defaults)

    @model_validator(mode="after")
    def _columns_differ(self) -> Self:
        covariates = [*self.past_covariates, *self.known_covariates, *self.static_covariates]
        column_names = [name for name in self.columns.model_dump().values() if name != AUTO]
        all_names = [*column_names, *covariates, *filter(None, (self.available, self.weight))]
        twice = sorted({name for name in all_names if all_names.count(name) > 1})
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
        if self.known_path and not self.side_columns("known"):
            raise ValueError("known_path is given, but no known_covariates: name the columns to read from it")
        if self.static_path and not self.side_columns("static"):
            raise ValueError("static_path is given, but no static_covariates: name the columns to read from it")
        if self.layout == "wide" and self.static_covariates and not self.static_path:
            raise ValueError("layout=wide has no place for static_covariates; give them in a table at static_path")
        if self.layout == "wide" and self.weight and not self.static_path:
            raise ValueError("layout=wide has no place for weight, which differs by series; give it at static_path")
        if self.layout == "wide" and self.available:
            raise ValueError("layout=wide has no place for available, which differs by series: give rows (layout=long)")
        return self


def _table_given(query: str | None, info: ValidationInfo) -> str | None:
    # Not a validator of the group: pydantic skips those if one of its settings is wrong.
    if all(info.data.get(name, "") is None for name in ("path", "uri")):
        raise PydanticCustomError("no_table", "missing")
    return query


_Query = Annotated[str | None, Field(validate_default=True), AfterValidator(_table_given)]


class SourceTable(SourceConfig):
    """`SourceConfig` on the command line, where the table is required."""

    query: _Query = None
    """The SQL query that gives the table, with data.uri."""


class DataTable(DataConfig):
    """`DataConfig` on the command line, where the table is required."""

    query: _Query = None
    """The SQL query that gives the table, with data.uri."""


class WindowConfig(Config):
    """Context length and horizon of forecasts, in steps."""

    context_length: Annotated[int, Field(ge=1)] | None = None
    """Steps of history that the model sees; by default two weeks of hours, eight of days, two years of weeks, months
    and quarters, at least two seasons and two horizons, as far as typical series are long enough."""
    horizon: Annotated[int, Field(ge=1)]
    """Steps it forecasts."""


class QuickstartWindow(Config):
    """Context length and horizon of a quick start."""

    context_length: Annotated[int, Field(ge=1)] | None = None
    """Steps of history that the trained model sees; by default as in training."""
    horizon: Annotated[int, Field(ge=1)] | None = None
    """Steps to forecast; by default a day of hours or minutes, two weeks of days, a quarter of weeks, a year of months,
    two years of quarters, five years, and at most a quarter of a typical series."""


class HorizonConfig(Config):
    """The longest horizon of forecasts from a prepared panel."""

    horizon: Annotated[int, Field(ge=1)]
    """Steps for which known covariates are kept after the end of a series; a model's horizon may be shorter."""


class PrepareSettings(Config):
    """Prepared panels."""

    chunk_rows: Annotated[int, Field(ge=1)] = 10_000_000
    """Approximate number of rows in memory at a time."""


class AppendSettings(Config):
    """New rows for a prepared panel."""

    revisions: Literal["accept", "refuse", "fail"] = "accept"
    """Values that differ from those of the panel: accept them, reject them, or stop."""


class ProfileSettings(Config):
    """Settings of the profile of a panel."""

    max_age: MaxAge = AUTO
    """Age beyond which a series has ended, as score.max_age; auto: the default context length of a model."""


class ScoreTable(DataTable):
    """`SourceTable`, with settings for a pretrained network of the package; a registered model reads as in training."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        """Accept any tables of covariates: a registered model checks them, a pretrained network reads none."""
        return self


class ScoreWindow(Config):
    """The horizon of a pretrained network of the package; a registered model has its own window."""

    horizon: Annotated[int, Field(ge=1)] | None = None
    """Steps to forecast, with registry.alias=gatecast-nano."""
