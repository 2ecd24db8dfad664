"""Output folders and files: checks that they are writable, locks, and atomic writes."""

import errno
import fcntl
import hashlib
import os
import socket
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, TextIO

from forecast.errors import OutputError

if TYPE_CHECKING:
    import polars as pl

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
    """Create an empty file that only its owner can read, with its folder; an existing file stays as it is.

    Raises OSError.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))


@contextmanager
def locked(folder: Path, key: str = "output.path", *, shared: bool = False) -> Iterator[None]:
    """Keep other jobs out of a folder. Raises OutputError if one is in it, or nothing can be written there.

    `key` is the setting that names it. Several jobs may hold a `shared` lock together; none of them is a whole job.
    """
    check_writable(folder, key)
    with _open_lock(folder / LOCK, key) as file:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise OutputError(
                f"another job is writing into {folder}: {file.read() or 'it has just begun'}; wait for it to end, or "
                f"choose another {key}"
            ) from None
        os.truncate(file.fileno(), 0)
        with suppress(OSError):  # The lock works on a full disk, without the text.
            os.write(
                file.fileno(),
                f"process {os.getpid()} on {socket.gethostname()}, since {datetime.now():%Y-%m-%d %H:%M:%S}".encode(),
            )
        try:
            yield
        finally:
            os.truncate(file.fileno(), 0)


def _open_lock(path: Path, key: str) -> TextIO:
    """Return the open lock file at a path. Raises OutputError for a link or anything but a regular file."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        reason = "it is a link" if error.errno == errno.ELOOP else error.strerror or error
        raise OutputError(f"can't lock {path.parent}: {path}: {reason}; remove it, or choose another {key}") from error
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(handle)
        fault = "it is another name of a file" if stat.S_ISREG(status.st_mode) else "it is no file"
        raise OutputError(f"can't lock {path.parent}: {path}: {fault}; remove it, or choose another {key}")
    return os.fdopen(handle, "r+", encoding="utf-8", errors="replace")


GROUP_ROWS: Final = 1 << 16
"""Rows per row group: readers hold several groups in memory."""


def write_parquet_atomic(frame: "pl.DataFrame", path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a Parquet file, with `metadata` in its footer; a reader sees all of it or nothing."""
    with atomic_file(path) as file:
        frame.write_parquet(file, compression="zstd", row_group_size=500_000, metadata=metadata)


@contextmanager
def parquet_blocks(path: Path, metadata: Mapping[str, str] | None = None) -> "Iterator[Callable[[pl.DataFrame], None]]":
    """Yield a function that adds rows to a Parquet file; a reader sees all of them once this succeeds, or nothing.

    The file does not depend on how many rows are added at a time. `metadata` is put into its footer.
    """
    import polars as pl
    from pyarrow import parquet

    writer: parquet.ParquetWriter | None = None
    pending: list[pl.DataFrame] = []
    with atomic_file(path) as file:

        def write(frame: pl.DataFrame) -> None:
            pending.append(frame)
            n_rows = sum(part.height for part in pending)
            if n_rows >= GROUP_ROWS:
                rows = pl.concat(pending)
                write_groups(rows[: n_rows - n_rows % GROUP_ROWS])
                pending[:] = [rows[n_rows - n_rows % GROUP_ROWS :]]

        def write_groups(frame: pl.DataFrame) -> None:
            nonlocal writer
            rows = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
            rows = rows.replace_schema_metadata(dict(metadata or {}))
            if writer is None:  # Numbers rarely repeat: their dictionaries would cost time and space.
                texts = [name for name, kind in frame.schema.items() if kind == pl.String]
                writer = parquet.ParquetWriter(file, rows.schema, compression="zstd", use_dictionary=texts or False)
            writer.write_table(rows, row_group_size=GROUP_ROWS)

        try:
            yield write
            if pending:
                write_groups(pl.concat(pending))
        finally:
            if writer is not None:
                writer.close()


def write_bytes_atomic(content: bytes, path: Path, key: str = "output.path", *, private: bool = False) -> None:
    """Write a file; a reader sees all of it or nothing. `key` is the setting that names its folder.

    Only its owner can read a `private` file.
    """
    with atomic_file(path, key, private=private) as file:
        file.write(content)


def write_text_atomic(text: str, path: Path, key: str = "output.path", *, private: bool = False) -> None:
    """Write a text file as `write_bytes_atomic`."""
    write_bytes_atomic(text.encode(), path, key, private=private)


def write_text_once(text: str, path: Path, key: str = "output.path") -> str:
    """Write a text file unless it exists, and return its content; of several writers at once, the first one wins."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    write_text_atomic(text, temporary, key)
    try:
        os.link(temporary, path)  # Fails if it exists, and never shows a part of the text.
    except FileExistsError:
        pass
    except OSError:  # A disk without links.
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path.read_text(encoding="utf-8")


@contextmanager
def atomic_file(path: Path, key: str = "output.path", *, private: bool = False) -> Iterator[BinaryIO]:
    """Yield a file with a temporary name beside `path`, and rename it once it is complete and on the disk."""
    check_writable(path.parent, key)
    # Processes of several machines, or containers, may have the same number.
    temporary = path.with_name(f".{path.name}.{socket.gethostname()[:40]}.{os.getpid()}.tmp")
    try:
        if private:
            make_private(temporary)
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except Exception as error:
        from polars.exceptions import PolarsError  # Polars takes a fifth of a second to import.

        if not isinstance(error, OSError | PolarsError):
            raise
        raise OutputError(f"can't write {path}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damages(folder: Path, files: Mapping[str, str]) -> list[str]:
    """Return a description of each missing or changed file of a manifest, [name: hash]. Raises OSError."""
    reasons = []
    for name, expected in files.items():
        if not (folder / name).is_file():
            reasons.append(f"{name} is missing")
        elif file_hash(folder / name) != expected:
            reasons.append(f"{name} does not match its manifest, it was changed or damaged")
    return reasons
