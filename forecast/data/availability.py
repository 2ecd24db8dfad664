"""Availability of series (data.available): steps where nothing could be sold are no observations of demand.

`ingest` reads the column into `Panel.available`.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from forecast.data.panel import IntArray, Panel
from forecast.data.windows import WindowIndex

BoolArray = npt.NDArray[np.bool_]


def unavailable(panel: Panel) -> BoolArray:
    """Return a mask of the steps of the panel where nothing was available, [N]; none without data.available."""
    if not len(panel.available):
        return np.zeros(len(panel.target), dtype=np.bool_)
    entries = np.arange(len(panel.target)) + np.repeat(np.arange(panel.n_series) * panel.horizon, panel.lengths)
    closed: BoolArray = panel.available[0, entries] == 0
    return closed


def reported(panel: Panel) -> BoolArray:
    """Return a mask of the steps with an observed target, or where nothing was available, [N]."""
    observed: BoolArray = ~np.isnan(panel.target)
    return observed | unavailable(panel) if len(panel.available) else observed


def closed_ahead(panel: Panel, windows: WindowIndex, horizon: int) -> BoolArray:
    """Return a mask of the `horizon` steps after each cutoff where nothing is available, [n, horizon]."""
    if not len(panel.available):
        return np.zeros((len(windows), horizon), dtype=np.bool_)
    step = windows.cutoff[:, None] + np.arange(1, horizon + 1)
    inside = (step >= 0) & (step < (panel.lengths[windows.series] + panel.horizon)[:, None])
    begin = panel.offsets[windows.series] + windows.series * panel.horizon
    closed: BoolArray = inside & (panel.available[0, np.where(inside, begin[:, None] + step, 0)] == 0)
    return closed


def last_reported(panel: Panel, series: int, cutoff: int) -> int | None:
    """Return the last step of a series up to `cutoff` that is observed or unavailable; None if none is observed."""
    begin, length = int(panel.offsets[series]), int(panel.lengths[series])
    observed = np.flatnonzero(~np.isnan(panel.target[begin : begin + min(cutoff + 1, length)]))
    if not len(observed):
        return None
    known = begin + series * panel.horizon
    rows = np.asarray(panel.available[:, known : known + min(cutoff + 1, length + panel.horizon)])
    closed = np.flatnonzero((rows == 0).any(0))
    return int(max(observed[-1], closed[-1] if len(closed) else 0))


def mask_unavailable(panel: Panel) -> tuple[Panel, int]:
    """Return the panel without the targets where nothing was available, and their number."""
    masked = unavailable(panel) & ~np.isnan(panel.target)
    if not masked.any():
        return panel, 0
    return replace(panel, target=np.where(masked, panel.target.dtype.type(np.nan), panel.target)), int(masked.sum())


@dataclass(frozen=True)
class Trimmed:
    """A panel whose series begin with an observed target."""

    panel: Panel
    without_target: IntArray
    """Numbers of the series that have none: they are not in the panel."""
    n_rows: int
    """Number of rows of these series: steps where nothing was available."""


def trim(panel: Panel) -> Trimmed:
    """Return the panel without unobserved steps at the start of a series, and without series that have no target."""
    if not panel.n_series or not np.isnan(panel.target[panel.offsets[:-1]]).any():
        return Trimmed(panel, np.zeros(0, np.int64), 0)
    observed = np.flatnonzero(~np.isnan(panel.target))
    position = np.searchsorted(observed, panel.offsets)
    series, without_target = np.flatnonzero(np.diff(position) > 0), np.flatnonzero(np.diff(position) == 0)
    first = observed[position[series]] - panel.offsets[series]
    n_rows = int(unavailable(panel)[np.repeat(np.diff(position) == 0, panel.lengths)].sum())
    return Trimmed(panel.cut(series, first, panel.lengths[series] - first), without_target, n_rows)
