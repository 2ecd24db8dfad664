"""Anomalies: false alarms on clean panels, and how many injected anomalies `forecast monitor` finds.

`python -m benchmarks anomalies [SEEDS]` simulates panels of 40 daily series, of 300 days: Gaussian noise, Student's t
with 3 degrees of freedom, and counts (negative binomial with means from 0.5 to 50). The closed form forecasts a week
from each of 20 Sundays. The last four weeks are judged at a rate of 1 %, with the forecasts as written and with all
distances from the median halved. Injected anomalies are 2 % of the observations, 4 to 12 standard deviations off.

`python -m benchmarks anomalies auckland` judges the last two weeks of November 2024 on the pedestrian panel, from
nightly forecasts of 24 hours, and prints the largest anomalies. Then it overrides forecasts and prints who was right:
ada changes those of the Santa Parade as the parade of the year before changed them, bo 5 % of the hours by 20 %, up or
down at random.
"""

import resource
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl

import forecast as fc
from forecast.artifact import Artifact
from forecast.config import MonitorSettings, ScoreOutput, ScoreSettings, SinkConfig
from forecast.datasets.auckland import auckland_pedestrians
from forecast.monitoring.evaluation import monitor
from forecast.monitoring.forecasts import ScoredForecasts
from forecast.monitoring.result import MonitorResult
from forecast.scoring.job import ScoreJob
from forecast.scoring.overrides import overrides_of

_SERIES, _DAYS, _WEEKS, _RECENT = 40, 300, 20, 28
_SIZES = (4, 8, 12)


def main(*argv: str) -> None:
    """Print the figures of simulated panels, or of the pedestrian panel."""
    if argv == ("auckland",):
        _pedestrians()
    else:
        _simulations(int(argv[0]) if argv else 5)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(f"{usage.ru_utime + usage.ru_stime:.0f} CPU seconds")


def _simulations(n_seeds: int) -> None:
    """Print a row for each panel: false alarms, and the share of injected anomalies that is found."""
    print(f"{'panel':<22}{'false alarms':>14}{'halved':>9}" + "".join(f"{f'{size} sd':>9}" for size in _SIZES))
    for kind in ("gaussian", "heavy tails", "counts"):
        rates, halved, hits = [], [], dict.fromkeys(_SIZES, 0.0)
        seeds = range(n_seeds)
        for seed in seeds:
            with TemporaryDirectory() as folder:
                values, deviation = _simulate(kind, seed)
                artifact, scores = _score(values, Path(folder))
                rates.append(_share(_judge(artifact, values, scores)))
                for size in _SIZES:
                    hits[size] += _power(artifact, values, deviation, scores, size, seed) / len(seeds)
                _halve(Path(folder))
                halved.append(_share(_judge(artifact, values, scores)))
        shares = "".join(f"{hits[size]:>9.0%}" for size in _SIZES)
        print(f"{kind:<22}{np.mean(rates):>14.2%}{np.mean(halved):>9.2%}{shares}", flush=True)


def _simulate(kind: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return values and the standard deviation of their noise, [series, day] and [series]."""
    rng = np.random.default_rng(seed)
    pattern = rng.normal(size=(_SERIES, 7))[:, np.arange(_DAYS) % 7]
    if kind == "counts":
        mean = np.exp(rng.uniform(np.log(0.5), np.log(50), (_SERIES, 1)) + 0.3 * pattern)
        values = rng.poisson(rng.gamma(4, mean / 4)).astype(float)
        return values, np.sqrt(mean + mean**2 / 4).mean(1)
    noise = rng.normal(size=pattern.shape) if kind == "gaussian" else rng.standard_t(3, size=pattern.shape)
    deviation = np.exp(rng.normal(0, 0.5, (_SERIES, 1)))
    return 50 + 3 * pattern + deviation * noise, deviation[:, 0] * (1 if kind == "gaussian" else 3**0.5)


def _table(values: np.ndarray) -> pl.DataFrame:
    names = [f"s{number:02d}" for number in range(_SERIES)]
    days = [datetime(2024, 1, 1) + timedelta(days=day) for day in range(_DAYS)]
    frame = pl.DataFrame(dict(zip(names, values, strict=True))).with_columns(timestamp=pl.Series(days))
    return frame.unpivot(index="timestamp", variable_name="series_id", value_name="target")


def _score(values: np.ndarray, folder: Path) -> tuple[Artifact, SinkConfig]:
    """Train on the days before the first cutoff, and write the forecasts of all cutoffs."""
    table, first = _table(values), _DAYS - 7 * _WEEKS - 1
    head = "negative_binomial" if np.all(values == np.round(values)) else "quantile"
    settings = {"data": {"freq": "1d"}, "model": {"init": None, "head": head}, "fit": {"max_steps": 0, "final": False}}
    start = table.filter(pl.col("timestamp") <= datetime(2024, 1, 1) + timedelta(days=first))
    artifact = fc.train(start, horizon=7, **settings).artifact
    cutoffs = [datetime(2024, 1, 1) + timedelta(days=first + 7 * week) for week in range(_WEEKS)]
    return artifact, _write(artifact, table, cutoffs, folder)


def _write(
    artifact: Artifact, table: pl.DataFrame, cutoffs: list[datetime], folder: Path, by_hand: pl.DataFrame | None = None
) -> SinkConfig:
    loaded = artifact.read(table.lazy(), [])
    overrides = None if by_hand is None else overrides_of(by_hand, loaded.panel)
    names = {"model": "m", "model_version": "1", "model_digest": "0" * 8}
    output = ScoreOutput(path=str(folder))
    job = ScoreJob(artifact, loaded, ScoreSettings(), output, names, overrides=overrides)
    for cutoff in cutoffs:
        job.write(loaded.panel.grid.floor(cutoff))
    return SinkConfig(path=str(folder))


def _pedestrians() -> None:
    """Print the verdicts on two weeks of the pedestrian panel, and the largest anomalies."""
    table = auckland_pedestrians(datetime(2023, 6, 1), datetime(2024, 12, 1))
    nights = [datetime(2024, 9, 21, 23) + timedelta(days=night) for night in range(70)]
    data = {"freq": "1h", "season_length": 168}
    fit = {"max_steps": 0, "final": False}
    start = table.filter(pl.col("timestamp") <= nights[0])
    artifact = fc.train(start, horizon=24, data=data, model={"init": None}, fit=fit).artifact
    loaded, settings = artifact.read(table.lazy(), []), MonitorSettings(recent=336)
    with TemporaryDirectory() as folder, TemporaryDirectory() as other:
        scores = _write(artifact, table, nights, Path(folder))
        result = monitor(artifact, loaded, ScoredForecasts(scores), None, settings)
        overridden = _write(artifact, table, nights, Path(other), _by_hand(table))
        judged = monitor(artifact, loaded, ScoredForecasts(overridden), None, settings)
    print(result.anomaly_counts, f"coverage of the 80 % interval {result.coverage_80.value:.3f}")
    days = pl.col("timestamp").dt.date().alias("day")
    found = result.anomalies.filter(verdict="anomaly")
    with pl.Config(tbl_rows=30, tbl_cols=12, fmt_str_lengths=40, tbl_width_chars=160):
        print(found.select("series_id", "timestamp", "target", "median", "size", "p_value").head(15))
        print(judged.fva)
        print(found.group_by(days).agg(pl.len(), pl.col("size").mean().alias("mean size")).sort("day"))


def _judge(artifact: Artifact, values: np.ndarray, scores: SinkConfig) -> MonitorResult:
    loaded = artifact.read(_table(values).lazy(), [])
    settings = MonitorSettings(recent=_RECENT, history=7 * _WEEKS - _RECENT)
    return monitor(artifact, loaded, ScoredForecasts(scores), None, settings)


def _share(result: MonitorResult) -> float:
    counts = result.anomaly_counts
    assert counts["few observations"] == 0
    return counts["anomaly"] / sum(counts.values())


def _power(
    artifact: Artifact, values: np.ndarray, deviation: np.ndarray, scores: SinkConfig, size: int, seed: int
) -> float:
    """Return the share of injected anomalies that is found; the forecasts have not seen them."""
    rng = np.random.default_rng(seed)
    hit = rng.random((_SERIES, _RECENT)) < 0.02
    sign = np.where(values.min() >= 0, 1, rng.choice([-1, 1], hit.shape))
    injected = values.copy()
    injected[:, -_RECENT:] += np.round(hit * sign * size * deviation[:, None], 0 if values.min() >= 0 else 6)
    result = _judge(artifact, injected, scores)
    marks = _table(np.pad(hit, ((0, 0), (_DAYS - _RECENT, 0)))).rename({"target": "hit"}).filter("hit")
    return float((result.anomalies.join(marks, on=["series_id", "timestamp"])["verdict"] == "anomaly").mean())


def _halve(folder: Path) -> None:
    """Halve the distances of all written quantiles from the median."""
    for file in folder.glob("forecasts/*/*.parquet"):
        frame = pl.read_parquet(file)
        levels = [name for name in frame.columns if name[0] == "q" and name[1:].isdigit()]
        narrow = [(pl.col("q50") + (pl.col(name) - pl.col("q50")) / 2).alias(name) for name in levels]
        frame.with_columns(narrow).write_parquet(file)


def _by_hand(table: pl.DataFrame) -> pl.DataFrame:
    """Return the overrides of two people."""
    parade, before = datetime(2024, 11, 24), datetime(2023, 11, 26)
    hour = pl.col("timestamp").dt.hour()
    usual = table.filter(
        pl.col("timestamp").dt.date().is_in([before.date() - timedelta(days=7 * k) for k in (1, 2, 3)])
    )
    usual = usual.group_by("series_id", hour.alias("hour")).agg(pl.col("target").median().alias("usual"))
    then = table.filter(pl.col("timestamp").dt.date() == before.date(), hour.is_between(10, 16))
    then = then.with_columns(hour=hour).join(usual, on=["series_id", "hour"])
    factor = (pl.col("target") / pl.col("usual")).clip(0.2, 10)
    ada = then.filter((pl.col("usual") > 0) & pl.col("target").is_not_null()).select(
        "series_id", timestamp=pl.lit(parade) + pl.duration(hours="hour"), factor=factor, author=pl.lit("ada")
    )
    rng = np.random.default_rng(0)
    others = table.filter(pl.col("timestamp") >= datetime(2024, 11, 2), pl.col("timestamp").dt.date() != parade.date())
    others = others.filter(pl.Series(rng.random(others.height) < 0.05))
    bo = others.select(
        "series_id", "timestamp", factor=pl.Series(rng.choice([0.8, 1.2], others.height)), author=pl.lit("bo")
    )
    return pl.concat([ada, bo])
