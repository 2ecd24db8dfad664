"""Batches of windows: one at a time, or all cutoffs of a series in one pass over its history."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int
from torch import Tensor

from forecast.data.panel import IntArray, Panel
from forecast.data.windows import WindowIndex
from forecast.models.inputs.batch import PanelTensors
from forecast.models.network.carried_state import StateStore, advance, segments_since
from forecast.models.network.ensemble import Forecaster
from forecast.models.network.losses import validation_batches
from forecast.models.network.output import EncoderState

BATCH_SIZE = 512
# Numbers held at once for the origins of a pass over a history, and of these for each step of a horizon.
_PASS_NUMBERS, _STEP_NUMBERS = 1 << 24, 64


class Task(NamedTuple):
    """A batch of windows, all with the same origins."""

    series: Int[Tensor, " batch"]
    cutoff: Int[Tensor, " batch"]
    """Of the first origin."""
    origins: Int[Tensor, " origin"]
    pasts: Sequence[EncoderState] | None


def plan_windows(windows: WindowIndex, data: PanelTensors, carried: StateStore | None) -> Iterator[Task]:
    """Yield batches of windows, each with its cutoff as the only origin."""
    for indices in validation_batches(windows, BATCH_SIZE):
        series, cutoff, origins = (values.to(data.device) for values in indices)
        yield Task(series, cutoff, origins, None if carried is None else carried.of(series))


def plan_one_pass(
    network: Forecaster, panel: Panel, data: PanelTensors, windows: WindowIndex
) -> tuple[Iterator[Task], npt.NDArray[np.int64]]:
    """Return batches of windows that have all cutoffs of their series as origins, and which window each origin is.

    The second is [n], batch by batch and window by window; -1 is an origin nobody asked for. Cutoffs of a series go
    together where whole segments of the local clock lie between them: those in other phases are another pass.
    """
    shape = network.shape
    index = panel.start[windows.series] + windows.cutoff
    shift = panel.clock_shift_at(index)
    begun = np.full(panel.n_series, np.iinfo(np.int64).max)
    plans: list[tuple[WindowIndex, list[IntArray]]] = []
    order: list[IntArray] = []
    size_of = max(shape.context_length, _STEP_NUMBERS * shape.horizon * network.n_paths)
    for phase in np.unique(np.stack([(index + shift) % shape.segment_length, shift]), axis=1).T:
        rows = np.flatnonzero(((index + shift) % shape.segment_length == phase[0]) & (shift == phase[1]))
        begun[:] = np.iinfo(np.int64).max
        np.minimum.at(begun, windows.series[rows], index[rows])
        for first in np.unique(begun[windows.series[rows]]):
            own = rows[begun[windows.series[rows]] == first]
            cutoffs, series = np.unique(index[own]), np.unique(windows.series[own])
            at = np.full((len(series), len(cutoffs)), -1)
            at[np.searchsorted(series, windows.series[own]), np.searchsorted(cutoffs, index[own])] = own
            chunk = min(len(cutoffs), max(1, _PASS_NUMBERS // size_of))
            edges = range(chunk, len(cutoffs), chunk)
            size = max(1, _PASS_NUMBERS // (size_of * chunk))
            for begin in range(0, len(series), size):
                some = slice(begin, begin + size)
                plans.append((WindowIndex(series[some], first - panel.start[series[some]]), np.split(cutoffs, edges)))
                order += [part.ravel() for part in np.split(at[some], edges, axis=1)]

    def tasks() -> Iterator[Task]:
        carried = StateStore.blank(network, panel.n_series)
        for own, parts in plans:
            for values, blank in zip(carried, StateStore.blank(network, len(own)), strict=True):
                values[own.series] = blank
            segments = segments_since(panel, own, shape.segment_length)
            for number, part in enumerate(parts):
                here = WindowIndex(own.series, own.cutoff + (part[0] - parts[0][0]))
                if number:
                    segments = np.full(len(own), (part[0] - parts[number - 1][0]) // shape.segment_length)
                advance(network, data, here, segments, carried)
                series, cutoff = (torch.from_numpy(values).to(data.device) for values in (here.series, here.cutoff))
                origins = torch.from_numpy(part - part[0]).to(data.device)
                yield Task(series, cutoff, origins, carried.of(series))

    return tasks(), np.concatenate(order) if order else np.zeros(0, np.int64)
