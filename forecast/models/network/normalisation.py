"""Normalisation of windows: their scale, their values in its units, and the spread of seasonal differences.

Nothing here has weights, and nothing at an origin depends on later steps.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from forecast.models.inputs.batch import Batch
from forecast.models.inputs.frame import Frame, gather_windows
from forecast.models.inputs.scaling import Statistics, cold_start_scale
from forecast.models.inputs.shape import NetworkShape
from forecast.models.linear import smoothing

CLIP = 20.0
"""Normalised values are clipped to this range where they enter the network; the linear path keeps at least those of the
steps that the scale is computed over."""
# The least spread, in units of scale.
_LEAST_SPREAD = 0.005
# The share of all phases in the spread of one phase.
_GLOBAL_SHARE = 0.002
# Pairs of values a season apart that suffice to estimate a seasonal spread. Missing pairs are taken to differ as
# independent values do: their squared difference is `_INDEPENDENT` squared scales.
_ENOUGH_PAIRS = 8
_INDEPENDENT = 2.0
# With this many errors in a window, smoothing's own errors make up half of its spread.
_FEW_ERRORS = 12


class SeasonWindow(NamedTuple):
    """The steps of windows that past seasons are read from."""

    target: Float[Tensor, "batch time"]
    observed: Bool[Tensor, "batch time"]
    origin_steps: Int[Tensor, " origin"]
    """Counted from the first of these steps."""
    earliest: Int[Tensor, " origin"]
    """The first step that an origin may look back to."""

    @classmethod
    def of(cls, batch: Batch, origins: Int[Tensor, " origin"], shape: NetworkShape) -> "SeasonWindow":
        """Return the steps of whole windows; an origin may look back beyond its own context."""
        origin_steps = origins + shape.context_length - 1
        end = batch.target.shape[1] - shape.horizon
        return cls(batch.target[:, :end], batch.observed[:, :end], origin_steps, torch.zeros_like(origin_steps))

    @classmethod
    def within_contexts(cls, batch: Batch, origins: Int[Tensor, " origin"], shape: NetworkShape) -> "SeasonWindow":
        """Return only the steps that origins depend on, each within its own context."""
        first = shape.context_length - shape.season_reach
        target, observed, origin_steps, _ = cls.of(batch, origins, shape)
        return cls(target[:, first:], observed[:, first:], origin_steps - first, (origins - first).clamp(min=0))


def scale_around_anchor(statistics: Statistics, cold_scale: Float[Tensor, " 2"], shape: NetworkShape) -> Statistics:
    """Return the statistics with the scale around the anchor, bounded by `cold_scale` (`cold_start_scale`)."""
    relative, absolute = cold_scale
    scale = cold_start_scale(statistics, relative, absolute, shape.scale_length)
    if shape.anchor == "last":
        # Around the last value: the root mean square distance from there.
        scale = torch.hypot(scale, statistics.last - statistics.level)
    return statistics._replace(scale=scale)


def class_frame(batch: Batch, origins: Int[Tensor, " origin"], statistics: Statistics, shape: NetworkShape) -> Frame:
    """Return the frame of a window of classes: codes, without location, scale and spread.

    `statistics` are those of the origins.
    """
    codes = batch.target.masked_fill(~batch.observed, -1.0)
    window = gather_windows(codes, origins, shape.context_length)
    one = torch.ones_like(window[..., 0])
    spread = one[..., None].expand(-1, -1, shape.horizon)
    return Frame(torch.zeros_like(one), one, one, statistics.any_observed, window, spread, torch.zeros_like(spread))


def numeric_frame(
    batch: Batch,
    origins: Int[Tensor, " origin"],
    statistics: Statistics,
    shape: NetworkShape,
    offset: Int[Tensor, " horizon"],
    seasons: SeasonWindow,
) -> Frame:
    """Return the frame of a window of numbers, without smoothing; `offset` is that of `season_offset`.

    `statistics` are those of the origins. Before its start, a series is taken to have its first value.
    """
    location = statistics.last if shape.anchor == "last" else statistics.level
    scale = statistics.scale
    divisor = torch.where(scale > 0, scale, 1.0)
    not_started = batch.there.cummax(1).values.logical_not()
    first = batch.target.gather(1, batch.observed.int().argmax(1, keepdim=True))
    window = gather_windows(torch.where(not_started, first, batch.target), origins, shape.context_length)
    observed = gather_windows(not_started | batch.observed, origins, shape.context_length)
    window = ((window - location[..., None]) / divisor[..., None]) * observed
    # Within the steps of the scale no value is further out than their root.
    limit = max(CLIP, shape.scale_length**0.5)
    window = window.clamp(-limit, limit)
    spread = seasonal_spread(seasons, divisor, shape, offset)
    return Frame(location, divisor, scale, statistics.any_observed, window, spread, torch.zeros_like(spread))


def smooth_frame(
    frame: Frame,
    observed: Bool[Tensor, "batch origin context"],
    shape: NetworkShape,
    cost: Float[Tensor, " member"],
    ratio: Float[Tensor, ""],
) -> Frame:
    """Return the frame with the forecast of smoothing, and a spread from its errors one step ahead in the window.

    The fewer errors there are, the nearer the spread is to the seasonal one times `ratio`. `cost` is that of each
    filter of the bank.
    """
    smoothed = smoothing.smooth(frame.window.flatten(0, 1), observed.flatten(0, 1), shape.season_length)
    shares = smoothing.shares(smoothed, cost)
    path: Tensor = smoothing.mixed(smoothed, shares, shape.horizon)
    error = (shares * smoothed.error).sum(1, keepdim=True)
    trust = smoothing.trust(smoothed.n_errors, _FEW_ERRORS)
    path, error, trust = (part.unflatten(0, (-1, frame.window.shape[1])) for part in (path, error, trust))
    spread = torch.lerp((frame.spread * ratio).log(), error.clamp(min=_LEAST_SPREAD).log(), trust).exp()
    return frame._replace(spread=spread, smooth=path)


def season_offset(shape: NetworkShape) -> Int[Tensor, " horizon"]:
    """Return the distance from the origin to the same phase of the latest season, for each step ahead."""
    ahead = torch.arange(1, shape.horizon + 1)
    season = max(shape.season_length, 1)
    return ahead - season * torch.ceil(ahead / season).long()


def repeat_season(values: Tensor, shape: NetworkShape, dim: int) -> Tensor:
    """Return the values of the first season of the horizon for each step of the horizon, along `dim`."""
    if values.shape[dim] == shape.horizon:
        return values
    n_seasons = -(-shape.horizon // values.shape[dim])
    expanded = values.unsqueeze(dim).expand(*values.shape[:dim], n_seasons, *values.shape[dim:])
    return expanded.flatten(dim, dim + 1).narrow(dim, 0, shape.horizon)


def select_steps(by_step: Float[Tensor, "step sum batch"], steps: Int[Tensor, "*axes"]) -> Tensor:
    """Return the sums of some steps, [*axes, sum, batch]."""
    sums: Tensor = by_step.index_select(0, steps.flatten()).unflatten(0, steps.shape)
    return sums


def seasonal_spread(
    seasons: SeasonWindow,
    divisor: Float[Tensor, "batch origin"],
    shape: NetworkShape,
    offset: Int[Tensor, " horizon"],
) -> Float[Tensor, "batch origin horizon"]:
    """Return the root mean square of the latest seasonal differences, mostly around the same phase.

    A phase uses its differences of the last `NetworkShape.spread_seasons` seasons. A single one may be small by
    chance, so the fewer there are, the more weight the differences of all phases get.

    The network's changes are in units of the spread: small where a series hardly differs from one season to the
    next (closed shops, nights without flights), large where it does. The spread is 1 where the context does not
    hold two seasons. Where it does, but a series is too new or too gappy to have `_ENOUGH_PAIRS` of values a
    season apart (or a season of them), the spread moves towards that of independent values, and phases without a
    pair take that of all phases.

    The offset is that of `season_offset`.
    """
    season = shape.season_length
    if season == 1 or 2 * season > shape.context_length:
        return torch.ones_like(divisor)[..., None].expand(-1, -1, shape.horizon)
    target, observed, origin_steps, earliest = seasons
    paired = observed[:, season:] & observed[:, :-season]
    square = ((target[:, season:] - target[:, :-season]).double().square() * paired).cumsum(1)
    sums = functional.pad(torch.stack([square, paired.double().cumsum(1)]), (season + 1, 0))
    by_step = sums.permute(2, 0, 1).contiguous()  # Whole rows are gathered by step.

    def pairs(first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum of squares and the number of the pairs whose later step is from `first` to `last`."""
        first = torch.maximum(first, earliest[:, None] + season)
        last = torch.maximum(torch.minimum(last, origin_steps[:, None]), first - 1)
        sums = select_steps(by_step, last + 1) - select_steps(by_step, first)
        axes = range(sums.dim())  # Counted from the first, as ONNX needs them.
        total, count = sums.permute(*axes[-2:], *axes[:-2]).unbind()
        # Running sums of a GPU may fall by a rounding error.
        return total.clamp(min=0), count

    # Phases repeat with the season.
    phase, reach, enough = origin_steps[:, None] + offset[:season], season // 14, min(season, _ENOUGH_PAIRS)
    total, count = pairs((origin_steps - shape.spread_seasons * season + 1)[:, None], origin_steps[:, None])
    missing = (enough - count).clamp(min=0)
    independent = _INDEPENDENT * divisor[..., None].double().square()
    overall = (total + missing * independent) / (count + missing)
    phases = torch.stack([phase - k * season for k in range(shape.spread_seasons)])
    local, near = (values.sum(1) for values in pairs(phases - reach, phases + reach))
    share = (missing / enough).clamp(min=_GLOBAL_SHARE).masked_fill(near == 0, 1.0)
    if shape.spread_seasons > 1:
        share = torch.maximum(share, 1 / (1 + near))
    mixed = torch.lerp(local / near.clamp(min=1), overall, share)
    mixed = mixed.sqrt().to(divisor.dtype) / divisor[..., None]
    return repeat_season(mixed.clamp(min=_LEAST_SPREAD), shape, dim=2)
