"""Decoders and attention against their equations, in float64: what is taught, what is sampled, what is looked at."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from forecast.config import ModelConfig
from forecast.models.heads.factory import make_head
from forecast.models.inputs.batch import Batch
from forecast.models.inputs.frame import targets
from forecast.models.inputs.shape import NetworkShape
from forecast.models.linear.ridge import apply_linear
from forecast.models.network.decoders import Attention, AutoregressiveDecoder, SegmentDecoder, uniforms
from forecast.models.network.encoder import Encoder
from forecast.models.network.forecaster import RecurrentForecaster
from forecast.models.network.losses import step_errors
from forecast.models.network.output import Output

CELLS = ["lstm", "gru", "rnn"]
HEADS = ["quantile", "normal", "student_t", "poisson", "negative_binomial", "tweedie"]
DECILES = tuple(k / 10 for k in range(1, 10))
CONTEXT, HORIZON = 12, 5
AUTOREGRESSIVE: dict[str, Any] = {"decoder": "autoregressive", "n_paths": 16}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def forecaster(*, context: int = CONTEXT, horizon: int = HORIZON, n_past: int = 1, **model: Any) -> RecurrentForecaster:
    """A network in float64 with random weights everywhere, which forecasts without a threshold."""
    torch.manual_seed(0)
    shape = NetworkShape(
        context_length=context,
        horizon=horizon,
        season_length=3,
        n_past=n_past,
        n_known=1,
        n_calendar=0,
        category_sizes=(),
        n_static_numbers=0,
    )
    small = {"hidden_size": 6, "decoder_size": 3, "dropout": 0.0}
    made = RecurrentForecaster(shape, ModelConfig.model_validate(small | model)).double()
    with torch.no_grad():
        made.skip.normal_(0, 0.2)
        made.output_bias.normal_()
        made.output.weight.normal_(0, 0.4)
    return made


def batch(n: int = 3, *, span: int = 1, counts: bool = False, context: int = CONTEXT, horizon: int = HORIZON) -> Batch:
    """Windows with gaps, in the context and among the targets."""
    draw, time = torch.Generator().manual_seed(1), context + span - 1 + horizon
    target = 20 + 5 * torch.randn(n, time, generator=draw, dtype=torch.float64)
    observed = torch.rand(n, time, generator=draw) > 0.15
    return Batch(
        target=(target.round() if counts else target) * observed,
        observed=observed,
        past=torch.randn(n, time, 1, generator=draw, dtype=torch.float64),
        known=torch.randn(n, time, 1, generator=draw, dtype=torch.float64),
        there=torch.ones(n, time, dtype=torch.bool),
        static_categories=torch.zeros(n, 0, dtype=torch.long),
        static_numbers=torch.zeros(n, 0, dtype=torch.float64),
    )


def cell_step(made: Encoder, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """One step of a layer, as the equations are written."""
    w, u, b, d = (getattr(made, f"{name}_l0") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    if made.mode == "LSTM":
        i, f, g, o = (x @ w.T + b + h @ u.T + d).chunk(4, dim=-1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c
    if made.mode == "GRU":
        (ri, zi, ni), (rh, zh, nh) = (x @ w.T + b).chunk(3, dim=-1), (h @ u.T + d).chunk(3, dim=-1)
        r, z = (ri + rh).sigmoid(), (zi + zh).sigmoid()
        return (1 - z) * (ni + r * nh).tanh() + z * h, c
    return (x @ w.T + b + h @ u.T + d).tanh(), c


def first_state(linear: torch.nn.Linear, summary: Tensor, hidden: int) -> tuple[Tensor, Tensor]:
    state = summary @ linear.weight.T + linear.bias
    return state[..., :hidden].tanh(), state[..., hidden:]


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


# --- equations


@pytest.mark.parametrize("cell", CELLS)
def test_a_segment_decoder_is_one_step_for_each_segment(cell: str) -> None:
    # Seven steps in segments of three: the last is cut to one.
    config = ModelConfig.model_validate({"cell": cell, "hidden_size": 4, "decoder_size": 2, "decoder": "segment"})
    torch.manual_seed(0)
    made = SegmentDecoder(5, 7, 2, 3, config).double()
    summary = torch.randn(2, 3, 5, dtype=torch.float64)
    ahead = torch.randn(2, 3, 7, 2, dtype=torch.float64)
    found = made(summary, ahead)
    assert found.shape == (2, 3, 7, 2)
    for row, origin, step in itertools.product(range(2), range(3), range(7)):
        segment, inside = divmod(step, 3)
        mean = ahead[row, origin, 3 * segment : 3 * segment + 3].mean(0)
        x = torch.cat([made.position_embeddings.weight[segment], mean])
        h, _ = cell_step(made.recurrent, x, *first_state(made.start, summary[row, origin], 4))
        close(found[row, origin, step], (h @ made.output.weight.T + made.output.bias)[2 * inside : 2 * inside + 2])


@pytest.mark.parametrize("cell", CELLS)
def test_a_step_of_the_autoregressive_decoder_is_that_of_its_cell(cell: str) -> None:
    config = ModelConfig.model_validate({"cell": cell, "hidden_size": 4, "decoder_size": 2})
    torch.manual_seed(0)
    made = AutoregressiveDecoder(5, 3, config).double()
    summary, inputs = torch.randn(2, 5, dtype=torch.float64), torch.randn(2, 6, 3, dtype=torch.float64)
    found, _ = made(inputs, made.start(summary))
    h, c = first_state(made.begin, summary, 4)
    for step in range(6):
        h, c = cell_step(made.recurrent, inputs[:, step], h, c)
        close(found[:, step], h @ made.output.weight.T + made.output.bias)


def test_attention_is_the_softmax_of_what_is_within_the_context_and_there() -> None:
    torch.manual_seed(0)
    made = Attention(4, 3).double()
    with torch.no_grad():
        made.age.normal_()
    made.requires_grad_(False)
    states = torch.randn(2, 6, 4, dtype=torch.float64)
    there = torch.tensor([[True] * 6, [False, False, False, True, False, True]])
    last = torch.tensor([2, 3, 5])
    seen, weight = made(states, there, last)
    for row, (origin, at) in itertools.product(range(2), enumerate(last.tolist())):
        steps = [s for s in range(at - 2, at + 1) if there[row, s] or s == at]
        query = made.query(states[row, at])
        score = [float(query @ made.key.weight @ states[row, s]) / 2.0 + float(made.age[at - s]) for s in steps]
        share = torch.tensor([math.exp(value) for value in score], dtype=torch.float64)
        share /= share.sum()
        expected = torch.zeros(6, dtype=torch.float64)
        expected[steps] = share
        close(weight[row, origin], expected)
        assert (weight[row, origin] == 0).tolist() == [s not in steps for s in range(6)]
        values = states[row, steps] @ made.value.weight.T + made.value.bias
        close(seen[row, origin], share @ values)


def test_what_a_decoder_is_told_of_a_value() -> None:
    values, linear = torch.tensor([3.0, -1.0]), torch.tensor([1.0, -1.0])
    told = make_head("normal", DECILES).decoder_input(
        values, torch.tensor([True, False]), linear, torch.tensor([0.5, 2.0])
    )
    close(told, torch.tensor([[math.asinh(3.0), math.asinh(4.0), 1.0], [math.asinh(-1.0), 0.0, 0.0]]))


# --- paths


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("cell", CELLS)
def test_a_path_is_what_teaching_it_gives(cell: str, head: str) -> None:
    # Told its own path as the truth, each step's distribution is the one that the path's next value was drawn from.
    made = forecaster(**AUTOREGRESSIVE, cell=cell, head=head)
    windows = batch(counts=made.head.counts)
    origins = torch.zeros(1, dtype=torch.long)
    with torch.no_grad():
        free = made.eval()(windows, origins)
        assert free.paths is not None
        # Targets are not read.
        blank = windows.observed.clone()
        blank[:, CONTEXT:] = False
        again = made(windows._replace(observed=blank, target=windows.target * blank), origins)
        assert torch.equal(free.paths, again.paths)
        means = []
        for path in range(made.n_paths):
            values = free.frame.location + free.frame.divisor * free.paths[:, 0, path]
            target, observed = windows.target.clone(), windows.observed.clone()
            target[:, CONTEXT:], observed[:, CONTEXT:] = values, True
            taught = made.train()(windows._replace(target=target, observed=observed), origins)
            uniform = made.uniforms[path].expand(3, 1, -1)
            torch.testing.assert_close(
                made.head.sample_at(taught.arguments, uniform)[:, 0], free.paths[:, 0, path], rtol=1e-9, atol=1e-9
            )
            means.append(taught.mean[:, 0])
    # The mean is that of the paths' distributions, the quantiles are those of the paths.
    torch.testing.assert_close(free.mean[:, 0], torch.stack(means).mean(0), rtol=1e-9, atol=1e-9)
    method = "inverted_cdf" if made.head.counts else "hazen"
    expected = np.quantile(free.paths[:, 0].numpy(), DECILES, axis=1, method=method)
    np.testing.assert_allclose(free.quantiles[:, 0].numpy(), np.moveaxis(expected, 0, -1), rtol=0, atol=1e-5)


def test_random_numbers_are_spread_evenly_at_each_step_and_the_same_each_time() -> None:
    found = uniforms(50, 30)
    assert torch.equal(found, uniforms(50, 30))
    close(found.sort(0).values, ((torch.arange(50) + 0.5) / 50)[:, None].expand(-1, 30))
    # Steps know nothing of each other: a random walk of them spreads as it should, and better than by chance.
    walk = torch.special.ndtri(uniforms(128, 30).double()).cumsum(1)
    spread = walk.var(0) / torch.arange(1, 31)
    torch.testing.assert_close(spread[:14], torch.ones(14).double(), rtol=0, atol=0.05)
    torch.testing.assert_close(spread, torch.ones(30).double(), rtol=0, atol=0.2)


@pytest.mark.parametrize("paths", [1, 2, 1000])
def test_how_many_are_sampled_at_once_changes_nothing(monkeypatch: pytest.MonkeyPatch, paths: int) -> None:
    made, windows, origins = forecaster(**AUTOREGRESSIVE).eval(), batch(4, span=3), torch.tensor([0, 2])
    whole = made(windows, origins)
    monkeypatch.setattr("forecast.models.network.autoregression._MAX_ELEMENTS", paths * made.n_paths * 64)
    parts = made(windows, origins)
    torch.testing.assert_close(parts.paths, whole.paths, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(parts.arguments, whole.arguments, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("head", HEADS)
def test_paths_of_an_untrained_network_are_draws_from_the_closed_form(head: str) -> None:
    made, origins = (
        forecaster(decoder="autoregressive", n_paths=400, head=head).eval(),
        torch.zeros(1, dtype=torch.long),
    )
    with torch.no_grad():
        made.output.weight.zero_()
        found = made(batch(counts=made.head.counts), origins)
    assert found.head is made.head
    assert found.paths is not None
    assert found.paths.shape == (3, 1, 400, HORIZON)
    stated = found.quantiles[:, 0]
    below = (found.paths[:, 0, :, :, None] <= stated[:, None] + 1e-9).double().mean(1)
    if made.head.positive:  # Quantiles with a probability of their own.
        assert (below >= torch.tensor(DECILES) - 0.02).all()
    else:
        torch.testing.assert_close(below, torch.tensor(DECILES).double().expand_as(below), rtol=0, atol=0.005)


@pytest.mark.parametrize("levels", [DECILES, (0.05, 0.5, 0.95), (0.5,)])
def test_draws_of_a_quantile_head_have_its_quantiles_and_tails(levels: tuple[float, ...]) -> None:
    head = make_head("quantile", levels)
    arguments = torch.tensor(stats.norm.ppf(levels)).expand(100_000, -1)
    uniform = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    drawn = head.sample_at(arguments, uniform)
    assert (drawn.diff() >= 0).all()
    found = np.quantile(drawn.numpy(), levels)
    np.testing.assert_allclose(found, stats.norm.ppf(levels), atol=1e-3)
    if levels is DECILES:
        # What a path adds up: nine quantiles of a normal distribution give nearly its variance.
        assert float(drawn.std()) == pytest.approx(1.0, abs=0.03)


# --- teaching


@pytest.mark.parametrize(
    "model",
    [
        {"decoder": "segment", "segment_length": 3},
        *({**AUTOREGRESSIVE, "head": head} for head in HEADS),
        {**AUTOREGRESSIVE, "cell": "gru", "attention": True},
    ],
    ids=str,
)
def test_gradients_of_the_loss_are_those_of_finite_differences(model: dict[str, Any]) -> None:
    made = forecaster(**model).train()
    windows, origins = batch(span=4, counts=made.head.counts), torch.tensor([0, 3])

    def loss() -> Tensor:
        error, weight = step_errors(made, windows, origins)
        return (error * weight).sum() / weight.sum()

    names, values = zip(*made.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss(), values)
    torch.manual_seed(1)
    for name, value, gradient in zip(names, values, gradients, strict=True):
        direction = torch.randn_like(value) / math.sqrt(value.numel())
        with torch.no_grad():
            value += 1e-6 * direction
            above = loss()
            value -= 2e-6 * direction
            below = loss()
            value += 1e-6 * direction
        expected = float((gradient * direction).sum())
        assert float((above - below) / 2e-6) == pytest.approx(expected, rel=1e-4, abs=1e-7), name


def taught(made: RecurrentForecaster, windows: Batch) -> Tensor:
    with torch.no_grad():
        output: Output = made.train()(windows, torch.zeros(1, dtype=torch.long))
    return output.arguments[:, 0]


@pytest.mark.parametrize("own", [0.0, 0.5])
def test_a_taught_step_sees_the_values_before_it_only(own: float) -> None:
    made, windows = forecaster(**AUTOREGRESSIVE, attention=True), batch()
    made.sampled_share = own
    windows.observed[:, CONTEXT:] = True
    torch.manual_seed(5)
    before = taught(made, windows)
    for step in range(HORIZON):
        target = windows.target.clone()
        target[:, CONTEXT + step] += 3.0
        torch.manual_seed(5)
        changed = (taught(made, windows._replace(target=target)) != before).flatten(2).any(-1)
        assert not changed[:, : step + 1].any()
        assert own or changed[:, step + 1 :].all()


def test_a_missing_target_is_told_as_the_skips_and_marked() -> None:
    made, windows = forecaster(**AUTOREGRESSIVE), batch()
    windows.observed[:, CONTEXT:] = True
    frame = made.frame(windows, torch.zeros(1, dtype=torch.long))
    expected = (frame.location + frame.divisor * apply_linear(frame.window, made.skip)[:, 0])[:, 1]
    target, observed = windows.target.clone(), windows.observed.clone()
    target[:, CONTEXT + 1] = expected
    same = taught(made, windows._replace(target=target))
    observed[:, CONTEXT + 1] = False
    marked = taught(made, windows._replace(target=target, observed=observed))
    hidden = taught(made, windows._replace(target=target * observed, observed=observed))
    assert torch.equal(marked, hidden)
    assert not torch.equal(marked, same)
    with torch.no_grad():  # The mark is all that differs.
        assert isinstance(made.context, AutoregressiveDecoder)
        made.context.recurrent.weight_ih_l0[:, 2] = 0.0
    same, marked = (taught(made, windows._replace(target=target, observed=o)) for o in (windows.observed, observed))
    close(marked, same)


def test_its_own_samples_are_told_at_a_share_of_the_steps() -> None:
    made, windows = forecaster(**AUTOREGRESSIVE), batch()
    windows.observed[:, CONTEXT:] = True
    true, found = taught(made, windows), {}
    for share in (0.5, 1.0):
        made.sampled_share = share
        found[share] = torch.cat([taught(made, windows) for _ in range(40)])
    changed = {share: (values != true.repeat(40, 1, 1)).any(-1) for share, values in found.items()}
    # The first step follows the last value of the window, which is known.
    assert not changed[0.5][:, 0].any()
    assert 0.35 < float(changed[0.5][:, 1].double().mean()) < 0.65
    assert changed[1.0][:, 1:].all()
    torch.manual_seed(0)
    once = taught(made, windows)
    torch.manual_seed(0)
    assert torch.equal(taught(made, windows), once)
    # Outside of training the share does not matter.
    with torch.no_grad():
        free = [made.eval()(windows, torch.zeros(1, dtype=torch.long)).quantiles]
        made.sampled_share = 0.0
        free.append(made(windows, torch.zeros(1, dtype=torch.long)).quantiles)
    assert torch.equal(*free)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "model",
    [
        {"decoder": "segment", "segment_length": 3, "cell": "gru"},
        {**AUTOREGRESSIVE, "cell": "gru"},
        {**AUTOREGRESSIVE, "cell": "rnn"},
    ],
    ids=str,
)
def test_half_precision_gives_about_the_same(model: dict[str, Any], training: bool) -> None:
    made = forecaster(**model, attention=True).float().train(training)
    made.sampled_share = 0.5
    windows = batch(span=4).map(lambda values: values.float() if values.is_floating_point() else values)
    found = []
    for half in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=half), torch.no_grad():
            found.append(made(windows, torch.tensor([0, 3])).quantiles.float())
    error = (found[0] - found[1]).abs()
    assert float(error.median()) < 0.05
    assert not torch.equal(*found)


# --- what they are for


def learn(made: RecurrentForecaster, draw: Any, steps: int, rate: float) -> None:
    made.train()
    optimiser = torch.optim.AdamW(made.parameters(), lr=rate)
    for _ in range(steps):
        error, weight = step_errors(made, draw(), torch.zeros(1, dtype=torch.long))
        optimiser.zero_grad()
        ((error * weight).sum() / weight.sum()).backward()
        torch.nn.utils.clip_grad_norm_(made.parameters(), 1.0)
        optimiser.step()
    made.eval()


def plain(context: int, horizon: int, n_past: int, **model: Any) -> RecurrentForecaster:
    torch.manual_seed(0)
    shape = NetworkShape(
        context_length=context,
        horizon=horizon,
        season_length=1,
        n_past=n_past,
        n_known=0,
        n_calendar=0,
        category_sizes=(),
        n_static_numbers=0,
        anchor="last",
    )
    return RecurrentForecaster(shape, ModelConfig.model_validate({"hidden_size": 16, "dropout": 0.0} | model))


def windows_of(target: Tensor, past: Tensor | None = None) -> Batch:
    n, time = target.shape
    return Batch(
        target=target,
        observed=torch.ones(n, time, dtype=torch.bool),
        past=torch.zeros(n, time, 0) if past is None else past,
        known=torch.zeros(n, time, 0),
        there=torch.ones(n, time, dtype=torch.bool),
        static_categories=torch.zeros(n, 0, dtype=torch.long),
        static_numbers=torch.zeros(n, 0),
    )


@pytest.mark.trains
def test_paths_of_a_process_with_two_states_stay_in_theirs() -> None:
    # -1 or 1 for good, from the end of the window on: each step alone is a coin, but a path has one side.
    draw = torch.Generator().manual_seed(0)

    def sides(n: int = 64) -> Batch:
        noise = 0.3 * torch.randn(n, 8 + HORIZON, generator=draw)
        noise[:, 8:] = noise[:, 8:] / 6 + torch.randint(0, 2, (n, 1), generator=draw) * 2.0 - 1.0
        return windows_of(noise)

    made = plain(8, HORIZON, 0, head="normal", decoder="autoregressive", cell="gru")
    learn(made, sides, 200, 1e-2)
    with torch.no_grad():
        output = made(sides(16), torch.zeros(1, dtype=torch.long))
    assert output.paths is not None
    values = (output.frame.location[..., None, None] + output.frame.divisor[..., None, None] * output.paths)[:, 0]
    # From its second step on a path knows its side. Normal first steps may fall between the sides.
    later = values[..., 1:].sign()
    agree = (later[..., 1:] == later[..., :-1]).double().mean()
    assert float(agree) > 0.9
    spread = values[..., -1].std(dim=1)
    assert 0.4 < float(spread.mean()) < 2.0


@pytest.mark.trains
def test_attention_finds_a_value_that_was_marked_long_ago() -> None:
    # What follows the window is the one marked value in it: a plain recurrent cell alone can't hold it for so long.
    context, draw = 24, torch.Generator().manual_seed(0)

    def marked(n: int = 64) -> Batch:
        target, past = torch.randn(n, context + 1, generator=draw), torch.zeros(n, context + 1, 1)
        at = torch.randint(0, context - 8, (n,), generator=draw)
        past[torch.arange(n), at, 0] = 1.0
        target[:, context] = target[torch.arange(n), at]
        return windows_of(target, past)

    loss = {}
    for attention in (True, False):
        made = plain(context, 1, 1, cell="rnn", attention=attention, quantile_levels=(0.5,))
        learn(made, marked, 220, 1e-2)
        windows, origins = marked(512), torch.zeros(1, dtype=torch.long)
        with torch.no_grad():
            output = made(windows, origins)
            target, _ = targets(windows, output.frame, origins, made.shape)
            # In units of the target: the mean distance of what is not known at all is 0.8.
            error = made.head.errors(output.arguments, target) * output.frame.divisor[..., None]
            loss[attention] = float(error.mean())
        if output.attention is not None:
            # It looks at the mark, or at the state right after it. An even look at all steps would give them 1/8.
            at = windows.past[:, :context, 0].argmax(1)
            near = output.attention[:, 0].gather(1, at[:, None] + torch.arange(3)).sum(1)
            assert float(near.median()) > 0.5
    assert loss[True] < 0.5
    assert loss[False] > 0.65
