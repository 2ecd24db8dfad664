"""Rolled horizons against models that are trained for them.

`python -m benchmarks horizons [SET ...] [--steps N]` trains models for a horizon, the closed form or N steps of an
LSTM, and forecasts a multiple of it (`backtest.horizon`), beside a model that is trained for the longer horizon.
"""

import argparse
import os
import time
import warnings
from pathlib import Path
from typing import Any

import polars as pl

import forecast as fc

_FOLDER = Path(os.environ.get("GATECAST_BENCH_DATA", "shared/data"))
_SETS: dict[str, tuple[int, tuple[int, ...], int]] = {"m4_hourly": (24, (2,), 1), "etth1": (48, (2, 4, 8), 8)}
"""Trained horizon, multiples of it, and number of cutoffs."""
_LAST = 4_000
"""Steps of the series of ETTh1."""


def main(*argv: str) -> None:
    """Print a line for each model."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks horizons", description=__doc__)
    parser.add_argument("sets", nargs="*", default=list(_SETS), help=f"of {', '.join(_SETS)}")
    parser.add_argument("--steps", type=int, default=0, help="steps of training; 0 is the closed form")
    options = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    print("set | horizon | model | MASE | WQL | coverage of the 80 % interval | CPU s, training | forecasts")
    for name in options.sets:
        horizon, multiples, n_windows = _SETS[name]
        table, held_out = _table(name)
        for multiple in multiples:
            for trained in (horizon, horizon * multiple):
                _print(name, table, held_out, trained, horizon * multiple, n_windows, options.steps)


def _print(
    name: str, table: pl.DataFrame, held_out: int, trained: int, horizon: int, n_windows: int, steps: int
) -> None:
    last = pl.col("timestamp").max().over("series_id")
    past = table.filter(pl.col("timestamp") <= last - pl.duration(hours=held_out))
    data: dict[str, Any] = {"freq": "1h"}
    begin = time.process_time()
    fit = {"max_steps": steps, "holdout_windows": 0, "seed": 0}
    model = fc.train(past, horizon=trained, context_length=336, data=data, fit=fit, model={"init": "none"}).artifact
    middle = time.process_time()
    step_size = (held_out - horizon) // max(1, n_windows - 1) or None
    settings = {"n_windows": n_windows, "step_size": step_size, "horizon": horizon}
    row = fc.backtest(model, table, **settings).summary.row(by_predicate=pl.col("model") == "pretrained", named=True)
    end = time.process_time()
    figures = [f"{row[key]:.4f}" for key in ("mase", "wql", "coverage")]
    seconds = [f"{middle - begin:.1f}", f"{end - middle:.1f}"]
    kind = f"trained for {trained}" + (", rolled" if trained < horizon else "")
    print(" | ".join([name, str(horizon), kind, *figures, *seconds]), flush=True)


def _table(name: str) -> tuple[pl.DataFrame, int]:
    """Return the table of a set, and the number of steps at its end that no model sees."""
    if name == "etth1":
        table = pl.read_parquet(_FOLDER / name / "data.parquet").sort("series_id", "timestamp")
        table = table.group_by("series_id", maintain_order=True).tail(_LAST)
        return table.select("series_id", "timestamp", target="value"), 1_000
    parts = [pl.read_parquet(_FOLDER / name / f"{part}.parquet") for part in ("train", "test")]
    table = pl.concat(parts).select("series_id", "timestamp", target="value").sort("series_id", "timestamp")
    # All series end on the same date.
    shift = pl.col("timestamp").max() - pl.col("timestamp").max().over("series_id")
    return table.with_columns(pl.col("timestamp") + shift), 48


if __name__ == "__main__":
    main()
