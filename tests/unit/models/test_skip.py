"""The closed-form skip against NumPy's least squares."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from forecast.models.linear.ridge import (
    PENALTIES,
    Samples,
    apply_linear,
    downweight_flat_windows,
    huber_reweight,
    mean_season_solution,
    seasonal_solution,
    solve_ridge,
    spectra,
)

Problem = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def problem() -> Problem:
    """Windows [600, 10], targets [600, 4] around constants, weights and a prior."""
    rng = np.random.default_rng(0)
    window = rng.normal(size=(600, 10)) @ (np.eye(10) + 0.3 * rng.normal(size=(10, 10)))
    target = window @ rng.normal(size=(10, 4)) + rng.normal(size=(600, 4)) + rng.normal(size=4)
    return window, target, rng.uniform(0.2, 1.0, 600), rng.normal(size=(11, 4))


def samples(window: np.ndarray, target: np.ndarray, weight: np.ndarray, observed: np.ndarray | None = None) -> Samples:
    seen = np.ones_like(target) if observed is None else observed.astype(np.float64)
    columns = {"window": window, "target": target * seen, "observed": seen, "weight": weight, "spread": seen}
    columns |= {"location": np.zeros_like(weight), "divisor": np.ones_like(weight)}
    columns |= {"series": np.zeros(len(weight), dtype=np.int64), "number": np.arange(len(weight))}
    columns |= {"level": np.zeros_like(weight), "smooth": np.zeros_like(target)}
    return Samples(**{name: torch.from_numpy(values) for name, values in columns.items()})


def ridge(window: np.ndarray, target: np.ndarray, weight: np.ndarray, prior: np.ndarray, total: float) -> np.ndarray:
    """Least squares with a constant, on rows that pull towards the prior with the penalty `total`: the constant with a
    900th of it."""
    features = np.concatenate([window, np.ones((len(window), 1))], axis=1)
    root, pull = np.sqrt(weight)[:, None], np.sqrt(total) * np.diag([*np.ones(window.shape[1]), 1 / 30])
    stacked = np.concatenate([features * root, pull]), np.concatenate([target * root, pull @ prior])
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


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_without_the_constant_it_is_the_ridge_of_the_windows_alone(problem: Problem, share: float) -> None:
    window, target, weight, prior = problem
    observed = np.random.default_rng(1).random(target.shape) >= share
    given, start = samples(window, target, weight, observed), torch.from_numpy(prior)
    both = spectra(given)
    assert [known.constant for known in both] == [True, False]
    (with_it,) = solve_ridge(given, start, (1e-2,), spectrum=both[0])
    (alone,) = solve_ridge(given, start, (1e-2,), spectrum=both[1])
    torch.testing.assert_close(with_it, solve_ridge(given, start, (1e-2,))[0])
    np.testing.assert_array_equal(alone[-1], prior[-1])
    if not share:
        root, rest = np.sqrt(weight)[:, None], target - prior[-1]
        stacked = np.concatenate([window * root, np.sqrt(6.0) * np.eye(10)])
        expected = np.linalg.lstsq(stacked, np.concatenate([rest * root, np.sqrt(6.0) * prior[:-1]]), rcond=None)[0]
        np.testing.assert_allclose(alone[:-1], expected, rtol=1e-9, atol=1e-11)
    assert (with_it[-1] - start[-1]).abs().min() > 0.01


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
    window, prior = rng.normal(size=(5000, 3)), np.zeros((4, 2))
    target = window @ np.ones((3, 2)) + np.where(np.arange(5000) >= 4096, 5.0, 0.0)[:, None] * window[:, :1]
    (found,) = solve_ridge(samples(window, target, np.ones(5000)), torch.from_numpy(prior), (0.0,))
    np.testing.assert_allclose(found, ridge(window, target, np.ones(5000), prior, 0.0), rtol=1e-9)


@pytest.mark.parametrize(("context", "horizon", "season"), [(14, 7, 7), (20, 10, 7), (24, 30, 12), (5, 3, 1)])
def test_the_seasonal_prior_is_seasonal_naive(context: int, horizon: int, season: int) -> None:
    window = np.random.default_rng(0).normal(size=(8, context)).astype(np.float32)
    found = apply_linear(torch.from_numpy(window), seasonal_solution(context, horizon, season))
    expected = [[row[context - season + step % season] for step in range(horizon)] for row in window]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("context", "horizon", "season"), [(14, 7, 7), (23, 10, 7), (24, 30, 12), (5, 3, 1)])
def test_the_mean_season_is_of_all_whole_seasons(context: int, horizon: int, season: int) -> None:
    window = np.random.default_rng(0).normal(size=(8, context)).astype(np.float32)
    found = apply_linear(torch.from_numpy(window), mean_season_solution(context, horizon, season))
    mean = window[:, context % season :].reshape(8, -1, season).mean(1)
    np.testing.assert_allclose(found, mean[:, np.arange(horizon) % season], rtol=1e-5, atol=1e-6)


# --- the constant


def test_a_constant_is_learnt_whatever_the_penalty() -> None:
    # Walks that climb by 0.4 a step, each window in units around its last value.
    rng = np.random.default_rng(0)
    walk = np.cumsum(0.4 + rng.normal(size=(3000, 11)), axis=1)
    window, target = walk[:, :8] - walk[:, 7:8], walk[:, 8:] - walk[:, 7:8]
    prior = torch.zeros(9, 3, dtype=torch.float64)
    for found in solve_ridge(samples(window, target, np.ones(3000)), prior):
        made = apply_linear(torch.from_numpy(window), found)
        np.testing.assert_allclose(made.mean(0), target.mean(0), rtol=0.02)
    # The last one knows nothing else: the window's values are penalised.
    np.testing.assert_allclose(found[-1], 0.4 * np.arange(1, 4), atol=0.1)


# --- robust weights


def errors_of(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_a_few_broken_windows_hardly_bend_the_solution() -> None:
    rng = np.random.default_rng(0)
    window, prior = rng.normal(size=(2000, 10)), torch.zeros(11, 4, dtype=torch.float64)
    target = window @ rng.normal(size=(10, 4)) + 0.3 * rng.normal(size=(2000, 4))
    broken = target.copy()
    broken[::50] += 100.0 + 20.0 * window[::50, :1]
    clean, bent = (samples(window, values, np.ones(2000)) for values in (target, broken))
    made = huber_reweight(bent, prior)
    expected, plain, weighted = (solve_ridge(some, prior, (1e-3,))[0] for some in (clean, bent, made))
    assert errors_of(plain, expected) > 0.2
    assert errors_of(weighted, expected) < 0.02
    # Weights only: those of broken windows fall far, half of the others keep all of theirs, and none gains.
    whole = np.arange(2000) % 50 != 0
    weight = made.weight.numpy()
    assert weight[~whole].max() < 0.02
    assert weight.max() == 1.0
    assert 0.4 < (weight[whole] == 1.0).mean() < 0.65
    for name in ("window", "target", "observed"):
        assert torch.equal(getattr(made, name), getattr(bent, name))


def test_robust_weights_are_shares_of_those_given() -> None:
    rng = np.random.default_rng(1)
    window, target, prior = rng.normal(size=(400, 3)), rng.normal(size=(400, 2)), torch.zeros(4, 2, dtype=torch.float64)
    weight = rng.uniform(0.2, 1.0, 400)
    made = huber_reweight(samples(window, target, weight), prior).weight.numpy()
    assert ((made > 0) & (made <= weight)).all()
    # Of the mean error over observed steps only: what is hidden does not count.
    observed = np.ones_like(target)
    observed[:, 1] = rng.random(400) < 0.5
    hidden = np.where(observed > 0, target, 1e6)
    seen, other = (
        huber_reweight(samples(window, values, weight, observed), prior).weight for values in (target, hidden)
    )
    assert torch.equal(seen, other)


@pytest.mark.parametrize("size", [0.0, 1.0])
def test_equal_errors_leave_weights_alone(size: float) -> None:
    # Windows of zeros say nothing, and half of the targets is above what the constant may be, half below.
    weight = np.random.default_rng(0).uniform(0.2, 1.0, 80)
    weight[1::2] = weight[::2]
    side = size * np.where(np.arange(80) // 4 % 2, 1.0, -1.0)
    weight = np.repeat(weight[::8], 8)
    given = samples(np.zeros((80, 3)), np.repeat(side[:, None], 2, axis=1), weight)
    assert torch.equal(huber_reweight(given, torch.zeros(4, 2, dtype=torch.float64)).weight, given.weight)


def test_quiet_windows_count_less_than_the_others_of_their_series() -> None:
    rng = np.random.default_rng(0)
    weight, divisor = rng.uniform(0.2, 1.0, 300), np.where(np.arange(300) % 10 == 0, 1e-4, 1.0)
    series = np.repeat([0, 2], 150)  # Of the second, everything is a thousand times as large.
    given = samples(rng.normal(size=(300, 3)), rng.normal(size=(300, 2)), weight)
    scaled = divisor * np.where(series == 2, 1000.0, 1.0)
    given = replace(given, divisor=torch.from_numpy(scaled), series=torch.from_numpy(series))
    made = downweight_flat_windows(given).weight.numpy()
    np.testing.assert_array_equal(made[divisor == 1.0], weight[divisor == 1.0])
    # (divisor / usual)^2 / 0.5^2, of the root mean square of all.
    np.testing.assert_allclose(made[divisor < 1.0], (weight * 1e-8 / 0.9 / 0.25)[divisor < 1.0], rtol=1e-6)


def test_a_series_without_quiet_windows_keeps_its_weights() -> None:
    rng = np.random.default_rng(0)
    weight = rng.uniform(0.2, 1.0, 50)
    given = samples(rng.normal(size=(50, 3)), rng.normal(size=(50, 2)), weight)
    assert torch.equal(downweight_flat_windows(given).weight, given.weight)
