"""Checks that the files of a prepared panel are undamaged and describe a valid panel.

`storage` reads and writes them.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from forecast.data.panel import Panel
from forecast.errors import DataError, listing

BLOCK: Final = 1 << 22
"""Bytes that a checksum covers."""
_MAX_THREADS: Final = 8
_SEAL: Final = "sha256"

Checksums = Mapping[str, list[int]]
"""The CRC-32 of each block of 4 MiB, by the names of files."""


def checksums(folder: Path) -> dict[str, list[int]]:
    """Return the checksums of all files in a folder."""
    result = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            result[path.name] = [zlib.crc32(block) for block in iter(partial(file.read, BLOCK), b"")]
    return result


def damaged_files(folder: Path, expected: Checksums) -> list[str]:
    """Return the names of files whose checksums are not the expected ones. Raises OSError."""
    with ExitStack() as stack:
        files = {name: stack.enter_context((folder / name).open("rb")).fileno() for name in expected}

        def blocks() -> Iterator[tuple[str, int, int]]:
            for name, sums in expected.items():
                yield from ((name, number * BLOCK, value) for number, value in enumerate(sums))

        def is_damaged(block: tuple[str, int, int]) -> bool:
            name, offset, value = block
            return zlib.crc32(os.pread(files[name], BLOCK, offset)) != value

        with ThreadPoolExecutor(min(os.cpu_count() or 1, _MAX_THREADS)) as pool:
            results = zip(blocks(), pool.map(is_damaged, blocks()), strict=True)
            return sorted({name for (name, _, _), damaged in results if damaged})


def sealed(index: Mapping[str, Any]) -> dict[str, Any]:
    """Return the index of a panel with a hash of its content."""
    return {**index, _SEAL: _hash(index)}


def is_whole(index: Mapping[str, Any]) -> bool:
    """Return whether the content of an index matches its hash; true for an index of earlier releases without one."""
    content = {name: value for name, value in index.items() if name != _SEAL}
    return index[_SEAL] == _hash(content) if _SEAL in index else "checksums" not in index


def _hash(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def check_structure(panel: Panel, n_static: int) -> None:
    """Raise DataError if the buffers do not fit together: types, shapes, offsets, order of names, times.

    `n_static` is the number of static covariates.
    """
    n_series, steps = panel.n_series, len(panel.target)
    kinds: dict[str, type[np.generic]] = dict.fromkeys(("offsets", "start", "static_categories"), np.int64)
    kinds |= dict.fromkeys(("past", "known", "static_numbers", "available", "weight"), np.float32)
    wrong = [
        f"{name} holds {getattr(panel, name).dtype}"
        for name, kind in kinds.items()
        if getattr(panel, name).dtype != kind
    ]
    if panel.target.dtype not in (np.float32, np.float64):
        wrong.append(f"target holds {panel.target.dtype}")
    shapes = {
        "offsets": (n_series + 1,),
        "start": (n_series,),
        "target": (steps,),
        "past": (len(panel.past), steps),
        "known": (len(panel.known), steps + n_series * panel.horizon),
        "static_categories": (n_series, panel.static_categories.shape[-1]),
        "static_numbers": (n_series, n_static - panel.static_categories.shape[-1]),
    }
    if len(panel.available):
        shapes["available"] = (1, steps + n_series * panel.horizon)
    if len(panel.weight):
        shapes["weight"] = (1, steps)
    wrong += [
        f"{name} has shape {getattr(panel, name).shape}, not {shape}"
        for name, shape in shapes.items()
        if getattr(panel, name).shape != shape
    ]
    if not wrong:
        wrong = list(_disorder(panel))
    if wrong:
        raise DataError(listing(wrong))


def _disorder(panel: Panel) -> Iterator[str]:
    """Yield faults in the offsets, names and times of buffers that have the right shapes."""
    steps = len(panel.target)
    if panel.offsets[0] != 0 or panel.offsets[-1] != steps:
        yield f"offsets go from {panel.offsets[0]:,} to {panel.offsets[-1]:,}, not from 0 to {steps:,}"
    n_short = int((np.diff(panel.offsets) < 1).sum())
    if n_short:
        yield f"offsets give {n_short:,} series no step"
    n_unsorted = int((panel.series_id[1:] <= panel.series_id[:-1]).sum())
    if n_unsorted:
        yield f"{n_unsorted:,} names of series are out of order"
    if not panel.n_series:
        return
    span = np.array([panel.start.min(), panel.start.max()])
    try:
        plausible = bool((panel.grid.index(panel.grid.timestamps(span)) == span).all())  # Others overflow.
    except (ArithmeticError, ValueError, pl.exceptions.PolarsError):
        plausible = False
    if not plausible:
        yield f"series begin at steps {span[0]:,} to {span[1]:,}, which are no times"
    if panel.static_categories.size and int(panel.static_categories.min()) < 0:
        yield "there are negative codes of static covariates"
