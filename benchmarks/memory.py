"""Time and peak memory of each verb on a panel of very many series: whole processes of `forecast`, one after the other.

`python -m benchmarks memory [--series 1000000] [--verbs prepare,train,...]`. Each series has 64 hours; the model is an
LSTM of 32 units with context 24 and horizon 6. Fine-tuning is that of `benchmarks.scale`.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.data import show_table
from benchmarks.meter import ROOT, run

STEPS = 64
NAME, PANEL = "registry.name=many", "data.path=panel"
VERSION = "registry.alias=1"
VERBS: dict[str, list[str]] = {
    "data prepare": ["data", "prepare", "data.path=table", "data.freq=1h", "window.horizon=6", "output.path=panel"],
    "data profile": ["data", "profile", PANEL, "data.freq=1h", "output.path=profile"],
    "train": [
        *("train", NAME, PANEL, "data.freq=1h", "window.horizon=6", "window.context_length=24"),
        *("model.hidden_size=32", "model.init=none", "fit.max_steps=50", "fit.holdout_windows=4", "fit.final=false"),
    ],
    "backtest": ["backtest", NAME, VERSION, PANEL, "output.path=backtest"],
    "calibrate": ["calibrate", NAME, VERSION, PANEL],
    "score": ["score", NAME, VERSION, PANEL, "output.path=scores", "score.cutoff=2024-01-03T08:00:00"],
    "monitor": ["monitor", NAME, VERSION, PANEL, "scores.path=scores", "output.path=monitor"],
}


def main(*argv: str) -> None:
    """Print a line for each verb."""
    parser = argparse.ArgumentParser("python -m benchmarks memory", description=__doc__)
    parser.add_argument("--series", type=int, default=1_000_000)
    parser.add_argument("--verbs", help=f"separated by commas: {', '.join(VERBS)}; all by default")
    options = parser.parse_args(argv)
    verbs = options.verbs.split(",") if options.verbs else list(VERBS)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        # In a process of its own: the peak of a child begins with that of its parent.
        table = {"folder": f"{folder}/table", "series": options.series, "steps": STEPS, "per_file": 250_000}
        run("write_many", module="benchmarks.scale_tasks", **table)
        for verb in verbs:
            rows.append((verb, *_cost(VERBS[verb], Path(folder))))
            print(*rows[-1], flush=True)
    print(f"\n{options.series:,} series of {STEPS} hours")
    show_table(("", "exit", "wall s", "CPU s", "peak RSS, GB"), rows)


def _cost(arguments: list[str], folder: Path) -> tuple[str, ...]:
    """Return exit code, seconds and peak memory of a verb."""
    start = time.perf_counter()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    command = [sys.executable, "-c", "import sys; from pipelines.cli import main; sys.exit(main())", *arguments]
    with (folder / "log").open("a+", errors="replace") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
        log.seek(max(0, log.tell() - 500))
        tail = log.read()
    code = os.waitstatus_to_exitcode(status)
    if code:
        print(tail, file=sys.stderr)
    cpu = usage.ru_utime + usage.ru_stime
    return str(code), f"{time.perf_counter() - start:.1f}", f"{cpu:.1f}", f"{usage.ru_maxrss / 1e6:.2f}"


if __name__ == "__main__":
    main(*sys.argv[1:])
