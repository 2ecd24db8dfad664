"""What-if on series of M5 with promotions of a known effect: the predicted effect beside the true one.

`python -m benchmarks what_if [--series N] [--steps N] [--seeds N]` takes the series of M5 that sell most (from
`GATECAST_BENCH_DATA`, `../shared/data` when not set). Promotions of three to seven days on a tenth of the days multiply
the sales by 1 + e, with an e of each series, 0.5 on average. A model is trained with the promotions as known covariate.
Its forecasts of the last 28 days without promotions are compared with the scenario in which the second and third week
have one: the true effect is e times the withheld sales of these days. CPU seconds are those of training.
"""

import argparse
import os
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import polars as pl
import torch

import forecast as fc
from benchmarks.meter import ROOT

_KEYS = ["series_id", "timestamp"]
_HORIZON, _DAYS, _SHARE = 28, 447, 0.1
_PROMO = range(8, 22)
"""Steps of the promotion in the scenario."""


def main(*argv: str) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks what_if", description=__doc__)
    parser.add_argument("--series", type=int, default=100)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    print(
        "seed | effect, all series | predicted | error by series, % of the effect | by the ratio of the past | "
        "WAPE of the days with promotion, plain / scenario | coverage of 80 % | CPU s"
    )
    demand = _demand(options.series)
    for seed in range(options.seeds):
        _measure(demand, options.steps, seed)


def _measure(demand: pl.DataFrame, steps: int, seed: int) -> None:
    table, effects = _promotions(demand, seed)
    last = table["timestamp"].max() - timedelta(days=_HORIZON)
    ahead = pl.col("timestamp") > last
    step = (pl.col("timestamp") - last).dt.total_days()
    plan_a = table.select(*_KEYS, promo=pl.when(ahead).then(0.0).otherwise("promo"))
    plan_b = plan_a.with_columns(promo=pl.when(step.is_in(_PROMO)).then(1.0).otherwise("promo"))
    history = table.filter(~ahead).select(*_KEYS, "target")
    begun = time.process_time()
    data = {"freq": "1d", "season_length": 7, "known_covariates": ["promo"]}
    fit = {"max_steps": steps, "seed": seed, "final": False}
    model = fc.train(history, horizon=_HORIZON, known=plan_a, data=data, fit=fit).artifact
    seconds = time.process_time() - begun
    plain, scenario = (fc.forecast(model, history, known=plan).frame for plan in (plan_a, plan_b))
    rows = (
        scenario.join(plain.select(*_KEYS, plain="mean"), on=_KEYS)
        .join(table.select(*_KEYS, "demand"), on=_KEYS)
        .join(effects, on="series_id")
        .filter(pl.col("step").is_in(_PROMO))
        .with_columns(true=pl.col("demand") * pl.col("effect"), change=pl.col("mean") - pl.col("plain"))
        .with_columns(actual=pl.col("demand") + pl.col("true"), naive=pl.col("plain") * pl.col("estimate"))
    )
    sums = rows.group_by("series_id").agg(pl.col("true", "change", "naive").sum())
    total = float(sums["true"].sum())
    errors = [float((sums[name] - sums["true"]).abs().sum()) / total for name in ("change", "naive")]
    wape = [float((rows[name] - rows["actual"]).abs().sum() / rows["actual"].sum()) for name in ("plain", "mean")]
    inside = rows.select(pl.col("actual").is_between("q10", "q90").mean()).item()
    print(
        f"{seed} | {total:,.0f} | {sums['change'].sum():,.0f} | {errors[0]:.1%} | {errors[1]:.1%} | "
        f"{wape[0]:.3f} / {wape[1]:.3f} | {inside:.3f} | {seconds:.0f}",
        flush=True,
    )


def _demand(n_series: int) -> pl.DataFrame:
    """Return series_id, timestamp and demand of the last days of the series that sell most."""
    folder = Path(os.environ.get("GATECAST_BENCH_DATA", ROOT.parent / "shared" / "data")) / "m5"
    sales = pl.concat([pl.read_parquet(folder / f"{part}.parquet") for part in ("train", "test")])
    first = sales["timestamp"].max() - timedelta(days=_DAYS - 1)
    sales = sales.filter(pl.col("timestamp") >= first)
    totals = sales.group_by("series_id").agg(pl.len(), total=pl.col("value").sum()).filter(len=_DAYS)
    largest = totals.sort("total", "series_id", descending=True).head(n_series)
    rows = sales.join(largest, on="series_id", how="semi").sort(*_KEYS)
    return rows.select("series_id", pl.col("timestamp").cast(pl.Datetime("us")), demand="value")


def _promotions(demand: pl.DataFrame, seed: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the table with promo and target, and the effect by series, true and as estimated from the history."""
    rng = np.random.default_rng(seed)
    ids = demand["series_id"].unique(maintain_order=True)
    promo = np.zeros((len(ids), _DAYS))
    for row in promo:
        while row.mean() < _SHARE:
            begin = int(rng.integers(0, _DAYS))
            row[begin : begin + int(rng.integers(3, 8))] = 1
    effect = rng.gamma(6, 0.5 / 6, len(ids))
    table = demand.with_columns(promo=promo.ravel()).join(
        pl.DataFrame({"series_id": ids, "effect": effect}), on="series_id", maintain_order="left"
    )
    table = table.with_columns(target=pl.col("demand") * (1 + pl.col("promo") * pl.col("effect")))
    past = table.filter(pl.col("timestamp") <= table["timestamp"].max() - timedelta(days=_HORIZON))
    of = {name: pl.col("target").filter(pl.col("promo") == value).mean() for name, value in (("on", 1), ("off", 0))}
    return table, past.group_by("series_id").agg(pl.col("effect").first(), estimate=of["on"] / of["off"] - 1)
