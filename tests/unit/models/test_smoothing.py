"""The bank of exponential smoothing filters: parity with references, and what it must not depend on."""

import numpy as np
import pytest
import torch

from forecast.models.linear import filter_bank, smoothing
from forecast.models.linear.filter_bank import FILTERS, MOTIONS, Filter

HORIZON = 8


def windows(n: int = 4, context: int = 40, season: int = 4, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    wave = np.sin(2 * np.pi * np.arange(context) / season)
    return 5 + rng.normal(size=(n, context)).cumsum(1) + 2 * rng.random((n, 1)) * wave


def bank(values: np.ndarray, season: int, observed: np.ndarray | None = None) -> smoothing.Smoothed:
    mask = np.ones(values.shape, dtype=bool) if observed is None else observed
    return smoothing.smooth(torch.from_numpy(np.where(mask, values, 0.0)), torch.from_numpy(mask), season)


def forecasts(values: np.ndarray, season: int, observed: np.ndarray | None = None) -> np.ndarray:
    smoothed = bank(values, season, observed)
    cost = torch.zeros(smoothed.error.shape[1], dtype=torch.float64)
    return smoothing.mixed(smoothed, smoothing.shares(smoothed, cost), HORIZON).numpy()


def holt(values: np.ndarray, level: float, trend: float, parameters: Filter) -> np.ndarray:
    """Damped trend exponential smoothing, as in Hyndman & Athanasopoulos, Forecasting: Principles and Practice, 8.2."""
    beta = parameters.level * parameters.trend
    for value in values:
        before = level
        level = parameters.level * value + (1 - parameters.level) * (level + parameters.damping * trend)
        share = beta / parameters.level
        trend = share * (level - before) + (1 - share) * parameters.damping * trend
    return level + trend * np.cumsum(parameters.damping ** np.arange(1, HORIZON + 1))


def test_each_filter_is_damped_trend_smoothing_from_where_it_begins() -> None:
    values = windows(3)
    level, trend = np.linspace(1, 2, 3 * len(MOTIONS)).reshape(3, -1), np.full((3, len(MOTIONS)), 0.3)
    trend *= [each.trend > 0 for each in MOTIONS]
    given = torch.from_numpy(values)
    ones = torch.ones_like(given)
    ends = filter_bank.run(
        given[:, None], ones, torch.from_numpy(level[:, None]), torch.from_numpy(trend[:, None]), ones
    )
    for row in range(3):
        for number, each in enumerate(MOTIONS):
            expected = holt(values[row], level[row, number], trend[row, number], each)
            ahead = np.cumsum(each.damping ** np.arange(1, HORIZON + 1))
            made = float(ends[0][row, 0, number]) + float(ends[1][row, 0, number]) * ahead
            np.testing.assert_allclose(made, expected, rtol=1e-10)


def test_gaps_of_some_windows_leave_the_errors_of_others() -> None:
    values, rng = torch.from_numpy(windows(2000, context=20)).float(), np.random.default_rng(0)
    seen = torch.from_numpy(rng.random((2000, 20)) > 0.3 * (np.arange(2000) % 3)[:, None]).float()
    level, trend = torch.ones(2000, 1, len(MOTIONS)), torch.tensor([0.1 * (each.trend > 0) for each in MOTIONS])
    together = (values * seen)[:, None], seen, level, trend.expand_as(level), seen * (torch.arange(20) > 5)
    found = filter_bank.run(*together)
    for row in range(0, 2000, 211):
        alone = filter_bank.run(*(part[row : row + 1] for part in together))
        assert all(torch.equal(part[row : row + 1], each) for part, each in zip(found, alone, strict=True))


def test_simple_smoothing_and_theta_are_those_of_statsforecast() -> None:
    models = pytest.importorskip("statsforecast.models")
    values = windows(1, context=60, season=1)[0]
    given = torch.from_numpy(values)[None]
    first = torch.full((1, 1, len(MOTIONS)), values[0], dtype=torch.float64)
    seen = torch.ones(1, 60, dtype=torch.float64)
    level, _, _ = filter_bank.run(given[:, None], seen, first, torch.zeros_like(first), seen)
    for number, each in enumerate(MOTIONS):
        if not each.trend and not each.drift and each.level < 1:
            expected = models.SimpleExponentialSmoothing(alpha=each.level).forecast(values, h=1)["mean"][0]
            assert float(level[0, 0, number]) == pytest.approx(expected, rel=1e-6)


def test_half_a_drift_on_a_line_is_half_of_its_slope_behind_no_lag() -> None:
    line = 3 + 0.5 * np.arange(120.0)
    paths = smoothing.paths(bank(line[None], 1), HORIZON)[0]
    for number, each in enumerate(FILTERS):
        if each.drift == 1 and each.level > 0.1:
            ahead = line[-1] + 0.5 * np.arange(1, HORIZON + 1)
            np.testing.assert_allclose(paths[number].numpy(), ahead, atol=0.02)


@pytest.mark.parametrize("season", [1, 4, 12])
def test_forecasts_move_and_scale_with_the_values(season: int) -> None:
    values = windows(season=season)
    np.testing.assert_allclose(forecasts(7 + 3 * values, season), 7 + 3 * forecasts(values, season), rtol=1e-9)
    np.testing.assert_allclose(forecasts(-values, season), -forecasts(values, season), rtol=1e-9, atol=1e-9)


def test_each_window_is_forecast_as_it_is_alone() -> None:
    values = windows(5)
    together = forecasts(values, 4)
    alone = np.concatenate([forecasts(values[row : row + 1], 4) for row in range(5)])
    np.testing.assert_allclose(together, alone, rtol=1e-12)


def test_the_mixture_is_the_mean_of_the_paths_by_shares() -> None:
    smoothed = bank(windows(), 4)
    shares = smoothing.shares(smoothed, torch.linspace(0, 3, smoothed.error.shape[1], dtype=torch.float64))
    np.testing.assert_allclose(shares.sum(1), 1.0)
    expected = (shares[..., None] * smoothing.paths(smoothed, HORIZON)).sum(1)
    np.testing.assert_allclose(smoothing.mixed(smoothed, shares, HORIZON), expected, rtol=1e-10)


def test_what_is_not_observed_is_not_looked_at() -> None:
    values, rng = windows(), np.random.default_rng(1)
    observed = rng.random(values.shape) > 0.2
    other = np.where(observed, values, 1e6 * rng.normal(size=values.shape))
    np.testing.assert_array_equal(forecasts(values, 4, observed), forecasts(other, 4, observed))


def test_steps_before_a_series_begins_change_nothing_but_rounding() -> None:
    values = windows(context=30, season=1)
    padded = np.concatenate([np.zeros((4, 10)), values], 1)
    observed = np.arange(40)[None] >= np.full((4, 1), 10)
    np.testing.assert_allclose(forecasts(padded, 1, observed), forecasts(values, 1), rtol=1e-9)


def test_a_season_without_noise_is_repeated() -> None:
    wave = np.tile([4.0, 7.0, 1.0, 0.0], 10)
    np.testing.assert_allclose(forecasts(wave[None], 4)[0], np.tile(wave[:4], 2), atol=0.05)


def test_noise_has_next_to_no_season() -> None:
    noise = np.random.default_rng(0).normal(size=(200, 60))
    season = bank(noise, 12).season[:, 0].numpy()
    assert season.std() < 0.25  # Of phase means alone 0.45.


def test_values_that_are_all_the_same_are_forecast_as_they_are() -> None:
    np.testing.assert_allclose(forecasts(np.full((2, 20), 3.0), 4), 3.0, rtol=1e-9)


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_windows_of_few_observations_are_forecast_near_them(count: int) -> None:
    values = np.array([[5.0] * 17 + [4.0, 6.0, 5.0]])
    observed = np.arange(20)[None] >= 20 - count
    made = forecasts(values, 4, observed)
    assert np.isfinite(made).all()
    assert (np.abs(made - (5.0 if count else 0.0)) <= 3.0).all()


def test_costs_of_a_panel_follow_its_errors_the_more_windows_there_are() -> None:
    prior = torch.zeros(3)
    error = torch.tensor([[1.0, 2.0, 4.0]]).repeat(50, 1)
    few, many = (smoothing.shared_cost(error, count, prior) for count in (1.0, 1000.0))
    assert many.argmin() == few.argmin() == 0
    assert (many[1:] > few[1:]).all()
    assert torch.equal(smoothing.shared_cost(error[:0], 0.0, prior), prior)
