"""The forecaster: a recurrent encoder, a linear skip and a decoder that forecasts from every step it is asked for."""

import copy
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from forecast.config import ModelConfig
from forecast.models.heads.base import Head
from forecast.models.heads.factory import make_head
from forecast.models.heads.sampled import SampledHead
from forecast.models.inputs.batch import Batch
from forecast.models.inputs.frame import Frame, gather_windows, targets
from forecast.models.inputs.scaling import (
    Statistics,
    cold_start_scale,
    continued_statistics,
    running_statistics,
)
from forecast.models.inputs.shape import NetworkShape
from forecast.models.inputs.transform import asinh
from forecast.models.linear import smoothing
from forecast.models.linear.markov import ClassSkip, class_counts
from forecast.models.linear.ridge import apply_linear
from forecast.models.network.decoders import Attention, AutoregressiveDecoder, SegmentDecoder, uniforms
from forecast.models.network.encoder import Encoder
from forecast.models.network.output import DecoderInputs, EncoderState, Output
from forecast.models.tunable import Tunable

# Normalised values are kept within this range where they enter the network; the linear path keeps at least those of
# the steps that the scale is taken over.
_REACH = 20.0
# The share of all phases in the spread of one, and the least spread, in units of scale.
_GLOBAL_SHARE = 0.002
_LEAST_SPREAD = 0.005
# So many pairs of seasons say how much a series varies from one to the next; with fewer, those missing are taken to
# differ by the root of two scales, as independent values do.
_ENOUGH_PAIRS = 8
_INDEPENDENT = 2.0
# With so many errors within a window, smoothing's own are half of what its spread is taken from.
_FEW_ERRORS = 12
# The share of categories that are hidden in training.
_HIDDEN_SHARE = 0.05
_DECODER_HIDDEN = 128
_STEP_HIDDEN = 64
# Numbers of a step, in its widest layer, of the paths that are sampled together.
_NUMBERS = 1 << 22


class RecurrentForecaster(Tunable[DecoderInputs]):
    """forecast = location + scale * (linear skip + network), at any step of the window.

    All inputs at step t come from observations up to t. The last layer starts at zero and its bias at the quantiles
    of the skip's residuals: an untrained network forecasts what the closed-form solution does.

    In training, an autoregressive decoder reads true values (teacher forcing), and its own samples at a share of the
    steps (`sampled_share`). In evaluation mode it reads no target and forecasts the distribution of sampled paths, at
    each step.
    """

    skip: Tensor
    covariate_mean: Tensor
    covariate_scale: Tensor
    log_scale: Tensor
    cold_scale: Tensor
    """The panel's scale where a series has too few observations: relative to its level, and at least (0: unknown)."""
    season_offset: Tensor
    threshold: Tensor
    """Changes of the location smaller than this, in units of spread, are not made, and larger ones that much less
    (soft threshold)."""
    mean_shift: Tensor
    """What means are moved by, as a share of `heads.mean_distance`: 0 for heads that estimate a mean, but on a
    logarithmic scale."""
    interval_scale: Tensor
    """What distances of quantiles from the median are multiplied by, once training has ended (`intervals`)."""
    smoothing_cost: Tensor
    """What each forecast of the bank costs on the panel (`smoothing.shared_cost`)."""
    smoothing_share: Tensor
    """Of smoothing, in the skip."""
    smoothing_ratio: Tensor
    """Of its errors one step ahead to the seasonal spread, on the panel: for series that have none of their own."""
    uniforms: Tensor

    def __init__(self, shape: NetworkShape, config: ModelConfig) -> None:
        super().__init__()
        self.shape = shape
        self.head = make_head(
            config.head, config.quantile_levels, power=config.tweedie_power, n_classes=shape.n_classes
        )
        self.head.nonnegative = shape.nonnegative
        # Of each value of the target that enters, and of all that is said about a window besides.
        n_value, n_level = (min(shape.n_classes, config.embedding_size),) * 2 if shape.n_classes else (1, 2)
        if shape.n_classes:
            self.class_embeddings = nn.Embedding(shape.n_classes, n_value)
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
        n_covariates = shape.n_past + shape.n_known + shape.n_static_numbers
        n_static = len(shape.category_sizes) * config.embedding_size + 2 * shape.n_static_numbers
        n_past = 2 * shape.n_past + len(self.past_embeddings) * (config.embedding_size - 1)
        self.n_known_values = shape.n_known + len(self.known_embeddings) * (config.embedding_size - 1)
        n_future = self.n_known_values + shape.n_known + shape.n_calendar
        n_values = shape.segment_length * (n_value + 1) * (1 + len(shape.input_lags)) + (0 if shape.n_classes else 3)
        n_inputs = n_values + n_past + n_future + n_static
        self.encoder = Encoder(n_inputs, config)
        self.state_size = int(self.encoder.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.attention = None
        if config.attention:
            self.attention = Attention(config.hidden_size, shape.context_length // shape.segment_length)
        n_seen = config.hidden_size * (1 + config.attention)
        self.summary = nn.Linear(n_seen + n_static + n_level, _DECODER_HIDDEN)
        n_around = 0 if shape.n_classes else int(shape.season_length >= 14)
        n_season = (n_value + 1 + n_around) * len(shape.season_lags)
        n_season += self.n_known_values * bool(shape.season_lags)
        n_step = n_level + n_season + n_future
        self.context = _decoder(shape, config, n_future, self.head.n_decoder_inputs + n_step)
        self.own_samples, self.sampled_share = config.own_samples, 0.0
        """Share of steps that an autoregressive decoder is told its own samples at: at the end of training, and now."""
        self.reference_batch: Batch | None = None
        """A window whose level, scale and spread all others are seen with, in place of their own: so attributions of a
        forecast hold them fixed. None otherwise."""
        self.n_paths = 1
        """Paths that are sampled for a forecast; 1 where its distributions are known."""
        if isinstance(self.context, AutoregressiveDecoder):
            self.n_paths, self.marginal = config.n_paths, self.head.marginal()
            self.register_buffer("uniforms", uniforms(config.n_paths, shape.horizon), persistent=False)
        self.step = nn.Sequential(
            nn.Linear(config.decoder_size + n_step, _STEP_HIDDEN),
            nn.SiLU(),
            nn.Linear(_STEP_HIDDEN, _STEP_HIDDEN),
            nn.SiLU(),
        )
        self.output = nn.Linear(_STEP_HIDDEN, self.head.n_parameters)
        self.output_bias = nn.Parameter(torch.zeros(shape.horizon, self.head.n_parameters))
        self.register_buffer("skip", torch.zeros(0 if shape.n_classes else shape.context_length + 1, shape.horizon))
        for name, values in _numbers_of_the_panel(shape, n_covariates).items():
            self.register_buffer(name, values)
        ahead = torch.arange(1, shape.horizon + 1)
        season = max(shape.season_length, 1)
        self.register_buffer("season_offset", ahead - season * torch.ceil(ahead / season).long(), persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        self.register_buffer("mean_shift", torch.tensor(0.0))
        self.register_buffer("interval_scale", torch.tensor(1.0))
        self.encoder.initialise()
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def category_rows(self) -> list[Float[Tensor, "value feature"]]:
        """Return a copy of what stands for each value of each covariate that holds codes, the unseen one first."""
        return [table.detach().clone() for table in self._category_tables()]

    @torch.no_grad()
    def share_unseen(self, untrained: Sequence[Float[Tensor, "value feature"]]) -> bool:
        """Give values that training has not drawn the row of the unseen one; return whether there are any.

        Their rows are as they were in `untrained`, which is `category_rows` before the training: random.
        """
        changed = False
        for table, before in zip(self._category_tables(), untrained, strict=True):
            same = (table == before).all(1)
            table[same] = table[0].clone()
            changed = changed or bool(same[1:].any())
        return changed

    def _category_tables(self) -> list[Tensor]:
        modules = [*self.embeddings, *self.past_embeddings.values(), *self.known_embeddings.values()]
        return [table.weight for table in modules if isinstance(table, nn.Embedding)]

    def sampling(self, n_paths: int) -> "RecurrentForecaster":
        """Return a copy of a network with an autoregressive decoder that samples so many paths."""
        other = copy.deepcopy(self)
        other.n_paths, other.uniforms = n_paths, uniforms(n_paths, self.shape.horizon).to(self.uniforms)
        return other

    def frame(self, batch: Batch, origins: Int[Tensor, " origin"], statistics: Statistics | None = None) -> Frame:
        """Return the batch as seen from `origins` (counted from the first origin of each window).

        `statistics` are those of `statistics`, up to the last origin at least; made here if None.
        """
        least = torch.zeros_like(origins)
        return self._frame(batch, origins, self._anchored(statistics or self.statistics(batch)), least)

    def statistics(self, batch: Batch, time: int | None = None) -> Statistics:
        """Return the running statistics of the first `time` steps (all if None), the same for each anchor."""
        return running_statistics(batch.target[:, :time], batch.observed[:, :time], self.shape.scale_length)

    def _anchored(self, statistics: Statistics) -> Statistics:
        relative, absolute = self.cold_scale
        scale = cold_start_scale(statistics, relative, absolute, self.shape.scale_length)
        if self.shape.anchor == "last":
            # Around the last value: the root mean square distance from there.
            scale = torch.hypot(scale, statistics.last - statistics.level)
        return statistics._replace(scale=scale)

    def _frame(self, batch: Batch, origins: Tensor, statistics: Statistics, least: Int[Tensor, " origin"]) -> Frame:
        """Return the batch as seen from `origins`, which look back no further than step `least`."""
        at = origins + self.shape.context_length - 1
        if self.shape.n_classes:
            return self._class_frame(batch, origins, statistics.any_observed[:, at])
        location = (statistics.last if self.shape.anchor == "last" else statistics.level)[:, at]
        scale = statistics.scale[:, at]
        divisor = torch.where(scale > 0, scale, 1.0)
        # Before its start, a series is taken to have been what it was at first.
        before = batch.there.cummax(1).values.logical_not()
        first = batch.target.gather(1, batch.observed.int().argmax(1, keepdim=True))
        window = gather_windows(torch.where(before, first, batch.target), origins, self.shape.context_length)
        observed = gather_windows(before | batch.observed, origins, self.shape.context_length)
        window = ((window - location[..., None]) / divisor[..., None]) * observed
        # Within the steps of the scale no value is further out than their root.
        limit = max(_REACH, self.shape.scale_length**0.5)
        window = window.clamp(-limit, limit)
        spread = self._spread(batch, at, divisor, least)
        if self.shape.smoothing:
            observed = gather_windows(batch.observed, origins, self.shape.context_length)
            smooth, error, trust = self._smooth(self.smoothed(window, observed), len(origins))
            usual = (spread * self.smoothing_ratio).log()
            spread = torch.lerp(usual, error.clamp(min=_LEAST_SPREAD).log(), trust).exp()
        else:
            smooth = torch.zeros_like(spread)
        if self.reference_batch is not None and batch is not self.reference_batch:
            held = self._frame(
                self.reference_batch, origins, self._anchored(self.statistics(self.reference_batch)), least
            )
            spread = held.spread.expand_as(spread)
        return Frame(location, divisor, scale, statistics.any_observed[:, at], window, spread, smooth)

    def seasonal_spread(
        self, batch: Batch, origins: Int[Tensor, " origin"], divisor: Float[Tensor, "batch origin"]
    ) -> Float[Tensor, "batch origin horizon"]:
        """Return the spread by seasonal differences alone, whatever smoothing errs by."""
        at = origins + self.shape.context_length - 1
        return self._spread(batch, at, divisor, torch.zeros_like(at))

    def smoothed(
        self, window: Float[Tensor, "batch origin context"], observed: Bool[Tensor, "batch origin context"]
    ) -> smoothing.Smoothed:
        """Return what the bank of filters knows after the windows of a frame, [batch * origin, ...]."""
        return smoothing.smooth(window.flatten(0, 1), observed.flatten(0, 1), self.shape.season_length)

    def _smooth(self, smoothed: smoothing.Smoothed, n_origins: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the forecast of smoothing, its mean absolute error one step ahead, and how far that is to be trusted.

        [batch, origin, horizon], and twice [batch, origin, 1].
        """
        shares = smoothing.shares(smoothed, self.smoothing_cost)
        path: Tensor = smoothing.mixed(smoothed, shares, self.shape.horizon)
        error = (shares * smoothed.error).sum(1, keepdim=True)
        trust = smoothing.trust(smoothed.n_errors, _FEW_ERRORS)
        path, error, trust = (part.unflatten(0, (-1, n_origins)) for part in (path, error, trust))
        return path, error, trust

    def skipped(self, window: Float[Tensor, "*axes context"], smooth: Float[Tensor, "*axes horizon"]) -> Tensor:
        """Return what the skip forecasts of numbers."""
        linear: Tensor = apply_linear(window, self.skip)
        if self.shape.smoothing:
            linear = linear + self.smoothing_share * smooth
        return linear

    def _class_frame(self, batch: Batch, origins: Tensor, begun: Tensor) -> Frame:
        codes = batch.target.masked_fill(~batch.observed, -1.0)
        window = gather_windows(codes, origins, self.shape.context_length)
        one = torch.ones_like(window[..., 0])
        spread = one[..., None].expand(-1, -1, self.shape.horizon)
        return Frame(torch.zeros_like(one), one, one, begun, window, spread, torch.zeros_like(spread))

    def _spread(
        self, batch: Batch, at: Tensor, divisor: Tensor, least: Tensor
    ) -> Float[Tensor, "batch origin horizon"]:
        """Return the root mean square of the latest seasonal differences, mostly around the same phase.

        Of a phase, the differences of the last `NetworkShape.spread_seasons` are taken; a single one would be small by
        chance, so the fewer there are, the more those of all phases count.

        So that the network says little where a series hardly differs from one season to the next (closed shops,
        nights without flights), and the more where it does. 1 where the context does not hold two seasons. Where it
        could, but a series is too new or too gappy to have `_ENOUGH_PAIRS` of values a season apart (or a season of
        them), the spread moves towards that of independent values, and phases without a pair take that of all.
        """
        season, horizon = self.shape.season_length, self.shape.horizon
        if season == 1 or 2 * season > self.shape.context_length:
            return torch.ones_like(divisor)[..., None].expand(-1, -1, horizon)
        both = batch.observed[:, season:] & batch.observed[:, :-season]
        square = ((batch.target[:, season:] - batch.target[:, :-season]).double().square() * both).cumsum(1)
        sums = functional.pad(torch.stack([square, both.double().cumsum(1)]), (season + 1, 0))

        def pairs(first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
            """Return the sum of squares and the number of the pairs whose later step is from `first` to `last`."""
            first = torch.maximum(first, least[:, None] + season)
            last = torch.maximum(torch.minimum(last, at[:, None]), first - 1)
            total, count = (sums[:, :, last + 1] - sums[:, :, first]).unbind()
            # Running sums of a GPU may fall by a rounding error.
            return total.clamp(min=0), count

        phase, reach, enough = at[:, None] + self.season_offset, season // 14, min(season, _ENOUGH_PAIRS)
        total, count = pairs((at - self.shape.spread_seasons * season + 1)[:, None], at[:, None])
        missing = (enough - count).clamp(min=0)
        independent = _INDEPENDENT * divisor[..., None].double().square()
        every = (total + missing * independent) / (count + missing)
        phases = (phase - k * season for k in range(self.shape.spread_seasons))
        local, near = torch.stack([torch.stack(pairs(of - reach, of + reach)) for of in phases]).sum(0)
        share = (missing / enough).clamp(min=_GLOBAL_SHARE).masked_fill(near == 0, 1.0)
        if self.shape.spread_seasons > 1:
            share = torch.maximum(share, 1 / (1 + near))
        mixed = torch.lerp(local / near.clamp(min=1), every, share)
        mixed = mixed.sqrt().to(divisor.dtype) / divisor[..., None]
        return mixed.clamp(min=_LEAST_SPREAD)

    def advance(self, batch: Batch, past: EncoderState) -> EncoderState:
        """Return the past after the segments of a batch, which is of `NetworkShape.lead` steps, these, and a horizon.

        `past` is that of the lead. An encoder that goes on like this has, after all, seen the whole history at once.
        """
        return self._advanced(batch, past, self.shape.lead, self._static(batch), self._future(batch))[2]

    def _advanced(
        self, batch: Batch, past: EncoderState, lead: int, static: Tensor, future: Tensor
    ) -> tuple[Statistics, Tensor, EncoderState]:
        """Return statistics, which are to be read after the lead, encoder outputs and past after it."""
        time = batch.target.shape[1] - self.shape.horizon
        before = past.totals.relative_to(batch.level)
        statistics, totals = continued_statistics(
            batch.target[:, :time], batch.observed[:, :time], self.shape.scale_length, before, lead
        )
        statistics = self._anchored(statistics)
        inputs = self._inputs(batch, statistics, static, future, lead, before.last.to(batch.target.dtype))
        states, carry = self.encoder(inputs, past.carry)
        return statistics, states, EncoderState(carry, totals.absolute(batch.level))

    def forward(
        self, batch: Batch, origins: Int[Tensor, " origin"], pasts: Sequence[EncoderState] | None = None
    ) -> Output:
        """Return forecasts from `origins`: multiples of the segment length, from the first origin of each window.

        The encoder begins with the window, or, with the past up to the last segment before the first origin (`pasts`
        holds one for each member of an ensemble), goes on from there. Where the context of an origin holds no
        observation, there is no forecast even so.
        """
        reading = self.read(batch, origins, pasts)
        if not isinstance(self.context, AutoregressiveDecoder):
            return self.stated(self.numbers(reading), reading)
        summary = functional.silu(reading.summary)
        known = reading.features, reading.linear, reading.frame
        if self.training:
            context = self._taught(self.context, batch, origins, summary, *known)
            return self.stated(self._numbers(context, reading.features), reading)
        last = batch.observed[:, origins + self.shape.context_length - 1]
        arguments, head, paths = self._sampled(self.context, summary, *known, last)
        return Output(arguments, reading.state, reading.frame, head, reading.attention, paths)

    def read(
        self, batch: Batch, origins: Int[Tensor, " origin"], pasts: Sequence[EncoderState] | None = None
    ) -> DecoderInputs:
        """Return what the decoder is told of the origins; `pasts` as `forward`."""
        static, future = self._static(batch), self._future(batch)
        at = origins + self.shape.context_length - 1
        if pasts is None:
            statistics = self._anchored(self.statistics(batch))
            if self.reference_batch is not None:
                level, _, scale, *_ = self._anchored(self.statistics(self.reference_batch))
                statistics = statistics._replace(
                    level=level.expand_as(statistics.level), scale=scale.expand_as(statistics.scale)
                )
            states, _ = self.encoder(self._inputs(batch, statistics, static, future))
            state = states[:, (at + 1) // self.shape.segment_length - 1]
        else:
            assert self.attention is None
            (past,) = pasts
            lead = self.shape.context_length - self.shape.segment_length
            statistics, states, _ = self._advanced(batch, past, lead, static, future)
            state = states[:, origins // self.shape.segment_length]
        # Origins of one window may see what lies in it before their own contexts; those of a history may not, so that
        # each of them forecasts as it would alone.
        least = torch.zeros_like(at) if pasts is None else at + 1 - self.shape.context_length
        frame = self._frame(batch, origins, statistics, least)
        if pasts is not None:
            in_sight = gather_windows(batch.observed, origins, self.shape.context_length).any(-1)
            frame = frame._replace(begun=frame.begun & in_sight)

        linear, level, expected = self._linear(frame)
        seen, weight = [self.dropout(state)], None
        if self.attention is not None:
            attended, weight = self._attended(batch, states, at)
            seen.append(self.dropout(attended))
        summary = self.summary(torch.cat([*seen, _spread(static, len(origins)), level], dim=-1))
        step = [expected, *self._seasons(batch, frame, at, least)]
        if self.shape.n_known and self.shape.season_lags:
            # What was known of the same phase of the last season: whether that was a holiday, say.
            known = future[..., : self.n_known_values]
            index = at[:, None] + self.season_offset - (self.shape.season_lags[0] - self.shape.season_length)
            step.append(known[:, index.clamp(min=0)])
        ahead = gather_windows(future, at + 1, self.shape.horizon)
        return DecoderInputs(summary, torch.cat([*step, ahead], dim=-1), ahead, linear, state, frame, weight)

    def numbers(self, reading: DecoderInputs) -> Float[Tensor, "batch origin horizon parameter"]:
        """Return what the network says of each step, with a decoder that is not autoregressive."""
        summary = functional.silu(reading.summary)
        if isinstance(self.context, SegmentDecoder):
            context = self.context(summary, reading.ahead)
        else:
            context = self.context(summary).unflatten(-1, (self.shape.horizon, -1))
        return self._numbers(context, reading.features)

    def stated(self, parameters: Float[Tensor, "batch origin horizon parameter"], reading: DecoderInputs) -> Output:
        """Return the forecasts that parameters mean."""
        arguments = self._distributions(parameters, reading.linear, reading.frame)
        return Output(arguments, reading.state, reading.frame, self.head, reading.attention)

    def biased(
        self,
        numbers: Float[Tensor, "batch origin horizon parameter"],
        bias: Float[Tensor, "batch 1 horizon parameter"],
        reading: DecoderInputs,  # noqa: ARG002  numbers are in units of spread
    ) -> Tensor:
        """Return numbers with a change of each."""
        return numbers + bias

    def light(self, reading: DecoderInputs, *, decodes: bool) -> DecoderInputs:  # noqa: ARG002
        """Return a reading without state, window and attention, and without what the decoder does not look at."""
        return reading._replace(
            ahead=reading.ahead if isinstance(self.context, SegmentDecoder) else reading.ahead[..., :0],
            state=reading.state[..., :0],
            frame=reading.frame._replace(window=reading.frame.window[..., :0]),
            attention=None,
        )

    @property
    def bias_shape(self) -> torch.Size:
        """[horizon, parameter]."""
        return self.output_bias.shape

    @property
    def summary_size(self) -> int:
        """Numbers of what the decoder is given of an origin."""
        return self.summary.out_features

    def matrices(self) -> dict[str, Tensor]:
        """Return the recurrent weights."""
        named = self.encoder.named_parameters(prefix="encoder")
        return {name: values for name, values in named if "weight" in name}

    @property
    def step_size(self) -> int:
        """Inputs of the layers of a step."""
        return self.step.get_parameter("0.weight").shape[1]

    @property
    def encoder_size(self) -> int:
        """Numbers of a state, of all layers."""
        return self.encoder.num_layers * self.state_size

    def _numbers(
        self,
        context: Float[Tensor, "*axes horizon feature"],
        features: Float[Tensor, "*axes horizon step"],
        steps: slice = slice(None),
    ) -> Float[Tensor, "*axes horizon parameter"]:
        # The first layer in two parts: features need no gradient, nor to be copied together with the context.
        first = self.step.get_submodule("0")
        assert isinstance(first, nn.Linear)
        own, told = first.weight.split([context.shape[-1], features.shape[-1]], dim=1)
        made = functional.linear(context, own, first.bias) + functional.linear(features, told)
        found: Tensor = self.output(self.step[1:](made)) + self.output_bias[steps]
        return found

    def _distributions(
        self,
        parameters: Float[Tensor, "*axes horizon parameter"],
        linear: Float[Tensor, "*axes horizon"] | Float[Tensor, "*axes horizon class"],
        frame: Frame,
    ) -> Float[Tensor, "*axes horizon argument"]:
        if not self.training:
            parameters = self.head.soft_threshold(parameters, self.threshold)
        arguments = self.head.arguments(parameters, linear, frame)
        return arguments if self.training else self.head.scale_width(arguments, self.interval_scale)

    def _arguments(
        self,
        context: Float[Tensor, "*axes horizon feature"],
        features: Float[Tensor, "*axes horizon step"],
        linear: Float[Tensor, "*axes horizon"],
        frame: Frame,
        steps: slice = slice(None),
    ) -> Float[Tensor, "*axes horizon argument"]:
        """Return the distributions of some steps, that `frame` and the others are of."""
        return self._distributions(self._numbers(context, features, steps), linear, frame)

    def _attended(
        self, batch: Batch, states: Float[Tensor, "batch step hidden"], at: Int[Tensor, " origin"]
    ) -> tuple[Tensor, Tensor]:
        assert self.attention is not None
        length = self.shape.segment_length
        there = batch.there[:, : states.shape[1] * length].unflatten(1, (-1, length)).any(-1)
        attended, weight = self.attention(states, there, (at + 1) // length - 1)
        return attended, weight

    def _taught(
        self,
        decoder: AutoregressiveDecoder,
        batch: Batch,
        origins: Int[Tensor, " origin"],
        summary: Float[Tensor, "batch origin summary"],
        features: Float[Tensor, "batch origin horizon step"],
        linear: Float[Tensor, "batch origin horizon"],
        frame: Frame,
    ) -> Float[Tensor, "batch origin horizon feature"]:
        """Return the features of all steps, each told the true value before it, what the skip says where it is missing.

        A share of the steps is told what the decoder itself draws, after true values (Bengio et al. 2015, "Scheduled
        Sampling", here in two passes: Mihaylova & Martins 2019).
        """
        values, observed = targets(batch, frame, origins, self.shape)
        last = batch.observed[:, origins + self.shape.context_length - 1]

        def context() -> Tensor:
            before = [
                torch.cat([first[:, :, None], later[:, :, :-1]], dim=2)
                for first, later in (
                    (frame.window[..., -1], values),
                    (last, observed),
                    (self._expected_last(frame), linear),
                    (frame.spread[..., 0], frame.spread),
                )
            ]
            inputs = torch.cat([self.head.decoder_input(*before), features], dim=-1).flatten(0, 1)
            made: Tensor = decoder(inputs, decoder.start(summary.flatten(0, 1)))[0]
            return made.reshape(*values.shape, -1)

        if self.sampled_share:
            with torch.no_grad():
                arguments = self._arguments(context(), features, linear, frame).to(values.dtype)
                # Some distributions have no quantile at 0.
                drawn = self.head.sample_at(arguments, torch.rand_like(values).clamp(min=torch.finfo(values.dtype).eps))
            own = torch.rand_like(values) < self.sampled_share
            values, observed = torch.where(own, drawn, values), observed | own
        return context()

    @torch.no_grad()
    def _sampled(
        self,
        decoder: AutoregressiveDecoder,
        summary: Float[Tensor, "batch origin summary"],
        features: Float[Tensor, "batch origin horizon step"],
        linear: Float[Tensor, "batch origin horizon"],
        frame: Frame,
        last: Bool[Tensor, "batch origin"],
    ) -> tuple[Tensor, Head | SampledHead, Float[Tensor, "batch origin path horizon"]]:
        """Return the distribution of each step over `n_paths` paths, what reads it, and the paths (ancestral sampling).

        Where what is told does not count yet, steps do not depend on each other, and their distributions are known.
        """
        if not self.output.weight.any():
            context = features.new_zeros(*features.shape[:-1], decoder.output.out_features)
            arguments = self._arguments(context, features, linear, frame)
            drawn = [self.head.sample_at(arguments, uniform.expand(arguments.shape[:-1])) for uniform in self.uniforms]
            return arguments, self.head, torch.stack(drawn, dim=2)
        rows = [values.flatten(0, 1) for values in (summary, features, linear, last, *frame)]
        size = max(1, _NUMBERS // (self.n_paths * max(_STEP_HIDDEN, self.head.n_parameters)))
        found = []
        for part in zip(*(values.split(size) for values in rows), strict=True):
            summary, features, linear, last, *fields = part
            found.append(self._rolled(decoder, summary, features, linear, last, Frame(*fields)))
        arguments, paths = (torch.cat(column).unflatten(0, frame.location.shape) for column in zip(*found, strict=True))
        return arguments, self.marginal, paths

    def _rolled(
        self,
        decoder: AutoregressiveDecoder,
        summary: Float[Tensor, "row summary"],
        features: Float[Tensor, "row horizon step"],
        linear: Float[Tensor, "row horizon"],
        last: Bool[Tensor, " row"],
        frame: Frame,
    ) -> tuple[Float[Tensor, "row horizon pooled"], Float[Tensor, "row path horizon"]]:
        """Return what `_sampled` does of some origins; fields of `frame` are by row, too."""

        def each(values: Tensor) -> Tensor:
            return values[:, None].expand(-1, self.n_paths, *values.shape[1:])

        features, linear, frame = each(features), each(linear), Frame(*(each(values) for values in frame))
        carry = tuple(part.repeat_interleave(self.n_paths, dim=1) for part in decoder.start(summary))
        values, observed, expected = frame.window[..., -1], each(last), self._expected_last(frame)
        pooled, paths = [], []
        for k in range(self.shape.horizon):
            now = slice(k, k + 1)
            told = self.head.decoder_input(values, observed, expected, frame.spread[..., max(k - 1, 0)])
            inputs = torch.cat([told, features[:, :, k]], dim=-1).flatten(0, 1)[:, None]
            made, carry = decoder(inputs, carry)
            context = made.unflatten(0, observed.shape)
            here = frame._replace(spread=frame.spread[..., now])
            arguments = self._arguments(context, features[:, :, now], linear[:, :, now], here, now)[:, :, 0]
            # Half precision is for products, not for what is drawn.
            arguments = arguments.to(frame.location.dtype)
            values = self.head.sample_at(arguments, self.uniforms[:, k].expand(arguments.shape[:2]))
            observed, expected = torch.ones_like(observed), linear[:, :, k]
            pooled.append(self.head.marginal_arguments(arguments, values))
            paths.append(values)
        return torch.stack(pooled, dim=1), torch.stack(paths, dim=-1)

    def _expected_last(self, frame: Frame) -> Float[Tensor, "*axes"] | Float[Tensor, "*axes class"]:
        """Return what the skip says of the step of the origin: the value itself, of classes their frequencies."""
        last = frame.window[..., -1]
        return self.class_skip.frequency.expand(*last.shape, -1) if self.shape.n_classes else last

    def _linear(self, frame: Frame) -> tuple[Tensor, Tensor, Tensor]:
        """Return the skip, what is said of each window ([..., feature]), and of each step ([..., horizon, feature])."""
        if self.shape.n_classes:
            linear = self.class_skip(frame.window)
            count = class_counts(frame.window, self.shape.n_classes)
            share = count / count.sum(-1, keepdim=True).clamp(min=1)
            return linear, share @ self.class_embeddings.weight, linear.exp() @ self.class_embeddings.weight
        linear = self.skipped(frame.window, frame.smooth)
        level = torch.stack([asinh(frame.location / frame.divisor), self._log_scale(frame.divisor)], dim=-1)
        return linear, level, torch.stack([asinh(linear), frame.spread.log()], dim=-1)

    def _log_scale(self, divisor: Tensor) -> Tensor:
        return ((divisor.log() - self.log_scale[0]) / self.log_scale[1]).clamp(-_REACH, _REACH)

    def _standardised(self, values: Tensor, first: int) -> Tensor:
        """Return [..., 2 * n]: standardised values, 0 where missing, and whether each one is there."""
        present = torch.isfinite(values)
        return torch.cat([self._scaled(values, present, first), present.to(values.dtype)], dim=-1)

    def _scaled(self, values: Tensor, present: Tensor, first: int) -> Tensor:
        n = values.shape[-1]
        mean, scale = self.covariate_mean[first : first + n], self.covariate_scale[first : first + n]
        return torch.where(present, ((values - mean) / scale).clamp(-_REACH, _REACH), 0.0)

    def _covariates(self, values: Tensor, there: Tensor, first: int, embeddings: nn.ModuleDict) -> Tensor:
        """Return [..., feature]: as `_standardised`, but the columns of `embeddings` hold codes, and are embedded."""
        if not embeddings:
            return self._standardised(values, first)
        # Steps before the start are no unseen values.
        coded = [str(column) in embeddings for column in range(values.shape[-1])]
        present = torch.isfinite(values) & (there[..., None] | ~torch.tensor(coded, device=values.device))
        columns = list(self._scaled(values, present, first).split(1, dim=-1))
        for name, table in embeddings.items():
            assert isinstance(table, nn.Embedding)
            column = int(name)
            codes = values[..., column].nan_to_num(0.0).long()
            if self.training:
                # A value never seen is unknown at every step of a window.
                hidden = torch.rand(len(codes), table.num_embeddings, device=codes.device) < _HIDDEN_SHARE
                codes = codes.masked_fill(hidden.gather(1, codes), 0)
            columns[column] = table(codes) * present[..., column, None]
        return torch.cat([*columns, present.to(values.dtype)], dim=-1)

    def _static(self, batch: Batch) -> Float[Tensor, "batch static"]:
        categories = batch.static_categories
        if self.training:
            # Some values are hidden, so that the row for those never seen is trained too.
            categories = categories.masked_fill(
                torch.rand(categories.shape, device=categories.device) < _HIDDEN_SHARE, 0
            )
        embedded = [table(codes) for table, codes in zip(self.embeddings, categories.T, strict=True)]
        numbers = self._standardised(batch.static_numbers, self.shape.n_past + self.shape.n_known)
        return torch.cat([*embedded, numbers], dim=-1)

    def _future(self, batch: Batch) -> Float[Tensor, "batch time future"]:
        """Return what is known of every step of the window, its targets' steps included."""
        columns, calendar = batch.known.split([self.shape.n_known, self.shape.n_calendar], dim=-1)
        known = self._covariates(columns, batch.there, self.shape.n_past, self.known_embeddings)
        return torch.cat([known, calendar], dim=-1)

    def _inputs(
        self,
        batch: Batch,
        statistics: Statistics,
        static: Tensor,
        future: Tensor,
        first: int = 0,
        before: Tensor | None = None,
    ) -> Tensor:
        """Return the encoder's inputs, [batch, segment, input]: each segment normalised as of its own last step.

        The first segment begins at step `first`; the latest value before it is `before`, 0 when None.
        """
        length = self.shape.segment_length
        time = (batch.target.shape[1] - self.shape.horizon) // length * length
        n_segments = (time - first) // length
        level, last, scale = (values[:, first + length - 1 : time : length, None] for values in statistics[:3])
        divisor = torch.where(scale > 0, scale, 1.0)

        def columns(lag: int) -> list[Tensor]:
            """Return the normalised values `lag` steps before each step, and whether they were observed."""
            target = functional.pad(batch.target, (lag, 0))[:, first:time].unflatten(1, (-1, length))
            observed = functional.pad(batch.observed, (lag, 0))[:, first:time].unflatten(1, (-1, length))
            if self.shape.n_classes:
                return [
                    (self.class_embeddings(target.long()) * observed[..., None]).flatten(2),
                    observed.to(scale.dtype),
                ]
            return [(target - level) / divisor * observed, observed.to(target.dtype)]

        # Seasons are looked up for the segment that comes next.
        values = [column for lag in (0, *(lag - length for lag in self.shape.input_lags)) for column in columns(lag)]
        if not self.shape.n_classes:
            earlier = functional.pad(last, (0, 0, 1, 0))[:, :n_segments]
            if before is not None:
                earlier = torch.cat([before[:, None, None], earlier[:, 1:]], dim=1)
            values += [(last - earlier) / divisor, asinh(level / divisor), self._log_scale(divisor)]
        parts = [asinh(torch.cat(values, dim=-1))]
        if self.shape.n_past:
            past = self._covariates(batch.past[:, first:time], batch.there[:, first:time], 0, self.past_embeddings)
            parts.append(past.unflatten(1, (-1, length)).mean(2))
        following = torch.arange(first + length, time + 1, length, device=future.device)
        ahead = gather_windows(future, following, min(length, self.shape.horizon)).mean(2)
        return torch.cat([*parts, ahead, _spread(static, n_segments)], dim=-1)

    def _seasons(self, batch: Batch, frame: Frame, at: Tensor, least: Tensor) -> list[Tensor]:
        """Return what stood some seasons before each target step, as far as the origin sees it.

        The normalised value, whether it was observed, and the mean around it (a seventh of a season: a day of a week).
        """
        if not self.shape.season_lags:
            return []
        lags = torch.tensor(self.shape.season_lags, device=at.device)
        index = (at[:, None] + self.season_offset + self.shape.season_length)[..., None] - lags
        inside = index.clamp(min=0)
        seen, value = batch.observed[:, inside] & (index >= 0), batch.target[:, inside]
        if self.shape.n_classes:
            known = self.class_embeddings(value.long()) * seen[..., None]
            return [torch.cat([known, seen[..., None].to(known.dtype)], dim=-1).flatten(-2)]
        features = [self._relative(value, frame) * seen, seen.to(value.dtype)]
        if reach := self.shape.season_length // 14:
            sums = functional.pad(torch.stack([batch.target.double(), batch.observed.double()]).cumsum(-1), (1, 0))
            first = torch.maximum(index - reach, least[:, None, None])
            end = torch.minimum(index + reach, at[:, None, None]).clamp(min=-1) + 1
            total, count = sums[..., end] - sums[..., first]
            mean = (total / count.clamp(min=1)).to(value.dtype)
            features.append(self._relative(mean, frame) * (count > 0))
        return [torch.stack(features, dim=-1).flatten(-2)]

    def _relative(
        self, values: Float[Tensor, "batch origin horizon lag"], frame: Frame
    ) -> Float[Tensor, "batch origin horizon lag"]:
        return asinh((values - frame.location[..., None, None]) / frame.divisor[..., None, None])


def _decoder(
    shape: NetworkShape, config: ModelConfig, n_future: int, n_inputs: int
) -> nn.Linear | SegmentDecoder | AutoregressiveDecoder:
    """Return the decoder that `model.decoder` names: one linear map to all steps at once, if it is direct.

    `n_inputs` are those of a step that is told the value before it.
    """
    if config.decoder == "autoregressive":
        return AutoregressiveDecoder(_DECODER_HIDDEN, n_inputs, config)
    if config.decoder == "segment":
        return SegmentDecoder(_DECODER_HIDDEN, shape.horizon, n_future, shape.segment_length, config)
    return nn.Linear(_DECODER_HIDDEN, shape.horizon * config.decoder_size)


def _embeddings(sizes: tuple[int, ...], embedding_size: int) -> nn.ModuleDict:
    """Return a table for each column that holds codes, by its number."""
    tables = {str(column): nn.Embedding(size + 1, embedding_size) for column, size in enumerate(sizes) if size}
    return nn.ModuleDict(tables)


def _spread(static: Float[Tensor, "batch static"], steps: int) -> Float[Tensor, "batch step static"]:
    return static[:, None].expand(-1, steps, -1)


def _numbers_of_the_panel(shape: NetworkShape, n_covariates: int) -> dict[str, Tensor]:
    """Return what is set from the panel, not trained, as it is before that."""
    numbers = {
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
