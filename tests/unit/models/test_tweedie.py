"""The compound Poisson-Gamma distribution against its definition, and the head made of it."""

import math

import numpy as np
import pytest
import torch
from scipy import special, stats

from forecast.models.heads import tweedie_distribution
from forecast.models.heads.tweedie import TweedieHead
from forecast.models.inputs.frame import Frame

DECILES = tuple(k / 10 for k in range(1, 10))
POWERS = (1.1, 1.5, 1.9)


def tensor(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def log_density(value: float, mean: float, dispersion: float, power: float) -> float:
    """A Poisson mixture of Gamma densities, summed over 200,000 counts."""
    rate, scale = (float(v) for v in tweedie_distribution.rate_and_scale(tensor(mean), tensor(dispersion), power))
    if value == 0:
        return -rate
    count = np.arange(1, 200_000)
    gamma = stats.gamma.logpdf(value, count * (2 - power) / (power - 1), scale=scale)
    return float(special.logsumexp(stats.poisson.logpmf(count, rate) + gamma))


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("mean", [0.1, 3.0, 500.0])
def test_the_loss_is_the_negative_log_likelihood(power: float, mean: float) -> None:
    for dispersion in (0.02, 0.5, 5.0):
        values = [0.0, 0.001 * mean, 0.3 * mean, mean, 6 * mean]
        found = tweedie_distribution.surprise(tensor(values), tensor([mean] * 5), tensor([dispersion] * 5), power)
        expected = [-log_density(value, mean, dispersion, power) for value in values]
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_a_likelihood_of_many_jumps_costs_no_more_terms_and_nears_a_normal_one() -> None:
    mean, dispersion = tensor([1e6]), tensor([1e-3])
    deviation = float((dispersion * mean**1.5).sqrt())
    values = 1e6 + deviation * np.array([-1.0, 0.0, 2.0])
    found = tweedie_distribution.surprise(tensor(values), mean.expand(3), dispersion.expand(3), 1.5)
    np.testing.assert_allclose(found, -stats.norm(1e6, deviation).logpdf(values), atol=2e-3)


def test_gradients_are_right() -> None:
    values = tensor([0.0, 0.1, 3.0, 40.0])
    start = tensor([1.0, 0.5, 2.0, 30.0]).requires_grad_(), tensor([1.0, 0.3, 2.0, 0.01]).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda mean, spread: tweedie_distribution.surprise(values, mean, spread, 1.5), start
    )


@pytest.mark.parametrize("power", POWERS)
def test_quantiles_and_samples_agree_and_have_the_right_moments(power: float) -> None:
    head = TweedieHead(DECILES, power)
    rows = [(0.0, 1.0, 0.3, 1.0), (0.0, 1.0, 5.0, 0.5), (7.0, 2.0, 40.0, 2.0), (0.0, 1.0, 0.02, 3.0)]
    arguments = tensor(rows)
    quantiles = head.quantiles(arguments) * arguments[:, 1:2] + arguments[:, :1]
    drawn = head.samples(arguments, 40_000, torch.Generator().manual_seed(0)) * arguments[:, 1:2] + arguments[:, :1]
    for row, (stated, draws) in enumerate(zip(quantiles.numpy(), drawn.numpy(), strict=True)):
        mean, dispersion = rows[row][2:]
        assert (draws >= -1e-9).all()
        for level, quantile in zip(DECILES, stated, strict=True):
            slack = 5 * np.sqrt(level * (1 - level) / 40_000) + 1e-3
            assert (draws <= quantile + 1e-9 + 1e-6 * quantile).mean() > level - slack
            assert (draws < quantile - 1e-9 - 1e-6 * quantile).mean() < level + slack
        deviation = (dispersion * mean**power) ** 0.5
        assert draws.mean() == pytest.approx(mean, abs=5 * deviation / 200)
        assert draws.std() == pytest.approx(deviation, rel=0.15)
    np.testing.assert_allclose(head.mean(arguments) * arguments[:, 1] + arguments[:, 0], arguments[:, 2])


def test_zeros_stay_zeros_whatever_the_frame() -> None:
    """Targets are float32 in units of the frame; a zero among large values must not become a tiny amount."""
    head = TweedieHead(DECILES, 1.5)
    for location, divisor in [(123.4, 7.3), (1e5, 3e4), (0.1, 0.7)]:
        arguments = torch.tensor([[location, divisor, 2.0, 1.0]])
        scaled = (torch.tensor([0.0]) - location) / divisor
        rate, _ = tweedie_distribution.rate_and_scale(tensor([2.0]), tensor([1.0]), 1.5)
        torch.testing.assert_close(head.errors(arguments, scaled), rate)


def test_the_dispersion_scales_with_the_series() -> None:
    """Ten times larger values: the same distribution, ten times larger."""
    head = TweedieHead(DECILES, 1.5)
    parameters, line = torch.tensor([[[[0.3, 0.2]]]]), torch.tensor([[[0.5]]])
    made = []
    for unit in (1.0, 10.0):
        one = torch.full((1, 1), unit)
        frame = Frame(
            2 * one, one, one, one > 0, torch.zeros(1, 1, 1), torch.full((1, 1, 1), 0.7), torch.zeros(1, 1, 1)
        )
        made.append(head.quantiles(head.arguments(parameters, line, frame)))
    torch.testing.assert_close(made[0], made[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rate", [1e-6, 0.3, 3.0, 200.0, 1e5])
def test_draws_made_of_uniform_numbers_have_the_distribution(rate: float) -> None:
    uniform = (np.arange(20_000) + 0.5) / 20_000
    found = tweedie_distribution.sample_at(uniform, np.full(20_000, rate), 1.5)
    assert (found == 0).mean() == pytest.approx(math.exp(-rate), abs=1e-4)
    assert found.mean() == pytest.approx(rate, rel=1e-3, abs=1e-4)
    for value in np.quantile(found, [0.1, 0.5, 0.9, 0.99]):
        if value:
            share = tweedie_distribution.below(np.array([value]), np.array([rate]), 1.5)
            assert (found <= value).mean() == pytest.approx(float(share[0]), abs=2e-3)
