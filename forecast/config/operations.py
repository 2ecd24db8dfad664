"""`ledger.*`, `schedule.*`, `runs.*`, `retain.*`, `report.*`, `ui.*`, `server.*` and `replay.*`."""

from datetime import UTC, datetime
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from forecast.config.base import Config, Secret
from forecast.config.output import TABLE
from forecast.config.registry import Alias


class LedgerConfig(Config):
    """The ledger of runs."""

    uri: Secret | None = None
    """The database of the run ledger: sqlite:///file.db or postgresql://user@host/db (password from PGPASSWORD);
    GATECAST_LEDGER, or sqlite:///gatecast.db here, when not given."""


class QuickstartSettings(Config):
    """How far a quick start goes."""

    until: Literal["look", "forecast", "train"] = "train"
    """The last stage: look (the settings, and a copy of the table where it needs one), forecast (without training), or
    train (and the backtest)."""


class RetainSettings(Config):
    """What is kept, and what is freed."""

    apply: bool = False
    """Free what the rules say. Without it, a table shows what would go, and nothing is freed."""
    versions: Annotated[int, Field(ge=0)] | None = None
    """Number of the newest versions without an alias to keep. Versions with an alias, those that a rollback returns to,
    and all that a kept version derives from stay anyway. Artifacts of versions that were deleted before go, too."""
    free: tuple[Alias, ...] = ()
    """Versions to free, by number. Refused if one has an alias, or if a version that stays needs it."""
    run_days: Annotated[float, Field(ge=1)] | None = None
    """Days of runs in MLflow to keep, since their end. The runs behind kept versions (training, backtest) stay."""
    scores: str | None = None
    """The output.path of `forecast score`, for retain.forecast_days and retain.cutoffs."""
    uri: Secret | None = None
    """The database of these forecasts, with output.sink=sql."""
    table: Annotated[str, Field(pattern=TABLE)] = "forecasts"
    """Its table, as output.table."""
    state: str | None = None
    """The folder of score.state, for the same rules."""
    forecast_days: Annotated[float, Field(ge=0)] | None = None
    """Days before the latest cutoff of which forecasts and carried states are kept. The latest cutoff always stays."""
    cutoffs: Annotated[int, Field(ge=1)] | None = None
    """Number of the latest cutoffs to keep. With retain.forecast_days, what either rule keeps stays."""
    unjudged: bool = False
    """Also free forecasts that `forecast monitor` still reads."""
    recent: Annotated[int, Field(ge=1)] | None = None
    """monitor.recent of the job that watches these forecasts; its default when not given."""
    history: Annotated[int, Field(ge=1)] | None = None
    """monitor.history of that job."""

    @property
    def forecast_rule(self) -> str:
        """The rules for forecasts and states, as text."""
        rules = {"forecast_days": self.forecast_days, "cutoffs": self.cutoffs}
        return " ".join(f"retain.{name}={value:g}" for name, value in rules.items() if value is not None)

    @model_validator(mode="after")
    def _has_rules(self) -> Self:
        of_forecasts = self.forecast_days is not None or self.cutoffs is not None
        if self.versions is None and self.run_days is None and not self.free and not of_forecasts:
            raise ValueError("no rule; set one or more of versions, free, run_days, forecast_days and cutoffs")
        if of_forecasts != (self.scores is not None or self.state is not None):
            raise ValueError(
                "forecast_days and cutoffs are rules for the folders scores and state; set one of both, and a folder"
            )
        if self.uri is not None and self.scores is None:
            raise ValueError("uri goes with scores, the output.path of the jobs that write into that database")
        return self


class ReplaySettings(Config):
    """Replay of weeks of nightly operation."""

    days: Annotated[int, Field(ge=14, le=110)] = 60
    """Days to replay, from 9 September 2013 on."""


class ReportSettings(Config):
    """The subject of a report."""

    run: str | None = None
    """The id of a run of train, finetune, calibrate, distil, backtest or score."""
    scores: str | None = None
    """The output.path of a scoring job that writes Parquet files."""
    cutoff: datetime | None = None
    """The cutoff in report.scores; the latest there when not given."""
    cutoffs: Annotated[int, Field(ge=1)] = 4
    """Number of cutoffs: that one and those before it."""
    max_rows: Annotated[int, Field(ge=1)] = 2_000_000
    """Approximate number of rows of forecasts in the page; beyond it, the latest cutoffs of evenly selected series."""


class UiSettings(Config):
    """The web page of the runs."""

    host: str = "127.0.0.1"
    """Address to listen on; others than this one let other machines in."""
    port: Annotated[int, Field(ge=1, le=65535)] = 5000


class ServerSettings(Config):
    """MLflow's server, and the PostgreSQL behind it."""

    path: str = "server"
    """The folder of the database and of the artifacts."""
    host: str = "127.0.0.1"
    """Address to listen on; others than this one let other machines in."""
    port: Annotated[int, Field(ge=1, le=65535)] = 5000
    database: Secret | None = None
    """An existing PostgreSQL, postgresql://user:password@host/db; by default DATABASE_URL, or a database started in the
    folder."""
    database_port: Annotated[int, Field(ge=1, le=65535)] = 5433
    """Port of the database started in the folder, on 127.0.0.1."""
    workers: Annotated[int, Field(ge=1)] = 2


class RunsSettings(Config):
    """Selection and format of the list of runs."""

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
    """Show every attempt, not only the latest of each key."""
    limit: Annotated[int, Field(ge=1)] = 50
    """Number of runs to show, the newest."""
    format: Literal["table", "json"] = "table"

    @field_validator("since")
    @classmethod
    def _utc(cls, since: datetime | None) -> datetime | None:
        return since.replace(tzinfo=UTC) if since and since.tzinfo is None else since


class ScheduleSettings(Config):
    """The scheduler, and the preview of its schedules."""

    path: str = "conf/schedule.yaml"
    """The file with the schedules."""
    now: datetime | None = None
    """A fixed clock: run the jobs due at this time, without waiting between attempts, and end (naive: UTC)."""
    until: datetime | None = None
    """With preview: show jobs that become due up to this time (naive: UTC); a week when not given."""
    cutoff: datetime | None = None
    """With once: the cutoff to run (naive: in the time zone of the schedule); the latest that is due when not given."""
    since: datetime | None = None
    """With repair: restart the schedule with jobs due since this time (naive: UTC); its last run when not given."""
    poll: Annotated[float, Field(gt=0)] = 30.0
    """Seconds between checks of the ledger, besides those when a job becomes due."""
    grace: Annotated[float, Field(ge=0)] = 30.0
    """Seconds for running jobs to end after SIGTERM; after that they abandon their work."""

    @field_validator("now", "until", "since")
    @classmethod
    def _utc(cls, moment: datetime | None) -> datetime | None:
        return moment.replace(tzinfo=UTC) if moment and moment.tzinfo is None else moment
