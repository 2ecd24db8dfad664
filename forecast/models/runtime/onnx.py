"""Networks as ONNX: the forward of scoring as one graph, and what runs it.

The graph takes a batch of windows as `Batch` holds them, of one origin each, and gives what `Output` holds of it.
Shapes are fixed but for the number of windows.
"""

import io
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.onnx import TensorProtoDataType, symbolic_helper

from forecast.errors import ConfigError
from forecast.models.adapters.bank import HEAD, AdapterBank
from forecast.models.inputs.batch import Batch
from forecast.models.inputs.frame import Frame
from forecast.models.network.ensemble import Forecaster, members_of, recurrent_members
from forecast.models.network.output import Output
from forecast.models.runtime.torch_setup import flushed_denormals

OPSET: Final = 17
# What smoothing forecasts is a part of the arguments.
OUTPUTS: Final = ("arguments", "state", *(name for name in Frame._fields if name != "smooth"))
_WINDOW: Final = "window"

Forward = Callable[[Batch, Int[Tensor, " origin"]], Output]
"""A network, or what gives the same."""


class OnnxForecaster:
    """A network in ONNX Runtime. Its forecasts are those of torch but for the rounding of float32.

    Windows with a level (`Batch.level`) are left to torch if a pretrained member reads a logarithmic scale.

    `graph` is another one of it than `exported` gives. Raises ConfigError if ONNX Runtime is not installed, or the
    model can't be exported.
    """

    def __init__(self, network: Forecaster, graph: bytes | None = None) -> None:
        self._network, self._head = network, network.head
        self._reads_levels = bool(network.shape.unit) and len(recurrent_members(network)) < len(members_of(network))
        self._session = _session(exported(network) if graph is None else graph)

    def __call__(self, batch: Batch, origins: Int[Tensor, " origin"]) -> Output:
        """Return the forecasts from the one origin of each window."""
        assert origins.tolist() == [0], "the graph is of one origin"
        if self._reads_levels and batch.level is not None:  # In float64, which ONNX Runtime has no sinh for.
            output: Output = self._network(batch, origins)
            return output
        wanted = {field.name for field in self._session.get_inputs()}
        given = {name: values.numpy() for name, values in batch.inputs.items() if name in wanted}
        with flushed_denormals():  # The option of a session would leave the thread that made it so.
            results = self._session.run(OUTPUTS, given)
        arguments, state, *frame = (torch.from_numpy(values)[:, None] for values in results)
        return Output(arguments, state, Frame._make([*frame, torch.zeros_like(frame[-1])]), self._head)


def is_faster(made: Forward, network: Forecaster, count: int) -> bool:
    """Return whether a forward takes less CPU time than the network for so many windows; the least of three each."""
    batch, origins = example_windows(network, count), torch.zeros(1, dtype=torch.long)
    spent: dict[Forward, list[float]] = {made: [], network: []}
    with torch.inference_mode():
        for _ in range(3):
            for forward, seconds in spent.items():
                begun = time.process_time()
                forward(batch, origins)
                seconds.append(time.process_time() - begun)
    return min(spent[made]) < min(spent[network])


def exported(network: Forecaster) -> bytes:
    """Return a network as an ONNX graph from a `Batch` to OUTPUTS, each without the axis of origins.

    Raises ConfigError as `check_exportable`.
    """
    check_exportable(network)
    example = example_windows(network)
    inputs = {name: values for name, values in example.inputs.items() if values.numel()}
    axes = {name: {0: _WINDOW} for name in (*inputs, *OUTPUTS)}
    length = network.shape.context_length + network.shape.horizon
    return graph_of(_Forward(network, example, list(inputs)), inputs, OUTPUTS, axes, length)


def graph_of(
    function: nn.Module,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
    axes: Mapping[str, Mapping[int, str]],
    length: int,
) -> bytes:
    """Return the trace of a function of `inputs`, in their order, as an ONNX graph; needs onnx.

    `axes` names the axes of inputs and outputs that are of any length; running maxima are over `length` steps at most.
    """
    # What torch has and ONNX has not.
    symbols: dict[str, Callable[..., Any]] = {
        "cummax": partial(_running, "Max", length),
        "cummin": partial(_running, "Min", length),
        "hypot": _hypot,
        "copysign": _copysign,
        "asinh": _asinh,
        "sinh": _sinh,
        "searchsorted": _searchsorted,
    }
    for name, symbol in symbols.items():
        torch.onnx.register_custom_op_symbolic(f"aten::{name}", symbol, OPSET)  # type: ignore[attr-defined]
    buffer = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # Of the tracer: shapes are fixed, and meant to be.
        torch.onnx.export(
            function.eval(),
            tuple(inputs.values()),
            buffer,  # type: ignore[arg-type]  # this exporter takes it
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )
    return buffer.getvalue()


def check_exportable(network: Forecaster) -> None:
    """Raise ConfigError if onnx is missing, for a decoder that samples its forecasts, or for a model of classes."""
    if network.n_paths > 1:
        raise ConfigError(
            "model.decoder: an autoregressive model samples its forecasts step by step, which is no ONNX graph; use "
            "torch (score.runtime=torch, export.format=gatecast), or train one with model.decoder=direct or segment"
        )
    if network.shape.n_classes:
        raise ConfigError(
            f"model.head: ONNX is for heads of numbers; a model of {network.shape.n_classes:,} classes runs in torch "
            "only (score.runtime=torch, export.format=gatecast)"
        )
    try:
        import onnx  # noqa: F401  the exporter needs it
    except ImportError:
        raise ConfigError(_MISSING) from None


def check_bank(bank: AdapterBank | None) -> None:
    """Raise ConfigError for changes per series that are networks of their own."""
    if bank is not None and bank.kind != HEAD:
        raise ConfigError(
            f"export.format: with finetune.kind={bank.kind} each series has a network of its own, which is no one "
            "graph; export the pretrained version, or one fine-tuned with finetune.kind=head"
        )


def inputs_of(graph: bytes) -> frozenset[str]:
    """Return the names of what a graph reads; needs onnx."""
    import onnx

    return frozenset(field.name for field in onnx.load_from_string(graph).graph.input)


def quantised(graph: bytes, network: Forecaster) -> bytes:
    """Return the graph of a network with weights of 8 bits; its activations are scaled to 8 bits as they come.

    By ONNX Runtime's dynamic quantisation, of LSTM and of products with matrices. GRU and RNN have no kernel of this
    kind and stay as they are, and so does the linear skip, whose few weights are most of the forecast. Raises
    ConfigError if ONNX Runtime is not installed.
    """
    try:
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError:
        raise ConfigError(_MISSING) from None
    lines = [member.skip[:-1].cpu().numpy() for member in recurrent_members(network)]
    model = onnx.load_from_string(graph)
    constants = {each.name: onnx.numpy_helper.to_array(each) for each in model.graph.initializer}
    kept = [
        node.name
        for node in model.graph.node
        if any(
            name in constants and any(np.array_equal(constants[name], line) for line in lines) for name in node.input
        )
    ]
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)  # It logs to the root that the graph was not prepared.
    try:
        with tempfile.TemporaryDirectory() as folder:
            before, after = Path(folder, "before.onnx"), Path(folder, "after.onnx")
            before.write_bytes(graph)
            quantize_dynamic(before, after, weight_type=QuantType.QInt8, nodes_to_exclude=kept)
            return after.read_bytes()
    finally:
        logging.root.setLevel(level)


_MISSING: Final = "ONNX needs: pip install 'gatecast[onnx]'"


class _Forward(nn.Module):
    """A network as a function of those tensors of a batch that hold something."""

    def __init__(self, network: Forecaster, example: Batch, names: list[str]) -> None:
        super().__init__()
        self.network, self._example, self._names = network, example, names

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        count = given[0].shape[0]
        empty = {name: values.new_zeros((count, *values.shape[1:])) for name, values in self._example.inputs.items()}
        batch = Batch(**empty | dict(zip(self._names, given, strict=True)))
        output = self.network(batch, torch.zeros(1, dtype=torch.long))
        return tuple(values[:, 0] for values in (output.arguments, output.state, *output.frame))


def example_windows(network: Forecaster, count: int = 2) -> Batch:
    """Return windows without any observation."""
    shape = network.shape
    length = shape.context_length + shape.horizon
    flags = torch.zeros(count, length, dtype=torch.bool)
    return Batch(
        target=torch.zeros(count, length),
        observed=flags,
        past=torch.zeros(count, length, shape.n_past),
        known=torch.zeros(count, length, shape.n_known + shape.n_calendar),
        there=flags.clone(),
        static_categories=torch.zeros(count, len(shape.category_sizes), dtype=torch.long),
        static_numbers=torch.zeros(count, shape.n_static_numbers),
    )


def _session(graph: bytes) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise ConfigError(_MISSING) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _running(extreme: str, length: int, graph: Any, values: Any, dim: Any) -> tuple[Any, None]:
    """Return running maxima or minima along an axis, of `length` at most, and no indices.

    In log2(length) rounds (Hillis & Steele 1986).
    """
    kind, axis = values.type().scalarType(), symbolic_helper._maybe_get_const(dim, "i")
    if kind == "Bool":
        values = graph.op("Cast", values, to_i=TensorProtoDataType.INT32)
    start, along = (graph.op("Constant", value_t=torch.tensor([k])) for k in (0, axis))
    step = 1
    while step < length:
        ends = (graph.op("Constant", value_t=torch.tensor([k])) for k in (step, -step))
        parts = [graph.op("Slice", values, start, end, along) for end in ends]
        values = graph.op(extreme, values, graph.op("Concat", *parts, axis_i=axis))
        step *= 2
    return (graph.op("Cast", values, to_i=TensorProtoDataType.BOOL) if kind == "Bool" else values), None


def _hypot(graph: Any, one: Any, other: Any) -> Any:
    """Return the root of the sum of squares, in float64: float32 would overflow."""
    wide = [graph.op("Cast", part, to_i=TensorProtoDataType.DOUBLE) for part in (one, other)]
    squares = [graph.op("Mul", part, part) for part in wide]
    root = graph.op("Sqrt", graph.op("Add", *squares))
    return root if _is_double(one) else graph.op("Cast", root, to_i=TensorProtoDataType.FLOAT)


def _copysign(graph: Any, size: Any, sign: Any) -> Any:
    zero = _number(graph, 0.0, like=sign)
    return graph.op("Where", graph.op("Less", sign, zero), graph.op("Neg", size), size)


def _sinh(graph: Any, values: Any) -> Any:
    """Return sinh; in float64, which ONNX Runtime lacks, from exponentials: its error near 0 is that of 1."""
    if not _is_double(values):
        return graph.op("Sinh", values)
    up, down = graph.op("Exp", values), graph.op("Exp", graph.op("Neg", values))
    return graph.op("Mul", graph.op("Sub", up, down), _number(graph, 0.5, like=values))


def _asinh(graph: Any, values: Any) -> Any:
    """Return asinh; in float64, which ONNX Runtime lacks, by its definition: its error near 0 is that of 1."""
    if not _is_double(values):
        return graph.op("Asinh", values)
    size, one = graph.op("Abs", values), _number(graph, 1.0, like=values)
    root = graph.op("Sqrt", graph.op("Add", graph.op("Mul", size, size), one))
    return graph.op("Mul", graph.op("Sign", values), graph.op("Log", graph.op("Add", size, root)))


def _is_double(values: Any) -> bool:
    return bool(values.type().scalarType() == "Double")


def _number(graph: Any, value: float, like: Any) -> Any:
    dtype = torch.float64 if _is_double(like) else torch.float32
    return graph.op("Constant", value_t=torch.tensor(value, dtype=dtype))


def _searchsorted(graph: Any, ordered: Any, values: Any, out_int32: Any, right: Any, side: Any, sorter: Any) -> Any:  # noqa: ARG001
    """Return how many of the numbers in order are less than each value, or with `right` not greater."""
    last = graph.op("Constant", value_t=torch.tensor([-1]))
    less = "LessOrEqual" if symbolic_helper._maybe_get_const(right, "b") else "Less"
    before = graph.op(less, ordered, graph.op("Unsqueeze", values, last))
    return graph.op("ReduceSum", graph.op("Cast", before, to_i=TensorProtoDataType.INT64), last, keepdims_i=0)
