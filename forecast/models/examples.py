"""What the changes of a group of series are fitted and judged on: their own latest windows."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from forecast.config import FinetuneSettings
from forecast.data.panel import IntArray
from forecast.models import stacked
from forecast.models.batch import PanelTensors
from forecast.models.decoders import SegmentDecoder
from forecast.models.heads import Head
from forecast.models.losses import window_sizes
from forecast.models.origins import Pass, alone, apart, passes, recency, rounds
from forecast.models.recurrent import Frame, Reading, RecurrentForecaster, loss_weights, targets
from forecast.models.stacked import Changes

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


class Told(NamedTuple):
    """Forecasts of M origins of each of G series, and what came."""

    arguments: Float[Tensor, "series origin horizon argument"]
    target: Float[Tensor, "series origin horizon"]
    weight: Float[Tensor, "series origin horizon"]
    """0 where not observed."""

    def loss(self, head: Head) -> Float[Tensor, " series"]:
        """Return the mean loss of each series, by the head's own."""
        error = head.errors(self.arguments, self.target) * self.weight
        return error.flatten(1).sum(1) / self.weight.flatten(1).sum(1).clamp(min=1e-9)


class Examples(ABC):
    """The latest origins of G series. An origin is named by how many steps it lies before the last usable one."""

    def __init__(
        self,
        network: RecurrentForecaster,
        data: PanelTensors,
        series: IntArray,
        usable: IntArray,
        settings: FinetuneSettings,
    ) -> None:
        self.network, self.data, self.settings = network, data, settings
        self.series, self.usable = (torch.from_numpy(values).to(data.device) for values in (series, usable))
        self.fitting = stacked.fitting(network)
        """What gradients are taken through."""

    def some(self, rows: Int[Tensor, " series"]) -> Self:
        """Return the examples of some of the series."""
        other = copy.copy(self)
        other.series, other.usable = self.series[rows], self.usable[rows]
        return other

    @abstractmethod
    def at(self, changes: Changes, ago: Int[Tensor, " origin"]) -> Told:
        """Return forecasts from origins."""

    def loss(self, step: int, end: int) -> Callable[[Changes], Float[Tensor, " series"]]:
        """Return what a step minimises, of each series, as `drawn`."""
        return lambda changes: self.drawn(changes, step, end).loss(self.network.head)

    @abstractmethod
    def drawn(self, changes: Changes, step: int, end: int) -> Told:
        """Return forecasts to take a step by, of targets that lie `end` steps or more before the end.

        Which origins are drawn depends on the step alone, not on what other series there are.
        """


class Remembered(Examples):
    """With a frozen encoder: what the decoder is told is made once, and kept."""

    def __init__(
        self,
        network: RecurrentForecaster,
        data: PanelTensors,
        series: IntArray,
        usable: IntArray,
        settings: FinetuneSettings,
        judged: Int[Tensor, " origin"],
    ) -> None:
        """Run the network once: over the latest origins, or some of them if they are many, and over those `judged`."""
        super().__init__(network, data, series, usable, settings)
        shape, every = network.shape, apart(network.shape)
        last = int(judged.max()) + shape.horizon + settings.origins
        fitted = torch.arange(-(-shape.horizon // every) * every, last, every)
        some = torch.randperm(len(fitted), generator=torch.Generator().manual_seed(0))[:_CACHED]
        self._fitted, self._judged = fitted[some].sort()[0], judged.unique()
        count = len(self._fitted) + len(self._judged)
        segments = isinstance(network.context, SegmentDecoder)
        parts: list[tuple[Tensor, ...]] = []

        def read(given: Pass, wanted: Int[Tensor, " origin"], first: int) -> None:
            """Keep what is told of the origins that are wanted; the first of them is at place `first`."""
            slot = torch.searchsorted(wanted, given.ago).clamp(max=len(wanted) - 1)
            here, local = torch.nonzero(wanted[slot] == given.ago, as_tuple=True)
            reading = network.read(given.batch, given.origins)
            target, observed = targets(given.batch, reading.frame, given.origins, shape)
            weight = loss_weights(target, observed, reading.frame, shape)
            light = reading._replace(
                ahead=reading.ahead if segments else reading.ahead[..., :0],
                state=reading.state[..., :0],
                frame=reading.frame._replace(window=reading.frame.window[..., :0]),
            ).each(lambda values: values[here, local][:, None])
            place = given.row[here] * count + first + slot[here, local]
            told = network.numbers(light)[:, 0], target[here, local], weight[here, local]
            light = light.each(lambda values: values[:, 0])
            parts.append((place, *light[:5], *light.frame, *told))

        with torch.inference_mode():
            for given in passes(network, data, series, usable, rounds(shape, last, every)):
                read(given, self._fitted, 0)
            for given in alone(network, data, series, usable, self._judged.numpy()):
                read(given, self._judged, len(self._fitted))
        at, *columns = (torch.cat(column) for column in zip(*parts, strict=True))
        order = at.argsort().to(data.device)
        # Out of inference mode, so that gradients may pass.
        columns = [values[order].clone().unflatten(0, (len(series), count)) for values in columns]
        self._numbers, self._target, self._weight = columns[-3:]
        self._reading = Reading._make([*columns[:5], Frame._make(columns[5:-3]), None])

    def some(self, rows: Int[Tensor, " series"]) -> Self:
        """Return the examples of some of the series."""
        other = super().some(rows)
        other._numbers, other._target, other._weight = (v[rows] for v in (self._numbers, self._target, self._weight))
        other._reading = self._reading.each(lambda values: values[rows])
        return other

    def at(self, changes: Changes, ago: Int[Tensor, " origin"]) -> Told:
        """Return forecasts from origins that were named."""
        return self._told(self.network, changes, len(self._fitted) + torch.searchsorted(self._judged, ago))

    def drawn(self, changes: Changes, step: int, end: int) -> Told:
        """Return forecasts from some of the origins that are kept."""
        least = end + self.network.shape.horizon
        first = int(torch.searchsorted(self._fitted, least))
        generator = torch.Generator().manual_seed(step)
        columns = first + torch.randperm(len(self._fitted) - first, generator=generator)[:_STEP_ORIGINS]
        told = self._told(self.fitting, changes, columns)
        recent = recency(self._fitted[columns] - least, self.settings.half_life).to(told.weight)
        return told._replace(weight=told.weight * recent[:, None])

    def _told(self, network: RecurrentForecaster, changes: Changes, columns: Tensor) -> Told:
        columns = columns.to(self._target.device)
        reading = self._reading.each(lambda values: values[:, columns])
        numbers = self._numbers[:, columns] if stacked.EMBEDDING not in changes else None
        output = stacked.restated(network, changes, reading, numbers)
        return Told(output.arguments, self._target[:, columns], self._weight[:, columns])


class Rolled(Examples):
    """With an encoder that differs from series to series: it is run at each step."""

    def at(self, changes: Changes, ago: Int[Tensor, " origin"]) -> Told:
        """Return forecasts from origins, each with a window of its own."""
        cutoff = self.usable[:, None] - 1 - ago.to(self.usable.device)
        limit = cutoff + 1 + self.network.shape.horizon
        told = self._told(self.network, changes, cutoff, limit, torch.zeros(1, dtype=torch.long), 1)
        return Told(*(values[:, :, 0] for values in told))

    def drawn(self, changes: Changes, step: int, end: int) -> Told:
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
        told = self._told(self.fitting, changes, first, (self.usable - end)[:, None].expand_as(first), origins, span)
        ago = high[..., None] - (first[..., None] + origins.to(device))
        recent = recency(ago, self.settings.half_life)[..., None]
        return Told(*(values.flatten(1, 2) for values in told._replace(weight=told.weight * recent)))

    def _told(
        self,
        network: RecurrentForecaster,
        changes: Changes,
        first: Int[Tensor, "series window"],
        limit: Int[Tensor, "series window"],
        origins: Tensor,
        span: int,
    ) -> Told:
        """Return what is told with an axis [series, window, origin] in place of [series, origin]."""
        origins = origins.to(self.data.device)
        series = self.series[:, None].expand_as(first)
        batch = self.data.gather(series.flatten(), first.flatten(), limit.flatten(), **window_sizes(self.network, span))
        made, frame = stacked.forecasts(network, changes, batch, origins)
        target, observed = targets(batch, frame, origins, self.network.shape)
        weight = loss_weights(target, observed, frame, self.network.shape)
        return Told(*(values.unflatten(0, first.shape) for values in (made, target, weight)))


def group_numbers(network: RecurrentForecaster, settings: FinetuneSettings) -> int:
    """Return about how many numbers are held for each series of a group."""
    shape, size = network.shape, network.state_size
    if settings.kind in stacked.FROZEN:
        features = len(network.step.state_dict()["0.weight"].T)
        return shape.horizon * (_CACHED * (features + network.head.n_parameters) + _STEP_ORIGINS * _WIDTH)
    changes = stacked.unchanged(network, settings.kind, 1, settings.rank)
    own, weights = stacked.count(changes.values()), stacked.count(network.parameters())
    steps = 2 * shape.context_length // shape.segment_length
    width = steps * network.encoder.num_layers * _LAYERS * size + _WINDOW_ORIGINS * shape.horizon * _WIDTH
    return _COPIES * own + 2 * weights + (settings.batch_size or BATCH_SIZE) * width
