"""Windows as indices: the series, and the last step a forecast may see. Gathering values is up to models/inputs."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from forecast.data.panel import IntArray, Panel

BATCH_SIZE: Final = 512
"""Windows that a network forecasts at once."""


@dataclass(frozen=True)
class WindowIndex:
    """n windows, each a (series, cutoff) pair."""

    series: IntArray
    """[n], row of the panel."""
    cutoff: IntArray
    """[n], last visible step, counted from the start of the series; may lie beyond its end (the steps between are a
    gap)."""

    def __len__(self) -> int:
        return len(self.series)

    def __getitem__(self, rows: slice | IntArray) -> "WindowIndex":
        return WindowIndex(self.series[rows], self.cutoff[rows])


def usable_lengths(panel: Panel, cutoff: int | None = None) -> IntArray:
    """Return the number of steps of each series up to grid index `cutoff` (all when None), [S]."""
    if cutoff is None:
        return panel.lengths
    return np.clip(cutoff - panel.start + 1, 0, panel.lengths)


def windows_at(panel: Panel, cutoff: int) -> WindowIndex:
    """Return one window per series at grid index `cutoff`; series that start later are left out."""
    series = np.flatnonzero(panel.start <= cutoff)
    return WindowIndex(series, cutoff - panel.start[series])


def windows_at_ends(panel: Panel) -> WindowIndex:
    """Return one window per series at its own last step."""
    return WindowIndex(np.arange(panel.n_series), panel.lengths - 1)


def held_out_windows(
    lengths: IntArray, *, horizon: int, n_windows: int, at_least: int = 0
) -> tuple[WindowIndex, IntArray]:
    """Return the latest windows with a full horizon, and the lengths before their targets, [S].

    Cutoffs are one horizon apart, oldest first within a series. A series keeps at least one horizon of history before
    its first window, so short ones give fewer windows or none.

        | o o o o o o x x x | - - - |        o history   x, - targets of two windows, horizon 3

    If all series together give fewer than `at_least`, cutoffs are closer together where possible, and an odd number of
    steps apart, so that they cover many times of day; the steps held out stay the same.
    """
    held_out = np.clip(lengths // horizon - 1, 0, n_windows) * horizon
    total = int(held_out.sum()) // horizon
    stride = horizon
    if 0 < total < at_least:
        stride = min(max(horizon // -(-at_least // total), 1) | 1, horizon)
    counts = np.where(held_out > 0, (held_out - horizon) // stride + 1, 0)
    series = np.repeat(np.arange(len(lengths)), counts)
    before_last = np.repeat(np.cumsum(counts), counts) - 1 - np.arange(len(series))
    cutoff = lengths[series] - horizon - 1 - before_last * stride
    return WindowIndex(series, cutoff), lengths - held_out


def overlap(windows: WindowIndex, horizon: int) -> float:
    """Return the average number of windows that contain a target, at least 1."""
    gaps = np.diff(windows.cutoff)[np.diff(windows.series) == 0]
    return max(1.0, horizon / float(gaps.mean())) if len(gaps) else 1.0


class OriginSampler:
    """Draws training windows, uniformly over series and over the steps of a series.

    A window has `span` consecutive origins; the loss is taken at some of them. It is centred on an origin drawn
    uniformly and shifted inside at the ends of the series: so the newest and the oldest `span` origins are drawn as
    often as any others, but the outermost of these half as often as those `span` / 2 away from the end. Origins before
    the first observation, and targets from `limits` on, are masked later. Series with fewer than two usable steps are
    never drawn.
    """

    def __init__(self, limits: IntArray, *, span: int) -> None:
        self.series = np.flatnonzero(limits >= 2)
        self._last = limits[self.series] - 2
        self._span = span

    def draw(self, count: int, rng: np.random.Generator) -> WindowIndex:
        """Return `count` windows by their first origin, which may be negative: before the start of the series."""
        rows = rng.integers(0, len(self.series), count)
        high = self._last[rows]
        low = np.minimum(high, self._span - 1)
        middle = rng.integers(0, high, endpoint=True)
        final = np.clip(middle + self._span // 2, low, high)
        return WindowIndex(self.series[rows], final - self._span + 1)


def sample_origins(limits: IntArray, *, horizon: int, count: int, rng: np.random.Generator) -> WindowIndex:
    """Return up to `count` origins with a horizon of history and a full one before `limits`.

    All such origins if there are at most `count`, otherwise a uniform sample without replacement. If no series is long
    enough, one step of history suffices.
    """
    history = horizon if (limits >= 2 * horizon).any() else 1
    available = np.clip(limits - horizon - history + 1, 0, None)
    ends = np.cumsum(available)
    total = int(ends[-1]) if len(ends) else 0
    entries = np.arange(total) if total <= count else np.sort(rng.choice(total, count, replace=False))
    series = np.searchsorted(ends, entries, side="right")
    return WindowIndex(series, entries - (ends - available)[series] + history - 1)
