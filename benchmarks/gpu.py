"""A GPU beside the CPU, and beside bare networks on it: `python -m benchmarks gpu [PART ...]`, in one run.

- `parity`: forecasts of the CPU and of the GPU from the same weights.
- `step`: a training step beside a bare LSTM of cuDNN, windows per second in float32 and bfloat16.
- `score`: prepared panels to Parquet with score.runtime=cuda, and the network alone on the device.
- `finetune`: `full` for 1,000 series beside a loop over the series.
- `accuracy`: M4 Hourly and M5 by their presets, until validation or `--minutes` ends them.

`--device cpu` tries the parts without a GPU; `--scale 0.01` makes panels smaller.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks import accuracy, finetune, step
from benchmarks.data import HOURLY, show_table
from benchmarks.tasks import large_model, prepare_panel, score_panel, small_model, write
from forecast.artifact import load
from forecast.config import SourceConfig
from forecast.data.windows import windows_at
from forecast.models.runtime.onnx import example_windows
from forecast.prediction.predict import predict

# The largest difference of a forecast of the GPU, in units of the range of its series.
TOLERANCE = 1e-4
CONTEXT, HORIZON = 48, 12
LONG_CONTEXT, LONG_HORIZON = 168, 48
BATCHES = (64, 1024)
FORWARD_BATCH, FORWARDS = 4096, 20


def main(*argv: str) -> None:
    """Print the tables of the parts named, all of them by default."""
    parser = argparse.ArgumentParser("python -m benchmarks gpu", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the series")
    parser.add_argument("--minutes", type=float, default=2.0, help="of each training of `accuracy`, at most")
    options = parser.parse_args(argv)
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no parts {', '.join(sorted(unknown))}; there are: {', '.join(PARTS)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no GPU here; --device cpu tries the parts on the CPU")
    name = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}")
    for part in options.parts or PARTS:
        start = time.perf_counter()
        PARTS[part](options)
        print(f"{part}: {time.perf_counter() - start:.0f} s\n", flush=True)


def _parity(options: argparse.Namespace) -> None:
    series = max(20, round(1_000 * options.scale))
    with tempfile.TemporaryDirectory() as folder:
        small_model(folder=f"{folder}/model", context=CONTEXT, horizon=HORIZON)
        write(f"{folder}/table", series, 200)
        artifact = load(Path(folder, "model"))
        panel = artifact.open(SourceConfig(path=f"{folder}/table")).panel
    windows = windows_at(panel, panel.last_index)
    host, remote = (predict(artifact, panel, windows, device=device).tuned for device in ("cpu", options.device))
    scale = np.ptp(panel.target.reshape(panel.n_series, -1), axis=1)[:, None, None]
    difference = float((np.abs(remote - host) / scale).max())
    print(f"forecasts of {series:,} series: differences of at most {difference:.1e} of the range of a series")
    assert difference <= TOLERANCE


def _step(options: argparse.Namespace) -> None:
    panel = step.hourly_panel()
    rows = []
    for segment in (1, 24):
        for batch_size in BATCHES if options.device == "cuda" else BATCHES[:1]:
            for bf16 in (False, True) if options.device == "cuda" else (False,):
                cost = step.costs(panel, segment, device=options.device, batch_size=batch_size, bf16=bf16)
                rows.append(
                    (
                        f"{segment}, {batch_size:,}, {'bfloat16' if bf16 else 'float32'}",
                        f"{cost['step']:.1f}",
                        f"{cost['bare']:.1f}",
                        f"{cost['step'] / cost['bare']:.2f}",
                        f"{cost['gather'] / cost['step']:.1%}",
                        f"{batch_size / cost['step'] * 1000:,.0f}",
                    )
                )
    show_table(("segment, windows, precision", "step, ms", "bare LSTM, ms", "ratio", "gather", "windows/s"), rows)


def _score(options: argparse.Namespace) -> None:
    runtime = "cuda" if options.device == "cuda" else "torch"
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, write_model, series, steps, context, horizon in (
            ("LSTM of 32", small_model, 1_000_000, 64, CONTEXT, HORIZON),
            ("LSTM of 2 x 128, an hour a step", large_model, 100_000, 200, LONG_CONTEXT, LONG_HORIZON),
        ):
            series, path = round(series * options.scale), f"{folder}/{context}"
            write_model(folder=f"{path}-model", context=context, horizon=horizon)
            write(f"{path}-table", series, steps, files=max(1, series // 100_000))
            prepare_panel(path=f"{path}-table", folder=f"{path}-panel", horizon=horizon, **HOURLY)
            start = time.perf_counter()
            score_panel(f"{path}-model", f"{path}-panel", f"{path}-out", runtime=runtime)
            rate = series / (time.perf_counter() - start)
            rows.append((name, f"{series:,}", f"{rate:,.0f}", f"{_forward_rate(f'{path}-model', options.device):,.0f}"))
    show_table(("", "series", "series/s, panel to Parquet", "series/s of the network alone"), rows)


@torch.inference_mode()
def _forward_rate(model: str, device: str) -> float:
    """Return the windows per second of a network on batches that lie on the device."""
    network = load(Path(model)).on(device).network
    batch = example_windows(network, FORWARD_BATCH).map(lambda values: values.to(device))
    origin = torch.zeros(1, dtype=torch.long, device=device)
    network(batch, origin)
    start = step.clock(device)
    for _ in range(FORWARDS):
        network(batch, origin)
    return FORWARD_BATCH * FORWARDS / (step.clock(device) - start)


def _finetune(options: argparse.Namespace) -> None:
    series = max(10, round(1_000 * options.scale))
    finetune.main("time", "--series", str(series), "--kinds", "full", "--hidden", "32", "--device", options.device)


def _accuracy(options: argparse.Namespace) -> None:
    accelerator = "gpu" if options.device == "cuda" else "cpu"
    settings = (f"fit.accelerator={accelerator}", f"fit.max_minutes={options.minutes}")
    for task in ("m4_hourly", "m5"):
        accuracy.run(task, ("lstm",), settings, (0,), ensemble=False)


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "parity": _parity,
    "step": _step,
    "score": _score,
    "finetune": _finetune,
    "accuracy": _accuracy,
}

if __name__ == "__main__":
    main(*sys.argv[1:])
