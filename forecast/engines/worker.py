"""The side of the workers: work is opened once, then called for each task."""

import os
import pickle
import shutil
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

from forecast.engines.engine import TransientError, is_transient
from forecast.engines.payload import Payload, open_payload

_opened: dict[object, Callable[[Any], Any]] = {}
"""The function of the latest work, by the key of the work."""


def start(folder: Path) -> None:
    """Prepare a process of this machine: interrupts are left to the job, and it ends with the job.

    The process removes the `folder` of the saved work if the job was killed.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, args=(folder,), daemon=True).start()


def _end_with_parent(folder: Path) -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def run_saved(path: Path, task: object, pause: float) -> Any:
    """Return the result of a task of saved work, as `run`."""
    return run(str(path), lambda: open_payload(path), task, pause)


def run(key: object, payload: Callable[[], Payload], task: object, pause: float) -> Any:
    """Return the result of a task, after a pause in seconds.

    `payload` is called if this process has not opened the work with this `key` yet. Raises TransientError if another
    attempt may succeed; RuntimeError for an error that can't be sent to the job.
    """
    time.sleep(pause)
    try:
        if key not in _opened:
            import torch

            torch.set_num_threads(1)  # The tasks are parallel, not their products.
            _opened.clear()
            _opened[key] = payload().load().open()
        return _opened[key](task)
    except Exception as error:
        if is_transient(error):
            raise TransientError(str(error)) from error
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            raise RuntimeError(f"{type(error).__name__}: {error}") from error
        raise
