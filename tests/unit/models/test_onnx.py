"""ONNX Runtime against torch."""

from typing import Any

import pytest
import torch

from forecast.checkpoints import NANO, card_of
from forecast.config import ModelConfig
from forecast.errors import ConfigError
from forecast.models.inputs.batch import Batch
from forecast.models.inputs.shape import NetworkShape
from forecast.models.network.ensemble import Ensemble
from forecast.models.network.forecaster import RecurrentForecaster
from forecast.models.network.output import Output
from forecast.models.runtime.onnx import OnnxForecaster, exported, quantised
from forecast.models.universal.checkpoint import read_checkpoint
from forecast.models.universal.forecaster import UniversalForecaster, UniversalShape

ORIGIN = torch.zeros(1, dtype=torch.long)
SHAPE: dict[str, Any] = {
    "context_length": 48,
    "horizon": 12,
    "season_length": 24,
    "n_past": 1,
    "n_known": 1,
    "n_calendar": 4,
    "category_sizes": (3,),
    "n_static_numbers": 2,
}
BARE: dict[str, Any] = {"n_past": 0, "n_known": 0, "n_calendar": 0, "category_sizes": (), "n_static_numbers": 0}


def network(shape: dict[str, Any], **model: Any) -> RecurrentForecaster:
    torch.manual_seed(0)
    config = ModelConfig.model_validate({"hidden_size": 8, "num_layers": 2} | model)
    made = RecurrentForecaster(NetworkShape(**SHAPE | shape), config).eval()
    torch.nn.init.normal_(made.output.weight, std=0.3)
    made.skip.normal_(std=0.05)
    return made


def pretrained(shape: dict[str, Any], context: int, second_season: int = 0, **model: Any) -> UniversalForecaster:
    weights, _ = read_checkpoint(card_of(NANO))
    panel = NetworkShape(**SHAPE | shape)
    own = UniversalShape.of(panel, weights.shape, second_season=second_season, length=context, checkpoint=NANO)
    made = UniversalForecaster(own, ModelConfig.model_validate(model)).eval()
    made.network = weights
    made.cold_scale.fill_(0.3)
    made.interval_scale.fill_(1.2)
    return made.eval()


def batch(shape: NetworkShape, count: int) -> Batch:
    """Windows with gaps, of late starters, of few observations and of one, of a constant and of a dead series."""
    generator = torch.Generator().manual_seed(1)
    steps = shape.context_length + shape.horizon

    def noise(*size: int) -> torch.Tensor:
        return torch.randn(count, *size, generator=generator)

    there = torch.ones(count, steps, dtype=torch.bool)
    there[0, :5] = False
    observed = there & (noise(steps) > -1.3)
    observed[:, shape.context_length :] = False
    target = noise(steps).cumsum(1) * 3 + 20
    if shape.unit:
        target = target / 20
    if count > 2:
        target[1], observed[2] = 4.0, False
        for row, few in ((3, 1), (4, 9)):
            observed[row, : shape.context_length - few] = False
            observed[row, shape.context_length - 1] = True
    past, known = noise(steps, shape.n_past), noise(steps, shape.n_known + shape.n_calendar)
    past[0, :9], known[0, 7:9] = torch.nan, torch.nan
    if shape.past_categories:
        past, known[..., 0] = past.abs().round().clamp(max=2), known[..., 0].abs().round().clamp(max=2)
    categories = torch.randint(0, 3, (count, len(shape.category_sizes)), generator=generator)
    return Batch(
        target * observed, observed, past, known.nan_to_num(), there, categories, noise(shape.n_static_numbers)
    )


def assert_same(made: torch.nn.Module, shape: NetworkShape, near: float = 1e-5) -> OnnxForecaster:
    pytest.importorskip("onnxruntime", reason="gatecast[onnx] is not installed")
    other = OnnxForecaster(made)  # type: ignore[arg-type]
    for count in (1, 7):  # One graph for any number of windows.
        windows = batch(shape, count)
        with torch.inference_mode():
            expected: Output = made(windows, ORIGIN)
        found = other(windows, ORIGIN)
        for one, two in zip(
            (found.arguments, found.state, *found.frame),
            (expected.arguments, expected.state, *expected.frame),
            strict=True,
        ):
            torch.testing.assert_close(one, two, rtol=near, atol=near)
        torch.testing.assert_close(found.quantiles, expected.quantiles, rtol=near, atol=near)
    return other


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize(
    ("shape", "model"),
    [({"segment_length": 1}, {"head": "quantile"}), ({"segment_length": 24, "anchor": "last"}, {"head": "normal"})],
)
def test_a_graph_gives_what_torch_gives(cell: str, shape: dict[str, Any], model: dict[str, Any]) -> None:
    made = network(shape, cell=cell, **model)
    assert_same(made, made.shape)


@pytest.mark.parametrize(
    ("shape", "model"),
    [
        (BARE, {}),
        ({"season_length": 1}, {"head": "student_t"}),
        ({"segment_length": 6}, {"decoder": "segment", "head": "negative_binomial"}),
        ({}, {"attention": True, "head": "tweedie"}),
        ({}, {"num_layers": 3, "residual": True, "dilations": (1, 2, 4)}),
        ({"past_categories": (2,), "known_categories": (2,)}, {"cell": "rnn", "nonlinearity": "relu"}),
    ],
    ids=",".join,
)
def test_whatever_the_network_is_made_of(shape: dict[str, Any], model: dict[str, Any]) -> None:
    made = network(shape, **model)
    assert_same(made, made.shape)


def test_an_ensemble_is_one_graph() -> None:
    made = Ensemble([network({}), network({"anchor": "last"})]).eval()
    assert_same(made, made.shape)


def test_the_pretrained_network_is_a_graph() -> None:
    """With two seasons; with one and covariates, see the tests of its covariates."""
    made = pretrained({"season_length": 7, "horizon": 70}, 128, 35, quantile_levels=(0.05, 0.25, 0.5, 0.95))
    assert_same(made, made.shape, 1e-4)


def test_a_mean_with_the_pretrained_network_is_a_graph_on_a_logarithmic_scale_and_levels_go_to_torch() -> None:
    members = [network({"unit": 0.5, "context_length": 168}), pretrained({"unit": 0.5}, 64)]
    made = Ensemble(members, [0.7, 0.3]).eval()
    graph = assert_same(made, made.shape, 1e-4)
    level = torch.full((7,), 9.0, dtype=torch.float64)
    windows = batch(made.shape, 7)._replace(level=level)
    with torch.inference_mode():
        torch.testing.assert_close(graph(windows, ORIGIN).quantiles, made(windows, ORIGIN).quantiles, rtol=0, atol=0)
        assert not torch.equal(made(windows, ORIGIN).quantiles, made(windows._replace(level=None), ORIGIN).quantiles)


def test_what_is_no_graph_is_refused_before_anything_is_imported() -> None:
    with pytest.raises(ConfigError, match=r"^model\.decoder: an autoregressive model .* model\.decoder=direct"):
        exported(network({}, decoder="autoregressive"))
    with pytest.raises(ConfigError, match=r"^model\.head: .* a model of 3 classes .*score\.runtime=torch"):
        exported(network({"n_classes": 3}, head="categorical"))


def test_weights_of_8_bits_are_a_fraction_of_the_size_and_near() -> None:
    made = network({"context_length": 24}, hidden_size=48)
    graph = exported(made)
    small = quantised(graph, made)
    assert len(small) < 0.7 * len(graph)
    windows = batch(made.shape, 40)
    torch_output, output = made(windows, ORIGIN), OnnxForecaster(made, small)(windows, ORIGIN)
    off = (output.quantiles - torch_output.quantiles).abs()[3:]
    assert 1e-6 < off.mean() < 0.05
    torch.nn.init.zeros_(made.output.weight)
    line = OnnxForecaster(made, quantised(exported(made), made))(windows, ORIGIN)
    torch.testing.assert_close(line.quantiles, made(windows, ORIGIN).quantiles, atol=1e-4, rtol=1e-4)


def test_an_ensemble_and_cells_without_kernel_are_quantised_too() -> None:
    members = [network({"context_length": 24}, cell="gru"), network({"context_length": 24}, cell="gru")]
    made = Ensemble(members).eval()
    windows = batch(made.shape, 8)
    output = OnnxForecaster(made, quantised(exported(made), made))(windows, ORIGIN)
    assert (output.quantiles - made(windows, ORIGIN).quantiles).abs()[3:].mean() < 0.05
