"""Verdicts on observations: the rate of false alarms, and the forecast that each is judged by."""

from collections.abc import Callable
from datetime import datetime, timedelta
from statistics import NormalDist

import numpy as np
import polars as pl
import pytest

from forecast.data.ingest.loaded import Loaded
from forecast.data.windows import WindowIndex
from forecast.metrics.seasonal_naive import future_values
from forecast.monitoring.anomalies import LatestForecasts, conformal_p_values, normal_deviates
from forecast.monitoring.cutoffs import Cutoff, Part
from forecast.monitoring.drift import Span
from forecast.reports.monitor_sections import few_observations

LEVELS = tuple(k / 10 for k in range(1, 10))
NORMAL = np.array([NormalDist().inv_cdf(level) for level in LEVELS])
N, STEPS, RECENT = 30, 400, 100


def test_deviates_are_those_of_the_levels_and_rise_with_the_observation() -> None:
    rng = np.random.default_rng(0)
    quantiles = np.sort(rng.gamma(2, size=(50, 9)), axis=1)
    for number, deviate in enumerate(NORMAL):
        found = normal_deviates(quantiles[:, number], quantiles, LEVELS, np.zeros(50))
        np.testing.assert_allclose(found, deviate, atol=1e-12)
    values = np.linspace(-20, 40, 500)
    curve = normal_deviates(values, np.repeat(quantiles[:1], 500, axis=0), LEVELS, np.zeros(500))
    assert (np.diff(curve) > 0).all()
    other = normal_deviates(values * 3 + 5, np.repeat(quantiles[:1] * 3 + 5, 500, axis=0), LEVELS, np.zeros(500))
    np.testing.assert_allclose(other, curve)


def test_equal_quantiles_have_a_finite_deviate_unless_the_past_is_constant() -> None:
    zeros = np.zeros((3, 9))
    deviates = normal_deviates(np.array([0.0, 5.0, -5.0]), zeros, LEVELS, np.full(3, 0.5))
    assert deviates[0] == pytest.approx(0)
    assert deviates[1] == pytest.approx(NORMAL[-1] + 10) == -deviates[2]
    assert normal_deviates(np.array([0.0, 5.0, -5.0]), zeros, LEVELS, np.zeros(3))[1] == 1e6


def test_p_values_of_exchangeable_values_are_uniform() -> None:
    values = np.random.default_rng(1).standard_t(2, 40_000)
    p_values = conformal_p_values(values[:20_000], values[20_000:])
    for rate in (0.01, 0.1, 0.5):
        assert (p_values <= rate).mean() == pytest.approx(rate, rel=0.15)


def latest(
    values: np.ndarray, loaded: Callable[..., Loaded], table: Callable[..., pl.DataFrame], **forecasts: float
) -> LatestForecasts:
    """Forecasts of four steps from each fourth cutoff, and of eight from every eighth: quantiles around 0."""
    read = loaded(table({f"s{number:02d}": row for number, row in enumerate(values)}), 8)
    panel, last = read.panel, read.panel.last_index
    first = last - STEPS + 1
    result = LatestForecasts(panel, Span(first, last - RECENT + 1, last), LEVELS)
    spread = forecasts.get("spread", 1.0) * NORMAL
    for begin in range(0, STEPS, 4):
        horizon = min(8 if begin % 8 == 0 else 4, STEPS - begin)
        cutoff = first + begin - 1
        windows = WindowIndex(np.arange(len(values)), cutoff - panel.start)
        quantiles = np.broadcast_to(spread, (len(values), horizon, 9)) + (begin % 8 == 0) * forecasts.get("old", 0.0)
        part = Part(panel, windows, quantiles, future_values(panel, windows, horizon))
        result.add(part, Cutoff(cutoff, {}), np.ones(len(values)))
    return result


AGES = {"1-2": 2, "3-8": 8}


@pytest.mark.parametrize("spread", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("tails", [2.5, 100.0])
def test_false_alarms_have_the_chosen_rate_however_wrong_the_intervals_are(
    spread: float, tails: float, loaded: Callable[..., Loaded], table: Callable[..., pl.DataFrame]
) -> None:
    noise = np.random.default_rng(2).standard_t(tails, (N, STEPS)) * np.linspace(0.5, 2, N)[:, None]
    verdicts = latest(noise, loaded, table, spread=spread).verdicts(0.01, AGES)
    assert verdicts.height == N * RECENT
    assert 0.005 <= (verdicts["verdict"] == "anomaly").mean() <= 0.02


def test_what_is_far_off_is_an_anomaly_with_its_direction_and_the_largest_is_first(
    loaded: Callable[..., Loaded], table: Callable[..., pl.DataFrame]
) -> None:
    values = np.random.default_rng(3).normal(size=(N, STEPS))
    values[4, -7], values[9, -50] = 25.0, -12.0
    verdicts = latest(values, loaded, table).verdicts(0.01, AGES)
    assert verdicts["series_id"].head(2).to_list() == ["s04", "s09"]
    assert verdicts["verdict"].head(2).to_list() == ["anomaly"] * 2
    high, low = verdicts["size"].head(2)
    assert high == pytest.approx(25, rel=0.2)
    assert low == pytest.approx(-12, rel=0.2)
    assert verdicts["timestamp"][0] == datetime(2024, 1, 1) + timedelta(days=STEPS - 7)
    assert verdicts["pit"].head(2).to_list() == pytest.approx([1, 0])


def test_an_observation_has_one_verdict_by_the_latest_forecast_made_for_it(
    loaded: Callable[..., Loaded], table: Callable[..., pl.DataFrame]
) -> None:
    values = np.random.default_rng(4).normal(size=(N, STEPS))
    values[0, -10] = np.nan
    verdicts = latest(values, loaded, table, old=0.5).verdicts(0.01, AGES)
    assert verdicts.height == N * RECENT - 1
    assert not verdicts.select(pl.struct("series_id", "timestamp").is_duplicated().any()).item()
    assert verdicts["step"].max() == 4
    assert verdicts["timestamp"].to_list() == [
        cutoff + timedelta(days=step) for cutoff, step in verdicts.select("cutoff", "step").rows()
    ]


def test_a_rate_that_the_history_is_too_short_for_is_not_judged(
    loaded: Callable[..., Loaded], table: Callable[..., pl.DataFrame]
) -> None:
    values = np.random.default_rng(5).normal(size=(1, STEPS))
    forecasts = latest(values, loaded, table)
    assert set(forecasts.verdicts(0.001, AGES)["verdict"]) == {"few observations"}
    assert forecasts.verdicts(0.001, AGES)["p_value"].null_count() == RECENT
    assert "few observations" not in set(forecasts.verdicts(0.01, AGES)["verdict"])
    assert forecasts.verdicts(None, AGES).is_empty()
    assert STEPS - RECENT < 1999
    assert "1,999" in few_observations(0.001)
