"""The panel on a device, and the one gather that makes a batch of windows."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from forecast.data.panel import Panel


class Batch(NamedTuple):
    """Windows of `context + span - 1 + horizon` steps: `span` consecutive origins, the first after `context` steps."""

    target: Float[Tensor, "batch time"]
    """0 where not observed."""
    observed: Bool[Tensor, "batch time"]
    past: Float[Tensor, "batch time past"]
    """NaN where missing."""
    known: Float[Tensor, "batch time known"]
    """NaN where missing; the user's columns, then the calendar's. Zero before the start of a series."""
    static_categories: Int[Tensor, "batch categorical"]
    static_numbers: Float[Tensor, "batch numeric"]


class PanelTensors:
    """A panel's buffers on one device. Windows are views: memory does not depend on their number."""

    def __init__(self, panel: Panel, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.horizon = panel.horizon
        self.calendar_start = panel.calendar_start
        self.n_calendar = panel.calendar.shape[0]

        def put(values: np.ndarray) -> Tensor:
            return torch.from_numpy(np.require(values, requirements=["C", "W"])).to(self.device)

        self.offsets = put(panel.offsets)
        self.start = put(panel.start)
        self.lengths = put(panel.lengths)
        self.target = put(panel.target)
        self.past = put(panel.past)
        self.known = put(panel.known)
        self.calendar = put(panel.calendar)
        self.static_categories = put(panel.static_categories)
        self.static_numbers = put(panel.static_numbers)

    def __deepcopy__(self, memo: object) -> "PanelTensors":
        """Return this object: the buffers never change, and copies of a module may share them."""
        return self

    def gather(
        self,
        series: Int[Tensor, " batch"],
        first_origin: Int[Tensor, " batch"],
        limit: Int[Tensor, " batch"],
        *,
        context: int,
        span: int,
        horizon: int,
    ) -> Batch:
        """Return the windows whose first origin is step `first_origin` of `series`.

        Targets and past covariates from step `limit` on are hidden, whatever the panel holds there.
        """
        time = context + span - 1 + horizon
        step = first_origin[:, None] + torch.arange(1 - context, time - context + 1, device=self.device)
        begun = step >= 0
        visible = begun & (step < torch.minimum(limit, self.lengths[series])[:, None])
        begin = self.offsets[series] + step[:, 0]
        target = _slices(self.target, begin, time)
        observed = visible & torch.isfinite(target)

        past = _slices(self.past, begin, time).masked_fill(~visible, torch.nan) if len(self.past) else self.past
        # Each series has `self.horizon` more steps of known covariates than of the target.
        held = begun & (step < (self.lengths[series] + self.horizon)[:, None])
        columns = _slices(self.known, begin + series * self.horizon, time).masked_fill(~held, torch.nan)
        calendar = _slices(self.calendar, self.start[series] + step[:, 0] - self.calendar_start, time)
        known = torch.cat([columns, calendar]).masked_fill(~begun, 0.0)
        return Batch(
            target=target.masked_fill(~observed, 0.0),
            observed=observed,
            past=past.permute(1, 2, 0) if len(self.past) else target.new_empty((*target.shape, 0)),
            known=known.permute(1, 2, 0),
            static_categories=self.static_categories[series],
            static_numbers=self.static_numbers[series],
        )


def _slices(buffer: Tensor, begin: Int[Tensor, " batch"], length: int) -> Tensor:
    """Return [..., batch, length]: `length` entries of the last axis of `buffer` from each `begin`.

    Entries outside the buffer hold some other entry; the caller masks them.
    """
    size = buffer.shape[-1]
    if buffer.numel() == 0:
        return buffer.new_zeros((*buffer.shape[:-1], len(begin), length))
    if size < length or bool((begin < 0).any()) or bool((begin > size - length).any()):
        index = (begin[:, None] + torch.arange(length, device=begin.device)).clamp_(0, size - 1)
        return buffer[..., index]
    # Rows end to end, so that the windows are rows of one view: selecting along an inner axis would copy the whole view first.
    rows = torch.arange(buffer[..., 0].numel(), device=begin.device)[:, None] * size
    windows = buffer.reshape(-1).unfold(0, length, 1).index_select(0, (rows + begin).flatten())
    return windows.view(*buffer.shape[:-1], len(begin), length)
