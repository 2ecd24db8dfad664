"""A prepared panel in an object store.

Files of a few values for each series are read whole, and compared with their checksums. Of the target and the
covariates that change, each shard reads its own byte ranges, which have no checksums: their files are compared by size.
"""

import logging
import zlib
from io import BytesIO
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from forecast.data.ingest.loaded import Loaded
from forecast.data.prepared.integrity import BLOCK
from forecast.data.prepared.ranges import RemoteFile, array_header, open_array
from forecast.data.prepared.storage import (
    AVAILABLE,
    CHECKSUMS,
    MALFORMED,
    REJECTS,
    WEIGHT,
    build_panel,
    check_buffers,
    check_sizes,
    parse_index,
)
from forecast.data.sources.frames import UNREADABLE
from forecast.data.sources.open import PREPARED
from forecast.data.sources.storage import Location
from forecast.errors import DataError

_LOG = logging.getLogger(__name__)
_LARGE: Final = ("target", "past", "known", AVAILABLE, WEIGHT)


def open_remote_panel(address: str, *, in_memory: bool) -> Loaded:
    """Return the panel that was copied to an address such as s3://bucket/panel, without calendar.

    The large buffers are RangeArrays, or arrays with `in_memory`. Raises DataError if it is damaged.
    """
    address = address.rstrip("/")
    location = Location.of(address, f"data.path={address}")
    try:
        text = location.read(f"{address}/{PREPARED}")
        index = parse_index(address, text)
        folder = f"{address}/{index['folder']}"
        check_sizes(address, index, location.sizes(folder))
    except OSError as error:
        raise location.failure(error) from None
    files = {name: RemoteFile(f"{folder}/{name}", size, location.label) for name, size in index["files"].items()}
    if in_memory:
        total = sum(files[f"{name}.npy"].size for name in _LARGE if f"{name}.npy" in files)
        _LOG.info(
            "%s: %s MiB are read into memory; a copy of the panel on a disk is mapped", address, f"{total >> 20:,}"
        )

    def whole(name: str) -> npt.NDArray[np.uint8]:
        content = np.empty(files[name].size, np.uint8)
        files[name].read(0, content)
        for number, checksum in enumerate(index.get(CHECKSUMS, {}).get(name, ())):
            if zlib.crc32(content[number * BLOCK : (number + 1) * BLOCK].data) != checksum:
                raise DataError(f"{address}: {index['folder']}/{name} is damaged; copy the panel again")
        return content

    def buffer(name: str) -> Any:
        file = files[f"{name}.npy"]
        if name in _LARGE and not in_memory:
            array = open_array(file)
            return array if array.nbytes else np.empty(array.shape, array.dtype)
        content = whole(f"{name}.npy")
        shape, is_fortran, dtype, offset = array_header(content)
        return content[offset:].view(dtype).reshape(shape, order="F" if is_fortran else "C")

    try:
        loaded = build_panel(index, buffer, pl.read_parquet(BytesIO(whole(REJECTS).tobytes())))
    except DataError:
        raise
    except (*UNREADABLE, *MALFORMED) as error:
        raise DataError(f"{folder} is damaged ({type(error).__name__}: {error}); copy the panel again") from error
    check_buffers(address, index, loaded)
    return loaded
