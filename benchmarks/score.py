"""Scoring: how fast and in how much memory panels of any size are forecast, and what a kill costs.

`python -m benchmarks score` runs all parts, `python -m benchmarks.score scale kills state` those named. Every
measurement is a process of its own. GATECAST_BENCH_SCALE=0.01 makes the panels smaller.
"""

import shutil
import sys
import tempfile
import uuid
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks import ratios
from benchmarks.data import HOURLY, SCALE, environment, show_table
from benchmarks.meter import Figures, least, run

SIZES = [round(number * SCALE) for number in (10_000, 100_000, 1_000_000)]
STEPS, CONTEXT, HORIZON = 64, 48, 12
KILL_SERIES, KILLS = round(50_000 * SCALE), 20
STATE_SERIES, STATE_STEPS, NEW_STEPS = round(10_000 * SCALE), 1_200, 24
CONTEXTS, STATE_HORIZON = (168, 1_000), 48
PRETRAINED_STEPS = 600
# Of the parts that are compared with the network alone, and with other libraries.
LONG_SERIES, LONG_STEPS, LONG_CONTEXT, LONG_HORIZON, ROUNDS = round(10_000 * SCALE), 1_000, 168, 48, 3
# Series of those that sample paths, and of the small table that goes first.
PATH_SERIES, WARM_SERIES = round(500 * SCALE), 20


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
    for name, cost in found.items():
        if cost is not bare:
            ratios.keep(f"score: {name} / network alone", cost["cpu"] / bare["cpu"])
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


def peers() -> None:
    """`predict` of other libraries from a frame to a frame, with networks of the same size."""
    with tempfile.TemporaryDirectory() as folder:
        tables = {series: f"{folder}/{series}.parquet" for series in (WARM_SERIES, PATH_SERIES, LONG_SERIES)}
        for series, table in tables.items():
            run("write", folder=f"{folder}/{series}", series=series, steps=LONG_STEPS)
            Path(folder, str(series), "part-000.parquet").rename(table)
        shape = {"context": LONG_CONTEXT, "horizon": LONG_HORIZON}
        warm = {"warm": tables[WARM_SERIES]}
        found = {}
        for label, segment in ((ours := "Gatecast", 1), ("Gatecast, a day at a time (its default for hours)", 24)):
            run("large_model", folder=f"{folder}/model-{segment}", segment=segment, **shape)
            cost = run("forecast_frame", path=tables[LONG_SERIES], model=f"{folder}/model-{segment}", **warm)
            found[label] = LONG_SERIES, cost
        for label, library, series, given in (
            ("neuralforecast LSTM", "neuralforecast", LONG_SERIES, {}),
            ("the same, 32 series at a time (its default)", "neuralforecast", LONG_SERIES, {"batch": 32}),
            ("darts BlockRNN, LSTM", "darts", LONG_SERIES, {}),
            ("gluonts DeepAR, 1 path", "gluonts", PATH_SERIES, {"paths": 1}),
            ("gluonts DeepAR, 100 paths (its default)", "gluonts", PATH_SERIES, {"paths": 100}),
        ):
            if python := environment(library):
                cost = run(
                    library,
                    module="benchmarks.peers.score",
                    python=python,
                    path=tables[series],
                    **warm,
                    **shape,
                    **given,
                )
                found[label] = series, cost
    own = found[ours][1]["cpu"] / LONG_SERIES
    print(f"Series of {LONG_STEPS:,} hours, context {LONG_CONTEXT}, horizon {LONG_HORIZON}, 2 x 128, frame to frame")
    show_table(
        ("", "series", "CPU ms a series", "/ ours", "wall ms a series"),
        (
            (
                name,
                f"{series:,}",
                f"{cost['cpu'] / series * 1000:.2f}",
                f"{cost['cpu'] / series / own:.2f}",
                f"{cost['wall'] / series * 1000:.2f}",
            )
            for name, (series, cost) in found.items()
        ),
    )
    assert all(cost["rows"] == series * LONG_HORIZON for series, cost in found.values()), found


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


def state() -> None:
    """A night of 24 new hours, with the state of the night before and without."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        table, panel = f"{folder}/table", f"{folder}/panel"
        run("write", folder=table, series=STATE_SERIES, steps=STATE_STEPS)
        run("prepare_panel", path=table, folder=panel, horizon=STATE_HORIZON, **HOURLY)
        for context in CONTEXTS:
            given = {"model": f"{folder}/model-{context}", "panel": panel}
            run("large_model", folder=given["model"], context=context, horizon=STATE_HORIZON)
            first = run("score", **given, folder=f"{folder}/first", state=f"{folder}/kept", before=NEW_STEPS)

            def night(name: str, context: int = context, given: dict[str, str] = given) -> Figures:
                own = f"{folder}/{name}-{context}-{uuid.uuid4()}"
                if name == "carried":
                    shutil.copytree(f"{folder}/kept", f"{own}-state")
                    return run("score", **given, folder=own, state=f"{own}-state")
                return run("score", **given, folder=own)

            found = least({name: partial(night, name) for name in ("recomputed", "carried")}, ROUNDS)
            assert found["carried"]["state"] == {"carried": STATE_SERIES, "new": 0, "recomputed": 0}, found
            rows.append((context, first, found["recomputed"], found["carried"]))
            ratio = found["carried"]["cpu"] / found["recomputed"]["cpu"]
            ratios.keep(f"score: a night with its state / without, context {context}", ratio)
            shutil.rmtree(f"{folder}/first")
    print(
        f"{NEW_STEPS} new hours of {STATE_SERIES:,} series of {STATE_STEPS:,}, two layers of 128 that take in an hour "
        f"at a time, horizon {STATE_HORIZON}, prepared panel to Parquet; the cheapest of {ROUNDS}"
    )
    show_table(
        ("context", "first night, CPU s", "recomputed, CPU s", "carried, CPU s", "ratio", "wall s", "wall s", "ratio"),
        (
            (
                f"{context:,}",
                *(f"{cost['cpu']:.1f}" for cost in (first, recomputed, carried)),
                f"{recomputed['cpu'] / carried['cpu']:.1f}",
                *(f"{cost['wall']:.1f}" for cost in (recomputed, carried)),
                f"{recomputed['wall'] / carried['wall']:.1f}",
            )
            for context, first, recomputed, carried in rows
        ),
    )
    (short, *_, one), (long, *_, other) = rows
    print(f"carried, context {long:,} / {short:,}: {other['cpu'] / one['cpu']:.2f} times the CPU time")


def pretrained() -> None:
    """A small model alone, and with the share of the pretrained network that validation gives it."""
    contenders: dict[str, Callable[[], Figures]] = {}
    with tempfile.TemporaryDirectory() as folder:
        models = {"LSTM of 32": None, "with a share of gatecast-nano": "gatecast-nano-1"}
        for init in models.values():
            run("small_model", folder=f"{folder}/{init}", context=CONTEXT, horizon=HORIZON, init=init)
        for steps, series in ((STEPS, SIZES[0]), (PRETRAINED_STEPS, SIZES[0] // 5)):
            table, panel = f"{folder}/table-{steps}", f"{folder}/panel-{steps}"
            run("write", folder=table, series=series, steps=steps)
            run("prepare_panel", path=table, folder=panel, horizon=HORIZON, **HOURLY)
            for label, init in models.items():
                contenders[f"{series:,} series of {steps}, {label}"] = partial(
                    lambda **given: run("score", **given, folder=f"{folder}/{uuid.uuid4()}"),
                    model=f"{folder}/{init}",
                    panel=panel,
                )
        found = least(contenders, ROUNDS)
    print(f"Prepared panels of hours, context {CONTEXT}, horizon {HORIZON}, to Parquet; the cheapest of {ROUNDS}")
    show_table(("", "CPU s", "wall s"), ((name, f"{c['cpu']:.2f}", f"{c['wall']:.2f}") for name, c in found.items()))


PARTS: dict[str, Callable[[], None]] = {
    "scale": scale,
    "kills": kills,
    "forward": forward,
    "peers": peers,
    "state": state,
    "pretrained": pretrained,
}


if __name__ == "__main__":
    main(*sys.argv[1:])
