"""`forecast replay`: weeks of nightly jobs in minutes, on a simulated clock, with typical failures.

Verbs, schedules and ledger are real; only the clock is simulated, and the jobs run in this process to save start-up
time. Events: scores every night, a challenger every week, an outage, a damaged file, and a version that the gate
refuses and that later becomes champion by force.
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from datetime import UTC, date, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from zoneinfo import ZoneInfo

from pydantic import SecretStr

from forecast.config import (
    DataConfig,
    LedgerConfig,
    RegistryConfig,
    ReplayConfig,
    SchedulerConfig,
    ScheduleSettings,
    TrainConfig,
    load,
)
from forecast.errors import GatecastError, OutputError
from pipelines import cli
from pipelines.jobs import command_line, console
from pipelines.jobs.job import SCHEDULE, SLOT, open_ledger
from pipelines.scheduling.agenda import Slot
from pipelines.scheduling.job_processes import JobProcesses
from pipelines.scheduling.schedule_file import Schedule, read
from pipelines.scheduling.scheduler import Scheduler

if TYPE_CHECKING:
    import polars as pl

    from pipelines.notify import NotifyConfig

FIRST: Final = date(2013, 9, 9)
"""The first replayed day, a Monday; the year before it is history."""
NAME: Final = "departures"
_HORIZON: Final = 48
_SERIES: Final = 35
_OUTAGE_DAYS: Final = 3
_DATA: Final = {
    "freq": "1h",
    "season_length": "168",
    "time_zone": "America/New_York",
    "static_covariates": "[airport,carrier]",
}
_SETTINGS: Final = [f"data.{key}={value}" for key, value in _DATA.items()]

_SCHEDULES: Final = """\
time_zone: America/New_York
overrides: [registry.name={name}, registry.tracking_uri={store}]
schedules:
  append:
    cron: 0 2 * * *
    flow: data append
    start: {start}
    retries: 0
    overrides: [data.path={folder}/new, data.max_reject_share=0.001, output.path={folder}/panel]
  nightly:
    cron: 30 2 * * *
    flow: score
    cutoff: previous_day
    catch_up: all
    start: {start}
    retries: 0
    overrides: [data.path={folder}/panel, output.path={folder}/scores, score.shadow=previous]
  watch:
    cron: 0 6 * * *
    flow: monitor
    cutoff: previous_day
    start: {start}
    retries: 0
    overrides:
      - data.path={folder}/panel
      - scores.path={folder}/scores
      - output.path={folder}/watch
      - monitor.rollback=true
      - monitor.rollback_blocks=4 # nights: before the challenger of the next week takes the place of a bad champion
      - monitor.alarms.least=1 # timetables repeat from week to week: as a rule the errors are next to nothing
      - monitor.thresholds.max_alarmed=0.3
      - monitor.thresholds.min_judged=null # the first champion has no backtest to be held against
  weekly:
    cron: 0 8 * * mon
    flow: refresh
    start: {start}
    retries: 0
    overrides: [data.path={folder}/panel, registry.alias=1, backtest.n_windows=2, finetune.holdout_windows=2]
"""


class InProcess(JobProcesses):
    """Jobs that run in this process: `verb` takes the words of a command line."""

    def __init__(self, ledger_uri: str, verb: Callable[[Sequence[str]], int]) -> None:
        super().__init__(ledger_uri)
        self._verb = verb

    def run(self, schedule: Schedule, slot: Slot, *, may_wait: bool) -> tuple[int, int]:  # noqa: ARG002  no job waits
        """Run the job of a slot, and return its exit code and the number of this process."""
        schedule_variables = {SCHEDULE: slot.name, SLOT: slot.key, "GATECAST_LEDGER": self._ledger_uri}
        from forecast.environment import environment_set

        with environment_set(schedule_variables):
            return self._verb([*schedule.flow.split(), *schedule.settings(slot.cutoff)]), os.getpid()


def main(argv: list[str]) -> None:
    """Run the verb: `argv` are settings of `forecast replay`, and of the first training."""
    replay_words = [word for word in argv if word.startswith(("replay.", "output.", "-"))]
    config = command_line.verb_config(ReplayConfig, "replay", replay_words)
    training = [word for word in argv if word not in replay_words]
    # Checked before anything is written, as the training comes later.
    load(TrainConfig, command_line.compose("train", ["data.path=panel", f"window.horizon={_HORIZON}", *training]))
    console.setup()
    Replay(config, training).run()


class Replay:
    """One replay, in a new folder."""

    def __init__(self, config: ReplayConfig, training: Sequence[str]) -> None:
        self._days = config.replay.days
        self._folder = Path(config.output.path).resolve()
        if self._folder.exists() and any(self._folder.iterdir()):
            raise OutputError(f"{self._folder} is not empty: a replay begins anew; give another output.path")
        self._folder.mkdir(parents=True, exist_ok=True)
        self._training = training
        self._log = (self._folder / "replay.log").open("w")
        self._zone = ZoneInfo(_DATA["time_zone"])
        self._store = f"sqlite:///{self._folder / 'mlflow.db'}"
        self._ledger_uri = f"sqlite:///{self._folder / 'ledger.db'}"
        self._ledger = LedgerConfig(uri=SecretStr(self._ledger_uri))
        self._table: pl.DataFrame

    def run(self) -> None:
        """Replay the days, check that nothing is lost or duplicated, and print the cost."""
        from forecast.environment import environment_set

        start = time.monotonic()
        with environment_set({"GATECAST_LEDGER": self._ledger_uri}):
            self._prepare()
            outage = range(self._days // 4, self._days // 4 + _OUTAGE_DAYS)
            damaged, forced = self._days // 2 + 1, 2 * self._days // 3
            # Early in a week, before the challenger of the next week.
            forced += -forced % 7 if forced % 7 > 2 else 0
            refused = forced - 1
            for number in range(self._days):
                day = FIRST + timedelta(days=number)
                self._deliver(day, damaged=number == damaged)
                if number in outage:
                    _tell(day, "nothing runs: an outage")
                    continue
                if number == refused:
                    self._refused(day)
                if number == forced:
                    self._forced(day)
                self._night(day)
                if number == damaged:
                    self._repair(day)
            self._check(time.monotonic() - start)

    # --- Events

    def _prepare(self) -> None:
        """Create the history, the first model and its first champion."""
        import polars as pl

        from forecast.datasets.nyc_flights import nyc_flights
        from forecast.names import SERIES_ID, TARGET, TIMESTAMP

        self._table = nyc_flights().select(SERIES_ID, TIMESTAMP, TARGET, "airport", "carrier").drop_nulls(TARGET)
        (self._folder / "new").mkdir()
        history = self._table.filter(pl.col(TIMESTAMP) < self._midnight(FIRST))
        history.write_parquet(self._folder / "history.parquet")
        schedules = _SCHEDULES.format(
            name=NAME, store=self._store, folder=self._folder, start=FIRST + timedelta(days=1)
        )
        (self._folder / "schedule.yaml").write_text(schedules)
        source = f"data.path={self._folder / 'history.parquet'}"
        self._succeed("data", "prepare", source, *_SETTINGS, f"window.horizon={_HORIZON}", f"output.path={self._panel}")
        window = f"window.horizon={_HORIZON}", "window.context_length=336"
        self._succeed("train", *self._model, f"data.path={self._panel}", *_SETTINGS, *window, *self._training)
        self._promoted(1)
        _tell(FIRST, f"{len(history):,} rows of history; v1, the first model, is made champion")

    def _deliver(self, day: date, *, damaged: bool = False) -> None:
        """Write the rows of a day into the folder of new rows; if damaged, half of them have nonexistent times."""
        import polars as pl

        from forecast.names import TIMESTAMP

        until = self._midnight(day + timedelta(days=1))
        rows = self._table.filter(pl.col(TIMESTAMP) >= self._midnight(day), pl.col(TIMESTAMP) < until)
        if damaged:
            every_second = pl.int_range(pl.len()) % 2 == 0
            rows = rows.with_columns(
                pl.when(every_second).then(pl.col(TIMESTAMP).dt.offset_by("17m")).otherwise(TIMESTAMP)
            )
        rows.write_parquet(self._folder / "new" / f"{day}.parquet")

    def _night(self, day: date) -> None:
        """Run the schedules due in the morning after a day, and print the unusual."""
        before = self._newest()
        morning = self._midnight(day + timedelta(days=1)) + timedelta(hours=9)
        self._scheduler(now=morning).run()
        for entry in reversed(self._entries(after=before)):
            cutoff = datetime.fromisoformat(entry.slot).astimezone(self._zone).date() if entry.slot else day
            if entry.schedule == "nightly" and entry.exit_code == 0 and cutoff != day:
                _tell(day, f"caught up: the forecasts from {cutoff:%a %d %b}")
            elif entry.schedule == "weekly" or entry.exit_code:
                _tell(day, f"{entry.flow}: {_described(entry)}")

    def _repair(self, day: date) -> None:
        """Replace the damaged file, and retry the failed jobs, as a person would."""
        self._deliver(day)
        cutoff = self._midnight(day) + timedelta(hours=23)
        for name in ("append", "nightly"):
            self._scheduler(cutoff=cutoff).once(name)
        _tell(day, "the file was replaced, and append and score run again")

    def _refused(self, day: date) -> None:
        """Train a useless version, and try to promote it."""
        bad = "fit.max_steps=0", "model.skip=false", "model.anchor=level", "model.init=none"
        window = f"window.horizon={_HORIZON}", "window.context_length=48"
        self._succeed("train", *self._model, f"data.path={self._panel}", *_SETTINGS, *bad, *window)
        number = self._newest_version()
        self._succeed(
            "backtest", *self._model, f"data.path={self._panel}", f"registry.alias={number}", "backtest.n_windows=2"
        )
        code = self._verb(["promote", *self._model, f"registry.alias={number}"])
        if code != 5:
            raise GatecastError(f"the gate has let v{number} pass, which is the mean of the last two days")
        _tell(day, f"v{number} is refused by the gate: {_described(next(iter(self._entries(flow='promote'))))}")

    def _forced(self, day: date) -> None:
        """Set the alias to that version without the gate, as is possible in the page of MLflow."""
        number = self._newest_version(trained=True)
        self._promoted(number)
        _tell(day, f"somebody makes v{number} the champion, past the gate")

    # --- Checks at the end

    def _check(self, seconds: float) -> None:
        """Print the result of the replay. Raises OutputError for lost or duplicated rows, or missing events."""
        import polars as pl

        entries = self._entries()
        nights = [entry for entry in entries if entry.schedule == "nightly"]
        completed = Counter(entry.slot for entry in nights if entry.status == "done")
        codes = Counter(entry.exit_code for entry in entries)
        rows, forecasts = self._rows(), self._forecasts()
        missing = []
        if len(completed) != self._days or set(completed.values()) != {1}:
            missing.append(
                f"{len(completed)} of {self._days} nights are scored, {sum(completed.values())} times in all"
            )
        if rows["lost"] or rows["changed"]:
            missing.append(f"{rows['lost']:,} rows of the source are not in the panel, {rows['changed']:,} differ")
        if forecasts["twice"] or forecasts["series"] != _SERIES * self._days:
            missing.append(f"{forecasts['series']:,} series forecast, {forecasts['twice']:,} steps twice")
        missing += [f"no job ended with exit code {code}" for code in (3, 5, 9) if not codes[code]]
        before = self._newest()
        self._scheduler(now=self._midnight(FIRST + timedelta(days=self._days)) + timedelta(hours=9)).run()
        if again := len(self._entries(after=before)):
            missing.append(f"{again} jobs ran again")
        cost = pl.DataFrame(
            [
                {"job": name, "runs": len(took), "median s": sorted(took)[len(took) // 2], "most s": max(took)}
                for name in ("append", "nightly", "watch", "weekly")
                if (took := [entry.seconds for entry in entries if entry.schedule == name and entry.ended])
            ]
        )
        console.table(cost)
        print(
            f"{self._days} days in {seconds:.0f} s: {rows['panel']:,} rows in the panel, {rows['lost']} lost; "
            f"{forecasts['rows']:,} forecasts of {forecasts['series']:,} series, {forecasts['twice']} twice; "
            f"jobs by exit code: {', '.join(f'{code}: {count}' for code, count in sorted(codes.items()))}\n"
            f"ledger: GATECAST_LEDGER={self._ledger_uri} forecast runs list\n"
            f"runs and models: forecast ui registry.tracking_uri={self._store}\n"
            f"the last monitor page: {max(self._folder.glob('watch/as_of=*/monitor.html'))}"
        )
        if missing:
            raise OutputError("the replay did not go as it should: " + "; ".join(missing))

    def _rows(self) -> dict[str, int]:
        """Compare the panel with the source."""
        import polars as pl

        from forecast.data.read import read_panel
        from forecast.names import SERIES_ID, TARGET, TIMESTAMP

        until = self._midnight(FIRST + timedelta(days=self._days))
        source = self._table.filter(pl.col(TIMESTAMP) < until).select(SERIES_ID, TIMESTAMP, TARGET)
        statics = {"static_covariates": ("airport", "carrier")}
        data = load(DataConfig, {**_DATA, **statics, "path": str(self._panel)})
        panel = read_panel(data, _HORIZON).panel.frame().drop_nulls(TARGET)
        panel = panel.with_columns(pl.col(TIMESTAMP).dt.convert_time_zone("UTC").cast(source.schema[TIMESTAMP]))
        joined = source.join(panel, on=[SERIES_ID, TIMESTAMP], how="left", suffix="_panel")
        return {
            "panel": len(panel),
            "lost": joined[f"{TARGET}_panel"].null_count(),
            "changed": int((joined[TARGET] - joined[f"{TARGET}_panel"]).abs().gt(1e-6).sum()),
        }

    def _forecasts(self) -> dict[str, int]:
        import polars as pl

        forecasts = pl.scan_parquet(self._folder / "scores" / "forecasts", hive_partitioning=False)
        keys = ["series_id", "timestamp", "cutoff", "model_version"]
        keys_written = forecasts.select(keys).collect()
        return {
            "rows": len(keys_written),
            "series": keys_written.select("series_id", "cutoff").n_unique(),
            "twice": len(keys_written) - keys_written.n_unique(),
        }

    # --- Helpers

    def _promoted(self, number: int) -> None:
        from forecast.tracking.registry import Registry

        registry = Registry(RegistryConfig(name=NAME, tracking_uri=SecretStr(self._store)))
        registry.promote(registry.resolve(number))

    @property
    def _model(self) -> tuple[str, str]:
        return f"registry.name={NAME}", f"registry.tracking_uri={self._store}"

    @property
    def _panel(self) -> Path:
        return self._folder / "panel"

    def _midnight(self, day: date) -> datetime:
        return datetime.combine(day, datetime.min.time(), self._zone).astimezone(UTC)

    @cached_property
    def _schedules(self) -> "tuple[dict[str, Schedule], NotifyConfig]":
        return read(self._folder / "schedule.yaml")

    def _scheduler(self, **settings: Any) -> Scheduler:
        config = SchedulerConfig(ledger=self._ledger, schedule=ScheduleSettings(**settings))
        return Scheduler(config, *self._schedules, jobs=InProcess(self._ledger_uri, self._verb))

    def _entries(self, after: int = 0, **only: Any) -> "list[Any]":
        """Return the jobs in the ledger, newest first."""
        return [entry for entry in open_ledger(self._ledger).entries(**only) if entry.id > after]

    def _newest(self) -> int:
        return max((entry.id for entry in self._entries()), default=0)

    def _newest_version(self, *, trained: bool = False) -> int:
        from forecast.tracking.registry import Registry

        versions = Registry(RegistryConfig(name=NAME, tracking_uri=SecretStr(self._store))).versions()
        return max(version.number for version in versions if not trained or version.kind == "pretrained")

    def _succeed(self, *words: str) -> None:
        """Run a verb. Raises GatecastError if it fails."""
        if code := self._verb(words):
            raise GatecastError(f"forecast {words[0]} ended with exit code {code}, see {self._log.name}")

    def _verb(self, words: Sequence[str]) -> int:
        """Run a verb with its output in the log of the replay, and return its exit code."""
        with redirect_stdout(self._log), redirect_stderr(self._log):
            return cli.main(words)


def _tell(day: date, text: str) -> None:
    print(f"{day:%a %d %b}  {text}", flush=True)


def _described(entry: Any) -> str:
    outcome = "done" if entry.exit_code == 0 else f"exit code {entry.exit_code}, {entry.error.splitlines()[0]}"
    return f"{outcome} (run {entry.id})"
