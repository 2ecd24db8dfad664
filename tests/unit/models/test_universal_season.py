"""The season that values show where the frequency has none."""

import numpy as np
import polars as pl
import pytest

import forecast as fc
from forecast.models.universal.season import estimate_season


def waves(season: int, n_series: int = 4, length: int = 240) -> list[np.ndarray]:
    """Return series of several units with a season, a trend, a phase and noise each."""
    rng = np.random.default_rng(0)
    step, shape = np.arange(length), rng.standard_normal(season)
    return [
        10 ** rng.uniform(-3, 5)
        * (np.roll(np.resize(shape, length), rng.integers(season)) + rng.normal(0, 0.4, length) + 0.01 * step)
        for _ in range(n_series)
    ]


@pytest.mark.parametrize("season", [3, 7, 24, 52])
def test_the_shortest_period_is_the_season(season: int) -> None:
    assert estimate_season(waves(season)) == season


def test_missing_values_and_shocks_change_nothing() -> None:
    series, rng = waves(12), np.random.default_rng(0)
    for number, values in enumerate(series):
        values[40 * number : 40 * number + 30] = np.nan
        values[rng.integers(0, 240, 4)] *= 100
    assert estimate_season(series) == 12


@pytest.mark.parametrize(
    "series",
    [
        [],
        [np.full(100, 3.0)],
        [np.array([1.0, 2.0, 1.0])],
        [np.arange(100.0)],
        list(np.random.default_rng(1).standard_normal((20, 60))),
        list(np.random.default_rng(2).standard_normal((3, 500)).cumsum(1)),
    ],
)
def test_what_does_not_repeat_has_none(series: list[np.ndarray]) -> None:
    assert estimate_season(series) == 1


def test_a_season_that_half_of_the_series_do_not_hold_three_times_is_none() -> None:
    assert estimate_season(waves(24, length=60)) == 1


def test_a_forecast_without_a_season_takes_that_of_the_values() -> None:
    rng = np.random.default_rng(0)
    values = (np.tile([1.0, 5, 2, 8, 3, 9, 4, 0, 6, 7, 2], 12)[:130] + 0.1 * rng.standard_normal(130)).tolist()
    table = pl.DataFrame(
        {
            "series_id": "a",
            "timestamp": pl.date_range(pl.date(1900, 1, 1), pl.date(2029, 1, 1), "1y", eager=True),
            "target": values,
        }
    )
    estimated, stated = (
        fc.forecast("gatecast-nano", table, horizon=11, data={"freq": "1y", **setting}).frame["mean"].to_numpy()
        for setting in ({}, {"season_length": 11})
    )
    np.testing.assert_allclose(estimated, stated, rtol=1e-5)
