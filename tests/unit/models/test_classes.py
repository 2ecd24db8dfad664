"""Heads of classes and the skip that counts what follows what."""

import numpy as np
import pytest
import torch

from forecast.models.heads.categorical import BernoulliHead, CategoricalHead
from forecast.models.inputs.frame import Frame
from forecast.models.linear.markov import ClassSkip, latest_class

DECILES = tuple(k / 10 for k in range(1, 10))


def chain(steps: int, seed: int = 0) -> np.ndarray:
    """A Markov chain of three classes that mostly stay."""
    rng = np.random.default_rng(seed)
    after = np.array([[0.8, 0.15, 0.05], [0.3, 0.6, 0.1], [0.2, 0.2, 0.6]])
    codes = [0]
    for _ in range(steps - 1):
        codes.append(rng.choice(3, p=after[codes[-1]]))
    return np.array(codes)


def windows(codes: np.ndarray, context: int, horizon: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    cut = torch.from_numpy(codes).float().unfold(0, context + horizon, 1)
    return cut[:, :context], cut[:, context:], torch.ones(len(cut), horizon)


def made(head: CategoricalHead, parameters: torch.Tensor, linear: torch.Tensor) -> torch.Tensor:
    one = torch.ones(len(parameters), 1)
    seen = torch.zeros(len(parameters), 1, 1)
    return head.arguments(parameters, linear, Frame(0 * one, one, one, one > 0, seen, seen, 0 * seen))


def test_probabilities_sum_to_one_and_the_loss_is_that_of_the_class() -> None:
    head = CategoricalHead(DECILES, 4)
    torch.manual_seed(0)
    parameters, linear = 30 * torch.randn(2, 50, 1, 7, 4, dtype=torch.float64)
    parameters.requires_grad_()
    arguments = made(head, parameters, linear)
    probabilities = torch.softmax(parameters + linear, -1)
    torch.testing.assert_close(head.predicted(arguments), probabilities)
    torch.testing.assert_close(head.predicted(arguments).sum(-1), torch.ones(50, 1, 7, dtype=torch.float64))
    target = torch.randint(0, 4, (50, 1, 7))
    loss = head.errors(arguments, target.double())
    wanted = torch.nn.functional.cross_entropy((parameters + linear).movedim(-1, 1), target, reduction="none")
    torch.testing.assert_close(loss, wanted)
    loss.sum().backward()
    assert parameters.grad is not None
    # A shift's gradient is what is left over of the class that came.
    torch.testing.assert_close(-parameters.grad, head.residual(arguments, target.double()))


def test_a_bernoulli_is_a_categorical_of_two_classes() -> None:
    odds, linear = torch.randn(5, 1, 3, 1), torch.log_softmax(torch.randn(5, 1, 3, 2), -1)
    two = made(CategoricalHead(DECILES, 2), torch.cat([0 * odds, odds], -1), linear)
    torch.testing.assert_close(made(BernoulliHead(DECILES), odds, linear), two)
    torch.testing.assert_close(BernoulliHead(DECILES).mean(two), two[..., 1].exp())


def test_samples_are_codes_that_come_as_often_as_they_should() -> None:
    head = CategoricalHead(DECILES, 4)
    probabilities = torch.tensor([[0.1, 0.0, 0.6, 0.3], [1.0, 0.0, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]])
    drawn = head.samples(probabilities.log(), 20_000, torch.Generator().manual_seed(0))
    assert torch.equal(drawn, drawn.round())
    for row, wanted in zip(drawn.long(), probabilities, strict=True):
        torch.testing.assert_close(torch.bincount(row, minlength=4) / 20_000, wanted, atol=0.02, rtol=0)
    assert head.quantiles(probabilities.log(), torch.tensor([0.05, 0.5, 0.95])).tolist() == [
        [0.0, 2.0, 3.0],
        [0.0, 0.0, 0.0],
        [0.0, 1.0, 3.0],
    ]


def test_changes_move_log_odds_and_a_temperature_flattens_them() -> None:
    head = CategoricalHead(DECILES, 3)
    stated = torch.tensor([[0.7, 0.2, 0.1]])
    same = head.shift_and_scale(stated, torch.zeros(1, 3), torch.ones(1))
    torch.testing.assert_close(same, stated)
    moved = head.shift_and_scale(stated, torch.tensor([[0.0, 1.0, 0.0]]), torch.ones(1))
    assert float((moved[0, 1] / moved[0, 0]) / (0.2 / 0.7)) == pytest.approx(np.e)
    flat = head.shift_and_scale(stated, torch.zeros(1, 3), torch.full((1,), 1e6))
    torch.testing.assert_close(flat, torch.full((1, 3), 1 / 3), atol=1e-5, rtol=0)
    certain = head.shift_and_scale(torch.tensor([[1.0, 0.0, 0.0]]), torch.zeros(1, 3), torch.ones(1))
    assert head.column_errors(certain, torch.tensor([1.0])).isfinite().all()


def test_a_threshold_calms_the_network_to_the_skip() -> None:
    head = CategoricalHead(DECILES, 3)
    parameters = torch.tensor([[0.3, -0.05, -2.0]])
    torch.testing.assert_close(head.soft_threshold(parameters, torch.tensor(0.1)), torch.tensor([[0.2, 0.0, -1.9]]))
    assert not head.soft_threshold(parameters, torch.tensor(1e6)).any()


def test_the_skip_finds_a_markov_chain() -> None:
    window, target, observed = windows(chain(20_000), 14, 3)
    skip = ClassSkip(n_classes=3, context=14, horizon=3, season=7, tables=True)
    skip.fit(window, target, observed)
    skip.choose(*windows(chain(4_000, seed=1), 14, 3))
    assert skip.share.tolist() == [1.0, 0.0, 0.0]
    after = torch.tensor([[0.8, 0.15, 0.05], [0.3, 0.6, 0.1], [0.2, 0.2, 0.6]])
    state = torch.zeros(3, 14)
    state[:, -1] = torch.arange(3)
    for step in range(3):
        torch.testing.assert_close(
            skip(state)[:, step].exp(), torch.linalg.matrix_power(after, step + 1), atol=0.03, rtol=0
        )


def test_the_skip_finds_a_season_and_what_a_series_is_like() -> None:
    rng = np.random.default_rng(0)
    weekly = np.tile(rng.permutation([0, 1, 2, 0, 0, 1, 2]), 400)
    noisy = np.where(rng.random(len(weekly)) < 0.1, rng.integers(0, 3, len(weekly)), weekly)
    skip = ClassSkip(n_classes=3, context=14, horizon=3, season=7, tables=True)
    skip.fit(*windows(noisy, 14, 3))
    skip.choose(*windows(noisy, 14, 3))
    assert skip.share[1] == 1.0
    found = [windows(rng.choice(3, 60, p=p), 14, 3) for p in rng.dirichlet([0.3] * 3, 300)]
    own = [torch.cat(parts) for parts in zip(*found, strict=True)]
    skip = ClassSkip(n_classes=3, context=14, horizon=3, season=1, tables=True)
    skip.fit(*own)
    skip.choose(*own)
    assert skip.share[2] > 0


def test_gaps_have_no_say_and_no_class_is_impossible() -> None:
    skip = ClassSkip(n_classes=3, context=14, horizon=3, season=7, tables=True)
    window, target, observed = windows(chain(300) % 2, 14, 3)
    skip.fit(window, target, observed)
    skip.share.copy_(torch.ones(3))
    assert skip(torch.full((1, 14), -1.0)).isfinite().all()
    assert (skip(window).exp() > 0).all()
    torch.testing.assert_close(skip(window).exp().sum(-1), torch.ones(len(window), 3))
    gone = torch.full((1, 14), -1.0)
    code, seen = latest_class(torch.cat([gone, gone.index_fill(1, torch.tensor([4]), 2.0)]))
    assert code.tolist()[1] == 2
    assert seen.tolist() == [False, True]


def test_names_do_not_matter_to_the_skip() -> None:
    codes, order = chain(2000), np.array([2, 0, 1])
    found = []
    for own in (codes, order[codes]):
        window, target, observed = windows(own, 14, 3)
        skip = ClassSkip(n_classes=3, context=14, horizon=3, season=7, tables=True)
        skip.fit(window, target, observed)
        skip.choose(window, target, observed)
        found.append(skip(window))
    torch.testing.assert_close(found[1][..., torch.from_numpy(order)], found[0])
