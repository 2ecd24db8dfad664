"""Appending the rows of a table to a prepared panel, with the detection of revised targets."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal

import numpy as np
import polars as pl

from forecast.config import DataConfig, SourceConfig
from forecast.data.availability import unavailable
from forecast.data.files import locked
from forecast.data.ingest.covariates import with_features
from forecast.data.ingest.load import as_long, find_categories, load_part, with_table_classes, without_unavailable
from forecast.data.ingest.loaded import Loaded, with_unread
from forecast.data.ingest.rejects import NO_TARGET, Counts, check_rejects
from forecast.data.ingest.timestamps import ResolvedTime
from forecast.data.panel import IntArray, Panel, as_names, is_among
from forecast.data.prepared.merge import merge_panels
from forecast.data.prepared.open import open_prepared
from forecast.data.prepared.parts import PARTS, clear_leftovers, resolve_panel_time, series_of
from forecast.data.prepared.prepare import Prepared
from forecast.data.prepared.storage import APPENDED, open_panel, read_index, write_panel
from forecast.data.sources.open import Tables
from forecast.errors import DataError, listing
from forecast.names import REASON, SERIES_ID, TIMESTAMP, VALUE

_MAX_KEYS: Final = 1000
Revisions = Literal["accept", "refuse", "fail"]


@dataclass(frozen=True)
class Appended(Prepared):
    """The result of `append`."""

    new_steps: int = 0
    """Steps that had no value before."""
    new_series: int = 0
    revisions: pl.DataFrame = field(default_factory=pl.DataFrame, repr=False)
    """series_id, timestamp, before, after: past targets for which the new rows have different values, or null where
    nothing was available."""


def append(
    folder: Path,
    tables: Tables,
    source: SourceConfig,
    *,
    revisions: Revisions = "accept",
    check_source: Callable[[], None] | None = None,
) -> Appended:
    """Add the rows of another table to a prepared panel, read with the settings of the panel.

    The original table is not read again. Targets that differ from those of the panel are revisions: accepted, refused
    (they become rejects), or an error. The rows and rejects of a table that was appended before, in any order of rows,
    are not counted again; if it was the latest one, nothing is written.
    `check_source` as for `prepare`. Raises DataError as `load_panel`, OutputError.
    """
    read_index(folder)  # Fails before anything is written if there is no panel.
    with locked(folder):
        clear_leftovers(folder, keep=None)
        old = open_panel(folder)
        data = old.data.with_source(source)
        new = _read_new(tables, data, old)
        check_rejects(new.rejects, new.counts, data, old.panel.grid)
        if check_source:
            check_source()
        key = _content_key(new)
        earlier = read_index(folder).get(APPENDED, [])
        revised_targets, n_filled = _compare(old.panel, new.panel)
        if new.classes is not None:
            names = pl.Series(new.classes, dtype=pl.String)
            revised_targets = revised_targets.with_columns(
                names.gather(revised_targets[column].cast(pl.Int64)).alias(column) for column in ("before", "after")
            )
        if revised_targets.height and revisions == "fail":
            raise _contradiction(revised_targets)
        if earlier and earlier[-1] == key:
            return Appended(open_prepared(folder, old.data, old.panel.horizon), True, 0, 0, revised_targets)
        joint = old
        if key not in earlier:
            joint = _with_rejects(old, new, revised_targets if revisions == "refuse" else revised_targets.clear())
        appended = [*earlier, key][-_MAX_KEYS:]
        _write_merged(folder, joint, new, keep=revisions == "refuse", appended=appended)
        added = int((~is_among(new.panel.series_id, old.panel.series_id)).sum())
        loaded = open_prepared(folder, old.data, old.panel.horizon)
        return Appended(loaded, False, n_filled, added, revised_targets)


def _read_new(tables: Tables, data: DataConfig, old: Loaded) -> Loaded:
    """Return the rows of a table as a panel on the grid of the old one, with its categories and new ones after them."""
    tables, _ = as_long(tables, data, old.categories)
    target = data.columns.target
    classes = {target: old.categories[target]} if target in old.categories else {}
    table_categories = with_table_classes(tables, data, {**find_categories(tables, data), **classes})
    categories = {
        name: (*values, *(value for value in table_categories.get(name, ()) if value not in values))
        for name, values in old.categories.items()
    }
    resolved = ResolvedTime(data, old.panel.grid)
    if data.aggregate is not None:
        resolved = replace(resolve_panel_time(tables, data, series_of(tables, data)), grid=old.panel.grid)
    return with_unread(load_part(tables, resolved, old.panel.horizon, categories), tables)


def _with_rejects(old: Loaded, new: Loaded, refused: pl.DataFrame) -> Loaded:
    """Return the old panel with the rejects and counts of both tables, and with refused revisions as rejects."""
    rejects, counts = [old.rejects, new.rejects], _joint_counts(old, new)
    if refused.height:
        value = pl.lit(None) if new.classes is not None else pl.col("after").cast(pl.Float64)
        rows = refused.select(SERIES_ID, TIMESTAMP, pl.lit("revision of the past").alias(REASON), value.alias(VALUE))
        rejects.append(rows.cast(pl.Schema(old.rejects.schema)))
        counts = replace(
            counts,
            rows_kept=counts.rows_kept - refused.height,
            rows_rejected=counts.rows_rejected + refused.height,
        )
    return replace(old, rejects=pl.concat(rejects), counts=counts)


def _write_merged(folder: Path, joint: Loaded, new: Loaded, *, keep: bool, appended: Sequence[str]) -> None:
    """Write the merged panel of `joint` and `new`, part by part, with the rejects and counts of `joint`."""
    work_folder = folder / PARTS / "append"
    shutil.rmtree(work_folder, ignore_errors=True)
    counts = replace(joint.counts, steps_filled=0)
    parts: list[Path] = []
    for number, panel in enumerate(merge_panels(joint.panel, new.panel, keep=keep)):
        part = Loaded(panel, joint.data, new.categories, joint.rejects.clear(), Counts())
        if not parts:
            part = replace(part, rejects=joint.rejects, counts=counts)
        part = _with_gaps(part)
        parts.append(work_folder / f"{number:05d}")
        write_panel(parts[-1], [part], "")
    write_panel(folder, [open_panel(part) for part in parts], "appended", appended=appended)
    shutil.rmtree(folder / PARTS)


def _with_gaps(part: Loaded) -> Loaded:
    """Return a part of a merged panel with its derived features and the count of its gaps.

    A series without an available step up to now is a reject.
    """
    n_series = part.panel.n_series
    trimmed = without_unavailable(part)
    n_gaps = int(np.isnan(trimmed.panel.target).sum())
    n_left_out = n_series - trimmed.panel.n_series
    counts = replace(
        trimmed.counts,
        steps_filled=n_gaps,
        series_kept=part.counts.series_kept - n_left_out,
        series_rejected=part.counts.series_rejected + n_left_out,
    )
    return replace(trimmed, panel=with_features(trimmed.panel, part.data), counts=counts)


def _contradiction(revised: pl.DataFrame) -> DataError:
    """Return the error for targets that differ from those of the panel."""
    examples = [
        (*row[:2], *(value if isinstance(value, str) else _number(value) for value in row[2:]))
        for row in revised.head(5).iter_rows()
    ]
    listed = listing(f"{row[0]} at {row[1]} ({row[2]}, now {row[3]})" for row in examples)
    return DataError(
        f"{revised.height:,} values of {revised[SERIES_ID].n_unique():,} series differ from those of the "
        f"prepared panel: {listed}; set append.revisions=accept to take them over, or refuse to reject them"
    )


def _number(value: float | None) -> str:
    return "not available" if value is None else f"{value:g}"


def _content_key(loaded: Loaded) -> str:
    """Return a hash of the panel and the rejects of a table: the same for any order of its rows."""
    rejects = loaded.rejects.sort(loaded.rejects.columns).write_json().encode()
    content = [loaded.panel.digest(), hashlib.sha256(rejects).hexdigest(), loaded.counts.to_json()]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _joint_counts(old: Loaded, new: Loaded) -> Counts:
    """Return the counts of two tables that make one panel."""
    series_kept = np.union1d(old.panel.series_id, new.panel.series_id)
    rejects = (loaded.rejects.filter(pl.col(REASON) == NO_TARGET)[SERIES_ID].drop_nulls() for loaded in (old, new))
    all_series = np.union1d(series_kept, as_names(name for names in rejects for name in names))
    series = {
        "series_in": len(all_series),
        "series_kept": len(series_kept),
        "series_rejected": len(all_series) - len(series_kept),
    }
    return replace(old.counts + new.counts, **series)


def _compare(old: Panel, new: Panel) -> tuple[pl.DataFrame, int]:
    """Return the targets that differ (series_id, timestamp, before, after), and the number of new values."""
    parts, n_filled = [], 0
    position = np.searchsorted(old.series_id, new.series_id)
    in_old = old.series_id[np.minimum(position, old.n_series - 1)] == new.series_id
    for number, shard in _numbered(new):
        number_by_step = np.repeat(number, shard.lengths)
        step = np.arange(len(number_by_step)) - np.repeat(shard.offsets[:-1], shard.lengths)
        index = shard.start.repeat(shard.lengths) + step
        position_in_old = index - old.start[np.where(in_old, position, 0)][number_by_step]
        inside = (
            in_old[number_by_step]
            & (position_in_old >= 0)
            & (position_in_old < old.lengths[np.where(in_old, position, 0)][number_by_step])
        )
        before = np.full(len(number_by_step), np.nan, dtype=old.target.dtype)
        before[inside] = old.target[(old.offsets[position[number_by_step[inside]]] + position_in_old[inside])]
        has_value = ~np.isnan(shard.target)
        n_filled += int((has_value & np.isnan(before)).sum())
        same = before == shard.target.astype(
            before.dtype
        )  # Compared in the type of the panel: rounding is not a revision.
        changed = np.flatnonzero((has_value | unavailable(shard)) & ~np.isnan(before) & ~same)
        parts.append(
            pl.DataFrame(
                {
                    SERIES_ID: pl.Series(new.series_id[number_by_step[changed]].tolist(), dtype=pl.String),
                    TIMESTAMP: new.grid.timestamps(index[changed]),
                    "before": before[changed],
                    "after": pl.Series(shard.target[changed]).fill_nan(None),
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
