"""`ledger.*`, `schedule.*`, `runs.*`, `report.*`, `ui.*`, `server.*` and `replay.*`."""

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import Field, field_validator

from forecast.config.base import Config, Secret


class LedgerConfig(Config):
    """Where it is written down what ran."""

    uri: Secret | None = None
    """The database of the run ledger: sqlite:///file.db or postgresql://user@host/db (password from PGPASSWORD);
    GATECAST_LEDGER, or sqlite:///gatecast.db here, when not given."""


class ReplaySettings(Config):
    """Weeks of nightly work."""

    days: Annotated[int, Field(ge=14, le=110)] = 60
    """Days that are replayed, from 9 September 2013 on."""


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
    """A PostgreSQL that there is already, postgresql://user:password@host/db; DATABASE_URL, or one that is started in
    the folder, when not given."""
    database_port: Annotated[int, Field(ge=1, le=65535)] = 5433
    """Of the one that is started, on 127.0.0.1."""
    workers: Annotated[int, Field(ge=1)] = 2


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
