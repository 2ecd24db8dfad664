"""The latest origins of some series: those to fit on, and held-out cutoffs."""

import math
from collections.abc import Iterator
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from forecast.data.panel import IntArray
from forecast.models.inputs.batch import Batch, PanelTensors
from forecast.models.inputs.frame import loss_weights, target_weights, targets
from forecast.models.inputs.shape import NetworkShape
from forecast.models.network.ensemble import Forecaster
from forecast.models.network.losses import window_sizes
from forecast.models.network.output import Output

# Targets of all origins of a batch of windows, at most.
_BATCH_TARGETS = 500_000
# Windows with one origin in a batch.
_BATCH_WINDOWS = 256

# Distance of the origins of a fit, as a share of the horizon: errors of origins that share most of their targets hold
# hardly more information than those of one of them.
_APART = 1 / 2

SPAN = 4
"""Contexts over which the origins of a window extend at most, after the context that each window begins with.

At later origins the encoder has read more than in a forecast, which does not affect the fit.
"""


N = TypeVar("N", bound=Forecaster)


class SeriesGroup(NamedTuple, Generic[N]):
    """Some series of a panel, with the network that forecasts them."""

    network: N
    data: PanelTensors
    series: IntArray
    """[G], row of each series in the panel."""
    usable: IntArray
    """[G], steps of each series that a fit may use."""

    def rows(self, rows: IntArray) -> "SeriesGroup[N]":
        """Return some of the series."""
        return self._replace(series=self.series[rows], usable=self.usable[rows])


class Pass(NamedTuple):
    """Windows of some of the series, with origins whole segments apart."""

    window: Int[Tensor, " batch"]
    """Index of the window among all of the call."""
    row: Int[Tensor, " batch"]
    """Index of the series among those of the call."""
    ago: Int[Tensor, "batch origin"]
    """Steps from each origin to the last usable step; 0 is this step."""
    batch: Batch
    origins: Int[Tensor, " origin"]


class Chunking(NamedTuple):
    """Division of the last steps of a series into windows, each origin in one of them."""

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

    def within(self, longest: int) -> "Chunking":
        """Return the division without windows that end before the start of a series of this length."""
        return self._replace(chunks=min(self.chunks, -(-longest // self.span)))


def origin_stride(shape: NetworkShape) -> int:
    """Return the steps between origins: the possible number nearest to `_APART` of the horizon."""
    segment, target_stride = shape.segment_length, max(1.0, _APART * shape.horizon)
    possible = [
        stride for stride in range(1, max(segment, shape.horizon) + 1) if not (segment % stride and stride % segment)
    ]
    return min(possible, key=lambda stride: abs(math.log(stride / target_stride)))


def chunking(shape: NetworkShape, n_steps: int, every: int = 1, contexts: int = SPAN) -> Chunking:
    """Return the division of the last `n_steps` steps with an origin at the last one and `every` so many before.

    That divides a segment, or is whole segments. The origins of a window extend over `contexts` at most.
    """
    step = max(shape.segment_length, every)
    assert step % every == step % shape.segment_length == 0, (step, every)
    n_each, most = -(-n_steps // step), max(1, contexts * shape.context_length // step)
    chunks = -(-n_each // most)
    return Chunking(-(-n_each // chunks) * step, chunks, step, torch.arange(every - 1, step, every))


def iter_windows(group: SeriesGroup[N], parts: Chunking, *, blank: bool = True) -> Iterator[Pass]:
    """Yield windows that have origins in the last of the `usable` steps.

    By series, window after window, phase after phase. Targets and past covariates after the usable steps are hidden.
    Without `blank`, windows whose origins all lie before their series are left out.
    """
    network, data, series, usable = group
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
    windows = torch.arange(len(rows)) if blank else (first + int(origins[-1]) >= 0).nonzero()[:, 0]
    for window in windows.split(size):
        row = rows[window]
        chosen = torch.from_numpy(series)[row].to(data.device)
        limit = torch.from_numpy(usable)[row].to(data.device)
        batch = data.gather(chosen, first[window].to(data.device), limit, **sizes)
        ago = parts.total - 1 - (begin[window, None] + origins.cpu())
        yield Pass(window, row, ago, batch, origins)


def single_origin(group: SeriesGroup[N], ago: IntArray) -> Iterator[Pass]:
    """Yield windows with one origin each, `ago` steps ([origin]) before the last of the `usable` steps, by series.

    The encoder begins with the context, as in a forecast. Nothing after the horizon is read.
    """
    network, data, series, usable = group
    rows = torch.arange(len(series)).repeat_interleave(len(ago))
    all_ago, origin = torch.from_numpy(ago).repeat(len(series)), torch.zeros(1, dtype=torch.long, device=data.device)
    for window in torch.arange(len(rows)).split(_BATCH_WINDOWS):
        row, part_ago = rows[window], all_ago[window]
        chosen, cutoff = torch.from_numpy(series)[row], torch.from_numpy(usable)[row] - 1 - part_ago
        chosen, cutoff = chosen.to(data.device), cutoff.to(data.device)
        batch = data.gather(chosen, cutoff, cutoff + network.shape.horizon + 1, **window_sizes(network, 1))
        yield Pass(window, row, part_ago[:, None], batch, origin)


def held_out(horizon: int, n_windows: int) -> IntArray:
    """Return the ages of the held-out cutoffs in steps, oldest first: a horizon apart, the last one horizon ago."""
    return np.arange(n_windows, 0, -1) * horizon


def forecast(network: Forecaster, windows: Pass) -> tuple[Output, Tensor, Tensor]:
    """Return the forecasts, the targets and their loss weights, both [window, origin, horizon]."""
    output = network(windows.batch, windows.origins)
    target, observed = targets(windows.batch, output.frame, windows.origins, network.shape)
    weight = target_weights(windows.batch, windows.origins, network.shape)
    return output, target, loss_weights(target, observed, output.frame, network.shape, weight)


def recency(ago: Tensor, half_life: float | None) -> Float[Tensor, "*axes"]:
    """Return the weight of an origin `ago` steps before the last: 2^(-ago / half_life), or 1 without a half-life."""
    return torch.ones_like(ago, dtype=torch.float32) if half_life is None else torch.exp2(-ago.clamp(min=0) / half_life)
