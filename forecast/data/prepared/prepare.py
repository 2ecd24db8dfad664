"""Preparation of panels for repeated use: read once, memory-mapped afterwards.

    panel.json              schema version, digest, settings, counts; written last
    data-0f2a.../           rejects.parquet, and the buffers of the panel, one .npy file each

A panel of any size is written in parts, groups of series, and memory holds one part at a time. An interrupted
preparation resumes with the next part. The index has checksums of itself and of all files: a damaged panel is not
opened.
"""

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from forecast.config import DataConfig
from forecast.data.files import locked
from forecast.data.ingest.covariates import with_features
from forecast.data.ingest.load import as_long, find_categories, load_part, without_unavailable
from forecast.data.ingest.loaded import Loaded, recode, used_categories, with_unread
from forecast.data.ingest.weights import check_weights
from forecast.data.prepared.open import open_prepared, resolve_panel
from forecast.data.prepared.parts import (
    PARTS,
    check_panel_folder,
    chunk_series,
    clear_leftovers,
    content_key,
    resolve_panel_time,
    select_series,
    series_of,
)
from forecast.data.prepared.storage import CHECKSUMS, open_panel, read_index, write_panel
from forecast.data.sources.open import Tables, is_prepared
from forecast.data.time.inference import check_settings
from forecast.errors import ConfigError, DataError

_LOG = logging.getLogger(__name__)

_CHUNK_ROWS: Final = 10_000_000

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Prepared:
    """The result of `prepare` and `append`."""

    loaded: Loaded
    reused: bool = False
    """The folder already held this panel."""


def prepare(
    tables: Tables,
    data: DataConfig,
    horizon: int,
    folder: Path,
    *,
    fingerprint: str | None = None,
    chunk_rows: int = _CHUNK_ROWS,
    progress: Progress | None = None,
    check_source: Callable[[], None] | None = None,
) -> Prepared:
    """Write the panel in `tables` into a folder, about `chunk_rows` rows in memory at a time, and open it.

    `fingerprint` identifies the source: with that of an earlier preparation, an undamaged panel is reused, and an
    interrupted preparation resumes. `check_source` raises DataError if the source has changed since; nothing is written
    then. Raises DataError as `load_panel`, ConfigError, OutputError.
    """
    check_settings(data)
    if data.until is not None:
        raise ConfigError("data.until: prepare the whole table, and give data.until to the verb that reads it")
    check_panel_folder(folder)
    with locked(folder):
        key = content_key(data, horizon, fingerprint)
        earlier = None if fingerprint is None else _reusable(folder, key)
        clear_leftovers(folder, keep=None if fingerprint is None or earlier else key)
        if earlier:
            return Prepared(resolve_panel(folder, earlier, data, horizon), reused=True)

        tables, data = as_long(tables, data)
        categories = find_categories(tables, data)
        series = series_of(tables, data)
        resolved = resolve_panel_time(tables, data, series)
        parts = folder / PARTS
        work_folder = parts / key
        chunks = list(chunk_series(series, chunk_rows))
        loaded_parts = []
        for number, (first, last) in enumerate(chunks):
            if progress:
                progress(f"part {number + 1:,} of {len(chunks):,}")
            path = work_folder / f"{number:05d}"
            earlier = _reusable(path, key)
            if earlier is None:
                part = load_part(select_series(tables, data, first, last), resolved, horizon, categories)
                part = without_unavailable(part)
                if check_source:
                    check_source()
                write_panel(path, [replace(part, panel=with_features(part.panel, data))], key)
                earlier = open_panel(path)
            loaded_parts.append(earlier)
        categories = used_categories(categories, data, [part.panel for part in loaded_parts])
        check_weights([part.panel for part in loaded_parts], data)
        loaded_parts[0] = with_unread(loaded_parts[0], tables)
        if check_source:
            check_source()
        write_panel(folder, [recode(part, categories) for part in loaded_parts], key, check=data)
        shutil.rmtree(parts)
        return Prepared(open_prepared(folder, data, horizon))


def _reusable(folder: Path, key: str) -> Loaded | None:
    """Return the panel in a folder if it was written under this key and is undamaged, else None."""
    if not is_prepared(folder):
        return None
    try:
        index = read_index(folder)
        return open_panel(folder) if index["key"] == key and CHECKSUMS in index else None
    except DataError as error:
        _LOG.warning("%s; this is done now", error)
        return None
