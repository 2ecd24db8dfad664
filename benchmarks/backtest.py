"""Backtests: CPU time of N cutoffs with one pass of the encoder, and as a batch, against N separate scorings.

`python -m benchmarks backtest`. What one pass costs is compared with the encoder alone over the same history, too, and
its forecasts with those of scoring. GATECAST_BENCH_SCALE=0.1 makes the panel smaller.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import torch

from benchmarks import ratios
from benchmarks.data import SCALE, show_table
from benchmarks.meter import Meter
from forecast.artifact import Artifact
from forecast.config import DataConfig, FitConfig, ModelConfig, WindowConfig
from forecast.data.ingest.load import load_panel
from forecast.data.panel import Panel
from forecast.data.windows import WindowIndex, windows_at
from forecast.metrics.seasonal_naive import future_values
from forecast.models.inputs.batch import PanelTensors
from forecast.models.network.carried_state import StateStore, advance, segments_since
from forecast.prediction.predict import predict
from forecast.training.fit import fit

SERIES, STEPS, HORIZON = max(2, round(20 * SCALE)), 8_000, 24
CUTOFFS = (1, 8, 64, 256)
ROUNDS = 3
# Name, context, hours that the encoder takes in at once, and hours between cutoffs.
SHAPES = (
    ("a day at a time, a cutoff a day", 336, 24, 24),
    ("an hour at a time, a cutoff an hour", 168, 1, 1),
)


def main() -> None:
    """Print a table for each shape."""
    torch.set_num_threads(1)
    for name, context, segment, step in SHAPES:
        artifact, panel = _trained(context, segment)
        length, rows = segment * -(-STEPS // segment), []
        last = windows_at(panel, panel.last_index)
        encoder = _cost(lambda: _encode(artifact, panel, last))  # noqa: B023
        for count in CUTOFFS:
            cutoffs = [panel.last_index - HORIZON - k * step for k in range(count)]
            each = [windows_at(panel, cutoff) for cutoff in cutoffs]
            both = [np.concatenate(part) for part in zip(*((w.series, w.cutoff) for w in each), strict=True)]
            windows = WindowIndex(*both)
            apart = _cost(lambda: [predict(artifact, panel, own) for own in each])  # noqa: B023
            batch = _cost(lambda: predict(artifact, panel, windows))  # noqa: B023
            once = _cost(lambda: predict(artifact, panel, windows, one_pass=True))  # noqa: B023
            rows.append((count, apart, batch, once, *_difference(artifact, panel, windows)))
        _, apart, batch, once, *_ = rows[-1]
        for way, cost in (("one pass", once), ("batch", batch)):
            ratios.keep(f"backtest: {CUTOFFS[-1]} cutoffs, {way} / separate, {name}", cost / apart)
        print(f"{SERIES} series of {length:,} hours, context {context:,}, {name}, horizon {HORIZON}, LSTM of 64")
        print(f"the encoder alone over the history: {encoder:.3f} s of CPU")
        head = "cutoffs", "separate, s", "batch, s", "/ separate", "one pass, s", "/ separate", "/ encoder"
        show_table(
            (*head, "median difference", "mean error, one pass / scoring"),
            (
                (
                    f"{count:,}",
                    f"{apart:.3f}",
                    f"{batch:.3f}",
                    f"{batch / apart:.2f}",
                    f"{once:.3f}",
                    f"{once / apart:.2f}",
                    f"{once / encoder:.1f}",
                    f"{difference:.2%} of the error",
                    f"{error:.4f}",
                )
                for count, apart, batch, once, difference, error in rows
            ),
        )
        print()


def _trained(context: int, segment: int) -> tuple[Artifact, Panel]:
    """Return a model of hourly series with daily seasons that grow and fade and with busy hours, and their panel."""
    rng = np.random.default_rng(0)
    hours = np.arange(STEPS)
    stamps = np.datetime64("2024-01-01T00:00:00", "us") + hours * np.timedelta64(3_600_000_000, "us")
    busy = rng.integers(0, 2, (SERIES, STEPS))
    waves = 5 * np.sin(2 * np.pi * hours / 24 + rng.uniform(0, 6, (SERIES, 1))) * (1 + np.sin(2 * np.pi * hours / 210))
    table = pl.DataFrame(
        {
            "series_id": np.repeat([f"s{number:03d}" for number in range(SERIES)], STEPS),
            "timestamp": np.tile(stamps, SERIES),
            "target": (20 + waves + 4 * busy + rng.normal(size=(SERIES, STEPS))).ravel(),
            "busy": busy.ravel().astype(float),
        }
    )
    made = load_panel(table.lazy(), DataConfig(freq="1h", season_length=24, known_covariates=("busy",)), HORIZON)
    found = fit(
        made.panel,
        data=made.data,
        categories=made.categories,
        window=WindowConfig(context_length=context, horizon=HORIZON),
        model=ModelConfig(segment_length=segment),
        fit=FitConfig(
            max_steps=60,
            learning_rate=2e-2,
            ema_decay=0.9,
            validation_every=20,
            holdout_windows=15,
            accelerator="cpu",
        ),
    )
    return found.artifact, made.panel


def _cost(work: Callable[[], Any]) -> float:
    """Return the CPU seconds of the cheapest of some rounds."""
    found = []
    for _ in range(ROUNDS):
        with Meter() as meter:
            work()
        found.append(meter.figures["cpu"])
    return float(min(found))


def _encode(artifact: Artifact, panel: Panel, windows: WindowIndex) -> None:
    network = artifact.network
    data = PanelTensors(panel, unit=network.shape.unit)
    segments = segments_since(panel, windows, network.shape.segment_length)
    advance(network, data, windows, segments, StateStore.blank(network, panel.n_series))


def _difference(artifact: Artifact, panel: Panel, windows: WindowIndex) -> tuple[float, float]:
    """Return the median difference of medians by the mean error of scoring, and the ratio of the mean errors."""
    middle = artifact.model.quantile_levels.index(0.5)
    scored, once = (predict(artifact, panel, windows, one_pass=way).tuned[..., middle] for way in (False, True))
    actual = future_values(panel, windows, HORIZON)
    errors = [float(np.nanmean(np.abs(made - actual))) for made in (scored, once)]
    return float(np.median(np.abs(once - scored))) / errors[0], errors[1] / errors[0]
