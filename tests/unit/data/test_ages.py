"""How old the last observation of a series is, and how old it may be."""

from collections.abc import Callable
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from forecast.config import DataConfig, ScoreSettings
from forecast.data.ages import age_limit, ages, ended_series, have_ended
from forecast.data.ingest.load import load_panel
from forecast.data.ingest.loaded import Loaded
from forecast.data.time.frequency import Frequency
from forecast.data.time.grid import Grid
from forecast.data.windows import windows_at

Table, Load = Callable[..., pl.DataFrame], Callable[..., Loaded]


def make_table(series: dict[str, np.ndarray]) -> pl.DataFrame:
    """Return daily series from one day on; NaN is a null."""
    parts = [
        pl.DataFrame({"target": pl.Series(values).fill_nan(None)}).select(
            pl.lit(name).alias("series_id"),
            (pl.lit(datetime(2024, 1, 1)) + pl.duration(days=pl.int_range(pl.len()))).alias("timestamp"),
            "target",
        )
        for name, values in series.items()
    ]
    return pl.concat(parts)


def read_table(table: pl.DataFrame, horizon: int) -> Loaded:
    data = DataConfig(freq="1d", max_reject_share=1.0, end_share=0.0)
    return load_panel(table.lazy(), data, horizon)


def grid_of(freq: str, moments: list[datetime], zone: str | None = None) -> tuple[Grid, int]:
    """Return a grid through some moments, and the index of the last one."""
    grid = Grid.through(
        pl.Series(moments, dtype=pl.Datetime("us")).to_physical().to_numpy(), Frequency.parse(freq), zone
    )
    return grid, grid.floor(moments[-1])


@pytest.mark.parametrize(
    ("freq", "cutoff", "max_age", "steps"),
    [
        ("1d", datetime(2024, 3, 1), "1d", 1),
        ("1d", datetime(2024, 3, 1), "60d", 60),
        ("1d", datetime(2024, 3, 1), "12h", 0),
        ("1d", datetime(2024, 3, 1), "1mo", 29),
        ("1d", datetime(2024, 3, 1), "1y", 366),
        ("1h", datetime(2024, 3, 1, 5), "2d", 48),
        ("1h", datetime(2024, 3, 1, 5), "90m", 1),
        ("1w", datetime(2024, 3, 4), "8w", 8),
        ("1w", datetime(2024, 3, 4), "20d", 2),
        ("1mo", datetime(2024, 3, 1), "6mo", 6),
        ("1mo", datetime(2024, 3, 1), "60d", 2),
        ("1mo", datetime(2024, 3, 1), "59d", 1),
        ("1q", datetime(2024, 4, 1), "2y", 8),
        ("1bd", datetime(2024, 3, 4), "1w", 5),
        ("1bd", datetime(2024, 3, 4), "2d", 0),
        ("1d", datetime(2024, 3, 1), "99999y", 99999 * 365.2425),
        ("1d", datetime(2024, 3, 1), 7, 7),
        ("1d", datetime(2024, 3, 1), "auto", 28),
    ],
)
def test_a_duration_is_the_steps_whose_timestamps_are_within_it(
    freq: str, cutoff: datetime, max_age: int | str, steps: float
) -> None:
    grid, index = grid_of(freq, [cutoff])
    assert age_limit(max_age, 28, grid, index) == pytest.approx(steps, rel=1e-5)


def test_any_age_will_do_without_a_limit() -> None:
    grid, index = grid_of("1d", [datetime(2024, 3, 1)])
    assert age_limit(None, 28, grid, index) is None


@pytest.mark.parametrize(("freq", "steps"), [("1d", 10), ("1h", 239)])
def test_days_count_on_the_local_clock(freq: str, steps: int) -> None:
    # The clocks of Berlin go forward on 31 March, from 2 to 3.
    cutoff = datetime(2024, 4, 5, 22) if freq == "1h" else datetime(2024, 4, 6)
    grid, _ = grid_of(freq, [cutoff], "Europe/Berlin")
    index = grid.floor(datetime(2024, 4, 6))
    assert age_limit("10d", 1, grid, index) == steps
    skipped = grid.floor(datetime(2024, 4, 2, 2))
    assert age_limit("2d", 1, grid, skipped) == {"1d": 2, "1h": 47}[freq]


def test_settings_are_steps_durations_auto_or_none() -> None:
    def read(value: object) -> object:
        return ScoreSettings.model_validate({"max_age": value}).max_age

    assert ScoreSettings().max_age == "auto"
    assert [read(value) for value in (0, "14", "90d", "6mo", "auto", "none", None)] == [
        0,
        14,
        "90d",
        "6mo",
        "auto",
        None,
        None,
    ]
    for wrong in (-1, "-1", 2.5, True, "90 days", "0d", "1bd", "d", "", "always", [3]):
        with pytest.raises(ValidationError, match=r"number of steps|must be a number|0 or more steps"):
            read(wrong)


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=12), min_size=1, max_size=4), st.integers(0, 14))
def test_ages_are_those_of_a_loop_over_the_series(observed: list[list[bool]], cutoff: int) -> None:
    series = {
        f"s{number}": np.where(seen, np.arange(len(seen), dtype=float), np.nan)
        for number, seen in enumerate(observed)
        if any(seen)
    }
    if not series:
        return
    panel = read_table(make_table(series), 1).panel
    first = int(panel.start.min())
    windows = windows_at(panel, first + cutoff)
    expected = []
    for row in windows.series:
        name, start = panel.series_id[row], int(panel.start[row]) - first
        values = series[name][np.flatnonzero(~np.isnan(series[name]))[0] :]
        steps = [start + step for step in np.flatnonzero(~np.isnan(values)) if start + step <= cutoff]
        expected.append(cutoff - max(steps))
    assert ages(panel, windows).tolist() == expected
    for limit in (0, 1, 5):
        assert have_ended(panel, windows, limit).tolist() == [age > limit for age in expected]
    assert not have_ended(panel, windows, None).any()


def test_a_profile_lists_the_series_without_a_value_within_the_default_context(table: Table, loaded: Load) -> None:
    series = {
        "alive": np.arange(200.0),
        "closed": np.arange(90.0),
        "old": np.arange(20.0),
        "zero": np.where(np.arange(200) < 100, 3.0, 0.0),
    }
    panel = loaded(table(series), 7).panel
    ended = ended_series(panel, 7)
    assert ended.series.rows() == [
        ("closed", datetime(2024, 1, 1) + timedelta(days=89), 110),
        ("old", datetime(2024, 1, 1) + timedelta(days=19), 180),
    ]
    assert str(ended) == f"2 of 4, without a value in the last {ended.limit} steps: closed, old"
    assert ended.limit == 56
    assert ended_series(panel, 7, 110).series["series_id"].to_list() == ["old"]
    assert ended_series(panel, 7, "120d").series["series_id"].to_list() == ["old"]
    assert str(ended_series(panel, 7, None)) == str(ended_series(panel, 7, 180)) == "none"
