"""The panel: many series in one flat buffer, with offsets."""

import hashlib
import mmap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from forecast.data.digests import digest_of, hash_series
from forecast.data.time.grid import Grid
from forecast.names import SERIES_ID, TARGET, TIMESTAMP

FloatArray = npt.NDArray[np.float32]
Names = npt.NDArray[np.object_]
"""Text as Python objects. Arrays of np.str_ give every entry the size of the longest one and lose a trailing NUL;
arrays of StringDType do not order text with a NUL inside."""
DoubleArray = npt.NDArray[np.float64]
TargetArray = FloatArray | DoubleArray
IntArray = npt.NDArray[np.int64]
# Rounding error, as a share of the range of a series, above which its target needs float64.
RESOLUTION = 1e-3


@dataclass(frozen=True, repr=False)
class Panel:
    """Series of any length, end to end. S series, N steps in all; nothing is padded.

    Step `p` of series `s` is entry `offsets[s] + p` of the flat buffers and has grid index `start[s] + p`.
    A series runs from its first observed target to its last one, or to its last row where nothing was available.
    """

    grid: Grid
    series_id: Names
    """[S], sorted."""
    offsets: IntArray
    """[S + 1]; series `s` is `offsets[s]:offsets[s + 1]`."""
    start: IntArray
    """[S], grid index of the first step."""
    target: TargetArray
    """[N], NaN if unobserved. Float64 if float32 could not distinguish the values of some series."""
    past: FloatArray
    """[past covariates, N], NaN where missing."""
    known: FloatArray
    """[known covariates, N + S * horizon], NaN where missing: each series has `horizon` more steps than in `target`."""
    calendar: FloatArray
    """[calendar features, T], one column per grid index from `calendar_start`; shared by all series."""
    calendar_start: int
    clock_shift: IntArray
    """[T], like `calendar`: steps by which the local clock is ahead of the clock at the first step. All 0 except for
    steps below a day in a time zone with clock changes."""
    horizon: int
    """Steps after the end of a series for which known covariates and calendar are held."""
    static_categories: IntArray
    """[S, categorical static covariates], 0 for a value that training did not see."""
    static_numbers: FloatArray
    """[S, numeric static covariates], NaN where missing."""
    available: FloatArray = field(default_factory=lambda: np.empty((0, 0), np.float32))
    """[0 or 1, N + S * horizon], like `known`: 0 where nothing can be sold, else 1, NaN without a row; no row without
    data.available. Where it is 0, the target is unobserved."""
    weight: FloatArray = field(default_factory=lambda: np.empty((0, 0), np.float32))
    """[0 or 1, N], like `past`: what an error at a step counts, in any unit; no row without data.weight."""

    def __repr__(self) -> str:
        if not self.n_series:
            return f"Panel(0 series every {self.grid.frequency})"
        first, last = self.grid.timestamps(np.array([self.start.min(), self.last_index])).to_list()
        steps = f"{len(self.target):,} steps every {self.grid.frequency}"
        return f"Panel({self.n_series:,} series, {steps}, {first} to {last})"

    def rows(self, first: int, last: int) -> "Panel":
        """Return the series from number `first` up to `last`, excluded, as views of the same buffers: a shard."""
        begin, end = int(self.offsets[first]), int(self.offsets[last])
        known = slice(begin + first * self.horizon, end + last * self.horizon)
        return replace(
            self,
            series_id=self.series_id[first:last],
            offsets=self.offsets[first : last + 1] - begin,
            start=self.start[first:last],
            target=self.target[begin:end],
            past=self.past[:, begin:end],
            known=self.known[:, known],
            static_categories=self.static_categories[first:last],
            static_numbers=self.static_numbers[first:last],
            available=self.available[:, known],
            weight=self.weight[:, begin:end],
        )

    def in_memory(self) -> "Panel":
        """Return the panel with its buffers in memory, read if they are RangeArrays in an object store."""
        names = ("target", "past", "known", "available", "weight")
        buffers: dict[str, Any] = {name: getattr(self, name) for name in names}
        remote: dict[str, Any] = {
            name: np.asarray(part) for name, part in buffers.items() if not isinstance(part, np.ndarray)
        }
        return replace(self, **remote) if remote else self

    def take(self, series: IntArray) -> "Panel":
        """Return a copy of the series with these numbers, in that order."""
        return self.cut(series, np.zeros_like(series), self.lengths[series])

    def cut(self, series: IntArray, first: IntArray, lengths: IntArray) -> "Panel":
        """Return a copy of `lengths` steps of the series with these numbers, from step `first` of each, [n] all."""
        begin = self.offsets[series] + first
        steps, known_entries = _entries(begin, lengths), _entries(begin + series * self.horizon, lengths + self.horizon)
        return replace(
            self,
            series_id=self.series_id[series],
            offsets=np.append(0, np.cumsum(lengths)),
            start=self.start[series] + first,
            target=self.target[steps],
            past=self.past[:, steps],
            known=self.known[:, known_entries],
            static_categories=self.static_categories[series],
            static_numbers=self.static_numbers[series],
            available=self.available[:, known_entries] if len(self.available) else self.available,
            weight=self.weight[:, steps] if len(self.weight) else self.weight,
        )

    def _index(self) -> IntArray:
        """Return the grid index of each entry of the flat buffers, [N]."""
        index: IntArray = np.arange(len(self.target)) - np.repeat(self.offsets[:-1] - self.start, self.lengths)
        return index

    def since(self, first: int) -> "Panel":
        """Return the same series, with no target observed before grid index `first`."""
        return replace(self, target=np.where(self._index() < first, self.target.dtype.type(np.nan), self.target))

    def between(self, first: int, last: int) -> "Panel":
        """Return a copy of the observations from grid index `first` to `last`, without series that have none.

        Known covariates reach `horizon` steps further.
        """
        index = self._index()
        entries = np.flatnonzero(np.isfinite(self.target) & (index >= first) & (index <= last))
        series, number = np.unique(np.searchsorted(self.offsets, entries, side="right") - 1, return_index=True)
        begin, end = entries[number], entries[np.append(number[1:], len(entries)) - 1] + 1 if len(entries) else entries
        return self.cut(series, begin - self.offsets[series], end - begin)

    def shards(self, steps: int = 1 << 22) -> Iterator["Panel"]:
        """Yield the panel in shards of about `steps` steps, each of one series at least."""
        first = 0
        while first < self.n_series:
            last = int(np.searchsorted(self.offsets, self.offsets[first] + steps, side="right")) - 1
            last = min(max(last, first + 1), self.n_series)
            yield self.rows(first, last)
            first = last

    def observed_targets(self, limits: IntArray) -> Iterator[TargetArray]:
        """Yield the observed targets among the first `limits` steps of each series, [S], a shard at a time."""
        first = 0
        for shard in self.shards():
            step = np.arange(len(shard.target)) - np.repeat(shard.offsets[:-1], shard.lengths)
            within = step < np.repeat(limits[first : first + shard.n_series], shard.lengths)
            yield shard.target[within & ~np.isnan(shard.target)]
            first += shard.n_series

    def visible_digest(self, cutoff: int, horizon: int, *, weighted: bool = False) -> str:
        """Return a hash of all inputs that forecasts of `horizon` steps from grid index `cutoff` may use.

        The calendar is excluded: it follows from the grid and the settings. Weights, which change no forecast, are
        included if it is to be `weighted`.
        """
        digest = self.visible_digests(cutoff, horizon)[1]
        if not weighted or not len(self.weight):
            return digest
        return hashlib.sha256(digest.encode() + self.weight[0][self._index() <= cutoff].tobytes()).hexdigest()

    def visible_digests(self, cutoff: int, horizon: int) -> tuple[str, str]:
        """Return the `visible_digest` of the past alone, which is that of no steps after the cutoff, and of all."""
        # Mostly, all steps are up to the cutoff.
        whole = bool((self.start + self.lengths <= cutoff + 1).all())
        visible = slice(None) if whole else self._index() <= cutoff
        # A NUL ends a name; one within a name is a byte that UTF-8 does not have.
        hasher = hashlib.sha256(b"\0".join(name.encode().replace(b"\0", b"\xff") for name in self.series_id.tolist()))
        for values in (
            np.minimum(self.start, cutoff + 1),
            np.clip(cutoff + 1 - self.start, 0, self.lengths),
            self.target[visible],
            *(row[visible] for row in self.past),
        ):
            hasher.update(np.ascontiguousarray(values).data)
        planned = [*self.known, *self.available]
        ahead = np.zeros(0, np.int64)
        if planned:
            n_known = self.lengths + self.horizon
            ahead = np.arange(int(n_known.sum())) - np.repeat(np.cumsum(n_known) - n_known - self.start, n_known)
        digests = []
        for steps in dict.fromkeys((0, horizon)) if planned else (0,):
            copy, within = hasher.copy(), ahead <= cutoff + steps
            for values in (*(row[within] for row in planned), self.static_categories, self.static_numbers):
                copy.update(values.tobytes())
            digests.append(copy.hexdigest())
        return digests[0], digests[-1]

    def advise(self, option: int) -> None:
        """Advise the system on the pages of a memory-mapped panel or shard; see mmap.madvise.

        MADV_WILLNEED reads the pages ahead; MADV_DONTNEED drops them until they are read again. So do the RangeArrays
        of a panel in an object store.
        """
        buffers: tuple[Any, ...] = (
            *(self.series_id, self.offsets, self.start, self.target),
            *(self.past, self.known, self.static_categories, self.static_numbers, self.available),
            self.weight,
        )
        for remote in (buffer for buffer in buffers if not isinstance(buffer, np.ndarray)):
            remote.advise(option)
        arrays = (buffer for buffer in buffers if isinstance(buffer, np.ndarray))
        for values in (part for buffer in arrays for part in _contiguous_parts(buffer)):
            base: object = values
            while isinstance(base, np.ndarray):
                base = base.base
            if isinstance(base, mmap.mmap) and values.nbytes:
                begin = values.ctypes.data - np.frombuffer(base, np.uint8).ctypes.data
                page = begin // mmap.PAGESIZE * mmap.PAGESIZE
                base.madvise(option, page, begin - page + values.nbytes)

    @property
    def n_series(self) -> int:
        """Number of series."""
        return len(self.series_id)

    @property
    def lengths(self) -> IntArray:
        """[S], steps per series."""
        return np.diff(self.offsets)

    def clock_shift_at(self, index: IntArray) -> IntArray:
        """Return the clock shift at grid indices; indices outside the panel get that of the nearest one inside."""
        return self.clock_shift[np.clip(index - self.calendar_start, 0, len(self.clock_shift) - 1)]

    def frame(self, series: IntArray | None = None, classes: Sequence[str] | None = None) -> pl.DataFrame:
        """Return series_id, timestamp and target (null: a gap) of the given series (all when None), by series and time.

        With `classes`, the target holds their names instead of codes.
        """
        rows = np.arange(self.n_series) if series is None else series
        steps = self.lengths[rows]
        number = np.repeat(np.arange(len(rows)), steps)
        step = np.arange(len(number)) - np.repeat(np.cumsum(steps) - steps, steps)
        target = pl.Series(self.target[self.offsets[rows][number] + step]).fill_nan(None)
        if classes is not None:
            target = pl.Series(classes, dtype=pl.String).gather(target.cast(pl.Int64))
        return pl.DataFrame(
            {
                SERIES_ID: pl.Series(self.series_id[rows].tolist(), dtype=pl.String).gather(number),
                TIMESTAMP: self.grid.timestamps(self.start[rows][number] + step),
                TARGET: target,
            }
        )

    @property
    def last_index(self) -> int:
        """Grid index of the latest step of any series."""
        return int((self.start + self.lengths).max()) - 1

    def digest(self) -> str:
        """Return a hash of the content: the same for any order of rows, chunking or sharding of the same data."""
        return digest_of(self.grid, self.series_digests)

    @cached_property
    def series_digests(self) -> npt.NDArray[np.uint8]:
        """A hash of the content of each series, [S, 16]."""
        return hash_series(self)


def as_names(values: Iterable[str]) -> Names:
    """Return text as `Panel.series_id` holds it."""
    return np.array(list(values), dtype=np.object_)


def is_among(names: Iterable[str], chosen: Iterable[str]) -> npt.NDArray[np.bool_]:
    """Return whether each name is one of those chosen, [n]. `np.isin` and the like compare every pair of objects."""
    members = set(chosen)
    return np.array([name in members for name in names], dtype=np.bool_)


def _entries(begin: IntArray, lengths: IntArray) -> IntArray:
    """Return ranges of `lengths` numbers that start at each of `begin`, end to end."""
    entries: IntArray = np.repeat(begin - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())
    return entries


def _contiguous_parts(buffer: npt.NDArray[Any]) -> Sequence[npt.NDArray[Any]]:
    """Return contiguous parts that make up a buffer."""
    return [buffer] if buffer.flags.c_contiguous else list(buffer)


def concatenated(panels: Sequence[Panel]) -> Panel:
    """Return the series of several panels with the same grid, calendar and horizon, as one, in this order."""
    return replace(
        panels[0],
        series_id=np.concatenate([panel.series_id for panel in panels]),
        offsets=np.append(0, np.cumsum(np.concatenate([panel.lengths for panel in panels]))),
        start=np.concatenate([panel.start for panel in panels]),
        target=np.concatenate([panel.target for panel in panels]),
        past=np.concatenate([panel.past for panel in panels], axis=1),
        known=np.concatenate([panel.known for panel in panels], axis=1),
        static_categories=np.concatenate([panel.static_categories for panel in panels]),
        static_numbers=np.concatenate([panel.static_numbers for panel in panels]),
        available=np.concatenate([panel.available for panel in panels], axis=1),
        weight=np.concatenate([panel.weight for panel in panels], axis=1),
    )
