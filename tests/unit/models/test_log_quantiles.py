"""Means of quantiles on a logarithmic scale."""

import numpy as np
import pytest
import torch
from scipy import stats

from forecast.models.heads.log_quantiles import at_levels, mean

DECILES = tuple(k / 10 for k in range(1, 10))


@pytest.mark.parametrize("levels", [DECILES, (0.1, 0.5, 0.9), (0.025, 0.5, 0.975), (0.5, 0.9)])
@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 1.5, 2.0])
def test_the_mean_of_log_normal_quantiles_is_the_mean(levels: tuple[float, ...], sigma: float) -> None:
    known = stats.lognorm(sigma, scale=50.0)
    found = mean(torch.tensor(known.ppf(levels)), torch.tensor(levels), 1e-3)
    assert float(found) == pytest.approx(known.mean(), rel=1e-3)


def test_the_mean_is_that_of_the_quantiles_at_other_levels() -> None:
    levels = torch.tensor(DECILES)
    skewed = torch.tensor(np.random.default_rng(0).gamma(0.7, 10.0, (5, 4000))).quantile(levels.double(), dim=1).T
    fine = (torch.arange(20_000) + 0.5) / 20_000
    between = at_levels(skewed, levels, fine, 0.05)
    torch.testing.assert_close(mean(skewed, levels, 0.05), between.mean(-1), rtol=3e-3, atol=0)
    torch.testing.assert_close(at_levels(skewed, levels, levels, 0.05), skewed, rtol=1e-5, atol=0)


def test_the_mean_stays_finite_where_quantiles_are_far_apart() -> None:
    levels = torch.tensor(DECILES)
    sparse = torch.tensor([0.0] * 8 + [1e6])
    assert 1e5 <= float(mean(sparse, levels, 1.0)) <= 1e6
    assert float(mean(torch.tensor([0.0, 1e12, 1e18]), torch.tensor([0.1, 0.5, 0.9]), 1e-6)) < 2e18
    # Symmetric quantiles have their middle as the mean, equal ones themselves.
    assert float(mean(torch.tensor([-9.0, 0.0, 9.0]), torch.tensor([0.1, 0.5, 0.9]), 2.0)) == pytest.approx(0, abs=1e-4)
    assert float(mean(torch.full((9,), 7.5), levels, 2.0)) == 7.5


def test_gradients_pass_after_a_forecast() -> None:
    """What is kept for later calls is no tensor of inference mode."""
    levels = torch.tensor([0.15, 0.5, 0.85])
    with torch.inference_mode():
        mean(torch.tensor([1.0, 2.0, 3.0]), levels, 1.0)
    quantiles = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(mean(quantiles, levels, 1.0), quantiles)
    assert (gradient > 0).all()
