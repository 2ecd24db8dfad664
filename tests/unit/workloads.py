"""Work for engines; workers import it from here."""

import os
import signal
from collections.abc import Callable
from pathlib import Path


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
