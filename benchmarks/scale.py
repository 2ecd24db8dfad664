"""More than one process or machine: the same bytes, overhead, very many series, fine-tuned too, and what failures cost.

`python -m benchmarks scale` runs all parts, `python -m benchmarks.scale overhead failures` those named. Every
measurement is a process of its own. GATECAST_BENCH_SCALE=0.01 makes the panels smaller.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.data import HOURLY, SCALE, show_table
from benchmarks.meter import ROOT, Figures, run

STEPS, CONTEXT, HORIZON = 64, 48, 12
SIZES = [round(number * SCALE) for number in (10_000, 100_000, 1_000_000)]
EQUAL_SERIES, FAILURE_SERIES = round(10_000 * SCALE), round(50_000 * SCALE)
SMALL_SHARDS = 500
MANY_SERIES, MANY_STEPS, MANY_CONTEXT, MANY_HORIZON, MANY_SHARES = round(10_000_000 * SCALE), 12, 8, 4, 100
SHARES = 16
TUNED_SERIES, TUNED_SHARES = round(1_000_000 * SCALE), max(2, round(16 * SCALE))
NIGHT_SERIES = min(10_000, TUNED_SERIES)
LOCAL: dict[str, Any] = {}

task = partial(run, module="benchmarks.scale_tasks")


def main(*names: str) -> None:
    """Print the tables of the parts named, all of them by default."""
    for name in names or PARTS:
        PARTS[name]()
        print(f"load average {os.getloadavg()[0]:.1f} on {len(os.sched_getaffinity(0))} cores\n")


@contextmanager
def _panel(series: int) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield a folder, and the model and the prepared panel in it."""
    with tempfile.TemporaryDirectory() as folder:
        run("small_model", folder=f"{folder}/model", context=CONTEXT, horizon=HORIZON)
        run("write", folder=f"{folder}/table", series=series, steps=STEPS, files=max(1, series // 100_000))
        run("prepare_panel", path=f"{folder}/table", folder=f"{folder}/panel", horizon=HORIZON, **HOURLY)
        yield folder, {"model": f"{folder}/model", "panel": f"{folder}/panel"}


def equal() -> None:
    """Bytes and rows of every engine."""
    engines = {"local": LOCAL, "processes": {"kind": "processes"}}
    if find_spec("ray"):
        engines["ray"] = {"kind": "ray"}
    with _panel(EQUAL_SERIES) as (folder, given):
        given = {**given, "shard_size": SMALL_SHARDS}
        digests = {}
        for name, engine in engines.items():
            task("score", **given, folder=f"{folder}/{name}", engine=engine)
            digests[name] = task("digest", folder=f"{folder}/{name}")["digest"]
        for index in range(SHARES):
            task("score", **given, folder=f"{folder}/shares", share=(index, SHARES))
        task("score", **given, folder=f"{folder}/shares", commit=True)
        digests[f"{SHARES} shares and a commit"] = task("digest", folder=f"{folder}/shares")["digest"]
        tables = {}
        for sink in ("delta", "sql"):
            for name in ("local", "processes"):
                out = f"{folder}/{sink}-{name}"
                output = {"sink": sink, **({"uri": f"sqlite:///{out}.db"} if sink == "sql" else {})}
                task("score", **given, folder=out, engine=engines[name], output=output)
                tables[sink, name] = task("rows", folder=out, **output)
    print(f"{EQUAL_SERIES:,} series in shards of {SMALL_SHARDS}: SHA-256 of all files, Parquet")
    show_table(("", "digest"), ((name, value[:16]) for name, value in digests.items()))
    for sink in ("delta", "sql"):
        same = tables[sink, "local"] == tables[sink, "processes"]
        print(f"{sink}: {tables[sink, 'local']['rows']:,} rows, of processes and local {'equal' if same else 'DIFFER'}")
    assert len(set(digests.values())) == 1, digests


def overhead() -> None:
    """Wall time of processes beside the time of their tasks, and beside one process."""
    found: list[tuple[int, str, int, Figures]] = []
    for series in SIZES:
        with _panel(series) as (folder, given):
            for name, workers in (("local", 0), ("processes", 1), ("processes", 2)):
                engine = {"kind": "processes", "workers": workers} if workers else LOCAL
                cost = task("score", **given, folder=f"{folder}/{name}-{workers}", engine=engine)
                found.append((series, name, workers, cost))
    print(f"Prepared panels of {STEPS} hours a series, context {CONTEXT}, horizon {HORIZON}, to Parquet")
    show_table(
        (
            *("series", "engine", "wall s", "CPU s", "wall s of the engine", "sum of tasks, s"),
            *("engine x workers / tasks", "the rest of the job, s", "RSS of a worker, MB", "of it not files, MB"),
        ),
        (
            (
                f"{series:,}",
                f"{name} {workers or ''}".strip(),
                f"{cost['wall']:.1f}",
                f"{cost['cpu']:.1f}",
                *(
                    (
                        f"{cost['engine']:.1f}",
                        f"{cost['tasks']:.1f}",
                        f"{cost['engine'] * workers / cost['tasks']:.2f}",
                        f"{cost['wall'] - cost['engine']:.1f}",
                        f"{cost['workers']['rss']:.0f}",
                        f"{cost['workers']['anon']:.0f}",
                    )
                    if workers
                    else ("", "", "", "", f"{cost['rss']:.0f}", "")
                ),
            )
            for series, name, workers, cost in found
        ),
    )
    for series in SIZES:
        wall = {(name, workers): cost["wall"] for size, name, workers, cost in found if size == series}
        print(
            f"{series:,} series: one process / two {wall['processes', 1] / wall['processes', 2]:.2f}, local / two "
            f"{wall['local', 0] / wall['processes', 2]:.2f}"
        )


def many() -> None:
    """A store of 10 million series: planned, and one of 100 shares for real."""
    with tempfile.TemporaryDirectory() as folder:
        given = {"model": f"{folder}/model", "panel": f"{folder}/panel", "folder": f"{folder}/out"}
        run("small_model", folder=given["model"], context=MANY_CONTEXT, horizon=MANY_HORIZON)
        task("write_many", folder=f"{folder}/table", series=MANY_SERIES, steps=MANY_STEPS, per_file=500_000)
        store = run(
            "prepare_panel",
            path=f"{folder}/table",
            folder=given["panel"],
            horizon=MANY_HORIZON,
            calendar=False,
            **HOURLY,
        )
        cost = task("score", **given, share=(MANY_SHARES // 2, MANY_SHARES))
        size = sum(path.stat().st_size for path in Path(folder, "panel").rglob("*") if path.is_file()) / 1e9
        parts = sum(path.stat().st_size for path in Path(folder, "out").rglob("part-*")) / 1e9
    print(
        f"{MANY_SERIES:,} series of {MANY_STEPS} hours, horizon {MANY_HORIZON}: prepared in {store['wall']:.0f} s "
        f"(peak RSS {store['rss'] / 1000:.1f} GB), {size:.2f} GB\n"
        f"one of {MANY_SHARES} shares, {cost['series']:,} series in {cost['parts']} parts: {cost['wall']:.1f} s of "
        f"work, peak RSS {cost['rss'] / 1000:.2f} GB, {parts:.3f} GB; all: {cost['wall'] * MANY_SHARES / 3600:.2f} "
        f"hours of one core, {parts * MANY_SHARES:.1f} GB"
    )


def finetune() -> None:
    """Fine-tuning of a million series in shares, one after the other, and forecasts with the bank."""
    passes: list[list[Figures]] = []
    with _panel(TUNED_SERIES) as (folder, given):
        for _ in range(2):
            shares = [(index, TUNED_SHARES) for index in range(TUNED_SHARES)]
            passes.append([task("finetune", **given, folder=folder, share=share) for share in shares])
            disk = sum(path.stat().st_size for path in Path(folder, "groups").iterdir()) / 1e9
        commit = task("finetune", **given, folder=folder)
        opened = task("load_model", model=f"{folder}/model-tuned")
        with _panel(NIGHT_SERIES) as (_, night):
            scores = {
                name: task("score", model=model, panel=night["panel"], folder=f"{folder}/{name}")
                for name, model in (("base", given["model"]), ("fine-tuned", f"{folder}/model-tuned"))
            }
    cpu, series = sum(cost["cpu"] for each in passes for cost in each), sum(cost["series"] for cost in passes[0])
    print(f"{series:,} series of {STEPS} hours in {TUNED_SHARES} shares, kind head: {commit['tuned']:,} tuned")
    show_table(
        ("", "wall s", "CPU s", "peak RSS of a process, MB"),
        [
            *(
                (f"{name}, {TUNED_SHARES} shares", *_sums(costs))
                for name, costs in zip(("trials", "fits"), passes, strict=True)
            ),
            ("commit, model saved", *_sums([commit])),
            ("model loaded", *_sums([opened])),
            *((f"{NIGHT_SERIES:,} series scored, {name}", *_sums([cost])) for name, cost in scores.items()),
        ],
    )
    print(
        f"{series / cpu:.0f} series a CPU second of the shares; groups on disk {disk:.2f} GB, "
        f"the model {commit['size']:.0f} MB"
    )


def _sums(costs: list[Figures]) -> tuple[str, str, str]:
    """Return wall and CPU seconds of all processes, and the largest memory of one."""
    wall, cpu = (sum(cost[name] for cost in costs) for name in ("wall", "cpu"))
    return f"{wall:.1f}", f"{cpu:.1f}", f"{max(cost['rss'] for cost in costs):.0f}"


def failures() -> None:
    """What a lost worker, node, head and job cost."""
    found: dict[str, Figures] = {}
    with _panel(FAILURE_SERIES) as (folder, given):
        given = {**given, "shard_size": SMALL_SHARDS * 2}
        two = {"kind": "processes", "workers": 2}
        names = {"processes": {}, "processes, a worker killed": {"kill": "worker"}}
        for name, kill in names.items():
            found[name] = task("score", **given, folder=f"{folder}/{name}", engine=two, **kill)
        name = "processes, the job killed and run again"
        with suppress(RuntimeError):
            task("score", **given, folder=f"{folder}/{name}", engine=two, kill="job")
        found[name] = task("score", **given, folder=f"{folder}/{name}", engine=two)
        if find_spec("ray"):
            for name, lost in (
                ("Ray", ""),
                ("Ray, a node killed", "node"),
                ("Ray, the head killed, run again", "head"),
            ):
                found[name] = _on_ray(given, f"{folder}/{name}", lost)
        digests = {name: task("digest", folder=f"{folder}/{name}")["digest"] for name in found}
    print(f"{FAILURE_SERIES:,} series in shards of {SMALL_SHARDS * 2}; Ray: a head without CPUs and two nodes of one")
    show_table(
        ("", "wall s", "sum of tasks, s", "rejects", "bytes"),
        (
            (
                name,
                f"{cost['wall']:.1f}",
                f"{cost['tasks']:.1f}",
                cost["rejects"] or "none",
                "equal" if digests[name] == digests["processes"] else "DIFFER",
            )
            for name, cost in found.items()
        ),
    )
    assert len(set(digests.values())) == 1, digests


def _on_ray(given: dict[str, Any], folder: str, lost: str) -> Figures:
    """Score on a cluster of processes started as on three machines; `lost` is killed once a part is written."""
    with _cluster() as (address, gcs, raylet):
        engine = {"kind": "ray", "address": address}
        if lost != "head":
            return task("score", **given, folder=folder, engine=engine, kill=str(raylet) if lost else "")
        start = time.monotonic()
        try:
            task("score", **given, folder=folder, engine=engine, kill=str(gcs))
        except RuntimeError as error:
            print(f"the head was killed: the job ended after {time.monotonic() - start:.0f} s: {error}")
    with _cluster() as (address, _, _):
        return task("score", **given, folder=folder, engine={"kind": "ray", "address": address})


@contextmanager
def _cluster() -> Iterator[tuple[str, int, int]]:
    """Start a head without CPUs and two nodes with one; yield the address, and the processes of the head and a node."""
    from ray.cluster_utils import Cluster

    roots = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    os.environ.update(PYTHONPATH=roots, RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        cluster.wait_for_nodes()
        gcs = cluster.head_node.all_processes["gcs_server"][0].process.pid
        yield cluster.address, gcs, nodes[-1].all_processes["raylet"][0].process.pid
    finally:
        cluster.shutdown()


PARTS: dict[str, Callable[[], None]] = {part.__name__: part for part in (equal, overhead, many, finetune, failures)}


if __name__ == "__main__":
    main(*sys.argv[1:])
