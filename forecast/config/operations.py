"""`ledger.*`, `schedule.*`, `runs.*`, `report.*`, `ui.*`, `server.*` and `replay.*`."""

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import Field, field_validator

from forecast.config.base import Config, Secret


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
