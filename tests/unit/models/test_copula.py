import pytest
import torch

from forecast.models.postprocess.copula import coupled_ranks, rank_correlation

HORIZON = 24


def persistent(rho: float) -> torch.Tensor:
    """The correlations of an autoregressive process of first order."""
    step = torch.arange(HORIZON, dtype=torch.float64)
    return rho ** (step[:, None] - step).abs()


def test_the_correlation_of_errors_is_found_whatever_their_distribution_and_gaps() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(4_000, HORIZON, generator=generator, dtype=torch.float64)
    scores = scores @ torch.linalg.cholesky(persistent(0.8)).T
    observed = torch.rand(scores.shape, generator=generator) > 0.2
    observed[:, 3] = False
    found = rank_correlation(scores.exp().masked_fill(~observed, torch.nan), observed)
    expected = persistent(0.8)
    expected[3], expected[:, 3] = 0.0, 0.0
    expected[3, 3] = 1.0
    torch.testing.assert_close(found, expected, atol=0.08, rtol=0)
    assert torch.linalg.eigvalsh(found).min() > 0


def test_one_window_is_a_correlation_too() -> None:
    found = rank_correlation(torch.randn(1, HORIZON), torch.ones(1, HORIZON, dtype=torch.bool))
    torch.testing.assert_close(found, torch.eye(HORIZON, dtype=torch.float64))


@pytest.mark.parametrize("rho", [0.0, 0.8])
@pytest.mark.parametrize("count", [2, 100, 1000])
def test_each_step_takes_each_place_once_and_steps_are_coupled(rho: float, count: int) -> None:
    ranks = coupled_ranks(persistent(rho), count)
    assert torch.equal(ranks.sort(-1).values, torch.arange(count).expand(HORIZON, -1))
    if count > 2:
        sums = torch.special.ndtri((ranks.double() + 0.5) / count).sum(0)
        assert float(sums.std()) == pytest.approx(float(persistent(rho).sum().sqrt()), rel=0.1)
