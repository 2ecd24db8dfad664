"""Arrays in .npy files of an object store, of which only the byte ranges in use are read."""

import logging
import mmap
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from forecast.data.sources.storage import Location
from forecast.errors import DataError

_LOG = logging.getLogger(__name__)
_THREADS: Final = 8
_REQUEST: Final = 1 << 24
"""Bytes of a request at most."""
_MISSING: Final = ("NO_SUCH_KEY", "RESOURCE_NOT_FOUND")
"""What AWS calls a missing object: the second if the answer has no body."""
_HEADER: Final = 1 << 10
_WORTH_A_LINE: Final = 1 << 26
"""Bytes of a whole buffer from which on the log says that it is read."""
_MAX_AHEAD: Final = 64
"""Parts that are read ahead at most."""


class ReadError(DataError, OSError):
    """An object can't be read; another attempt may succeed."""


@dataclass(frozen=True)
class RemoteFile:
    """An object and its size in bytes; `label` names the setting of its address in messages."""

    address: str
    size: int
    label: str

    def read(self, begin: int, out: npt.NDArray[np.uint8]) -> None:
        """Read the bytes from `begin` on that fill `out`, in a few requests at a time. Raises ReadError."""
        starts = range(0, len(out), _REQUEST)

        def read(start: int) -> int:
            part = out[start : start + _REQUEST]
            content = self._read_at(begin + start, len(part))
            if len(content) != len(part):
                raise ReadError(f"{self.label}: {self.address} is shorter than it was; run the job again")
            part[:] = np.frombuffer(content, np.uint8)
            return len(content)

        for _ in _pool().map(read, starts) if len(starts) > 1 else map(read, starts):
            pass

    def _read_at(self, begin: int, size: int) -> bytes:
        try:
            content: bytes = _open(self.address, self.label).read_at(size, begin)
        except OSError as error:
            if any(code in str(error) for code in _MISSING):
                raise DataError(f"{self.address} is gone: the panel was replaced; run the job again") from None
            raise ReadError(str(_location(self.address, self.label).failure(error))) from None
        return content


class RangeArray:
    """A part of an array in a file: all elements of some rows from `begin` to `end`, which are read when they are used.

    Slices are parts again, and nothing is read for them; `np.asarray` and any other index read the part. The array
    has one dimension without `rows`. It is pickled as the names of its file and range.
    """

    def __init__(self, array: "FileArray", rows: tuple[int, ...] | None, begin: int, end: int) -> None:
        self._array, self._rows, self._begin, self._end = array, rows, begin, end
        self._values: npt.NDArray[Any] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return RangeArray, (self._array, self._rows, self._begin, self._end)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the elements."""
        return self._array.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of rows, if there are rows, and of columns."""
        columns = self._end - self._begin
        return (columns,) if self._rows is None else (len(self._rows), columns)

    @property
    def nbytes(self) -> int:
        """Bytes of the part."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, tuple) and len(index) == 1:
            (index,) = index
        if self._values is None and self._rows is None and isinstance(index, slice):
            begin, end, step = index.indices(len(self))
            if step == 1:
                return RangeArray(self._array, None, self._begin + begin, self._begin + max(begin, end))
        elif self._values is None and self._rows is not None:
            if isinstance(index, tuple) and len(index) == 2 and index[0] == slice(None) and isinstance(index[1], slice):
                begin, end, step = index[1].indices(self.shape[1])
                if step == 1:
                    return RangeArray(self._array, self._rows, self._begin + begin, self._begin + max(begin, end))
            if isinstance(index, int):
                return RangeArray(self._array.row(self._rows[index]), None, self._begin, self._end)
        return np.asarray(self)[index]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        if self._values is None:
            future = _ahead.pop(self._key, None)
            self._values = future.result() if future else self._read()
        return np.array(self._values, dtype=dtype, copy=copy)

    def advise(self, option: int) -> None:
        """Begin to read the part for mmap.MADV_WILLNEED; forget it for MADV_DONTNEED."""
        if option == mmap.MADV_DONTNEED:
            _ahead.pop(self._key, None)
        elif option == mmap.MADV_WILLNEED and self._values is None and self.nbytes and len(_ahead) < _MAX_AHEAD:
            _ahead[self._key] = _reader().submit(self._read)

    @property
    def _key(self) -> tuple[Any, ...]:
        return self._array, self._rows, self._begin, self._end

    def _read(self) -> npt.NDArray[Any]:
        if self._end - self._begin == self._array.columns and self.nbytes >= _WORTH_A_LINE:
            _LOG.info("%s: %s MiB are read into memory", self._array.file.address, f"{self.nbytes >> 20:,}")
        values = np.empty(self.shape, self.dtype)
        for row, out in zip(self._rows or (0,), np.atleast_2d(values), strict=True):
            self._array.read(row, self._begin, out)
        return values


@dataclass(frozen=True)
class FileArray:
    """An array in a .npy file, in C order: `columns` elements in a row, the first one at byte `offset`."""

    file: RemoteFile
    dtype: np.dtype[Any]
    offset: int
    columns: int

    def row(self, number: int) -> "FileArray":
        """Return one row of this array."""
        begin = self.offset + number * self.columns * self.dtype.itemsize
        return FileArray(self.file, self.dtype, begin, self.columns)

    def read(self, row: int, begin: int, out: npt.NDArray[Any]) -> None:
        """Read elements of a row from column `begin` on. Raises ReadError."""
        if out.nbytes:
            self.file.read(self.offset + (row * self.columns + begin) * self.dtype.itemsize, out.view(np.uint8))


def open_array(file: RemoteFile) -> Any:
    """Return the array in a .npy file as a RangeArray. Raises ReadError, and ValueError for another file."""
    header = np.empty(min(_HEADER, file.size), np.uint8)
    file.read(0, header)
    shape, is_fortran, dtype, offset = array_header(header)
    if is_fortran and len(shape) > 1:
        raise ValueError("the array is not in C order")
    if offset + int(np.prod(shape)) * dtype.itemsize != file.size:
        raise ValueError(f"{file.size:,} bytes do not hold an array of shape {shape}")
    rows = tuple(range(shape[0])) if len(shape) == 2 else None
    return RangeArray(FileArray(file, dtype, offset, shape[-1]), rows, 0, shape[-1])


def array_header(content: npt.NDArray[np.uint8]) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Return shape, Fortran order, type and first byte of the array in a .npy file. Raises ValueError."""
    stream = BytesIO(content[:_HEADER].tobytes())
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError("the array has objects")
    return shape, is_fortran, dtype, stream.tell()


_ahead: dict[tuple[Any, ...], "Future[npt.NDArray[Any]]"] = {}
"""Parts that are read ahead, by their keys."""


@lru_cache(1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_THREADS, "ranges")


@lru_cache(1)
def _reader() -> ThreadPoolExecutor:
    """Return the threads that read ahead; they wait for those of `_pool`."""
    return ThreadPoolExecutor(_THREADS, "read-ahead")


@lru_cache(16)
def _location(path: str, label: str) -> Location:
    return Location.of(path, label)


@lru_cache(256)
def _open(address: str, label: str) -> Any:
    return _location(address, label).open_random_access(address)
