"""The command line in this process, and a small panel to run it on."""

import io
import os
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import polars as pl
import pytest

from pipelines import cli, monitor, runs
from pipelines.scheduling import job_processes

NAME = "loads"
HORIZON = 12
STEPS = 24 * 18
SERIES = [f"s{number:02d}" for number in range(20)]
START = datetime(2024, 1, 1)
END = START + timedelta(hours=STEPS - 1)

TRAIN = (
    f"window.horizon={HORIZON}",
    "window.context_length=48",
    "model.hidden_size=8",
    "model.init=none",
    "model.smoothing=false",
    "fit.max_steps=20",
    "fit.batch_size=8",
    "fit.validation_every=10",
    "fit.validation_windows=2",
    "fit.holdout_windows=2",
    "fit.final=false",
    "fit.accelerator=cpu",
)
FINETUNE = (
    "finetune.gate_windows=2",
    "finetune.report_windows=1",
    "finetune.holdout_windows=2",
    "finetune.final=false",
)
BACKTEST = ("backtest.n_windows=2",)
OVERFIT = ("finetune.origins=8", "finetune.min_gain=0", "finetune.min_windows_better=0", "finetune.blend=1")
"""Settings that make the fine-tuned model worse than its base."""


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """What was printed."""
        return self.out.splitlines()


def forecast(*arguments: object) -> Done:
    """Run `forecast` with these arguments in this process."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = cli.main([str(argument) for argument in arguments])
    return Done(code, out.getvalue(), err.getvalue())


def succeed(*arguments: object) -> Done:
    """Run `forecast`, which has to end well."""
    done = forecast(*arguments)
    assert done.code == 0, done.err
    return done


def refuse(code: int, *arguments: object) -> str:
    """Run `forecast`, which has to end with this exit code and nothing printed; return its message."""
    done = forecast(*arguments)
    assert done.code == code, done.err
    assert not done.out
    assert "Traceback" not in done.err
    *_, message = done.err.partition("error: ")
    assert message, done.err
    return message


class InlineJob:
    """A job that a scheduler, a monitor or a retry starts, run in this process with its environment and its folder."""

    def __init__(
        self, command: Sequence[str], *, env: Mapping[str, str], cwd: str | None = None, **_options: object
    ) -> None:
        self.pid = os.getpid()
        with pytest.MonkeyPatch.context() as monkeypatch, chdir(cwd or Path.cwd()):
            for name in os.environ.keys() - env.keys():
                monkeypatch.delenv(name)
            for name, value in env.items():
                monkeypatch.setenv(name, value)
            self.returncode = cli.main(command[3:])

    def wait(self, _seconds: float | None = None) -> int:
        """Return the exit code."""
        return self.returncode


def run_jobs_inline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the jobs of schedulers, monitors and retries as `InlineJob`: a process of its own imports for seconds.

    Tests of processes themselves, killed, late or many at once, leave this out.
    """
    inline = SimpleNamespace(**vars(subprocess) | {"Popen": InlineJob, "run": InlineJob})
    for module in (job_processes, monitor, runs):
        monkeypatch.setattr(module, "subprocess", inline)


def panel() -> pl.DataFrame:
    """Return 20 hourly series, sorted: ten with a daily cycle, and ten each with a cycle that is its own."""
    rng = np.random.default_rng(0)
    hours = np.arange(STEPS)
    stamps = pl.datetime_range(START, END, "1h", eager=True)
    periods = [24] * 10 + [25 + 3 * number for number in range(10)]
    values = [
        20 + 5 * np.sin(2 * np.pi * hours / period + number) + rng.normal(0, 0.5, STEPS)
        for number, period in enumerate(periods)
    ]
    return pl.DataFrame(
        {
            "series_id": np.repeat(SERIES, STEPS),
            "timestamp": pl.concat([stamps] * len(SERIES)),
            "target": np.concatenate(values).round(3),
        }
    )


def six_series() -> pl.DataFrame:
    """Return six series of the panel, three with a daily cycle, for tests of which the whole panel is no part."""
    return panel().filter(pl.col("series_id").is_in(SERIES[7:13]))


@dataclass(frozen=True)
class Store:
    """A store with trained models in it, which is the default one of the test, and the table they were trained on."""

    uri: str
    table: Path
    """The whole panel."""
    mlruns: Path
    """The artifacts of all runs and models of these tests."""
    folder: Path
    """An empty folder."""

    def write(self, table: pl.DataFrame, name: str = "table.parquet") -> Path:
        """Write another table."""
        path = self.folder / name
        table.write_csv(path) if path.suffix == ".csv" else table.write_parquet(path)
        return path

    def score(self, table: Path | None = None, *arguments: object, output: str = "out") -> Done:
        """Score a table with the champion."""
        path = f"data.path={table or self.table}"
        return succeed("score", f"registry.name={NAME}", path, f"output.path={self.folder / output}", *arguments)

    def forecasts(self, output: str = "out") -> pl.DataFrame:
        """Return the forecasts in an output folder, which are of one cutoff."""
        return written(self.folder / output)

    def rejects(self, output: str = "out") -> pl.DataFrame:
        """Return the rejects in an output folder, which are of one cutoff."""
        return written(self.folder / output, "rejects")


def written(folder: Path, kind: str = "forecasts") -> pl.DataFrame:
    """Return the forecasts of one cutoff in an output folder, or the rejects, those of reading among them."""
    places = [path for path in (folder / kind).iterdir() if not path.name.startswith("rows.")]
    assert len(places) == 1 or (kind == "rejects" and not places)
    files = [*(folder / kind).glob("rows.*/*"), *(file for path in places for file in sorted(path.iterdir()))]
    return pl.concat(pl.read_parquet(file, hive_partitioning=False) for file in files)
