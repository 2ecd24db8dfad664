"""`score.*`, `output.*`, `reconcile.*`, `serving.*` and `scores.*`: forecasts and where they are written."""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import Field, field_validator, model_validator

from forecast.config.base import AUTO, Config, Cutoffs, MaxAge, Secret
from forecast.config.registry import Alias
from forecast.names import OBJECT_STORES

TABLE: Final = r"^[A-Za-z_][A-Za-z0-9_]{0,50}$"
"""Names of tables that need no quotes in any database."""


class ReconcileSettings(Config):
    """Reconciliation of forecasts in a hierarchy."""

    by: Annotated[tuple[str | tuple[str, ...], ...], Field(min_length=1)]
    """Columns that define the sums: [state,store] for nested levels, [[state],[brand]] for levels that cross. There is
    always a total."""
    method: Literal["bottom_up", "top_down", "middle_out", "ols", "wls_struct", "mint_shrink"] = "bottom_up"
    """bottom_up needs forecasts of the series only; the other methods also of all sums (gatecast[reconcile])."""
    middle: str | None = None
    """With middle_out, the level whose forecasts are kept: a column, or several as state/store."""
    missing: Literal["fail", "drop"] = "fail"
    """Series of the hierarchy without a forecast: stop, or leave them out of the sums (bottom_up)."""
    tolerance: Annotated[float, Field(ge=0)] = 1e-6
    """Maximum relative difference between a sum and the sum of its series."""


class ReconcileSource(ReconcileSettings):
    """Scored forecasts and their hierarchy."""

    path: str
    """The output folder of `forecast score`."""
    table: str
    """A table with series_id and the columns of reconcile.by: that of the static covariates, or the panel."""
    cutoff: datetime | None = None
    """Cutoff of the forecasts; the latest when not given."""
    actuals: str | None = None
    """A table with series_id, timestamp and target: the errors of earlier cutoffs in reconcile.path give the
    correlations of series, required by mint_shrink and recommended for intervals of sums."""


class OutputConfig(Config):
    """The folder for results."""

    path: str | None = None
    """A folder; it is made if it does not exist."""


class OutputFolder(OutputConfig):
    """`OutputConfig` where the folder is required."""

    path: str
    """A folder; it is made if it does not exist."""


def table_names(table: str) -> tuple[str, str, str]:
    """Return the names of the tables of output.sink=sql: forecasts, rejects, manifests."""
    return table, f"{table}_rejects", f"{table}_manifests"


class SinkConfig(OutputFolder):
    """The storage of forecasts and rejects."""

    sink: Literal["parquet", "delta", "sql"] = "parquet"
    """Parquet files or Delta Lake tables in output.path, Parquet files in an object store, or a database; the last two
    at output.uri."""
    uri: Secret | None = None
    """The database of output.sink=sql: postgresql://user@host/db (password from PGPASSWORD) or sqlite:///file.db. With
    output.sink=parquet, an object store for the files: s3://bucket/folder (gatecast[s3]); output.path then holds the
    manifests, and the parts until they are published."""
    table: Annotated[str, Field(pattern=TABLE)] = "forecasts"
    """The table for forecasts; rejects and manifests go to tables with the suffixes _rejects and _manifests, and a view
    with _latest shows the latest cutoff of each model. They are created if they do not exist."""

    @model_validator(mode="after")
    def _fits_the_sink(self) -> Self:
        is_store = self.uri is not None and self.uri.get_secret_value().startswith(OBJECT_STORES)
        if is_store and self.sink != "parquet":
            raise ValueError(f"an object store takes Parquet files: sink=parquet, not sink={self.sink}")
        if (self.sink == "sql") != (self.uri is not None) and not is_store:
            raise ValueError("sink=sql and uri go together: sink=sql uri=postgresql://user@host/db")
        return self


class ScoreOutput(SinkConfig):
    """`SinkConfig`, with settings for the values to write."""

    min: float | None = None
    """Raise lower forecasts to this value, and count them."""
    max: float | None = None
    """Lower higher forecasts to this value, and count them."""
    n_samples: Annotated[int, Field(ge=0, le=1000)] = 0
    """Sample paths written with each forecast, as columns sample_000, sample_001, ...: possible futures, with
    the dependence between steps of the validation errors."""
    latest: bool = True
    """Keep the forecasts of the latest cutoff in latest/MODEL.parquet of output.path too, for tools that read one file.
    output.sink=sql has a view instead."""
    format: Literal["parquet", "csv", "xlsx"] = "parquet"
    """csv or xlsx (gatecast[excel]): write the forecasts of the latest cutoff into plans/MODEL.csv or MODEL.xlsx of
    output.path too, for people who open them in a spreadsheet. The sink stays as it is."""
    layout: Literal["long", "wide"] = "long"
    """The table of output.format: a row per series and step, or a row per series and a column per step."""
    value: str = "mean"
    """The number in the cells of output.layout=wide: mean (the class, for models of classes), or a column of the
    forecasts, such as q90."""

    @model_validator(mode="after")
    def _of_a_plan(self) -> Self:
        if self.format == "parquet" and self.layout != "long":
            raise ValueError("layout is that of format=csv and format=xlsx; set one of them")
        if self.value != "mean" and self.layout != "wide":
            raise ValueError("value is that of layout=wide; layout=long has all values")
        return self

    @model_validator(mode="after")
    def _bounds_in_order(self) -> Self:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min={self.min:g} is above max={self.max:g}")
        return self


ScenarioName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
"""Letters, digits, dots, hyphens and underscores: the name of a folder."""


class ScoreSettings(Config):
    """Batch scoring."""

    cutoff: datetime | None = None
    """Last timestamp the forecast may see; the latest of the panel when not given."""
    cutoffs: Cutoffs | None = None
    """Several cutoffs in one job: a list, or a range FIRST..LAST/STEP such as 2013-11-01..2013-12-01/1d."""
    horizon: Annotated[int, Field(ge=1)] | None = None
    """Steps to forecast; by default those that the model is trained for. Fewer are the first of them, with the same
    numbers; up to 8 times as many are rolled: sample paths continue the history, and the model forecasts again."""
    shard_size: Annotated[int, Field(ge=1)] | None = None
    """Series per shard, forecast and written at a time; by default as many as give about 65,000 rows."""
    missing_known: Literal["mask", "fail", "quarantine", "carry_forward"] = "mask"
    """Known covariates that are missing over the horizon: mask them for the model, stop, reject these series, or carry
    the last value forward."""
    overrides: str | None = None
    """A table of values that people set in place of forecasts: series_id, timestamp, value or factor, author, and
    optionally note and valid_until."""
    scenario: ScenarioName | None = None
    """Name of a scenario: forecasts with other known covariates after the cutoff, in the folder scenarios/NAME of
    output.path, and their difference from the plain forecasts there of the same version and cutoff."""
    cold_start: bool = False
    """Also forecast series without any observation, of the static table or of rows without a target, from the recent
    values of the series that are most like them by static covariates (source: cold); otherwise they are rejects."""
    state: str | None = None
    """A folder for the encoder's state of each series, from which the next cutoff continues instead of reading the
    context again. The encoder then sees the whole history, not only the context."""
    runtime: Literal["torch", "onnx", "cuda", "auto"] = "torch"
    """Runtime of the network: torch, ONNX Runtime (gatecast[onnx]), torch on a GPU (cuda), or auto for the faster of
    the first two, which is measured once for each model and output.path and stored there."""
    force: bool = False
    """Forecast and write finished cutoffs again."""
    min_model_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Minimum share of series whose forecast comes from the model; the others are seasonal naive or last values. A
    cutoff below it fails, and always one without any forecast from the model; earlier output for the cutoff stays."""
    shadow: Alias | None = None
    """A second version that also forecasts, for comparison by `forecast monitor`: an alias, a number, or previous, the
    one that the champion replaced. Its forecasts are in the folder shadow of output.path, in Parquet files."""
    shadow_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the series that it forecasts, selected by a hash of their ids, so the same at every cutoff."""
    max_age: MaxAge = AUTO
    """Greatest age of a series, from its last observation to the cutoff: steps, or a duration such as 90d or 6mo. An
    older one has ended: it is a reject, and has no forecast. auto: the context length of the model; none: any age."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.cutoff is not None and self.cutoffs is not None:
            raise ValueError("cutoff and cutoffs are both given; cutoffs=[...] takes all of them")
        if self.state is not None and self.runtime == "onnx":
            raise ValueError("state and runtime=onnx are both given; an ONNX graph has no state to go on from")
        if self.state is not None and self.runtime == "cuda":
            raise ValueError("state and runtime=cuda are both given; states are advanced on the CPU; use runtime=torch")
        if self.cold_start and (self.state is not None or self.scenario is not None or self.shadow is not None):
            raise ValueError("cold_start does not go with state, scenario and shadow: series begin there with a value")
        if self.scenario is not None and (self.state is not None or self.shadow is not None):
            raise ValueError("scenario does not go with state and shadow, which are for the nightly forecasts")
        return self


class ServingSettings(Config):
    """Parameters of a request to a served model; MLflow passes each as text."""

    rejects: Literal["include", "omit", "fail"] = "include"
    """Rejected rows and series: rows with a reason behind the forecasts, nothing, or an error."""
    max_age: MaxAge = AUTO
    """As score.max_age."""


class CompareSettings(Config):
    """The two forecasts to compare."""

    before: str | None = None
    """The earlier forecasts: their cutoff in scores.path, or the path of a manifest (.json); the second latest cutoff
    when not given."""
    after: str | None = None
    """The later forecasts, in the same way; the latest cutoff when not given."""
    model: str | None = None
    """Registered model of the forecasts, if several write into scores.path."""
    max_age: MaxAge = AUTO
    """score.max_age of the two jobs, to forecast as they did."""
    min: float | None = None
    """output.min of the two jobs."""
    max: float | None = None
    """output.max of the two jobs."""


class ShowSettings(Config):
    """Selection of the forecasts to show."""

    cutoff: datetime | None = None
    """Cutoff of the forecasts; without a time zone, local time of the panel. The latest when not given."""
    model: str | None = None
    """Registered model of the forecasts; all when not given."""
    series: tuple[str, ...] | None = None
    """Series of the forecasts; all when not given."""
    scenario: ScenarioName | None = None
    """A scenario of score.scenario, instead of the plain forecasts."""
    every: bool = False
    """Show every version that has forecast the cutoff, not only the one that scored last."""
    rows: Annotated[int, Field(ge=0)] = 24
    """Number of rows to print."""
    file: str | None = None
    """A file to write all rows to: .parquet, .csv or .xlsx (gatecast[excel])."""

    @field_validator("file")
    @classmethod
    def _known_kind(cls, file: str | None) -> str | None:
        if file is not None and Path(file).suffix not in (".parquet", ".csv", ".xlsx"):
            raise ValueError(f"must end with .parquet, .csv or .xlsx (given: {file!r})")
        return file
