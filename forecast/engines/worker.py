"""The side of the workers: work is opened once, then called for each task."""

import os
import signal
import threading
from collections.abc import Callable
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

from forecast.engines.payload import Payload, open_payload

_opened: dict[object, Callable[[Any], Any]] = {}
"""The function of the latest work, by the key of the work."""


def start() -> None:
    """Prepare a process of this machine: interrupts are left to the job, and it ends with the job."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def run_saved(path: Path, task: object) -> Any:
    """Return the result of a task of saved work."""
    return run(str(path), lambda: open_payload(path), task)


def run(key: object, payload: Callable[[], Payload], task: object) -> Any:
    """Return the result of a task. `payload` is called if this process has not opened the work with this `key` yet."""
    if key not in _opened:
        import torch

        torch.set_num_threads(1)  # The tasks are parallel, not their products.
        _opened.clear()
        _opened[key] = payload().load().open()
    return _opened[key](task)
