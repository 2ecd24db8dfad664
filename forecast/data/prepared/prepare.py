"""Panels that are read once and memory-mapped from then on: `forecast data prepare` and what opens its folder.

    panel.json              schema version, digest, settings, counts; written last
    data-0f2a.../           rejects.parquet, and the buffers of the panel, one .npy file each

A panel of any size is written in parts of some series each, so memory holds one part at a time. A folder that is
interrupted goes on at the part where it stopped. The index has checksums of itself and of all files: a damaged panel
is not opened.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from forecast.config import AUTO, NOTATION, DataConfig, SourceConfig
from forecast.data.files import LOCK, check_writable, locked
from forecast.data.ingest import validate
from forecast.data.ingest.extent import common_end, observed_steps
from forecast.data.ingest.load import (
    Loaded,
    find_categories,
    load_part,
    long,
    own_classes,
    recoded,
    used_categories,
    warn_extent,
    with_calendar,
    with_features,
    with_unread,
)
from forecast.data.ingest.regularise import BoolArray, ranges
from forecast.data.ingest.rejects import LATE, NO_TARGET, Counts, check_rejects
from forecast.data.ingest.timestamps import (
    Settled,
    check_settings,
    instants,
    latest_of,
    longest_series,
    parsed,
    settle_from,
)
from forecast.data.panel import IntArray, Names, Panel, TargetArray, as_names, concatenated, digest_of
from forecast.data.prepared.integrity import check_structure, checksums, damaged_files, is_whole, sealed
from forecast.data.sources.open import PREPARED, Tables, is_prepared
from forecast.data.sources.tables import UNREADABLE, collect, column, write_text_atomic
from forecast.data.time.frequency import Grid
from forecast.errors import ConfigError, DataError, OutputError, listing
from forecast.names import REASON, SERIES_ID, TARGET, TIMESTAMP, VALUE

SCHEMA_VERSION: Final = 2
_READABLE: Final = (1, SCHEMA_VERSION)
"""Schema versions that can be read. In 1 the names of series are an array of np.str_, each as long as the longest."""
_NAME_ENDS: Final = "series_id_ends"
_NAMES_BLOCK: Final = 1 << 16
_REJECTS: Final = "rejects.parquet"
_PARTS: Final = ".parts"
_CHECKSUMS: Final = "checksums"
_APPENDED: Final = "appended"
_MAX_KEYS: Final = 1000
_BUFFERS: Final = ("offsets", "start", "target", "past", "known", "static_categories", "static_numbers")
_DATA_FOLDER: Final = re.compile(r"data-[0-9a-f]{16}")
_UNFINISHED: Final = re.compile(r"\.data-\d+|\.panel\.json\.\d+\.tmp")
# How often a panel is opened again that another job replaced meanwhile.
_ATTEMPTS: Final = 20

_LOG = logging.getLogger(__name__)

# What an index has, by the names of its fields.
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
# What damaged content raises.
_MALFORMED: Final = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    SyntaxError,
    TypeError,
    ValueError,
)

# What is in the buffers: a verb can't choose it anew.
_FIXED: Final = (
    "freq",
    "weekmask",
    "aggregate",
    "time_zone",
    "lags",
    "rolling",
    "past_covariates",
    "known_covariates",
    "static_covariates",
)

_CHUNK_ROWS: Final = 10_000_000

Progress = Callable[[str], None]
Revisions = Literal["accept", "refuse", "fail"]


@dataclass(frozen=True)
class Prepared:
    """What `prepare` and `append` leave behind."""

    loaded: Loaded
    reused: bool = False
    """The folder already held this panel."""


@dataclass(frozen=True)
class Appended(Prepared):
    """What `append` has changed."""

    new_steps: int = 0
    """Steps that had no value before."""
    new_series: int = 0
    revisions: pl.DataFrame = field(default_factory=pl.DataFrame, repr=False)
    """series_id, timestamp, before, after: targets of the past that the new rows state otherwise."""


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
    _check_folder(folder)
    with locked(folder):
        key = _key(data, horizon, fingerprint)
        stored = None if fingerprint is None else _reusable(folder, key)
        _clear(folder, keep=None if fingerprint is None or stored else key)
        if stored:
            return Prepared(_resolved(folder, stored, data, horizon), reused=True)

        tables, data = long(tables, data)
        categories = find_categories(tables, data)
        series = _series(tables, data)
        settled = _settle(tables, data, series)
        parts = folder / _PARTS
        workshop = parts / key
        chunks = list(_chunks(series, chunk_rows))
        written = []
        for number, (first, last) in enumerate(chunks):
            if progress:
                progress(f"part {number + 1:,} of {len(chunks):,}")
            path = workshop / f"{number:05d}"
            stored = _reusable(path, key)
            if stored is None:
                part = load_part(_some_series(tables, data, first, last), settled, horizon, categories)
                if check_source:
                    check_source()
                _write(path, [replace(part, panel=with_features(part.panel, data))], key)
                stored = _open(path)
            written.append(stored)
        categories = used_categories(categories, data, [part.panel for part in written])
        written[0] = with_unread(written[0], tables)
        if check_source:
            check_source()
        _write(folder, [recoded(part, categories) for part in written], key, check=data)
        shutil.rmtree(parts)
        return Prepared(open_prepared(folder, data, horizon))


def _reusable(folder: Path, key: str) -> Loaded | None:
    """Return the panel in a folder if it was written under a key, and is whole."""
    if not is_prepared(folder):
        return None
    try:
        index = _read_index(folder)
        return _open(folder) if index["key"] == key and _CHECKSUMS in index else None
    except DataError as error:
        _LOG.warning("%s; this is done now", error)
        return None


def _clear(folder: Path, keep: str | None) -> None:
    """Remove what killed jobs have left in a folder that is locked, but for the parts of the key to keep."""
    parts = folder / _PARTS
    leftovers = [path for path in folder.iterdir() if _UNFINISHED.fullmatch(path.name)]
    leftovers += [path for path in parts.glob("*") if path.name != keep] if keep else [parts]
    for path in leftovers:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def open_prepared(
    folder: Path, data: DataConfig, horizon: int, categories: validate.Categories | None = None
) -> Loaded:
    """Return the panel that `prepare` wrote, memory-mapped, for forecasts of up to `horizon` steps.

    What is not in the buffers (calendar, holidays, season) is as `data` says; `categories` are those of training, when
    there was one. Raises ConfigError for settings other than those it was prepared with, DataError if it is damaged or
    was prepared for a shorter horizon.
    """
    return _resolved(folder, _open(folder), data, horizon, categories)


def _resolved(
    folder: Path, stored: Loaded, data: DataConfig, horizon: int, categories: validate.Categories | None = None
) -> Loaded:
    """Return a stored panel as `open_prepared` does."""
    _check_same(folder, data, stored.data)
    panel = stored.panel
    if not len(panel.known):
        panel = replace(
            panel, horizon=horizon, known=np.empty((0, len(panel.target) + panel.n_series * horizon), np.float32)
        )
    elif horizon > panel.horizon:
        raise DataError(
            f"{folder} holds known covariates for {panel.horizon} steps ahead, {horizon} are wanted; prepare it again "
            f"with window.horizon={horizon}"
        )
    fixed = {name: getattr(stored.data, name) for name in _FIXED}
    fixed |= {name: getattr(stored.data, name) for name in NOTATION if not getattr(data, name)}
    given = {role: name for role, name in data.columns.model_dump().items() if name != AUTO}
    fixed["columns"] = stored.data.columns.model_copy(update=given)
    data = data.model_copy(update={**fixed, "season_length": data.season_length or stored.data.season_length})
    found = replace(stored, panel=panel, data=data)
    if data.until is not None:
        found = _until(found, panel.grid.floor(data.until))
    found = _up_to_end(found)
    if categories is None and found.panel.n_series < panel.n_series:
        categories = used_categories(found.categories, data, [found.panel])
    if categories is not None:
        found = recoded(found, categories)
    if found.counts.rows_rejected > stored.counts.rows_rejected:  # Classes that training did not see, or late rows.
        check_rejects(found.rejects, found.counts, data, panel.grid)
    warn_extent(found)
    panel, data = with_calendar(found.panel, data, found.counts)
    return replace(found, panel=panel, data=data)


def reading(folder: Path, source: SourceConfig) -> DataConfig:
    """Return how to read `source`, so that it can be added to the panel in a folder. Raises DataError."""
    return DataConfig.model_validate(_read_index(folder)["data"]).at(source)


def categories(folder: Path) -> dict[str, tuple[str, ...]]:
    """Return the values of the categorical covariates of the panel in a folder. Raises DataError."""
    return {name: tuple(values) for name, values in _read_index(folder)["categories"].items()}


def append(
    folder: Path,
    tables: Tables,
    source: SourceConfig,
    *,
    revisions: Revisions = "accept",
    check_source: Callable[[], None] | None = None,
) -> Appended:
    """Add the rows of another table, read as the panel's own was, to a prepared panel.

    Rows that were read before are not read again. Targets that the table states otherwise than the panel are
    revisions: taken over, refused (they are rejects), or an error. The rows and rejects of a table that was appended
    before, whatever the order of its rows, are not counted again, and if it was the latest, nothing is written.
    `check_source` as for `prepare`. Raises DataError as `load_panel`, OutputError.
    """
    _read_index(folder)  # Where there is no panel, nothing is left behind.
    with locked(folder):
        _clear(folder, keep=None)
        old = _open(folder)
        data = old.data.at(source)
        tables, _ = long(tables, data, old.categories)
        target = data.columns.target
        classes = {target: old.categories[target]} if target in old.categories else {}
        found = own_classes(tables, data, {**find_categories(tables, data), **classes})
        categories = {
            name: (*values, *(value for value in found.get(name, ()) if value not in values))
            for name, values in old.categories.items()
        }
        grid = old.panel.grid
        settled = Settled(data, grid)
        if data.aggregate is not None:
            settled = replace(_settle(tables, data, _series(tables, data)), grid=grid)
        new = with_unread(load_part(tables, settled, old.panel.horizon, categories), tables)
        check_rejects(new.rejects, new.counts, data, grid)
        if check_source:
            check_source()
        key = _content_key(new)
        earlier = _read_index(folder).get(_APPENDED, [])
        revised, n_filled = _compare(old.panel, new.panel)
        if classes:
            names = pl.Series(categories[target], dtype=pl.String)
            revised = revised.with_columns(
                names.gather(revised[column].cast(pl.Int64)).alias(column) for column in ("before", "after")
            )
        if revised.height and revisions == "fail":
            raise _contradiction(revised)
        if earlier and earlier[-1] == key:
            return Appended(open_prepared(folder, old.data, old.panel.horizon), True, 0, 0, revised)
        rejects, counts = [old.rejects], old.counts
        if key not in earlier:
            rejects.append(new.rejects)
            counts = _joint_counts(old, new)
        if revised.height and revisions == "refuse" and key not in earlier:
            row = {
                REASON: pl.lit("revision of the past"),
                VALUE: pl.lit(None) if classes else pl.col("after").cast(pl.Float64),
            }
            rejects.append(revised.select(SERIES_ID, TIMESTAMP, **row).cast(pl.Schema(old.rejects.schema)))
            counts = replace(
                counts,
                rows_kept=counts.rows_kept - revised.height,
                rows_rejected=counts.rows_rejected + revised.height,
            )
        workshop = folder / _PARTS / "append"
        shutil.rmtree(workshop, ignore_errors=True)
        counts = replace(counts, steps_filled=0)
        parts: list[Path] = []
        for number, panel in enumerate(_merged(old.panel, new.panel, keep=revisions == "refuse")):
            gaps = Counts(steps_filled=int(np.isnan(panel.target).sum()))
            part = Loaded(with_features(panel, data), old.data, categories, old.rejects.clear(), gaps)
            if not parts:
                part = replace(part, rejects=pl.concat(rejects), counts=counts + gaps)
            parts.append(workshop / f"{number:05d}")
            _write(parts[-1], [part], "")
        _write(folder, [_open(part) for part in parts], "appended", appended=[*earlier, key][-_MAX_KEYS:])
        shutil.rmtree(folder / _PARTS)
        added = len(np.setdiff1d(new.panel.series_id, old.panel.series_id))
        loaded = open_prepared(folder, old.data, old.panel.horizon)
        return Appended(loaded, False, n_filled, added, revised)


def _contradiction(revised: pl.DataFrame) -> DataError:
    """Return what says which values differ from those of the panel."""
    shown = [
        (*row[:2], *(value if isinstance(value, str) else f"{value:g}" for value in row[2:]))
        for row in revised.head(5).iter_rows()
    ]
    examples = listing(f"{row[0]} at {row[1]} ({row[2]}, now {row[3]})" for row in shown)
    return DataError(
        f"{revised.height:,} values of {revised[SERIES_ID].n_unique():,} series differ from those of the "
        f"prepared panel: {examples}; set append.revisions=accept to take them over, or refuse to reject them"
    )


def _content_key(loaded: Loaded) -> str:
    """Return a hash of the panel and the rejects of a table: the same for any order of its rows."""
    rejects = loaded.rejects.sort(loaded.rejects.columns).write_json().encode()
    stated = [loaded.panel.digest(), hashlib.sha256(rejects).hexdigest(), asdict(loaded.counts)]
    return hashlib.sha256(json.dumps(stated, sort_keys=True).encode()).hexdigest()


def _joint_counts(old: Loaded, new: Loaded) -> Counts:
    """Return the counts of two tables that make one panel."""
    kept = np.union1d(old.panel.series_id, new.panel.series_id)
    rejects = (found.rejects.filter(pl.col(REASON) == NO_TARGET)[SERIES_ID].drop_nulls() for found in (old, new))
    known = np.union1d(kept, as_names(name for names in rejects for name in names))
    series = {"series_in": len(known), "series_kept": len(kept), "series_rejected": len(known) - len(kept)}
    return replace(old.counts + new.counts, **series)


def _compare(old: Panel, new: Panel) -> tuple[pl.DataFrame, int]:
    """Return the targets that differ (series_id, timestamp, before, after), and how many values are new."""
    parts, n_filled = [], 0
    position = np.searchsorted(old.series_id, new.series_id)
    there = old.series_id[np.minimum(position, old.n_series - 1)] == new.series_id
    for number, shard in _numbered(new):
        each = np.repeat(number, shard.lengths)
        step = np.arange(len(each)) - np.repeat(shard.offsets[:-1], shard.lengths)
        index = shard.start.repeat(shard.lengths) + step
        at = index - old.start[np.where(there, position, 0)][each]
        inside = there[each] & (at >= 0) & (at < old.lengths[np.where(there, position, 0)][each])
        before = np.full(len(each), np.nan, dtype=old.target.dtype)
        before[inside] = old.target[(old.offsets[position[each[inside]]] + at[inside])]
        stated = ~np.isnan(shard.target)
        n_filled += int((stated & np.isnan(before)).sum())
        same = before == shard.target.astype(before.dtype)  # What is stated again is no revision for its digits.
        changed = np.flatnonzero(stated & ~np.isnan(before) & ~same)
        parts.append(
            pl.DataFrame(
                {
                    SERIES_ID: pl.Series(new.series_id[each[changed]].tolist(), dtype=pl.String),
                    TIMESTAMP: new.grid.timestamps(index[changed]),
                    "before": before[changed],
                    "after": shard.target[changed],
                }
            )
        )
    return pl.concat(parts), n_filled


def _numbered(panel: Panel) -> Iterator[tuple[IntArray, Panel]]:
    """Yield the shards of a panel with the numbers of their series."""
    first = 0
    for shard in panel.shards():
        yield np.arange(first, first + shard.n_series), shard
        first += shard.n_series


def _merged(old: Panel, new: Panel, *, keep: bool) -> Iterator[Panel]:
    """Yield the panel of both, in shards; where both have a value it is the new one, or the old target with `keep`."""
    names = np.union1d(old.series_id, new.series_id)
    sources = [(old, *_found(old, names)), (new, *_found(new, names))]
    starts = np.stack([np.where(there, panel.start[at], np.iinfo(np.int64).max) for panel, at, there in sources])
    ends = np.stack([np.where(there, (panel.start + panel.lengths)[at], 0) for panel, at, there in sources])
    start = starts.min(axis=0)
    limits = np.where([there for _, _, there in sources], ends, np.iinfo(np.int64).min)
    lengths = limits.max(axis=0) - start
    bounds = np.append(0, np.cumsum(lengths))
    first = 0
    while first < len(names):
        last = max(first + 1, int(np.searchsorted(bounds, bounds[first] + (1 << 22), side="right")) - 1)
        last = min(last, len(names))
        yield _merge_block(
            sources, names[first:last], slice(first, last), start[first:last], lengths[first:last], keep=keep
        )
        first = last


def _found(panel: Panel, names: Names) -> tuple[IntArray, BoolArray]:
    """Return the number of each named series in the panel (0 where it is not there), and whether it is."""
    at = np.minimum(np.searchsorted(panel.series_id, names), panel.n_series - 1)
    there = panel.series_id[at] == names
    return np.where(there, at, 0), there


def _merge_block(
    sources: Sequence[tuple[Panel, IntArray, BoolArray]],
    names: Names,
    block: slice,
    start: IntArray,
    lengths: IntArray,
    *,
    keep: bool,
) -> Panel:
    """Return some series of `_merged`, which begin at `start` and have `lengths` steps."""
    template = sources[0][0]
    horizon, offsets = template.horizon, np.append(0, np.cumsum(lengths))
    n_past = sources[1][0].past.shape[0]  # Without derived features.
    kind = np.result_type(*(panel.target.dtype for panel, _, _ in sources))
    target = np.full((1, int(offsets[-1])), np.nan, dtype=kind)
    past = np.full((n_past, int(offsets[-1])), np.nan, dtype=np.float32)
    known = np.full((len(template.known), int(offsets[-1]) + horizon * len(names)), np.nan, dtype=np.float32)
    codes = np.zeros((len(names), template.static_categories.shape[1]), dtype=np.int64)
    numbers = np.full((len(names), template.static_numbers.shape[1]), np.nan, dtype=np.float32)
    for order, (panel, at, there) in enumerate(sources):
        rows, number = np.flatnonzero(there[block]), at[block][there[block]]
        first, begin, steps = (
            offsets[rows] + panel.start[number] - start[rows],
            panel.offsets[number],
            panel.lengths[number],
        )
        into, of = ranges(first, steps), ranges(begin, steps)
        _overlay(target, into, panel.target[None, of], only_gaps=keep and order == 1)
        _overlay(past, into, panel.past[:n_past, of])
        # What was the horizon of a series is inside it once it has gone on; a gap cuts it short.
        reach = np.minimum(steps + horizon, offsets[rows + 1] + horizon - first)
        into, of = ranges(first + rows * horizon, reach), ranges(begin + number * horizon, reach)
        _overlay(known, into, panel.known[:, of])
        codes[rows] = np.where(panel.static_categories[number] > 0, panel.static_categories[number], codes[rows])
        _overlay(numbers.T, rows, panel.static_numbers[number].T)
    return replace(
        template,
        series_id=names,
        offsets=offsets,
        start=start,
        target=target[0],
        past=past,
        known=known,
        static_categories=codes,
        static_numbers=numbers,
    )


def _overlay(into: TargetArray, columns: IntArray, values: TargetArray, *, only_gaps: bool = False) -> None:
    """Write the values that are there into some columns; only where there was none, if so asked."""
    before = into[:, columns]
    there = ~np.isnan(values)
    if only_gaps:
        there &= np.isnan(before)
    into[:, columns] = np.where(there, values, before)


def _check_same(folder: Path, stated: DataConfig, prepared: DataConfig) -> None:
    """Raise ConfigError for stated settings that contradict what is in the buffers."""
    wrong = []
    for name in _FIXED:
        wanted, there = getattr(stated, name), getattr(prepared, name)
        if wanted != DataConfig.model_fields[name].default and wanted != there:
            wrong.append(f"data.{name}: {folder} was prepared with {there!r}, not {wanted!r}")
    if wrong:
        raise ConfigError("\n".join([*wrong, "leave these settings out, or prepare the panel again"]))


def _until(found: Loaded, last: int) -> Loaded:
    """Return what was known at grid index `last`; known covariates are kept."""
    panel, n_hidden = _cut(found.panel, last)
    if not panel.n_series:
        raise DataError(f"no series has begun by data.until={found.data.until}")
    gone = np.setdiff1d(found.panel.series_id, panel.series_id).tolist()
    lost = pl.DataFrame(
        {SERIES_ID: gone, REASON: [NO_TARGET] * len(gone)}, schema={SERIES_ID: pl.String, REASON: pl.String}
    )
    counts = replace(
        found.counts,
        rows_kept=found.counts.rows_kept - n_hidden,
        rows_after_until=found.counts.rows_after_until + n_hidden,
        steps_filled=int(np.isnan(panel.target).sum()),
        series_kept=panel.n_series,
        series_rejected=found.counts.series_rejected + len(gone),
    )
    rejects = pl.concat([found.rejects, lost], how="diagonal").sort(found.rejects.columns)
    return replace(found, panel=panel, counts=counts, rejects=rejects, stored_digest=None)


def _up_to_end(found: Loaded) -> Loaded:
    """Return the panel without the steps beyond the end on which its series agree: they are rejects."""
    panel = found.panel
    last = panel.start + panel.lengths - 1
    end = common_end(panel.start, last, observed_steps(panel), found.data.end_share)
    beyond = np.flatnonzero(last > end)
    if not len(beyond):
        return found
    late = panel.take(beyond).frame().drop_nulls(TARGET)
    late = late.filter(panel.grid.index(late[TIMESTAMP]) > end)
    shorter, n_late = _cut(panel, end)
    gone = np.setdiff1d(panel.series_id, shorter.series_id).tolist()
    rows = late.select(SERIES_ID, TIMESTAMP, pl.lit(LATE).alias(REASON), pl.col(TARGET).cast(pl.Float64).alias(VALUE))
    lost = pl.DataFrame({SERIES_ID: gone, REASON: [NO_TARGET] * len(gone)}, schema_overrides={SERIES_ID: pl.String})
    counts = replace(
        found.counts,
        rows_kept=found.counts.rows_kept - n_late,
        rows_rejected=found.counts.rows_rejected + n_late,
        steps_filled=int(np.isnan(shorter.target).sum()),
        series_kept=shorter.n_series,
        series_rejected=found.counts.series_rejected + len(gone),
    )
    rejects = pl.concat([found.rejects, rows, lost], how="diagonal_relaxed").sort(found.rejects.columns)
    return replace(found, panel=shorter, counts=counts, rejects=rejects, stored_digest=None)


def _cut(panel: Panel, last: int) -> tuple[Panel, int]:
    """Return the panel up to the last target at or before grid index `last`, and how many are later, as a copy.

    Known covariates are kept; series without a target are left out.
    """
    panels, n_hidden = [], 0
    for shard in panel.shards():
        index = np.arange(len(shard.target)) - np.repeat(shard.offsets[:-1] - shard.start, shard.lengths)
        observed = ~np.isnan(shard.target)
        seen = observed & (index <= last)
        n_hidden += int((observed & ~seen).sum())
        final = np.maximum.reduceat(np.where(seen, index, shard.start.repeat(shard.lengths) - 1), shard.offsets[:-1])
        lengths = final - shard.start + 1
        kept = lengths > 0
        inside = index <= np.repeat(final, shard.lengths)
        ahead = np.arange(shard.known.shape[1]) - np.repeat(
            shard.offsets[:-1] + shard.horizon * np.arange(shard.n_series), shard.lengths + shard.horizon
        )
        near = (ahead < np.repeat(lengths + shard.horizon, shard.lengths + shard.horizon)) & np.repeat(
            kept, shard.lengths + shard.horizon
        )
        panels.append(
            replace(
                shard,
                series_id=shard.series_id[kept],
                offsets=np.append(0, np.cumsum(lengths[kept])),
                start=shard.start[kept],
                target=shard.target[inside],
                past=shard.past[:, inside],
                known=shard.known[:, near],
                static_categories=shard.static_categories[kept],
                static_numbers=shard.static_numbers[kept],
            )
        )
    return concatenated(panels), n_hidden


def _check_folder(folder: Path) -> None:
    check_writable(folder)
    ours = is_prepared(folder) or (folder / _PARTS).exists()
    others = sorted(
        path.name
        for path in folder.iterdir()
        if path.name != LOCK and not _DATA_FOLDER.fullmatch(path.name) and not _UNFINISHED.fullmatch(path.name)
    )
    if others and not ours:
        raise OutputError(f"{folder} holds other files ({listing(others)}); choose an empty folder as output.path")


def _key(data: DataConfig, horizon: int, fingerprint: str | None) -> str:
    stated = [SCHEMA_VERSION, data.model_dump_json(), horizon, fingerprint]
    return hashlib.sha256(json.dumps(stated).encode()).hexdigest()


def _series(tables: Tables, data: DataConfig) -> pl.DataFrame:
    """Return series_id and rows of each series, sorted; null is one of them if it is there."""
    columns = validate.select(tables.rows, validate.columns_of(data, "series_id"), {})
    series = collect(columns.group_by(SERIES_ID).len("rows")).sort(SERIES_ID)
    if series.is_empty():
        raise DataError("the table has no rows")
    return series


def _settle(tables: Tables, data: DataConfig, series: pl.DataFrame) -> Settled:
    """Return what holds for all rows, from the longest series."""
    named = series.drop_nulls(SERIES_ID)
    if named.is_empty():
        raise DataError("no row has both a series_id and a timestamp")
    chosen = longest_series(named["rows"].to_numpy())
    names = named[SERIES_ID].gather(chosen)
    times = validate.select(tables.rows, validate.columns_of(data, "series_id", "timestamp"), {})
    sample = collect(times.filter(pl.col(SERIES_ID).is_in(names.implode())))
    timestamp = parsed(sample[TIMESTAMP])
    time_zone = data.time_zone or timestamp.dtype.time_zone  # type: ignore[attr-defined]
    if timestamp.null_count() == len(timestamp):
        raise DataError("no row has both a series_id and a timestamp")
    latest = _latest(times, data, time_zone) if data.aggregate else 0
    code = sample[SERIES_ID].cast(pl.Enum(names)).to_physical().cast(pl.Int64).to_numpy()
    there = timestamp.is_not_null()
    return settle_from(timestamp.filter(there), code[there.to_numpy()], data, time_zone, latest)


def _latest(times: pl.LazyFrame, data: DataConfig, time_zone: str | None) -> int:
    """Return the latest instant up to the end of the panel."""
    rows = times.drop_nulls()

    def instants_in(rows: pl.DataFrame) -> IntArray:
        return instants(parsed(rows[TIMESTAMP]), time_zone).drop_nulls().to_numpy()

    limits = collect(
        rows.group_by(SERIES_ID).agg(pl.col(TIMESTAMP).min().alias("first"), pl.col(TIMESTAMP).max().alias("last"))
    )
    first, last = (instants(parsed(limits[name]), time_zone) for name in ("first", "last"))
    there = first.is_not_null() & last.is_not_null()
    names = limits[SERIES_ID].filter(there)
    return latest_of(
        first.filter(there).to_numpy(),
        last.filter(there).to_numpy(),
        lambda position: instants_in(collect(rows.filter(pl.col(SERIES_ID) == names[position]))),
        data,
        time_zone,
    )


def _chunks(series: pl.DataFrame, rows: int) -> Iterator[tuple[str | None, str | None]]:
    """Yield first and last series of each part, of about `rows` rows; null as first: rows without a series_id too."""
    own = pl.when(pl.col(SERIES_ID).is_null()).then(0).otherwise("rows")
    before = series.select(own.cum_sum().cast(pl.Int64) - own.cast(pl.Int64)).to_series()
    for _, names in series.select(SERIES_ID, part=before // rows).group_by("part", maintain_order=True):
        yield names[SERIES_ID][0], names[SERIES_ID][-1]


def _some_series(tables: Tables, data: DataConfig, first: str | None, last: str | None) -> Tables:
    name = data.columns.series_id

    def between(frame: pl.LazyFrame) -> pl.LazyFrame:
        text = column(name) if frame.collect_schema()[name] == pl.String else column(name).cast(pl.String)
        inside = text.is_between(pl.lit(first or ""), pl.lit(last or ""))
        return frame.filter(inside | text.is_null() if first is None else inside)

    known = tables.known
    if known is not None and name in known.collect_schema():
        known = between(known)
    return Tables(between(tables.rows), known, tables.static)


def _write(
    folder: Path,
    parts: Sequence[Loaded],
    key: str,
    check: DataConfig | None = None,
    appended: Sequence[str] = (),
) -> None:
    """Write a panel that is given in parts, series by series, into a folder; a reader sees the old one or the new one.

    `check` has the limits on rejects, `appended` the keys of the tables that were appended, the latest last.
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
    panels = [part.panel for part in parts]
    digests = [panel.series_digests() for panel in panels]
    digest = digest_of(first.panel.grid, np.concatenate(digests))
    lengths = np.concatenate([panel.lengths for panel in panels])
    names = [[name.encode() for name in panel.series_id.tolist()] for panel in panels]
    name_sizes = np.fromiter((len(name) for part in names for name in part), dtype=np.int64)
    buffers: dict[str, Sequence[npt.NDArray[Any]]] = {
        "series_id": [np.frombuffer(b"".join(part), dtype=np.uint8) for part in names],
        _NAME_ENDS: [np.cumsum(name_sizes)],
        "offsets": [np.append(0, np.cumsum(lengths))],
        "digests": digests,
        **{name: [getattr(panel, name) for panel in panels] for name in _BUFFERS if name != "offsets"},
    }
    try:
        for name, values in buffers.items():
            _write_buffer(temporary / f"{name}.npy", values, axis=1 if name in ("past", "known") else 0)
        rejects.write_parquet(temporary / _REJECTS)
        content = digest + hashlib.sha256((temporary / _REJECTS).read_bytes()).hexdigest()
        data_folder = folder / f"data-{hashlib.sha256(content.encode()).hexdigest()[:16]}"
        sums = checksums(temporary)
        if data_folder.is_dir() and checksums(data_folder) == sums:
            shutil.rmtree(temporary)
        else:
            shutil.rmtree(data_folder, ignore_errors=True)  # It is damaged.
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
        _CHECKSUMS: sums,
        "horizon": first.panel.horizon,
        "grid": first.panel.grid.to_json(),
        "data": first.data.without_source().model_dump(mode="json"),
        "categories": first.categories,
        "counts": asdict(counts),
        _APPENDED: list(appended),
    }
    write_text_atomic(json.dumps(sealed(index), indent=1) + "\n", folder / PREPARED)
    for other in folder.glob("data-*"):
        if other != data_folder and _DATA_FOLDER.fullmatch(other.name):  # Open memory maps live on.
            shutil.rmtree(other, ignore_errors=True)


def _write_buffer(path: Path, parts: Sequence[npt.NDArray[Any]], axis: int) -> None:
    """Write arrays joined along an axis as one .npy file."""
    shape = list(parts[0].shape)
    shape[axis] = sum(part.shape[axis] for part in parts)
    dtype = np.result_type(*(part.dtype for part in parts))
    if 0 in shape:
        np.save(path, np.empty(shape, dtype))
        return
    # Ordinary writes: a disk that fills up is an error here, where a memory map would end the process (SIGBUS).
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": tuple(shape)}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for index in np.ndindex(*shape[:axis]):
            for part in parts:
                file.write(np.ascontiguousarray(part[index], dtype).reshape(-1).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())


def _read_index(folder: Path) -> dict[str, Any]:
    try:
        index: dict[str, Any] = json.loads((folder / PREPARED).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{folder}: no prepared panel; `forecast data prepare` writes one") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{folder}: {PREPARED} can't be read ({error}); prepare the panel again") from error
    version = index.get("schema_version") if isinstance(index, dict) else None
    if version not in _READABLE:
        raise DataError(
            f"{folder}: a panel of schema version {version}, this program reads {SCHEMA_VERSION}; prepare it again"
        )
    wrong = [name for name, kind in _INDEX.items() if not isinstance(index.get(name), kind)]
    if wrong or not _DATA_FOLDER.fullmatch(index["folder"]) or not is_whole(index):
        why = f"lacks {listing(wrong)}" if wrong else "does not match its hash"
        raise DataError(f"{folder}: {PREPARED} is damaged, it {why}; prepare the panel again")
    return index


def _open(folder: Path) -> Loaded:
    """Return a written panel as it is, without calendar. Raises DataError if it is damaged."""
    for _ in range(_ATTEMPTS):
        stamp = _stamp(folder)
        index = _read_index(folder)
        try:
            return _open_buffers(folder, index)
        except DataError:
            if _stamp(folder) == stamp:
                raise
    raise DataError(f"{folder}: other jobs replace this panel all the time; wait for them to end")


def _stamp(folder: Path) -> tuple[int, int] | None:
    """Return what differs between two versions of an index, None if there is none."""
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
    for name, size in index["files"].items():
        actual = _size(buffers / name)
        if actual != size:
            state = "is missing" if actual is None else f"has {actual:,} bytes instead of {size:,}"
            raise DataError(f"{folder}: {buffers.name}/{name} {state}; prepare the panel again")
    try:
        damaged = damaged_files(buffers, index.get(_CHECKSUMS, {}))
        if damaged:
            raise DataError(
                f"{folder}: {len(damaged):,} files of {buffers.name} are damaged, their content is not what was "
                f"written: {listing(damaged)}; prepare the panel again"
            )
        loaded = _map(buffers, index)
    except (*UNREADABLE, *_MALFORMED) as error:
        raise DataError(
            f"{folder}: the panel in {buffers.name} is damaged ({type(error).__name__}: {error}); prepare it again"
        ) from error
    try:
        check_structure(loaded.panel, len(loaded.data.static_covariates))
    except DataError as error:
        raise DataError(f"{folder}: {buffers.name} holds no panel: {error}; prepare it again") from error
    return loaded


def _map(buffers: Path, index: dict[str, Any]) -> Loaded:
    """Return the panel in mapped files. Raises whatever damaged files make NumPy, Polars and pydantic raise."""

    def buffer(name: str) -> npt.NDArray[Any]:
        path = buffers / f"{name}.npy"
        try:
            values: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        except ValueError:  # An empty file can't be mapped.
            values = np.load(path, allow_pickle=False)
        return values

    panel = Panel(
        grid=Grid.from_json(index["grid"]),
        series_id=_read_names(buffer),
        **{name: buffer(name) for name in _BUFFERS},
        calendar=np.empty((0, 0), dtype=np.float32),
        calendar_start=0,
        clock_shift=np.empty(0, dtype=np.int64),
        horizon=index["horizon"],
    )
    return Loaded(
        panel=panel,
        data=DataConfig.model_validate(index["data"]),
        categories={name: tuple(values) for name, values in index["categories"].items()},
        rejects=pl.read_parquet(buffers / _REJECTS),
        counts=Counts(**index["counts"]),
        stored_digest=index["digest"],
    )


def _read_names(buffer: Callable[[str], npt.NDArray[Any]]) -> Names:
    """Return the names of the series, from their text end to end, in UTF-8, and the byte where each one ends."""
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
