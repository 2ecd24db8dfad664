"""Accuracy for equal cost, beside other libraries: M4 Hourly, each trained for the same CPU seconds in one thread.

`python -m benchmarks race [--seconds 60,300]` trains the recurrent networks of neuralforecast, darts and gluonts and
the preset `m4_hourly` for each budget, and scores all by the code of `benchmarks accuracy`. Then come the closed form
alone, the closed form with a gated `head` for each series, and the preset with budgets upwards, until one is as good as
the best of the others was with the largest. CPU seconds are those of all threads from the data in a library's own form
to the trained model; reading the table and forecasting are not counted. The other libraries are installed as for
`benchmarks data`; those that can't be are left out. What was chosen for them is said in `peers/train.py`.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from benchmarks.accuracy import TASKS, Forecaster, configured, data_folder, fitted, head, model, show
from benchmarks.data import environment
from benchmarks.meter import run
from forecast.artifact import Artifact
from forecast.config import TrainConfig
from forecast.data.ingest.loaded import Loaded
from forecast.data.read import read_panel
from forecast.finetuning.finetune import finetune
from forecast.training.budget import Budget
from forecast.training.split import training_data

TASK = TASKS["m4_hourly"]
OURS, HEADS = "gatecast, preset m4_hourly", "gatecast, closed form and heads"
# The library, which names the environment and the task of `peers.train`, and its settings.
PEERS: dict[str, tuple[str, dict[str, str]]] = {
    "neuralforecast LSTM": ("neuralforecast", {"network": "LSTM"}),
    "neuralforecast GRU": ("neuralforecast", {"network": "GRU"}),
    "darts BlockRNN, LSTM": ("darts", {}),
    "gluonts DeepAR": ("gluonts", {}),
}
# CPU seconds that ours gets to reach the best peer, after the closed form alone (0), and that with heads.
RUNGS = (30.0, 45.0, 60.0, 120.0)

Trained = tuple[Forecaster, object, float]
"""What forecasts, its steps, and the CPU seconds of its training."""


class CpuBudget(Budget):
    """A budget in CPU seconds of this process, all threads, in place of those of the clock."""

    def __init__(self, max_steps: int, max_minutes: float | None) -> None:
        super().__init__(max_steps, max_minutes)
        self._begun = time.process_time()

    def now(self) -> float:
        """Return the CPU seconds since the begin."""
        return time.process_time() - self._begun


def main(*argv: str) -> None:
    """Print a line for each budget and model, and the cost at which ours has reached the best of the others."""
    parser = argparse.ArgumentParser("python -m benchmarks race", description=__doc__)
    parser.add_argument("--seconds", default="60,300", metavar="N,...", help="budgets of CPU (60,300 when not given)")
    budgets = sorted(float(seconds) for seconds in parser.parse_args(argv).seconds.split(","))
    folder = data_folder(TASK, "race")
    if folder is None:
        return
    torch.set_num_threads(1)
    config = configured(TASK, folder, ["fit.max_steps=1000000"])  # The budget ends it.
    loaded = training_data(
        read_panel(config.data, config.window.horizon), config.window.horizon, config.model, config.fit
    )
    judge = TASK.judge(TASK, config, loaded, folder)
    contenders: dict[str, Callable[[float], Trained]] = {
        name: partial(_peer, python, library, settings, config, loaded)
        for name, (library, settings) in PEERS.items()
        if (python := environment(library))
    }
    peers = tuple(contenders)
    contenders[OURS] = partial(_ours, config, loaded)
    budgeted = tuple(contenders)
    contenders[HEADS] = partial(_heads, config, loaded)
    found: dict[tuple[str, float], tuple[float, float]] = {}  # MASE and CPU seconds.

    def train(name: str, seconds: float) -> None:
        forecaster, steps, spent = contenders[name](seconds)
        scores = judge(forecaster)
        show(TASK, name, scores, f"{seconds:g}", steps, f"{spent:.1f}")
        found[name, seconds] = scores["MASE"], spent

    head(TASK, "M4 Hourly", "budget")
    for seconds in budgets:
        for name in budgeted:
            try:
                train(name, seconds)
            except RuntimeError as error:
                if name not in peers:
                    raise
                print(f"{name} left out: {error}")
    reached = {name: found[name, budgets[-1]][0] for name in peers if (name, budgets[-1]) in found}
    if not reached:
        return
    best = min(reached, key=reached.__getitem__)
    said = f"{best} has MASE {reached[best]:.3f} after {budgets[-1]:g} CPU seconds"
    for name, seconds in [(OURS, 0.0), (HEADS, 0.0), *((OURS, seconds) for seconds in sorted({*RUNGS, *budgets}))]:
        if (name, seconds) not in found:
            train(name, seconds)
        mase, spent = found[name, seconds]
        if mase <= reached[best]:
            print(f"\n{said}; {name} {mase:.3f} after {spent:.1f}")
            return
    print(f"\n{said}, which ours does not reach")


def _ours(config: TrainConfig, loaded: Loaded, seconds: float) -> Trained:
    artifact, steps, spent = _fitted(config, loaded, seconds)
    return model(artifact), steps, spent


def _heads(config: TrainConfig, loaded: Loaded, seconds: float) -> Trained:
    artifact, steps, spent = _fitted(config, loaded, seconds)
    begun = time.process_time()
    tuned = finetune(artifact, loaded.panel, TASK.tuning)
    return model(tuned.artifact), steps, spent + time.process_time() - begun


def _fitted(config: TrainConfig, loaded: Loaded, seconds: float) -> tuple[Artifact, object, float]:
    budget = {"max_minutes": seconds / 60} if seconds else {"max_steps": 0}
    with mock.patch("forecast.training.member.Budget", CpuBudget):
        return fitted(config.model_copy(update={"fit": config.fit.model_copy(update=budget)}), loaded)


def _peer(
    python: Path, library: str, settings: dict[str, str], config: TrainConfig, loaded: Loaded, seconds: float
) -> Trained:
    with tempfile.TemporaryDirectory() as folder:
        out = f"{folder}/quantiles.npy"
        made = run(
            library,
            module="benchmarks.peers.train",
            python=python,
            path=config.data.path,
            out=out,
            seconds=seconds,
            horizon=config.window.horizon,
            levels=config.model.quantile_levels,
            **settings,
        )
        quantiles = np.load(out)
    assert made["series"] == loaded.panel.series_id.tolist()
    return lambda *_: quantiles, made["steps"], made["cpu"]
