"""Fine-tuning: cost against a loop over the series, memory, accuracy, and the closed form for a large panel.

`python -m benchmarks finetune [PART ...] [--series 10,100] [--kinds head,full] [--hidden 32] [--cells lstm,gru]`

- `time`: CPU seconds (of a GPU, those of the clock) per series on a synthetic panel, every series tuned, and bytes per
  series in the bank. Beside it a Python loop of plain PyTorch, which trains a copy of the same network for each series
  with one Adam: windows, origins and steps are those that `lora` and `full` take; ours also looks for the best step and
  gates. A few series of the loop are measured. Where its environment is there (`.venv-peers`, see `benchmarks data`),
  neuralforecast's `fit` of an LSTM of the same size, a series at a time, for as many steps.
- `accuracy`: the presets of `benchmarks accuracy`, the base and each kind, gated and not, and the mean of the base and
  a ridge of each series' own, and an ETS (statsforecast, where it is installed and the series are few). `uplift` and
  `worse` are of the report windows, the metrics of the test part.
- `scale`: head for all of M5: the pass of the network, the rest, and the bank on disk and in MLflow (SQLite).

`--sample 300` takes the first 300 series of each data set in `accuracy` and `scale`. With `--pretrained`, `scale` has
the default base, which validation may give a share of the pretrained network.
"""

import argparse
import copy
import importlib.util
import math
import os
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import polars as pl
import torch

from benchmarks.accuracy import TASKS, Array, Forecaster, configured, data_folder, fitted, head, model, show
from benchmarks.data import ROOT
from benchmarks.meter import run
from forecast.artifact import Artifact, load
from forecast.config import DataConfig, FinetuneSettings, FitConfig, ModelConfig, RegistryConfig, WindowConfig
from forecast.data.ingest.load import load_panel
from forecast.data.ingest.loaded import Loaded
from forecast.data.panel import Panel
from forecast.data.read import read_panel
from forecast.data.windows import WindowIndex
from forecast.finetuning.finetune import finetune
from forecast.models.adapters import head_ridge
from forecast.models.adapters.bank import HEAD
from forecast.models.inputs.batch import PanelTensors
from forecast.models.network.forecaster import RecurrentForecaster
from forecast.models.network.losses import step_errors, window_sizes
from forecast.models.runtime.torch_setup import prepare
from forecast.tracking.registry import Registry
from forecast.training.fit import fit
from forecast.training.split import training_data

PARTS = ("time", "accuracy", "scale")
KINDS = ("head", "bias", "embedding", "lora", "full")
CONTEXT, HORIZON, LENGTH, STEPS, BATCH, ORIGINS = 56, 14, 400, 30, 4, 16
STRICT = {"gate": "strict"}
UNGATED = {**STRICT, "min_gain": -math.inf, "min_windows_better": 0.0}
# Series of the loops that are measured.
LOOPED = 3
# Data sets of the accuracy, and series of the larger ones, of kinds other than the closed form.
DATA, SAMPLE = ("m4_hourly", "m4_weekly", "m5", "nyc_flights", "etth1_96"), 3000
# Series that an ETS each is fitted for, at most.
ETS_SERIES = 1000


def main(*argv: str) -> None:
    """Print a table for each part."""
    parser = argparse.ArgumentParser("python -m benchmarks finetune", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART|TASK", help=f"{', '.join(PARTS)}, and tasks of accuracy")
    parser.add_argument("--series", default="10,100", metavar="N,...")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--hidden", default="32,128", metavar="N,...")
    parser.add_argument("--cells", default="lstm")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--budget", type=float, default=120.0, metavar="SECONDS", help="for each base of accuracy")
    parser.add_argument("--sample", type=int, metavar="N", help="series of each data set; all when not given")
    parser.add_argument("--pretrained", action="store_true", help="the default base in scale")
    options = parser.parse_args(argv)
    tasks = [name for name in options.parts if name not in PARTS]
    parts = [name for name in options.parts if name in PARTS] or ["accuracy" if tasks else "time"]
    torch.set_num_threads(1)
    prepare()
    if "time" in parts:
        for cell in options.cells.split(","):
            for hidden in options.hidden.split(","):
                counts = [int(count) for count in options.series.split(",")]
                _times(cell, int(hidden), counts, options.kinds.split(","), options.device)
    if "accuracy" in parts:
        for name in tasks or DATA:
            _accuracy(name, options.kinds.split(","), options.budget, options.sample)
    if "scale" in parts:
        _scale(options.sample, pretrained=options.pretrained)


# --- cost


def _times(cell: str, hidden: int, counts: list[int], kinds: list[str], device: str) -> None:
    settings = FinetuneSettings(
        gate_windows=2,
        report_windows=1,
        holdout_windows=0,
        steps=STEPS,
        learning_rates=(1e-3,),
        batch_size=BATCH,
        accelerator="cpu" if device == "cpu" else "gpu",
    )
    # Patience would spare steps: all are taken.
    rows = settings.model_copy(update=UNGATED)
    base = _base(cell, hidden)
    print(f"\n{cell}, hidden {hidden}, {device}: ms per series; times faster than the loop")
    loop = _loop(base, _panel(max(LOOPED, 1)), device)
    print(f"loop of plain PyTorch, {2 * STEPS} steps: {loop * 1000:.0f} ms per series")
    peer = _neuralforecast(hidden) if cell == "lstm" and device == "cpu" else None
    if peer:
        print(f"neuralforecast LSTM, {2 * STEPS} steps: {peer * 1000:.0f} ms per series")
    print(f"{'kind':<10}" + "".join(f"{count:>20,}" for count in counts) + "   KB per series   peak MB")
    for kind in kinds:
        line = f"{kind:<10}"
        for count in counts:
            panel = _panel(count)
            with mock.patch("forecast.finetuning.gradient_group._PATIENCE", STEPS):
                begun = _clock(device)
                result = finetune(base, panel, rows.model_copy(update={"kind": kind}))
                spent = (_clock(device) - begun) / count
            line += f"{spent * 1000:>10.2f} {loop / spent:>8.1f}x"
        bank = result.artifact.bank
        assert bank is not None
        size = sum(values.nbytes for values in bank.tensors.values()) / max(len(bank.series_id), 1)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
        print(f"{line}{size / 1000:>16.1f}{peak:>10.0f}", flush=True)


def _rows(count: int) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(count, LENGTH)).cumsum(1) * 0.1 + rng.normal(size=(count, 1)) * np.sin(
        2 * np.pi * np.arange(LENGTH) / 7
    )
    stamps = np.datetime64("2024-01-01T00:00:00", "us") + np.arange(LENGTH) * np.timedelta64(86_400_000_000, "us")
    names = [f"s{number:06d}" for number in range(count)]
    noisy = values + 0.3 * rng.normal(size=values.shape)
    return pl.DataFrame(
        {"series_id": np.repeat(names, LENGTH), "timestamp": np.tile(stamps, count), "target": noisy.ravel()}
    )


def _panel(count: int) -> Panel:
    return load_panel(_rows(count).lazy(), DataConfig(freq="1d"), HORIZON).panel


def _base(cell: str, hidden: int) -> Artifact:
    loaded = load_panel(_rows(50).lazy(), DataConfig(freq="1d"), HORIZON)
    return fit(
        loaded.panel,
        data=loaded.data,
        categories=loaded.categories,
        window=WindowConfig(context_length=CONTEXT, horizon=HORIZON),
        model=ModelConfig.model_validate({"cell": cell, "hidden_size": hidden}),
        fit=FitConfig(max_steps=30, validation_every=15, ema_decay=0.9, accelerator="cpu"),
    ).artifact


def _loop(base: Artifact, panel: Panel, device: str) -> float:
    """Return the seconds of one series: a copy of the network, Adam, as many steps as a trial and a last fit take."""
    network = base.network
    assert isinstance(network, RecurrentForecaster)
    data, span = PanelTensors(panel, device, unit=network.shape.unit), CONTEXT
    generator = torch.Generator().manual_seed(0)
    begun = 0.0
    for series in range(LOOPED + 1):
        if series == 1:  # The first warms up.
            begun = _clock(device)
        own = copy.deepcopy(network).to(device)
        optimiser = torch.optim.Adam(own.parameters(), lr=1e-3)
        rows = torch.full((BATCH,), series % LOOPED, device=device)
        for _ in range(2 * STEPS):
            first = torch.randint(LENGTH - span - HORIZON, (BATCH,), generator=generator).to(device)
            origins = torch.randperm(span, generator=generator)[:ORIGINS].sort().values.to(device)
            batch = data.gather(rows, first, torch.full_like(rows, LENGTH), **window_sizes(own, span))
            error, weight = step_errors(own, batch, origins)
            optimiser.zero_grad()
            ((error * weight).sum() / weight.sum()).backward()
            torch.nn.utils.clip_grad_norm_(own.parameters(), 1.0)
            optimiser.step()
    return (_clock(device) - begun) / LOOPED


def _clock(device: str) -> float:
    """Return seconds: of this process' threads on a CPU that may be shared, else of the clock."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def _neuralforecast(hidden: int) -> float | None:
    python = ROOT / ".venv-peers" / "neuralforecast" / "bin" / "python"
    if not python.exists():
        print("neuralforecast left out: its environment is made by `python -m benchmarks data`")
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/table.parquet"
        _rows(LOOPED + 1).rename({"target": "value"}).write_parquet(path)
        made = run(
            "each_series",
            module="benchmarks.peers.train",
            python=python,
            path=path,
            context=CONTEXT,
            horizon=HORIZON,
            hidden=hidden,
            steps=2 * STEPS,
        )
    seconds: float = made["seconds"]
    return seconds


# --- accuracy


def _accuracy(name: str, kinds: list[str], budget: float, sample: int | None) -> None:
    task = TASKS[name]
    folder = data_folder(task, name)
    if folder is None:
        return
    task = replace(task, metrics=(*task.metrics, "tuned", "uplift", "worse"))
    config = configured(task, folder, [f"fit.max_minutes={budget / 60}"])
    loaded = training_data(
        _first(read_panel(config.data, config.window.horizon), sample), config.window.horizon, config.model, config.fit
    )
    judge = task.judge(task, config, loaded, folder)
    head(task, name, "")
    artifact, _, spent = fitted(config, loaded)
    show(task, "base", judge(model(artifact)), "", "", f"{spent:.0f}")
    chosen = (
        np.sort(np.random.default_rng(0).choice(loaded.panel.series_id, SAMPLE, replace=False)).tolist()
        if loaded.panel.n_series > 10 * SAMPLE // 3
        else None
    )
    for kind in (*kinds, "global"):
        for label, change in (("pooled", {}), ("strict", STRICT), ("ungated", UNGATED)):
            settings = task.tuning.model_copy(
                update={"kind": kind, "series": None if kind == HEAD else chosen, **change}
            )
            begun = time.process_time()
            result = finetune(artifact, loaded.panel, settings)
            spent = time.process_time() - begun
            found = result.summary
            told = {
                "tuned": found["series_tuned"],
                "uplift": found["uplift"],
                "worse": found["share_worse_2_percent"],
            }
            show(task, f"{kind}, {label}", {**judge(model(result.artifact)), **told}, "", "", f"{spent:.0f}")
            if kind == "global":
                break
    show(task, "mean of base and own ridge", judge(partial(_halfway, model(artifact), _ridge)))
    ets = partial(_halfway, model(artifact), partial(_ets, task.season))
    if importlib.util.find_spec("statsforecast") is None:
        print("mean of base and own ETS left out: statsforecast is not installed")
    elif loaded.panel.n_series > ETS_SERIES or task.split[-1]:
        print(f"mean of base and own ETS left out: more than {ETS_SERIES:,} series, or every cutoff of a test part")
    else:
        show(task, "mean of base and own ETS", judge(ets))


def _first(loaded: Loaded, count: int | None) -> Loaded:
    return loaded if count is None else replace(loaded, panel=loaded.panel.rows(0, min(count, loaded.panel.n_series)))


def _halfway(base: Forecaster, own: Callable[[Array, int], Array | None], panel: Panel, windows: WindowIndex) -> Array:
    """Return quantiles moved half-way to what another model says of each window's past alone, if it says anything."""
    quantiles = base(panel, windows).copy()
    horizon, middle = quantiles.shape[1], quantiles.shape[2] // 2
    for number, (row, cutoff) in enumerate(zip(windows.series, windows.cutoff, strict=True)):
        begin = panel.offsets[row]
        said = own(np.nan_to_num(panel.target[begin : begin + cutoff + 1].astype(np.float64)), horizon)
        if said is not None:
            quantiles[number] += 0.5 * (said - quantiles[number, :, middle])[:, None]
    return quantiles


def _ridge(values: Array, horizon: int) -> Array | None:
    """Return what a ridge of the latest windows on those before says; None of a short past."""
    size = min(2 * horizon, len(values) // 3)
    if len(values) < size + 2 * horizon:
        return None
    frames = np.lib.stride_tricks.sliding_window_view(values, size + horizon)[-512:]
    last = frames[:, size - 1 : size]
    x, y = frames[:, :size] - last, frames[:, size:] - last
    penalty = 0.01 * np.trace(x.T @ x) / size or 1.0  # Of a constant series nothing is left.
    weight = np.linalg.solve(x.T @ x + penalty * np.eye(size), x.T @ y)
    said: Array = values[-1] + (values[-size:] - values[-1]) @ weight
    return said


def _ets(season: int, values: Array, horizon: int) -> Array:
    from statsforecast.models import AutoETS

    said: Array = AutoETS(season_length=season).forecast(y=values, h=horizon)["mean"]
    return said


# --- a large panel


def _scale(sample: int | None, *, pretrained: bool) -> None:
    task = TASKS["m5"]
    folder = data_folder(task, "m5")
    if folder is None:
        return
    config = configured(task, folder, ["fit.max_steps=0", *([] if pretrained else ["model.init=null"])])
    loaded = training_data(
        _first(read_panel(config.data, config.window.horizon), sample), config.window.horizon, config.model, config.fit
    )
    artifact, _, _ = fitted(config, loaded)
    passes = _Timed(head_ridge.at_origins)
    begun = time.process_time()
    with mock.patch("forecast.models.adapters.head_ridge.at_origins", passes):
        result = finetune(artifact, loaded.panel, task.tuning)
    spent = time.process_time() - begun
    print(
        f"{loaded.panel.n_series:,} series, {result.summary['series_tuned']:,} tuned: {spent:.1f} s of CPU, of these "
        f"{passes.seconds:.1f} in the network, {spent - passes.seconds:.1f} after it"
    )
    with tempfile.TemporaryDirectory() as out:
        path = Path(out, "model")
        saved, digest = _seconds(lambda: result.artifact.save(path))
        opened, _ = _seconds(lambda: load(path))
        size = sum(file.stat().st_size for file in path.iterdir()) / 1e6
        print(f"bank: saved in {saved:.2f} s, loaded in {opened:.2f} s, {size:.1f} MB")
        with mock.patch.dict(os.environ, {"GATECAST_CACHE": f"{out}/cache"}):
            registry = Registry(RegistryConfig(name="m5", tracking_uri=f"sqlite:///{out}/mlflow.db"))
            with registry.run("finetune", config) as running:
                registry._client = calls = _Counting(registry._client)  # type: ignore[assignment]
                registered, version = _seconds(
                    lambda: registry.register(running, path, digest=digest, tags={"kind": "fine_tuned"})
                )
                print(f"registered in {registered:.2f} s by {calls.count} calls of MLflow", end="; ")
                calls.count = 0
            fetched, _ = _seconds(lambda: load(registry.download(registry.resolve(version.number))))
            print(f"downloaded and loaded in {fetched:.2f} s by {calls.count - 1} calls")


def _seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.perf_counter()
    made = work()
    return time.perf_counter() - begun, made


class _Counting:
    """A client that counts its calls."""

    def __init__(self, client: object) -> None:
        self._client, self.count = client, 0

    def __getattr__(self, name: str) -> object:
        self.count += 1
        return getattr(self._client, name)


class _Timed:
    """A function that counts its CPU seconds."""

    def __init__(self, work: Callable[..., object]) -> None:
        self._work, self.seconds = work, 0.0

    def __call__(self, *given: object, **settings: object) -> object:
        begun = time.process_time()
        made = self._work(*given, **settings)
        self.seconds += time.process_time() - begun
        return made
