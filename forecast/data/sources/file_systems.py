"""A disk and an object store with the same few calls, so that a file on a disk needs no pyarrow."""

import os
import stat
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final

S3: Final = "s3://"
_COMPRESSIONS: Final = (".br", ".bz2", ".gz", ".lz4", ".snappy", ".zst")
"""Names of files that pyarrow uncompresses as it reads them."""


class Kind(Enum):
    """What is at an address."""

    FILE = "file"
    FOLDER = "folder"
    OTHER = "other"


@dataclass(frozen=True)
class File:
    """A file with its size and time."""

    address: str
    """A path, or s3://bucket/key."""
    size: int
    modified: int
    """Nanoseconds since 1970; S3 stores whole seconds."""


class Disk:
    """Files on a disk. All calls raise OSError."""

    def kind(self, path: str) -> Kind | None:
        """Return what is at a path, None for nothing."""
        try:
            mode = os.stat(path).st_mode  # noqa: PTH116  the text of the path stays as it is
        except (FileNotFoundError, NotADirectoryError):
            return None
        if stat.S_ISDIR(mode):
            return Kind.FOLDER
        return Kind.FILE if stat.S_ISREG(mode) else Kind.OTHER

    def file(self, path: str) -> File:
        """Return the file at a path."""
        status = os.stat(path)  # noqa: PTH116
        return File(path, status.st_size, status.st_mtime_ns)

    def files(self, folder: str, *, recursive: bool) -> list[File]:
        """Return the files in a folder, sorted by address; none if there is no such folder."""
        if self.kind(folder) is None:
            return []
        paths = []
        for parent, folders, names in os.walk(folder, onerror=_fail, followlinks=True):
            paths += [f"{parent.rstrip('/')}/{name}" for name in names]
            if not recursive:
                folders.clear()
        return [self.file(path) for path in sorted(paths) if self.kind(path) is Kind.FILE]

    def open(self, path: str) -> Any:
        """Return a binary file that reads a file from its start, uncompressed."""
        if not path.lower().endswith(_COMPRESSIONS):
            return Path(path).open("rb", buffering=0)
        from pyarrow import fs

        return fs.LocalFileSystem().open_input_stream(path)

    def open_random_access(self, path: str) -> Any:
        """Return a binary file with random access to a file."""
        return Path(path).open("rb")


class Bucket:
    """Files in S3, by a pyarrow.fs.FileSystem. Addresses in calls are without s3://. All calls raise OSError."""

    def __init__(self, system: Any) -> None:
        self._system = system

    def kind(self, path: str) -> Kind | None:
        """Return what is at an address, None for nothing."""
        from pyarrow import fs

        kinds = {fs.FileType.NotFound: None, fs.FileType.File: Kind.FILE, fs.FileType.Directory: Kind.FOLDER}
        return kinds.get(self._system.get_file_info(path).type, Kind.OTHER)

    def file(self, path: str) -> File:
        """Return the file at an address."""
        return _s3_file(self._system.get_file_info(path))

    def files(self, folder: str, *, recursive: bool) -> list[File]:
        """Return the files in a folder, sorted by address; none if there is no such folder."""
        from pyarrow import fs

        infos = self._system.get_file_info(fs.FileSelector(folder, allow_not_found=True, recursive=recursive))
        files = [_s3_file(info) for info in infos if info.type == fs.FileType.File]
        return sorted(files, key=lambda file: file.address)

    def open(self, path: str) -> Any:
        """Return a binary file that reads a file from its start, uncompressed."""
        return self._system.open_input_stream(path)

    def open_random_access(self, path: str) -> Any:
        """Return a binary file with random access to a file."""
        return self._system.open_input_file(path)


def _s3_file(info: Any) -> File:
    return File(S3 + info.path, info.size or 0, info.mtime_ns or 0)


def _fail(error: OSError) -> None:
    raise error
