"""Accuracy on public data sets, by the protocol of each, beside what others have reached.

`python -m benchmarks accuracy [TASK ...] [KEY=VALUE ...]` trains with the preset `conf/experiment/TASK.yaml` on the
training part alone, and scores on the test part, which nothing before has seen. TASK may be the beginning of several:
`m4`, `etth1`. KEY=VALUE are settings as of `forecast train`. The data are folders of `GATECAST_BENCH_DATA`
(`../shared/data` beside the checkout when not set) with train.parquet and test.parquet, or data.parquet: columns
series_id, timestamp, value. NYC flights are those of `forecast data nyc-flights flights`.
"""

import argparse
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from benchmarks.meter import ROOT
from forecast.artifact import Artifact
from forecast.checkpoints import NANO
from forecast.config import FinetuneSettings, TrainConfig, load
from forecast.data.ingest.loaded import Loaded
from forecast.data.panel import Panel
from forecast.data.read import read_panel
from forecast.data.windows import WindowIndex, windows_at, windows_at_ends
from forecast.finetuning.finetune import finetune
from forecast.metrics.scores import score_windows
from forecast.metrics.seasonal_naive import future_values, seasonal_naive, seasonal_naive_errors
from forecast.models.heads.quantile import QuantileHead
from forecast.models.inputs.batch import PanelTensors
from forecast.models.network.carried_state import StateStore, advance, segments_since
from forecast.prediction.predict import predict
from forecast.pretraining.zero_shot import zero_shot
from forecast.training.fit import fit
from forecast.training.split import training_data
from pipelines.jobs.command_line import compose

Array = npt.NDArray[np.floating]
Scores = dict[str, float]
Forecaster = Callable[[Panel, WindowIndex], Array]
"""Gives the quantiles of n windows, [n, horizon, level]."""
Judge = Callable[[Forecaster], Scores]

# Settings of each contender, after those of the preset; NAIVE needs none.
NAIVE, ZERO_SHOT, TUNED, CARRIED = "naive", "zero-shot", "tuned", "carried"
COVERAGE = "cov80"
CONTENDERS: dict[str, tuple[str, ...]] = {
    NAIVE: (),
    ZERO_SHOT: (),
    "closed": ("fit.max_steps=0",),
    "lstm": ("model.cell=lstm",),
    "gru": ("model.cell=gru",),
    "lstm-plain": ("model.cell=lstm", "model.skip=false"),
    "gru-plain": ("model.cell=gru", "model.skip=false"),
    TUNED: ("model.cell=lstm",),
    CARRIED: ("model.cell=lstm",),
}
ABLATIONS: dict[str, tuple[str, ...]] = {
    "full": (),
    "no-skip": ("model.skip=false",),
    "no-transform": ("model.transform=none",),
    "no-season": ("data.season_length=1",),
    "no-segments": ("model.segment_length=1",),
    "no-ema": ("fit.ema_decay=0",),
    "no-forking": ("fit.origins=1",),
    "ensemble of 2": ("fit.ensemble=2",),
}
DEFAULT_ROWS = (NAIVE, "closed", "lstm")
TUNING = FinetuneSettings(holdout_windows=0, gate_windows=4, report_windows=1)
# Windows that are forecast and scored together.
CHUNK = 1024


@dataclass(frozen=True, kw_only=True)
class Task:
    """A data set with its protocol."""

    preset: str
    """Names the preset and the folder of the data."""
    judge: Callable[["Task", TrainConfig, Loaded, Path], Judge]
    season: int
    """m of seasonal naive and MASE, whatever the model is told."""
    metrics: tuple[str, ...]
    bars: Mapping[str, Sequence[float | None]]
    """What others have reached, in the order of `metrics`."""
    settings: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=lambda: {"data.path": "train.parquet"})
    rows: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: CONTENDERS)
    naive2: tuple[float, float] | None = None
    """sMAPE and MASE of Naive2 as published: the denominators of OWA."""
    split: tuple[int, int, int] = (0, 0, 0)
    """Time points at which training, validation and test end."""
    tuning: FinetuneSettings = TUNING
    folder: Path | None = None
    """Where the data are, if not with the others."""


# --- the protocols


def after_the_end(task: Task, config: TrainConfig, loaded: Loaded, folder: Path) -> Judge:
    """Return the judge of M4 and M5: one forecast at the end of each series' training part, against test.parquet.

    Series of the test part without training part are left out; MASE leaves out those without a season of past.
    """
    panel, horizon = loaded.panel, config.window.horizon
    windows, levels = windows_at_ends(panel), config.model.quantile_levels
    actual = tested(panel, folder, horizon)
    scale, root_scale = seasonal_naive_errors(panel, windows, task.season)

    def judge(forecaster: Forecaster) -> Scores:
        quantiles = forecaster(panel, windows).astype(np.float64)
        found = score_windows(actual, quantiles, levels=levels, scale=scale, root_scale=root_scale)
        smape, mase = float(found["smape"].mean()), float(np.nanmean(found["mase"]))
        wql = float(found["pinball"].sum() / found["abs_target"].sum())
        scores = {"sMAPE": smape, "MASE": mase, "wQL": wql, COVERAGE: coverage(actual, quantiles)}
        if task.naive2:
            scores["OWA"] = (smape / task.naive2[0] + mase / task.naive2[1]) / 2
        return scores

    return judge


def coverage(actual: Array, quantiles: Array) -> float:
    """Return the share of the targets inside the outermost quantiles, of the presets the interval of 80 %."""
    known = np.isfinite(actual)
    inside = (actual >= quantiles[..., 0]) & (actual <= quantiles[..., -1])
    return float(inside[known].mean())


def tested(panel: Panel, folder: Path, horizon: int) -> Array:
    """Return the test part of each series of the panel, [S, horizon]."""
    own = pl.DataFrame({"series_id": panel.series_id.tolist()})
    test = pl.read_parquet(folder / "test.parquet", columns=["series_id", "timestamp", "value"])
    kept = test.join(own, on="series_id", how="semi").sort("series_id", "timestamp")
    return kept["value"].to_numpy().reshape(panel.n_series, horizon)


def long_horizon(task: Task, config: TrainConfig, loaded: Loaded, folder: Path) -> Judge:  # noqa: ARG001  as all
    """Return the judge of ETT and exchange rates: all windows of stride 1 whose targets lie in the test part.

    Errors are in units of each series' standard deviation over the training part, as after z-scores.
    """
    horizon = config.window.horizon
    panel = read_panel(config.data.model_copy(update={"until": None}), horizon).panel
    trained, validated, tested = task.split
    if set(loaded.panel.lengths) != {validated}:
        raise ValueError(f"{task.preset}: data.until leaves {set(loaded.panel.lengths)} points, not {validated}")
    past = panel.target.reshape(panel.n_series, -1)[:, :trained].astype(np.float64)
    cutoffs = np.arange(validated - 1, tested - horizon)
    windows = WindowIndex(np.repeat(np.arange(panel.n_series), len(cutoffs)), np.tile(cutoffs, panel.n_series))
    head = QuantileHead(config.model.quantile_levels)
    return lambda forecaster: scaled_errors(forecaster, panel, windows, scale=past.std(axis=1), head=head)


def scaled_errors(
    forecaster: Forecaster, panel: Panel, windows: WindowIndex, *, scale: Array, head: QuantileHead
) -> Scores:
    """Return MSE of the mean and MAE of the median over all windows and steps, in units of `scale` per series, [S]."""
    square = absolute = 0.0
    count = 0
    for first in range(0, len(windows), CHUNK):
        some = windows[slice(first, first + CHUNK)]
        quantiles = torch.from_numpy(forecaster(panel, some).astype(np.float64))
        actual = future_values(panel, some, quantiles.shape[1])
        unit = scale[some.series][:, None]
        square += float((((actual - head.mean(quantiles).numpy()) / unit) ** 2).sum())
        absolute += float(np.abs((actual - quantiles[..., head.median].numpy()) / unit).sum())
        count += actual.size
    return {"MSE": square / count, "MAE": absolute / count}


def rolling(task: Task, config: TrainConfig, loaded: Loaded, folder: Path) -> Judge:  # noqa: ARG001  as all
    """Return the judge of NYC flights: cutoffs a horizon apart over all that lies behind `data.until`."""
    horizon, levels = config.window.horizon, config.model.quantile_levels
    whole = read_panel(config.data.model_copy(update={"until": None}), horizon, loaded.categories).panel
    panel = whole.rows(0, loaded.panel.n_series)
    if panel.series_id.tolist() != loaded.panel.series_id.tolist():
        raise ValueError(f"{task.preset}: series begin behind data.until")
    cutoffs = range(loaded.panel.last_index, panel.last_index - horizon + 1, horizon)
    parts = [windows_at(panel, cutoff) for cutoff in cutoffs]
    windows = WindowIndex(np.concatenate([p.series for p in parts]), np.concatenate([p.cutoff for p in parts]))
    actual = future_values(panel, windows, horizon)
    scale, root_scale = seasonal_naive_errors(panel, windows, task.season)

    def judge(forecaster: Forecaster) -> Scores:
        quantiles = forecaster(panel, windows).astype(np.float64)
        found = score_windows(actual, quantiles, levels=levels, scale=scale, root_scale=root_scale)
        wql = float(found["pinball"].sum() / found["abs_target"].sum())
        return {"MASE": float(np.nanmean(found["mase"])), "wQL": wql, COVERAGE: coverage(actual, quantiles)}

    return judge


# --- the tasks

OWA = ("sMAPE", "MASE", "OWA", "wQL", COVERAGE)
M4_HOURLY = Task(
    preset="m4_hourly",
    judge=after_the_end,
    season=24,
    metrics=OWA,
    naive2=(18.383, 2.395),
    bars={
        "ES-RNN, winner of M4": (9.328, 0.893, 0.440, None),
        "Card, best of M4 here": (8.913, 0.801, 0.410, None),
        "TiRex": (7.853, 0.722, 0.364, 0.0202),
    },
    tuning=TUNING.model_copy(update={"origins": 300}),
)
# MSE and MAE by horizon.
HORIZONS = (96, 192, 336, 720)
LONG_BARS = {
    "etth1": {
        "ridge, look-back 720": ((0.366, 0.395), (0.400, 0.419), (0.424, 0.434), (0.423, 0.453)),
        "SegRNN, look-back 720": ((0.351, 0.392), (0.392, 0.414), (0.423, 0.433), (0.466, 0.472)),
        "FITS": ((0.372, None), (0.404, None), (0.427, None), (0.424, None)),
    },
    "etth2": {
        "ridge, look-back 720": ((0.267, 0.331), (0.329, 0.371), (0.352, 0.393), (0.376, 0.421)),
        "SegRNN, look-back 720": ((0.276, 0.335), (0.341, 0.389), (0.364, 0.403), (0.403, 0.448)),
        "FITS": ((0.271, None), (0.331, None), (0.354, None), (0.377, None)),
    },
    "exchange_rate": {"ridge": ((0.082, None), (0.170, None), (0.312, None), (0.836, None))},
}
ETT, EXCHANGE = (8640, 11520, 14400), (5311, 6071, 7588)


def _long(preset: str, position: int) -> Task:
    horizon, split = HORIZONS[position], EXCHANGE if preset == "exchange_rate" else ETT
    return Task(
        preset=preset,
        judge=long_horizon,
        season=1 if preset == "exchange_rate" else 24,
        metrics=("MSE", "MAE"),
        bars={name: scores[position] for name, scores in LONG_BARS[preset].items()},
        settings=(f"window.horizon={horizon}", f"fit.validation_windows={(split[1] - split[0]) // horizon}"),
        files={"data.path": "data.parquet"},
        split=split,
    )


TASKS: dict[str, Task] = {
    "m4_hourly": M4_HOURLY,
    "m4_weekly": Task(
        preset="m4_weekly",
        judge=after_the_end,
        season=1,
        metrics=OWA,
        naive2=(9.161, 2.777),
        bars={
            "ES-RNN, winner of M4": (7.817, 2.356, 0.851, None),
            "Forecast Pro, best of M4 here": (6.582, 2.107, 0.739, None),
            "TiRex": (6.006, 1.990, 0.686, 0.0367),
        },
    ),
    "m4_yearly": Task(
        preset="m4_yearly",
        judge=after_the_end,
        season=1,
        metrics=OWA,
        naive2=(16.342, 3.974),
        bars={
            "ES-RNN, winner of M4": (13.176, 2.980, 0.778, None),
            "N-BEATS, 180 models": (12.913, None, 0.758, None),
            "FlowState": (None, None, 0.786, 0.1069),
        },
        tuning=TUNING.model_copy(update={"gate_windows": 2}),
    ),
    "m5": Task(
        preset="m5",
        judge=after_the_end,
        season=7,
        metrics=("MASE", "wQL", COVERAGE),
        bars={"quantiles of the last 28 days": (0.887, 0.546)},
        files={"data.path": "train.parquet", "data.known_path": "t*.parquet", "data.static_path": "static.parquet"},
    ),
    "nyc_flights": Task(
        preset="nyc_flights",
        judge=rolling,
        season=168,
        metrics=("MASE", "wQL", COVERAGE),
        bars={},
        settings=("data.until='2013-12-03 23:00:00'", "fit.holdout_windows=0"),
        files={"data.path": "panel.parquet"},
        folder=ROOT / "flights",
    ),
    **{f"{preset}_{h}": _long(preset, position) for preset in LONG_BARS for position, h in enumerate(HORIZONS)},
    "ablation": Task(
        preset="m4_hourly",
        judge=after_the_end,
        season=24,
        metrics=OWA,
        naive2=M4_HOURLY.naive2,
        bars={},
        rows=ABLATIONS,
    ),
    "ablation_etth1": replace(_long("etth1", 0), bars={}, rows=ABLATIONS),
}


# --- running them


def main(*argv: str) -> None:
    """Print a table for each task."""
    parser = argparse.ArgumentParser("python -m benchmarks accuracy", description=__doc__)
    parser.add_argument("given", nargs="*", metavar="TASK|KEY=VALUE", help=f"tasks: {', '.join(TASKS)}")
    parser.add_argument("--rows", help=f"{', '.join(CONTENDERS)} ({','.join(DEFAULT_ROWS)} when not given)")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="of the clock, for each training")
    parser.add_argument("--seed", "--seeds", default="0", metavar="N,...", help="a row for each")
    parser.add_argument("--ensemble", action="store_true", help="also the mean of the seeds' quantiles")
    options = parser.parse_intermixed_args(argv)
    settings = [given for given in options.given if "=" in given]
    if options.budget:
        settings.append(f"fit.max_minutes={options.budget / 60}")
    every = [name for name, task in TASKS.items() if task.rows is CONTENDERS]
    names = [given for given in options.given if "=" not in given] or every
    for given in names:
        chosen = [name for name in TASKS if name == given or name.startswith(f"{given}_")]
        if not chosen:
            parser.error(f"no task {given}; there are: {', '.join(TASKS)}")
        for name in chosen:
            task = TASKS[name]
            usual = DEFAULT_ROWS if task.rows is CONTENDERS else tuple(task.rows)
            rows = options.rows.split(",") if options.rows else usual
            if unknown := set(rows) - set(task.rows):
                parser.error(f"no rows {', '.join(sorted(unknown))} in {name}; there are: {', '.join(task.rows)}")
            run(name, rows, settings, [int(seed) for seed in options.seed.split(",")], ensemble=options.ensemble)


def run(name: str, rows: Sequence[str], settings: Sequence[str], seeds: Sequence[int], *, ensemble: bool) -> None:
    """Print the table of a task: what others have reached, then a line for each contender and seed."""
    task = TASKS[name]
    folder = data_folder(task, name)
    if folder is None:
        return
    head(task, name, "seed")
    for label, scores in task.bars.items():
        show(task, f"({label})", dict(zip(task.metrics, scores, strict=False)))
    done: dict[tuple[object, ...], tuple[Artifact, object, float]] = {}
    for row in rows:
        forecasters: list[Forecaster] = []
        for seed in (0,) if row in (NAIVE, ZERO_SHOT) else seeds:
            config = configured(task, folder, [*settings, f"fit.seed={seed}", *task.rows[row]])
            loaded = training_data(
                read_panel(config.data, config.window.horizon), config.window.horizon, config.model, config.fit
            )
            judge, label = task.judge(task, config, loaded, folder), row
            if row == NAIVE:
                show(task, "last value" if task.season == 1 else "seasonal naive", judge(_naive(task, config)))
                continue
            if row == ZERO_SHOT:
                begun = time.process_time()
                artifact = zero_shot(NANO, loaded, config.window).latest
                scores = judge(model(artifact))
                show(task, label, scores, "", "", f"{time.process_time() - begun:.0f}")
                continue
            key = (task.rows[row], seed)  # The fine-tuned model has the same base; what is carried is no other one.
            if key not in done:
                done[key] = fitted(config, loaded)
            artifact, steps, spent = done[key]
            if row == TUNED:
                begun = time.process_time()
                tuned = finetune(artifact, loaded.panel, task.tuning)
                spent += time.process_time() - begun
                artifact = tuned.artifact
                label = f"{row}, {tuned.summary['series_tuned']:,} of {loaded.panel.n_series:,}"
            forecasters.append(carried(artifact) if row == CARRIED else model(artifact))
            show(task, label, judge(forecasters[-1]), seed, steps, f"{spent:.0f}")
        if ensemble and len(forecasters) > 1:
            show(task, f"{row}, mean of {len(forecasters)}", judge(mean(forecasters)))
    print()


def data_folder(task: Task, name: str) -> Path | None:
    """Return the folder of a task's data; None, said aloud, where it isn't there."""
    folder = task.folder or Path(os.environ.get("GATECAST_BENCH_DATA", ROOT.parent / "shared" / "data")) / task.preset
    if folder.is_dir():
        return folder
    what = f"run `forecast data nyc-flights {task.folder}`" if task.folder else "set GATECAST_BENCH_DATA to its folder"
    print(f"{name} skipped: {folder} is not there; {what}")
    return None


def head(task: Task, name: str, what: str) -> None:
    """Print the head of a table, whose lines are told apart by `what`."""
    show(task, name, dict(zip(task.metrics, task.metrics, strict=True)), what, "steps", "CPU s")
    print(f"| :{'-' * 31} |{' -----: |' * len(task.metrics)} -----: | ----: | ----: |")


def show(task: Task, label: str, scores: Mapping[str, float | str | None], *costs: object) -> None:
    """Print a line of a table: scores, then what tells it apart, steps and CPU seconds."""
    given = {metric: "" if scores.get(metric) is None else scores[metric] for metric in task.metrics}
    cells = [x if isinstance(x, str) else f"{x:.{4 if metric == 'wQL' else 3}f}" for metric, x in given.items()]
    what, steps, cpu = costs or ("", "", "")
    print(
        f"| {label:<32} | {''.join(f'{cell:>6} | ' for cell in cells)}{what:>6} | {steps:>5} | {cpu:>5} |", flush=True
    )


def configured(task: Task, folder: Path, settings: Sequence[str]) -> TrainConfig:
    """Return the preset of a task with the paths of its tables and further settings."""
    files = [f"{key}={folder / name}" for key, name in task.files.items()]
    return load(TrainConfig, compose("train", [f"experiment={task.preset}", *files, *task.settings, *settings]))


def fitted(config: TrainConfig, loaded: Loaded) -> tuple[Artifact, object, float]:
    """Return the model, its steps and the CPU seconds of all threads."""
    begun = time.process_time()
    result = fit(
        loaded.panel,
        data=loaded.data,
        categories=loaded.categories,
        window=config.window,
        model=config.model,
        fit=config.fit,
    )
    return result.artifact, result.summary["steps"], time.process_time() - begun


def _naive(task: Task, config: TrainConfig) -> Forecaster:
    horizon, levels = config.window.horizon, config.model.quantile_levels
    return partial(seasonal_naive, horizon=horizon, season=task.season, levels=levels)


def model(artifact: Artifact) -> Forecaster:
    """Return the forecaster of a model, with what fine-tuning has changed."""
    return lambda panel, windows: predict(artifact, panel, windows).tuned


def carried(artifact: Artifact) -> Forecaster:
    """Return the forecaster of a model whose encoder has seen the whole history (`score.state`)."""
    network = artifact.network

    def one_each(panel: Panel, windows: WindowIndex) -> Array:
        past = StateStore.blank(network, panel.n_series)
        segments = segments_since(panel, windows, network.shape.segment_length)
        advance(network, PanelTensors(panel, unit=network.shape.unit), windows, segments, past)
        return predict(artifact, panel, windows, carried=past).tuned

    def forecaster(panel: Panel, windows: WindowIndex) -> Array:
        # A state is of one cutoff of each series.
        number = pl.DataFrame({"series": windows.series}).select(pl.int_range(pl.len()).over("series")).to_series()
        parts = [np.flatnonzero(number.to_numpy() == each) for each in number.unique(maintain_order=True)]
        made = [one_each(panel, WindowIndex(windows.series[part], windows.cutoff[part])) for part in parts]
        return np.concatenate(made)[np.concatenate(parts).argsort()]

    return forecaster


def mean(forecasters: Sequence[Forecaster]) -> Forecaster:
    """Return the mean of the quantiles, level by level."""
    return lambda panel, windows: np.mean([forecaster(panel, windows) for forecaster in forecasters], axis=0)
