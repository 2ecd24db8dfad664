"""The files of a prepared panel: index, buffers, checksums."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from forecast.config import DataConfig, SourceConfig
from forecast.data.digests import digest_of
from forecast.data.files import write_text_atomic
from forecast.data.ingest.loaded import Loaded
from forecast.data.ingest.rejects import Counts, check_rejects
from forecast.data.panel import Names, Panel, as_names
from forecast.data.prepared.integrity import check_structure, checksums, damaged_files, is_whole, sealed
from forecast.data.sources.frames import UNREADABLE
from forecast.data.sources.open import PREPARED
from forecast.data.time.grid import Grid
from forecast.errors import DataError, OutputError, listing

SCHEMA_VERSION: Final = 2
# In version 1 the names of series are an array of np.str_, each as long as the longest.
_READABLE: Final = (1, SCHEMA_VERSION)
_NAME_ENDS: Final = "series_id_ends"
_NAMES_BLOCK: Final = 1 << 16
REJECTS: Final = "rejects.parquet"
CHECKSUMS: Final = "checksums"
APPENDED: Final = "appended"
_BUFFERS: Final = ("offsets", "start", "target", "past", "known", "static_categories", "static_numbers")
AVAILABLE: Final = "available"
WEIGHT: Final = "weight"
_OPTIONAL: Final = (AVAILABLE, WEIGHT)
"""Buffers that only panels with data.available and data.weight have."""
DATA_FOLDER: Final = re.compile(r"data-[0-9a-f]{16}")
# Attempts to open a panel that other jobs replace meanwhile.
_ATTEMPTS: Final = 20

# Fields of an index with their types.
_INDEX: Final = {
    "digest": str,
    "key": str,
    "folder": str,
    "files": dict,
    "horizon": int,
    "grid": dict,
    "data": dict,
    "categories": dict,
    "counts": dict,
}
# Errors that damaged content raises.
MALFORMED: Final = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    SyntaxError,
    TypeError,
    ValueError,
)


def reading(folder: Path, source: SourceConfig) -> DataConfig:
    """Return the settings with which to read `source` for the panel in a folder. Raises DataError."""
    return DataConfig.model_validate(read_index(folder)["data"]).with_source(source)


def categories(folder: Path) -> dict[str, tuple[str, ...]]:
    """Return the values of the categorical covariates of the panel in a folder. Raises DataError."""
    return {name: tuple(values) for name, values in read_index(folder)["categories"].items()}


def write_panel(
    folder: Path,
    parts: Sequence[Loaded],
    key: str,
    check: DataConfig | None = None,
    appended: Sequence[str] = (),
) -> None:
    """Write a panel, given in parts of consecutive series, into a folder; a reader sees the old or the new one.

    `check` holds the limits on rejects, `appended` the keys of the tables that were appended, the latest last.
    """
    counts, first = sum((part.counts for part in parts), Counts()), parts[0]
    rejects = pl.concat([part.rejects for part in parts]).sort(first.rejects.columns)
    if check is not None:
        check_rejects(rejects, counts, check, first.panel.grid)
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob(".data-*"):
        shutil.rmtree(path, ignore_errors=True)
    temporary = folder / f".data-{os.getpid()}"
    temporary.mkdir()
    buffers = _buffers_of([part.panel for part in parts])
    digest = digest_of(first.panel.grid, np.concatenate(buffers["digests"]))
    try:
        for name, values in buffers.items():
            _write_buffer(temporary / f"{name}.npy", values, axis=1 if name in ("past", "known", *_OPTIONAL) else 0)
        rejects.write_parquet(temporary / REJECTS)
        content = digest + hashlib.sha256((temporary / REJECTS).read_bytes()).hexdigest()
        data_folder = folder / f"data-{hashlib.sha256(content.encode()).hexdigest()[:16]}"
        sums = checksums(temporary)
        if data_folder.is_dir() and checksums(data_folder) == sums:
            shutil.rmtree(temporary)
        else:
            shutil.rmtree(data_folder, ignore_errors=True)  # The existing folder is damaged.
            temporary.rename(data_folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise OutputError(
            f"can't write into {folder}: {error.strerror or error}; choose another output.path"
        ) from error
    index = {
        "schema_version": SCHEMA_VERSION,
        "digest": digest,
        "key": key,
        "folder": data_folder.name,
        "files": {path.name: path.stat().st_size for path in sorted(data_folder.iterdir())},
        CHECKSUMS: sums,
        "horizon": first.panel.horizon,
        "grid": first.panel.grid.to_json(),
        "data": first.data.without_source().model_dump(mode="json"),
        "categories": first.categories,
        "counts": counts.to_json(),
        APPENDED: list(appended),
    }
    write_text_atomic(json.dumps(sealed(index), indent=1) + "\n", folder / PREPARED)
    for old_folder in folder.glob("data-*"):
        if old_folder != data_folder and DATA_FOLDER.fullmatch(old_folder.name):  # Open memory maps live on.
            shutil.rmtree(old_folder, ignore_errors=True)


def _buffers_of(panels: Sequence[Panel]) -> dict[str, Sequence[npt.NDArray[Any]]]:
    """Return the buffers of a panel in parts, by the names of their files: arrays to join."""
    lengths = np.concatenate([panel.lengths for panel in panels])
    names = [[name.encode() for name in panel.series_id.tolist()] for panel in panels]
    name_sizes = np.fromiter((len(name) for part in names for name in part), dtype=np.int64)
    return {
        "series_id": [np.frombuffer(b"".join(part), dtype=np.uint8) for part in names],
        _NAME_ENDS: [np.cumsum(name_sizes)],
        "offsets": [np.append(0, np.cumsum(lengths))],
        "digests": [panel.series_digests for panel in panels],
        **{name: [getattr(panel, name) for panel in panels] for name in _BUFFERS if name != "offsets"},
        **{name: [getattr(panel, name) for panel in panels] for name in _OPTIONAL if len(getattr(panels[0], name))},
    }


def _write_buffer(path: Path, parts: Sequence[npt.NDArray[Any]], axis: int) -> None:
    """Write arrays joined along an axis as one .npy file."""
    shape = list(parts[0].shape)
    shape[axis] = sum(part.shape[axis] for part in parts)
    dtype = np.result_type(*(part.dtype for part in parts))
    if 0 in shape:
        np.save(path, np.empty(shape, dtype))
        return
    # Ordinary writes: with a memory map, a full disk would end the process (SIGBUS) instead of raising an error.
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": tuple(shape)}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for index in np.ndindex(*shape[:axis]):
            for part in parts:
                file.write(np.ascontiguousarray(part[index], dtype).reshape(-1).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())


def read_index(folder: Path) -> dict[str, Any]:
    """Return the index of a prepared panel. Raises DataError if it is missing or damaged."""
    try:
        content = (folder / PREPARED).read_bytes()
    except FileNotFoundError:
        raise DataError(f"{folder}: no prepared panel; `forecast data prepare` writes one") from None
    except OSError as error:
        raise DataError(f"{folder}: {PREPARED} can't be read ({error}); prepare the panel again") from error
    return parse_index(folder, content)


def parse_index(folder: Path | str, content: bytes) -> dict[str, Any]:
    """Return the index of a prepared panel from the content of its file. Raises DataError if it is damaged."""
    try:
        index: dict[str, Any] = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{folder}: {PREPARED} can't be read ({error}); prepare the panel again") from error
    version = index.get("schema_version") if isinstance(index, dict) else None
    if version not in _READABLE:
        raise DataError(
            f"{folder}: a panel of schema version {version}, this program reads {SCHEMA_VERSION}; prepare it again"
        )
    wrong = [name for name, kind in _INDEX.items() if not isinstance(index.get(name), kind)]
    if wrong or not DATA_FOLDER.fullmatch(index["folder"]) or not is_whole(index):
        why = f"lacks {listing(wrong)}" if wrong else "does not match its hash"
        raise DataError(f"{folder}: {PREPARED} is damaged, it {why}; prepare the panel again")
    return index


def open_panel(folder: Path) -> Loaded:
    """Return a stored panel without calendar. Raises DataError if it is damaged."""
    for _ in range(_ATTEMPTS):
        stamp = _stamp(folder)
        index = read_index(folder)
        try:
            return _open_buffers(folder, index)
        except DataError:
            if _stamp(folder) == stamp:
                raise
    raise DataError(f"{folder}: other jobs replace this panel all the time; wait for them to end")


def _stamp(folder: Path) -> tuple[int, int] | None:
    """Return a stamp that differs between two versions of an index, None if there is no index."""
    try:
        status = (folder / PREPARED).stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _size(file: Path) -> int | None:
    """Return the bytes of a file, None if there is none: another job may remove it at any moment."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return None


def _open_buffers(folder: Path, index: dict[str, Any]) -> Loaded:
    """Return the panel that an index describes, after checking all files and whether they fit together."""
    buffers = folder / index["folder"]
    check_sizes(folder, index, {name: _size(buffers / name) for name in index["files"]})
    try:
        damaged = damaged_files(buffers, index.get(CHECKSUMS, {}))
        if damaged:
            raise DataError(
                f"{folder}: {len(damaged):,} files of {buffers.name} are damaged, their content is not what was "
                f"written: {listing(damaged)}; prepare the panel again"
            )
        loaded = build_panel(index, partial(_map, buffers), pl.read_parquet(buffers / REJECTS))
    except (*UNREADABLE, *MALFORMED) as error:
        raise DataError(
            f"{folder}: the panel in {buffers.name} is damaged ({type(error).__name__}: {error}); prepare it again"
        ) from error
    check_buffers(folder, index, loaded)
    return loaded


def check_sizes(folder: Path | str, index: Mapping[str, Any], sizes: Mapping[str, int | None]) -> None:
    """Raise DataError if a file of a panel does not have the size in the index; None is a missing file."""
    for name, size in index["files"].items():
        actual = sizes.get(name)
        if actual != size:
            state = "is missing" if actual is None else f"has {actual:,} bytes instead of {size:,}"
            raise DataError(f"{folder}: {index['folder']}/{name} {state}; prepare the panel again")


def check_buffers(folder: Path | str, index: Mapping[str, Any], loaded: Loaded) -> None:
    """Raise DataError if the buffers of a panel do not fit together."""
    try:
        check_structure(loaded.panel, len(loaded.data.static_covariates))
    except DataError as error:
        raise DataError(f"{folder}: {index['folder']} holds no panel: {error}; prepare it again") from error


def _map(buffers: Path, name: str) -> npt.NDArray[Any]:
    """Return the array in a file, mapped. Raises errors of NumPy for a damaged file."""
    path = buffers / f"{name}.npy"
    try:
        values: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError:  # An empty file can't be mapped.
        values = np.load(path, allow_pickle=False)
    return values


def build_panel(index: Mapping[str, Any], buffer: Callable[[str], Any], rejects: pl.DataFrame) -> Loaded:
    """Return the panel of an index; `buffer` returns the array of a name.

    Raises errors of NumPy, Polars and pydantic for damaged files.
    """
    panel = Panel(
        grid=Grid.from_json(index["grid"]),
        series_id=_read_names(buffer),
        **{name: buffer(name) for name in _BUFFERS},
        calendar=np.empty((0, 0), dtype=np.float32),
        calendar_start=0,
        clock_shift=np.empty(0, dtype=np.int64),
        horizon=index["horizon"],
        **{name: buffer(name) for name in _OPTIONAL if f"{name}.npy" in index["files"]},
    )
    return Loaded(
        panel=panel,
        data=DataConfig.model_validate(index["data"]),
        categories={name: tuple(values) for name, values in index["categories"].items()},
        rejects=rejects,
        counts=Counts(**index["counts"]),
        stored_digest=index["digest"],
    )


def _read_names(buffer: Callable[[str], npt.NDArray[Any]]) -> Names:
    """Return the names of the series, from their concatenated UTF-8 text and the byte where each one ends."""
    text = buffer("series_id")
    if text.dtype != np.uint8:  # Schema version 1
        return as_names(text.tolist())
    ends = buffer(_NAME_ENDS)
    names = np.empty(len(ends), dtype=np.object_)
    begin = 0
    for first in range(0, len(ends), _NAMES_BLOCK):
        last = min(first + _NAMES_BLOCK, len(ends))
        sizes = np.diff(ends[first:last], prepend=begin)
        content = text[begin : ends[last - 1]].tobytes()
        stops = np.cumsum(sizes).tolist()
        names[first:last] = [content[start:stop].decode() for start, stop in zip([0, *stops], stops, strict=False)]
        begin += len(content)
    return names
