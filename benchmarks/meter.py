"""A measurement in a process of its own: CPU and wall seconds, and memory. Standard library only: peers run it too."""

import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, TypeVar

ROOT = Path(__file__).parents[1]

Figures = dict[str, Any]
T = TypeVar("T")


class Meter:
    """Measures what runs inside `with`: `figures` holds cpu and wall (s), and memory in MB.

    cpu is of all threads, and of child processes that have ended. rss_before is what the process held at first, and
    rss the most it held since, both with the file pages that are mapped; nan where there is no /proc. `anonymous`
    samples every 5 ms the memory that can't be read again from a file: anon_before and anon.
    """

    def __init__(self, *, anonymous: bool = False) -> None:
        self.figures: Figures = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample) if anonymous else None

    def __enter__(self) -> Self:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # The peak starts anew.
        self.figures["rss_before"] = memory("VmRSS")
        if self._thread:
            self.figures["anon_before"] = self.figures["anon"] = memory("RssAnon")
            self._thread.start()
        self._cpu, self._begun = _cpu(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.figures["wall"] = time.perf_counter() - self._begun
        self.figures["cpu"] = _cpu() - self._cpu
        self.figures["rss"] = memory("VmHWM")
        if self._thread:
            self._stop.set()
            self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(0.005):
            self.figures["anon"] = max(self.figures["anon"], memory("RssAnon"))


def warmed(work: Callable[[str], T], warm: str, path: str) -> tuple[T, Figures]:
    """Return what `work` makes of the table at `path`, and its cost; a small table at `warm` goes first.

    So imports, thread pools and the like are counted for nobody.
    """
    work(warm)
    with Meter() as meter:
        made = work(path)
    return made, meter.figures


def memory(field: str) -> float:
    """Return a figure of /proc/self/status in MB."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return float("nan")
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1000


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def run(task: str, *, module: str = "benchmarks.tasks", python: str | Path = sys.executable, **given: Any) -> Figures:
    """Return what a task of a module says, run in a process of its own.

    Raises RuntimeError with the last line that the process wrote if it fails.
    """
    done = subprocess.run(
        [str(python), "-m", module, task, json.dumps(given, default=str)],
        cwd=ROOT,
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{task}: {(done.stderr.strip() or f'ended with {done.returncode}').splitlines()[-1]}")
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def least(contenders: Mapping[str, Callable[[], Figures]], rounds: int) -> dict[str, Figures]:
    """Return the figures of each contender's cheapest run by CPU, of so many rounds in which they take turns.

    The wall time is that of the quickest run: the machine may be shared.
    """
    runs = [{name: contender() for name, contender in contenders.items()} for _ in range(rounds)]
    found = {}
    for name in contenders:
        own = [one[name] for one in runs]
        found[name] = {**min(own, key=lambda figures: figures["cpu"]), "wall": min(figures["wall"] for figures in own)}
    return found


def answer(tasks: Mapping[str, Callable[..., Figures]]) -> None:
    """Run the task that the command line names and print what it says: the other end of `run`."""
    _, task, given = sys.argv
    print(json.dumps(tasks[task](**json.loads(given))))
