"""The latest origins of some series: those to fit on, and held-out cutoffs."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from forecast.data.panel import IntArray
from forecast.data.windows import WindowIndex
from forecast.models.batch import Batch, PanelTensors
from forecast.models.ensemble import Forecaster
from forecast.models.module import validation_batches, window_sizes
from forecast.models.recurrent import NetworkShape, Output, loss_weights, targets

# Numbers held at once while the network runs: targets of all origins of a batch of windows.
_BATCH_TARGETS = 500_000


class Pass(NamedTuple):
    """Windows of some of the series, with origins whole segments apart."""

    row: Int[Tensor, " batch"]
    """Of the series, counted among those that are asked for."""
    ago: Int[Tensor, "batch origin"]
    """How many steps each origin lies before the last usable one, or is that (0)."""
    batch: Batch
    origins: Int[Tensor, " origin"]


class Rounds(NamedTuple):
    """How the last steps of a series are divided into windows, so that each origin is in one of them."""

    span: int
    """Steps from the first origin of a window to that of the next."""
    chunks: int
    """Windows one after another, for each phase."""
    step: int
    """Steps between the origins of a window: whole segments."""
    phases: Int[Tensor, " phase"]
    """Where the first origins of windows lie in a step."""

    @property
    def total(self) -> int:
        """Steps that the origins are of: as many as are asked for, or some more."""
        return self.span * self.chunks


def rounds(shape: NetworkShape, n_steps: int, every: int = 1) -> Rounds:
    """Return the division of the last `n_steps` steps with an origin at the last one and `every` so many before.

    That divides a segment, or is whole segments.
    """
    step = max(shape.segment_length, every)
    assert step % every == step % shape.segment_length == 0, (step, every)
    span = min(shape.context_length, n_steps) // step * step or step
    return Rounds(span, -(-n_steps // span), step, torch.arange(every - 1, step, every))


def passes(
    network: Forecaster, data: PanelTensors, series: IntArray, usable: IntArray, n_steps: int, every: int = 1
) -> Iterator[Pass]:
    """Yield windows that have origins in the last `n_steps` of the `usable` steps, as `rounds` says.

    By series, window after window, phase after phase. Targets and past covariates after the usable steps are hidden.
    """
    shape, parts = network.shape, rounds(network.shape, n_steps, every)
    origins = torch.arange(0, parts.span, parts.step, device=data.device)
    n_phases = len(parts.phases)
    rows = torch.arange(len(series)).repeat_interleave(parts.chunks * n_phases)
    chunk = torch.arange(parts.chunks).repeat_interleave(n_phases).repeat(len(series))
    begin = chunk * parts.span + parts.phases.repeat(len(series) * parts.chunks)
    first = torch.from_numpy(usable)[rows] - parts.total + begin
    n_numbers = shape.horizon * max(shape.n_classes, 1) * network.n_paths
    size = max(1, _BATCH_TARGETS // (len(origins) * n_numbers))
    sizes = window_sizes(network, int(origins[-1]) + 1)
    for at in range(0, len(rows), size):
        row = rows[at : at + size]
        chosen = torch.from_numpy(series)[row].to(data.device)
        limit = torch.from_numpy(usable)[row].to(data.device)
        batch = data.gather(chosen, first[at : at + size].to(data.device), limit, **sizes)
        ago = parts.total - 1 - (begin[at : at + size, None] + origins.cpu())
        yield Pass(row, ago, batch, origins)


def held_out(
    network: Forecaster, data: PanelTensors, series: IntArray, usable: IntArray, n_windows: int
) -> Iterator[tuple[Output, Tensor, Tensor]]:
    """Yield what is forecast at the last cutoffs with a full horizon after them, a horizon apart, and what came.

    By series, oldest first. Target and weight are [window, 1, horizon].
    """
    horizon = network.shape.horizon
    cutoff = usable[:, None] - 1 - np.arange(n_windows, 0, -1) * horizon
    for indices in validation_batches(WindowIndex(np.repeat(series, n_windows), cutoff.ravel())):
        chosen, own, origins = (part.to(data.device) for part in indices)
        batch = data.gather(chosen, own, own + horizon + 1, **window_sizes(network, 1))
        output = network(batch, origins)
        target, observed = targets(batch, output.frame, origins, network.shape)
        yield output, target, loss_weights(target, observed, output.frame, network.shape)


def recency(ago: Tensor, half_life: float | None) -> Float[Tensor, "*axes"]:
    """Return the weight of an origin so many steps ago: half as much for each `half_life`, 1 without one."""
    return torch.ones_like(ago, dtype=torch.float32) if half_life is None else torch.exp2(-ago.clamp(min=0) / half_life)
