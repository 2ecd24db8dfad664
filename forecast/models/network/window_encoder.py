"""The encoding half of the forecaster of a panel: from windows to the inputs of the decoder.

`normalisation` and `features` have the parts without weights, `forecaster` has the decoding half.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from forecast.config import ModelConfig
from forecast.models.inputs.batch import Batch
from forecast.models.inputs.frame import Frame, gather_windows
from forecast.models.inputs.scaling import Statistics, continued_statistics, running_statistics
from forecast.models.inputs.shape import NetworkShape
from forecast.models.inputs.transform import asinh
from forecast.models.linear import smoothing
from forecast.models.linear.markov import ClassSkip, class_counts
from forecast.models.linear.ridge import apply_linear
from forecast.models.network.decoders import Attention
from forecast.models.network.encoder import Encoder
from forecast.models.network.features import (
    FeatureSizes,
    Moments,
    Segments,
    class_seasons,
    class_segments,
    covariate_features,
    numeric_seasons,
    numeric_segments,
    scale_feature,
    season_steps,
    static_features,
)
from forecast.models.network.normalisation import (
    SeasonWindow,
    class_frame,
    numeric_frame,
    scale_around_anchor,
    season_offset,
    smooth_frame,
)
from forecast.models.network.output import DecoderInputs, EncoderState

_SUMMARY_SIZE = 128


class WindowEncoder(nn.Module):
    """Encodes windows at some of their steps, the origins: frame, linear skip, summary and features of each step.

    All inputs at step t come from observations up to t.
    """

    skip: Tensor
    covariate_mean: Tensor
    covariate_scale: Tensor
    log_scale: Tensor
    cold_scale: Tensor
    """The panel's scale, for series with too few observations: relative to the level, and absolute (0: unknown)."""
    season_offset: Tensor
    smoothing_cost: Tensor
    """Cost of each filter of the bank on the panel (`smoothing.shared_cost`)."""
    smoothing_share: Tensor
    """Share of exponential smoothing in the skip."""
    smoothing_ratio: Tensor
    """Ratio of smoothing's errors one step ahead to the seasonal spread on the panel, for series without errors."""

    def __init__(self, shape: NetworkShape, config: ModelConfig) -> None:
        super().__init__()
        self.shape = shape
        sizes = FeatureSizes.of(shape, config)
        if shape.n_classes:
            self.class_embeddings = nn.Embedding(shape.n_classes, sizes.value)
            self.class_skip = ClassSkip(
                n_classes=shape.n_classes,
                context=shape.context_length,
                horizon=shape.horizon,
                season=shape.season_length,
                tables=config.skip,
            )
        self.embeddings = nn.ModuleList(nn.Embedding(size + 1, config.embedding_size) for size in shape.category_sizes)
        self.past_embeddings = _embeddings(shape.past_categories, config.embedding_size)
        self.known_embeddings = _embeddings(shape.known_categories, config.embedding_size)
        self.n_known_values = sizes.known
        self.encoder = Encoder(sizes.segment, config)
        self.state_size = int(self.encoder.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.attention = None
        if config.attention:
            self.attention = Attention(config.hidden_size, shape.context_length // shape.segment_length)
        n_encoded = config.hidden_size * (1 + config.attention)
        self.summary = nn.Linear(n_encoded + sizes.static + sizes.level, _SUMMARY_SIZE)
        self.reference_batch: Batch | None = None
        """A window whose level, scale and spread all others take in place of their own, so that attributions of a
        forecast hold them fixed; usually None."""
        for name, values in _panel_buffers(shape).items():
            self.register_buffer(name, values)
        self.register_buffer("season_offset", season_offset(shape), persistent=False)

    @property
    def encoder_size(self) -> int:
        """Elements of an encoder state over all layers."""
        return self.encoder.num_layers * self.state_size

    @property
    def summary_size(self) -> int:
        """Features in the summary of an origin."""
        return self.summary.out_features

    def statistics(self, batch: Batch, time: int | None = None) -> Statistics:
        """Return the running statistics of the first `time` steps (all if None), the same for each anchor."""
        return running_statistics(batch.target[:, :time], batch.observed[:, :time], self.shape.scale_length)

    def _anchor(self, statistics: Statistics) -> Statistics:
        return scale_around_anchor(statistics, self.cold_scale, self.shape)

    def frame(self, batch: Batch, origins: Int[Tensor, " origin"], statistics: Statistics | None = None) -> Frame:
        """Return the frame of `origins` (counted from the first origin of each window).

        `statistics` is the result of the method of that name, up to the last origin at least; None computes it.
        """
        statistics = self._anchor(statistics or self.statistics(batch)).at(origins + self.shape.context_length - 1)
        return self._frame(batch, origins, statistics, SeasonWindow.of(batch, origins, self.shape))

    def _frame(self, batch: Batch, origins: Tensor, statistics: Statistics, seasons: SeasonWindow) -> Frame:
        """Return the frame of `origins` from their statistics."""
        if self.shape.n_classes:
            return class_frame(batch, origins, statistics, self.shape)
        frame = numeric_frame(batch, origins, statistics, self.shape, self.season_offset, seasons)
        if self.shape.smoothing:
            observed = gather_windows(batch.observed, origins, self.shape.context_length)
            frame = smooth_frame(frame, observed, self.shape, self.smoothing_cost, self.smoothing_ratio)
        if self.reference_batch is not None and batch is not self.reference_batch:
            reference_frame = self.frame(self.reference_batch, origins)
            frame = frame._replace(spread=reference_frame.spread.expand_as(frame.spread))
        return frame

    # ---- Encoding ----

    def advance(self, batch: Batch, past: EncoderState) -> EncoderState:
        """Return the encoder's state after the segments of a batch: `NetworkShape.lead` steps, these, and a horizon.

        `past` is the state after the lead. The result is the same as if the encoder read the whole history at once.
        """
        return self._advance(batch, past, self.shape.lead, self._static(batch), self._future(batch))[2]

    def _advance(
        self, batch: Batch, past: EncoderState, lead: int, static: Tensor, future: Tensor
    ) -> tuple[Statistics, Tensor, EncoderState]:
        """Return statistics and encoder outputs after the lead, and the state at the end."""
        time = batch.target.shape[1] - self.shape.horizon
        previous_sums = past.totals.relative_to(batch.level)
        statistics, totals = continued_statistics(
            batch.target[:, :time], batch.observed[:, :time], self.shape.scale_length, previous_sums, lead
        )
        statistics = self._anchor(statistics)
        previous = previous_sums.last.to(batch.target.dtype)
        inputs = self._inputs(batch, Segments.of(batch, self.shape, lead), statistics, static, future, previous)
        states, carry = self.encoder(inputs, past.carry)
        return statistics, states, EncoderState(carry, totals.absolute(batch.level))

    def encode(
        self, batch: Batch, origins: Int[Tensor, " origin"], pasts: Sequence[EncoderState] | None = None
    ) -> DecoderInputs:
        """Return the decoder's inputs at the origins; `pasts` as in `forward`."""
        static, future = self._static(batch), self._future(batch)
        origin_steps = origins + self.shape.context_length - 1
        if pasts is None:
            time = batch.target.shape[1] - self.shape.horizon
            statistics = self._anchor(self.statistics(batch, time))
            if self.reference_batch is not None:
                level, _, scale, *_ = self._anchor(self.statistics(self.reference_batch, time))
                statistics = statistics._replace(
                    level=level.expand_as(statistics.level), scale=scale.expand_as(statistics.scale)
                )
            states, _ = self.encoder(self._inputs(batch, Segments.of(batch, self.shape), statistics, static, future))
            state = states.index_select(1, (origin_steps + 1) // self.shape.segment_length - 1)
            statistics = statistics.at(origin_steps)
        else:
            assert self.attention is None
            (past,) = pasts
            lead = self.shape.context_length - self.shape.segment_length
            statistics, states, _ = self._advance(batch, past, lead, static, future)
            state = states[:, origins // self.shape.segment_length]
            statistics = statistics.at(origin_steps - lead)
        # Origins of one window may read steps before their own contexts; those of a history may not, so that each of
        # them forecasts as it would alone.
        window = SeasonWindow.of if pasts is None else SeasonWindow.within_contexts
        seasons = window(batch, origins, self.shape)
        frame = self._frame(batch, origins, statistics, seasons)
        if pasts is not None:
            in_sight = gather_windows(batch.observed, origins, self.shape.context_length).any(-1)
            frame = frame._replace(begun=frame.begun & in_sight)

        linear, level, expected = self._linear(frame)
        encoded, weight = [self.dropout(state)], None
        if self.attention is not None:
            attended, weight = self._attend(batch, states, origin_steps)
            encoded.append(self.dropout(attended))
        summary = self.summary(torch.cat([*encoded, _broadcast_steps(static, len(origins)), level], dim=-1))
        step = [expected, *self._seasons(batch, frame, future, origin_steps, seasons)]
        ahead = gather_windows(future, origin_steps + 1, self.shape.horizon)
        return DecoderInputs(summary, torch.cat([*step, ahead], dim=-1), ahead, linear, state, frame, weight)

    def _static(self, batch: Batch) -> Float[Tensor, "batch static"]:
        first = self.shape.n_past + self.shape.n_known
        moments = self._moments(first, self.shape.n_static_numbers)
        return static_features(batch, moments, self.embeddings, hide=self.training)

    def _future(self, batch: Batch) -> Float[Tensor, "batch time future"]:
        """Return known covariates and calendar at each step of the window, the horizon included."""
        if not self.shape.n_known:
            # Means over longer segments add in the order of memory, which decides about their last digit.
            return batch.known if self.shape.segment_length == 1 else batch.known.contiguous()
        columns, calendar = batch.known.split([self.shape.n_known, self.shape.n_calendar], dim=-1)
        moments = self._moments(self.shape.n_past, self.shape.n_known)
        known = covariate_features(columns, batch.there, moments, self.known_embeddings, hide=self.training)
        return torch.cat([known, calendar], dim=-1)

    def _moments(self, first: int, count: int) -> Moments:
        """Return mean and scale of `count` covariates, of which past ones come first, then known and static ones."""
        return Moments(self.covariate_mean[first : first + count], self.covariate_scale[first : first + count])

    def _inputs(
        self,
        batch: Batch,
        segments: Segments,
        statistics: Statistics,
        static: Tensor,
        future: Tensor,
        previous: Tensor | None = None,
    ) -> Float[Tensor, "batch segment input"]:
        """Return the encoder's inputs: each segment normalised by its own last step.

        The latest value before the first segment is `previous`, 0 when None.
        """
        if self.shape.n_classes:
            parts = [class_segments(batch, segments, self.shape, self.class_embeddings)]
        else:
            parts = numeric_segments(batch, segments, self.shape, statistics, self.log_scale, previous)
        if self.shape.n_past:
            steps = slice(segments.first, segments.end)
            past, moments = batch.past[:, steps], self._moments(0, self.shape.n_past)
            past = covariate_features(past, batch.there[:, steps], moments, self.past_embeddings, hide=self.training)
            parts.append(past.unflatten(1, (-1, segments.length)).mean(2))
        parts.append(segments.next_mean(future, self.shape.horizon))
        parts.append(_broadcast_steps(static, segments.n_segments))
        # Segment after segment in memory, as the recurrent kernels read them.
        return torch.cat([part.transpose(0, 1) for part in parts], dim=-1).transpose(0, 1)

    def _linear(self, frame: Frame) -> tuple[Tensor, Tensor, Tensor]:
        """Return the skip's forecast, and features of each window [..., feature] and step [..., horizon, feature]."""
        if self.shape.n_classes:
            linear = self.class_skip(frame.window)
            count = class_counts(frame.window, self.shape.n_classes)
            share = count / count.sum(-1, keepdim=True).clamp(min=1)
            return linear, share @ self.class_embeddings.weight, linear.exp() @ self.class_embeddings.weight
        linear = self.apply_skip(frame.window, frame.smooth)
        level = torch.stack(
            [asinh(frame.location / frame.divisor), scale_feature(frame.divisor, self.log_scale)], dim=-1
        )
        return linear, level, torch.stack([asinh(linear), frame.spread.log()], dim=-1)

    def apply_skip(self, window: Float[Tensor, "*axes context"], smooth: Float[Tensor, "*axes horizon"]) -> Tensor:
        """Return the skip's forecast of a numeric target, [..., horizon]."""
        linear: Tensor = apply_linear(window, self.skip)
        if self.shape.smoothing:
            linear = linear + self.smoothing_share * smooth
        return linear

    def _seasons(
        self, batch: Batch, frame: Frame, future: Tensor, origin_steps: Tensor, seasons: SeasonWindow
    ) -> list[Float[Tensor, "batch origin horizon feature"]]:
        """Return features of each target step from the same phase of past seasons: values, and known covariates."""
        shape = self.shape
        if not shape.season_lags:
            return []
        if shape.n_classes:
            steps = season_steps(origin_steps, shape, self.season_offset)
            features = [class_seasons(batch, steps, self.class_embeddings)]
        else:
            features = [numeric_seasons(seasons, frame, shape, self.season_offset)]
        if shape.n_known:
            # Known covariates at the same phase of the last season: whether that was a holiday, say.
            known = future[..., : self.n_known_values]
            index = origin_steps[:, None] + self.season_offset - (shape.season_lags[0] - shape.season_length)
            features.append(known[:, index.clamp(min=0)])
        return features

    def _attend(
        self, batch: Batch, states: Float[Tensor, "batch step hidden"], origin_steps: Int[Tensor, " origin"]
    ) -> tuple[Tensor, Tensor]:
        assert self.attention is not None
        length = self.shape.segment_length
        valid = batch.there[:, : states.shape[1] * length].unflatten(1, (-1, length)).any(-1)
        attended, weight = self.attention(states, valid, (origin_steps + 1) // length - 1)
        return attended, weight

    def expected_last(self, frame: Frame) -> Float[Tensor, "*axes"] | Float[Tensor, "*axes class"]:
        """Return the skip's forecast of the origin's own step: the value itself; for classes, their log-frequencies."""
        last = frame.window[..., -1]
        return self.class_skip.frequency.expand(*last.shape, -1) if self.shape.n_classes else last


def _embeddings(sizes: tuple[int, ...], embedding_size: int) -> nn.ModuleDict:
    """Return an embedding table for each column that holds codes, by column number."""
    tables = {str(column): nn.Embedding(size + 1, embedding_size) for column, size in enumerate(sizes) if size}
    return nn.ModuleDict(tables)


def _broadcast_steps(static: Float[Tensor, "batch static"], steps: int) -> Float[Tensor, "batch step static"]:
    return static[:, None].expand(-1, steps, -1)


def _panel_buffers(shape: NetworkShape) -> dict[str, Tensor]:
    """Return the initial values of the buffers that are set from the panel, not trained."""
    n_covariates = shape.n_past + shape.n_known + shape.n_static_numbers
    numbers = {
        "skip": torch.zeros(0 if shape.n_classes else shape.context_length + 1, shape.horizon),
        "covariate_mean": torch.zeros(n_covariates),
        "covariate_scale": torch.ones(n_covariates),
        "threshold": torch.tensor(0.0),
        "log_scale": torch.tensor([0.0, 1.0]),
        "cold_scale": torch.zeros(2),
    }
    if shape.smoothing:
        numbers["smoothing_cost"] = torch.zeros(smoothing.n_members(shape.context_length, shape.season_length))
        numbers["smoothing_share"] = torch.tensor(0.0)
        numbers["smoothing_ratio"] = torch.tensor(1.0)
    return numbers
