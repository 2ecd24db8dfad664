"""Autoregressive decoding: teacher forcing with scheduled sampling in training, and paths by ancestral sampling.

The functions have no weights: those of the decoder and of the layers after it are the network's.
"""

from typing import NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from forecast.models.heads.base import Head
from forecast.models.heads.sampled import SampledHead
from forecast.models.inputs.frame import Frame
from forecast.models.network.decoders import AutoregressiveDecoder
from forecast.models.network.output import DecoderInputs

# Elements of the widest layer over all paths sampled in one pass.
_MAX_ELEMENTS = 1 << 22


class StepNetwork(Protocol):
    """The parts of a network that follow its decoder at each step."""

    head: Head
    marginal: Head | SampledHead
    """The head of the distribution over paths."""
    output: nn.Linear
    uniforms: Tensor
    """[path, horizon], the random numbers of the paths."""

    def step_arguments(
        self,
        context: Float[Tensor, "*axes horizon feature"],
        features: Float[Tensor, "*axes horizon step"],
        linear: Float[Tensor, "*axes horizon"],
        frame: Frame,
        steps: slice = slice(None),
    ) -> Float[Tensor, "*axes horizon argument"]:
        """Return the distributions' arguments at some `steps`; all inputs are of these steps."""

    def expected_last(self, frame: Frame) -> Tensor:
        """Return the skip's forecast of the origin's own step."""


def teacher_forced(
    network: StepNetwork,
    decoder: AutoregressiveDecoder,
    inputs: DecoderInputs,
    last: Bool[Tensor, "batch origin"],
    values: Float[Tensor, "batch origin horizon"],
    observed: Bool[Tensor, "batch origin horizon"],
) -> Float[Tensor, "batch origin horizon feature"]:
    """Return the decoder's features of all steps; each step reads the value before it, the skip's where it is missing.

    `last` says whether the value at the origin was observed; `values` are in the frame's units.
    """
    frame = inputs.frame
    previous = [
        torch.cat([first[:, :, None], later[:, :, :-1]], dim=2)
        for first, later in (
            (frame.window[..., -1], values),
            (last, observed),
            (network.expected_last(frame), inputs.linear),
            (frame.spread[..., 0], frame.spread),
        )
    ]
    step_inputs = torch.cat([network.head.decoder_input(*previous), inputs.features], dim=-1).flatten(0, 1)
    summary = functional.silu(inputs.summary).flatten(0, 1)
    features: Tensor = decoder(step_inputs, decoder.start(summary))[0]
    return features.reshape(*values.shape, -1)


@torch.no_grad()
def with_own_samples(
    network: StepNetwork,
    context: Float[Tensor, "batch origin horizon feature"],
    inputs: DecoderInputs,
    values: Float[Tensor, "batch origin horizon"],
    observed: Bool[Tensor, "batch origin horizon"],
    share: float,
) -> tuple[Tensor, Tensor]:
    """Return the values with a share of them replaced by samples after `context`, and which values there are.

    Bengio et al. 2015, "Scheduled Sampling", here in two passes (Mihaylova & Martins 2019): samples follow true values.
    """
    arguments = network.step_arguments(context, inputs.features, inputs.linear, inputs.frame).to(values.dtype)
    # Some distributions have no quantile at 0.
    uniform = torch.rand_like(values).clamp(min=torch.finfo(values.dtype).eps)
    samples = network.head.sample_at(arguments, uniform)
    use_sample = torch.rand_like(values) < share
    return torch.where(use_sample, samples, values), observed | use_sample


class _Origins(NamedTuple):
    """Inputs of the decoder at some origins, with the origins as rows."""

    summary: Float[Tensor, "row summary"]
    features: Float[Tensor, "row horizon step"]
    linear: Float[Tensor, "row horizon"]
    last: Bool[Tensor, " row"]
    frame: Frame


@torch.no_grad()
def sample(
    network: StepNetwork, decoder: AutoregressiveDecoder, inputs: DecoderInputs, last: Bool[Tensor, "batch origin"]
) -> tuple[Tensor, Head | SampledHead, Float[Tensor, "batch origin path horizon"]]:
    """Return the distribution of each step over the sampled paths, its head, and the paths (ancestral sampling).

    `last` says whether the value at the origin was observed. While the output layer is all zeros, steps do not
    depend on each other, and their distributions are exact.
    """
    summary, features, linear, frame = functional.silu(inputs.summary), inputs.features, inputs.linear, inputs.frame
    head = network.head
    if not network.output.weight.any():
        context = features.new_zeros(*features.shape[:-1], decoder.output.out_features)
        arguments = network.step_arguments(context, features, linear, frame)
        draws = [head.sample_at(arguments, uniform.expand(arguments.shape[:-1])) for uniform in network.uniforms]
        return arguments, head, torch.stack(draws, dim=2)
    rows = [values.flatten(0, 1) for values in (summary, features, linear, last, *frame)]
    width = max(network.output.in_features, head.n_parameters)
    size = max(1, _MAX_ELEMENTS // (len(network.uniforms) * width))
    chunks = []
    for columns in zip(*(values.split(size) for values in rows), strict=True):
        summary, features, linear, last_rows, *fields = columns
        origins = _Origins(summary, features, linear, last_rows, Frame(*fields))
        chunks.append(_roll_out(network, decoder, origins))
    arguments, paths = (torch.cat(column).unflatten(0, last.shape) for column in zip(*chunks, strict=True))
    return arguments, network.marginal, paths


def _roll_out(
    network: StepNetwork, decoder: AutoregressiveDecoder, origins: _Origins
) -> tuple[Float[Tensor, "row horizon argument"], Float[Tensor, "row path horizon"]]:
    """Return the arguments of each step and the paths of some origins."""
    head, uniforms = network.head, network.uniforms
    n_paths, horizon = uniforms.shape

    def per_path(values: Tensor) -> Tensor:
        return values[:, None].expand(-1, n_paths, *values.shape[1:])

    features, linear, observed = (per_path(values) for values in (origins.features, origins.linear, origins.last))
    frame = Frame(*(per_path(values) for values in origins.frame))
    carry = tuple(part.repeat_interleave(n_paths, dim=1) for part in decoder.start(origins.summary))
    values, expected = frame.window[..., -1], network.expected_last(frame)
    marginals, paths = [], []
    for k in range(horizon):
        step = slice(k, k + 1)
        decoder_input = head.decoder_input(values, observed, expected, frame.spread[..., max(k - 1, 0)])
        inputs = torch.cat([decoder_input, features[:, :, k]], dim=-1).flatten(0, 1)[:, None]
        decoded, carry = decoder(inputs, carry)
        context = decoded.unflatten(0, observed.shape)
        step_frame = frame._replace(spread=frame.spread[..., step])
        arguments = network.step_arguments(context, features[:, :, step], linear[:, :, step], step_frame, step)
        # Half precision is for products, not for samples.
        arguments = arguments[:, :, 0].to(frame.location.dtype)
        values = head.sample_at(arguments, uniforms[:, k].expand(arguments.shape[:2]))
        observed, expected = torch.ones_like(observed), linear[:, :, k]
        marginals.append(head.marginal_arguments(arguments, values))
        paths.append(values)
    return torch.stack(marginals, dim=1), torch.stack(paths, dim=-1)
