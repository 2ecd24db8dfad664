"""What `benchmarks.scale` measures: each task runs in a process of its own and returns figures."""

import hashlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import polars as pl

from benchmarks.finetune import UNGATED
from benchmarks.meter import Figures, Meter, answer
from benchmarks.timed_engine import TimedEngine
from forecast import artifact as artifacts
from forecast.config import EngineSettings, FinetuneSettings, JobShare, ScoreOutput, ScoreSettings, SourceConfig
from forecast.data.files import locked
from forecast.engines.engine import open_engine
from forecast.finetuning import finetune as finetuning
from forecast.scoring.job import ScoreJob


def score(
    model: str,
    panel: str,
    folder: str,
    engine: dict[str, Any] | None = None,
    share: tuple[int, int] | None = None,
    output: dict[str, Any] | None = None,
    kill: str = "",
    shard_size: int | None = None,
    commit: bool = False,
) -> Figures:
    """Forecasts of a panel: a whole job by an engine, a share, or a commit.

    `kill` is what gets SIGKILL once a part is written: `worker`, `job`, or the number of another process. `tasks` is
    the sum of the wall time of all tasks, `workers` the peaks of the memory of workers, in MB.
    """
    artifact = artifacts.load(Path(model))
    loaded = artifact.open(SourceConfig(path=panel))
    names = {"model": "small", "model_version": "1", "model_digest": artifacts.digest(Path(model))}
    settings, sink = ScoreSettings(shard_size=shard_size), ScoreOutput(path=folder, **(output or {}))
    start = time.perf_counter()
    moments: list[float] = []

    def progress(_: int) -> None:
        moments.append(time.perf_counter() - start)
        if kill and len(moments) == 2:
            victim = os.getpid() if kill == "job" else _workers()[0] if kill == "worker" else int(kill)
            os.kill(victim, signal.SIGKILL)

    with (
        locked(Path(folder), shared=share is not None),
        Meter() as meter,
        _memory_of_workers() as workers,
        open_engine(EngineSettings.model_validate(engine or {})) as opened,
    ):
        timed = None if opened is None else TimedEngine(opened)
        job = ScoreJob(artifact, loaded, settings, sink, names, engine=timed)
        if share:
            written = job.write_share(loaded.panel.last_index, JobShare(*share), progress)
            facts: Figures = {"series": written.n_series, "parts": written.n_written}
        else:
            result = job.write(loaded.panel.last_index, progress, commit=commit)
            facts = {"stages": result.seconds, "rows": result.content["rows"]["written"]}
            facts["rejects"] = result.content["rejects"]
        facts["workers"] = workers
    return {**meter.figures, **facts, **(timed.seconds if timed else {}), "n_shards": job._writer.count}


def _workers() -> list[int]:
    """Return the processes that this one has started, directly or not, without those of Ray itself."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
            if b"spawn_main" not in (command := (stat.parent / "cmdline").read_bytes()) and b"_run_task" not in command:
                parents[int(stat.parent.name)] *= -1
        except OSError:
            continue
    family = {os.getpid()}
    for _ in range(8):
        family |= {pid for pid, parent in parents.items() if abs(parent) in family}
    return sorted(pid for pid in family if parents.get(pid, -1) > 0)


@contextmanager
def _memory_of_workers() -> Iterator[dict[str, float]]:
    """Sample the peaks over all workers of their resident memory, and of its part that is not pages of files."""
    peaks, stop = {"rss": 0.0, "anon": 0.0}, Event()

    def sample() -> None:
        while not stop.wait(0.2):
            for pid in _workers():
                try:
                    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
                except OSError:
                    continue
                values = {line.split(":")[0]: int(line.split()[1]) / 1000 for line in lines if line.endswith("kB")}
                peaks["rss"] = max(peaks["rss"], values.get("VmRSS", 0.0))
                peaks["anon"] = max(peaks["anon"], values.get("RssAnon", 0.0))

    thread = Thread(target=sample)
    thread.start()
    try:
        yield peaks
    finally:
        stop.set()
        thread.join()


def finetune(model: str, panel: str, folder: str, share: tuple[int, int] | None = None) -> Figures:
    """A share of a fine-tuning in closed form in which every series is tuned, or the commit; groups go to `folder`."""
    artifact = artifacts.load(Path(model))
    loaded = artifact.open(SourceConfig(path=panel))
    windows = {"gate_windows": 2, "report_windows": 1, "holdout_windows": 0}
    settings = FinetuneSettings(**windows, accelerator="cpu", final=False, checkpoint=f"{folder}/groups")
    settings = settings.model_copy(update=UNGATED)
    with Meter() as meter:
        if share:
            done = finetuning.finetune_share(artifact, loaded.panel, settings, JobShare(*share))
            facts: Figures = {"series": done.n_series, "fitted": done.is_fitted}
        else:
            result = finetuning.finetune(artifact, loaded.panel, settings, commit=True)
            result.artifact.save(Path(folder, "model-tuned"))
            size = sum(path.stat().st_size for path in Path(folder, "model-tuned").iterdir()) / 1e6
            facts = {"tuned": result.summary["series_tuned"], "size": size}
    return {**meter.figures, **facts}


def load_model(model: str) -> Figures:
    """A saved model to memory."""
    with Meter() as meter:
        artifacts.load(Path(model))
    return meter.figures


def digest(folder: str) -> Figures:
    """Return a hash of all files of scores but the fields of manifests that name the run and its time."""
    hasher = hashlib.sha256()
    for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
        content = path.read_bytes()
        if path.suffix == ".json":
            content = json.dumps(json.loads(content) | {"run_id": None, "written_at": None}).encode()
        hasher.update(str(path.relative_to(folder)).encode() + content)
    return {"digest": hasher.hexdigest()}


def rows(folder: str, sink: str, uri: str | None = None) -> Figures:
    """Return a hash of the sorted rows of forecasts in a table."""
    if sink == "delta":
        frame = pl.read_delta(f"{folder}/forecasts")
    else:
        assert uri
        frame = _sqlite(uri)
    frame = frame.select(sorted(frame.columns)).sort("series_id", "step")
    return {"rows": frame.height, "digest": hashlib.sha256(frame.write_csv().encode()).hexdigest()}


def _sqlite(uri: str) -> pl.DataFrame:
    import sqlite3

    with sqlite3.connect(uri.removeprefix("sqlite:///")) as connection:
        return pl.read_database("select * from forecasts", connection)


def write_many(folder: str, series: int, steps: int, per_file: int) -> Figures:
    """Write an hourly panel of very many series as Parquet files in the order of their names."""
    Path(folder).mkdir(parents=True)
    stamps = np.datetime64("2024-01-01T00:00:00", "us") + np.arange(steps) * np.timedelta64(3_600_000_000, "us")
    rng = np.random.default_rng(0)
    for number, first in enumerate(range(0, series, per_file)):
        count = min(per_file, series - first)
        names = pl.Series([f"s{name:08d}" for name in range(first, first + count)])
        frame = pl.DataFrame(
            {
                "series_id": names.gather(np.repeat(np.arange(count), steps)),
                "timestamp": np.tile(stamps, count),
                "target": rng.normal(size=count * steps),
            }
        )
        frame.write_parquet(Path(folder) / f"part-{number:04d}.parquet")
    return {"rows": series * steps}


TASKS: dict[str, Callable[..., Figures]] = {
    task.__name__: task for task in (score, finetune, load_model, digest, rows, write_many)
}

if __name__ == "__main__":
    answer(TASKS)
