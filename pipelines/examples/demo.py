"""`forecast demo [OUT] [KEY=VALUE ...]`: the whole job on real data, from first forecasts to a month of nights."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from forecast.config import (
    BacktestConfig,
    FinetuneConfig,
    MonitorConfig,
    PromoteConfig,
    ScoreConfig,
    TrainConfig,
    load,
)
from forecast.errors import ConfigError, GateRefused
from pipelines.jobs import console
from pipelines.jobs.command_line import compose

if TYPE_CHECKING:
    import polars as pl

    from forecast.tracking.registry import Registry
    from forecast.tracking.versions import Version

USAGE: Final = """usage: forecast demo [OUT] [KEY=VALUE ...]

Forecast the people at sensors in Auckland, by hour, below OUT (demo when not given): first forecasts without training;
train, fine-tune, backtest, promote; six new sensors; four weeks of nights, monitored.
KEY=VALUE are settings of `forecast train`. Needs the demo extra: pip install 'gatecast[demo]'."""

# Chosen before any forecast of these weeks was made: four weeks without a holiday.
TODAY: Final = datetime(2025, 8, 18)
"""Midnight after the last hour of the first table."""
START, NIGHTS, WEEKS_OF_NEW = datetime(2024, 1, 1), 28, 4
NAME: Final = "auckland"
GROUP: Final = "group"
"""Column of the scores: the first sensors, or those that came later."""


class Clock:
    """Stopwatch: seconds per stage, in order."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time a stage."""
        start = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - start


class Demo:
    """The jobs of the demo in a folder: two tables, a registry, forecasts and pages."""

    def __init__(self, folder: Path, overrides: Sequence[str]) -> None:
        self.folder, self.clock = folder, Clock()
        self.today, self.later = folder / "panel.parquet", folder / "later.parquet"
        self.uri = f"sqlite:///{folder.resolve() / 'mlflow.db'}"
        self.registry = [f"registry.name={NAME}", f"registry.tracking_uri={self.uri}"]
        data = [f"data.path={self.today}", *self.registry]
        self.training = load(TrainConfig, compose("train", ["experiment=auckland", *data, *overrides]))
        last_hours = [TODAY + timedelta(days=day, hours=-1) for day in range(NIGHTS)]
        self.nights = f"{last_hours[0]:%Y-%m-%dT%H:%M:%S}..{last_hours[-1]:%Y-%m-%dT%H:%M:%S}/1d"

    def write_tables(self) -> None:
        """Write the table of today, and that of four weeks later, which has the new sensors."""
        import polars as pl

        from forecast.data.files import write_parquet_atomic
        from forecast.datasets.auckland import NEW_SENSORS, auckland_pedestrians
        from forecast.names import SERIES_ID, TIMESTAMP

        with console.stage("data") as stage:
            panel = auckland_pedestrians(START, TODAY + timedelta(days=NIGHTS))
            is_new = pl.col(SERIES_ID).is_in(NEW_SENSORS)
            today = panel.filter(~is_new & (pl.col(TIMESTAMP) < TODAY))
            write_parquet_atomic(today, self.today)
            since = TODAY - timedelta(weeks=WEEKS_OF_NEW)
            write_parquet_atomic(panel.filter(~is_new | (pl.col(TIMESTAMP) >= since)), self.later)
            stage.note(rows=today.height, series=today[SERIES_ID].n_unique(), table=self.today)

    def first_forecasts(self) -> None:
        """Forecast with the network of the package: no training, no registered model."""
        from forecast.checkpoints import NANO
        from pipelines import score_version

        horizon = f"window.horizon={self.training.window.horizon}"
        output = f"output.path={self.folder / 'first'}"
        arguments = [f"data.path={self.today}", f"registry.tracking_uri={self.uri}", horizon, output]
        outcome = score_version.run(load(ScoreConfig, compose("score", [*arguments, f"registry.alias={NANO}"])))
        outcome.check()
        print(f"{outcome.version}: {outcome.line}")

    def build_champion(self) -> "pl.DataFrame":
        """Train, fine-tune, backtest and promote; return the decisions of the gate of fine-tuning.

        If the fine-tuned version is refused, its base becomes champion.
        """
        from pipelines import finetune, train

        with self.clock("train"):
            base, line = train.run(self.training)
            print(f"{base} (pretrained): {line}")
        with self.clock("fine-tune"):
            tuned, line, decisions = finetune.run(self._config(FinetuneConfig, "finetune", f"data.path={self.today}"))
            print(f"{tuned} (fine_tuned): {line}")
        judging = [f"data.path={self.today}", f"backtest.n_windows={self.training.fit.holdout_windows}"]
        with self.clock("backtest, promote"):
            if not self._promote(tuned, judging):
                self._promote(base, judging)
        return decisions

    def _promote(self, version: "Version", judging: list[str]) -> bool:
        """Backtest a version and return whether it becomes champion."""
        from pipelines import backtest, promote

        alias = f"registry.alias={version.number}"
        _, line, _ = backtest.run(self._config(BacktestConfig, "backtest", alias, *judging))
        print(f"{version}: {line}")
        try:
            _, verdict = promote.run(self._config(PromoteConfig, "promote", alias))
        except GateRefused as refusal:
            print(refusal)
            return False
        print(f"{version} is champion: {verdict}")
        return True

    def add_sensors(self) -> "pl.DataFrame":
        """Fine-tune the champion for the new sensors, by their history of four weeks, and promote it if it is better.

        Return the decisions of the gate of fine-tuning.
        """
        import polars as pl

        from forecast.datasets.auckland import NEW_SENSORS
        from forecast.finetuning.series_gate import TUNED
        from forecast.names import CHAMPION, REASON, SERIES_ID, SOURCE_FINE_TUNED
        from pipelines import finetune

        champion = self.open_registry().find(CHAMPION)
        incremental = champion is not None and champion.kind == SOURCE_FINE_TUNED
        until = f"data.until={TODAY - timedelta(hours=1):%Y-%m-%dT%H:%M:%S}"
        arguments = [f"data.path={self.later}", until]
        # Four days are held out, not two weeks as for the others: their history is short.
        tuning = ["registry.alias=champion", "finetune.holdout_windows=4"]
        config = self._config(FinetuneConfig, "finetune", *tuning, *arguments)
        settings = config.finetune.model_copy(update={"series": NEW_SENSORS, "incremental": incremental})
        version, line, decisions = finetune.run(config.model_copy(update={"finetune": settings}))
        print(f"{version} (new sensors): {line}")
        of_new = decisions.filter(pl.col(SERIES_ID).is_in(NEW_SENSORS))
        if (of_new[REASON] == TUNED).any():
            self._promote(version, arguments)
        return of_new

    def score_nights(self) -> "list[dict[str, Any]]":
        """Forecast all sensors on each of the nights; return the manifests."""
        from pipelines import score_version

        output = f"output.path={self.folder / 'scores'}"
        arguments = [f"data.path={self.later}", "registry.alias=champion", output, f"score.cutoffs={self.nights}"]
        outcome = score_version.run(self._config(ScoreConfig, "score", *arguments))
        outcome.check()
        print(f"{outcome.version}: {outcome.line}")
        return [output.content for output in outcome.outputs]

    def monitor(self) -> Path:
        """Judge the last of the nights by what happened; return the page."""
        from pipelines import monitor

        paths = [f"scores.path={self.folder / 'scores'}", f"output.path={self.folder / 'watch'}"]
        hours = 24 * 7
        arguments = [f"data.path={self.later}", *paths, f"monitor.recent={hours}", f"monitor.history={3 * hours}"]
        result = monitor.run(self._config(MonitorConfig, "monitor", *arguments))
        print(result.line)
        return result.folder / "monitor.html"

    def scores(self) -> "tuple[pl.DataFrame, pl.DataFrame]":
        """Return scores and forecasts of champion, base, built-in network and seasonal naive on the nights.

        The scores have a column `group`: the sensors that are new, and the others.
        """
        import polars as pl

        import forecast as fc
        from forecast.api import read
        from forecast.backtesting.result import Contender
        from forecast.checkpoints import NANO
        from forecast.datasets.auckland import NEW_SENSORS
        from forecast.names import SERIES_ID
        from pipelines import backtest

        data = self.training.data.model_dump(include={"freq", "season_length"})
        built_in = fc.pretrained(NANO, self.later, horizon=self.training.window.horizon, data=data)
        others = {NANO: Contender(built_in, read(built_in, self.later).panel)}
        arguments = [f"data.path={self.later}", "registry.alias=champion", f"backtest.cutoffs={self.nights}"]
        _, line, result = backtest.run(self._config(BacktestConfig, "backtest", *arguments), others)
        print(f"four weeks: {line}")
        is_new = pl.col(SERIES_ID).is_in(NEW_SENSORS)
        group = pl.when(is_new).then(pl.lit("new")).otherwise(pl.lit("first")).alias(GROUP)
        return result.scores.with_columns(group), result.forecasts

    def open_registry(self) -> "Registry":
        """Return the registry of the demo."""
        from forecast.tracking.registry import Registry

        return Registry(self.training.registry)

    def _config(self, kind: Any, verb: str, *arguments: str) -> Any:
        return load(kind, compose(verb, [*self.registry, *arguments]))


def main(argv: list[str]) -> None:
    """Run the verb."""
    if any(word in ("-h", "--help") for word in argv):
        print(USAGE)
        return
    folders = [word for word in argv if "=" not in word]
    if len(folders) > 1:
        raise ConfigError(USAGE)
    console.setup()
    run(Path(folders[0] if folders else "demo"), [word for word in argv if "=" in word])


def run(folder: Path, overrides: Sequence[str]) -> None:
    """Run every stage once and print the results."""
    from pipelines.examples.demo_report import Results, show

    demo = Demo(folder, overrides)
    with demo.clock("data"):
        demo.write_tables()
    with demo.clock("first forecasts"):
        demo.first_forecasts()
    decisions = demo.build_champion()
    with demo.clock("new sensors"):
        new_decisions = demo.add_sensors()
    with demo.clock("nights"):
        manifests = demo.score_nights()
    with demo.clock("monitor"):
        page = demo.monitor()
    with demo.clock("compare"):
        scores, forecasts = demo.scores()
    show(demo, Results(scores, forecasts, decisions, new_decisions, manifests, page))
