"""Folders that a job writes into: whether it can, and one job at a time."""

import fcntl
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Final

from forecast.errors import OutputError

LOCK: Final = ".lock"


def check_writable(folder: Path, key: str = "output.path") -> None:
    """Make `folder` and raise OutputError if nothing can be written there; call it before hours of work.

    `key` is the setting that names it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(f"can't write into {folder}: {error.strerror or error}; choose another {key}") from error


def check_location(folder: Path, key: str = "output.path") -> None:
    """Raise OutputError if `folder` can't be made or written, and leave nothing behind.

    `key` is the setting that names it.
    """
    try:
        existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
        with tempfile.TemporaryFile(dir=existing):
            pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"can't write into {folder}: {reason}; choose another {key}") from error


@contextmanager
def locked(folder: Path, key: str = "output.path") -> Iterator[None]:
    """Keep other jobs out of a folder. Raises OutputError if one is in it, or nothing can be written there.

    `key` is the setting that names it.
    """
    check_writable(folder, key)
    with (folder / LOCK).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise OutputError(
                f"another job is writing into {folder}: {file.read() or 'it has just begun'}; wait for it to end, or "
                f"choose another {key}"
            ) from None
        os.truncate(file.fileno(), 0)
        with suppress(OSError):  # A full disk holds the lock, if not the text.
            os.write(
                file.fileno(),
                f"process {os.getpid()} on {socket.gethostname()}, since {datetime.now():%Y-%m-%d %H:%M:%S}".encode(),
            )
        try:
            yield
        finally:
            os.truncate(file.fileno(), 0)
