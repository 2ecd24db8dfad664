"""Merging a prepared panel with the panel of new rows, block by block."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from forecast.data.availability import mask_unavailable
from forecast.data.ingest.regularise import ranges
from forecast.data.ingest.rows import BoolArray
from forecast.data.panel import IntArray, Names, Panel, TargetArray


def merge_panels(old: Panel, new: Panel, *, keep: bool) -> Iterator[Panel]:
    """Yield the merged panel in shards; a new value replaces an old one, except for targets with `keep`."""
    names = np.union1d(old.series_id, new.series_id)
    sources = [(old, *_locate(old, names)), (new, *_locate(new, names))]
    starts = np.stack(
        [np.where(present, panel.start[number], np.iinfo(np.int64).max) for panel, number, present in sources]
    )
    ends = np.stack([np.where(present, (panel.start + panel.lengths)[number], 0) for panel, number, present in sources])
    start = starts.min(axis=0)
    limits = np.where([present for _, _, present in sources], ends, np.iinfo(np.int64).min)
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


def _locate(panel: Panel, names: Names) -> tuple[IntArray, BoolArray]:
    """Return the number of each named series in the panel (0 if absent), and whether it is present."""
    number = np.minimum(np.searchsorted(panel.series_id, names), panel.n_series - 1)
    present = panel.series_id[number] == names
    return np.where(present, number, 0), present


def _merge_block(
    sources: Sequence[tuple[Panel, IntArray, BoolArray]],
    names: Names,
    block: slice,
    start: IntArray,
    lengths: IntArray,
    *,
    keep: bool,
) -> Panel:
    """Return the merged panel of a block of series, which begin at `start` and have `lengths` steps."""
    template = sources[0][0]
    horizon, offsets = template.horizon, np.append(0, np.cumsum(lengths))
    n_past = sources[1][0].past.shape[0]  # Without derived features.
    kind = np.result_type(*(panel.target.dtype for panel, _, _ in sources))
    target = np.full((1, int(offsets[-1])), np.nan, dtype=kind)
    past = np.full((n_past, int(offsets[-1])), np.nan, dtype=np.float32)
    known = np.full((len(template.known), int(offsets[-1]) + horizon * len(names)), np.nan, dtype=np.float32)
    available = np.full((len(template.available), known.shape[1]), np.nan, dtype=np.float32)
    weight = np.full((len(template.weight), past.shape[1]), np.nan, dtype=np.float32)
    codes = np.zeros((len(names), template.static_categories.shape[1]), dtype=np.int64)
    numbers = np.full((len(names), template.static_numbers.shape[1]), np.nan, dtype=np.float32)
    for order, (panel, series_numbers, present) in enumerate(sources):
        rows, number = np.flatnonzero(present[block]), series_numbers[block][present[block]]
        first, begin, steps = (
            offsets[rows] + panel.start[number] - start[rows],
            panel.offsets[number],
            panel.lengths[number],
        )
        target_entries, source_entries = ranges(first, steps), ranges(begin, steps)
        _overlay(target, target_entries, panel.target[None, source_entries], only_gaps=keep and order == 1)
        _overlay(past, target_entries, panel.past[:n_past, source_entries])
        if len(weight):
            _overlay(weight, target_entries, panel.weight[:, source_entries])
        # The horizon of the old panel may lie inside the longer series; steps beyond the merged series are dropped.
        reach = np.minimum(steps + horizon, offsets[rows + 1] + horizon - first)
        target_entries, source_entries = ranges(first + rows * horizon, reach), ranges(begin + number * horizon, reach)
        _overlay(known, target_entries, panel.known[:, source_entries])
        if len(available):
            _overlay(available, target_entries, panel.available[:, source_entries])
        codes[rows] = np.where(panel.static_categories[number] > 0, panel.static_categories[number], codes[rows])
        _overlay(numbers.T, rows, panel.static_numbers[number].T)
    merged = replace(
        template,
        series_id=names,
        offsets=offsets,
        start=start,
        target=target[0],
        past=past,
        known=known,
        static_categories=codes,
        static_numbers=numbers,
        available=available,
        weight=weight,
    )
    if keep:  # A step is out of stock unless it has a target already.
        sold = np.repeat(np.arange(len(names)) * horizon, lengths) + np.arange(len(merged.target))
        available[:, sold[~np.isnan(merged.target)]] = 1
    return mask_unavailable(merged)[0]


def _overlay(buffer: TargetArray, columns: IntArray, values: TargetArray, *, only_gaps: bool = False) -> None:
    """Write the values that are not NaN into columns of a buffer; with `only_gaps`, only over NaN."""
    current = buffer[:, columns]
    present = ~np.isnan(values)
    if only_gaps:
        present &= np.isnan(current)
    buffer[:, columns] = np.where(present, values, current)
