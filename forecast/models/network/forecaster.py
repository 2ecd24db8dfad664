"""The forecaster of a panel: a recurrent encoder, a linear skip and a decoder, from any step of a window.

`window_encoder` has the encoding half, `autoregression` the decoding step by step.
"""

import copy
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from forecast.config import ModelConfig
from forecast.models.heads.factory import make_head
from forecast.models.inputs.batch import Batch
from forecast.models.inputs.frame import Frame, targets
from forecast.models.inputs.shape import NetworkShape
from forecast.models.network.autoregression import sample, teacher_forced, with_own_samples
from forecast.models.network.decoders import AutoregressiveDecoder, SegmentDecoder, uniforms
from forecast.models.network.features import FeatureSizes
from forecast.models.network.output import DecoderInputs, EncoderState, Output
from forecast.models.network.window_encoder import WindowEncoder
from forecast.models.tunable import Tunable

_STEP_HIDDEN = 64


class RecurrentForecaster(WindowEncoder, Tunable[DecoderInputs]):
    """forecast = location + scale * (linear skip + network), at any step of the window.

    The last layer starts at zero and its bias at the quantiles of the skip's residuals, so an untrained network
    forecasts the closed-form solution.

    In training, an autoregressive decoder reads true values (teacher forcing), and its own samples at a share of the
    steps (`sampled_share`). In evaluation mode it reads no target and forecasts the distribution of sampled paths, at
    each step.
    """

    threshold: Tensor
    """Soft threshold of changes of the location, in units of spread."""
    mean_shift: Tensor
    """Shift of means, as a share of `heads.base.mean_distance`; 0 for heads that estimate a mean on a linear scale."""
    interval_scale: Tensor
    """Factor of the quantiles' distances from the median, set after training (`postprocess.interval_scale`)."""
    uniforms: Tensor

    def __init__(self, shape: NetworkShape, config: ModelConfig) -> None:
        super().__init__(shape, config)
        self.head = make_head(
            config.head, config.quantile_levels, power=config.tweedie_power, n_classes=shape.n_classes
        )
        self.head.nonnegative = shape.nonnegative
        sizes = FeatureSizes.of(shape, config)
        self.context = _decoder(config, shape, self.summary_size, sizes, self.head.n_decoder_inputs)
        self.own_samples, self.sampled_share = config.own_samples, 0.0
        """Share of steps at which an autoregressive decoder reads its own samples: at the end of training, and now."""
        self.n_paths = 1
        """Paths sampled for a forecast; 1 where its distributions are exact."""
        if isinstance(self.context, AutoregressiveDecoder):
            self.n_paths, self.marginal = config.n_paths, self.head.marginal()
            self.register_buffer("uniforms", uniforms(config.n_paths, shape.horizon), persistent=False)
        self.step = nn.Sequential(
            nn.Linear(config.decoder_size + sizes.step, _STEP_HIDDEN),
            nn.SiLU(),
            nn.Linear(_STEP_HIDDEN, _STEP_HIDDEN),
            nn.SiLU(),
        )
        self.output = nn.Linear(_STEP_HIDDEN, self.head.n_parameters)
        self.output_bias = nn.Parameter(torch.zeros(shape.horizon, self.head.n_parameters))
        self._initialise()

    def _initialise(self) -> None:
        self.register_buffer("mean_shift", torch.tensor(0.0))
        self.register_buffer("interval_scale", torch.tensor(1.0))
        self.encoder.initialise()
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def sampling(self, n_paths: int) -> "RecurrentForecaster":
        """Return a copy that samples `n_paths` paths, for a network with an autoregressive decoder."""
        network = copy.deepcopy(self)
        network.n_paths, network.uniforms = n_paths, uniforms(n_paths, self.shape.horizon).to(self.uniforms)
        return network

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
        last = batch.observed[:, origins + self.shape.context_length - 1]
        if self.training:
            values, observed = targets(batch, inputs.frame, origins, self.shape)
            if self.sampled_share:
                with torch.no_grad():
                    context = teacher_forced(self, self.context, inputs, last, values, observed)
                values, observed = with_own_samples(self, context, inputs, values, observed, self.sampled_share)
            context = teacher_forced(self, self.context, inputs, last, values, observed)
            return self.distribution(self._step_parameters(context, inputs.features), inputs)
        arguments, head, paths = sample(self, self.context, inputs, last)
        return Output(arguments, inputs.state, inputs.frame, head, inputs.attention, paths)

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

    def matrices(self) -> dict[str, Tensor]:
        """Return the recurrent weights."""
        named = self.encoder.named_parameters(prefix="encoder")
        return {name: values for name, values in named if "weight" in name}

    @property
    def step_size(self) -> int:
        """Inputs of the layers of one step."""
        return self.step.get_parameter("0.weight").shape[1]

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

    def step_arguments(
        self,
        context: Float[Tensor, "*axes horizon feature"],
        features: Float[Tensor, "*axes horizon step"],
        linear: Float[Tensor, "*axes horizon"],
        frame: Frame,
        steps: slice = slice(None),
    ) -> Float[Tensor, "*axes horizon argument"]:
        """Return the distributions' arguments at some `steps`; all inputs are of these steps."""
        return self._distributions(self._step_parameters(context, features, steps), linear, frame)


def _decoder(
    config: ModelConfig, shape: NetworkShape, summary_size: int, sizes: FeatureSizes, n_previous: int
) -> nn.Linear | SegmentDecoder | AutoregressiveDecoder:
    """Return the decoder that `model.decoder` names; a direct one is one linear map to all steps.

    `n_previous` is the number of inputs from the value before a step, which an autoregressive decoder reads.
    """
    if config.decoder == "autoregressive":
        return AutoregressiveDecoder(summary_size, n_previous + sizes.step, config)
    if config.decoder == "segment":
        return SegmentDecoder(summary_size, shape.horizon, sizes.future, shape.segment_length, config)
    return nn.Linear(summary_size, shape.horizon * config.decoder_size)
