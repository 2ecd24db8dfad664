"""The autoregressive decoder of classes in float64: what it is told, what it samples, what all paths say together."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from forecast.config import ModelConfig
from forecast.models.inputs.batch import Batch
from forecast.models.inputs.shape import NetworkShape
from forecast.models.network.decoders import AutoregressiveDecoder
from forecast.models.network.forecaster import RecurrentForecaster
from forecast.models.network.losses import step_errors
from forecast.models.network.output import Output

CONTEXT, HORIZON = 6, 3
ORIGIN = torch.zeros(1, dtype=torch.long)
HEADS = {"categorical": 3, "bernoulli": 2}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def forecaster(head: str = "categorical", **model: Any) -> RecurrentForecaster:
    """A network with random weights everywhere, whose skip counts something, and which forecasts without threshold."""
    torch.manual_seed(0)
    n_classes = HEADS[head]
    shape = NetworkShape(
        context_length=CONTEXT,
        horizon=HORIZON,
        season_length=2,
        n_past=0,
        n_known=0,
        n_calendar=0,
        category_sizes=(),
        n_static_numbers=0,
        n_classes=n_classes,
    )
    small = {"hidden_size": 6, "decoder_size": 3, "dropout": 0.0, "decoder": "autoregressive", "head": head}
    made = RecurrentForecaster(shape, ModelConfig.model_validate(small | model)).double()
    with torch.no_grad():
        made.output_bias.normal_()
        made.output.weight.normal_(0, 0.6)
        made.class_skip.frequency.copy_(torch.rand(n_classes).log_softmax(0))
        made.class_skip.latest.normal_(0, 0.5)
        made.class_skip.share.fill_(1.0)
    return made


def batch(n_classes: int, targets: Tensor | None = None) -> Batch:
    """One window with a gap for each row of targets; three, without any, when none are given."""
    n = 3 if targets is None else len(targets)
    draw = torch.Generator().manual_seed(1)
    context = torch.randint(0, n_classes, (1, CONTEXT), generator=draw).double().expand(n, -1)
    there = torch.ones(n, CONTEXT, dtype=torch.bool)
    there[:, 2] = False
    after = torch.zeros(n, HORIZON, dtype=torch.float64) if targets is None else targets.double()
    observed = torch.cat([there, torch.full((n, HORIZON), targets is not None)], dim=1)
    nothing = torch.zeros(n, CONTEXT + HORIZON, 0, dtype=torch.float64)
    return Batch(
        target=torch.cat([context, after], dim=1) * observed,
        observed=observed,
        past=nothing,
        known=nothing,
        there=torch.ones(n, CONTEXT + HORIZON, dtype=torch.bool),
        static_categories=torch.zeros(n, 0, dtype=torch.long),
        static_numbers=nothing[:, 0],
    )


def taught(made: RecurrentForecaster, windows: Batch) -> Tensor:
    """Log-probabilities of each step, given the targets before it."""
    with torch.no_grad():
        output: Output = made.train()(windows, ORIGIN)
    return output.arguments[:, 0]


def every(n_classes: int) -> Tensor:
    return torch.tensor(list(itertools.product(range(n_classes), repeat=HORIZON)))


@pytest.mark.parametrize("head", HEADS)
def test_paths_and_their_marginals_are_those_of_all_sequences_there_are(head: str) -> None:
    """The chain rule: what teaching says of each sequence of classes is how often it is sampled."""
    made, sequences = forecaster(head, n_paths=8192), every(HEADS[head])
    conditional = taught(made, batch(HEADS[head], sequences))
    joint = conditional.gather(-1, sequences[..., None])[..., 0].sum(-1).exp()
    assert float(joint.sum()) == pytest.approx(1.0)
    free = made.eval()(batch(HEADS[head]), ORIGIN)
    assert free.paths.shape == (3, 1, 8192, HORIZON)
    same = (free.paths[0, 0, :, None] == sequences).all(-1).double().mean(0)
    torch.testing.assert_close(same, joint, rtol=0, atol=0.01)
    # The marginal of a step is the sum over all that may come before it; sampled, it errs less than the draws do.
    exact = torch.stack(
        [
            torch.stack([joint[sequences[:, step] == code].sum() for code in range(HEADS[head])])
            for step in range(HORIZON)
        ]
    )
    stated = free.head.predicted(free.arguments)[0, 0]
    torch.testing.assert_close(stated, exact, rtol=0, atol=0.003)
    torch.testing.assert_close(stated.sum(-1), torch.ones(HORIZON).double())


def test_validation_takes_the_log_loss_of_the_marginals() -> None:
    made, windows = forecaster(n_paths=64).eval(), batch(3, every(3))
    with torch.no_grad():
        error, weight = step_errors(made, windows, ORIGIN)
        stated = made(windows, ORIGIN).arguments
    expected = -stated[:, 0].gather(-1, every(3)[..., None])[..., 0]
    torch.testing.assert_close(error[:, 0], expected)
    assert (weight == 1).all()


def test_a_missing_class_is_told_as_the_skips_probabilities_and_marked() -> None:
    made = forecaster()
    full = batch(3, torch.tensor([[0, 0, 0], [0, 1, 0], [0, 2, 0]]))
    observed = full.observed.clone()
    observed[:, CONTEXT + 1] = False
    missing = taught(made, full._replace(target=full.target * observed, observed=observed))
    # Whatever the class was, it is not told.
    torch.testing.assert_close(missing, missing[:1].expand_as(missing))
    told = taught(made, full)
    assert not torch.allclose(told[0, 2], told[1, 2])
    # Of a decoder without the mark, whose skip is sure of the class, it is as if that class had been seen.
    with torch.no_grad():
        assert isinstance(made.context, AutoregressiveDecoder)
        made.context.recurrent.weight_ih_l0[:, 3] = 0.0
        made.class_skip.latest.zero_()
        made.class_skip.frequency.copy_(torch.tensor([1e-30, 1.0, 1e-30]).log())
        made.class_skip.share.copy_(torch.tensor([1.0, 0.0, 0.0]))
    torch.testing.assert_close(
        taught(made, full._replace(observed=observed))[0, 2], taught(made, full)[1, 2], rtol=1e-6, atol=1e-6
    )


def test_an_origin_without_a_class_is_told_the_frequencies() -> None:
    made, windows = forecaster().eval(), batch(3)
    observed = windows.observed.clone()
    observed[:, CONTEXT - 1] = False
    hidden = [made(windows._replace(target=target, observed=observed), ORIGIN).arguments
              for target in (windows.target * observed, windows.target)]  # fmt: skip
    torch.testing.assert_close(*hidden)
    other = made.class_skip.frequency.clone().roll(1)
    fed = []
    for frequency in (made.class_skip.frequency, other):
        frame = made.frame(windows, ORIGIN)
        expected = frequency.expand(3, 1, 3)
        fed.append(
            made.head.decoder_input(
                frame.window[..., -1], observed[:, CONTEXT - 1, None], expected, frame.spread[..., 0]
            )
        )
    torch.testing.assert_close(fed[0][0, 0], torch.cat([made.class_skip.frequency.exp(), torch.zeros(1).double()]))
    assert not torch.allclose(*fed)


def test_own_samples_of_classes_are_classes() -> None:
    made, windows = forecaster(), batch(3, every(3))
    made.sampled_share = 1.0
    torch.manual_seed(3)
    found = taught(made, windows)
    made.sampled_share = 0.0
    true = taught(made, windows)
    # Each third step follows some pair of classes, mostly another one than came.
    for values in found[:, 2]:
        assert any(torch.allclose(values, other) for other in true[:, 2])
    assert not torch.allclose(found[:, 2], true[:, 2])


def test_the_number_of_paths_is_that_asked_for_and_the_model_keeps_its_own() -> None:
    made = forecaster(n_paths=16).eval()
    other = made.sampling(50)
    assert other(batch(3), ORIGIN).paths.shape[2] == 50
    assert made(batch(3), ORIGIN).paths.shape[2] == 16
