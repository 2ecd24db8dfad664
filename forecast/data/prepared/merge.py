"""A prepared panel and new rows, block by block."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from forecast.data.ingest.regularise import ranges
from forecast.data.ingest.rows import BoolArray
from forecast.data.panel import IntArray, Names, Panel, TargetArray


def merge_panels(old: Panel, new: Panel, *, keep: bool) -> Iterator[Panel]:
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
