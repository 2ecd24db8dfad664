"""The encoder: its equations, its gradients, what it carries and what it drops."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from forecast import artifact
from forecast.config import FitSettings, ModelConfig, WindowConfig, load
from forecast.data.ingest.loaded import Loaded
from forecast.errors import ConfigError
from forecast.models.inputs.shape import NetworkShape
from forecast.models.network.encoder import Encoder, HiddenState
from forecast.models.network.forecaster import RecurrentForecaster

INPUTS, HIDDEN, BATCH, STEPS = 3, 4, 2, 11
CELLS: list[dict[str, Any]] = [
    {"cell": "lstm"},
    {"cell": "gru"},
    {"cell": "rnn"},
    {"cell": "rnn", "nonlinearity": "relu"},
]
STACKS: list[dict[str, Any]] = [
    {},
    {"num_layers": 3},
    {"num_layers": 3, "residual": True},
    {"dilations": [3]},
    {"num_layers": 3, "dilations": [1, 2, 4]},
    {"num_layers": 2, "dilations": [20, 3], "residual": True},
]
cells = pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.get("nonlinearity", cell["cell"]))
stacks = pytest.mark.parametrize("stack", STACKS, ids=str)


def combined(*more: dict[str, Any]) -> list[dict[str, Any]]:
    """Each cell with each stack and each of `more`, where the config lets them go together."""
    made = []
    for settings in (cell | stack | other for cell in CELLS for stack in STACKS for other in more):
        try:
            ModelConfig.model_validate(settings)
        except ValidationError:
            continue
        made.append(settings)
    return made


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)


def encoder(*, seed: int = 0, **settings: Any) -> Encoder:
    """An encoder in float64, not in training, whose weights are all of ordinary size."""
    torch.manual_seed(seed)
    made = Encoder(INPUTS, ModelConfig.model_validate({"hidden_size": HIDDEN} | settings)).double().eval()
    with torch.no_grad():
        for values in made.parameters():
            values.uniform_(-0.7, 0.7)
    return made


def sequence(*shape: int) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(*(shape or (BATCH, STEPS, INPUTS)), dtype=torch.float64)


# --- the equations


def cell_step(made: Encoder, k: int, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """One step of layer k, as the equations are written."""
    w, u, b, d = (getattr(made, f"{name}_l{k}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    if made.mode == "LSTM":
        i, f, g, o = (x @ w.T + b + h @ u.T + d).chunk(4, dim=-1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c
    if made.mode == "GRU":
        (ri, zi, ni), (rh, zh, nh) = (x @ w.T + b).chunk(3, dim=-1), (h @ u.T + d).chunk(3, dim=-1)
        r, z = (ri + rh).sigmoid(), (zi + zh).sigmoid()
        return (1 - z) * (ni + r * nh).tanh() + z * h, c
    total = x @ w.T + b + h @ u.T + d
    return (total.relu() if made.mode == "RNN_RELU" else total.tanh()), c


def written_out(made: Encoder, inputs: Tensor) -> Tensor:
    """The states of the last layer, step by step: a layer goes on from its state `dilation` steps ago."""
    for k, dilation in enumerate(made.dilations):
        h = [inputs.new_zeros(len(inputs), HIDDEN)] * dilation
        c = list(h)
        for t in range(inputs.shape[1]):
            new_h, new_c = cell_step(made, k, inputs[:, t], h[t], c[t])
            h.append(new_h)
            c.append(new_c)
        outputs = torch.stack(h[dilation:], dim=1)
        inputs = outputs + inputs if made.residual and k else outputs
    return inputs


@pytest.mark.parametrize("steps", [1, 3, STEPS, 12])
@stacks
@cells
def test_states_are_those_of_the_equations(cell: dict[str, Any], stack: dict[str, Any], steps: int) -> None:
    made, inputs = encoder(**cell, **stack), sequence(BATCH, steps, INPUTS)
    states, _ = made(inputs)
    torch.testing.assert_close(states, written_out(made, inputs), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"cell": "lstm"}, nn.LSTM),
        ({"cell": "gru"}, nn.GRU),
        ({"cell": "rnn"}, nn.RNN),
        ({"cell": "rnn", "nonlinearity": "relu"}, nn.RNN),
    ],
)
def test_a_plain_stack_is_that_of_torch_bit_by_bit(
    settings: dict[str, Any], kind: Callable[..., nn.RNNBase], num_layers: int, dropout: float
) -> None:
    config = ModelConfig.model_validate(
        settings | {"hidden_size": HIDDEN, "num_layers": num_layers, "dropout": dropout}
    )
    torch.manual_seed(0)
    made = Encoder(INPUTS, config)
    after = torch.get_rng_state()
    torch.manual_seed(0)
    extra = {"nonlinearity": config.nonlinearity} if config.cell == "rnn" else {}
    theirs = kind(INPUTS, HIDDEN, num_layers, batch_first=True, dropout=dropout * (num_layers > 1), **extra)
    assert torch.equal(torch.get_rng_state(), after)
    assert [*made.state_dict()] == [*theirs.state_dict()]
    assert all(map(torch.equal, made.parameters(), theirs.parameters()))
    inputs = sequence().float()
    for training in (False, True):
        torch.manual_seed(2)
        states, carry = made.train(training)(inputs)
        torch.manual_seed(2)
        expected, last = theirs.train(training)(inputs)
        assert torch.equal(states, expected)
        assert all(map(torch.equal, carry, last if config.cell == "lstm" else (last,)))


def test_names_of_the_default_forecasters_weights_are_those_of_stored_models() -> None:
    names = [name for name in forecaster().state_dict() if name.startswith("encoder.")]
    assert names == [f"encoder.{name}_l0" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    assert isinstance(forecaster().encoder, nn.RNNBase)


def forecaster(**model: Any) -> RecurrentForecaster:
    shape = NetworkShape(
        context_length=28,
        horizon=7,
        season_length=7,
        n_past=0,
        n_known=0,
        n_calendar=0,
        category_sizes=(),
        n_static_numbers=0,
    )
    return RecurrentForecaster(shape, ModelConfig.model_validate({"hidden_size": 8} | model))


# --- gradients


@pytest.mark.parametrize("settings", combined({}, {"recurrent_dropout": 0.4}), ids=str)
def test_gradients_are_those_of_finite_differences(settings: dict[str, Any]) -> None:
    made = encoder(**settings).train("recurrent_dropout" in settings)
    inputs = sequence(1, 7, INPUTS).requires_grad_()
    names, values = zip(*made.named_parameters(), strict=True)

    def run(inputs: Tensor, *values: Tensor) -> Tensor:
        torch.manual_seed(3)
        states: Tensor = torch.func.functional_call(made, dict(zip(names, values, strict=True)), (inputs,))[0]
        return states

    assert torch.autograd.gradcheck(run, (inputs, *values), fast_mode=True)


# --- causality


TRAINING: list[dict[str, Any]] = [{"truncate": 5}, {"dropout": 0.4}, {"truncate": 7, "recurrent_dropout": 0.4}]


@pytest.mark.parametrize("settings", combined({}, *TRAINING), ids=str)
def test_inputs_after_a_step_change_no_state_up_to_it(settings: dict[str, Any]) -> None:
    training = any(settings.keys() & more.keys() for more in TRAINING)
    made, inputs = encoder(**settings).train(training), sequence()

    def states(inputs: Tensor) -> Tensor:
        torch.manual_seed(3)
        found: Tensor = made(inputs)[0]
        return found

    before = states(inputs)
    for step in (0, 4, 9):
        changed = inputs.clone()
        changed[:, step + 1 :] = 1e3 * torch.randn_like(changed[:, step + 1 :])
        after = states(changed)
        torch.testing.assert_close(after[:, : step + 1], before[:, : step + 1], rtol=1e-12, atol=1e-12)
        assert not torch.equal(after[:, step + 1 :], before[:, step + 1 :])


# --- the carry


@pytest.mark.parametrize("cuts", [(1,), (6,), (3, 4, 9), tuple(range(1, STEPS))], ids=str)
@stacks
@cells
def test_a_sequence_in_pieces_gives_what_it_gives_at_once(
    cell: dict[str, Any], stack: dict[str, Any], cuts: tuple[int, ...]
) -> None:
    made, inputs = encoder(**cell, **stack), sequence()
    whole, last = made(inputs)
    carry: HiddenState | None = None
    pieces = []
    for piece in inputs.tensor_split(cuts, dim=1):
        states, carry = made(piece, carry)
        pieces.append(states)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-12, atol=1e-12)
    assert carry is not None
    assert len(carry) == len(last) == 1 + (cell["cell"] == "lstm")
    for part, expected in zip(carry, last, strict=True):
        assert part.shape == (sum(made.dilations), BATCH, HIDDEN)
        torch.testing.assert_close(part, expected, rtol=1e-12, atol=1e-12)


def test_gradients_pass_through_the_carry() -> None:
    made, inputs = encoder(num_layers=2, dilations=[1, 3]), sequence().requires_grad_()
    (whole,) = torch.autograd.grad(made(inputs)[0][:, -1].sum(), inputs)
    states, carry = made(inputs[:, :6])
    (pieces,) = torch.autograd.grad(made(inputs[:, 6:], carry)[0][:, -1].sum(), inputs)
    torch.testing.assert_close(pieces, whole, rtol=1e-12, atol=1e-12)
    assert states.shape == (BATCH, 6, HIDDEN)


def test_a_carry_of_another_batch_is_refused() -> None:
    made = encoder(num_layers=2, dilations=[1, 3])
    _, carry = made(sequence())
    with pytest.raises(ValueError, match=r"carry must be \[4, 1, 4\], not \[\[4, 2, 4\], \[4, 2, 4\]\]"):
        made(sequence()[:1], carry)


# --- truncation


@pytest.mark.parametrize("stack", [{}, {"num_layers": 2, "residual": True}, {"num_layers": 2, "dilations": [1, 3]}])
@cells
def test_truncation_stops_gradients_at_the_cut_and_changes_no_state(
    cell: dict[str, Any], stack: dict[str, Any]
) -> None:
    made, cut = encoder(**cell, **stack), encoder(**cell, **stack, truncate=4)
    inputs = sequence().requires_grad_()
    states, last = cut(inputs)
    expected, expected_last = made(inputs)
    torch.testing.assert_close(states, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(last, expected_last, rtol=1e-12, atol=1e-12)
    # Pieces are steps 0-3, 4-7 and 8-10; no gradient crosses from one to the other.
    carry: HiddenState | None = None
    for first in (0, 4, 8):
        end = min(first + 4, STEPS)
        (gradient,) = torch.autograd.grad(states[:, end - 1].square().sum(), inputs, retain_graph=True)
        assert not gradient[:, :first].any()
        assert gradient[:, first:end].any(dim=2).all() or cell.get("nonlinearity") == "relu"
        # Within a piece they are those of the piece on its own, from the state before.
        own = inputs[:, first:end].detach().requires_grad_()
        piece, carry = made(own, None if carry is None else tuple(part.detach() for part in carry))
        torch.testing.assert_close(gradient[:, first:end], torch.autograd.grad(piece[:, -1].square().sum(), own)[0])


# --- recurrent dropout


def dropping(*, p: float = 0.4, **settings: Any) -> Encoder:
    return encoder(**{"cell": "rnn", "recurrent_dropout": p} | settings).train()


@pytest.mark.parametrize("truncate", [None, 3])
def test_inputs_are_dropped_by_a_mask_of_their_sequence_at_all_steps(truncate: int | None) -> None:
    made = dropping(truncate=truncate)
    with torch.no_grad():
        made.weight_hh_l0.zero_()
        weights, bias = made.weight_ih_l0, made.bias_ih_l0 + made.bias_hh_l0
        inputs = sequence(40, STEPS, INPUTS)
        # Without a recurrent connection each step is a layer of its own, whose inputs can be found.
        found = torch.linalg.lstsq(weights, (made(inputs)[0].atanh() - bias).flatten(0, 1).T).solution.T
    kept = found.view_as(inputs) / inputs
    torch.testing.assert_close(kept, kept[:, :1].expand_as(kept), rtol=0, atol=1e-8)
    mask = kept[:, 0]
    assert ((mask.abs() < 1e-8) | ((mask - 1 / 0.6).abs() < 1e-8)).all()
    assert 0.45 < float((mask > 1).double().mean()) < 0.75
    assert len(mask.round(decimals=3).unique(dim=0)) > 4  # sequences have masks of their own


@pytest.mark.parametrize("truncate", [None, 3])
def test_recurrent_weights_are_dropped_one_by_one_and_the_same_at_all_steps(truncate: int | None) -> None:
    made, inputs = dropping(truncate=truncate), torch.zeros(9, STEPS, INPUTS, dtype=torch.float64)
    start = 0.5 * sequence(1, 9, HIDDEN)
    with torch.no_grad():
        states, _ = made(inputs, (start,))
    before = torch.cat([start.transpose(0, 1), states[:, :-1]], dim=1)
    after = states.atanh() - (made.bias_ih_l0 + made.bias_hh_l0).detach()
    # One matrix explains all steps of all sequences; its entries are dropped or scaled up.
    weights = torch.linalg.lstsq(before.flatten(0, 1), after.flatten(0, 1)).solution.T
    torch.testing.assert_close(before @ weights.T, after, rtol=0, atol=1e-9)
    kept = weights / made.weight_hh_l0.detach()
    assert ((kept.abs() < 1e-8) | ((kept - 1 / 0.6).abs() < 1e-8)).all()
    assert 0 < int((kept > 1).sum()) < kept.numel()


def test_what_recurrent_dropout_leaves_has_the_same_expectation() -> None:
    made, n = dropping(), 4000
    inputs = sequence(1, 2, INPUTS)
    with torch.no_grad():
        expected = made.eval()(inputs)[0].atanh()
        made.train()
        many = made(inputs.expand(n, -1, -1))[0].atanh()
        torch.testing.assert_close(many[:, 0].mean(0), expected[0, 0], rtol=0, atol=0.06)
        weights = torch.stack([made._draw_masks(inputs)[1][0][1] for _ in range(n)])
        torch.testing.assert_close(weights.mean(0), made.weight_hh_l0, rtol=0, atol=0.06)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_recurrent_dropout_is_off_outside_of_training(cell: str) -> None:
    stack: dict[str, Any] = {"cell": cell, "num_layers": 2, "residual": True}
    plain, made = encoder(**stack), encoder(**stack, recurrent_dropout=0.5)
    inputs = sequence()
    assert torch.equal(made(inputs)[0], plain(inputs)[0])
    made.train()
    assert not torch.equal(made(inputs)[0], made(inputs)[0])
    made(inputs)[0].sum().backward()
    for name, values in made.named_parameters():
        assert values.grad is not None, name
    assert torch.equal(made.eval()(inputs)[0], plain(inputs)[0])


@pytest.mark.parametrize("p", [0.0, 0.4])
def test_dropout_between_layers_draws_anew_at_each_step_and_recurrent_dropout_takes_its_place(p: float) -> None:
    made = dropping(p=p, num_layers=2, dilations=[1, 2], dropout=0.5)
    with torch.no_grad():
        for k in range(2):
            getattr(made, f"weight_hh_l{k}").zero_()
        states, _ = made(sequence()[:, :1].expand(-1, STEPS, -1))
    assert torch.equal(states, states[:, :1].expand_as(states)) == (p > 0)


# --- initialisation


@pytest.mark.parametrize("settings", CELLS, ids=str)
def test_recurrent_weights_start_orthogonal_and_the_gates_that_keep_a_state_open(settings: dict[str, Any]) -> None:
    for bias in (None,) if settings["cell"] == "rnn" else (None, 3.0):
        torch.manual_seed(0)
        config = ModelConfig.model_validate(settings | {"hidden_size": HIDDEN, "num_layers": 2, "forget_bias": bias})
        made = Encoder(INPUTS, config)
        drawn = {name: values.detach().clone() for name, values in made.named_parameters()}
        made.initialise()
        for name, values in made.named_parameters():
            for k, block in enumerate(values.detach().split(HIDDEN)):
                if "weight_hh" in name:
                    torch.testing.assert_close(block @ block.T, torch.eye(HIDDEN), rtol=0, atol=1e-5)
                    assert torch.equal(block, torch.eye(HIDDEN)) == ("nonlinearity" in settings)
                elif "nonlinearity" in settings:
                    assert block.abs().max() < 0.005
                elif k == 1 and "bias_ih" in name and (bias or settings["cell"] == "lstm"):
                    assert (block == (bias or 1.0)).all()
                else:
                    assert torch.equal(block, drawn[name].split(HIDDEN)[k])


def test_a_relu_layer_starts_as_the_sum_of_what_it_saw() -> None:
    made = Encoder(1, ModelConfig(cell="rnn", nonlinearity="relu", hidden_size=HIDDEN)).double()
    made.initialise()
    inputs = sequence(1, 50, 1).abs()
    states, _ = made(inputs)
    torch.testing.assert_close(states, inputs.cumsum(1) * made.weight_ih_l0.detach().relu().T, rtol=1e-9, atol=1e-12)


# --- long lags


def reach(lag: int, *, initialised: bool = True, **settings: Any) -> float:
    """How much the last state depends on the first input of a copy task, relative to the last input.

    The task: recall the first symbol after `lag` steps of noise.
    """
    torch.manual_seed(0)
    made = Encoder(4, ModelConfig.model_validate({"hidden_size": 32} | settings)).double()
    if initialised:
        made.initialise()
    inputs = sequence(8, lag + 1, 4).requires_grad_()
    recalled = made(inputs)[0][:, -1] @ sequence(32)
    (gradient,) = torch.autograd.grad(recalled.sum(), inputs)
    return float(gradient[:, 0].norm() / gradient[:, -1].norm())


def test_the_first_input_of_a_long_lag_still_counts_where_gates_are_open() -> None:
    lag = 80
    kept = {
        "lstm": reach(lag),
        "lstm, open": reach(lag, forget_bias=3.0),
        "gru, open": reach(lag, cell="gru", forget_bias=3.0),
        "identity": reach(lag, cell="rnn", nonlinearity="relu"),
    }
    lost = {
        "rnn of torch": reach(lag, cell="rnn", initialised=False),
        "lstm of torch": reach(lag, initialised=False),
        "gru": reach(lag, cell="gru"),  # its update gate starts half open: 0.5 ** lag of the state
    }
    orthogonal = reach(lag, cell="rnn")
    assert min(kept.values()) > 1e-3
    assert min(kept["lstm, open"], kept["gru, open"], kept["identity"]) > 1e-2
    assert max(lost.values()) < 1e-9
    assert max(lost.values()) < orthogonal < min(kept.values()) / 20


def test_dilations_shorten_a_long_lag() -> None:
    lag = 64
    stacked = reach(lag, cell="rnn", num_layers=3)
    assert reach(lag, cell="rnn", num_layers=3, dilations=[1, 4, 16]) > 1e2 * stacked


# --- settings


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"nonlinearity": "relu"}, "model.nonlinearity: relu is for cell=rnn; the gates of cell=lstm have their own"),
        ({"residual": True}, "model.residual: needs num_layers of 2 or more: the first layer has no sum"),
        (
            {"num_layers": 3, "dilations": [1, 2]},
            "model.dilations: one for each of the 3 layers (num_layers); 2 are given",
        ),
        ({"dilations": [0]}, "model.dilations.0: must be greater than or equal to 1 (given: 0)"),
        ({"cell": "rnn", "forget_bias": 1}, "model.forget_bias: cell=rnn has no gates; use cell=lstm or gru"),
        ({"truncate": 1}, "model.truncate: must be greater than or equal to 2 (given: 1)"),
        (
            {"dilations": [8], "truncate": 8},
            "model.truncate: must be more than each of the dilations: no gradient would pass through that layer",
        ),
        (
            {"cell": "rnn", "nonlinearity": "relu", "recurrent_dropout": 0.1},
            "model.recurrent_dropout: nonlinearity=relu grows without bound once kept weights are scaled up",
        ),
        ({"recurrent_dropout": 1.0}, "model.recurrent_dropout: must be less than 1 (given: 1.0)"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_by_their_key(model: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(FitSettings, {"window": {"horizon": 7}, "model": model})
    assert str(refused.value) == f"1 mistake in the config:\n  {message}"


def test_all_of_them_are_told_at_once() -> None:
    model = {"cell": "gru", "nonlinearity": "relu", "residual": True, "dilations": [1, 2]}
    with pytest.raises(ConfigError, match="3 mistakes"):
        load(FitSettings, {"window": {"horizon": 7}, "model": model})


# --- the whole forecaster


@pytest.mark.parametrize(
    "model",
    [
        {"cell": "rnn", "nonlinearity": "relu"},
        {"cell": "gru", "num_layers": 2, "residual": True, "forget_bias": 2.0, "truncate": 6},
        {"num_layers": 2, "dilations": [1, 3], "residual": True, "recurrent_dropout": 0.2, "truncate": 6},
    ],
    ids=str,
)
def test_a_forecaster_with_these_trains_and_is_stored(
    train: Callable[..., Any], weekly_loaded: Loaded, tmp_path: Path, model: dict[str, Any]
) -> None:
    made = train(weekly_loaded, model=model | {"segment_length": 1}, max_steps=10).artifact
    assert made.window == WindowConfig(context_length=28, horizon=7)
    made.save(tmp_path / "model")
    stored = artifact.load(tmp_path / "model")
    assert stored.model == made.model
    ours, theirs = made.network.state_dict(), stored.network.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert all(math.isfinite(float(values.double().sum())) for values in ours.values())
