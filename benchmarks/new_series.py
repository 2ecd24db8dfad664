"""Series that come later, with a few weeks of history, by models that were trained on the others.

`python -m benchmarks new_series [SET ...]` withholds five series of M4 Hourly, and of M5, trains the closed form on 200
others, and forecasts the test part of the five from their last 2, 4, 8 and 26 weeks: zero-shot, by a model that is
trained on these weeks alone (without the pretrained network and with it), by the model of the others, and by that
fine-tuned for the five. MASE and WQL are relative to seasonal naive's on the whole history.
"""

import argparse
import warnings
from collections.abc import Callable
from datetime import datetime

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


def main(*argv: str) -> None:
    """Print a line for each set and length of history."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks new_series", description=__doc__)
    parser.add_argument("sets", nargs="*", default=list(_SETS), help=f"of {', '.join(_SETS)}")
    warnings.simplefilter("ignore")
    print("set, history | zero-shot | alone | alone, with the pretrained | model of the others | fine-tuned")
    for name in parser.parse_args(argv).sets:
        _run(name)


def _run(name: str) -> None:
    freq, season, horizon = SUBSETS[name]
    train, test = subset(name)
    longest = max(len(values) for values in train.values())
    order = np.random.default_rng(1).permutation(sorted(train))
    new = sorted(key for key in order if len(train[key]) > longest // 2)[:_NEW]
    others = {key: train[key] for key in [key for key in order if key not in new][:_OTHERS]}
    base = fc.train(_table(others, freq), horizon=horizon, data={"freq": freq}, fit=_CLOSED).artifact
    whole = Task(name, freq, season, horizon, [Series(train[key], test[key][:horizon]) for key in new])
    usual = scores(whole, naive(whole))
    for weeks in _WEEKS:
        steps = weeks * _SETS[name]
        if steps > min(len(train[key]) for key in new):
            continue
        history = {key: train[key][-steps:] for key in new}
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


def _cell(task: Task, usual: tuple[float, float, float], model: Callable[[], Artifact], history: pl.DataFrame) -> str:
    try:
        frame = fc.forecast(model(), history).frame
    except GatecastError as error:
        return "too short" if "long enough" in str(error) else str(error)
    mase, wql, coverage = scores(task, forecast_of(task, frame, 0.0))
    return f"{mase / usual[0]:.3f} / {wql / usual[1]:.3f} / {coverage:.2f}"


def _table(series: dict[str, Array], freq: str) -> pl.DataFrame:
    """Return series as a table; all end on the same date."""
    longest = max(len(values) for values in series.values())
    grid = pl.datetime_range(datetime(1900, 1, 1), datetime(2100, 1, 1), freq, eager=True)[:longest].to_list()
    return pl.concat(
        pl.DataFrame({"series_id": [key] * len(values), "timestamp": grid[-len(values) :], "target": values})
        for key, values in series.items()
    )
