"""Training with weights (data.weight) beside training without, on series of M5.

`python -m benchmarks weights [--series N] [--steps N] [--seeds N]` weighs each series by its mean sales in the last 28
days before the first cutoff (the prices that would make it revenue are not in the data), trains with and without
weights, and forecasts four horizons of 28 days after the training. WQL and RMSE count the steps of a series by its
weight, and each the same. CPU seconds are those of training and forecasting.
"""

import argparse
import time
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import torch

import forecast as fc
from benchmarks.stock_outs import demand_of

_KEYS = ("series_id", "timestamp")
_HORIZON, _SEASON, _CUTOFFS = 28, 7, 4
_LEVELS = np.arange(1, 10) / 10


def main(*argv: str) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks weights", description=__doc__)
    parser.add_argument("--series", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=0, help="fit.max_steps; 0 is the closed form")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    print("seed | training | weighted WQL | weighted RMSE | WQL | RMSE | coverage of 80 % | CPU s")
    for seed in range(options.seeds):
        demand = demand_of(options.series, seed)
        last = demand["timestamp"].max()
        assert isinstance(last, datetime)
        cutoffs = [last - timedelta(days=_HORIZON * back) for back in range(_CUTOFFS, 0, -1)]
        latest = demand.filter(pl.col("timestamp").is_between(cutoffs[0] - timedelta(days=27), cutoffs[0]))
        demand = demand.join(latest.group_by("series_id").agg(weight=pl.col("target").mean()), on="series_id")
        settings = {"freq": "1d", "season_length": _SEASON}
        for name, data in (("without weights", settings), ("with weights", settings | {"weight": "weight"})):
            begun = time.process_time()
            frame = _forecasts(demand, cutoffs, data, {"max_steps": options.steps, "seed": seed})
            seconds = time.process_time() - begun
            print(f"{seed} | {name} | {_scores(frame, demand)} | {seconds:.0f}", flush=True)


def _forecasts(table: pl.DataFrame, cutoffs: list[datetime], data: dict[str, Any], fit: dict[str, Any]) -> pl.DataFrame:
    seen = table.filter(pl.col("timestamp") <= cutoffs[0])
    model = fc.train(seen, horizon=_HORIZON, data=data, fit=fit | {"holdout_windows": 0}).artifact
    return pl.concat(
        [fc.forecast(model, table.filter(pl.col("timestamp") <= cutoff), max_age=None).frame for cutoff in cutoffs]
    )


def _scores(frame: pl.DataFrame, demand: pl.DataFrame) -> str:
    """Return weighted and unweighted WQL and RMSE (of the mean), and coverage, as text."""
    both = frame.join(demand.rename({"target": "actual"}), on=_KEYS)
    actual, mean = both["actual"].to_numpy(), both["mean"].to_numpy()
    quantiles = both.select(f"q{10 * k}" for k in range(1, 10)).to_numpy()
    error = actual[:, None] - quantiles
    loss = 2 * np.maximum(_LEVELS * error, (_LEVELS - 1) * error).mean(1)
    parts = []
    for weight in (both["weight"].to_numpy(), np.ones(len(both))):
        wql = (weight * loss).sum() / (weight * np.abs(actual)).sum()
        rmse = np.sqrt((weight * (actual - mean) ** 2).sum() / weight.sum())
        parts += [f"{wql:.4f}", f"{rmse:.3f}"]
    inside = (quantiles[:, 0] <= actual) & (actual <= quantiles[:, -1])
    return " | ".join([*parts, f"{inside.mean():.3f}"])
