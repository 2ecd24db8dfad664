"""Alarms of series: how often they come without a reason, from the first nights of a version on, and what they see."""

from collections.abc import Callable
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest

from forecast.config import AlarmSettings
from forecast.data.ingest.loaded import Loaded
from forecast.monitoring.alarms import alarms_of
from forecast.monitoring.evaluation import _default_recent
from forecast.monitoring.step_scores import age_groups

SERIES = 100


def days(
    rng: np.random.Generator, *, nights: int, horizon: int, recent: int, season: int, walk: bool, shift: float = 0.0
) -> pl.DataFrame:
    """The days of a version that has forecast for some nights: random walks, or noise, by what is best for them.

    In the recent window all series are `shift` scales higher.
    """
    before = 4 * season
    values = rng.normal(size=(SERIES, before + nights + 1))
    values = values.cumsum(1) if walk else values
    scale = np.abs(values[:, season:before] - values[:, : before - season]).mean(1)
    values = values[:, before:]
    values[:, nights - recent + 1 :] += shift * scale[:, None]
    cutoff, step = (grid.ravel() for grid in np.meshgrid(np.arange(nights), np.arange(1, horizon + 1)))
    inside = (cutoff + step <= nights) & (cutoff + step > nights - 5 * recent)
    cutoff, step = cutoff[inside], step[inside]
    at = cutoff + step
    error = np.abs(values[:, at] - (values[:, cutoff] if walk else 0.0)) / scale[:, None]
    steps = pl.DataFrame(
        {
            "window": np.where(at > nights - recent, "recent", "history").tolist(),
            "day": [datetime(2024, 1, 1) + timedelta(days=day) for day in at.tolist()],
            "age": np.searchsorted(list(age_groups(None, horizon).values()), step),
        }
    )
    parts = [
        steps.with_columns(series_id=pl.lit(f"s{k}"), scaled=pl.Series(error[k]), n_scaled=1, n_steps=1)
        for k in range(SERIES)
    ]
    sums = pl.col("scaled", "n_scaled", "n_steps").sum()
    return pl.concat(parts).group_by("series_id", "window", "day", "age").agg(sums)


PANELS = [(7, 7, 7), (8, 4, 52), (6, 4, 12)]
"""Horizon, recent window and season: daily, weekly, monthly."""


@pytest.mark.parametrize("walk", [True, False])
@pytest.mark.parametrize(("horizon", "recent", "season"), PANELS)
def test_a_new_version_alarms_no_more_than_an_old_one(horizon: int, recent: int, season: int, walk: bool) -> None:
    """Forecasts of its first nights are young, in the history; those of the recent window are of all ages."""
    rng = np.random.default_rng(0)
    for nights in (2, recent + 3, recent + 4, recent + 6, 12, 20, 45):
        table = days(rng, nights=nights, horizon=horizon, recent=recent, season=season, walk=walk)
        found = alarms_of(table, AlarmSettings(), None, recent)
        # Alarms of many series are a breach above 0.1: 7 of 100 are rare at 3 %.
        assert found.filter(status="alarm").height <= 7
        assert found.height == SERIES
        judged = found.filter(pl.col("status").is_in(["alarm", "normal"])).height
        assert judged == (SERIES if nights >= recent + 4 else 0)
        if not judged:
            assert found["status"].is_in(["no reference", "few observations"]).all()


@pytest.mark.parametrize("walk", [True, False])
@pytest.mark.parametrize(("horizon", "recent", "season"), PANELS)
def test_what_is_five_scales_off_has_an_alarm(horizon: int, recent: int, season: int, walk: bool) -> None:
    rng = np.random.default_rng(1)
    shares = [
        alarms_of(
            days(rng, nights=20, horizon=horizon, recent=recent, season=season, walk=walk, shift=shift),
            AlarmSettings(),
            None,
            recent,
        )
        .filter(status="alarm")
        .height
        for shift in (0.0, 2.0, 5.0)
    ]
    assert shares[0] <= 7
    assert shares[0] < shares[1] < shares[2]
    assert shares[2] >= 40


def test_a_reference_is_of_the_ages_that_the_recent_steps_are_of() -> None:
    """Old forecasts are three times worse than young ones; only how many there are of each changes."""
    ages = {"history": {0: 6, 1: 6}, "recent": {0: 1, 1: 5}}
    rows = [
        {"series_id": "a", "window": window, "day": datetime(2024, 1, 1 + number), "age": age, "scaled": 1.0 + 2 * age}
        for window, counts in ages.items()
        for age, count in counts.items()
        for number in range(count)
    ]
    table = pl.DataFrame(rows).with_columns(n_scaled=1, n_steps=1)
    row = alarms_of(table, AlarmSettings(), None, 6).row(0, named=True)
    assert row["mase"] == row["median"] == pytest.approx((1 + 5 * 3) / 6)
    assert (row["status"], row["reference"], row["periods"], row["n_steps"]) == ("normal", "history", 6, 6)
    # Of an age that the history does not have, nothing is known; the backtest speaks for all.
    young = table.filter((pl.col("window") == "recent") | (pl.col("age") == 0))
    assert alarms_of(young, AlarmSettings(), None, 6)["status"].to_list() == ["no reference"]
    tested = pl.DataFrame({"series_id": ["a", "a"], "mase": [1.2, 1.2]})
    row = alarms_of(young, AlarmSettings(), tested, 6).row(0, named=True)
    assert (row["status"], row["reference"], row["n_steps"]) == ("normal", "backtest", 6)
    assert row["limit"] == pytest.approx(1.2 * (1 + 0.5 * 3))


def test_a_window_shorter_than_the_steps_that_are_asked_for_is_judged_whole() -> None:
    rows = [("history", day, 1.0) for day in range(1, 9)] + [("recent", 9, 9.0)]
    table = pl.DataFrame(rows, schema=["window", "day", "scaled"], orient="row")
    table = table.with_columns(series_id=pl.lit("a"), age=0, n_scaled=1, n_steps=1)
    assert alarms_of(table, AlarmSettings(), None, 1)["status"].to_list() == ["alarm"]
    assert alarms_of(table, AlarmSettings(), None, 7)["status"].to_list() == ["few observations"]


@pytest.mark.parametrize(
    ("freq", "every", "season", "horizon", "recent"),
    [
        ("1h", timedelta(hours=1), 24, 6, 24),
        ("1h", timedelta(hours=1), 168, 48, 168),
        ("1h", timedelta(hours=1), 24 * 28, 48, 168),
        ("1d", timedelta(days=1), 7, 3, 7),
        ("1d", timedelta(days=1), 365, 28, 28),
        ("1w", timedelta(days=7), 52, 8, 4),
        ("1w", timedelta(days=7), 52, 1, 4),
    ],
)
def test_recent_is_never_a_year(
    table: Callable[..., pl.DataFrame],
    loaded: Callable[..., Loaded],
    freq: str,
    every: timedelta,
    season: int,
    horizon: int,
    recent: int,
) -> None:
    panel = loaded(table({"a": np.arange(9.0)}, every=every), 1, freq=freq).panel
    assert _default_recent(panel, season, horizon) == recent
