"""The pasts of all series of a panel, and how they go on.

A past ends one segment before its cutoff: nothing in it follows from what is known of the time after the cutoff, which
may change; and the last segment, which goes in when a forecast is made, may still come late.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from forecast.data.panel import IntArray, Panel
from forecast.data.windows import WindowIndex
from forecast.models.inputs.batch import PanelTensors
from forecast.models.inputs.scaling import RunningSums
from forecast.models.network.ensemble import Forecaster, recurrent_members
from forecast.models.network.output import EncoderState

_BATCH_SIZE = 512
# Steps that go in at a time, about: memory does not depend on the length of a history.
_STEPS = 1024


class StateStore(NamedTuple):
    """A past of each series for each recurrent network of an ensemble (`EncoderState`, `RunningSums`).

    On one device, of which the memory depends on the number of series: that of the host, mostly. The pasts of a batch
    are taken from there and put back there.
    """

    carry: Float[Tensor, "series member part row hidden"]
    sums: Float[Tensor, "series sum"]
    first: Float[Tensor, " series"]
    last: Float[Tensor, " series"]
    varied: Bool[Tensor, " series"]

    @classmethod
    def blank(cls, network: Forecaster, n_series: int) -> "StateStore":
        """Return the pasts of series of which nothing has gone in."""
        members = recurrent_members(network)
        shape = (0, 0, 0, 0)
        if members:
            encoder = members[0].encoder
            shape = (len(members), 1 + (encoder.mode == "LSTM"), sum(encoder.dilations), encoder.hidden_size)
        none = torch.zeros(n_series, dtype=torch.float64)
        sums = torch.zeros(n_series, 3, dtype=torch.float64)
        return cls(torch.zeros(n_series, *shape), sums, none, none.clone(), none.bool())

    def of(self, series: Int[Tensor, " batch"]) -> list[EncoderState]:
        """Return the pasts of some series, one for each network, on the device of `series`."""
        carry, *sums = (values[series.to(values.device)].to(series.device) for values in self)
        totals = RunningSums(*sums)
        by_member = carry.permute(1, 2, 3, 0, 4).contiguous()
        return [EncoderState(tuple(parts), totals) for parts in by_member]

    def put(self, series: Int[Tensor, " batch"], pasts: Sequence[EncoderState]) -> None:
        """Write the pasts of some series, one for each network."""
        carry = torch.stack([torch.stack(past.carry) for past in pasts]).permute(3, 0, 1, 2, 4)
        for values, made in zip(self, (carry, *pasts[0].totals), strict=True):
            values[series.to(values.device)] = made.to(values.device)


def segments_since(panel: Panel, windows: WindowIndex, length: int) -> IntArray:
    """Return how many segments there are from the start of each series to the segment before its cutoff's, [n].

    They are counted back from the cutoff, which ends one, by `length` steps of the local clock; the first of them may
    begin before the series.
    """
    first = panel.start[windows.series]
    clock = panel.clock_shift_at(first + windows.cutoff) - panel.clock_shift_at(first)
    return -(-(windows.cutoff + 1 + clock) // length) - 1


@torch.inference_mode()
def advance(
    network: Forecaster, data: PanelTensors, windows: WindowIndex, segments: IntArray, carried: StateStore
) -> None:
    """Let the latest `segments`, [n], of those before the one that ends at each cutoff go in, and update `carried`."""
    members = recurrent_members(network)
    if not members:
        return
    left, shape = segments.copy(), members[0].shape
    while left.any():
        # Mostly all have the same number; those with different ones get together by powers of two.
        most = min(int(left.max()), max(_STEPS // shape.segment_length, 1))
        size = most if (left[left > 0] == most).all() else 1 << (most.bit_length() - 1)
        chosen = np.flatnonzero(left >= size)
        for first in range(0, len(chosen), _BATCH_SIZE):
            rows = chosen[first : first + _BATCH_SIZE]
            series, cutoff = (
                torch.from_numpy(values[rows]).to(data.device) for values in (windows.series, windows.cutoff)
            )
            begin = 1 - (torch.from_numpy(left[rows]).to(data.device) + 1) * shape.segment_length - shape.lead
            time = shape.lead + size * shape.segment_length + shape.horizon
            batch = data.stretch(series, cutoff, cutoff + 1, begin, time)
            pasts = zip(members, carried.of(series), strict=True)
            carried.put(series, [member.advance(batch, past) for member, past in pasts])
        left[chosen] -= size
