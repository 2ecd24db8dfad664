"""Plans of batches: each window by itself, or all cutoffs of a series in one pass over its history."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int
from torch import Tensor

from forecast.data.panel import IntArray, Panel
from forecast.data.windows import BATCH_SIZE, WindowIndex
from forecast.models.inputs.batch import PanelTensors
from forecast.models.network.carried_state import StateStore, advance, segments_since
from forecast.models.network.ensemble import Forecaster
from forecast.models.network.losses import validation_batches
from forecast.models.network.output import EncoderState

# Elements held in memory at once for the origins of a pass, and those of an origin per step of a horizon.
_MAX_PASS_ELEMENTS, _ELEMENTS_PER_STEP = 1 << 24, 64


class Task(NamedTuple):
    """A batch of windows, all with the same origins."""

    series: Int[Tensor, " batch"]
    cutoff: Int[Tensor, " batch"]
    """Step of the first origin, from the start of the series."""
    origins: Int[Tensor, " origin"]
    states: Sequence[EncoderState] | None


def plan_windows(windows: WindowIndex, data: PanelTensors, carried: StateStore | None) -> Iterator[Task]:
    """Yield batches of windows, each with its cutoff as the only origin."""
    for indices in validation_batches(windows, BATCH_SIZE):
        series, cutoff, origins = (values.to(data.device) for values in indices)
        yield Task(series, cutoff, origins, None if carried is None else carried.of(series))


def plan_one_pass(
    network: Forecaster, panel: Panel, data: PanelTensors, windows: WindowIndex
) -> tuple[Iterator[Task], npt.NDArray[np.int64]]:
    """Return batches whose origins are all cutoffs of their series, and the number of the window at each origin.

    The numbers are [n], batch by batch and window by window; -1 for an origin that was not requested. A pass covers the
    cutoffs of a series that are whole segments of the local clock apart; those in other phases need another pass.
    """
    shape = network.shape
    index = panel.start[windows.series] + windows.cutoff
    shift = panel.clock_shift_at(index)
    first_index = np.full(panel.n_series, np.iinfo(np.int64).max)
    plans: list[tuple[WindowIndex, list[IntArray]]] = []
    order: list[IntArray] = []
    elements_per_origin = max(shape.context_length, _ELEMENTS_PER_STEP * shape.horizon * network.n_paths)
    for phase in np.unique(np.stack([(index + shift) % shape.segment_length, shift]), axis=1).T:
        rows_of_phase = np.flatnonzero(((index + shift) % shape.segment_length == phase[0]) & (shift == phase[1]))
        first_index[:] = np.iinfo(np.int64).max
        np.minimum.at(first_index, windows.series[rows_of_phase], index[rows_of_phase])
        for start in np.unique(first_index[windows.series[rows_of_phase]]):
            rows_of_pass = rows_of_phase[first_index[windows.series[rows_of_phase]] == start]
            cutoffs, series = np.unique(index[rows_of_pass]), np.unique(windows.series[rows_of_pass])
            origin_rows = np.full((len(series), len(cutoffs)), -1)
            origin_rows[
                np.searchsorted(series, windows.series[rows_of_pass]), np.searchsorted(cutoffs, index[rows_of_pass])
            ] = rows_of_pass
            n_cutoffs = min(len(cutoffs), max(1, _MAX_PASS_ELEMENTS // elements_per_origin))
            edges = range(n_cutoffs, len(cutoffs), n_cutoffs)
            size = max(1, _MAX_PASS_ELEMENTS // (elements_per_origin * n_cutoffs))
            for begin in range(0, len(series), size):
                chunk_rows = slice(begin, begin + size)
                plans.append(
                    (WindowIndex(series[chunk_rows], start - panel.start[series[chunk_rows]]), np.split(cutoffs, edges))
                )
                order += [part.ravel() for part in np.split(origin_rows[chunk_rows], edges, axis=1)]

    def tasks() -> Iterator[Task]:
        store = StateStore.blank(network, panel.n_series)
        for first_windows, parts in plans:
            for values, blank in zip(store, StateStore.blank(network, len(first_windows)), strict=True):
                values[first_windows.series] = blank
            segments = segments_since(panel, first_windows, shape.segment_length)
            for number, part in enumerate(parts):
                part_windows = WindowIndex(first_windows.series, first_windows.cutoff + (part[0] - parts[0][0]))
                if number:
                    segments = np.full(len(first_windows), (part[0] - parts[number - 1][0]) // shape.segment_length)
                advance(network, data, part_windows, segments, store)
                series, cutoff = (
                    torch.from_numpy(values).to(data.device) for values in (part_windows.series, part_windows.cutoff)
                )
                origins = torch.from_numpy(part - part[0]).to(data.device)
                yield Task(series, cutoff, origins, store.of(series))

    return tasks(), np.concatenate(order) if order else np.zeros(0, np.int64)
