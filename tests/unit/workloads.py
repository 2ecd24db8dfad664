"""Work for engines; workers import it from here."""

import errno
import itertools
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forecast.engines.engine import Engine
from forecast.errors import DataError, OutputError


class Killer:
    """Work whose tasks kill their process at the first attempts."""

    def __init__(self, folder: Path, deaths: int) -> None:
        self.folder, self.deaths = folder, deaths

    def open(self) -> Callable[[int], int]:
        def run(task: int) -> int:
            attempts = len(list(self.folder.glob(f"{task}-*")))
            (self.folder / f"{task}-{attempts}").touch()
            if task == 1 and attempts < self.deaths:
                os.kill(os.getpid(), signal.SIGKILL)
            return task * task

        return run


@dataclass(frozen=True)
class _KilledOnce:
    """Work whose process is killed before its second task, the first time."""

    work: Any
    marker: Path

    def open(self) -> Callable[[Any], Any]:
        function, tasks = self.work.open(), itertools.count()

        def run(task: Any) -> Any:
            if next(tasks) and not self.marker.exists():
                self.marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return function(task)

        return run


class KillingEngine:
    """An engine that loses a worker in the middle of the first work."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.n_workers, self._engine, self.marker = engine.n_workers, engine, folder / "killed"

    def run(self, work: Any, tasks: Any) -> Iterator[Any]:
        """Yield the outcomes, as `Engine.run`."""
        return self._engine.run(_KilledOnce(work, self.marker), tasks)


class UnpicklableError(Exception):
    """An error that does not come back from a pickle."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")


class Failure:
    """Work whose task 1 raises an error of a kind at its first attempts."""

    def __init__(self, folder: Path, kind: str, times: int = 99) -> None:
        self.folder, self.kind, self.times = folder, kind, times

    def open(self) -> Callable[[int], int]:
        def run(task: int) -> int:
            attempts = len(list(self.folder.glob(f"{task}-*")))
            (self.folder / f"{task}-{attempts}").touch()
            if task == 1 and attempts < self.times:
                self.fail()
            return task * task

        return run

    def fail(self) -> None:
        if self.kind == "full disk":
            raise OutputError(f"can't write the part: {os.strerror(errno.ENOSPC)} (os error 28)")
        raise {
            "data": DataError("a column is missing"),
            "bug": ZeroDivisionError("a bug"),
            "unpicklable": UnpicklableError(7, "a driver's error"),
            "network": ConnectionResetError("the disk is away"),
        }[self.kind]
