"""The closed-form skip against NumPy's least squares."""

import numpy as np
import pytest
import torch

from forecast.models.skip import PENALTIES, Samples, seasonal_solution, solve_ridge

Problem = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def problem() -> Problem:
    """Windows [600, 10], targets [600, 4], weights and a prior."""
    rng = np.random.default_rng(0)
    window = rng.normal(size=(600, 10)) @ (np.eye(10) + 0.3 * rng.normal(size=(10, 10)))
    target = window @ rng.normal(size=(10, 4)) + rng.normal(size=(600, 4))
    return window, target, rng.uniform(0.2, 1.0, 600), rng.normal(size=(10, 4))


def samples(window: np.ndarray, target: np.ndarray, weight: np.ndarray, observed: np.ndarray | None = None) -> Samples:
    seen = np.ones_like(target) if observed is None else observed.astype(np.float64)
    columns = {"window": window, "target": target * seen, "observed": seen, "weight": weight, "spread": seen}
    columns |= {"location": np.zeros_like(weight), "divisor": np.ones_like(weight)}
    return Samples(**{name: torch.from_numpy(values) for name, values in columns.items()})


def ridge(window: np.ndarray, target: np.ndarray, weight: np.ndarray, prior: np.ndarray, total: float) -> np.ndarray:
    """Least squares on rows that pull towards the prior with the penalty `total`."""
    root, pull = np.sqrt(weight)[:, None], np.sqrt(total) * np.eye(window.shape[1])
    stacked = np.concatenate([window * root, pull]), np.concatenate([target * root, pull @ prior])
    return np.linalg.lstsq(*stacked, rcond=None)[0]


def test_without_a_penalty_it_is_weighted_least_squares(problem: Problem) -> None:
    window, target, weight, prior = problem
    (found,) = solve_ridge(samples(window, target, weight), torch.from_numpy(prior), (0.0,))
    np.testing.assert_allclose(found, ridge(window, target, weight, prior, 0.0), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("with_prior", [False, True])
def test_each_penalty_gives_the_ridge_solution_around_the_prior(problem: Problem, with_prior: bool) -> None:
    window, target, weight, prior = problem
    prior = prior * with_prior
    found = solve_ridge(samples(window, target, weight), torch.from_numpy(prior))
    assert len(found) == len(PENALTIES)
    for penalty, solution in zip(PENALTIES, found, strict=True):
        expected = ridge(window, target, weight, prior, penalty * len(window))
        np.testing.assert_allclose(solution, expected, rtol=1e-9, atol=1e-11)


def test_a_large_penalty_gives_the_prior(problem: Problem) -> None:
    window, target, weight, prior = problem
    (found,) = solve_ridge(samples(window, target, weight), torch.from_numpy(prior), (1e12,))
    np.testing.assert_allclose(found, prior, rtol=1e-6)


@pytest.mark.parametrize("share", [0.02, 0.2])
def test_missing_targets_give_about_the_ridge_of_the_observed_ones(problem: Problem, share: float) -> None:
    window, target, weight, prior = problem
    observed = np.random.default_rng(1).random(target.shape) >= share
    (found,) = solve_ridge(samples(window, target, weight, observed), torch.from_numpy(prior), (1e-2,))
    (ignorant,) = solve_ridge(samples(window, target * observed, weight), torch.from_numpy(prior), (1e-2,))
    expected = np.empty_like(prior)
    for step in range(target.shape[1]):
        rows = observed[:, step]
        column = ridge(window[rows], target[rows, step : step + 1], weight[rows], prior[:, step : step + 1], 6.0)
        expected[:, step] = column[:, 0]
    # EM converges by a factor of about `share` a round.
    np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())
    assert np.abs(found.numpy() - expected).max() < 0.02 * np.abs(ignorant.numpy() - expected).max()


def test_more_windows_than_a_chunk_are_all_used() -> None:
    rng = np.random.default_rng(3)
    window = rng.normal(size=(5000, 3))
    target = window @ np.ones((3, 2)) + np.where(np.arange(5000) >= 4096, 5.0, 0.0)[:, None] * window[:, :1]
    (found,) = solve_ridge(samples(window, target, np.ones(5000)), torch.zeros(3, 2, dtype=torch.float64), (0.0,))
    np.testing.assert_allclose(found, np.linalg.lstsq(window, target, rcond=None)[0], rtol=1e-9)


@pytest.mark.parametrize(("context", "horizon", "season"), [(14, 7, 7), (20, 10, 7), (24, 30, 12), (5, 3, 1)])
def test_the_seasonal_prior_is_seasonal_naive(context: int, horizon: int, season: int) -> None:
    window = np.random.default_rng(0).normal(size=(8, context)).astype(np.float32)
    found = torch.from_numpy(window) @ seasonal_solution(context, horizon, season)
    expected = [[row[context - season + step % season] for step in range(horizon)] for row in window]
    np.testing.assert_array_equal(found, expected)
