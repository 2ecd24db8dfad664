"""Work on its way to the workers: pickled, with large arrays beside the pickle.

Arrays that are mapped from files travel as the names of the files: each worker maps them itself. All other arrays and
the tensors of models are buffers that the workers of a machine share.
"""

import io
import mmap
import pickle
import warnings
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from forecast.environment import gatecast_version
from forecast.errors import ConfigError, DataError

_ALIGNMENT: Final = 64
_SMALL: Final = 1 << 12
"""Bytes below which an array travels within the pickle."""


@dataclass(frozen=True)
class Payload:
    """Pickled work. `version` is that of gatecast in the process of the job."""

    version: str
    content: bytes
    buffers: list[npt.NDArray[np.uint8]]

    @classmethod
    def of(cls, work: object) -> "Payload":
        """Return work pickled; its buffers are views of its arrays."""
        stream = io.BytesIO()
        buffers: list[pickle.PickleBuffer] = []
        _Pickler(stream, protocol=5, buffer_callback=buffers.append).dump(work)
        views = [np.frombuffer(buffer.raw(), np.uint8) for buffer in buffers]
        return cls(gatecast_version(), stream.getvalue(), views)

    def load(self) -> Any:
        """Return the work. Raises ConfigError if this is another version of gatecast."""
        installed = gatecast_version()
        if installed != self.version:
            raise ConfigError(
                f"a worker has gatecast {installed}, the job {self.version}; install the same version on all machines"
            )
        return pickle.loads(self.content, buffers=self.buffers)

    def save(self, path: Path) -> None:
        """Write a file for `open_payload`."""
        sizes = [len(buffer) for buffer in self.buffers]
        header = pickle.dumps((self.version, self.content, sizes))
        with path.open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            for buffer in self.buffers:
                file.write(b"\0" * (-file.tell() % _ALIGNMENT))
                file.write(buffer.data)


def open_payload(path: Path) -> Payload:
    """Return saved work; its buffers are mapped, and changes to them stay in this process."""
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    begin = 8 + int.from_bytes(mapped[:8], "little")
    name, content, sizes = pickle.loads(mapped[8:begin])
    buffers = []
    for size in sizes:
        begin += -begin % _ALIGNMENT
        buffers.append(np.frombuffer(mapped, np.uint8, size, begin))
        begin += size
    return Payload(name, content, buffers)


class _Pickler(pickle.Pickler):
    """A pickler that refers to mapped files, and puts tensors into buffers."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, np.ndarray) and value.dtype != object and value.nbytes > _SMALL:
            root: Any = value
            while isinstance(root.base, np.ndarray):
                root = root.base
            if isinstance(root, np.memmap) and root.filename is not None and value.flags.c_contiguous:
                offset = root.offset + value.ctypes.data - root.ctypes.data
                return _mapped, (str(root.filename), value.dtype.str, value.shape, int(offset))
            if isinstance(value, np.memmap):
                return np.array(value).__reduce_ex__(5)
        if type(value).__module__.startswith("torch"):
            return _reduce_tensor(value)
        return NotImplemented


def _reduce_tensor(value: Any) -> Any:
    import torch

    is_plain = type(value) in (torch.Tensor, torch.nn.Parameter) and value.device.type == "cpu" and not value.is_sparse
    if not is_plain or value.dtype == torch.bfloat16:
        return NotImplemented
    return _tensor, (value.detach().contiguous().numpy(), type(value) is torch.nn.Parameter, value.requires_grad)


def _tensor(values: npt.NDArray[Any], is_parameter: bool, requires_grad: bool) -> Any:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Buffers of a cluster are read-only; nothing writes to them.
        tensor = torch.from_numpy(values)
    return torch.nn.Parameter(tensor, requires_grad) if is_parameter else tensor


def _mapped(name: str, dtype: str, shape: tuple[int, ...], offset: int) -> npt.NDArray[Any]:
    file = _map(name)
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if offset + size > len(file):
        raise DataError(f"{name} has changed since the job began; run the job again")
    return np.ndarray(shape, dtype, file, offset)


@lru_cache(64)
def _map(name: str) -> mmap.mmap:
    try:
        with Path(name).open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise DataError(
            f"a worker does not see {name}: the panel was replaced during the job, or is on a disk that this machine "
            "does not share; put it on a shared disk, or score by shards of a table"
        ) from None
