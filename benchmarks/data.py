"""Panels: from a table to batches, beside other libraries, and panels larger than memory.

`python -m benchmarks data` runs all parts, `python -m benchmarks.data table batches` those named. Every measurement is
a process of its own; those that are compared take turns, and of each the cheapest run
counts. GATECAST_BENCH_SCALE=0.01 makes all panels but M5 smaller. The other libraries are installed into `.venv-peers`
at the first run, from `peers/NAME.txt`; those that can't be are left out.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from benchmarks import ratios
from benchmarks.meter import ROOT, Figures, least, run

SCALE = float(os.environ.get("GATECAST_BENCH_SCALE", "1"))
SERIES, STEPS = round(10_000 * SCALE), 1_000
LARGE_SERIES, LARGE_FILES = round(100_000 * SCALE), 20
HORIZON, ROUNDS, BATCHES = 24, 3, 500
HOURLY: dict[str, Any] = {"freq": "1h"}


def main(*names: str) -> None:
    """Print the tables of the parts named, all of them by default."""
    print(f"{len(os.sched_getaffinity(0))} cores, shared; MB are 10^6 bytes\n")
    for name in names or PARTS:
        PARTS[name]()
        print()


def table() -> None:
    """From Parquet to a panel."""
    with tempfile.TemporaryDirectory() as folder:
        file = "part-000.parquet"
        rows = run("write", folder=f"{folder}/tidy", series=SERIES, steps=STEPS)["rows"]
        run("write", folder=f"{folder}/gaps", series=SERIES, steps=STEPS, kind="gaps")
        run("write", folder=f"{folder}/messy", series=SERIES, steps=STEPS, kind="messy")
        run("write", folder=f"{folder}/small", series=10, steps=STEPS)
        tidy, gaps, messy = (
            {"path": f"{folder}/{kind}/{file}", "warm": f"{folder}/small/{file}"} for kind in ("tidy", "gaps", "messy")
        )
        ours = {
            "reading the columns": partial(run, "read", **tidy),
            "gatecast": partial(run, "panel", horizon=HORIZON, **tidy, **HOURLY),
            "reading the columns, gaps": partial(run, "read", **gaps),
            "gatecast, gaps": partial(run, "panel", horizon=HORIZON, **gaps, **HOURLY),
            "reading the columns, messy": partial(run, "read", **messy),
            "gatecast, messy": partial(run, "panel", horizon=HORIZON, **messy, **HOURLY),
        }
        peers = _peers(
            {
                "neuralforecast, Polars": ("neuralforecast_load", {**tidy, "frame": "polars"}),
                "neuralforecast, pandas": ("neuralforecast_load", {**tidy, "frame": "pandas"}),
                "gluonts": ("gluonts_load", tidy),
                "darts": ("darts_load", tidy),
                "neuralforecast + fill_gaps, messy": ("neuralforecast_gaps", messy),
            }
        )
        found = least({**ours, **peers}, ROUNDS)

    def beside_ours(name: str, cost: Figures) -> tuple[str, ...]:
        same = found[f"gatecast{_kind_of(name)}"]
        return f"{cost['cpu'] / same['cpu']:.2f}", f"{_grown(cost):.0f}", f"{_grown(cost) / _grown(same):.2f}"

    print(f"Table to panel: {rows:,} rows, {SERIES:,} series x {STEPS:,} hours, one Parquet file in the page cache")
    show_table(
        ("", "wall s", "CPU s", "/ ours", "peak RSS for data, MB", "/ ours"),
        ((name, f"{cost['wall']:.2f}", f"{cost['cpu']:.2f}", *beside_ours(name, cost)) for name, cost in found.items()),
    )
    for kind, cpu_of_peer, cpu_of_reading in (("", 5, 3), (", gaps", 5, 6), (", messy", 5, 6)):
        cost, read = found[f"gatecast{kind}"], found[f"reading the columns{kind}"]
        rivals = [found[name]["cpu"] for name in peers if _kind_of(name) == kind]
        best = f"cheapest peer / ours {min(rivals) / cost['cpu']:.1f} (aim {cpu_of_peer}); " if rivals else ""
        ratios.keep(f"data: table to panel / reading it{kind}", cost["cpu"] / read["cpu"])
        buffers, frame = cost["megabytes"], read["megabytes"]
        print(
            f"gatecast{kind}: {best}CPU / reading {cost['cpu'] / read['cpu']:.2f} (aim {cpu_of_reading}); peak / "
            f"(buffers {buffers:.0f} MB + frame {frame:.0f} MB) {_grown(cost) / (buffers + frame):.2f} (aim 2)"
        )
        print(_account(cost))


def _kind_of(name: str) -> str:
    """Return the end of a row's name that says which table it is of."""
    return next((kind for kind in (", gaps", ", messy") if name.endswith(kind)), "")


def batches() -> None:
    """From a panel to batches, and their share of a training step."""
    with tempfile.TemporaryDirectory() as folder:
        path, small = f"{folder}/panel", f"{folder}/small"
        run("write", folder=path, series=SERIES, steps=STEPS)
        # The cost of a window does not depend on the number of series, and others take minutes to get there.
        fewer = max(SERIES // 10, 64)
        run("write", folder=small, series=fewer, steps=STEPS)
        ours = {
            "gatecast": partial(run, "gather", path=path, batches=10 * BATCHES),
            "DataLoader, 0 workers": partial(run, "loader", path=path, batches=BATCHES, workers=0),
            "DataLoader, 2 workers": partial(run, "loader", path=path, batches=BATCHES, workers=2),
        }
        given = {"path": f"{small}/part-000.parquet", "batches": BATCHES}
        peers = _peers({name: (f"{name}_batches", given) for name in ("neuralforecast", "gluonts", "darts")})
        found = least({**ours, **peers}, ROUNDS)
        shares = run("training_step", path=small)
    least_each = _each(found["gatecast"])
    print(f"Batches of 64 random windows of 168 + 24 steps; others than the first three on {fewer:,} series")
    show_table(
        ("", "windows / s", "CPU us / window", "CPU / ours"),
        (
            (
                name,
                f"{cost['windows'] / cost['wall']:,.0f}",
                f"{_each(cost):.1f}",
                f"{_each(cost) / least_each:.1f}",
            )
            for name, cost in found.items()
        ),
    )
    for segment, spent in shares.items():
        print(
            f"training step, 2 x 128 LSTM, segment {segment}: {spent['step']:.0f} ms CPU, gather "
            f"{spent['gather'] / spent['step']:.1%} of it (aim: 1 % at segment 1)"
        )


def windows() -> None:
    """Memory against the number of windows."""
    with tempfile.TemporaryDirectory() as folder:
        path, prepared = f"{folder}/table", f"{folder}/prepared"
        run("write", folder=path, series=SERIES, steps=STEPS)
        run("prepare_panel", horizon=HORIZON, folder=prepared, path=path, **HOURLY)
        found = {stride: run("windows", path=prepared, stride=stride, batches=BATCHES) for stride in (100, 1)}
    print("Memory against the number of windows: training batches, and all held-out windows of the last 240 steps")
    show_table(
        ("stride", "held-out windows", "peak RSS, MB", "not of files, MB", "more than before, MB"),
        (
            (
                f"{stride}",
                f"{cost['windows']:,}",
                f"{cost['rss']:.0f}",
                f"{cost['anon']:.0f}",
                f"{cost['anon'] - cost['anon_before']:.0f}",
            )
            for stride, cost in found.items()
        ),
    )
    print(f"peak RSS at stride 1 / at stride 100: {found[1]['rss'] / found[100]['rss'] - 1:+.1%} (aim: within 5 %)")


def m5() -> None:
    """M5: covariates of the table, categories, and a static table."""
    folder = Path(os.environ.get("GATECAST_BENCH_DATA", ROOT.parent / "shared" / "data")) / "m5"
    if not folder.is_dir():
        print("M5 skipped: set GATECAST_BENCH_DATA to a folder that holds m5")
        return
    settings: dict[str, Any] = {
        "freq": "1d",
        "columns": {"target": "value"},
        "known_covariates": ["snap", "event_name", "event_type"],
        "static_path": str(folder / "static.parquet"),
        "static_covariates": ["store_id", "dept_id", "cat_id", "state_id"],
    }
    path, warm = str(folder / "train.parquet"), str(folder / "test.parquet")
    found = least(
        {
            "reading": partial(run, "read", path=path, warm=warm),
            "gatecast": partial(run, "panel", horizon=28, path=path, warm=warm, **settings),
        },
        ROUNDS,
    )
    ours, read = found["gatecast"], found["reading"]
    ratios.keep("data: M5 to panel / reading it", ours["cpu"] / read["cpu"])
    print(
        f"M5: {ours['rows_in']:,} rows to a panel of {ours['series_kept']:,} series, {ours['known']} known and "
        f"{ours['static']} static covariates: {ours['wall']:.1f} s, {ours['cpu']:.1f} s CPU "
        f"({ours['cpu'] / read['cpu']:.1f} times reading), peak RSS {ours['rss']:.0f} MB"
    )
    print(_account(ours))


def large() -> None:
    """A panel that is prepared once, in bounded memory, and mapped from its files."""
    with tempfile.TemporaryDirectory() as folder:
        path, prepared = f"{folder}/table", f"{folder}/prepared"
        written = run("write", folder=path, series=LARGE_SERIES, steps=STEPS, files=LARGE_FILES)
        rows = written["rows"]
        made = run("prepare_panel", horizon=HORIZON, folder=prepared, path=path, **HOURLY)
        trained = run("train", folder=prepared, steps=20)
    opening = trained["opening"]
    print(f"{rows:,} rows in {LARGE_FILES} Parquet files ({written['megabytes']:.0f} MB), {LARGE_SERIES:,} series")
    show_table(
        ("", "wall s", "CPU s", "peak RSS MB", "of it not file pages MB"),
        (
            _memory_row("prepare", made),
            _memory_row("open", opening),
            _memory_row("closed form, and 20 steps of training", trained),
        ),
    )
    print(_account(made))
    print(f"prepare: {rows / made['wall']:,.0f} rows / s, {rows / made['cpu']:,.0f} rows / CPU s")
    print(
        f"the panel's buffers hold {made['megabytes']:.0f} MB; the table as a frame would take {rows * 32 / 1e6:,.0f}"
    )


PARTS: dict[str, Callable[[], None]] = {
    "table": table,
    "batches": batches,
    "windows": windows,
    "m5": m5,
    "large": large,
}


def _memory_row(name: str, cost: Figures) -> tuple[str, ...]:
    return name, f"{cost['wall']:.1f}", f"{cost['cpu']:.1f}", f"{cost['rss']:.0f}", f"{cost['anon']:.0f}"


def _grown(cost: Figures) -> float:
    return float(cost["rss"] - cost["rss_before"])


def _each(cost: Figures) -> float:
    return float(cost["cpu"] / cost["windows"] * 1e6)


def show_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table that is Markdown too."""
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    rule = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]
    for line in (lines[0], rule, *lines[1:]):
        cells = [
            line[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)),
        ]
        print(f"| {' | '.join(cells)} |")


def _account(cost: Figures) -> str:
    return (
        f"rows: {cost['rows_in']:,} = {cost['rows_kept']:,} kept + {cost['rows_rejected']:,} rejected + "
        f"{cost['rows_future']:,} future + {cost['rows_after_until']:,} after until; {cost['steps_filled']:,} steps "
        "without a row"
    )


def _peers(tasks: dict[str, tuple[str, Figures]]) -> dict[str, Callable[[], Figures]]:
    """Return the measurements of other libraries (task and arguments by name) whose environments are there."""
    found: dict[str, Callable[[], Figures]] = {}
    for name, (task, given) in tasks.items():
        if python := environment(task.split("_", maxsplit=1)[0]):
            found[name] = partial(run, task, module="benchmarks.peers.measure", python=python, **given)
    return found


@cache
def environment(name: str) -> Path | None:
    """Return the Python of a peer's environment, made if need be; None, said aloud, where that fails."""
    home = ROOT / ".venv-peers"
    file = Path(__file__).parent / "peers" / f"{name}.txt"
    python, done = home / name / "bin" / "python", home / name / ".done"
    if done.exists() and done.read_text() == file.read_text():
        return python
    print(f"installing {name} into {home / name} ...", file=sys.stderr)
    home.mkdir(exist_ok=True)
    (home / ".gitignore").write_text("*\n")
    try:
        for command in (
            [sys.executable, "-m", "venv", str(home / name)],
            [
                str(python),
                "-m",
                "pip",
                "install",
                "--quiet",
                "--no-input",
                "-r",
                str(file),
            ],
        ):
            subprocess.run(command, check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        print(f"{name} left out: {error.stderr.strip().splitlines()[-1]}")
        return None
    done.write_text(file.read_text())
    return python


if __name__ == "__main__":
    main(*sys.argv[1:])
