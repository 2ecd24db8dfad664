"""A checkpoint of the universal network on sets that it was not trained on.

`python -m benchmarks pretrained [CARD] [--earlier] [--sample N]` forecasts the sets of `small_panels`, and Yearly of
M4, with the network of the package as users get it, or with the checkpoint of a card alone. `--earlier` cuts one more
horizon off: what is chosen is chosen there. MASE and WQL are relative to seasonal naive's, as in `small_panels`.
"""

import argparse
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

import forecast as fc
from benchmarks.meter import ROOT
from benchmarks.small_panels import Forecast, Series, Task, _values, forecast_of, naive, scores, table_of, tasks
from forecast.checkpoints import NANO, card_of
from forecast.models.universal.checkpoint import read_checkpoint
from forecast.models.universal.forecasting import forecast_series
from forecast.models.universal.network import UniversalNetwork

_SECOND = {"1h": 168}
_SPEED = 512, 512, 48


def main(*argv: str) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks pretrained", description=__doc__)
    parser.add_argument("card", nargs="?", type=Path, help="JSON card; the network of the package when not given")
    parser.add_argument("--earlier", action="store_true", help="forecast the last horizon of the training part")
    parser.add_argument("--sample", type=int, help="series of each set at most")
    parser.add_argument("--sets", nargs="*", default=[], help="beginnings of the names of sets; all when not given")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    network = read_checkpoint(options.card or card_of(NANO))[0]
    ratios: dict[str, list[tuple[float, float]]] = {}
    print("set | MASE | WQL | coverage of 80 % | CPU s")
    for task in _tasks(options.sets, earlier=options.earlier, sample=options.sample):
        base, forecast = scores(task, naive(task)), zero_shot(network, task) if options.card else builtin(task)
        mase, wql, coverage = scores(task, forecast)
        row = mase / max(base[0], 1e-12), wql / max(base[1], 1e-12)
        ratios.setdefault(_group(task), []).append(row)
        label, seconds = f"{task.name} ({len(task.series):,})", forecast.seconds
        print(f"{label} | {row[0]:.3f} | {row[1]:.3f} | {coverage:.3f} | {seconds:.1f}", flush=True)
    for group, rows in ratios.items():
        mase, wql = np.exp(np.log(np.array(rows)).mean(0))
        print(f"geometric mean of {len(rows)} sets, {group} | {mase:.4f} | {wql:.4f}")
    print(f"{_speed(network):,.0f} series/s on one core, context {_SPEED[1]}, horizon {_SPEED[2]}")


def builtin(task: Task) -> Forecast:
    """Forecast as users do, reading the table included."""
    table, begun = table_of(task), time.process_time()
    frame = fc.forecast(NANO, table, horizon=task.horizon, data={"freq": task.freq}).frame
    return forecast_of(task, frame, time.process_time() - begun)


def zero_shot(network: UniversalNetwork, task: Task) -> Forecast:
    """Forecast with a network that has not seen the panel."""
    past, n = [each.past for each in task.series], len(task.series)
    begun = time.process_time()
    quantiles = forecast_series(network, past, [task.season] * n, [_SECOND.get(task.freq, 0)] * n, task.horizon)
    # Without those at .025 and .975.
    return Forecast(quantiles[..., 1:-1], time.process_time() - begun)


def _tasks(names: list[str], *, earlier: bool, sample: int | None) -> Iterator[Task]:
    yield from tasks(names, earlier=earlier, sample=sample)
    if names and not "m4_yearly".startswith(tuple(names)):
        return
    folder = Path(os.environ.get("GATECAST_BENCH_DATA", ROOT.parent / "shared" / "data")) / "m4_yearly"
    train, test = (_values(folder / f"{part}.parquet") for part in ("train", "test"))
    keys = sorted(train)
    if sample:
        keys = [keys[row] for row in np.random.default_rng(0).permutation(len(keys))[:sample]]
    series = [Series(train[key], test[key]) for key in keys]
    if earlier:
        series = [Series(each.past[:-6], each.past[-6:]) for each in series]
    yield Task("m4_yearly", "1y", 1, 6, series)


def _group(task: Task) -> str:
    return {"1y": "yearly", "1q": "quarterly", "1mo": "monthly", "1w": "weekly", "1d": "daily"}.get(task.freq, "hourly")


def _speed(network: UniversalNetwork) -> float:
    n, context, horizon = _SPEED
    series = [*np.random.default_rng(0).normal(size=(n, context)).cumsum(1)]
    begun = time.process_time()
    forecast_series(network, series, [24] * n, [168] * n, horizon)
    return n / (time.process_time() - begun)


if __name__ == "__main__":
    import sys

    main(*sys.argv[1:])
