"""The universal network as a forecaster of one panel: the same interface as that of networks trained on it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from forecast.config import ModelConfig
from forecast.models.batch import Batch
from forecast.models.covariates import Columns, CovariateEffect, Shift
from forecast.models.heads import QuantileHead
from forecast.models.recurrent import Frame, NetworkShape, Output, Past, stretches
from forecast.models.scaling import FEW
from forecast.models.transform import to_data, to_model
from forecast.models.universal.forecasting import CONTEXTS
from forecast.models.universal.history import Window
from forecast.models.universal.network import LEVELS, PATCH, Distribution, Shape, UniversalNetwork

# Windows that are forecast together. A block that is not full is filled up: a forecast does not depend on the others.
_BLOCK = 64
_REACH = 20.0
_LEAST_SPREAD = 0.005


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
    """Windows as the network is given them, with their origins."""

    values: Float[Tensor, "window time"]
    """In units of the data, but for a level that was taken off."""
    observed: Bool[Tensor, "window time"]
    origins: Int[Tensor, " origin"]
    """Indices of the last steps that are known."""
    columns: Columns | None = None
    """Covariates, where there is a regression on them."""


class UniversalForecaster(nn.Module):
    """Forecasts the series of a panel by what was learnt from others.

    The network reads the target alone; a regression may take the effect of covariates off it, and add that of the
    horizon (`covariates.CovariateEffect`). Of the levels that the network knows, those of the model are taken, or
    interpolated. Each origin reads the context before it, so there is no state to carry; in training, the origins of a
    window share one pass over it.
    """

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
        self.own_samples, self.own_share = 0.0, 0.0
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
        pasts: Sequence[Past] | None = None,  # noqa: ARG002  each origin reads its context
    ) -> Output:
        """Return forecasts from `origins`, counted from the first origin of each window.

        In training they are multiples of the segment length.
        """
        context, count = self.shape.context_length, len(batch.target)
        values = batch.target
        if self.shape.unit:
            values = to_data(values, self.shape.unit, None if batch.level is None else batch.level[:, None])
        columns = None
        if self.effect is not None and (self.training or self.effect.is_active):
            columns = Columns.of(batch)
        if self.training or torch.onnx.is_in_onnx_export():  # A graph has one origin, of any number of windows.
            end = int(origins[-1]) + context
            if columns is not None:
                columns = Columns(columns.known[:, : end + self.shape.horizon], columns.past[:, :end])
            windows = _Windows(values[:, :end], batch.observed[:, :end], origins + context - 1, columns)
            arguments, state, frame = self._forecast(windows)
        else:
            read = [(values, context), (batch.observed, context)]
            if columns is not None:
                read += [(columns.known, context + self.shape.horizon), (columns.past, context)]
            each = [stretches(part, origins, length).flatten(0, 1) for part, length in read]
            blocks = [self._block(*rows) for rows in zip(*(part.split(_BLOCK) for part in each), strict=True)]
            parts = [(arguments, state, *frame) for arguments, state, frame in blocks]
            joined = (torch.cat(part).unflatten(0, (count, -1))[:, :, 0] for part in zip(*parts, strict=True))
            arguments, state, *fields = joined
            frame = Frame(*fields)
        if not self.training:
            arguments = self.head.stretched(arguments, self.interval_scale)
        if self.shape.unit:
            arguments, frame = self._on_model_scale(arguments, frame, batch.level)
        return Output(arguments, state, frame, self.head)

    def _block(
        self, values: Float[Tensor, "window context"], observed: Bool[Tensor, "window context"], *columns: Tensor
    ) -> tuple[Tensor, Tensor, Frame]:
        """Return what `_forecast` does of some windows, each with its one origin, as a part of a full block."""
        count, missing = len(values), _BLOCK - len(values)
        padded, there, *others = (
            functional.pad(part, (*(0, 0) * (part.ndim - 1), 0, missing), value=False)
            for part in (values, observed, *columns)
        )
        origin = torch.tensor([values.shape[1] - 1], device=values.device)
        windows = _Windows(padded, there, origin, Columns(*others) if others else None)
        arguments, state, frame = self._forecast(windows)
        return arguments[:count], state[:count], Frame(*(field[:count] for field in frame))

    def _forecast(self, windows: _Windows) -> tuple[Tensor, Tensor, Frame]:
        """Return arguments, state and frame of windows, in units of the data, [window, origin, ...]."""
        shift = self._shift(windows)
        if shift is not None:
            windows = windows._replace(values=windows.values - shift.history)
        distribution, at = self._distribution(windows), windows.origins
        past, context = distribution.history, self.shape.context_length
        level, scale = past.level[:, at], past.scale[:, at]
        begun = past.n_observed[:, at] > 0
        first = at - context + 1
        window = (stretches(past.raw, first, context) - level[..., None]) / scale[..., None]
        window = window.clamp(-_REACH, _REACH) * stretches(windows.observed, first, context)
        spread = (distribution.evidence.width / scale[..., None]).clamp(min=_LEAST_SPREAD)
        arguments = self._at_levels((distribution.quantiles - level[..., None, None]) / scale[..., None, None])
        if shift is not None:
            arguments = arguments + (shift.ahead / scale[..., None])[..., None]
        location = level + past.centre.to(level.dtype)
        constant = past.low[:, at] == past.high[:, at]
        scale = torch.where(constant, self._cold_scale(location, past.n_observed[:, at]), scale)
        divisor = torch.where(scale > 0, scale, 1.0)
        frame = Frame(location, divisor, scale, begun, window, spread, torch.zeros_like(spread))
        return arguments, distribution.state, frame

    def _shift(self, windows: _Windows) -> Shift | None:
        """Return what covariates add to windows; None without a regression on them."""
        if self.effect is None or windows.columns is None:
            return None
        values, observed, origins, columns = windows
        shift: Shift = self.effect(values, observed, columns, origins, self.shape.season_length)
        return shift

    def _distribution(self, windows: _Windows) -> Distribution:
        device = windows.values.device
        season, second = (
            torch.full(windows.values.shape[:1], steps, dtype=torch.long, device=device)
            for steps in (self.shape.season_length, self.shape.second_season)
        )
        ahead = torch.arange(1, self.shape.horizon + 1, device=device)
        window = Window(windows.values, windows.observed, season, second)
        distribution: Distribution = self.network(window, windows.origins, ahead)
        return distribution

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

    def _on_model_scale(self, arguments: Tensor, frame: Frame, level: Tensor | None) -> tuple[Tensor, Frame]:
        """Return quantiles on the logarithmic scale of the model, and a frame that leaves them as they are."""
        values = arguments * frame.scale[..., None, None] + frame.location[..., None, None]
        values = to_model(values.double() if level is not None else values, self.shape.unit)
        if level is not None:
            values = values - level[:, None, None, None]
        zero, one = torch.zeros_like(frame.location), torch.ones_like(frame.location)
        return values.to(arguments.dtype), frame._replace(location=zero, divisor=one, scale=one)
