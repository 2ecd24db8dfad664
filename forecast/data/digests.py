"""Hashes of the content of a panel and of its series."""

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from forecast.data.time.grid import Grid

if TYPE_CHECKING:
    from forecast.data.panel import Panel


def digest_of(grid: Grid, series_digests: npt.NDArray[np.uint8]) -> str:
    """Return the digest of a panel from its grid and those of its series."""
    return hashlib.sha256(str(grid).encode() + series_digests.tobytes()).hexdigest()


def hash_series(panel: "Panel") -> npt.NDArray[np.uint8]:
    """Return a hash of the content of each series, [S, 16]."""
    digests = []
    offsets, starts = panel.offsets.tolist(), panel.start.tobytes()
    target = np.asarray(panel.target)  # A slice of an array costs less than one of a memory-mapped file.
    # Covariates and the like by step, then by step with the horizon, in the order in which they are hashed.
    past, known, available, weight = (
        np.asarray(values) if len(values) else None
        for values in (panel.past, panel.known, panel.available, panel.weight)
    )
    static = [values for values in (panel.static_categories, panel.static_numbers) if values.shape[1]]
    for number, series_id in enumerate(panel.series_id.tolist()):
        begin, end = offsets[number : number + 2]
        horizon = slice(begin + number * panel.horizon, end + (number + 1) * panel.horizon)
        hasher = _name_hasher(series_id)
        hasher.update(starts[8 * number : 8 * number + 8])
        hasher.update(target[begin:end].data)
        if past is not None:
            hasher.update(past[:, begin:end].tobytes())
        if known is not None:
            hasher.update(known[:, horizon].tobytes())
        for values in static:
            hasher.update(values[number].tobytes())
        if available is not None:
            hasher.update(available[:, horizon].tobytes())
        if weight is not None:
            hasher.update(weight[:, begin:end].tobytes())
        digests.append(hasher.digest())
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 16)


def _name_hasher(name: str) -> "hashlib.blake2b":
    """Return a hasher that starts with the name of a series.

    A NUL could be part of the number that follows: a name with a NUL is hashed with its length first.
    """
    content = name.encode()
    if b"\0" not in content:
        return hashlib.blake2b(content, digest_size=16)
    return hashlib.blake2b(len(content).to_bytes(8, "little") + content, digest_size=16, person=b"NUL")
