"""Scoring: how fast and in how much memory panels of any size are forecast, and what a kill costs.

`python -m benchmarks score` runs all parts, `python -m benchmarks.score scale kills` those named. Every measurement is
a process of its own. GATECAST_BENCH_SCALE=0.01 makes the panels smaller.
"""

import sys
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.data import HOURLY, SCALE, show_table
from benchmarks.meter import Figures, least, run

SIZES = [round(number * SCALE) for number in (10_000, 100_000, 1_000_000)]
STEPS, CONTEXT, HORIZON = 64, 48, 12
KILL_SERIES, KILLS = round(50_000 * SCALE), 20
# Of the parts that are compared with the network alone.
LONG_SERIES, LONG_STEPS, LONG_CONTEXT, LONG_HORIZON, ROUNDS = round(10_000 * SCALE), 1_000, 168, 48, 3


def main(*names: str) -> None:
    """Print the tables of the parts named, all of them by default."""
    for name in names or PARTS:
        PARTS[name]()
        print()


def scale() -> None:
    """Panels of 10,000 to 1,000,000 series, prepared, to Parquet."""
    with tempfile.TemporaryDirectory() as folder:
        run("small_model", folder=f"{folder}/model", context=CONTEXT, horizon=HORIZON)
        found = {}
        for series in SIZES:
            table, prepared = f"{folder}/table-{series}", f"{folder}/panel-{series}"
            run("write", folder=table, series=series, steps=STEPS, files=max(1, series // 100_000))
            run("prepare_panel", path=table, folder=prepared, horizon=HORIZON, **HOURLY)
            found[series] = run("score", model=f"{folder}/model", panel=prepared, folder=f"{folder}/out-{series}")
    print(f"Prepared panels of {STEPS} hours a series, context {CONTEXT}, horizon {HORIZON}, to Parquet")
    show_table(
        ("series", "wall s", "CPU s", "series / s", "peak RSS, MB", "of it not file pages, MB", "rows written"),
        (
            (
                f"{series:,}",
                f"{cost['wall']:.1f}",
                f"{cost['cpu']:.1f}",
                f"{series / cost['wall']:,.0f}",
                f"{cost['rss']:.0f}",
                f"{cost['anon']:.0f}",
                f"{cost['rows']:,}",
            )
            for series, cost in found.items()
        ),
    )
    peaks = [cost["rss"] for cost in found.values()]
    print(f"peak RSS, largest / smallest panel: {peaks[-1] / peaks[0] - 1:+.1%} (aim: within 10 %)")


def forward() -> None:
    """A Parquet file to Parquet files beside the bare forward of the network on the same shapes."""
    with tempfile.TemporaryDirectory() as folder:
        model, file = f"{folder}/model", "part-000.parquet"
        run("large_model", folder=model, context=LONG_CONTEXT, horizon=LONG_HORIZON)
        for name, series in (("table", LONG_SERIES), ("warm", 10)):
            run("write", folder=f"{folder}/{name}", series=series, steps=LONG_STEPS)
            Path(folder, name, file).rename(f"{folder}/{name}.parquet")
        given = {"model": model, "path": f"{folder}/table.parquet", "warm": f"{folder}/warm.parquet"}
        contenders: dict[str, Callable[[], Figures]] = {
            "the network alone, torch": partial(run, "network_forward", model=model, series=LONG_SERIES),
            "Parquet to Parquet, torch": partial(_scored, folder, runtime="torch", **given),
        }
        if find_spec("onnxruntime"):
            contenders["Parquet to Parquet, ONNX Runtime"] = partial(_scored, folder, runtime="onnx", **given)
        found = least(contenders, ROUNDS)
    bare = found["the network alone, torch"]
    print(
        f"{LONG_SERIES:,} series of {LONG_STEPS:,} hours, context {LONG_CONTEXT}, horizon {LONG_HORIZON}, LSTM of 2 x "
        f"128; the encoder's kernel alone takes {bare['encoder']:.1f} s of CPU"
    )
    show_table(
        ("", "CPU s", "/ network alone", "wall s"),
        (
            (name, f"{cost['cpu']:.1f}", f"{cost['cpu'] / bare['cpu']:.3f}", f"{cost['wall']:.1f}")
            for name, cost in found.items()
        ),
    )


def _scored(folder: str, **given: Any) -> Figures:
    with tempfile.TemporaryDirectory(dir=folder) as out:
        return run("score_table", folder=out, **given)


def kills() -> None:
    """SIGKILL at random moments of a job, and the job again."""
    with tempfile.TemporaryDirectory() as folder:
        run("small_model", folder=f"{folder}/model", context=CONTEXT, horizon=HORIZON)
        run("write", folder=f"{folder}/table", series=KILL_SERIES, steps=STEPS)
        run("prepare_panel", path=f"{folder}/table", folder=f"{folder}/panel", horizon=HORIZON, **HOURLY)
        found = run("kills", model=f"{folder}/model", panel=f"{folder}/panel", folder=f"{folder}/out", kills=KILLS)
    moments, kept = found["moments"], found["kept"]
    print(
        f"{KILLS} kills of a job on {KILL_SERIES:,} series, {min(moments):.2f} to {max(moments):.2f} s after its start "
        f"({found['undisturbed']:.2f} s undisturbed), when {min(kept)} to {max(kept)} of {found['shards']} shards were "
        f"there: after the next run {found['equal']} outputs are the same in every byte"
    )


PARTS: dict[str, Callable[[], None]] = {"scale": scale, "kills": kills, "forward": forward}


if __name__ == "__main__":
    main(*sys.argv[1:])
