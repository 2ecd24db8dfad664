"""Finer rows put together: what a period is, when it counts, and that every row is accounted for."""

from datetime import datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forecast.config import DataConfig
from forecast.data.ingest.aggregate import INCOMPLETE, NOT_OVER
from forecast.data.ingest.load import load_panel
from forecast.data.ingest.loaded import Loaded
from forecast.errors import ConfigError

FIRST = datetime(2024, 1, 1)


def hourly(values: Any, start: datetime = FIRST, series_id: str = "a", **columns: Any) -> pl.DataFrame:
    stamps = [start + timedelta(hours=step) for step in range(len(values))]
    data = {"series_id": [series_id] * len(values), "timestamp": stamps, "target": values}
    return pl.DataFrame({**data, **columns}, schema_overrides={"timestamp": pl.Datetime("us"), "target": pl.Float64})


def load(frame: pl.DataFrame, how: str, freq: str = "1d", horizon: int = 1, **data: Any) -> Loaded:
    config = DataConfig.model_validate({"freq": freq, "aggregate": how, "max_reject_share": 1.0} | data)
    loaded = load_panel(frame.lazy(), config, horizon)
    counts = loaded.counts
    assert counts.rows_in == frame.height
    assert counts.rows_in == counts.rows_kept + counts.rows_rejected + counts.rows_future + counts.rows_after_until
    return loaded


def reasons(loaded: Loaded) -> dict[str, int]:
    return dict(loaded.rejects.group_by("reason").len().sort("reason").rows())


@pytest.mark.parametrize(("how", "expected"), [("sum", [276, 852]), ("mean", [11.5, 35.5]), ("last", [23, 47])])
def test_hours_become_days(how: str, expected: list[float]) -> None:
    loaded = load(hourly(np.arange(48.0)), how)
    assert loaded.panel.target.tolist() == expected
    assert loaded.panel.frame()["timestamp"].to_list() == [FIRST, FIRST + timedelta(days=1)]
    assert loaded.counts.rows_kept == 48
    assert loaded.data.season_length == 7


def test_a_period_that_is_not_over_does_not_count() -> None:
    for how in ("sum", "mean", "last"):
        loaded = load(hourly(np.ones(60)), how)
        assert len(loaded.panel.target) == 2
        assert reasons(loaded) == {NOT_OVER: 12}
    until = load(hourly(np.ones(96)), "sum", until=FIRST + timedelta(hours=47))
    assert until.panel.target.tolist() == [24, 24]
    assert (until.counts.rows_after_until, until.rejects.height) == (48, 0)


def test_a_sum_of_regular_rows_needs_all_of_them_and_a_mean_does_not() -> None:
    frame = hourly(np.ones(24 * 4)).filter(~pl.int_range(pl.len()).is_in([30, 31]))
    frame = frame.with_columns(target=pl.when(pl.int_range(pl.len()) == 50).then(None).otherwise("target"))
    loaded = load(frame, "sum")
    assert np.array_equal(loaded.panel.target, [24, np.nan, np.nan, 24], equal_nan=True)
    assert reasons(loaded) == {INCOMPLETE: 22 + 23}
    assert load(frame, "mean").panel.target.tolist() == [1, 1, 1, 1]


def test_single_sales_are_summed_whatever_their_times() -> None:
    rng = np.random.default_rng(0)
    minutes = np.sort(rng.integers(0, 60 * 24 * 5, 300))
    frame = pl.DataFrame(
        {
            "series_id": "a",
            "timestamp": [FIRST + timedelta(minutes=int(minute)) for minute in minutes],
            "target": np.ones(300),
        }
    )
    by_day = np.bincount(minutes // 1440)
    loaded = load(frame, "sum")
    assert loaded.panel.target.tolist() == by_day[:-1].tolist()
    assert reasons(loaded) == {NOT_OVER: int(by_day[-1])}
    # Whoever knows that the last day is over says so.
    assert load(frame, "sum", until=datetime(2024, 1, 5, 23, 59, 59)).panel.target.tolist() == by_day.tolist()


def test_days_of_23_and_25_hours_are_whole_days() -> None:
    start = pl.datetime_range(
        datetime(2024, 3, 29, 23), datetime(2024, 11, 3, 22), "1h", time_zone="UTC", eager=True
    ).dt.convert_time_zone("Europe/Paris")
    frame = pl.DataFrame({"series_id": "a", "timestamp": start, "target": 1.0})
    loaded = load(frame, "sum")
    days = loaded.panel.frame()
    assert days.filter(pl.col("target") != 24)["timestamp"].dt.date().cast(pl.String).to_list() == [
        "2024-03-31",
        "2024-10-27",
    ]
    assert days["target"].unique().sort().to_list() == [23, 24, 25]
    assert loaded.rejects.is_empty()
    weeks = load(frame, "sum", freq="1w").panel.frame()
    assert set(weeks["timestamp"].dt.weekday()) == {1}


def test_months_begin_on_the_first_and_quarters_in_january() -> None:
    days = [FIRST + timedelta(days=day) for day in range(366 + 31)]
    frame = pl.DataFrame({"series_id": "a", "timestamp": days, "target": 1.0})
    assert load(frame, "sum", freq="1mo").panel.target[:4].tolist() == [31, 29, 31, 30]
    quarters = load(frame, "sum", freq="1q")
    assert quarters.panel.target.tolist() == [91, 91, 92, 92]
    assert quarters.panel.frame()["timestamp"].dt.month().to_list() == [1, 4, 7, 10]


def test_covariates_are_averaged_and_categories_are_the_last() -> None:
    frame = hourly([*np.ones(48), *[None] * 24], rain=np.arange(72.0), event=["fair"] * 30 + ["match"] * 42)
    names = {"past_covariates": ["rain"], "known_covariates": ["event"]}
    loaded = load(frame, "sum", **names)
    assert loaded.panel.past.tolist() == [[11.5, 35.5]]
    assert loaded.categories == {"event": ("fair", "match")}
    assert loaded.panel.known.tolist() == [[1, 2, 2]]
    assert (loaded.counts.rows_kept, loaded.counts.rows_future) == (48, 24)


def test_a_repeated_hour_is_a_duplicate_and_not_summed_twice() -> None:
    frame = hourly(np.ones(48))
    loaded = load(pl.concat([frame, frame[5:7]]), "sum")
    assert loaded.panel.target.tolist() == [24, 24]
    assert reasons(loaded) == {"duplicate key": 2}


def test_settings_that_can_not_be() -> None:
    daily = pl.DataFrame(
        {"series_id": "a", "timestamp": [FIRST + timedelta(days=day) for day in range(9)], "target": 1.0}
    )
    with pytest.raises(ConfigError, match=r"rows every 1d can't be put together to data.freq=1h; give"):
        load(daily, "sum", freq="1h")
    with pytest.raises(ConfigError, match=r"rows can't be put together to 1bd; use data.freq=1d or 1w"):
        load(daily, "sum", freq="1bd")


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    how=st.sampled_from(["sum", "mean", "last"]),
    day=st.integers(3, 9),
    freq=st.sampled_from(["1d", "6h", "12h"]),
)
def test_a_window_of_the_aggregate_is_the_aggregate_of_the_window(seed: int, how: str, day: int, freq: str) -> None:
    """At the end of a period both orders give the same, for any order of rows, gaps and missing values included."""
    rng = np.random.default_rng(seed)
    parts = [
        hourly(rng.integers(0, 9, 240).astype(float), series_id=name, start=FIRST + timedelta(hours=int(late)))
        for name, late in zip("ab", rng.integers(0, 30, 2), strict=True)
    ]
    end = FIRST + timedelta(days=day)
    final = pl.col("timestamp") == end - timedelta(hours=1)  # The rows that show that the period is over.
    frame = pl.concat(parts).filter(final | pl.Series(rng.random(480) > 0.01))
    frame = frame.with_columns(target=pl.when(final | pl.Series(rng.random(frame.height) > 0.01)).then("target"))
    seen = frame.filter(pl.col("timestamp") < end).sample(fraction=1.0, shuffle=True, seed=seed)
    whole = load(frame, how, freq=freq).panel.frame().filter(pl.col("timestamp") < end).drop_nulls("target")
    if whole.is_empty():
        return
    window_first = load(seen, how, freq=freq).panel.frame()
    assert window_first.drop_nulls("target").equals(whole)
    assert load(frame, how, freq=freq, until=end - timedelta(hours=1)).panel.frame().equals(window_first)
