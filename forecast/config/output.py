"""`score.*`, `output.*`, `reconcile.*`, `serving.*` and `scores.*`: forecasts and where they are written."""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from forecast.config.base import AUTO, Config, Cutoffs, MaxAge, Secret
from forecast.config.registry import Alias


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
