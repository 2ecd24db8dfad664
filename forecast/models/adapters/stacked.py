"""Networks of many series at once: what is changed of the base, with the series as the first axis."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.func import functional_call, vmap

from forecast.models.inputs.batch import Batch
from forecast.models.inputs.frame import Frame
from forecast.models.network.encoder import Encoder
from forecast.models.network.ensemble import reading_at_once
from forecast.models.network.forecaster import RecurrentForecaster
from forecast.models.network.output import EncoderState, Output
from forecast.models.tunable import AnyTunable

Deltas: TypeAlias = dict[str, Tensor]
"""What is added to the base, by name, [series, ...]: `bias` to the numbers of each step, `embedding` to the summary,
and to a weight the values of its name, or the product of `<name>.up` and `<name>.down`."""

BIAS, EMBEDDING = "bias", "embedding"
FROZEN = (BIAS, EMBEDDING)
"""Kinds whose encoder is the base's: what the decoder is told is then the same for all changes."""
_UP, _DOWN = ".up", ".down"
# Numbers of an input's projection that begin a low-rank change: small, as of a layer's weights.
_SPREAD = 0.05
# Up to this size, products of stacked weights are faster on a CPU than a fused LSTM for each series (measured with
# `benchmarks finetune`); the kernels of GRU and RNN are slower than them in training.
_STACKED_SIZE = 64


def unchanged(network: AnyTunable, kind: str, n_series: int, rank: int) -> Deltas:
    """Return the changes of `n_series` series that change nothing, from which a descent can start."""
    device = next(network.parameters()).device
    if kind == BIAS:
        return {BIAS: torch.zeros(n_series, *network.bias_shape, device=device)}
    if kind == EMBEDDING:
        return {EMBEDDING: torch.zeros(n_series, network.summary_size, device=device)}
    if kind == "full":
        return {name: torch.zeros(n_series, *p.shape, device=device) for name, p in network.weights().items()}
    generator, changes = torch.Generator().manual_seed(0), {}
    for name, p in network.matrices().items():
        down = _SPREAD * torch.randn(rank, p.shape[1], generator=generator)
        changes[name + _DOWN] = down.to(device).expand(n_series, -1, -1).clone()
        changes[name + _UP] = torch.zeros(n_series, p.shape[0], rank, device=device)
    return changes


def blended(changes: Deltas, share: Float[Tensor, " series"]) -> Deltas:
    """Return the changes weighted by a share for each series: weights between those of the base and of the series."""
    return {
        name: values if name.endswith(_DOWN) else values * share.to(values).view(-1, *[1] * (values.ndim - 1))
        for name, values in changes.items()
    }


def restated(
    network: AnyTunable,
    changes: Deltas,
    reading: Any,
    numbers: Float[Tensor, "series origin horizon parameter"] | None = None,
) -> Output:
    """Return what each series forecasts with its changes, of a frozen encoder; `numbers` are the base's, if known."""
    if EMBEDDING in changes:
        reading = reading._replace(summary=reading.summary + changes[EMBEDDING][:, None])
    numbers = network.step_parameters(reading) if numbers is None else numbers
    if BIAS in changes:
        numbers = network.add_bias(numbers, changes[BIAS][:, None], reading)
    return network.distribution(numbers, reading)


def forecasts(
    network: AnyTunable,
    changes: Deltas,
    batch: Batch,
    origins: Int[Tensor, " origin"],
    pasts: Sequence[EncoderState] | None = None,
) -> tuple[Float[Tensor, "batch origin horizon argument"], Frame]:
    """Return the distributions that each series forecasts with its changes: `batch` holds as many windows of each.

    The windows of the first series come first. Without a kernel for weights of several series, all are stacked in
    batched products, or the series follow one another, whichever is faster. `pasts` are those of a frozen encoder.
    """
    if changes.keys() <= set(FROZEN):
        output = restated(network, changes, network.encode(batch, origins, pasts))
        return output.arguments, output.frame
    assert pasts is None
    series_weights = weights(network, changes)
    n_series = len(next(iter(series_weights.values())))
    windows_by_series = {
        name: values.unflatten(0, (n_series, -1)) for name, values in batch._asdict().items() if values is not None
    }

    def one(model: AnyTunable, weights: dict[str, Tensor], windows: dict[str, Tensor]) -> tuple[Tensor, ...]:
        made: Output = functional_call(model, weights, (Batch(**windows), origins))
        return made.arguments, *made.frame

    stacks = _stacks(network)
    model = _sharing(network, written=stacks)
    if stacks:
        found = [part.flatten(0, 1) for part in vmap(partial(one, model))(series_weights, windows_by_series)]
    else:
        rows = [
            one(
                model,
                *({name: values[row] for name, values in part.items()} for part in (series_weights, windows_by_series)),
            )
            for row in range(n_series)
        ]
        found = [torch.cat(parts) for parts in zip(*rows, strict=True)]
    return found[0], Frame._make(found[1:])


def _stacks(network: AnyTunable) -> bool:
    if not isinstance(network, RecurrentForecaster):
        return False
    encoder = network.encoder
    on_cpu = network.output_bias.device.type == "cpu"
    return not on_cpu or encoder.mode != "LSTM" or encoder.hidden_size <= _STACKED_SIZE


def deltas(changes: Deltas) -> Deltas:
    """Return what is added, by the names of what it is added to: changes of low rank are multiplied out."""
    return {
        name.removesuffix(_UP): values @ changes[name.removesuffix(_UP) + _DOWN] if name.endswith(_UP) else values
        for name, values in changes.items()
        if not name.endswith(_DOWN)
    }


def weights(network: AnyTunable, changes: Deltas) -> dict[str, Float[Tensor, "series ..."]]:
    """Return the weights that each series forecasts with, by name."""
    base = dict(network.named_parameters())
    return {name: base[name] + values for name, values in deltas(changes).items()}


def _sharing(network: AnyTunable, *, written: bool) -> AnyTunable:
    """Return a copy that shares the weights, whose cells are written out or not, and reads windows at once."""
    copied = reading_at_once(network)
    for module in copied.modules():
        if isinstance(module, Encoder):
            module.written = written
    return copied


def select_rows(one: Deltas, alternative: Deltas, which: Bool[Tensor, " series"]) -> Deltas:
    """Return the changes of `one` for the series in `which`, of `alternative` for the rest."""
    return {
        name: torch.where(which.view(-1, *[1] * (values.ndim - 1)), values, alternative[name])
        for name, values in one.items()
    }


def count(tensors: Iterable[Tensor]) -> int:
    """Return how many numbers there are in tensors."""
    return sum(values.numel() for values in tensors)
