"""Encoder states of all series of a panel, and their update with new segments.

A state ends one segment before its cutoff. So it does not depend on known covariates after the cutoff, which may
change, and late rows of the last segment, which is read when a forecast is made, still count.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from forecast.data.panel import IntArray, Panel
from forecast.data.windows import WindowIndex
from forecast.models.inputs.batch import PanelTensors
from forecast.models.inputs.scaling import RunningSums
from forecast.models.network.ensemble import Forecaster, recurrent_members
from forecast.models.network.output import EncoderState

_BATCH_SIZE = 512
# Steps read at a time, about: memory does not depend on the length of a history.
_STEPS = 256


class StateStore(NamedTuple):
    """A state of each series for each recurrent network of an ensemble (`EncoderState`, `RunningSums`).

    The memory depends on the number of series, so the store is usually on the host; a batch's states are copied to the
    device of the network and back.
    """

    carry: Float[Tensor, "series member part row hidden"]
    sums: Float[Tensor, "series sum"]
    first: Float[Tensor, " series"]
    last: Float[Tensor, " series"]
    latest: Float[Tensor, " series"]
    changed: Float[Tensor, " series"]

    @classmethod
    def blank(cls, network: Forecaster, n_series: int) -> "StateStore":
        """Return the initial states of series, before any segment."""
        members = recurrent_members(network)
        shape = (0, 0, 0, 0)
        if members:
            encoder = members[0].encoder
            shape = (len(members), 1 + (encoder.mode == "LSTM"), sum(encoder.dilations), encoder.hidden_size)
        none = torch.zeros(n_series, dtype=torch.float64)
        sums = torch.zeros(n_series, 3, dtype=torch.float64)
        return cls(torch.zeros(n_series, *shape), sums, none, none.clone(), none + torch.inf, none + torch.inf)

    def rows(self, series: IntArray) -> "StateStore":
        """Return the states of some series in ascending order; the store itself if these are all."""
        if len(series) == len(self.first):
            return self
        index = torch.from_numpy(series).to(self.first.device)
        return StateStore(*(values[index] for values in self))

    def assign(self, series: IntArray, states: "StateStore") -> None:
        """Write the states of some series."""
        index = torch.from_numpy(series).to(self.first.device)
        for values, new_values in zip(self, states, strict=True):
            values[index] = new_values

    def of(self, series: Int[Tensor, " batch"]) -> list[EncoderState]:
        """Return the states of some series, one for each network, on the device of `series`."""
        carry, *sums = (values[series.to(values.device)].to(series.device) for values in self)
        totals = RunningSums(*sums)
        by_member = carry.permute(1, 2, 3, 0, 4).contiguous()
        return [EncoderState(tuple(parts), totals) for parts in by_member]

    def put(self, series: Int[Tensor, " batch"], pasts: Sequence[EncoderState]) -> None:
        """Write the states of some series, one for each network."""
        carry = torch.stack([torch.stack(past.carry) for past in pasts]).permute(3, 0, 1, 2, 4)
        for values, new_values in zip(self, (carry, *pasts[0].totals), strict=True):
            values[series.to(values.device)] = new_values.to(values.device)


def segments_since(panel: Panel, windows: WindowIndex, length: int) -> IntArray:
    """Return the number of segments from the start of each series to the segment before its cutoff's, [n].

    Segments are counted back from the cutoff, which ends one, in `length` steps of the local clock; the first segment
    may begin before the series.
    """
    first = panel.start[windows.series]
    clock = panel.clock_shift_at(first + windows.cutoff) - panel.clock_shift_at(first)
    return -(-(windows.cutoff + 1 + clock) // length) - 1


@torch.inference_mode()
def advance(
    network: Forecaster, data: PanelTensors, windows: WindowIndex, segments: IntArray, store: StateStore
) -> None:
    """Update `store` with the latest `segments`, [n], before the segment that ends at each cutoff."""
    members = recurrent_members(network)
    if not members:
        return
    remaining, shape = segments.copy(), members[0].shape
    while remaining.any():
        # Mostly all have the same number; others are batched by powers of two.
        most = min(int(remaining.max()), max(_STEPS // shape.segment_length, 1))
        size = most if (remaining[remaining > 0] == most).all() else 1 << (most.bit_length() - 1)
        chosen = np.flatnonzero(remaining >= size)
        for first in range(0, len(chosen), _BATCH_SIZE):
            rows = chosen[first : first + _BATCH_SIZE]
            series, cutoff = (
                torch.from_numpy(values[rows]).to(data.device) for values in (windows.series, windows.cutoff)
            )
            begin = 1 - (torch.from_numpy(remaining[rows]).to(data.device) + 1) * shape.segment_length - shape.lead
            time = shape.lead + size * shape.segment_length + shape.horizon
            batch = data.stretch(series, cutoff, cutoff + 1, begin, time)
            pasts = zip(members, store.of(series), strict=True)
            store.put(series, [member.advance(batch, past) for member, past in pasts])
        remaining[chosen] -= size
