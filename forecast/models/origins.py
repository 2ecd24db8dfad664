"""The latest origins of some series, each seen once."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from forecast.data.panel import IntArray
from forecast.models.batch import Batch, PanelTensors
from forecast.models.ensemble import Forecaster
from forecast.models.module import window_sizes
from forecast.models.recurrent import NetworkShape

# Numbers held at once while the network runs: targets of all origins of a batch of windows.
_BATCH_TARGETS = 500_000


class Pass(NamedTuple):
    """Windows of some of the series, with origins a segment apart."""

    row: Int[Tensor, " batch"]
    """Of the series, counted among those that are asked for."""
    ago: Int[Tensor, "batch origin"]
    """How many steps each origin lies before the last usable one, or is that (0)."""
    batch: Batch
    origins: Int[Tensor, " origin"]


class Rounds(NamedTuple):
    """How the last steps of a series are divided into windows, so that each is an origin once."""

    span: int
    """Steps from the first origin of a window to its last, and one segment."""
    chunks: int
    """Windows one after another, for each phase of a segment."""

    @property
    def total(self) -> int:
        """Origins of each series: as many as are asked for, or some more."""
        return self.span * self.chunks


def rounds(shape: NetworkShape, n_origins: int) -> Rounds:
    """Return the division of the last `n_origins` steps."""
    segment = shape.segment_length
    span = min(shape.context_length, n_origins) // segment * segment or segment
    return Rounds(span, -(-n_origins // span))


def passes(
    network: Forecaster, data: PanelTensors, series: IntArray, usable: IntArray, n_origins: int
) -> Iterator[Pass]:
    """Yield windows that have each of the last `n_origins` of the `usable` steps as an origin.

    By series, window after window, phase after phase. Targets and past covariates after the usable steps are hidden.
    """
    horizon, segment = network.shape.horizon, network.shape.segment_length
    span, chunks = rounds(network.shape, n_origins)
    total = chunks * span
    origins = torch.arange(0, span, segment, device=data.device)
    rows = torch.arange(len(series)).repeat_interleave(chunks * segment)
    chunk = torch.arange(chunks).repeat_interleave(segment).repeat(len(series))
    begin = chunk * span + torch.arange(segment).repeat(len(series) * chunks)
    first = torch.from_numpy(usable)[rows] - total + begin
    n_numbers = horizon * max(network.shape.n_classes, 1) * network.n_paths
    size = max(1, _BATCH_TARGETS // (len(origins) * n_numbers))
    for at in range(0, len(rows), size):
        row = rows[at : at + size]
        chosen = torch.from_numpy(series)[row].to(data.device)
        limit = torch.from_numpy(usable)[row].to(data.device)
        batch = data.gather(chosen, first[at : at + size].to(data.device), limit, **window_sizes(network, span))
        ago = total - 1 - (begin[at : at + size, None] + origins.cpu())
        yield Pass(row, ago, batch, origins)


def recency(ago: Tensor, half_life: float | None) -> Float[Tensor, "*axes"]:
    """Return the weight of an origin so many steps ago: half as much for each `half_life`, 1 without one."""
    return torch.ones_like(ago, dtype=torch.float32) if half_life is None else torch.exp2(-ago.clamp(min=0) / half_life)
