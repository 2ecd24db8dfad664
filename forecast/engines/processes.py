"""Workers in processes of this machine."""

import multiprocessing
import os
import shutil
import signal
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from forecast.engines import worker
from forecast.engines.engine import ATTEMPTS, PAUSES, Outcome, Queue, Result, Task, TransientError, Work
from forecast.engines.payload import Payload
from forecast.environment import environment_set

_THREADS: Final = ("OMP_NUM_THREADS", "POLARS_MAX_THREADS")


class _Running(NamedTuple):
    slot: int
    task: Any
    attempt: int


class Processes:
    """An engine of processes, one thread each. A lost process takes only its own task with it.

    Work travels through a file in the folder for temporary files, which the processes map.
    """

    def __init__(self, n_workers: int | None = None) -> None:
        self.n_workers = n_workers or len(os.sched_getaffinity(0))
        self._pools: dict[int, ProcessPoolExecutor] = {}
        self._folder = Path()
        self._saved: tuple[object, Path] | None = None

    def __enter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix="gatecast-"))
        return self

    def __exit__(self, *error: object) -> None:
        for slot in list(self._pools):
            self._end(slot)
        shutil.rmtree(self._folder, ignore_errors=True)

    def run(self, work: Work[Task, Result], tasks: Iterable[Task]) -> Iterator[Outcome[Task, Result]]:
        """Yield the outcomes, as `Engine.run`."""
        path = self._save(work)
        queue, idle, running = Queue(tasks), list(range(self.n_workers)), dict[Future[Any], _Running]()
        try:
            while True:
                while idle and (entry := queue.pop()):
                    task, attempt, pause = entry
                    slot = idle.pop()
                    running[self._submit(slot, path, task, pause)] = _Running(slot, task, attempt)
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    slot, task, attempt = running.pop(future)
                    idle.append(slot)
                    error = future.exception()
                    is_lost = isinstance(error, BrokenProcessPool)
                    if is_lost:
                        self._end(slot)
                    if error is None:
                        yield Outcome(task, future.result())
                    elif not is_lost and not isinstance(error, TransientError):
                        raise error
                    elif attempt < ATTEMPTS:
                        queue.retry(task, attempt + 1, 0.0 if is_lost else PAUSES[attempt])
                    else:
                        yield Outcome(task, None, "its process was killed" if is_lost else str(error))
        finally:
            for interrupted in running.values():
                self._end(interrupted.slot)

    def _save(self, work: object) -> Path:
        """Return the file of the work."""
        if self._saved is None or self._saved[0] is not work:
            path = Path(tempfile.mkdtemp(dir=self._folder)) / "work"
            Payload.of(work).save(path)
            if self._saved:
                shutil.rmtree(self._saved[1].parent, ignore_errors=True)  # Maps of the processes live on.
            self._saved = work, path
        return self._saved[1]

    def _submit(self, slot: int, path: Path, task: object, pause: float) -> Future[Any]:
        """Give a task to the process of a slot, which is replaced if it was killed while it was idle."""
        try:
            return self._pool(slot).submit(worker.run_saved, path, task, pause)
        except BrokenProcessPool:
            self._end(slot)
            return self._pool(slot).submit(worker.run_saved, path, task, pause)

    def _pool(self, slot: int) -> ProcessPoolExecutor:
        if slot not in self._pools:
            context = multiprocessing.get_context("spawn")
            self._pools[slot] = ProcessPoolExecutor(
                1, mp_context=context, initializer=worker.start, initargs=(self._folder,)
            )
            with _environment():  # The process is started by the first task.
                self._pools[slot].submit(os.getpid)
        return self._pools[slot]

    def _end(self, slot: int) -> None:
        """Kill the process of a slot."""
        pool = self._pools.pop(slot, None)
        if pool is None:
            return
        for process in list((pool._processes or {}).values()):
            process.kill()
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _environment() -> Iterator[None]:
    """Set the environment of processes that start now: one thread, and no interrupts before they ignore them."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with environment_set(dict.fromkeys(_THREADS, "1")):
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
