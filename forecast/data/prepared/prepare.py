"""Panels that are read once and memory-mapped from then on: `forecast data prepare` and what opens its folder.

    panel.json              schema version, digest, settings, counts; written last
    data-0f2a.../           rejects.parquet, and the buffers of the panel, one .npy file each

A panel of any size is written in parts of some series each, so memory holds one part at a time. A folder that is
interrupted goes on at the part where it stopped. The index has checksums of itself and of all files: a damaged panel
is not opened.
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
from forecast.data.ingest.load import find_categories, load_part, long
from forecast.data.ingest.loaded import Loaded, recoded, used_categories, with_unread
from forecast.data.prepared.open import open_prepared, resolve_panel
from forecast.data.prepared.parts import (
    PARTS,
    check_panel_folder,
    chunk_series,
    clear_leftovers,
    content_key,
    select_series,
    series_of,
    settle_time,
)
from forecast.data.prepared.storage import CHECKSUMS, open_panel, read_index, write_panel
from forecast.data.sources.open import Tables, is_prepared
from forecast.data.time.inference import check_settings
from forecast.errors import ConfigError, DataError

_LOG = logging.getLogger(__name__)
"""Schema versions that can be read. In 1 the names of series are an array of np.str_, each as long as the longest."""

_CHUNK_ROWS: Final = 10_000_000

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Prepared:
    """What `prepare` and `append` leave behind."""

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

    `fingerprint` tells whether the source is the one that the folder was made from: then nothing is done, unless the
    folder is damaged, and a preparation that was interrupted goes on. `check_source` raises DataError if the source is
    no longer what it was; nothing is written then. Raises DataError as `load_panel`, ConfigError, OutputError.
    """
    check_settings(data)
    if data.until is not None:
        raise ConfigError("data.until: prepare the whole table, and give data.until to the verb that reads it")
    check_panel_folder(folder)
    with locked(folder):
        key = content_key(data, horizon, fingerprint)
        stored = None if fingerprint is None else _reusable(folder, key)
        clear_leftovers(folder, keep=None if fingerprint is None or stored else key)
        if stored:
            return Prepared(resolve_panel(folder, stored, data, horizon), reused=True)

        tables, data = long(tables, data)
        categories = find_categories(tables, data)
        series = series_of(tables, data)
        settled = settle_time(tables, data, series)
        parts = folder / PARTS
        workshop = parts / key
        chunks = list(chunk_series(series, chunk_rows))
        written = []
        for number, (first, last) in enumerate(chunks):
            if progress:
                progress(f"part {number + 1:,} of {len(chunks):,}")
            path = workshop / f"{number:05d}"
            stored = _reusable(path, key)
            if stored is None:
                part = load_part(select_series(tables, data, first, last), settled, horizon, categories)
                if check_source:
                    check_source()
                write_panel(path, [replace(part, panel=with_features(part.panel, data))], key)
                stored = open_panel(path)
            written.append(stored)
        categories = used_categories(categories, data, [part.panel for part in written])
        written[0] = with_unread(written[0], tables)
        if check_source:
            check_source()
        write_panel(folder, [recoded(part, categories) for part in written], key, check=data)
        shutil.rmtree(parts)
        return Prepared(open_prepared(folder, data, horizon))


def _reusable(folder: Path, key: str) -> Loaded | None:
    """Return the panel in a folder if it was written under a key, and is whole."""
    if not is_prepared(folder):
        return None
    try:
        index = read_index(folder)
        return open_panel(folder) if index["key"] == key and CHECKSUMS in index else None
    except DataError as error:
        _LOG.warning("%s; this is done now", error)
        return None
