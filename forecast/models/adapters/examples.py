"""Examples of a group of series: their latest windows, to fit changes on and to validate them."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from forecast.config import TuningSettings
from forecast.models.adapters import optimiser, stacked
from forecast.models.adapters.origins import (
    Pass,
    SeriesGroup,
    chunking,
    iter_windows,
    origin_stride,
    recency,
    single_origin,
)
from forecast.models.adapters.stacked import Deltas
from forecast.models.heads.base import Head
from forecast.models.inputs.frame import loss_weights, target_weights, targets
from forecast.models.network.ensemble import Member
from forecast.models.network.losses import window_sizes
from forecast.models.tensors import each, join
from forecast.models.tunable import AnyTunable

# Origins of each series that a frozen encoder is run over, and that one step takes.
_CACHED = 256
_STEP_ORIGINS = 16
# Windows of each series in one step, and origins of each of them.
BATCH_SIZE = 4
_WINDOW_ORIGINS = 16
# Numbers of the changes that are held for a series: themselves, a gradient, two moments, two of the best, and more.
_COPIES = 9
# Widths, in hidden sizes and in numbers of a step, of what is kept for a gradient.
_LAYERS, _WIDTH = 14, 400


class Scored(NamedTuple):
    """Forecasts of M origins of each of G series, with targets and weights."""

    arguments: Float[Tensor, "series origin horizon argument"]
    target: Float[Tensor, "series origin horizon"]
    weight: Float[Tensor, "series origin horizon"]
    """0 where not observed."""

    def loss(self, head: Head) -> Float[Tensor, " series"]:
        """Return the mean loss of each series, by the head's own."""
        error = head.errors(self.arguments, self.target) * self.weight
        return error.flatten(1).sum(1) / self.weight.flatten(1).sum(1).clamp(min=1e-9)


class _Memory(NamedTuple):
    """Cached decoder inputs and targets of M origins of each of G series."""

    reading: Any
    """Of the network, [series, origin, ...]."""
    numbers: Float[Tensor, "series origin horizon number"]
    """Of the base."""
    target: Float[Tensor, "series origin horizon"]
    weight: Float[Tensor, "series origin horizon"]


class Examples(ABC):
    """The latest origins of G series. An origin is named by how many steps it lies before the last usable one."""

    def __init__(self, group: SeriesGroup[Member], settings: TuningSettings) -> None:
        self.network, self.data, self.settings = group.network, group.data, settings
        self.series, self.usable = (
            torch.from_numpy(values).to(self.data.device) for values in (group.series, group.usable)
        )
        self.fitting = optimiser.fitting(self.network)
        """What gradients are taken through."""

    def some(self, rows: Int[Tensor, " series"]) -> Self:
        """Return the examples of some of the series."""
        subset = copy.copy(self)
        subset.series, subset.usable = self.series[rows], self.usable[rows]
        return subset

    @abstractmethod
    def at(self, changes: Deltas, ago: Int[Tensor, " origin"]) -> Scored:
        """Return forecasts from origins."""

    def loss(self, step: int, end: int) -> Callable[[Deltas], Float[Tensor, " series"]]:
        """Return what a step minimises, of each series, as `drawn`."""
        return lambda changes: self.drawn(changes, step, end).loss(self.network.head)

    @abstractmethod
    def drawn(self, changes: Deltas, step: int, end: int) -> Scored:
        """Return forecasts to take a step by, of targets that lie `end` steps or more before the end.

        Which origins are drawn depends on the step alone, not on what other series there are.
        """


class CachedExamples(Examples):
    """Examples of a frozen encoder: the decoder's inputs are computed once and cached."""

    def __init__(self, group: SeriesGroup[Member], settings: TuningSettings, judged: Int[Tensor, " origin"]) -> None:
        """Run the network once: over the latest origins, or some of them if they are many, and over those `judged`."""
        super().__init__(group, settings)
        network, shape, every = self.network, self.network.shape, origin_stride(self.network.shape)
        last = int(judged.max()) + shape.horizon + settings.origins
        fitted = torch.arange(-(-shape.horizon // every) * every, last, every)
        some = torch.randperm(len(fitted), generator=torch.Generator().manual_seed(0))[:_CACHED]
        self._fitted, self._judged = fitted[some].sort()[0], judged.unique()
        count = len(self._fitted) + len(self._judged)
        decodes = settings.kind == stacked.EMBEDDING
        parts: list[_Memory] = []
        places: list[Tensor] = []

        def read(model: AnyTunable, windows: Pass, wanted: Int[Tensor, " origin"], first: int) -> None:
            """Keep what is told of the origins that are wanted; the first of them is at place `first`."""
            slot = torch.searchsorted(wanted, windows.ago).clamp(max=len(wanted) - 1)
            here, local = torch.nonzero(wanted[slot] == windows.ago, as_tuple=True)
            reading = model.encode(windows.batch, windows.origins)
            target, observed = targets(windows.batch, reading.frame, windows.origins, shape)
            weight = target_weights(windows.batch, windows.origins, shape)
            weight = loss_weights(target, observed, reading.frame, shape, weight)
            light = each(model.trim(reading, decodes=True), lambda values: values[here, local][:, None])
            numbers = model.step_parameters(light)[:, 0]
            light = each(model.trim(light, decodes=decodes), lambda values: values[:, 0])
            parts.append(_Memory(light, numbers, target[here, local], weight[here, local]))
            places.append(windows.row[here] * count + first + slot[here, local])

        with torch.inference_mode():
            for windows in iter_windows(group, chunking(shape, last, every)):
                read(self.fitting, windows, self._fitted, 0)
            for windows in single_origin(group, self._judged.numpy()):
                read(network, windows, self._judged, len(self._fitted))
        order = torch.cat(places).argsort().to(self.data.device)
        # Out of inference mode, so that gradients may pass.
        memory = join(parts)
        self._memory = each(memory, lambda values: values[order].clone().unflatten(0, (len(group.series), count)))

    def some(self, rows: Int[Tensor, " series"]) -> Self:
        """Return the examples of some of the series."""
        subset = super().some(rows)
        subset._memory = each(self._memory, lambda values: values[rows])
        return subset

    def at(self, changes: Deltas, ago: Int[Tensor, " origin"]) -> Scored:
        """Return forecasts from origins that were named."""
        return self._told(self.network, changes, len(self._fitted) + torch.searchsorted(self._judged, ago))

    def drawn(self, changes: Deltas, step: int, end: int) -> Scored:
        """Return forecasts from some of the origins that are kept."""
        least = end + self.network.shape.horizon
        first = int(torch.searchsorted(self._fitted, least))
        generator = torch.Generator().manual_seed(step)
        columns = first + torch.randperm(len(self._fitted) - first, generator=generator)[:_STEP_ORIGINS]
        scored = self._told(self.fitting, changes, columns)
        recent = recency(self._fitted[columns] - least, self.settings.half_life).to(scored.weight)
        return scored._replace(weight=scored.weight * recent[:, None])

    def _told(self, network: AnyTunable, changes: Deltas, columns: Tensor) -> Scored:
        columns = columns.to(self._memory.target.device)
        reading, numbers, target, weight = each(self._memory, lambda values: values[:, columns])
        output = stacked.restated(network, changes, reading, None if stacked.EMBEDDING in changes else numbers)
        return Scored(output.arguments, target, weight)


class FullExamples(Examples):
    """Examples of an encoder that differs between series: it runs at each step."""

    def at(self, changes: Deltas, ago: Int[Tensor, " origin"]) -> Scored:
        """Return forecasts from origins, each with a window of its own."""
        cutoff = self.usable[:, None] - 1 - ago.to(self.usable.device)
        limit = cutoff + 1 + self.network.shape.horizon
        scored = self._told(self.network, changes, cutoff, limit, torch.zeros(1, dtype=torch.long), 1)
        return Scored(*(values[:, :, 0] for values in scored))

    def drawn(self, changes: Deltas, step: int, end: int) -> Scored:
        """Return forecasts from some origins of a few windows."""
        shape, device = self.network.shape, self.usable.device
        span = shape.context_length - shape.segment_length + 1
        candidates = torch.arange(0, span, shape.segment_length)
        generator = torch.Generator().manual_seed(step)
        share = torch.rand(self.settings.batch_size or BATCH_SIZE, generator=generator).to(device)
        origins = candidates[torch.randperm(len(candidates), generator=generator)[:_WINDOW_ORIGINS].sort().values]
        high = (self.usable - end - 2)[:, None]
        low = torch.minimum(high, (high - self.settings.origins + 1).clamp(min=span - 1))
        final = low + (share * (high - low + 1)).floor().long()
        first = final - span + 1
        scored = self._told(self.fitting, changes, first, (self.usable - end)[:, None].expand_as(first), origins, span)
        ago = high[..., None] - (first[..., None] + origins.to(device))
        recent = recency(ago, self.settings.half_life)[..., None]
        return Scored(*(values.flatten(1, 2) for values in scored._replace(weight=scored.weight * recent)))

    def _told(
        self,
        network: AnyTunable,
        changes: Deltas,
        first: Int[Tensor, "series window"],
        limit: Int[Tensor, "series window"],
        origins: Tensor,
        span: int,
    ) -> Scored:
        """Return what is told with an axis [series, window, origin] in place of [series, origin]."""
        origins = origins.to(self.data.device)
        series = self.series[:, None].expand_as(first)
        batch = self.data.gather(series.flatten(), first.flatten(), limit.flatten(), **window_sizes(self.network, span))
        arguments, frame = stacked.forecasts(network, changes, batch, origins)
        target, observed = targets(batch, frame, origins, self.network.shape)
        weight = target_weights(batch, origins, self.network.shape)
        weight = loss_weights(target, observed, frame, self.network.shape, weight)
        return Scored(*(values.unflatten(0, first.shape) for values in (arguments, target, weight)))


def group_numbers(network: AnyTunable, settings: TuningSettings) -> int:
    """Return about how many numbers are held for each series of a group."""
    shape = network.shape
    if settings.kind in stacked.FROZEN:
        return shape.horizon * (_CACHED * (network.step_size + network.head.n_parameters) + _STEP_ORIGINS * _WIDTH)
    changes = stacked.unchanged(network, settings.kind, 1, settings.rank)
    n_changes, weights = stacked.count(changes.values()), stacked.count(network.parameters())
    steps = 2 * shape.context_length // shape.segment_length
    width = steps * network.encoder_size * _LAYERS + _WINDOW_ORIGINS * shape.horizon * _WIDTH
    return _COPIES * n_changes + 2 * weights + (settings.batch_size or BATCH_SIZE) * width
