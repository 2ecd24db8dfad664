"""Series that come later, with a few weeks of history, by models that were trained on the others.

`python -m benchmarks new_series [SET ...]` withholds five series of M4 Hourly, and of M5, trains the closed form on 200
others, and forecasts the test part of the five from their last 2, 4, 8 and 26 weeks: zero-shot, by a model that is
trained on these weeks alone (without the pretrained network and with it), by the model of the others, and by that
fine-tuned for the five. MASE and WQL are relative to seasonal naive's on the whole history.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any

import numpy as np
import polars as pl

import forecast as fc
from benchmarks.small_panels import (
    SUBSETS,
    Array,
    Series,
    Task,
    forecast_of,
    naive,
    scores,
    subset,
)
from forecast.artifact import Artifact
from forecast.checkpoints import NANO
from forecast.errors import GatecastError

_SETS = {"m4_hourly": 168, "m5": 7}
"""Steps of a week."""
_WEEKS = 2, 4, 8, 26
_NEW, _OTHERS = 5, 200
_CLOSED = {"max_steps": 0}
# Of what the network has not seen, fine-tuning leaves four horizons to backtests, unless told otherwise.
_WHOLE: dict[str, Any] = {"holdout_windows": 0}
_OPEN = {"gate": "strict", "min_gain": 0.0, "min_windows_better": 0.0}


def main(*argv: str) -> None:
    """Print a line for each set and length of history."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks new_series", description=__doc__)
    parser.add_argument("sets", nargs="*", default=list(_SETS), help=f"of {', '.join(_SETS)}")
    parser.add_argument("--kinds", help="kinds of fine-tuning of the pretrained network: head,bias,embedding,lora,full")
    parser.add_argument("--seed", type=int, help="draw the five series; the first by name when not given")
    options = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    kinds = options.kinds.split(",") if options.kinds else []
    columns = [f"{kind}{how}" for kind in kinds for how in ("", ", ungated")]
    columns = columns or ["alone", "alone, with the pretrained", "model of the others", "fine-tuned"]
    print(" | ".join(["set, history", "zero-shot", *columns]))
    for name in options.sets:
        _run(name, kinds, options.seed)


def _run(name: str, kinds: list[str], seed: int | None) -> None:
    freq, season, horizon = SUBSETS[name]
    train, test = subset(name)
    longest = max(len(values) for values in train.values())
    order = np.random.default_rng(1 if seed is None else seed).permutation(sorted(train))
    long = [key for key in (sorted(order) if seed is None else order) if len(train[key]) > longest // 2]
    new = sorted(long[:_NEW])
    others = {key: train[key] for key in [key for key in order if key not in new][:_OTHERS]}
    if not kinds:
        base = fc.train(_table(others, freq), horizon=horizon, data={"freq": freq}, fit=_CLOSED).artifact
    whole = Task(name, freq, season, horizon, [Series(train[key], test[key][:horizon]) for key in new])
    usual = scores(whole, naive(whole))
    for weeks in _WEEKS:
        steps = weeks * _SETS[name]
        if steps > min(len(train[key]) for key in new):
            continue
        history = {key: train[key][-steps:] for key in new}
        if kinds:
            models = _tuned(history, kinds, freq=freq, horizon=horizon)
        else:
            models = _models(base, others, history, freq=freq, horizon=horizon)
        cells = [_cell(whole, usual, model, _table(history, freq)) for model in models]
        print(" | ".join([f"{name}, {weeks} weeks", *cells]), flush=True)


def _models(
    base: Artifact, others: dict[str, Array], history: dict[str, Array], *, freq: str, horizon: int
) -> list[Callable[[], Artifact]]:
    table, data = _table(history, freq), {"freq": freq}

    def alone(init: str) -> Artifact:
        return fc.train(table, horizon=horizon, data=data, fit=_CLOSED, model={"init": init}).artifact

    return [
        lambda: fc.pretrained(NANO, table, horizon=horizon, data=data),
        lambda: alone("none"),
        lambda: alone(NANO),
        lambda: base,
        lambda: fc.finetune(base, _table(others | history, freq), series=sorted(history)).artifact,
    ]


def _tuned(history: dict[str, Array], kinds: list[str], *, freq: str, horizon: int) -> list[Callable[[], Artifact]]:
    table = _table(history, freq)
    base = fc.pretrained(NANO, table, horizon=horizon, data={"freq": freq})

    def tuned(kind: str, gate: dict[str, Any]) -> Artifact:
        return fc.finetune(base, table, kind=kind, **gate).artifact

    gates: list[dict[str, Any]] = [_WHOLE, _WHOLE | _OPEN]
    return [lambda: base, *(partial(tuned, kind, gate) for kind in kinds for gate in gates)]


def _cell(task: Task, usual: tuple[float, float, float], model: Callable[[], Artifact], history: pl.DataFrame) -> str:
    begun = time.process_time()
    try:
        artifact = model()
        frame = fc.forecast(artifact, history).frame
    except GatecastError as error:
        return "too short" if "long enough" in str(error) else str(error)
    mase, wql, coverage = scores(task, forecast_of(task, frame, 0.0))
    spent = time.process_time() - begun
    told = f", {spent:.1f} s, {len(artifact.bank.series_id)} tuned" if artifact.bank else ""
    return f"{mase / usual[0]:.3f} / {wql / usual[1]:.3f} / {coverage:.2f}{told}"


def _table(series: dict[str, Array], freq: str) -> pl.DataFrame:
    """Return series as a table; all end on the same date."""
    longest = max(len(values) for values in series.values())
    grid = pl.datetime_range(datetime(1900, 1, 1), datetime(2100, 1, 1), freq, eager=True)[:longest].to_list()
    return pl.concat(
        pl.DataFrame({"series_id": [key] * len(values), "timestamp": grid[-len(values) :], "target": values})
        for key, values in series.items()
    )
