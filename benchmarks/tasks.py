"""What is measured of Gatecast: each task runs in a process of its own and returns figures."""

import hashlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch.utils.data import DataLoader, Dataset, RandomSampler

from benchmarks import step
from benchmarks.meter import Figures, Meter, answer, warmed
from forecast import artifact as artifacts
from forecast.api import forecast
from forecast.config import DataConfig, FitConfig, ModelConfig, ScoreOutput, ScoreSettings, SourceConfig, WindowConfig
from forecast.data.files import locked
from forecast.data.ingest.loaded import Loaded
from forecast.data.prepared.prepare import prepare
from forecast.data.read import read_panel, text_columns
from forecast.data.sources.open import open_tables
from forecast.data.windows import BATCH_SIZE, OriginSampler, windows_at
from forecast.models.inputs.batch import PanelTensors
from forecast.models.network.losses import validation_batches
from forecast.models.runtime.onnx import example_windows
from forecast.models.runtime.torch_setup import prepare as prepare_runtime
from forecast.scoring.job import ScoreJob
from forecast.training.dataset import TrainingWindows
from forecast.training.fit import fit

CONTEXT, HORIZON, BATCH = 168, 24, 64
WARM_UP = 20
_HOURLY: dict[str, Any] = {"freq": "1h"}
HELD_OUT = 240  # The latest steps, which the held-out windows of `windows` are spread over.


def load(settings: dict[str, Any], horizon: int) -> Loaded:
    """Return the panel that `data` of a config names."""
    return read_panel(DataConfig.model_validate(settings), horizon)


def write(folder: str, series: int, steps: int, files: int = 1, kind: str = "tidy") -> Figures:
    """Write an hourly panel as Parquet files, one after the other.

    One with gaps lacks a row in twenty. A messy one also repeats one in two hundred, contradicts as many, and its rows
    are shuffled.
    """
    Path(folder).mkdir(parents=True)
    stamps = np.datetime64("2024-01-01T00:00:00", "us") + np.arange(steps) * np.timedelta64(3_600_000_000, "us")
    rows = 0
    for number, part in enumerate(np.array_split(np.arange(series), files)):
        rng = np.random.default_rng(number)
        names = pl.Series([f"s{name:06d}" for name in part.tolist()])
        table = pl.DataFrame(
            {
                "series_id": names.gather(np.repeat(np.arange(len(part)), steps)),
                "timestamp": np.tile(stamps, len(part)),
                "target": rng.normal(size=len(part) * steps),
            }
        )
        if kind != "tidy":
            table = table[np.sort(rng.permutation(table.height)[: table.height * 19 // 20])]
        if kind == "messy":
            again = table[rng.permutation(table.height)[: table.height // 100]]
            differs = pl.Series(np.arange(again.height) % 2 == 0)
            again = again.with_columns(pl.when(differs).then(pl.col("target") + 1).otherwise("target"))
            table = pl.concat([table, again])[rng.permutation(table.height + again.height)]
        table.write_parquet(Path(folder) / f"part-{number:03d}.parquet")
        rows += table.height
    return {"rows": rows, "megabytes": sum(file.stat().st_size for file in Path(folder).iterdir()) / 1e6}


def read(path: str, warm: str) -> Figures:
    """Read the columns of the table, and nothing else; `megabytes` are those of the frame."""
    table, figures = warmed(pl.read_parquet, warm, path)
    return {**figures, "megabytes": table.to_arrow(compat_level=pl.CompatLevel.newest()).nbytes / 1e6}


def panel(horizon: int, path: str, warm: str, **settings: Any) -> Figures:
    """Table to panel. `megabytes` are those of its buffers, which have an entry per step."""
    loaded, figures = warmed(lambda table: load({**settings, "path": table}, horizon), warm, path)
    made = loaded.panel
    return {
        **figures,
        **_account(loaded),
        "known": len(made.known),
        "static": made.static_categories.shape[1] + made.static_numbers.shape[1],
    }


def prepare_panel(horizon: int, folder: str, **settings: Any) -> Figures:
    """Table to the files of a prepared panel."""
    data = DataConfig.model_validate(settings)
    with Meter(anonymous=True) as meter:
        loaded = prepare(open_tables(data, text_columns(data, None)), data, horizon, Path(folder)).loaded
    return {**meter.figures, **_account(loaded)}


def gather(path: str, batches: int) -> Figures:
    """Batches of random windows by our one gather, drawing them included."""
    data, limits = _tensors(path)
    sampler, rng = OriginSampler(limits.numpy(), span=1), np.random.default_rng(0)

    def stream() -> Iterator[torch.Size]:
        while True:
            drawn = sampler.draw(BATCH, rng)
            series = torch.from_numpy(drawn.series)
            batch = _gather(data, series, torch.from_numpy(drawn.cutoff), limits[series])
            yield batch.shape

    return _rate(stream(), batches)


class WindowDataset(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """The windows of a panel one by one, as a tutorial would have it: target and mask."""

    def __init__(self, data: PanelTensors, length: int) -> None:
        self._data = data
        self._length = length
        counts = (data.lengths - length + 1).clamp(min=0)
        self._ends = counts.cumsum(0)
        self._begins = self._ends - counts

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        series = int(torch.searchsorted(self._ends, number, right=True))
        begin = int(self._data.offsets[series]) + number - int(self._begins[series])
        window = self._data.target[begin : begin + self._length]
        observed = torch.isfinite(window)
        return window.masked_fill(~observed, 0.0), observed


def loader(path: str, batches: int, workers: int) -> Figures:
    """The same batches by a DataLoader over single windows of the same buffer."""
    dataset = WindowDataset(_tensors(path)[0], CONTEXT + HORIZON)
    sampler = RandomSampler(dataset, replacement=True, num_samples=(batches + WARM_UP) * BATCH)
    items = DataLoader(dataset, batch_size=BATCH, sampler=sampler, num_workers=workers)
    return _rate((target.shape for target, _ in items), batches)


def training_step(path: str) -> Figures:
    """The shares of a training step, an hour and a day at once."""
    made = load({"path": path, "freq": "1h"}, HORIZON).panel
    return {str(segment): step.costs(made, segment) for segment in (1, 24)}


def windows(path: str, stride: int, batches: int) -> Figures:
    """Draw training windows with origins `stride` apart, then gather all held-out ones at cutoffs `stride` apart.

    Of a prepared panel: reading a table leaves memory behind, which would hide what the windows take.
    """
    made = load({"path": path, "calendar": False}, HORIZON).panel
    data, limits, span = PanelTensors(made), torch.from_numpy(made.lengths - HELD_OUT), CONTEXT
    with Meter(anonymous=True) as meter:
        training = TrainingWindows(
            OriginSampler(limits.numpy(), span=span),
            batch_size=BATCH,
            candidates=np.arange(0, span, stride),
            origins=16,
            seed=0,
        )
        for series, first, _ in islice(training, batches):
            data.gather(series, first, limits[series], context=CONTEXT, span=span, horizon=HORIZON)
        held_out = 0
        for cutoff in range(made.last_index - HELD_OUT, made.last_index - HORIZON + 1, stride):
            index = windows_at(made, cutoff)
            for series, at, _ in validation_batches(index):
                _gather(data, series, at, at + HORIZON + 1)
            held_out += len(index)
    return {**meter.figures, "windows": held_out}


def train(folder: str, steps: int) -> Figures:
    """Open a prepared panel, which is mapped from its files, and train a few steps on it."""
    with Meter(anonymous=True) as opening:
        loaded = load({"path": folder}, HORIZON)
    with Meter(anonymous=True) as meter:
        fit(
            loaded.panel,
            data=loaded.data,
            categories=loaded.categories,
            window=WindowConfig(context_length=CONTEXT, horizon=HORIZON),
            model=ModelConfig(),
            fit=FitConfig(max_steps=steps, validation_every=steps, validation_windows=1),
        )
    return {**meter.figures, "opening": opening.figures}


def small_model(folder: str, context: int, horizon: int, init: str | None = None) -> Figures:
    """Write a model that a few steps have trained, with a pretrained network of the package to choose or without."""
    _write_model(folder, 100, 300, context, horizon, ModelConfig(hidden_size=32, init=init), steps=10)
    return {}


def score(model: str, panel: str, folder: str, state: str | None = None, before: int = 0) -> Figures:
    """Forecasts of a prepared panel from so many steps before its end, to Parquet."""
    with Meter(anonymous=True) as meter:
        content = score_panel(model, panel, folder, state, before)
    return {**meter.figures, "rows": content["rows"]["written"], "state": content["state"]}


def large_model(folder: str, context: int, horizon: int, segment: int = 1) -> Figures:
    """Write a model of two layers of 128 that reads so many hours at a time, without the pretrained network.

    What it has learnt costs nothing.
    """
    model = ModelConfig(hidden_size=128, num_layers=2, segment_length=segment, init=None)
    _write_model(folder, 20, context + 1_000, context, horizon, model, steps=0)
    return {}


def _write_model(
    folder: str, series: int, length: int, context: int, horizon: int, model: ModelConfig, *, steps: int
) -> None:
    write(f"{folder}-table", series, length)
    made = load({"path": f"{folder}-table", **_HOURLY}, horizon)
    found = fit(
        made.panel,
        data=made.data,
        categories=made.categories,
        window=WindowConfig(context_length=context, horizon=horizon),
        model=model,
        fit=FitConfig(max_steps=steps, validation_windows=1, holdout_windows=0),
    )
    found.artifact.save(folder)


def score_table(model: str, path: str, warm: str, folder: str, runtime: str) -> Figures:
    """Parquet in, Parquet out; a small table goes first."""
    content, figures = warmed(
        lambda table: score_panel(model, table, f"{folder}/{Path(table).name}", runtime=runtime), warm, path
    )
    return {**figures, "rows": content["rows"]["written"]}


def forecast_frame(model: str, path: str, warm: str) -> Figures:
    """A frame in, a frame out, by the Python API; a small table goes first."""
    found = artifacts.load(Path(model))
    frames = {table: pl.read_parquet(table) for table in (warm, path)}
    made, figures = warmed(lambda table: forecast(found, frames[table]).frame, warm, path)
    return {**figures, "rows": len(made)}


def network_forward(model: str, series: int) -> Figures:
    """The network alone on as many windows in memory, and its encoder alone."""
    network = artifacts.load(Path(model)).network
    windows, origin = example_windows(network, BATCH_SIZE), torch.zeros(1, dtype=torch.long)
    inputs = torch.randn(BATCH_SIZE, network.shape.context_length, network.encoder.input_size)
    found: dict[str, Figures] = {}
    prepare_runtime()
    with torch.inference_mode():
        calls = {"network": partial(network, windows, origin), "encoder": partial(network.encoder, inputs)}
        for name, call in calls.items():
            call()
            with Meter() as meter:
                for _ in range(series // BATCH_SIZE):
                    call()
            share = series / (series // BATCH_SIZE * BATCH_SIZE)
            found[name] = {figure: meter.figures[figure] * share for figure in ("cpu", "wall")}
    return {**found["network"], "encoder": found["encoder"]["cpu"]}


def kills(model: str, panel: str, folder: str, kills: int) -> Figures:
    """Kill a job at random moments, each time into another folder, and run it again: are the files those of another?"""
    rng = np.random.default_rng(0)
    found: Figures = {"equal": 0, "undisturbed": 0.0, "moments": [], "kept": []}
    expected: dict[str, str] = {}
    for number in range(kills + 1):
        out = Path(folder) / str(number)
        begun = time.perf_counter()
        # A child by fork: nothing but imports has been done so far, so no thread is lost.
        child = os.fork()
        if not child:
            score_panel(model, panel, str(out))
            os._exit(0)
        if number:
            time.sleep(rng.uniform(0.0, found["undisturbed"]))
            found["moments"].append(time.perf_counter() - begun)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            found["kept"].append(len(list(out.rglob("part-*.parquet"))))
            child = os.fork()
            if not child:
                score_panel(model, panel, str(out))
                os._exit(0)
        os.waitpid(child, 0)
        files = {
            str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in out.rglob("*")
            if path.is_file()
        }
        if number:
            found["equal"] += files == expected
        else:
            found["undisturbed"], expected = time.perf_counter() - begun, files
            found["shards"] = len(list(out.rglob("part-*.parquet")))
    return found


def score_panel(
    model: str, panel: str, folder: str, state: str | None = None, before: int = 0, runtime: str = "torch"
) -> dict[str, Any]:
    """Write the forecasts of a panel from so many steps before its end; return their manifest."""
    artifact = artifacts.load(Path(model))
    loaded = artifact.open(SourceConfig(path=panel))
    names = {"model": "small", "model_version": "1", "model_digest": artifacts.digest(Path(model))}
    with locked(Path(folder)):
        settings = ScoreSettings.model_validate({"runtime": runtime, "state": state})
        job = ScoreJob(artifact, loaded, settings, ScoreOutput(path=folder), names)
        return job.write(loaded.panel.last_index - before).content


def _account(loaded: Loaded) -> Figures:
    """Return where the rows went, and what the buffers of the panel take, in MB."""
    counts, made = loaded.counts, loaded.panel
    ends = counts.rows_kept + counts.rows_rejected + counts.rows_future + counts.rows_after_until
    assert ends == counts.rows_in, counts
    assert counts.steps_filled == np.count_nonzero(np.isnan(made.target)), counts
    return {**vars(counts), "megabytes": (made.target.nbytes + made.past.nbytes + made.known.nbytes) / 1e6}


def _tensors(path: str) -> tuple[PanelTensors, torch.Tensor]:
    # Without the calendar, so that a window is what the DataLoader's is: target and mask.
    made = load({"path": path, "freq": "1h", "calendar": False}, HORIZON).panel
    return PanelTensors(made), torch.from_numpy(made.lengths)


def _gather(data: PanelTensors, series: torch.Tensor, cutoff: torch.Tensor, limit: torch.Tensor) -> torch.Tensor:
    return data.gather(series, cutoff, limit, context=CONTEXT, span=1, horizon=HORIZON).target


def _rate(shapes: Iterator[torch.Size], batches: int) -> Figures:
    """Return the cost of so many batches, after the first ones."""
    for _ in islice(shapes, WARM_UP):
        pass
    with Meter() as meter:
        found = set(islice(shapes, batches))
        del shapes
    assert found == {(BATCH, CONTEXT + HORIZON)}, found
    return {**meter.figures, "windows": batches * BATCH}


TASKS: dict[str, Callable[..., Figures]] = {
    task.__name__: task
    for task in (
        write,
        read,
        panel,
        prepare_panel,
        gather,
        loader,
        training_step,
        windows,
        train,
        small_model,
        score,
        large_model,
        score_table,
        forecast_frame,
        network_forward,
        kills,
    )
}

if __name__ == "__main__":
    answer(TASKS)
