"""Sums over a few quantiles, against what they stand for."""

from collections.abc import Sequence

import numpy as np
import pytest
from scipy.stats import laplace, nbinom, norm, poisson

from forecast.models.heads.quadrature import PHASES, expectation_levels

DECILES = tuple(k / 10 for k in range(1, 10))
LEVELS: list[Sequence[float]] = [(), (0.5,), DECILES, (0.025, 0.25, 0.5, 0.9, 0.99), (0.001, 0.5, 0.51)]


@pytest.mark.parametrize("levels", LEVELS)
def test_probabilities_sum_to_one_and_each_level_lies_within_its_own(levels: Sequence[float]) -> None:
    nodes, masses = (values.numpy() for values in expectation_levels(tuple(levels)))
    assert masses.sum() == pytest.approx(1, abs=1e-6)
    below = np.append(0, masses.cumsum())
    assert (below[:-1] < nodes).all()
    assert (nodes < below[1:]).all()
    assert set(np.float32(levels)) <= set(nodes)


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("distribution", [norm, laplace], ids=["normal", "laplace"])
def test_mean_and_variance_are_those_of_the_distribution(levels: Sequence[float], distribution: norm) -> None:
    nodes, masses = (values.double().numpy() for values in expectation_levels(tuple(levels)))
    values = distribution.ppf(nodes)
    assert masses @ values == pytest.approx(0, abs=0.02)
    assert masses @ values**2 == pytest.approx(distribution.var(), rel=0.02)


@pytest.mark.parametrize("mean", [0.1, 0.3, 1.0, 5.0])
def test_the_grids_together_have_the_mean_of_counts(mean: float) -> None:
    grids = [[values.double().numpy() for values in expectation_levels((), phase)] for phase in range(PHASES)]
    for counts in (poisson(mean), nbinom(0.5, 0.5 / (0.5 + mean))):
        made = np.mean([masses @ counts.ppf(nodes) for nodes, masses in grids])
        assert made == pytest.approx(mean, rel=0.05)
