"""Outliers: what is one, what is not, and that later values never decide."""

import logging
from collections.abc import Callable

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forecast.data.ingest.loaded import Loaded
from forecast.data.ingest.outliers import FINE, NO_INPUT, NO_TARGET, find_outliers, judge, outlier_mask
from forecast.data.profiling.profile import profile

LENGTH, SEASON = 200, 7
WINDOW, LAGS = 25, [SEASON, 2 * SEASON, 3 * SEASON]


def weekly(seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=LENGTH)
    return 100 + 10 * np.sin(2 * np.pi * np.arange(LENGTH) / SEASON) + noise


def flagged(values: np.ndarray) -> dict[int, int]:
    """The verdict on each step that is not fine."""
    verdict = judge(np.asarray(values, dtype=np.float64), WINDOW, LAGS)
    return {int(step): int(verdict[step]) for step in np.flatnonzero(verdict)}


@pytest.mark.parametrize("back", [1, 2, 50])
@pytest.mark.parametrize(
    ("value", "verdict"), [(1e6, NO_TARGET), (-1e9, NO_TARGET), (1000.0, NO_INPUT), (-9999.0, NO_TARGET)]
)
def test_a_glitch_is_an_outlier_wherever_it_is(value: float, verdict: int, back: int) -> None:
    values = weekly()
    values[-back] = value
    assert flagged(values) == {LENGTH - back: verdict}


@pytest.mark.parametrize("value", [80.0, 125.0, 0.0, 200.0])
def test_what_might_happen_is_none(value: float) -> None:
    values = weekly()
    values[150] = value
    assert flagged(values) == {}


def test_a_peak_that_comes_every_season_is_none_from_the_second_one_on() -> None:
    values = weekly()
    values[6::7] = 5_000.0
    assert set(flagged(values)) <= {6, 13, 20}
    december = np.where(np.arange(60) % 12 == 11, 400.0, 100.0) + np.random.default_rng(0).normal(size=60)
    assert set(np.flatnonzero(judge(december, 25, [12, 24, 36]))) == {11}


def test_a_new_level_is_taken_over_after_two_steps() -> None:
    values = weekly()
    values[150:] *= 1000
    assert set(flagged(values)) == {150, 151}


def test_codes_for_missing_values_are_outliers_however_many_follow_one_another() -> None:
    values = weekly()
    values[150:170] = -9999.0
    assert set(flagged(values)) == set(range(150, 170))
    usual = np.where(np.arange(LENGTH) % 2 == 0, 999.0, 1001.0)
    assert flagged(usual) == {}


def test_gaps_and_constants() -> None:
    values = weekly()
    values[100:140] = np.nan
    values[145] = 1e6
    assert set(flagged(values)) == {145}
    flat = np.full(LENGTH, 100.0)
    flat[150] = 1e6
    assert set(flagged(flat)) == {150}
    first_sale = np.zeros(LENGTH)
    first_sale[150] = 5.0
    assert flagged(first_sale) == {}
    assert flagged(np.full(LENGTH, np.nan)) == {}
    assert flagged(np.array([1e6])) == {}


@pytest.mark.parametrize("sigma", [0.5, 1.0, 1.5])
def test_of_skewed_values_and_rare_demands_few_are_taken_for_outliers(sigma: float) -> None:
    rng = np.random.default_rng(1)
    values = np.exp(sigma * rng.normal(size=20_000))
    assert np.mean(judge(values, WINDOW, LAGS) != FINE) < 0.01
    assert np.mean(judge(rng.binomial(1, 0.1, 20_000) * values, WINDOW, LAGS) != FINE) < 0.001
    assert not judge(np.cumsum(rng.normal(size=20_000)), WINDOW, LAGS).any()
    assert not judge(rng.poisson(0.2, 20_000).astype(float), WINDOW, LAGS).any()


@settings(max_examples=40, deadline=None)
@given(
    spikes=st.dictionaries(st.integers(0, LENGTH - 1), st.floats(-1e9, 1e9), max_size=6),
    cut=st.integers(1, LENGTH),
    seed=st.integers(0, 5),
)
def test_later_values_do_not_change_a_verdict(spikes: dict[int, float], cut: int, seed: int) -> None:
    values = weekly(seed)
    for step, value in spikes.items():
        values[step] = value
    whole = judge(values, WINDOW, LAGS)
    assert judge(values[:cut], WINDOW, LAGS).tolist() == whole[:cut].tolist()


def test_on_a_logarithmic_scale_a_zero_among_thousands_is_one(
    table: Callable[..., pl.DataFrame], loaded: Callable[..., Loaded]
) -> None:
    zero, thin = 50 * weekly(), 50 * weekly(1)
    zero[150] = 0.0
    thin[120] *= 0.5
    panel = loaded(table({"thin": thin, "zero": zero}), 1).panel
    assert outlier_mask(panel) is None
    mask = outlier_mask(panel, unit=10.0)
    assert mask is not None
    assert np.flatnonzero(mask).tolist() == [LENGTH + 150]


def test_log_and_profile_count_and_name_them(
    table: Callable[..., pl.DataFrame], loaded: Callable[..., Loaded], caplog: pytest.LogCaptureFixture
) -> None:
    values = weekly()
    values[[100, 150]] = 1e6, -9999.0
    with caplog.at_level(logging.WARNING):
        panel = loaded(table({"fine": weekly(1), "odd": values}), 1).panel
    (message,) = [record.getMessage() for record in caplog.records]
    assert "2 values of 1 series are outliers" in message
    assert "odd at 2024-04-10 00:00:00 (1e+06), odd at 2024-05-30 00:00:00 (-9999)" in message
    assert profile(panel, SEASON)["outliers"].to_list() == [0, 2]
    outliers = find_outliers(panel)
    assert (outliers.series.tolist(), outliers.value.tolist()) == ([1, 1], [1e6, -9999.0])
    assert panel.target.min() == -9999.0  # The rows stay.
