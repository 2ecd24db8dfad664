"""The time to start: whole processes of short verbs, beside the imports of torch and MLflow alone.

`python -m benchmarks start` trains a small model in a temporary folder, with the default registry (a SQLite file), and
runs each command in turn, `GATECAST_BENCH_ROUNDS` times (5 when not set): the least and the median CPU and wall seconds
of a process with all its imports.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl

from benchmarks.meter import ROOT, Meter

_SERIES: Final = 35
_DAYS: Final = 400
_FORECAST: Final = ("-m", "pipelines.cli")
_READING: Final = ("data.path=panel.parquet", "registry.name=daily", "registry.alias=pretrained")
COMMANDS: Final = {
    "import torch": ("-c", "import torch"),
    "import mlflow": ("-c", "import mlflow"),
    "import forecast": ("-c", "import forecast"),
    "forecast --help": (*_FORECAST, "--help"),
    "forecast train --help": (*_FORECAST, "train", "--help"),
    "a path that does not exist": (*_FORECAST, "train", "data.path=nowhere.parquet", "window.horizon=7"),
    "forecast runs list": (*_FORECAST, "runs", "list"),
    "forecast models list": (*_FORECAST, "models", "list", "registry.name=daily"),
    f"forecast score, {_SERIES} series": (*_FORECAST, "score", *_READING, "score.force=true", "output.path=scores"),
}


def main() -> None:
    """Print a row for each command."""
    rounds = int(os.environ.get("GATECAST_BENCH_ROUNDS") or 5)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _panel().write_parquet(folder / "panel.parquet")
        settings = ("data.path=panel.parquet", "registry.name=daily", "window.horizon=7", "fit.max_steps=20")
        _run((*_FORECAST, "train", *settings), folder)
        seconds: dict[str, list[tuple[float, float]]] = {command: [] for command in COMMANDS}
        for _ in range(rounds):
            for command, words in COMMANDS.items():
                seconds[command].append(_run(words, folder))
    print(f"{'':<28} {'CPU min':>8} {'median':>8} {'wall min':>8} {'median':>8}")
    for command, pairs in seconds.items():
        cpu, wall = zip(*pairs, strict=True)
        figures = min(cpu), statistics.median(cpu), min(wall), statistics.median(wall)
        print(f"{command:<28}" + "".join(f" {figure:8.2f}" for figure in figures))


def _panel() -> pl.DataFrame:
    """Return a daily panel with a weekly season, from a fixed seed."""
    random = np.random.default_rng(0)
    start = datetime(2023, 1, 1)
    days = [start + timedelta(days=day) for day in range(_DAYS)]
    season = 10 + 3 * np.sin(np.arange(_DAYS) * 2 * np.pi / 7)
    return pl.concat(
        pl.DataFrame({"series_id": f"s{number:02}", "timestamp": days, "target": season + random.normal(size=_DAYS)})
        for number in range(_SERIES)
    )


def _run(words: tuple[str, ...], folder: Path) -> tuple[float, float]:
    """Run Python with arguments; return the CPU and wall seconds of the process."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, "GATECAST_CACHE": str(folder / "cache")}
    with Meter() as meter:
        subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, check=False)
    return meter.figures["cpu"], meter.figures["wall"]
