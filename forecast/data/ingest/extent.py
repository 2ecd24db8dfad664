"""The end of a panel: the step on which its series agree, robust to mistyped dates.

`placement` puts rows on the grid; `timestamps` hides rows after data.until.
"""

import logging
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import cache
from typing import Final

import numpy as np
import polars as pl

from forecast.data.availability import reported
from forecast.data.ingest.regularise import ranges
from forecast.data.ingest.rejects import DISTANT, LATE, SHOWN, offenders
from forecast.data.ingest.rows import BoolArray, Rows
from forecast.data.panel import IntArray, Panel
from forecast.data.time.frequency import clock
from forecast.data.time.grid import Grid
from forecast.names import REASON, SERIES_ID, TIMESTAMP

log = logging.getLogger(__name__)

Observed = Callable[[int], IntArray]
"""Maps the number of a series to its grid indices with an observed target, ascending."""

# Series agree on an end if their last steps lie within this many steps.
_NEAR: Final = 7

# Rows after a gap are detached if the gap has this many times as many steps, and the rows before it are this many times
# as many.
_GAP_RATIO: Final = 4

# The largest share and number of series whose detached rows count as mistakes.
_MINORITY: Final = 0.2
_MAX_MINORITY: Final = 1000

# The smallest panel for which a single series at the end is logged.
_LEAST_SERIES: Final = 3

# A gap of more steps than this, and over twice the rest of its series, means a mistyped date.
_LONG_GAP: Final = 1000


def common_end(first: IntArray, last: IntArray, observed: Observed, share: float) -> int:
    """Return the grid index at which a panel ends; `first` and `last` [S] are the observed ends of its series.

    This is the latest step of any series, unless the steps beyond an earlier one are doubtful in one of these ways:

    - Of the series that end there (or up to 6 steps before, but no further than the jump to the next end) and the later
      ones, no more than `share` are later, and by no more steps than the median of the others has.
    - Of those that end within the length of the jump before, no more than `share` are later, and each of these has
      fewer rows than a quarter of the steps of the jump.
    - All later steps are detached from their own series: the jump to them is at least 4 steps for each of them, and
      twice as long as any before it, they are a quarter of the earlier ones at most, and at most a fifth of the series
      around that end (one, where these are few) have such steps.

    So series that ended early, at any time and however many, do not matter, nor does it where a fair share of the
    series has newer rows than the others. Of the latest series only, the steps are read. 0 as `share` turns the rules
    off.
    """
    if not share or len(last) < 2:
        return int(last.max())
    last = _attached_ends(first, last, observed, share)
    return _agreed_end(first, last, share, _end_without_stragglers(last, observed, share))


def _agreed_end(first: IntArray, last: IntArray, share: float, end: int) -> int:
    """Return the earliest step up to `end` that all but a `share` of the series around it and behind it end at."""
    last = np.minimum(last, end)
    ends, from_end, doubtful = _doubtful_ends(last, _NEAR, share)
    for number in doubtful:
        near_end = (last > from_end[number]) & (last <= ends[number])
        later = last > ends[number]
        steps = (last - np.maximum(first - 1, ends[number]))[later].max()
        if steps <= np.median(last[near_end] - first[near_end] + 1):
            return int(ends[number])
    return int(ends[-1])


def _end_without_stragglers(last: IntArray, observed: Observed, share: float) -> int:
    """Return the step beyond which few series have a few rows each, after a jump within which all others end."""
    ends, _, doubtful = _doubtful_ends(last, np.iinfo(np.int64).max, share)
    end = int(ends[-1])
    for number in reversed(doubtful):
        later = np.flatnonzero(last > ends[number])
        max_rows = (ends[number + 1] - ends[number]) // _GAP_RATIO
        if len(later) > _MAX_MINORITY or any(
            np.count_nonzero(observed(series) > ends[number]) > max_rows for series in later.tolist()
        ):
            break
        end = int(ends[number])
    return end


def _doubtful_ends(last: IntArray, furthest: int, share: float) -> tuple[IntArray, IntArray, list[int]]:
    """Return the distinct ends, from which step on others count as equal to each, and the positions of doubtful ends.

    Earlier ends count as equal within the length of the jump to the next end, and within `furthest` steps. An end is
    doubtful if no more than a `share` of the series around and after it are later.
    """
    ends, count = np.unique(last, return_counts=True)
    from_end = ends[:-1] - np.minimum(np.diff(ends), furthest)
    n_up_to = np.cumsum(count)
    n_agreed = n_up_to[:-1] - np.append(0, n_up_to)[np.searchsorted(ends, from_end, side="right")]
    n_beyond = len(last) - n_up_to[:-1]
    return ends, from_end, np.flatnonzero(n_beyond <= share * (n_agreed + n_beyond)).tolist()


def _attached_ends(first: IntArray, last: IntArray, observed: Observed, share: float) -> IntArray:
    """Return the last step of each series, [S], ignoring detached rows beyond the end of the other series."""
    max_detached = min(max(1, int(_MINORITY * len(last))), _MAX_MINORITY)
    if np.count_nonzero(last == last.max()) > max_detached:
        return last
    edges: dict[int, tuple[int, int, int]] = {}
    for series in np.argsort(-last, kind="stable")[: max_detached + 1].tolist():
        edge = _detached_tail(observed(series))
        if edge is None:
            break
        edges[series] = edge
    if not 0 < len(edges) <= min(max_detached, len(last) - 1):
        return last

    def without_tails(edges: dict[int, tuple[int, int, int]]) -> IntArray:
        attached = last.copy()
        attached[list(edges)] = [before for before, _, _ in edges.values()]
        return attached

    trimmed = without_tails(edges)
    end = _agreed_end(first, trimmed, share, int(trimmed.max()))
    late = {series: edge for series, edge in edges.items() if edge[1] - end >= _GAP_RATIO * edge[2]}
    if not late:
        return last
    attached = without_tails(late)
    jump = min(after for _, after, _ in late.values()) - end
    n_around = int(np.count_nonzero(attached > end - jump))
    return attached if len(late) <= max(1, _MINORITY * n_around) and len(late) < n_around else last


def _detached_tail(steps: IntArray) -> tuple[int, int, int] | None:
    """Return the steps before and after the gap that detaches the last rows of a series, and the number of these."""
    gap = np.diff(steps)
    n_behind = np.arange(len(gap), 0, -1)
    earlier_gap = np.maximum.accumulate(np.append(1, gap[:-1])) if len(gap) else gap
    detached = (
        (gap >= _GAP_RATIO * n_behind) & (gap >= 2 * earlier_gap) & (len(steps) - n_behind >= _GAP_RATIO * n_behind)
    )
    if not detached.any():
        return None
    position = int(np.argmax(detached))
    return int(steps[position]), int(steps[position + 1]), int(n_behind[position])


def observed_rows(rows: Rows, n_series: int) -> tuple[IntArray, IntArray, Observed]:
    """Return first and last observed step of each observed series, [S], and a function to all steps by position."""
    has_target = ~np.isnan(rows.target)
    first, last = rows.observed_limits(n_series)
    series = np.flatnonzero(first <= last)
    starts = np.cumsum(rows.runs.length) - rows.runs.length

    @cache
    def by_series() -> tuple[IntArray, IntArray]:
        order = np.argsort(rows.runs.series, kind="stable")
        return order, rows.runs.series[order]

    def observed(position: int) -> IntArray:
        order, sorted_series = by_series()
        begin, end = np.searchsorted(sorted_series, series[position] + np.array([0, 1]))
        series_runs = order[begin:end]
        entries = ranges(starts[series_runs], rows.runs.length[series_runs])
        steps: IntArray = np.unique(rows.index[entries[has_target[entries]]])
        return steps

    return first[series], last[series], observed


def observed_steps(panel: Panel) -> Observed:
    """Return a function from the number of a series to its steps that are observed, or where nothing was available."""

    def observed(series: int) -> IntArray:
        steps: IntArray = panel.start[series] + np.flatnonzero(reported(panel.rows(series, series + 1)))
        return steps

    return observed


def distant_rows(rows: Rows, n_series: int) -> BoolArray | None:
    """Return a mask of rows far from the rest of their series, [rows]; None if there are none.

    A gap of over 1,000 steps, twice as long as the rest of the series, separates them from the rest, which has at
    least 4 times as many rows, or 2 rows where one is separated.
    """
    if not len(rows):
        return None
    first, last = rows.limits(n_series)
    count = np.bincount(rows.runs.series[rows.runs.series >= 0], rows.runs.length[rows.runs.series >= 0], n_series)
    suspects = (last - first > _LONG_GAP) & (3 * (count - 1) <= last - first) & (count >= 3)
    if not suspects.any():
        return None
    entries = np.flatnonzero(rows.runs.rows(suspects))
    table = pl.DataFrame(
        {"at": entries, "series": rows.runs.series_by_row()[entries], "index": rows.index[entries]}
    ).sort("series", "index")
    series, index = table["series"].to_numpy(), table["index"].to_numpy()
    begin = np.flatnonzero(np.diff(series, prepend=-1))
    gap = np.diff(index, prepend=index[0])
    gap[begin] = 0
    widest_gap = np.maximum.reduceat(gap, begin)
    split = (widest_gap > _LONG_GAP) & (widest_gap > 2 * (last - first)[series[begin]] / 3)
    is_distant = np.zeros(len(rows), dtype=np.bool_)
    for number in np.flatnonzero(split).tolist():
        end = begin[number + 1] if number + 1 < len(begin) else len(series)
        middle = begin[number] + int(np.argmax(gap[begin[number] : end]))
        fewer, more = sorted(
            (slice(begin[number], middle), slice(middle, end)), key=lambda part: part.stop - part.start
        )
        n_fewer, n_more = fewer.stop - fewer.start, more.stop - more.start
        if n_more >= (_GAP_RATIO * n_fewer if n_fewer > 1 else 2):
            is_distant[table["at"].to_numpy()[fewer]] = True
    return is_distant if is_distant.any() else None


def any_late_at(rejects: pl.DataFrame, grid: Grid, moments: Sequence[datetime | None]) -> bool:
    """Return whether any row rejected as too late lies at one of some moments."""
    late = rejects.filter(pl.col(REASON).is_in([LATE, DISTANT]))[TIMESTAMP]
    if not len(late):
        return False
    indices = [grid.floor(moment) for moment in moments if moment is not None]
    return bool(np.isin(grid.floor_of(clock(late, grid.frequency, grid.time_zone).to_numpy()), indices).any())


def warn_late(rejects: pl.DataFrame, end: int, grid: Grid, n_series: int) -> None:
    """Log the rows beyond the end of the panel."""
    late = rejects.filter(pl.col(REASON) == LATE)
    if late.is_empty():
        return
    log.warning(
        "the panel ends at %s, where its series agree; %s row(s) of %s of %s series are later and rejected: %s%s; "
        "if these dates are right, set data.end_share=0",
        grid.timestamps(np.array([end]))[0],
        f"{late.height:,}",
        f"{late[SERIES_ID].n_unique():,}",
        f"{n_series:,}",
        ", ".join(offenders(late.head(SHOWN))),
        ", ..." if late.height > SHOWN else "",
    )


def warn_hole(panel: Panel) -> None:
    """Log the gap before the last steps of the panel, if every series that reaches its end is detached."""
    last = panel.start + panel.lengths - 1
    latest_series = np.flatnonzero(last == last.max())
    edge = _detached_tail(observed_steps(panel)(int(latest_series[0])))
    if edge is None or len(latest_series) <= _MINORITY * panel.n_series:
        return
    _, after, count = edge
    before, after_hole, end = panel.grid.timestamps(np.array([edge[0], after, last.max()])).to_list()
    log.warning(
        "the panel ends at %s, %s steps after a hole in its rows: %s has none between %s and %s, and %s since; "
        "if these dates are wrong, set data.until=%s",
        end,
        f"{last.max() - edge[0]:,}",
        panel.series_id[latest_series[0]],
        before,
        after_hole,
        f"{count:,}",
        before,
    )


def warn_lone(panel: Panel) -> None:
    """Log the single series that ends a few steps after the others, which end together."""
    last = panel.start + panel.lengths - 1
    end = int(last.max())
    latest_series = np.flatnonzero(last == end)
    if len(latest_series) > 1 or panel.n_series < _LEAST_SERIES:
        return
    previous_end = int(np.delete(last, latest_series).max())
    n_together = int(np.count_nonzero(last == previous_end))
    if n_together < max(_LEAST_SERIES - 1, (panel.n_series - 1) / 2) or end - previous_end > _NEAR:
        return
    end_time, previous_time = panel.grid.timestamps(np.array([end, previous_end])).to_list()
    log.warning(
        "the panel ends at %s, which only %s of %s series reaches; %s end at %s, %s step(s) before: if that date is "
        "wrong, set data.until=%s",
        end_time,
        panel.series_id[latest_series[0]],
        f"{panel.n_series:,}",
        f"{n_together:,}",
        previous_time,
        f"{end - previous_end:,}",
        previous_time.isoformat(),
    )


def warn_distant(rejects: pl.DataFrame) -> None:
    """Log the rows far from the rest of their series."""
    distant_rejects = rejects.filter(pl.col(REASON).str.ends_with(DISTANT))
    if distant_rejects.height:
        log.warning(
            "%s row(s) have a %s and are rejected: %s%s; if these dates are right, set data.end_share=0",
            f"{distant_rejects.height:,}",
            DISTANT,
            ", ".join(offenders(distant_rejects.head(SHOWN))),
            ", ..." if distant_rejects.height > SHOWN else "",
        )
