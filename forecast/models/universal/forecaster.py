"""The universal network as a forecaster of one panel: the same interface as that of networks trained on it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from forecast.config import ModelConfig
from forecast.models.heads.quantile import QuantileHead
from forecast.models.inputs.batch import Batch
from forecast.models.inputs.frame import Frame, gather_windows
from forecast.models.inputs.scaling import FEW
from forecast.models.inputs.shape import NetworkShape
from forecast.models.inputs.transform import to_data, to_model
from forecast.models.network.output import EncoderState, Output
from forecast.models.tensors import each
from forecast.models.tunable import Tunable
from forecast.models.universal.blocks import in_blocks, in_blocks_by_length
from forecast.models.universal.candidates import NAMES
from forecast.models.universal.covariates import Columns, CovariateEffect, Shift
from forecast.models.universal.forecasting import CONTEXTS
from forecast.models.universal.history import Window
from forecast.models.universal.network import LEVELS, PATCH, Blank, Shape, Steps, UniversalNetwork

# Windows that are forecast together. A block that is not full is filled up: a forecast does not depend on the others.
_BLOCK = 64
# Steps of forecasts that are held at once without gradients.
_STEPS = 100_000
_REACH = 20.0
_LEAST_SPREAD = 0.005

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class UniversalShape(NetworkShape):
    """What a universal network for a panel is built from."""

    network: Shape
    second_season: int = 0
    """Steps of a longer season, such as a week of hours; 0 without any."""
    checkpoint: str = ""
    """Name and digest of the weights it began with."""
    covariates: bool = False
    """Whether it has a regression on covariates (`models.covariates`)."""

    def to_json(self) -> dict[str, Any]:
        """Return the shape as JSON."""
        return super().to_json() | {"network": self.network._asdict()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Return the shape that `to_json` wrote."""
        return super().from_json(values | {"network": Shape(**values["network"])})

    @classmethod
    def of(cls, shape: NetworkShape, network: Shape, *, second_season: int, length: int, checkpoint: str) -> Self:
        """Return the shape for a panel whose longest series has `length` steps; `shape` is that of another network.

        The context holds three seasons, and at least 512 steps, where series have so many.
        """
        least = min(length, max(512, 3 * max(shape.season_length, second_season)))
        context = next((steps for steps in CONTEXTS if steps >= least), CONTEXTS[-1])
        own = replace(shape, context_length=context, segment_length=PATCH, anchor="level", smoothing=False)
        values = {name: getattr(own, name) for name in NetworkShape.__dataclass_fields__}
        return cls(**values, network=network, second_season=second_season, checkpoint=checkpoint)


class _Windows(NamedTuple):
    """Windows as the network is given them."""

    values: Float[Tensor, "window time"]
    """In units of the data, but for a level that was taken off."""
    observed: Bool[Tensor, "window time"]
    level: Float[Tensor, " window"] | None
    """`Batch.level`."""
    columns: Columns | None
    """Covariates, where there is a regression on them; known ones of a horizon more."""


class Reading(NamedTuple):
    """What the last layers are given of the origins of a batch."""

    summary: Float[Tensor, "batch origin state"]
    """What the cell has read."""
    steps: Steps | None
    """None where they have been decoded already."""
    effect: Float[Tensor, "batch origin horizon"] | None
    """Of covariates, in units of the scale of `steps`; None without a regression on them."""
    frame: Frame
    location: Float[Tensor, "batch origin"]
    """What `numbers` are around, in units of the data."""
    scale: Float[Tensor, "batch origin"]
    """What `numbers` are in units of; 0 of a constant."""
    level: Float[Tensor, "batch origin"] | None
    """`Batch.level`."""


class _Decoded(NamedTuple):
    reading: Reading
    numbers: Tensor


class UniversalForecaster(Tunable[Reading]):
    """Forecasts the series of a panel by what was learnt from others.

    The network reads the target alone; a regression may take the effect of covariates off it, and add that of the
    horizon (`covariates.CovariateEffect`). Of the levels that the network knows, those of the model are taken, or
    interpolated. Each origin reads the context before it, so there is no state to carry; in training, the origins of a
    window share one pass over it.
    """

    shape: UniversalShape
    cold_scale: Tensor
    """The panel's scale where a series has too few observations, as `RecurrentForecaster.cold_scale`."""
    threshold: Tensor
    mean_shift: Tensor
    interval_scale: Tensor
    """What distances of quantiles from the median are multiplied by, once training has ended (`intervals`)."""

    def __init__(self, shape: UniversalShape, config: ModelConfig) -> None:
        super().__init__()
        self.shape = shape
        self.head = QuantileHead(config.quantile_levels)
        self.head.nonnegative = shape.nonnegative
        self.network = UniversalNetwork(shape.network)
        self.state_size = shape.network.state_size
        self.n_paths = 1
        self.own_samples, self.sampled_share = 0.0, 0.0
        self.at_once = False
        """Whether the origins of a window share one pass over it outside of training, too. They then see what lies in
        the window before their own contexts."""
        self.register_buffer("cold_scale", torch.zeros(2))
        for name, value in (("threshold", 0.0), ("mean_shift", 0.0), ("interval_scale", 1.0)):
            self.register_buffer(name, torch.tensor(value))
        self._inner = QuantileHead(LEVELS)
        self.effect = None
        if shape.covariates:
            self.effect = CovariateEffect(shape.n_known + shape.n_calendar, shape.n_past)

    def forward(
        self,
        batch: Batch,
        origins: Int[Tensor, " origin"],
        pasts: Sequence[EncoderState] | None = None,  # noqa: ARG002  each origin reads its context
    ) -> Output:
        """Return forecasts from `origins`, counted from the first origin of each window.

        In training, and where windows are read `at_once`, they are multiples of the segment length.
        """

        def decoded(reading: Reading) -> _Decoded:
            return _Decoded(self.trim(reading, decodes=False), self._decoded(reading))

        reading, numbers = self._each_origin(batch, origins, decoded)
        return self.distribution(numbers, reading)

    def encode(
        self,
        batch: Batch,
        origins: Int[Tensor, " origin"],
        pasts: Sequence[EncoderState] | None = None,  # noqa: ARG002  each origin reads its context
    ) -> Reading:
        """Return what the last layers are given of the origins, as `forward`."""
        return self._each_origin(batch, origins, lambda reading: reading)

    def step_parameters(self, reading: Reading) -> Float[Tensor, "batch origin horizon quantile"]:
        """Return the quantiles of each step, in units of `scale` around `location`."""
        if self._at_once:
            return self._decoded(reading)
        rows = each(reading, lambda values: values.flatten(0, 1)[:, None])
        made: Tensor = in_blocks(rows, self._decoded, _BLOCK, fill=True)[:, 0]
        shape: torch.Size = reading.summary.shape[:2]
        return made.reshape(*shape, *made.shape[1:])

    def add_bias(self, numbers: Tensor, bias: Float[Tensor, "batch 1 horizon 2"], reading: Reading) -> Tensor:
        """Return quantiles moved by the first number, in units of spread; the other is the logarithm of a width."""
        shift, width = bias.unbind(-1)
        moved: Tensor = self.head.scale_width(numbers, width.exp()[..., None])
        return moved + (shift * reading.frame.spread)[..., None]

    def distribution(self, numbers: Tensor, reading: Reading) -> Output:
        """Return the forecasts that quantiles mean."""
        if not self.training:
            numbers = self.head.scale_width(numbers, self.interval_scale)
        if self.shape.unit:
            numbers = self._on_model_scale(numbers, reading)
        return Output(numbers, reading.summary, reading.frame, self.head)

    def trim(self, reading: Reading, *, decodes: bool) -> Reading:
        """Return a reading without what was decoded already."""
        return reading if decodes else reading._replace(steps=None, effect=None)

    @property
    def bias_shape(self) -> torch.Size:
        """[horizon, 2]: shift and logarithm of a width."""
        return torch.Size((self.shape.horizon, 2))

    @property
    def summary_size(self) -> int:
        """Numbers of the state."""
        return self.state_size

    def matrices(self) -> dict[str, Tensor]:
        """Return all weights but biases."""
        return {name: values for name, values in self.weights().items() if values.ndim == 2}

    def weights(self) -> dict[str, Tensor]:
        """Return the weights of the network, without those of the regression on covariates."""
        return dict(self.network.named_parameters(prefix="network"))

    @property
    def step_size(self) -> int:
        """Features of a step, and two numbers for each candidate."""
        return self.network.step_features + 2 * len(NAMES)

    @property
    def encoder_size(self) -> int:
        """Numbers of a state, of all layers."""
        return self.shape.network.n_layers * self.shape.network.hidden_size

    @property
    def _at_once(self) -> bool:
        # A graph has one origin, of any number of windows.
        return self.training or self.at_once or torch.onnx.is_in_onnx_export()

    def _each_origin(self, batch: Batch, origins: Tensor, then: Callable[[Reading], T]) -> T:
        """Return what `then` makes of the reading, [window, origin, ...], a part of the windows at a time."""
        context = self.shape.context_length
        values = batch.target
        if self.shape.unit:
            values = to_data(values, self.shape.unit, None if batch.level is None else batch.level[:, None])
        columns = None
        if self.effect is not None and (self.training or self.effect.is_active):
            columns = Columns.of(batch)
        if self._at_once:
            end, at = int(origins[-1]) + context, origins + context - 1
            if columns is not None:
                columns = Columns(columns.known[:, : end + self.shape.horizon], columns.past[:, :end])
            windows = _Windows(values[:, :end], batch.observed[:, :end], batch.level, columns)
            if torch.is_grad_enabled() or torch.onnx.is_in_onnx_export():
                return then(self._reading(windows, at))
            size = max(1, _STEPS // (len(origins) * self.shape.horizon))
            return in_blocks(windows, lambda block: then(self._reading(block, at)), size)

        def rows(part: Tensor, length: int = context) -> Tensor:
            return gather_windows(part, origins, length).flatten(0, 1)

        if columns is not None:
            columns = Columns(rows(columns.known, context + self.shape.horizon), rows(columns.past))
        level = None if batch.level is None else batch.level.repeat_interleave(len(origins))
        windows = _Windows(rows(values), rows(batch.observed), level, columns)
        last = torch.tensor([context - 1], device=values.device)

        def reader(length: int) -> Callable[[_Windows], T]:
            blank = self._blank(context - length, values.device)
            return lambda block: then(self._reading(block, last, blank))

        made = in_blocks_by_length(windows, windows.observed, reader, _BLOCK)
        return each(made, lambda part: part[:, 0].unflatten(0, (len(batch.target), -1)))

    def _blank(self, length: int, device: torch.device) -> Blank | None:
        seasons = self.shape.season_length, self.shape.second_season
        return self.network.blank(length, *seasons, device) if length else None

    def _shift(self, windows: _Windows, at: Int[Tensor, " origin"]) -> Shift | None:
        """Return what covariates add to windows; None without a regression on them."""
        if self.effect is None or windows.columns is None:
            return None
        shift: Shift = self.effect(windows.values, windows.observed, windows.columns, at, self.shape.season_length)
        return shift

    def _reading(self, windows: _Windows, at: Int[Tensor, " origin"], blank: Blank | None = None) -> Reading:
        """Return the reading of windows from `at`, the indices of the last steps that are known.

        The steps of `blank`, before any observation, are not read again.
        """
        n_blank = 0 if blank is None else blank.length
        context, device, shift = self.shape.context_length, windows.values.device, self._shift(windows, at)
        season, second = (
            torch.full(windows.values.shape[:1], steps, dtype=torch.long, device=device)
            for steps in (self.shape.season_length, self.shape.second_season)
        )
        ahead = torch.arange(1, self.shape.horizon + 1, device=device)
        values = windows.values if shift is None else windows.values - shift.history
        window = Window(values[:, n_blank:], windows.observed[:, n_blank:], season, second)
        first, at = at - context + 1, at - n_blank
        state, steps, past, known = self.network.encode(window, at, ahead, blank)
        level, scale = past.level[:, at], past.scale[:, at]
        recent = (gather_windows(functional.pad(past.raw, (n_blank, 0)), first, context) - level[..., None]) / scale[
            ..., None
        ]
        recent = recent.clamp(-_REACH, _REACH) * gather_windows(windows.observed, first, context)
        effect = None if shift is None else shift.ahead / scale[..., None]
        spread = (known.width / scale[..., None]).clamp(min=_LEAST_SPREAD)
        location = level + past.centre.to(level.dtype)
        constant = past.low[:, at] == past.high[:, at]
        scale = torch.where(constant, self._cold_scale(location, past.n_observed[:, at]), scale)
        divisor = torch.where(scale > 0, scale, 1.0)
        frame = Frame(location, divisor, scale, past.n_observed[:, at] > 0, recent, spread, torch.zeros_like(spread))
        if self.shape.unit:  # On the logarithmic scale of the model, quantiles are as they are.
            zero, one = torch.zeros_like(location), torch.ones_like(location)
            frame = frame._replace(location=zero, divisor=one, scale=one)
        origin_level = None if windows.level is None else windows.level[:, None].expand_as(location)
        return Reading(state, steps, effect, frame, location, scale, origin_level)

    def _decoded(self, reading: Reading) -> Tensor:
        assert reading.steps is not None
        location, scale = reading.steps.location[..., None], reading.steps.scale[..., None]
        quantiles = self.network.decode(reading.summary, reading.steps)
        numbers = self._at_levels((quantiles - location) / scale)
        return numbers if reading.effect is None else numbers + reading.effect[..., None]

    def _cold_scale(
        self, level: Float[Tensor, "window origin"], count: Float[Tensor, "window origin"]
    ) -> Float[Tensor, "window origin"]:
        """Return the scale of windows whose observations are all equal: 0 of many, the panel's of few."""
        relative, absolute = self.cold_scale.to(level)
        return torch.where(count < FEW, (relative * level.abs()).clamp(min=absolute), 0.0)

    def _at_levels(self, quantiles: Float[Tensor, "*axes level"]) -> Float[Tensor, "*axes quantile"]:
        levels = self.head.levels.to(quantiles)
        near = (levels[:, None] - levels.new_tensor(LEVELS)).abs()
        if bool((near.amin(1) < 1e-6).all()):
            return quantiles[..., near.argmin(1)]
        return self._inner.quantiles(quantiles, levels)

    def _on_model_scale(self, numbers: Tensor, reading: Reading) -> Tensor:
        """Return quantiles on the logarithmic scale of the model."""
        values = numbers * reading.scale[..., None, None] + reading.location[..., None, None]
        values = to_model(values.double() if reading.level is not None else values, self.shape.unit)
        if reading.level is not None:
            values = values - reading.level[..., None, None]
        return values.to(numbers.dtype)
