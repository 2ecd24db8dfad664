from datetime import datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecast.data.calendar import calendar_features
from forecast.frequency import Frequency, Grid

YEAR = ("year sin 1", "year cos 1", "year sin 2", "year cos 2")
DAY = ("day sin 1", "day cos 1", "day sin 2", "day cos 2", "day sin 3", "day cos 3")
WEEK = tuple(f"weekday {day}" for day in range(1, 8))


def grid_of(freq: str, zone: str | None = None) -> Grid:
    frequency = Frequency.parse(freq)
    return Grid(frequency, {"microsecond": (0,), "month": (0, 1, 0)}.get(frequency.base, (0, 0)), zone)


@pytest.mark.parametrize(
    ("freq", "names"),
    [
        ("15m", DAY + WEEK + YEAR),
        ("1h", DAY + WEEK + YEAR),
        ("6h", DAY[:4] + WEEK + YEAR),
        ("1d", WEEK + YEAR),
        ("2d", WEEK + YEAR),
        ("7d", YEAR),
        ("1bd", WEEK[:5] + YEAR),
        ("1w", YEAR),
        ("1mo", YEAR),
        ("1q", YEAR),
        ("6mo", YEAR[:2]),
        ("1y", ()),
        ("24mo", ()),
    ],
)
def test_each_frequency_has_the_features_that_vary_within_it(freq: str, names: tuple[str, ...]) -> None:
    found, values = calendar_features(grid_of(freq), 0, 9)
    assert found == names
    assert values.shape == (len(names), 10)
    assert values.dtype == np.float32


@given(
    freq=st.sampled_from(["15m", "1h", "1d", "1bd", "1w", "1mo", "1q"]),
    zone=st.sampled_from([None, "Europe/Paris", "America/Sao_Paulo"]),
    first=st.integers(-2000, 2000),
    length=st.integers(1, 60),
    shift=st.integers(0, 50),
)
def test_features_depend_on_the_timestamp_only(
    freq: str, zone: str | None, first: int, length: int, shift: int
) -> None:
    grid = grid_of(freq, zone)
    _, whole = calendar_features(grid, first - shift, first + length + shift)
    _, part = calendar_features(grid, first, first + length)
    assert (part == whole[:, shift : shift + length + 1]).all()
    assert np.abs(whole).max() <= 1


def test_features_are_those_of_the_local_clock() -> None:
    grid = grid_of("1h", "America/New_York")
    first, last = grid.floor(datetime(2013, 3, 10, 0)), grid.floor(datetime(2013, 3, 11, 0))
    names, values = calendar_features(grid, first, last)
    feature = dict(zip(names, values, strict=True))
    assert last - first == 23
    hour = np.array([0, 1, *range(3, 24), 0])
    np.testing.assert_allclose(feature["day sin 1"], np.sin(2 * np.pi * hour / 24), atol=1e-6)
    assert feature["weekday 7"].tolist() == [1.0] * 23 + [0.0]
    assert feature["weekday 1"].tolist() == [0.0] * 23 + [1.0]


def test_a_year_is_one_turn_whatever_its_length() -> None:
    grid = grid_of("1d")
    for year in (2012, 2013, 2900):
        first, last = grid.floor(datetime(year, 1, 1)), grid.floor(datetime(year, 12, 31))
        names, values = calendar_features(grid, first, last)
        cosine = values[names.index("year cos 1")]
        assert cosine[0] == 1
        assert cosine[-1] == cosine[1]
        weekday = values[[names.index(name) for name in WEEK]]
        assert (weekday.sum(axis=0) == 1).all()
        assert weekday.argmax(axis=0)[0] == datetime(year, 1, 1).weekday()


def test_month_end_data_has_the_phase_of_its_month() -> None:
    ends = Grid(Frequency(1, "mo"), (0, 31, 0), None)
    starts = grid_of("1mo")
    assert (calendar_features(ends, 0, 30)[1] == calendar_features(starts, 0, 30)[1]).all()
    assert ends.timestamps(np.array([1]))[0] - starts.timestamps(np.array([1]))[0] == timedelta(days=27)
