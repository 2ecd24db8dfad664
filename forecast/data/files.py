"""Folders that a job writes into: whether it can, and one job at a time."""

import errno
import fcntl
import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Final, TextIO

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


def make_private(file: Path) -> None:
    """Make an empty file that only its owner can read, with its folder; one that is there stays as it is.

    Raises OSError.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))


@contextmanager
def locked(folder: Path, key: str = "output.path") -> Iterator[None]:
    """Keep other jobs out of a folder. Raises OutputError if one is in it, or nothing can be written there.

    `key` is the setting that names it.
    """
    check_writable(folder, key)
    with _open_lock(folder / LOCK, key) as file:
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


def _open_lock(path: Path, key: str) -> TextIO:
    """Return the open lock file at a path. Raises OutputError for a link, or anything else but a file of its own."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        reason = "it is a link" if error.errno == errno.ELOOP else error.strerror or error
        raise OutputError(f"can't lock {path.parent}: {path}: {reason}; remove it, or choose another {key}") from error
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(handle)
        what = "it is another name of a file" if stat.S_ISREG(status.st_mode) else "it is no file"
        raise OutputError(f"can't lock {path.parent}: {path}: {what}; remove it, or choose another {key}")
    return os.fdopen(handle, "r+", encoding="utf-8", errors="replace")
