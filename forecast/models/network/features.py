"""Features of windows for the encoder and the decoder: covariates, segments of the target, and values of past seasons.

The functions have no weights: embedding tables, means and scales are the network's.
"""

from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from forecast.config import ModelConfig
from forecast.models.inputs.batch import Batch
from forecast.models.inputs.frame import Frame, gather_windows
from forecast.models.inputs.scaling import Statistics
from forecast.models.inputs.shape import NetworkShape
from forecast.models.inputs.transform import asinh
from forecast.models.network.normalisation import CLIP, SeasonWindow, repeat_season, select_steps

# The share of category values hidden in training, so that the row of the unseen value is trained too.
_HIDDEN_SHARE = 0.05


class FeatureSizes(NamedTuple):
    """Number of features of each kind."""

    value: int
    """Of a value of the target: the number itself, or the embedding of a class."""
    level: int
    """Of a window's level."""
    static: int
    known: int
    """Of known covariates at a step, without whether they are present."""
    future: int
    """Of known covariates and the calendar at a step."""
    segment: int
    """Of a segment that the encoder reads."""
    step: int
    """Of a step that the decoder forecasts."""

    @classmethod
    def of(cls, shape: NetworkShape, config: ModelConfig) -> Self:
        """Return the sizes for a network."""
        # Features of each value of the target, and of a window's level.
        value, level = (min(shape.n_classes, config.embedding_size),) * 2 if shape.n_classes else (1, 2)
        n_past_tables, n_known_tables = (
            sum(size > 0 for size in sizes) for sizes in (shape.past_categories, shape.known_categories)
        )
        static = len(shape.category_sizes) * config.embedding_size + 2 * shape.n_static_numbers
        past = 2 * shape.n_past + n_past_tables * (config.embedding_size - 1)
        known = shape.n_known + n_known_tables * (config.embedding_size - 1)
        future = known + shape.n_known + shape.n_calendar
        values = shape.segment_length * (value + 1) * (1 + len(shape.input_lags)) + (0 if shape.n_classes else 3)
        around = 0 if shape.n_classes else int(shape.season_length >= 14)
        seasons = (value + 1 + around) * len(shape.season_lags) + known * bool(shape.season_lags)
        return cls(value, level, static, known, future, values + past + future + static, level + seasons + future)


# ---- Covariates ----


class Moments(NamedTuple):
    """Mean and scale of some covariates in the panel."""

    mean: Float[Tensor, " column"]
    scale: Float[Tensor, " column"]

    def standardise(
        self, values: Float[Tensor, "*axes column"], present: Bool[Tensor, "*axes column"]
    ) -> Float[Tensor, "*axes column"]:
        """Return standardised values, 0 where not present."""
        return torch.where(present, ((values - self.mean) / self.scale).clamp(-CLIP, CLIP), 0.0)


def number_features(values: Float[Tensor, "*axes column"], moments: Moments) -> Float[Tensor, "*axes feature"]:
    """Return standardised values, 0 where missing, and whether each value is present."""
    present = torch.isfinite(values)
    return torch.cat([moments.standardise(values, present), present.to(values.dtype)], dim=-1)


def covariate_features(
    values: Float[Tensor, "batch time column"],
    valid: Bool[Tensor, "batch time"],
    moments: Moments,
    tables: nn.ModuleDict,
    *,
    hide: bool,
) -> Float[Tensor, "batch time feature"]:
    """Return `number_features`, but the columns of `tables` hold codes, and are embedded.

    With `hide`, a share of the codes counts as the unseen value, at all steps of a window.
    """
    if not tables:
        return number_features(values, moments)
    # Codes at steps before the start count as missing, not as the unseen value.
    coded = [str(column) in tables for column in range(values.shape[-1])]
    present = torch.isfinite(values) & (valid[..., None] | ~torch.tensor(coded, device=values.device))
    columns = list(moments.standardise(values, present).split(1, dim=-1))
    for name, table in tables.items():
        assert isinstance(table, nn.Embedding)
        column = int(name)
        codes = values[..., column].nan_to_num(0.0).long()
        if hide:
            hidden = torch.rand(len(codes), table.num_embeddings, device=codes.device) < _HIDDEN_SHARE
            codes = codes.masked_fill(hidden.gather(1, codes), 0)
        columns[column] = table(codes) * present[..., column, None]
    return torch.cat([*columns, present.to(values.dtype)], dim=-1)


def static_features(
    batch: Batch, moments: Moments, tables: nn.ModuleList, *, hide: bool
) -> Float[Tensor, "batch static"]:
    """Return the embedded categories and the standardised numbers of each series; `hide` as `covariate_features`."""
    categories = batch.static_categories
    if hide:
        categories = categories.masked_fill(torch.rand(categories.shape, device=categories.device) < _HIDDEN_SHARE, 0)
    embedded = [table(codes) for table, codes in zip(tables, categories.T, strict=True)]
    return torch.cat([*embedded, number_features(batch.static_numbers, moments)], dim=-1)


# ---- Segments that the encoder reads ----


class Segments(NamedTuple):
    """Consecutive segments of a window, from step `first` up to `end`, of `length` steps each."""

    first: int
    end: int
    length: int

    @classmethod
    def of(cls, batch: Batch, shape: NetworkShape, first: int = 0) -> Self:
        """Return the whole segments of windows from step `first` up to the horizon."""
        length = shape.segment_length
        return cls(first, (batch.target.shape[1] - shape.horizon) // length * length, length)

    @property
    def n_segments(self) -> int:
        """Number of segments."""
        return (self.end - self.first) // self.length

    def gather(self, values: Float[Tensor, "batch time"], lags: Sequence[int]) -> list[Tensor]:
        """Return the values `lag` steps before each step, [batch, segment, step], for each of some lags."""
        most = max(lags)
        padded = functional.pad(values, (most, 0))
        begins = (most - lag + self.first for lag in lags)
        return [padded[:, begin : begin + self.end - self.first].unflatten(1, (-1, self.length)) for begin in begins]

    def last(self, values: Float[Tensor, "batch step"]) -> Float[Tensor, "batch segment 1"]:
        """Return the value at the last step of each segment, of values from the first segment on."""
        return values[:, self.length - 1 : self.end - self.first : self.length, None]

    def next_mean(
        self, values: Float[Tensor, "batch time feature"], horizon: int
    ) -> Float[Tensor, "batch segment feature"]:
        """Return the mean over the segment after each, or over the `horizon` if that is shorter."""
        first, length = self.first + self.length, min(self.length, horizon)
        if length == 1:  # No copy of what is its own mean.
            return values[:, first : self.end + 1 : self.length]
        following = torch.arange(first, self.end + 1, self.length, device=values.device)
        return gather_windows(values, following, length).mean(2)


def class_segments(
    batch: Batch, segments: Segments, shape: NetworkShape, table: nn.Embedding
) -> Float[Tensor, "batch segment feature"]:
    """Return the embedded classes of each segment, and of its seasons before, and whether they were observed."""
    parts = []
    lags = _lags(shape)
    for classes, observed in zip(
        segments.gather(batch.target, lags), segments.gather(batch.observed, lags), strict=True
    ):
        parts.append((table(classes.long()) * observed[..., None]).flatten(2))
        parts.append(observed.to(batch.target.dtype))
    return asinh(torch.cat(parts, dim=-1))


def numeric_segments(
    batch: Batch,
    segments: Segments,
    shape: NetworkShape,
    statistics: Statistics,
    log_scale: Float[Tensor, " 2"],
    previous: Float[Tensor, " batch"] | None,
) -> list[Float[Tensor, "batch segment feature"]]:
    """Return the values of each segment, normalised by its last step, and of its seasons before; and its level.

    `statistics` are those from the first segment on. `previous` is the latest value before it, 0 when None; `log_scale`
    as in `scale_feature`.
    """
    level, last, scale = (segments.last(values) for values in statistics[:3])
    divisor = torch.where(scale > 0, scale, 1.0)
    observed, values = (torch.stack(segments.gather(part, _lags(shape))) for part in (batch.observed, batch.target))
    values = asinh((values - level) / divisor * observed)
    flags = observed * asinh(torch.ones(1, device=values.device))
    earlier = functional.pad(last, (0, 0, 1, 0))[:, : segments.n_segments]
    if previous is not None:
        earlier = torch.cat([previous[:, None, None], earlier[:, 1:]], dim=1)
    sizes = torch.stack([(last - earlier) / divisor, asinh(level / divisor), scale_feature(divisor, log_scale)])
    lagged = torch.stack([values, flags], dim=1).flatten(0, 1)
    return [lagged.movedim(0, 2).flatten(2), asinh(sizes).movedim(0, 2).flatten(2)]


def _lags(shape: NetworkShape) -> tuple[int, ...]:
    """Return the lags of the values of a segment: its own, and those of the next segment's past seasons."""
    return (0, *(lag - shape.segment_length for lag in shape.input_lags))


def scale_feature(divisor: Float[Tensor, "*axes"], log_scale: Float[Tensor, " 2"]) -> Float[Tensor, "*axes"]:
    """Return the standardised logarithm of a scale; `log_scale` is its mean and deviation in the panel."""
    return ((divisor.log() - log_scale[0]) / log_scale[1]).clamp(-CLIP, CLIP)


# ---- Seasons before each step that the decoder forecasts ----


def season_steps(
    origin_steps: Int[Tensor, " origin"], shape: NetworkShape, season_offset: Int[Tensor, " horizon"]
) -> Int[Tensor, "origin horizon lag"]:
    """Return the steps some seasons before each target step, up to the origin; negative before the window."""
    lags = torch.tensor(shape.season_lags, device=origin_steps.device)
    return (origin_steps[:, None] + season_offset + shape.season_length)[..., None] - lags


def class_seasons(
    batch: Batch, steps: Int[Tensor, "origin horizon lag"], table: nn.Embedding
) -> Float[Tensor, "batch origin horizon feature"]:
    """Return the embedded classes at some steps, and whether they were observed."""
    inside = steps.clamp(min=0)
    observed, classes = batch.observed[:, inside] & (steps >= 0), batch.target[:, inside]
    embedded = table(classes.long()) * observed[..., None]
    return torch.cat([embedded, observed[..., None].to(embedded.dtype)], dim=-1).flatten(-2)


def numeric_seasons(
    seasons: SeasonWindow, frame: Frame, shape: NetworkShape, season_offset: Int[Tensor, " horizon"]
) -> Float[Tensor, "batch origin horizon feature"]:
    """Return the normalised values at `season_steps`, whether they were observed, and the mean around them.

    The mean is over a seventh of a season (a day of a week), within the steps that an origin may read.
    """
    target, seen, origin_steps, earliest = seasons
    steps = season_steps(origin_steps, shape, season_offset[: shape.season_length])  # They repeat with the season.
    inside = steps.clamp(min=0)
    observed, value = seen[:, inside] & (steps >= 0), target[:, inside]
    features = [_relative(value, frame) * observed, observed.to(value.dtype)]
    if reach := shape.season_length // 14:
        sums = functional.pad(torch.stack([target.double(), seen.double()]).cumsum(-1), (1, 0))
        by_step = sums.permute(2, 0, 1).contiguous()  # Whole rows are gathered by step.
        first = torch.maximum(steps - reach, earliest[:, None, None])
        end = torch.minimum(steps + reach, origin_steps[:, None, None]).clamp(min=-1) + 1
        total, count = (select_steps(by_step, end) - select_steps(by_step, first)).permute(3, 4, 0, 1, 2)
        mean = (total / count.clamp(min=1)).to(value.dtype)
        features.append(_relative(mean, frame) * (count > 0))
    return repeat_season(torch.stack(features, dim=-1).flatten(-2), shape, dim=2)


def _relative(
    values: Float[Tensor, "batch origin horizon lag"], frame: Frame
) -> Float[Tensor, "batch origin horizon lag"]:
    return asinh((values - frame.location[..., None, None]) / frame.divisor[..., None, None])
