"""Stock-outs that are masked (data.available) beside the zeros they leave in the sales, on series of M5.

`python -m benchmarks stock_outs [--series N] [--share S] [--steps N] [--seeds N]` draws series of M5 (from
`GATECAST_BENCH_DATA`, `../shared/data` when not set), and puts them out of stock in random spans of a week on average
until the share of their days is reached; the sales of these days become 0. Models are trained on the true demand, on
the sales, and on the sales with the days out of stock masked. All forecast the last four horizons of 28 days from the
history as they read it, and are judged by the true demand. CPU seconds are those of training and forecasting.
"""

import argparse
import os
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

import forecast as fc
from benchmarks.meter import ROOT

_KEYS = ("series_id", "timestamp")
_HORIZON, _SEASON, _SPAN, _CUTOFFS = 28, 7, 7, 4
_LEVELS = np.arange(1, 10) / 10


def main(*argv: str) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks stock_outs", description=__doc__)
    parser.add_argument("--series", type=int, default=1000)
    parser.add_argument("--share", type=float, default=0.1, help="share of the days out of stock")
    parser.add_argument("--steps", type=int, default=0, help="fit.max_steps; 0 is the closed form")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    print("seed | history | MASE | WQL | bias | coverage of 80 % | CPU s")
    for seed in range(options.seeds):
        demand = demand_of(options.series, seed).with_columns(in_stock=1.0)
        sales = _out_of_stock(demand, options.share, seed)
        for name, table, data in (
            ("true demand", demand, {}),
            ("sales", sales, {}),
            ("sales, masked", sales, {"available": "in_stock"}),
        ):
            begun = time.process_time()
            frame = _forecasts(table, data, {"max_steps": options.steps, "seed": seed})
            seconds = time.process_time() - begun
            print(f"{seed} | {name} | {_scores(frame, demand)} | {seconds:.0f}", flush=True)


def demand_of(n_series: int, seed: int) -> pl.DataFrame:
    """Return series_id, timestamp and target of series that sold something in the year before the first cutoff."""
    folder = Path(os.environ.get("GATECAST_BENCH_DATA", ROOT.parent / "shared" / "data")) / "m5"
    sales = pl.concat([pl.read_parquet(folder / f"{part}.parquet") for part in ("train", "test")])
    ids = sales["series_id"].unique().sort().to_numpy()
    names = np.random.default_rng(seed).choice(ids, n_series, replace=False).tolist()
    sales = sales.filter(pl.col("series_id").is_in(names)).sort(*_KEYS)
    return sales.select("series_id", pl.col("timestamp").cast(pl.Datetime("us")), target="value")


def _out_of_stock(demand: pl.DataFrame, share: float, seed: int) -> pl.DataFrame:
    """Return the demand with 0 in spans of random lengths and places, and the column in_stock."""
    rng, parts = np.random.default_rng(1000 + seed), []
    for length in demand.group_by("series_id", maintain_order=True).len()["len"]:
        stock = np.ones(length)
        while 1 - stock.mean() < share:
            begin = int(rng.integers(0, length))
            stock[begin : begin + int(rng.geometric(1 / _SPAN))] = 0
        parts.append(stock)
    return demand.with_columns(in_stock=np.concatenate(parts)).with_columns(
        target=pl.col("target") * pl.col("in_stock")
    )


def _forecasts(table: pl.DataFrame, data: dict[str, Any], fit: dict[str, Any]) -> pl.DataFrame:
    last = table["timestamp"].max()
    assert isinstance(last, datetime)
    cutoffs = [last - timedelta(days=_HORIZON * back) for back in range(_CUTOFFS, 0, -1)]
    seen = table.filter(pl.col("timestamp") <= cutoffs[0])
    settings = {"freq": "1d", "season_length": _SEASON} | data
    model = fc.train(seen, horizon=_HORIZON, data=settings, fit=fit | {"holdout_windows": 0}).artifact
    # Rows after a cutoff are not given: what is in stock later is not planned.
    return pl.concat(
        [fc.forecast(model, table.filter(pl.col("timestamp") <= cutoff), max_age=None).frame for cutoff in cutoffs]
    )


def _scores(frame: pl.DataFrame, demand: pl.DataFrame) -> str:
    """Return MASE, WQL, bias and coverage as text; the scale is the mean seasonal difference of the true demand."""
    scale = demand.group_by("series_id").agg(scale=pl.col("target").diff(_SEASON).abs().mean())
    both = frame.join(demand.rename({"target": "actual"}), on=_KEYS).join(scale, on="series_id")
    both = both.filter(pl.col("scale") > 0)
    actual, size = both["actual"].to_numpy(), both["scale"].to_numpy()
    quantiles = both.select(f"q{10 * k}" for k in range(1, 10)).to_numpy()
    error = actual[:, None] - quantiles
    loss = 2 * np.maximum(_LEVELS * error, (_LEVELS - 1) * error).mean(1)
    inside = (quantiles[:, 0] <= actual) & (actual <= quantiles[:, -1])
    mase, wql = (np.abs(error[:, 4]) / size).mean(), loss.sum() / np.abs(actual).sum()
    bias = (both["mean"].to_numpy() - actual).sum() / actual.sum()
    return f"{mase:.4f} | {wql:.4f} | {bias:+.3f} | {inside.mean():.3f}"
