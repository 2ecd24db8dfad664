"""Series without any history: the profile of the nearest series against the mean of the panel.

`python -m benchmarks cold [SET ...] [--seed N]` withholds the whole history of some series: of M5, 300 series, whose
items are sold in other stores (m5), and all stores of 30 items (m5_items), by item, department, category, store and
state; and each of the pedestrian sensors of Auckland, without static covariates (auckland).
"""

import argparse
import os
import time
from collections.abc import Iterator
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.meter import ROOT
from forecast.config import DataConfig
from forecast.data.ingest.load import load_panel
from forecast.data.panel import Panel
from forecast.data.sources.open import Tables
from forecast.datasets.auckland import auckland_pedestrians
from forecast.prediction.cold import ColdProfile

_STATIC = ("item_id", "dept_id", "cat_id", "store_id", "state_id")
_LEVELS = tuple(np.arange(1, 10) / 10)


def main(*argv: str) -> None:
    """Print two lines for each set."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks cold", description=__doc__)
    parser.add_argument("sets", nargs="*", default=["m5", "m5_items", "auckland"])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    print("set | forecast | MASE | WQL | coverage of the 80 % interval | CPU s")
    for name in options.sets:
        panel, horizon, season = _auckland() if name == "auckland" else _m5()
        cutoff = panel.last_index - horizon
        begin = time.process_time()
        parts = [
            _forecasts(panel, warm, cold, cutoff, horizon, season) for warm, cold in _splits(name, panel, options.seed)
        ]
        seconds = time.process_time() - begin
        actual, scale = (np.concatenate([part[key] for part in parts]) for key in ("actual", "scale"))
        for kind in ("nearest series", "mean of the panel"):
            _print(name, kind, actual, scale, np.concatenate([part[kind] for part in parts]), seconds)


def _splits(name: str, panel: Panel, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    numbers, rng = np.arange(panel.n_series), np.random.default_rng(seed)
    if name == "auckland":
        for series in numbers:
            yield np.delete(numbers, series), numbers[[series]]
        return
    cold = np.sort(rng.choice(numbers, 300, replace=False))
    if name == "m5_items":
        items = panel.static_categories[:, 0]
        cold = np.flatnonzero(np.isin(items, rng.choice(np.unique(items), 30, replace=False)))
    yield np.setdiff1d(numbers, cold), cold


def _forecasts(
    panel: Panel, warm: np.ndarray, cold: np.ndarray, cutoff: int, horizon: int, season: int
) -> dict[str, Any]:
    profile, withheld = ColdProfile(panel.take(warm), cutoff, season), panel.take(cold)
    nearest = [
        profile.forecast(categories, numbers, horizon, _LEVELS)[0]
        for categories, numbers in zip(withheld.static_categories, withheld.static_numbers, strict=True)
    ]
    mean = np.nanmean(profile._recent.reshape(-1, season), axis=0)[np.arange(horizon) % season]
    series = [part.target for part in (withheld.rows(number, number + 1) for number in range(withheld.n_series))]
    actual = np.array([values[-horizon:] for values in series])
    scale = [np.nanmean(np.abs(values[season:-horizon] - values[: -horizon - season])) for values in series]
    flat = np.broadcast_to(mean[:, None], (len(cold), horizon, len(_LEVELS)))
    return {"nearest series": np.array(nearest), "mean of the panel": flat, "actual": actual, "scale": np.array(scale)}


def _print(name: str, kind: str, actual: np.ndarray, scale: np.ndarray, quantiles: np.ndarray, seconds: float) -> None:
    error, levels = actual[..., None] - quantiles, np.array(_LEVELS)
    wql = 2 * np.nanmean(np.maximum(levels * error, (levels - 1) * error)) / np.nanmean(np.abs(actual))
    valid = scale > 0
    mase = np.nanmean(np.nanmean(np.abs(error[..., 4]), axis=1)[valid] / scale[valid])
    inside = (actual >= quantiles[..., 0]) & (actual <= quantiles[..., -1])
    coverage = inside[np.isfinite(actual)].mean()
    print(f"{name} | {kind} | {mase:.3f} | {wql:.4f} | {coverage:.3f} | {seconds:.1f}", flush=True)


def _m5() -> tuple[Panel, int, int]:
    folder = Path(os.environ.get("GATECAST_BENCH_DATA", ROOT.parent / "shared" / "data")) / "m5"
    parts = [pl.scan_parquet(folder / f"{part}.parquet") for part in ("train", "test")]
    rows = pl.concat([part.select("series_id", "timestamp", target="value") for part in parts])
    rows = rows.filter(pl.col("timestamp") > date(2016, 1, 31))
    data = DataConfig(freq="1d", static_covariates=_STATIC, calendar=False)
    return load_panel(Tables(rows, None, pl.scan_parquet(folder / "static.parquet")), data, 28).panel, 28, 7


def _auckland() -> tuple[Panel, int, int]:
    table = auckland_pedestrians(datetime(2024, 6, 1), datetime(2024, 12, 1))
    return load_panel(table.lazy(), DataConfig(freq="1h", calendar=False), 168).panel, 168, 168


if __name__ == "__main__":
    main()
