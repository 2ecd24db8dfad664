"""Quantile heads and their loss."""

from statistics import NormalDist

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from forecast.models.heads.quantile import QuantileHead
from forecast.models.heads.quantile_gradients import ordered_quantiles, pinball_loss
from forecast.models.heads.quantiles import empirical_quantiles, pinball

DECILES = tuple(k / 10 for k in range(1, 10))
LEVELS = [DECILES, (0.5,), (0.025, 0.5), (0.5, 0.9), (0.01, 0.3, 0.5, 0.6, 0.995)]
FLOATS = st.floats(-1e3, 1e3, width=32)


def test_the_median_alone_gives_the_absolute_error() -> None:
    error = pinball(torch.tensor([[1.0], [-2.0]]), torch.tensor([4.0, -2.5]), torch.tensor([0.5]))
    assert error.tolist() == [3.0, 0.5]


@given(arrays.arrays(np.float32, (4, 3, 9), elements=FLOATS))
@settings(max_examples=100)
def test_quantiles_never_cross_and_hold_the_median(parameters: np.ndarray) -> None:
    quantiles = QuantileHead(DECILES).ordered(torch.from_numpy(parameters))
    assert (quantiles.diff(dim=-1) >= 0).all()
    assert torch.equal(quantiles[..., 4], torch.from_numpy(parameters)[..., 4])


@pytest.mark.parametrize("levels", LEVELS)
def test_parameters_of_inverts_quantiles(levels: tuple[float, ...]) -> None:
    head = QuantileHead(levels)
    wanted = torch.randn(5, 3, len(levels), generator=torch.Generator().manual_seed(0)).sort(dim=-1).values * 3
    found = head.ordered(head.init_parameters(wanted, 1e-6))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_parameters_of_keeps_the_least_gap() -> None:
    head = QuantileHead(DECILES)
    found = head.ordered(head.init_parameters(torch.full((2, 9), 7.0), 0.01))
    torch.testing.assert_close(found.diff(dim=-1), torch.full((2, 8), 0.01), rtol=1e-3, atol=1e-5)
    assert torch.equal(found[:, 4], torch.full((2,), 7.0))


@pytest.mark.parametrize("levels", LEVELS)
def test_pinball_equals_the_formula_written_out(levels: tuple[float, ...]) -> None:
    rng = np.random.default_rng(0)
    quantiles, target = np.sort(rng.normal(size=(6, 4, len(levels))), -1), rng.normal(size=(6, 4))
    expected = np.zeros((6, 4))
    for i in range(6):
        for j in range(4):
            losses = [
                2 * (level * max(target[i, j] - q, 0) + (1 - level) * max(q - target[i, j], 0))
                for level, q in zip(levels, quantiles[i, j], strict=True)
            ]
            expected[i, j] = sum(losses) / len(losses)
    found = pinball(torch.from_numpy(quantiles), torch.from_numpy(target), torch.tensor(levels, dtype=torch.float64))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_the_loss_of_the_median_is_the_absolute_error() -> None:
    head = QuantileHead((0.5,))
    quantiles, target = torch.tensor([[1.0], [2.0], [5.0]]), torch.tensor([2.0, 4.0, 15.0])
    assert head.errors(quantiles, target).tolist() == [1.0, 2.0, 10.0]


@pytest.mark.parametrize("levels", LEVELS)
def test_gradients_in_closed_form_are_those_of_finite_differences(levels: tuple[float, ...]) -> None:
    draw = torch.Generator().manual_seed(0)
    parameters = torch.randn(3, 4, len(levels), generator=draw, dtype=torch.float64, requires_grad=True)
    target = torch.randn(3, 4, generator=draw, dtype=torch.float64, requires_grad=True)
    median, grid = levels.index(0.5), torch.tensor(levels, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda values: ordered_quantiles(values, median), (parameters,))
    assert torch.autograd.gradcheck(lambda values, actual: pinball_loss(values, actual, grid), (parameters, target))


@pytest.mark.parametrize("levels", LEVELS)
def test_in_training_loss_and_gradient_are_those_of_differentiation(levels: tuple[float, ...]) -> None:
    head, draw = QuantileHead(levels).double(), torch.Generator().manual_seed(0)
    parameters, target = (
        torch.randn(64, *size, generator=draw).double() * 3 for size in ((2, 24, len(levels)), (2, 24))
    )
    weight = torch.rand(64, 2, 24, generator=draw).double()
    target[0] *= 1e3  # Beyond the clip.

    def loss_and_gradient(*, training: bool) -> tuple[torch.Tensor, torch.Tensor]:
        head.train(training)
        leaf = parameters.clone().requires_grad_()
        loss = (head.errors(head.ordered(leaf) * 0.3 + 1.0, target) * weight).sum()
        loss.backward()
        assert leaf.grad is not None
        return loss.detach(), leaf.grad

    for fused, plain in zip(loss_and_gradient(training=True), loss_and_gradient(training=False), strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-14, atol=1e-14)


def test_the_gradients_of_training_are_batched_over_series() -> None:
    head = QuantileHead(DECILES)
    parameters, target = torch.randn(5, 7, 9, generator=torch.Generator().manual_seed(0)), torch.zeros(5, 7)

    def loss(values: torch.Tensor, actual: torch.Tensor) -> torch.Tensor:
        return head.errors(head.ordered(values), actual).sum()

    batched = torch.func.vmap(torch.func.grad(loss))(parameters, target)
    by_series = torch.stack([torch.func.grad(loss)(*row) for row in zip(parameters, target, strict=True)])
    torch.testing.assert_close(batched, by_series)


@pytest.mark.parametrize("levels", LEVELS)
def test_mean_is_the_integral_of_the_quantile_function(levels: tuple[float, ...]) -> None:
    quantiles = np.sort(np.random.default_rng(1).normal(size=len(levels))) + 2
    head = QuantileHead(levels)
    grid = torch.cat([torch.logspace(-12, -1, 40_000), torch.linspace(0.1, 0.5, 10_000)]).double().unique()
    grid = torch.cat([grid, 1 - grid.flip(0)[1:]])
    expected = torch.trapezoid(head.quantiles(torch.from_numpy(quantiles), grid), grid)
    assert float(head.mean(torch.from_numpy(quantiles))) == pytest.approx(float(expected), rel=1e-4)


def test_mean_of_a_symmetric_distribution_is_its_centre() -> None:
    quantiles = torch.tensor([10 + 3 * NormalDist().inv_cdf(level) for level in DECILES])
    assert float(QuantileHead(DECILES).mean(quantiles)) == pytest.approx(10, rel=1e-6)


def test_empirical_quantiles_are_those_of_the_observed_samples() -> None:
    rng = np.random.default_rng(2)
    values, mask = rng.normal(size=(200, 3)).astype(np.float32), rng.random((200, 3)) < 0.5
    mask[:, 2] = False
    found = empirical_quantiles(torch.from_numpy(values), torch.from_numpy(mask) * 0.7, torch.tensor(DECILES))
    for step in range(2):
        expected = np.quantile(values[mask[:, step], step].astype(np.float64), DECILES)
        np.testing.assert_allclose(found[step], expected, rtol=1e-5, atol=1e-6)
    assert not found[2].any()


def test_quantiles_of_no_sample_at_all_are_zeros() -> None:
    found = empirical_quantiles(torch.zeros(0, 4), torch.zeros(0, 4), torch.tensor(DECILES))
    assert found.shape == (4, 9)
    assert not found.any()
    one = empirical_quantiles(torch.tensor([[3.0], [9.0]]), torch.tensor([[1.0], [0.0]]), torch.tensor(DECILES))
    assert one.tolist() == [[3.0] * 9]


def test_weighted_quantiles_minimise_the_weighted_pinball_loss() -> None:
    rng = np.random.default_rng(3)
    values, weights = torch.from_numpy(rng.normal(size=(500, 1)) ** 3), torch.from_numpy(rng.exponential(size=(500, 1)))
    levels = torch.tensor(DECILES, dtype=torch.float64)

    def loss(quantile: float, level: float) -> float:
        error = values[:, 0] - quantile
        return float((weights[:, 0] * torch.maximum(level * error, (level - 1) * error)).sum())

    found = empirical_quantiles(values, weights, levels)[0]
    for quantile, level in zip(found.tolist(), DECILES, strict=True):
        best = min(loss(value, level) for value in values[:, 0].tolist())
        assert loss(quantile, level) <= best * 1.001
