"""The protocol of engines, and the one that the settings choose.

An engine runs tasks that don't depend on each other. A worker opens the work of a job once and keeps it for all tasks.
Workers write files and return small results; the process of the job alone speaks to the registry, the ledger and
databases.
"""

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

from forecast.config import EngineSettings
from forecast.errors import EngineError, OutputError, listing

Task = TypeVar("Task")
Result = TypeVar("Result")
Task_contra = TypeVar("Task_contra", contravariant=True)
Result_co = TypeVar("Result_co", covariant=True)

ATTEMPTS: Final = 3
"""Times that a task is tried if its worker is lost, or reading and writing fails."""
PAUSES: Final = (0.0, 1.0, 5.0)
"""Seconds before each attempt: a disk or a network needs time to recover."""
_PERMANENT: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
"""Errors of a disk that another attempt does not mend: it is full, read-only or forbidden."""


class TransientError(Exception):
    """A task failed to read or write, and may succeed at another attempt."""


class Work(Protocol[Task_contra, Result_co]):
    """What all tasks of a job share; it travels to the workers, so it must be picklable."""

    def open(self) -> Callable[[Task_contra], Result_co]:
        """Return the function of a task; a worker calls it once per job."""


@dataclass(frozen=True)
class Outcome(Generic[Task, Result]):
    """The end of a task."""

    task: Task
    result: Result | None
    failure: str = ""
    """Why the task has no result after ATTEMPTS."""


class Engine(Protocol):
    """Runs tasks on workers."""

    n_workers: int

    def run(self, work: Work[Task, Result], tasks: Iterable[Task]) -> Iterator[Outcome[Task, Result]]:
        """Yield the outcome of each task as soon as it ends, in any order.

        The next task is taken from `tasks` when a worker is free for it, after all earlier outcomes were yielded.
        A task is tried again if its worker is lost or if reading or writing fails, unless the disk is full, read-only
        or forbidden. Any other error of a task is raised here. The workers keep `work` as long as this engine is given
        the same object.
        """


class Queue(Generic[Task]):
    """Tasks on their way to the workers, read as these become free; those to try again come first."""

    def __init__(self, tasks: Iterable[Task]) -> None:
        self._tasks = iter(tasks)
        self._again: list[tuple[Task, int, float]] = []

    def pop(self) -> tuple[Task, int, float] | None:
        """Return the next task, the number of its attempt and the pause before it; None if there is none."""
        if self._again:
            return self._again.pop()
        for task in self._tasks:
            return task, 1, 0.0
        return None

    def retry(self, task: Task, attempt: int, pause: float) -> None:
        """Put a task back."""
        self._again.append((task, attempt, pause))


def results(engine: Engine, work: Work[Task, Result], tasks: Sequence[Task]) -> Iterator[tuple[Task, Result]]:
    """Yield the tasks that end, with their results. Raises EngineError once all others are done if one has failed."""
    failures = []
    for outcome in engine.run(work, tasks):
        if outcome.failure:
            failures.append(outcome.failure)
        else:
            yield outcome.task, outcome.result  # type: ignore[misc]  # a result may be None
    if failures:
        reasons = listing(sorted(set(failures)))
        raise EngineError(
            f"{len(failures):,} of {len(tasks):,} tasks failed {ATTEMPTS} times each: {reasons}; the same command "
            "tries them again"
        )


def is_transient(error: BaseException) -> bool:
    """Return whether a task with this error is worth another attempt: its disk or network may recover."""
    reasons = (os.strerror(number) for number in _PERMANENT)  # Polars passes on the text alone.
    return isinstance(error, OSError | OutputError) and not any(reason in str(error) for reason in reasons)


@contextmanager
def open_engine(settings: EngineSettings) -> Iterator[Engine | None]:
    """Yield the engine of the settings; None for `local`, where the caller does the work itself.

    Raises ConfigError without the package, EngineError if the cluster does not answer.
    """
    if settings.kind == "local":
        yield None
    elif settings.kind == "processes":
        from forecast.engines.processes import Processes

        with Processes(settings.workers) as processes:
            yield processes
    else:
        from forecast.engines.ray_cluster import RayCluster

        with RayCluster(settings) as cluster:
            yield cluster
