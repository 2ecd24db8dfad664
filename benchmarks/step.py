"""A training step: CPU time against a bare `nn.LSTM` of the same shapes, forward, backward and optimiser."""

import time

import numpy as np
import polars as pl
import torch
from torch import nn

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

CONTEXT, HORIZON, BATCH, HIDDEN, LAYERS, STEPS = 168, 24, 64, 128, 2, 10


def main() -> None:
    """Print CPU per step, its ratio to the bare network, and the share of the gather, for two segment lengths."""
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
    panel = load_panel(table.lazy(), DataConfig(freq="1h"), HORIZON).panel
    for segment in (1, 24):
        spent = costs(panel, segment)
        print(
            f"segment {segment}: step {spent['step']:.0f} ms CPU ({spent['forecasts']:.0f} forecasts), "
            f"bare LSTM {spent['bare']:.0f} ms, ratio {spent['step'] / spent['bare']:.2f}; "
            f"gather {spent['gather'] / spent['step']:.1%} of the step"
        )


def costs(panel: Panel, segment: int) -> dict[str, float]:
    """Return CPU ms of a step, of its gather and of the bare network, and the forecasts in a step."""
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
    network = RecurrentForecaster(shape, ModelConfig(hidden_size=HIDDEN, num_layers=LAYERS))
    data, limits, span = PanelTensors(panel), torch.from_numpy(panel.lengths), CONTEXT - segment + 1
    sampler = OriginSampler(panel.lengths, span=span)
    stream = iter(
        TrainingWindows(sampler, batch_size=BATCH, candidates=np.arange(0, span, segment), origins=16, seed=0)
    )
    ours = torch.optim.AdamW(network.parameters(), fused=True)
    bare = nn.LSTM(network.encoder.input_size, HIDDEN, LAYERS, batch_first=True)
    theirs = torch.optim.AdamW(bare.parameters(), fused=True)
    inputs = torch.randn(BATCH, (CONTEXT + span - 1) // segment, network.encoder.input_size)
    spent = {"gather": 0.0, "step": 0.0, "bare": 0.0}
    for number in range(STEPS + 2):
        if number == 2:  # the first ones warm up
            spent = dict.fromkeys(spent, 0.0)
        series, first, origins = next(stream)
        begun = time.process_time()
        batch = data.gather(series, first, limits[series], **window_sizes(network, span))
        spent["gather"] += time.process_time() - begun
        error, weight = step_errors(network, batch, origins)
        ours.zero_grad()
        ((error * weight).sum() / weight.sum()).backward()
        ours.step()
        spent["step"] += time.process_time() - begun
        begun = time.process_time()
        theirs.zero_grad()
        bare(inputs)[0].square().mean().backward()
        theirs.step()
        spent["bare"] += time.process_time() - begun
    return {**{name: seconds / STEPS * 1000 for name, seconds in spent.items()}, "forecasts": BATCH * len(origins)}
