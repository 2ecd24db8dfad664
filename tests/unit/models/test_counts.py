"""Quantiles of counts, against scipy."""

import numpy as np
import pytest
import torch
from scipy import stats

from forecast.models.heads.count_quantiles import quantiles

LEVELS = np.array([0.001, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.9995])


def scipy_quantiles(mean: np.ndarray, excess: np.ndarray) -> np.ndarray:
    poisson = excess == 0
    size = np.square(mean / np.where(poisson, 1.0, excess))
    share = mean / (mean + np.square(excess))
    found = stats.nbinom.ppf(LEVELS, size[:, None], np.where(poisson, 0.5, share)[:, None])
    return np.asarray(np.where(poisson[:, None], stats.poisson.ppf(LEVELS, mean[:, None]), found))


@pytest.mark.parametrize(("least", "most"), [(-3, 1), (1, 3), (3, 6)])
def test_quantiles_of_counts_are_those_of_scipy(least: float, most: float) -> None:
    rng = np.random.default_rng(0)
    mean = 10 ** rng.uniform(least, most, 300)
    excess = mean * 10 ** rng.uniform(-2, 1, 300)
    excess[::4] = 0.0
    found = quantiles(torch.tensor(mean), torch.tensor(excess), torch.tensor(LEVELS))
    np.testing.assert_array_equal(found.numpy(), scipy_quantiles(mean, excess))


def test_quantiles_keep_the_axes_and_do_not_depend_on_the_others() -> None:
    mean = torch.tensor([[0.2, 3.0, 5e4], [7.0, 900.0, 0.01]], dtype=torch.float64)
    levels = torch.tensor(LEVELS)
    whole = quantiles(mean, 0.4 * mean, levels)
    assert whole.shape == (2, 3, len(LEVELS))
    for row in range(2):
        for column in range(3):
            alone = quantiles(mean[row, column], 0.4 * mean[row, column], levels)
            assert torch.equal(whole[row, column], alone)
    assert (whole.diff(dim=-1) >= 0).all()
    own = torch.rand(2, 3, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    drawn = quantiles(mean, 0.4 * mean, own)
    for row in range(2):
        for column in range(3):
            expected = quantiles(mean[row, column], 0.4 * mean[row, column], own[row, column])
            assert torch.equal(drawn[row, column], expected)


def test_what_is_not_a_number_stays_so() -> None:
    found = quantiles(torch.tensor([torch.nan, 2.0]), torch.tensor([1.0, 0.0]), torch.tensor([0.5]))
    assert found[0].isnan().all()
    assert found[1].tolist() == [2.0]
