"""The latest origins of some series: those to fit on, and held-out cutoffs."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from forecast.data.panel import IntArray
from forecast.models.inputs.batch import Batch, PanelTensors
from forecast.models.inputs.frame import loss_weights, targets
from forecast.models.inputs.shape import NetworkShape
from forecast.models.network.ensemble import Forecaster
from forecast.models.network.losses import window_sizes
from forecast.models.network.output import Output

# Numbers held at once while the network runs: targets of all origins of a batch of windows.
_BATCH_TARGETS = 500_000
# Windows of one origin at once.
_BATCH_WINDOWS = 256

# The origins that are fitted on are about so large a share of the horizon apart: the errors of origins that share most
# of their targets say hardly more than those of one of them.
_APART = 1 / 2

# The origins of a window are in so many contexts at most, behind the context that each window begins with. The encoder
# remembers more at the later ones than in a forecast, which makes no difference to what is fitted.
_SPAN = 4


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

    def within(self, longest: int) -> "Rounds":
        """Return those without windows of which all origins are before a series of this length begins."""
        return self._replace(chunks=min(self.chunks, -(-longest // self.span)))


def apart(shape: NetworkShape) -> int:
    """Return how many steps the origins are apart: of the possible ones, what is nearest to `_APART` of the horizon."""
    segment, wanted = shape.segment_length, max(1.0, _APART * shape.horizon)
    possible = [
        every for every in range(1, max(segment, shape.horizon) + 1) if not (segment % every and every % segment)
    ]
    return min(possible, key=lambda every: abs(math.log(every / wanted)))


def rounds(shape: NetworkShape, n_steps: int, every: int = 1) -> Rounds:
    """Return the division of the last `n_steps` steps with an origin at the last one and `every` so many before.

    That divides a segment, or is whole segments.
    """
    step = max(shape.segment_length, every)
    assert step % every == step % shape.segment_length == 0, (step, every)
    n_each, most = -(-n_steps // step), max(1, _SPAN * shape.context_length // step)
    chunks = -(-n_each // most)
    return Rounds(-(-n_each // chunks) * step, chunks, step, torch.arange(every - 1, step, every))


def passes(
    network: Forecaster, data: PanelTensors, series: IntArray, usable: IntArray, parts: Rounds
) -> Iterator[Pass]:
    """Yield windows that have origins in the last of the `usable` steps.

    By series, window after window, phase after phase. Targets and past covariates after the usable steps are hidden.
    """
    shape = network.shape
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


def alone(network: Forecaster, data: PanelTensors, series: IntArray, usable: IntArray, ago: IntArray) -> Iterator[Pass]:
    """Yield windows with one origin each, `ago` steps ([origin]) before the last of the `usable` steps, by series.

    The encoder begins with the context, as in a forecast. Nothing after the horizon is read.
    """
    rows = torch.arange(len(series)).repeat_interleave(len(ago))
    each, origin = torch.from_numpy(ago).repeat(len(series)), torch.zeros(1, dtype=torch.long, device=data.device)
    for row, own in zip(rows.split(_BATCH_WINDOWS), each.split(_BATCH_WINDOWS), strict=True):
        chosen, cutoff = torch.from_numpy(series)[row], torch.from_numpy(usable)[row] - 1 - own
        chosen, cutoff = chosen.to(data.device), cutoff.to(data.device)
        batch = data.gather(chosen, cutoff, cutoff + network.shape.horizon + 1, **window_sizes(network, 1))
        yield Pass(row, own[:, None], batch, origin)


def held_out(horizon: int, n_windows: int) -> IntArray:
    """Return how many steps ago the held-out cutoffs are, oldest first: a horizon apart, the last with one after it."""
    return np.arange(n_windows, 0, -1) * horizon


def forecast(network: Forecaster, given: Pass) -> tuple[Output, Tensor, Tensor]:
    """Return what is forecast, what came and how much it counts, both [window, origin, horizon]."""
    output = network(given.batch, given.origins)
    target, observed = targets(given.batch, output.frame, given.origins, network.shape)
    return output, target, loss_weights(target, observed, output.frame, network.shape)


def recency(ago: Tensor, half_life: float | None) -> Float[Tensor, "*axes"]:
    """Return the weight of an origin so many steps ago: half as much for each `half_life`, 1 without one."""
    return torch.ones_like(ago, dtype=torch.float32) if half_life is None else torch.exp2(-ago.clamp(min=0) / half_life)
