"""A training step: CPU time against a bare `nn.LSTM` of the same shapes, forward, backward and optimiser.

The bare network has no dropout. A second one with the dropout of a training shows what its masks take.
"""

import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import polars as pl
import torch
from torch import nn

from benchmarks import ratios
from forecast.config import DataConfig, ModelConfig
from forecast.data.ingest.load import load_panel
from forecast.data.panel import Panel
from forecast.data.windows import OriginSampler
from forecast.models.inputs.batch import PanelTensors
from forecast.models.inputs.shape import NetworkShape
from forecast.models.network.forecaster import RecurrentForecaster
from forecast.models.network.losses import step_errors, window_sizes
from forecast.models.runtime.torch_setup import prepare
from forecast.training.dataset import TrainingWindows

CONTEXT, HORIZON, BATCH, HIDDEN, LAYERS, STEPS = 168, 24, 64, 128, 2, 20


def main() -> None:
    """Print CPU per step, its ratio to the bare network, and the share of the gather, for two segment lengths."""
    panel = hourly_panel()
    for segment in (1, 24):
        spent = costs(panel, segment)
        ratios.keep(f"training step / bare LSTM, {segment} hours a step", spent["step"] / spent["bare"])
        print(
            f"segment {segment}: step {spent['step']:.0f} ms CPU ({spent['forecasts']:.0f} forecasts), "
            f"bare LSTM {spent['bare']:.0f} ms, ratio {spent['step'] / spent['bare']:.2f}, "
            f"with dropout {spent['bare with dropout']:.0f} ms, {spent['step'] / spent['bare with dropout']:.2f}; "
            f"gather {spent['gather'] / spent['step']:.1%} of the step"
        )


def hourly_panel() -> Panel:
    """Return 200 series of 1,000 hours with a daily pattern."""
    rng = np.random.default_rng(0)
    steps = np.arange(1_000)
    stamps = np.datetime64("2024-01-01T00:00:00", "us") + steps * np.timedelta64(3_600_000_000, "us")
    table = pl.DataFrame(
        {
            "series_id": np.repeat([f"s{number:03d}" for number in range(200)], len(steps)),
            "timestamp": np.tile(stamps, 200),
            "target": np.tile(np.sin(steps * 2 * np.pi / 24), 200) + rng.normal(size=200 * len(steps)),
        }
    )
    return load_panel(table.lazy(), DataConfig(freq="1h"), HORIZON).panel


def clock(device: str) -> float:
    """Return seconds: of this process' threads on a CPU that may be shared, of the clock on a GPU."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def costs(
    panel: Panel,
    segment: int,
    *,
    device: str = "cpu",
    batch_size: int = BATCH,
    hidden: int = HIDDEN,
    bf16: bool = False,
) -> dict[str, float]:
    """Return ms (`clock`) of a step, of its gather and of the bare networks, and the forecasts in a step.

    All take turns; each figure is the median of its rounds.
    """
    prepare()
    shape = NetworkShape(
        context_length=CONTEXT,
        horizon=HORIZON,
        season_length=24,
        n_past=0,
        n_known=0,
        n_calendar=len(panel.calendar),
        category_sizes=(),
        n_static_numbers=0,
        segment_length=segment,
    )
    config = ModelConfig(hidden_size=hidden, num_layers=LAYERS)
    network = RecurrentForecaster(shape, config).to(device)
    data, span = PanelTensors(panel, device), CONTEXT - segment + 1
    limits = torch.from_numpy(panel.lengths).to(device)
    sampler = OriginSampler(panel.lengths, span=span)
    stream = iter(
        TrainingWindows(sampler, batch_size=batch_size, candidates=np.arange(0, span, segment), origins=16, seed=0)
    )
    ours = torch.optim.AdamW(network.parameters(), fused=True)
    size, n_segments = network.encoder.input_size, (CONTEXT + span - 1) // segment
    inputs = torch.randn(batch_size, n_segments, size, device=device)
    bare = {
        name: nn.LSTM(size, hidden, LAYERS, batch_first=True, dropout=dropout).to(device)
        for name, dropout in (("bare", 0.0), ("bare with dropout", config.dropout))
    }
    theirs = {name: torch.optim.AdamW(lstm.parameters(), fused=True) for name, lstm in bare.items()}
    spent: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        begun = clock(device)
        yield
        spent[name].append((clock(device) - begun) * 1000)

    for number in range(STEPS + 2):
        if number == 2:  # the first ones warm up
            spent.clear()
        series, first, origins = (values.to(device) for values in next(stream))
        with timed("step"):
            with timed("gather"):
                batch = data.gather(series, first, limits[series], **window_sizes(network, span))
            with torch.autocast(device, torch.bfloat16, enabled=bf16):
                error, weight = step_errors(network, batch, origins)
            ours.zero_grad()
            ((error * weight).sum() / weight.sum()).backward()
            ours.step()
        for name, lstm in bare.items():
            with timed(name):
                theirs[name].zero_grad()
                with torch.autocast(device, torch.bfloat16, enabled=bf16):
                    loss = lstm(inputs)[0].float().square().mean()
                loss.backward()
                theirs[name].step()
    return {**{name: statistics.median(times) for name, times in spent.items()}, "forecasts": batch_size * len(origins)}
