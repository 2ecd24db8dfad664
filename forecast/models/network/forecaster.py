"""The forecaster of a panel: a recurrent encoder, a linear skip and a decoder, from any step of a window."""

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

# Normalised values are clipped to this range where they enter the network; the linear path keeps at least those of the
# steps that the scale is computed over.
_CLIP = 20.0
# The share of all phases in the spread of one phase, and the least spread, in units of scale.
_GLOBAL_SHARE = 0.002
_LEAST_SPREAD = 0.005
# Pairs of values a season apart that suffice to estimate a seasonal spread. Missing pairs are taken to differ as
# independent values do: their squared difference is `_INDEPENDENT` squared scales.
_ENOUGH_PAIRS = 8
_INDEPENDENT = 2.0
# With this many errors in a window, smoothing's own errors make up half of its spread.
_FEW_ERRORS = 12
# The share of category values hidden in training.
_HIDDEN_SHARE = 0.05
_DECODER_HIDDEN = 128
_STEP_HIDDEN = 64
# Elements of the widest layer over all paths sampled in one pass.
_MAX_ELEMENTS = 1 << 22


class RecurrentForecaster(Tunable[DecoderInputs]):
    """forecast = location + scale * (linear skip + network), at any step of the window.

    All inputs at step t come from observations up to t. The last layer starts at zero and its bias at the quantiles
    of the skip's residuals, so an untrained network forecasts the closed-form solution.

    In training, an autoregressive decoder reads true values (teacher forcing), and its own samples at a share of the
    steps (`sampled_share`). In evaluation mode it reads no target and forecasts the distribution of sampled paths, at
    each step.
    """

    skip: Tensor
    covariate_mean: Tensor
    covariate_scale: Tensor
    log_scale: Tensor
    cold_scale: Tensor
    """The panel's scale, for series with too few observations: relative to the level, and absolute (0: unknown)."""
    season_offset: Tensor
    threshold: Tensor
    """Soft threshold of changes of the location, in units of spread."""
    mean_shift: Tensor
    """Shift of means, as a share of `heads.base.mean_distance`; 0 for heads that estimate a mean on a linear scale."""
    interval_scale: Tensor
    """Factor of the quantiles' distances from the median, set after training (`postprocess.interval_scale`)."""
    smoothing_cost: Tensor
    """Cost of each filter of the bank on the panel (`smoothing.shared_cost`)."""
    smoothing_share: Tensor
    """Share of exponential smoothing in the skip."""
    smoothing_ratio: Tensor
    """Ratio of smoothing's errors one step ahead to the seasonal spread on the panel, for series without errors."""
    uniforms: Tensor

    def __init__(self, shape: NetworkShape, config: ModelConfig) -> None:
        super().__init__()
        self.shape = shape
        self.head = make_head(
            config.head, config.quantile_levels, power=config.tweedie_power, n_classes=shape.n_classes
        )
        self.head.nonnegative = shape.nonnegative
        # Features of each value of the target, and of a window's level.
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
        n_encoded = config.hidden_size * (1 + config.attention)
        self.summary = nn.Linear(n_encoded + n_static + n_level, _DECODER_HIDDEN)
        n_around = 0 if shape.n_classes else int(shape.season_length >= 14)
        n_season = (n_value + 1 + n_around) * len(shape.season_lags)
        n_season += self.n_known_values * bool(shape.season_lags)
        n_step = n_level + n_season + n_future
        self.context = _decoder(shape, config, n_future, self.head.n_decoder_inputs + n_step)
        self.own_samples, self.sampled_share = config.own_samples, 0.0
        """Share of steps at which an autoregressive decoder reads its own samples: at the end of training, and now."""
        self.reference_batch: Batch | None = None
        """A window whose level, scale and spread all others take in place of their own, so that attributions of a
        forecast hold them fixed; usually None."""
        self.n_paths = 1
        """Paths sampled for a forecast; 1 where its distributions are exact."""
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
        for name, values in _panel_buffers(shape, n_covariates).items():
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
        """Return a copy of the embedding table of each covariate that holds codes; row 0 is the unseen value."""
        return [table.detach().clone() for table in self._category_tables()]

    @torch.no_grad()
    def share_unseen(self, untrained: Sequence[Float[Tensor, "value feature"]]) -> bool:
        """Give values that training has not drawn the row of the unseen value; return whether there were any.

        `untrained` is `category_rows` before the training: rows that still equal it were not drawn.
        """
        changed = False
        for table, initial in zip(self._category_tables(), untrained, strict=True):
            same = (table == initial).all(1)
            table[same] = table[0].clone()
            changed = changed or bool(same[1:].any())
        return changed

    def _category_tables(self) -> list[Tensor]:
        modules = [*self.embeddings, *self.past_embeddings.values(), *self.known_embeddings.values()]
        return [table.weight for table in modules if isinstance(table, nn.Embedding)]

    def sampling(self, n_paths: int) -> "RecurrentForecaster":
        """Return a copy that samples `n_paths` paths, for a network with an autoregressive decoder."""
        network = copy.deepcopy(self)
        network.n_paths, network.uniforms = n_paths, uniforms(n_paths, self.shape.horizon).to(self.uniforms)
        return network

    def frame(self, batch: Batch, origins: Int[Tensor, " origin"], statistics: Statistics | None = None) -> Frame:
        """Return the frame of `origins` (counted from the first origin of each window).

        `statistics` is the result of the method of that name, up to the last origin at least; None computes it.
        """
        earliest = torch.zeros_like(origins)
        return self._frame(batch, origins, self._anchor(statistics or self.statistics(batch)), earliest)

    def statistics(self, batch: Batch, time: int | None = None) -> Statistics:
        """Return the running statistics of the first `time` steps (all if None), the same for each anchor."""
        return running_statistics(batch.target[:, :time], batch.observed[:, :time], self.shape.scale_length)

    def _anchor(self, statistics: Statistics) -> Statistics:
        relative, absolute = self.cold_scale
        scale = cold_start_scale(statistics, relative, absolute, self.shape.scale_length)
        if self.shape.anchor == "last":
            # Around the last value: the root mean square distance from there.
            scale = torch.hypot(scale, statistics.last - statistics.level)
        return statistics._replace(scale=scale)

    def _frame(self, batch: Batch, origins: Tensor, statistics: Statistics, earliest: Int[Tensor, " origin"]) -> Frame:
        """Return the frame of `origins`, which look back no further than step `earliest`."""
        origin_steps = origins + self.shape.context_length - 1
        if self.shape.n_classes:
            return self._class_frame(batch, origins, statistics.any_observed[:, origin_steps])
        location = (statistics.last if self.shape.anchor == "last" else statistics.level)[:, origin_steps]
        scale = statistics.scale[:, origin_steps]
        divisor = torch.where(scale > 0, scale, 1.0)
        # Before its start, a series is taken to have its first value.
        not_started = batch.there.cummax(1).values.logical_not()
        first = batch.target.gather(1, batch.observed.int().argmax(1, keepdim=True))
        window = gather_windows(torch.where(not_started, first, batch.target), origins, self.shape.context_length)
        observed = gather_windows(not_started | batch.observed, origins, self.shape.context_length)
        window = ((window - location[..., None]) / divisor[..., None]) * observed
        # Within the steps of the scale no value is further out than their root.
        limit = max(_CLIP, self.shape.scale_length**0.5)
        window = window.clamp(-limit, limit)
        spread = self._seasonal_spread(batch, origin_steps, divisor, earliest)
        if self.shape.smoothing:
            observed = gather_windows(batch.observed, origins, self.shape.context_length)
            smooth, error, trust = self._smooth(self.smooth_windows(window, observed), len(origins))
            reference = (spread * self.smoothing_ratio).log()
            spread = torch.lerp(reference, error.clamp(min=_LEAST_SPREAD).log(), trust).exp()
        else:
            smooth = torch.zeros_like(spread)
        if self.reference_batch is not None and batch is not self.reference_batch:
            reference_frame = self._frame(
                self.reference_batch, origins, self._anchor(self.statistics(self.reference_batch)), earliest
            )
            spread = reference_frame.spread.expand_as(spread)
        return Frame(location, divisor, scale, statistics.any_observed[:, origin_steps], window, spread, smooth)

    def seasonal_spread(
        self, batch: Batch, origins: Int[Tensor, " origin"], divisor: Float[Tensor, "batch origin"]
    ) -> Float[Tensor, "batch origin horizon"]:
        """Return the spread by seasonal differences alone, without the errors of smoothing."""
        origin_steps = origins + self.shape.context_length - 1
        return self._seasonal_spread(batch, origin_steps, divisor, torch.zeros_like(origin_steps))

    def smooth_windows(
        self, window: Float[Tensor, "batch origin context"], observed: Bool[Tensor, "batch origin context"]
    ) -> smoothing.Smoothed:
        """Return the state of the bank of filters after the windows of a frame, [batch * origin, ...]."""
        return smoothing.smooth(window.flatten(0, 1), observed.flatten(0, 1), self.shape.season_length)

    def _smooth(self, smoothed: smoothing.Smoothed, n_origins: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the forecast of smoothing, its mean absolute error one step ahead, and the weight of that error.

        [batch, origin, horizon], and twice [batch, origin, 1].
        """
        shares = smoothing.shares(smoothed, self.smoothing_cost)
        path: Tensor = smoothing.mixed(smoothed, shares, self.shape.horizon)
        error = (shares * smoothed.error).sum(1, keepdim=True)
        trust = smoothing.trust(smoothed.n_errors, _FEW_ERRORS)
        path, error, trust = (part.unflatten(0, (-1, n_origins)) for part in (path, error, trust))
        return path, error, trust

    def apply_skip(self, window: Float[Tensor, "*axes context"], smooth: Float[Tensor, "*axes horizon"]) -> Tensor:
        """Return the skip's forecast of a numeric target, [..., horizon]."""
        linear: Tensor = apply_linear(window, self.skip)
        if self.shape.smoothing:
            linear = linear + self.smoothing_share * smooth
        return linear

    def _class_frame(self, batch: Batch, origins: Tensor, any_observed: Tensor) -> Frame:
        codes = batch.target.masked_fill(~batch.observed, -1.0)
        window = gather_windows(codes, origins, self.shape.context_length)
        one = torch.ones_like(window[..., 0])
        spread = one[..., None].expand(-1, -1, self.shape.horizon)
        return Frame(torch.zeros_like(one), one, one, any_observed, window, spread, torch.zeros_like(spread))

    def _seasonal_spread(
        self, batch: Batch, origin_steps: Tensor, divisor: Tensor, earliest: Tensor
    ) -> Float[Tensor, "batch origin horizon"]:
        """Return the root mean square of the latest seasonal differences, mostly around the same phase.

        A phase uses its differences of the last `NetworkShape.spread_seasons` seasons. A single one may be small by
        chance, so the fewer there are, the more weight the differences of all phases get.

        The network's changes are in units of the spread: small where a series hardly differs from one season to the
        next (closed shops, nights without flights), large where it does. The spread is 1 where the context does not
        hold two seasons. Where it does, but a series is too new or too gappy to have `_ENOUGH_PAIRS` of values a
        season apart (or a season of them), the spread moves towards that of independent values, and phases without a
        pair take that of all phases.
        """
        season, horizon = self.shape.season_length, self.shape.horizon
        if season == 1 or 2 * season > self.shape.context_length:
            return torch.ones_like(divisor)[..., None].expand(-1, -1, horizon)
        paired = batch.observed[:, season:] & batch.observed[:, :-season]
        square = ((batch.target[:, season:] - batch.target[:, :-season]).double().square() * paired).cumsum(1)
        sums = functional.pad(torch.stack([square, paired.double().cumsum(1)]), (season + 1, 0))

        def pairs(first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
            """Return the sum of squares and the number of the pairs whose later step is from `first` to `last`."""
            first = torch.maximum(first, earliest[:, None] + season)
            last = torch.maximum(torch.minimum(last, origin_steps[:, None]), first - 1)
            total, count = (sums[:, :, last + 1] - sums[:, :, first]).unbind()
            # Running sums of a GPU may fall by a rounding error.
            return total.clamp(min=0), count

        phase, reach, enough = origin_steps[:, None] + self.season_offset, season // 14, min(season, _ENOUGH_PAIRS)
        total, count = pairs((origin_steps - self.shape.spread_seasons * season + 1)[:, None], origin_steps[:, None])
        missing = (enough - count).clamp(min=0)
        independent = _INDEPENDENT * divisor[..., None].double().square()
        overall = (total + missing * independent) / (count + missing)
        phases = (phase - k * season for k in range(self.shape.spread_seasons))
        local, near = torch.stack([torch.stack(pairs(of - reach, of + reach)) for of in phases]).sum(0)
        share = (missing / enough).clamp(min=_GLOBAL_SHARE).masked_fill(near == 0, 1.0)
        if self.shape.spread_seasons > 1:
            share = torch.maximum(share, 1 / (1 + near))
        mixed = torch.lerp(local / near.clamp(min=1), overall, share)
        mixed = mixed.sqrt().to(divisor.dtype) / divisor[..., None]
        return mixed.clamp(min=_LEAST_SPREAD)

    def advance(self, batch: Batch, past: EncoderState) -> EncoderState:
        """Return the encoder's state after the segments of a batch: `NetworkShape.lead` steps, these, and a horizon.

        `past` is the state after the lead. The result is the same as if the encoder read the whole history at once.
        """
        return self._advance(batch, past, self.shape.lead, self._static(batch), self._future(batch))[2]

    def _advance(
        self, batch: Batch, past: EncoderState, lead: int, static: Tensor, future: Tensor
    ) -> tuple[Statistics, Tensor, EncoderState]:
        """Return statistics (valid after the lead), encoder outputs after the lead, and the state at the end."""
        time = batch.target.shape[1] - self.shape.horizon
        previous_sums = past.totals.relative_to(batch.level)
        statistics, totals = continued_statistics(
            batch.target[:, :time], batch.observed[:, :time], self.shape.scale_length, previous_sums, lead
        )
        statistics = self._anchor(statistics)
        inputs = self._inputs(batch, statistics, static, future, lead, previous_sums.last.to(batch.target.dtype))
        states, carry = self.encoder(inputs, past.carry)
        return statistics, states, EncoderState(carry, totals.absolute(batch.level))

    def forward(
        self, batch: Batch, origins: Int[Tensor, " origin"], pasts: Sequence[EncoderState] | None = None
    ) -> Output:
        """Return forecasts from `origins`: multiples of the segment length, from the first origin of each window.

        The encoder begins with the window, or, with `pasts` (one for each member of an ensemble), continues from its
        state after the last segment before the first origin. An origin without any observation in its context has no
        forecast either way.
        """
        inputs = self.encode(batch, origins, pasts)
        if not isinstance(self.context, AutoregressiveDecoder):
            return self.distribution(self.step_parameters(inputs), inputs)
        if self.training:
            context = self._teacher_forced(self.context, batch, origins, inputs)
            return self.distribution(self._step_parameters(context, inputs.features), inputs)
        last = batch.observed[:, origins + self.shape.context_length - 1]
        arguments, head, paths = self._sample(self.context, inputs, last)
        return Output(arguments, inputs.state, inputs.frame, head, inputs.attention, paths)

    def encode(
        self, batch: Batch, origins: Int[Tensor, " origin"], pasts: Sequence[EncoderState] | None = None
    ) -> DecoderInputs:
        """Return the decoder's inputs at the origins; `pasts` as in `forward`."""
        static, future = self._static(batch), self._future(batch)
        origin_steps = origins + self.shape.context_length - 1
        if pasts is None:
            statistics = self._anchor(self.statistics(batch))
            if self.reference_batch is not None:
                level, _, scale, *_ = self._anchor(self.statistics(self.reference_batch))
                statistics = statistics._replace(
                    level=level.expand_as(statistics.level), scale=scale.expand_as(statistics.scale)
                )
            states, _ = self.encoder(self._inputs(batch, statistics, static, future))
            state = states[:, (origin_steps + 1) // self.shape.segment_length - 1]
        else:
            assert self.attention is None
            (past,) = pasts
            lead = self.shape.context_length - self.shape.segment_length
            statistics, states, _ = self._advance(batch, past, lead, static, future)
            state = states[:, origins // self.shape.segment_length]
        # Origins of one window may read steps before their own contexts; those of a history may not, so that each of
        # them forecasts as it would alone.
        earliest = torch.zeros_like(origin_steps) if pasts is None else origin_steps + 1 - self.shape.context_length
        frame = self._frame(batch, origins, statistics, earliest)
        if pasts is not None:
            in_sight = gather_windows(batch.observed, origins, self.shape.context_length).any(-1)
            frame = frame._replace(begun=frame.begun & in_sight)

        linear, level, expected = self._linear(frame)
        encoded, weight = [self.dropout(state)], None
        if self.attention is not None:
            attended, weight = self._attend(batch, states, origin_steps)
            encoded.append(self.dropout(attended))
        summary = self.summary(torch.cat([*encoded, _broadcast_steps(static, len(origins)), level], dim=-1))
        step = [expected, *self._seasons(batch, frame, origin_steps, earliest)]
        if self.shape.n_known and self.shape.season_lags:
            # Known covariates at the same phase of the last season: whether that was a holiday, say.
            known = future[..., : self.n_known_values]
            index = origin_steps[:, None] + self.season_offset - (self.shape.season_lags[0] - self.shape.season_length)
            step.append(known[:, index.clamp(min=0)])
        ahead = gather_windows(future, origin_steps + 1, self.shape.horizon)
        return DecoderInputs(summary, torch.cat([*step, ahead], dim=-1), ahead, linear, state, frame, weight)

    def step_parameters(self, inputs: DecoderInputs) -> Float[Tensor, "batch origin horizon parameter"]:
        """Return the head's parameters at each step, for a decoder that is not autoregressive."""
        summary = functional.silu(inputs.summary)
        if isinstance(self.context, SegmentDecoder):
            context = self.context(summary, inputs.ahead)
        else:
            context = self.context(summary).unflatten(-1, (self.shape.horizon, -1))
        return self._step_parameters(context, inputs.features)

    def distribution(
        self, parameters: Float[Tensor, "batch origin horizon parameter"], inputs: DecoderInputs
    ) -> Output:
        """Return the forecasts of these parameters."""
        arguments = self._distributions(parameters, inputs.linear, inputs.frame)
        return Output(arguments, inputs.state, inputs.frame, self.head, inputs.attention)

    def add_bias(
        self,
        parameters: Float[Tensor, "batch origin horizon parameter"],
        bias: Float[Tensor, "batch 1 horizon parameter"],
        inputs: DecoderInputs,  # noqa: ARG002  numbers are in units of spread
    ) -> Tensor:
        """Return the parameters plus `bias`."""
        return parameters + bias

    def trim(self, inputs: DecoderInputs, *, decodes: bool) -> DecoderInputs:  # noqa: ARG002
        """Return the inputs without state, window and attention, and without what the decoder does not read."""
        return inputs._replace(
            ahead=inputs.ahead if isinstance(self.context, SegmentDecoder) else inputs.ahead[..., :0],
            state=inputs.state[..., :0],
            frame=inputs.frame._replace(window=inputs.frame.window[..., :0]),
            attention=None,
        )

    @property
    def bias_shape(self) -> torch.Size:
        """[horizon, parameter]."""
        return self.output_bias.shape

    @property
    def summary_size(self) -> int:
        """Features in the summary of an origin."""
        return self.summary.out_features

    def matrices(self) -> dict[str, Tensor]:
        """Return the recurrent weights."""
        named = self.encoder.named_parameters(prefix="encoder")
        return {name: values for name, values in named if "weight" in name}

    @property
    def step_size(self) -> int:
        """Inputs of the layers of one step."""
        return self.step.get_parameter("0.weight").shape[1]

    @property
    def encoder_size(self) -> int:
        """Elements of an encoder state over all layers."""
        return self.encoder.num_layers * self.state_size

    def _step_parameters(
        self,
        context: Float[Tensor, "*axes horizon feature"],
        features: Float[Tensor, "*axes horizon step"],
        steps: slice = slice(None),
    ) -> Float[Tensor, "*axes horizon parameter"]:
        # The first layer in two parts: features need no gradient, nor to be copied together with the context.
        first = self.step.get_submodule("0")
        assert isinstance(first, nn.Linear)
        context_weight, feature_weight = first.weight.split([context.shape[-1], features.shape[-1]], dim=1)
        hidden = functional.linear(context, context_weight, first.bias) + functional.linear(features, feature_weight)
        parameters: Tensor = self.output(self.step[1:](hidden)) + self.output_bias[steps]
        return parameters

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
        """Return the distributions' arguments at some `steps`; all inputs are of these steps."""
        return self._distributions(self._step_parameters(context, features, steps), linear, frame)

    def _attend(
        self, batch: Batch, states: Float[Tensor, "batch step hidden"], origin_steps: Int[Tensor, " origin"]
    ) -> tuple[Tensor, Tensor]:
        assert self.attention is not None
        length = self.shape.segment_length
        valid = batch.there[:, : states.shape[1] * length].unflatten(1, (-1, length)).any(-1)
        attended, weight = self.attention(states, valid, (origin_steps + 1) // length - 1)
        return attended, weight

    def _teacher_forced(
        self,
        decoder: AutoregressiveDecoder,
        batch: Batch,
        origins: Int[Tensor, " origin"],
        inputs: DecoderInputs,
    ) -> Float[Tensor, "batch origin horizon feature"]:
        """Return the features of all steps; each step reads the true value before it, the skip's where it is missing.

        A share of the steps reads the decoder's own samples, drawn after true values (Bengio et al. 2015, "Scheduled
        Sampling", here in two passes: Mihaylova & Martins 2019).
        """
        summary, features, linear, frame = functional.silu(inputs.summary), inputs.features, inputs.linear, inputs.frame
        values, observed = targets(batch, frame, origins, self.shape)
        last = batch.observed[:, origins + self.shape.context_length - 1]

        def context() -> Tensor:
            previous = [
                torch.cat([first[:, :, None], later[:, :, :-1]], dim=2)
                for first, later in (
                    (frame.window[..., -1], values),
                    (last, observed),
                    (self._expected_last(frame), linear),
                    (frame.spread[..., 0], frame.spread),
                )
            ]
            step_inputs = torch.cat([self.head.decoder_input(*previous), features], dim=-1).flatten(0, 1)
            features_by_step: Tensor = decoder(step_inputs, decoder.start(summary.flatten(0, 1)))[0]
            return features_by_step.reshape(*values.shape, -1)

        if self.sampled_share:
            with torch.no_grad():
                arguments = self._arguments(context(), features, linear, frame).to(values.dtype)
                # Some distributions have no quantile at 0.
                samples = self.head.sample_at(
                    arguments, torch.rand_like(values).clamp(min=torch.finfo(values.dtype).eps)
                )
            use_sample = torch.rand_like(values) < self.sampled_share
            values, observed = torch.where(use_sample, samples, values), observed | use_sample
        return context()

    @torch.no_grad()
    def _sample(
        self,
        decoder: AutoregressiveDecoder,
        inputs: DecoderInputs,
        last: Bool[Tensor, "batch origin"],
    ) -> tuple[Tensor, Head | SampledHead, Float[Tensor, "batch origin path horizon"]]:
        """Return the distribution of each step over `n_paths` paths, its head, and the paths (ancestral sampling).

        `last` says whether the value at the origin was observed. While the output layer is all zeros, steps do not
        depend on each other, and their distributions are exact.
        """
        summary, features, linear, frame = functional.silu(inputs.summary), inputs.features, inputs.linear, inputs.frame
        if not self.output.weight.any():
            context = features.new_zeros(*features.shape[:-1], decoder.output.out_features)
            arguments = self._arguments(context, features, linear, frame)
            draws = [self.head.sample_at(arguments, uniform.expand(arguments.shape[:-1])) for uniform in self.uniforms]
            return arguments, self.head, torch.stack(draws, dim=2)
        rows = [values.flatten(0, 1) for values in (summary, features, linear, last, *frame)]
        size = max(1, _MAX_ELEMENTS // (self.n_paths * max(_STEP_HIDDEN, self.head.n_parameters)))
        chunks = []
        for columns in zip(*(values.split(size) for values in rows), strict=True):
            summary, features, linear, last, *fields = columns
            chunks.append(self._roll_out(decoder, summary, features, linear, last, Frame(*fields)))
        arguments, paths = (
            torch.cat(column).unflatten(0, frame.location.shape) for column in zip(*chunks, strict=True)
        )
        return arguments, self.marginal, paths

    def _roll_out(
        self,
        decoder: AutoregressiveDecoder,
        summary: Float[Tensor, "row summary"],
        features: Float[Tensor, "row horizon step"],
        linear: Float[Tensor, "row horizon"],
        last: Bool[Tensor, " row"],
        frame: Frame,
    ) -> tuple[Float[Tensor, "row horizon argument"], Float[Tensor, "row path horizon"]]:
        """Return the arguments of each step and the paths of some origins; fields of `frame` are by row, too."""

        def per_path(values: Tensor) -> Tensor:
            return values[:, None].expand(-1, self.n_paths, *values.shape[1:])

        features, linear, frame = per_path(features), per_path(linear), Frame(*(per_path(values) for values in frame))
        carry = tuple(part.repeat_interleave(self.n_paths, dim=1) for part in decoder.start(summary))
        values, observed, expected = frame.window[..., -1], per_path(last), self._expected_last(frame)
        marginals, paths = [], []
        for k in range(self.shape.horizon):
            step = slice(k, k + 1)
            decoder_input = self.head.decoder_input(values, observed, expected, frame.spread[..., max(k - 1, 0)])
            inputs = torch.cat([decoder_input, features[:, :, k]], dim=-1).flatten(0, 1)[:, None]
            decoded, carry = decoder(inputs, carry)
            context = decoded.unflatten(0, observed.shape)
            step_frame = frame._replace(spread=frame.spread[..., step])
            arguments = self._arguments(context, features[:, :, step], linear[:, :, step], step_frame, step)[:, :, 0]
            # Half precision is for products, not for samples.
            arguments = arguments.to(frame.location.dtype)
            values = self.head.sample_at(arguments, self.uniforms[:, k].expand(arguments.shape[:2]))
            observed, expected = torch.ones_like(observed), linear[:, :, k]
            marginals.append(self.head.marginal_arguments(arguments, values))
            paths.append(values)
        return torch.stack(marginals, dim=1), torch.stack(paths, dim=-1)

    def _expected_last(self, frame: Frame) -> Float[Tensor, "*axes"] | Float[Tensor, "*axes class"]:
        """Return the skip's forecast of the origin's own step: the value itself; for classes, their log-frequencies."""
        last = frame.window[..., -1]
        return self.class_skip.frequency.expand(*last.shape, -1) if self.shape.n_classes else last

    def _linear(self, frame: Frame) -> tuple[Tensor, Tensor, Tensor]:
        """Return the skip's forecast, and features of each window [..., feature] and step [..., horizon, feature]."""
        if self.shape.n_classes:
            linear = self.class_skip(frame.window)
            count = class_counts(frame.window, self.shape.n_classes)
            share = count / count.sum(-1, keepdim=True).clamp(min=1)
            return linear, share @ self.class_embeddings.weight, linear.exp() @ self.class_embeddings.weight
        linear = self.apply_skip(frame.window, frame.smooth)
        level = torch.stack([asinh(frame.location / frame.divisor), self._log_scale(frame.divisor)], dim=-1)
        return linear, level, torch.stack([asinh(linear), frame.spread.log()], dim=-1)

    def _log_scale(self, divisor: Tensor) -> Tensor:
        return ((divisor.log() - self.log_scale[0]) / self.log_scale[1]).clamp(-_CLIP, _CLIP)

    def _standardise(self, values: Tensor, first: int) -> Tensor:
        """Return [..., 2 * n]: standardised values, 0 where missing, and whether each value is present."""
        present = torch.isfinite(values)
        return torch.cat([self._standardise_present(values, present, first), present.to(values.dtype)], dim=-1)

    def _standardise_present(self, values: Tensor, present: Tensor, first: int) -> Tensor:
        n = values.shape[-1]
        mean, scale = self.covariate_mean[first : first + n], self.covariate_scale[first : first + n]
        return torch.where(present, ((values - mean) / scale).clamp(-_CLIP, _CLIP), 0.0)

    def _covariates(self, values: Tensor, valid: Tensor, first: int, embeddings: nn.ModuleDict) -> Tensor:
        """Return [..., feature]: as `_standardise`, but the columns of `embeddings` hold codes, and are embedded."""
        if not embeddings:
            return self._standardise(values, first)
        # Codes at steps before the start count as missing, not as the unseen value.
        coded = [str(column) in embeddings for column in range(values.shape[-1])]
        present = torch.isfinite(values) & (valid[..., None] | ~torch.tensor(coded, device=values.device))
        columns = list(self._standardise_present(values, present, first).split(1, dim=-1))
        for name, table in embeddings.items():
            assert isinstance(table, nn.Embedding)
            column = int(name)
            codes = values[..., column].nan_to_num(0.0).long()
            if self.training:
                # An unseen value is hidden at all steps of a window.
                hidden = torch.rand(len(codes), table.num_embeddings, device=codes.device) < _HIDDEN_SHARE
                codes = codes.masked_fill(hidden.gather(1, codes), 0)
            columns[column] = table(codes) * present[..., column, None]
        return torch.cat([*columns, present.to(values.dtype)], dim=-1)

    def _static(self, batch: Batch) -> Float[Tensor, "batch static"]:
        categories = batch.static_categories
        if self.training:
            # Some values are hidden, so that the row of the unseen value is trained too.
            categories = categories.masked_fill(
                torch.rand(categories.shape, device=categories.device) < _HIDDEN_SHARE, 0
            )
        embedded = [table(codes) for table, codes in zip(self.embeddings, categories.T, strict=True)]
        numbers = self._standardise(batch.static_numbers, self.shape.n_past + self.shape.n_known)
        return torch.cat([*embedded, numbers], dim=-1)

    def _future(self, batch: Batch) -> Float[Tensor, "batch time future"]:
        """Return known covariates and calendar at each step of the window, the horizon included."""
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
        previous_value: Tensor | None = None,
    ) -> Tensor:
        """Return the encoder's inputs, [batch, segment, input]: each segment normalised by its own last step.

        The first segment begins at step `first`; the latest value before it is `previous_value`, 0 when None.
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

        # Seasonal values are those of the next segment.
        values = [column for lag in (0, *(lag - length for lag in self.shape.input_lags)) for column in columns(lag)]
        if not self.shape.n_classes:
            earlier = functional.pad(last, (0, 0, 1, 0))[:, :n_segments]
            if previous_value is not None:
                earlier = torch.cat([previous_value[:, None, None], earlier[:, 1:]], dim=1)
            values += [(last - earlier) / divisor, asinh(level / divisor), self._log_scale(divisor)]
        parts = [asinh(torch.cat(values, dim=-1))]
        if self.shape.n_past:
            past = self._covariates(batch.past[:, first:time], batch.there[:, first:time], 0, self.past_embeddings)
            parts.append(past.unflatten(1, (-1, length)).mean(2))
        following = torch.arange(first + length, time + 1, length, device=future.device)
        ahead = gather_windows(future, following, min(length, self.shape.horizon)).mean(2)
        return torch.cat([*parts, ahead, _broadcast_steps(static, n_segments)], dim=-1)

    def _seasons(self, batch: Batch, frame: Frame, origin_steps: Tensor, earliest: Tensor) -> list[Tensor]:
        """Return features of the values some seasons before each target step, up to the origin.

        The normalised value, whether it was observed, and the mean around it (a seventh of a season: a day of a week).
        """
        if not self.shape.season_lags:
            return []
        lags = torch.tensor(self.shape.season_lags, device=origin_steps.device)
        index = (origin_steps[:, None] + self.season_offset + self.shape.season_length)[..., None] - lags
        inside = index.clamp(min=0)
        observed, value = batch.observed[:, inside] & (index >= 0), batch.target[:, inside]
        if self.shape.n_classes:
            embedded = self.class_embeddings(value.long()) * observed[..., None]
            return [torch.cat([embedded, observed[..., None].to(embedded.dtype)], dim=-1).flatten(-2)]
        features = [self._relative(value, frame) * observed, observed.to(value.dtype)]
        if reach := self.shape.season_length // 14:
            sums = functional.pad(torch.stack([batch.target.double(), batch.observed.double()]).cumsum(-1), (1, 0))
            first = torch.maximum(index - reach, earliest[:, None, None])
            end = torch.minimum(index + reach, origin_steps[:, None, None]).clamp(min=-1) + 1
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
    """Return the decoder that `model.decoder` names; a direct one is one linear map to all steps.

    `n_inputs` is the number of inputs of a step that reads the value before it.
    """
    if config.decoder == "autoregressive":
        return AutoregressiveDecoder(_DECODER_HIDDEN, n_inputs, config)
    if config.decoder == "segment":
        return SegmentDecoder(_DECODER_HIDDEN, shape.horizon, n_future, shape.segment_length, config)
    return nn.Linear(_DECODER_HIDDEN, shape.horizon * config.decoder_size)


def _embeddings(sizes: tuple[int, ...], embedding_size: int) -> nn.ModuleDict:
    """Return an embedding table for each column that holds codes, by column number."""
    tables = {str(column): nn.Embedding(size + 1, embedding_size) for column, size in enumerate(sizes) if size}
    return nn.ModuleDict(tables)


def _broadcast_steps(static: Float[Tensor, "batch static"], steps: int) -> Float[Tensor, "batch step static"]:
    return static[:, None].expand(-1, steps, -1)


def _panel_buffers(shape: NetworkShape, n_covariates: int) -> dict[str, Tensor]:
    """Return the initial values of the buffers that are set from the panel, not trained."""
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
