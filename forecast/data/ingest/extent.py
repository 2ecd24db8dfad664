"""Where a panel ends: the step on which its series agree, whatever a mistyped date says.

Placing rows on the grid is up to `load`, hiding what the user calls later (data.until) up to `times`.
"""

import logging
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import cache
from typing import Final

import numpy as np
import polars as pl

from forecast.data.ingest.regularise import ranges
from forecast.data.ingest.rejects import DISTANT, LATE, SHOWN, offenders
from forecast.data.ingest.rows import BoolArray, Rows
from forecast.data.panel import IntArray, Panel
from forecast.data.time.frequency import clock
from forecast.data.time.grid import Grid
from forecast.names import REASON, SERIES_ID, TIMESTAMP

log = logging.getLogger(__name__)

Observed = Callable[[int], IntArray]
"""The grid indices with an observed target of the series of a number, ascending."""

# Series agree on an end if theirs lie within so many steps.
_NEAR: Final = 7

# Rows behind a hole are detached if it has this many times as many steps, and they are this much fewer than the others.
_HOLE: Final = 4

# The largest share and number of the series that may have detached rows, where these are to be wrong.
_MINORITY: Final = 0.2
_FEW: Final = 1000

# Series of which one alone reaches the end, where that is worth a word.
_LEAST_SERIES: Final = 3

# A hole of so many steps, longer than twice the rest of its series, is a date typed wrong.
_FAR: Final = 1000


def common_end(first: IntArray, last: IntArray, observed: Observed, share: float) -> int:
    """Return the grid index at which a panel ends; `first` and `last` [S] are the observed ends of its series.

    This is the latest step of any series, unless the steps beyond an earlier one are doubtful in one of these ways:

    - Of the series that end there (or up to 6 steps before, but no further than the jump to the next end) and the later
      ones, no more than `share` are later, and by no more steps than the median of the others has.
    - Of those that end as far before as the jump goes on, no more than `share` are later, and each of these has fewer
      rows than a quarter of the steps of the jump.
    - All later steps are detached from their own series: the jump to them is at least 4 steps for each of them, and
      twice as long as any before it, they are a quarter of the earlier ones at most, and at most a fifth of the series
      around that end (one, where these are few) have such steps.

    So series that ended early, at any time and however many, do not matter, nor does it where a fair share of the
    series has newer rows than the others. Of the latest series only, the steps are read. 0 as `share` turns the rules
    off.
    """
    if not share or len(last) < 2:
        return int(last.max())
    last = _attached(first, last, observed, share)
    return _agreed(first, last, share, _lone(last, observed, share))


def _agreed(first: IntArray, last: IntArray, share: float, end: int) -> int:
    """Return the earliest step up to `end` that all but a `share` of the series around it and behind it end at."""
    last = np.minimum(last, end)
    ends, since, doubtful = _doubtful(last, _NEAR, share)
    for number in doubtful:
        around = (last > since[number]) & (last <= ends[number])
        later = last > ends[number]
        steps = (last - np.maximum(first - 1, ends[number]))[later].max()
        if steps <= np.median(last[around] - first[around] + 1):
            return int(ends[number])
    return int(ends[-1])


def _lone(last: IntArray, observed: Observed, share: float) -> int:
    """Return the step beyond which few series have a few rows each, after a jump within which the others all end."""
    ends, _, doubtful = _doubtful(last, np.iinfo(np.int64).max, share)
    end = int(ends[-1])
    for number in reversed(doubtful):
        later = np.flatnonzero(last > ends[number])
        most = (ends[number + 1] - ends[number]) // _HOLE
        if len(later) > _FEW or any(np.count_nonzero(observed(one) > ends[number]) > most for one in later.tolist()):
            break
        end = int(ends[number])
    return end


def _doubtful(last: IntArray, furthest: int, share: float) -> tuple[IntArray, IntArray, list[int]]:
    """Return the different ends, from when on others count as the same, and which no more than a `share` exceed.

    Those that lie within the jump to the next end, but no more than `furthest` steps, count as the same.
    """
    ends, count = np.unique(last, return_counts=True)
    since = ends[:-1] - np.minimum(np.diff(ends), furthest)
    up_to = np.cumsum(count)
    agreed = up_to[:-1] - np.append(0, up_to)[np.searchsorted(ends, since, side="right")]
    beyond = len(last) - up_to[:-1]
    return ends, since, np.flatnonzero(beyond <= share * (agreed + beyond)).tolist()


def _attached(first: IntArray, last: IntArray, observed: Observed, share: float) -> IntArray:
    """Return the last step of each series, [S], without detached rows beyond the end of the others."""
    most = min(max(1, int(_MINORITY * len(last))), _FEW)
    if np.count_nonzero(last == last.max()) > most:
        return last
    edges: dict[int, tuple[int, int, int]] = {}
    for series in np.argsort(-last, kind="stable")[: most + 1].tolist():
        edge = _edge(observed(series))
        if edge is None:
            break
        edges[series] = edge
    if not 0 < len(edges) <= min(most, len(last) - 1):
        return last

    def without(edges: dict[int, tuple[int, int, int]]) -> IntArray:
        attached = last.copy()
        attached[list(edges)] = [before for before, _, _ in edges.values()]
        return attached

    trimmed = without(edges)
    end = _agreed(first, trimmed, share, int(trimmed.max()))
    late = {series: edge for series, edge in edges.items() if edge[1] - end >= _HOLE * edge[2]}
    if not late:
        return last
    attached = without(late)
    jump = min(after for _, after, _ in late.values()) - end
    around = int(np.count_nonzero(attached > end - jump))
    return attached if len(late) <= max(1, _MINORITY * around) and len(late) < around else last


def _edge(steps: IntArray) -> tuple[int, int, int] | None:
    """Return the steps before and behind the hole that detaches the last rows of a series, and how many these are."""
    hole = np.diff(steps)
    behind = np.arange(len(hole), 0, -1)
    earlier = np.maximum.accumulate(np.append(1, hole[:-1])) if len(hole) else hole
    detached = (hole >= _HOLE * behind) & (hole >= 2 * earlier) & (len(steps) - behind >= _HOLE * behind)
    if not detached.any():
        return None
    first = int(np.argmax(detached))
    return int(steps[first]), int(steps[first + 1]), int(behind[first])


def observed_rows(rows: Rows, n_series: int) -> tuple[IntArray, IntArray, Observed]:
    """Return first and last observed step of each series that has one, [S], and what gives all by its position."""
    seen = ~np.isnan(rows.target)
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
        chosen = order[begin:end]
        entries = ranges(starts[chosen], rows.runs.length[chosen])
        steps: IntArray = np.unique(rows.index[entries[seen[entries]]])
        return steps

    return first[series], last[series], observed


def observed_steps(panel: Panel) -> Observed:
    """Return the steps with a value of a series, by its number."""

    def observed(series: int) -> IntArray:
        target = panel.target[panel.offsets[series] : panel.offsets[series + 1]]
        steps: IntArray = panel.start[series] + np.flatnonzero(~np.isnan(target))
        return steps

    return observed


def distant(rows: Rows, n_series: int) -> BoolArray | None:
    """Return the rows of which a hole of over 1,000 steps, twice as long as the rest, parts their series; None if none.

    The rest are at least 4 times as many rows, or 2 where one row is apart.
    """
    if not len(rows):
        return None
    first, last = rows.limits(n_series)
    count = np.bincount(rows.runs.series[rows.runs.series >= 0], rows.runs.length[rows.runs.series >= 0], n_series)
    long = (last - first > _FAR) & (3 * (count - 1) <= last - first) & (count >= 3)
    if not long.any():
        return None
    at = np.flatnonzero(rows.runs.rows(long))
    table = pl.DataFrame({"at": at, "series": rows.runs.each()[at], "index": rows.index[at]}).sort("series", "index")
    series, index = table["series"].to_numpy(), table["index"].to_numpy()
    begin = np.flatnonzero(np.diff(series, prepend=-1))
    hole = np.diff(index, prepend=index[0])
    hole[begin] = 0
    widest = np.maximum.reduceat(hole, begin)
    parted = (widest > _FAR) & (widest > 2 * (last - first)[series[begin]] / 3)
    apart = np.zeros(len(rows), dtype=np.bool_)
    for number in np.flatnonzero(parted).tolist():
        end = begin[number + 1] if number + 1 < len(begin) else len(series)
        cut = begin[number] + int(np.argmax(hole[begin[number] : end]))
        fewer, more = sorted((slice(begin[number], cut), slice(cut, end)), key=lambda part: part.stop - part.start)
        n_fewer, n_more = fewer.stop - fewer.start, more.stop - more.start
        if n_more >= (_HOLE * n_fewer if n_fewer > 1 else 2):
            apart[table["at"].to_numpy()[fewer]] = True
    return apart if apart.any() else None


def any_late_at(rejects: pl.DataFrame, grid: Grid, moments: Sequence[datetime | None]) -> bool:
    """Return whether one of the rows beyond the end of the panel is at one of some moments."""
    late = rejects.filter(pl.col(REASON).is_in([LATE, DISTANT]))[TIMESTAMP]
    if not len(late):
        return False
    wanted = [grid.floor(moment) for moment in moments if moment is not None]
    return bool(np.isin(grid.floor_of(clock(late, grid.frequency, grid.time_zone).to_numpy()), wanted).any())


def warn_late(rejects: pl.DataFrame, end: int, grid: Grid, n_series: int) -> None:
    """Log which rows are beyond the end of the panel."""
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
    """Log the hole before the last steps of the panel, if all series that reach its end are detached."""
    last = panel.start + panel.lengths - 1
    latest = np.flatnonzero(last == last.max())
    edge = _edge(observed_steps(panel)(int(latest[0])))
    if edge is None or len(latest) <= _MINORITY * panel.n_series:
        return
    _, after, count = edge
    before, after_hole, end = panel.grid.timestamps(np.array([edge[0], after, last.max()])).to_list()
    log.warning(
        "the panel ends at %s, %s steps after a hole in its rows: %s has none between %s and %s, and %s since; "
        "if these dates are wrong, set data.until=%s",
        end,
        f"{last.max() - edge[0]:,}",
        panel.series_id[latest[0]],
        before,
        after_hole,
        f"{count:,}",
        before,
    )


def warn_lone(panel: Panel) -> None:
    """Log which series alone reaches the end of the panel, by a few steps, where others end together."""
    last = panel.start + panel.lengths - 1
    end = int(last.max())
    reaching = np.flatnonzero(last == end)
    if len(reaching) > 1 or panel.n_series < _LEAST_SERIES:
        return
    before = int(np.delete(last, reaching).max())
    together = int(np.count_nonzero(last == before))
    if together < max(_LEAST_SERIES - 1, (panel.n_series - 1) / 2) or end - before > _NEAR:
        return
    at, earlier = panel.grid.timestamps(np.array([end, before])).to_list()
    log.warning(
        "the panel ends at %s, which only %s of %s series reaches; %s end at %s, %s step(s) before: if that date is "
        "wrong, set data.until=%s",
        at,
        panel.series_id[reaching[0]],
        f"{panel.n_series:,}",
        f"{together:,}",
        earlier,
        f"{end - before:,}",
        earlier.isoformat(),
    )


def warn_distant(rejects: pl.DataFrame) -> None:
    """Log which rows are far from the rest of their series."""
    apart = rejects.filter(pl.col(REASON).str.ends_with(DISTANT))
    if apart.height:
        log.warning(
            "%s row(s) have a %s and are rejected: %s%s; if these dates are right, set data.end_share=0",
            f"{apart.height:,}",
            DISTANT,
            ", ".join(offenders(apart.head(SHOWN))),
            ", ..." if apart.height > SHOWN else "",
        )
