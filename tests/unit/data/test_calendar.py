import sys
from collections.abc import Mapping
from datetime import date, datetime, timedelta
from fractions import Fraction
from importlib.util import find_spec

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecast.config import DataConfig
from forecast.data.features.calendar import AROUND_HOLIDAYS, calendar_features, clock_shift, holiday_names
from forecast.data.panel import FloatArray
from forecast.data.time.frequency import Frequency
from forecast.data.time.grid import Grid
from forecast.errors import ConfigError

needs_holidays = pytest.mark.skipif(find_spec("holidays") is None, reason="needs the extra `holidays`")

PLAIN = DataConfig()
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
    found, values = calendar_features(grid_of(freq), 0, 9, PLAIN)
    assert found == names
    assert values.shape == (len(names), 10)
    assert values.dtype == np.float32


@needs_holidays
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
    data = DataConfig(
        fourier={4: 2, 24: 1, 168: 3, 365.2425: 2},
        holidays="DE-BY",
        holiday_names=("Christmas Day", "Good Friday", "New Year's Day"),
    )
    grid = grid_of(freq, zone)
    names, whole = calendar_features(grid, first - shift, first + length + shift, data)
    others, part = calendar_features(grid, first, first + length, data)
    assert others == names
    assert (part == whole[:, shift : shift + length + 1]).all()
    waves = [row for row, name in enumerate(names) if " sin " in name or " cos " in name]
    assert np.abs(whole[waves]).max() <= 1


def test_features_are_those_of_the_local_clock() -> None:
    grid = grid_of("1h", "America/New_York")
    first, last = grid.floor(datetime(2013, 3, 10, 0)), grid.floor(datetime(2013, 3, 11, 0))
    names, values = calendar_features(grid, first, last, PLAIN)
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
        names, values = calendar_features(grid, first, last, PLAIN)
        cosine = values[names.index("year cos 1")]
        assert cosine[0] == 1
        assert cosine[-1] == cosine[1]
        weekday = values[[names.index(name) for name in WEEK]]
        assert (weekday.sum(axis=0) == 1).all()
        assert weekday.argmax(axis=0)[0] == datetime(year, 1, 1).weekday()


def test_month_end_data_has_the_phase_of_its_month() -> None:
    ends = Grid(Frequency(1, "mo"), (0, 31, 0), None)
    starts = grid_of("1mo")
    assert (calendar_features(ends, 0, 30, PLAIN)[1] == calendar_features(starts, 0, 30, PLAIN)[1]).all()
    assert ends.timestamps(np.array([1]))[0] - starts.timestamps(np.array([1]))[0] == timedelta(days=27)


def rows_of(
    freq: str | Grid, begin: datetime, end: datetime, data: DataConfig, zone: str | None = None
) -> Mapping[str, FloatArray]:
    """Return the features, by name, of the steps from `begin` to `end`, both included."""
    grid = grid_of(freq, zone) if isinstance(freq, str) else freq
    names, values = calendar_features(grid, grid.floor(begin), grid.floor(end), data)
    return dict(zip(names, values, strict=True))


def test_what_is_not_asked_for_is_not_there() -> None:
    names, values = calendar_features(grid_of("1d"), 0, 9, DataConfig(calendar=False))
    assert names == ()
    assert values.shape == (0, 10)


def test_fourier_terms_are_sines_of_the_grid_index_shortest_period_first() -> None:
    data = DataConfig(calendar=False, fourier={365.25: 2, 7: 1})
    names, values = calendar_features(grid_of("1d"), -20, 500, data)
    yearly = [f"period 365.25 {wave} {harmonic}" for harmonic in (1, 2) for wave in ("sin", "cos")]
    assert names == ("period 7 sin 1", "period 7 cos 1", *yearly)
    day = np.arange(-20, 501)
    waves = [(wave, cycles) for cycles in (1 / 7, 1 / 365.25, 2 / 365.25) for wave in (np.sin, np.cos)]
    for row, (wave, cycles) in zip(values, waves, strict=True):
        np.testing.assert_allclose(row, wave(2 * np.pi * cycles * day), atol=1e-6)


@given(index=st.integers(-(10**12), 10**12), period=st.sampled_from([7.0, 24.0, 365.25, 8765.82]))
def test_fourier_terms_keep_their_phase_far_from_the_start(index: int, period: float) -> None:
    # Days, whose timestamps are not asked for: the years would be beyond any calendar.
    data = DataConfig(calendar=False, fourier={period: 1})
    _, values = calendar_features(grid_of("1d"), index, index, data)
    angle = 2 * np.pi * float(Fraction(index) / Fraction(period) % 1)
    np.testing.assert_allclose(values[:, 0], [np.sin(angle), np.cos(angle)], atol=1e-6)


@pytest.mark.parametrize("zone", ["America/New_York", "Europe/Paris", "Australia/Lord_Howe", "Asia/Kolkata"])
@pytest.mark.parametrize("period", [12, 24, 168])
def test_waves_of_whole_days_follow_the_local_clock(zone: str, period: int) -> None:
    grid = grid_of("30m", zone)
    first, last = grid.floor(datetime(2013, 1, 1)), grid.floor(datetime(2013, 12, 31))
    _, values = calendar_features(grid, first, last, DataConfig(calendar=False, fourier={2 * period: 2}))
    local = grid.timestamps(np.arange(first, last + 1)).dt.replace_time_zone(None)
    assert len(set(clock_shift(grid, first, last).tolist())) == (1 if zone == "Asia/Kolkata" else 2)
    # The same minute of the same cycle has the same phase, whatever the clock has done in between.
    cycle = local.to_physical().to_numpy() // 60_000_000 % (60 * period)
    order = np.argsort(cycle, kind="stable")
    same = np.diff(cycle[order]) == 0
    assert same.any()
    assert np.abs(np.diff(values[:, order])[:, same]).max() < 1e-6


def test_waves_that_are_not_of_days_do_not_follow_the_clock() -> None:
    tide = DataConfig(calendar=False, fourier={12.4206: 1})
    grid, naive = grid_of("1h", "America/New_York"), grid_of("1h")
    first, last = grid.floor(datetime(2013, 3, 9)), grid.floor(datetime(2013, 3, 12))
    assert (calendar_features(grid, first, last, tide)[1] == calendar_features(naive, first, last, tide)[1]).all()


def test_harmonics_shorter_than_two_steps_are_refused() -> None:
    calendar_features(grid_of("1d"), 0, 9, DataConfig(fourier={7: 3}))
    with pytest.raises(ConfigError, match=r"data\.fourier: a period of 7 steps has 3 harmonics at most \(given: 4\)"):
        calendar_features(grid_of("1d"), 0, 9, DataConfig(fourier={7: 4}))


US = {
    "New Year's Day": [date(2013, 1, 1)],
    "Martin Luther King Jr. Day": [date(2013, 1, 21)],
    "Washington's Birthday": [date(2013, 2, 18)],
    "Memorial Day": [date(2013, 5, 27)],
    "Independence Day": [date(2013, 7, 4)],
    "Labor Day": [date(2013, 9, 2)],
    "Columbus Day": [date(2013, 10, 14)],
    "Veterans Day": [date(2013, 11, 11)],
    "Thanksgiving Day": [date(2013, 11, 28)],
    "Christmas Day": [date(2013, 12, 25)],
}
"""The federal holidays of 2013."""


@needs_holidays
class TestHolidays:
    def days(self, flags: FloatArray, year: int = 2013) -> list[date]:
        assert set(np.unique(flags)) <= {0, 1}
        return [date(year, 1, 1) + timedelta(days=int(day)) for day in np.flatnonzero(flags)]

    def test_are_those_of_the_country(self) -> None:
        grid = grid_of("1d")
        names = holiday_names(grid, grid.floor(datetime(2013, 1, 1)), grid.floor(datetime(2013, 12, 31)), "US")
        assert names == tuple(sorted(US))
        data = DataConfig(calendar=False, holidays="US", holiday_names=names)
        rows = rows_of("1d", datetime(2013, 1, 1), datetime(2013, 12, 31), data)
        assert tuple(rows) == names + AROUND_HOLIDAYS
        assert {name: self.days(rows[name]) for name in names} == US
        dates = sorted(day for days in US.values() for day in days)
        # 1 January 2014 is one as well.
        assert self.days(rows["day before a holiday"]) == [day - timedelta(days=1) for day in dates[1:]] + [
            date(2013, 12, 31)
        ]
        assert self.days(rows["day after a holiday"]) == [day + timedelta(days=1) for day in dates]

    def test_of_a_part_of_a_country_are_more(self) -> None:
        found = {}
        for country in ("DE", "DE-BY", "DE-Bayern"):
            data = DataConfig(calendar=False, holidays=country)
            rows = rows_of("1d", datetime(2013, 1, 1), datetime(2013, 12, 31), data)
            found[country] = {name: self.days(rows[name]) for name in rows if name not in AROUND_HOLIDAYS}
        more = {name: days for name, days in found["DE-BY"].items() if name not in found["DE"]}
        assert found["DE"].items() <= found["DE-BY"].items()
        assert more["Epiphany"] == [date(2013, 1, 6)]
        assert more["Corpus Christi"] == [date(2013, 5, 30)]
        assert found["DE-Bayern"] == found["DE-BY"]

    def test_are_kept_under_one_name_when_moved(self) -> None:
        data = DataConfig(calendar=False, holidays="US")
        rows = rows_of("1d", datetime(2010, 12, 28), datetime(2011, 1, 5), data)
        assert set(rows) == {"New Year's Day", *AROUND_HOLIDAYS}
        assert rows["New Year's Day"].tolist() == [0, 0, 0, 1, 1, 0, 0, 0, 0]
        assert rows["day before a holiday"].tolist() == [0, 0, 1, 1, 0, 0, 0, 0, 0]
        assert rows["day after a holiday"].tolist() == [0, 0, 0, 0, 1, 1, 0, 0, 0]

    def test_of_which_two_fall_on_a_day_count_each(self) -> None:
        data = DataConfig(calendar=False, holidays="US-NY")
        rows = rows_of("1d", datetime(2021, 2, 14), datetime(2021, 2, 16), data)
        assert rows["Susan B. Anthony Day"].tolist() == [0, 1, 0]
        assert rows["Washington's Birthday"].tolist() == [0, 1, 0]
        assert rows["day before a holiday"].tolist() == [1, 0, 0]

    @pytest.mark.parametrize("zone", ["America/New_York", None, "Asia/Kolkata"])
    def test_last_from_midnight_to_midnight_of_the_local_clock(self, zone: str | None) -> None:
        data = DataConfig(calendar=False, holidays="US", holiday_names=("Christmas Day",))
        grid = grid_of("30m", zone)
        first, last = grid.floor(datetime(2013, 12, 23)), grid.floor(datetime(2013, 12, 28))
        _, values = calendar_features(grid, first, last, data)
        day = grid.timestamps(np.arange(first, last + 1)).dt.day().to_numpy()
        for row, date_of in zip(values, (25, 24, 26), strict=True):
            assert (row == (day == date_of)).all()

    def test_last_23_hours_when_the_clock_goes_forward(self) -> None:
        # On 31 March 2013, Easter Sunday, clocks go forward.
        data = DataConfig(calendar=False, holidays="SE", holiday_names=("Easter Sunday",))
        rows = rows_of("1h", datetime(2013, 3, 30), datetime(2013, 4, 2), data, "Europe/Stockholm")
        assert rows["Easter Sunday"].sum() == 23
        assert rows["day before a holiday"].sum() == 24

    def test_are_counted_in_weeks(self) -> None:
        data = DataConfig(calendar=False, holidays="US", holiday_names=("Christmas Day", "New Year's Day"))
        weeks = Grid(Frequency(1, "w"), (4, 0), None)
        rows = rows_of(weeks, datetime(2013, 12, 16), datetime(2014, 1, 6), data)
        assert rows["Christmas Day"].tolist() == [0, 1, 0, 0]
        assert rows["New Year's Day"].tolist() == [0, 0, 1, 0]
        assert rows["day before a holiday"].tolist() == [0, 1, 1, 0]
        assert rows["day after a holiday"].tolist() == [0, 1, 1, 0]

    @pytest.mark.parametrize("grid", [grid_of("1mo"), Grid(Frequency(1, "mo"), (0, 31, 0), None)])
    def test_are_counted_in_months_also_when_stamped_with_their_last_day(self, grid: Grid) -> None:
        data = DataConfig(calendar=False, holidays="US")
        rows = rows_of(grid, datetime(2013, 1, 31), datetime(2013, 12, 31), data)
        expected = {
            name: [sum(day.month == month for day in days) for month in range(1, 13)] for name, days in US.items()
        }
        assert {name: rows[name].tolist() for name in US} == expected
        assert rows["day before a holiday"].tolist() == [1, 1, 0, 0, 1, 0, 1, 0, 1, 1, 2, 2]
        assert rows["day after a holiday"].tolist() == [2, 1, 0, 0, 1, 0, 1, 0, 1, 1, 2, 1]

    @given(year=st.integers(1950, 2090), freq=st.sampled_from(["1d", "1w", "1mo", "1q", "5d"]))
    def test_are_the_same_days_for_any_step(self, year: int, freq: str) -> None:
        data = DataConfig(calendar=False, holidays="US")
        names = holiday_names(grid_of("1y"), year - 1970, year - 1966, "US")
        data = data.model_copy(update={"holiday_names": names})
        _, years = calendar_features(grid_of("1y"), year - 1970, year - 1966, data)
        grid = grid_of(freq)
        first = grid.floor(datetime(year, 1, 1))
        last = grid.floor(datetime(year + 4, 12, 31))
        _, values = calendar_features(grid, first, last, data)
        # Steps at both ends can reach into the years around.
        begin, end = grid.timestamps(np.array([first, last + 1])).to_list()
        slack = 0 if (begin, end) == (datetime(year, 1, 1), datetime(year + 5, 1, 1)) else 2
        difference = values.sum(axis=1) - years.sum(axis=1)
        assert ((difference >= 0) & (difference <= slack)).all()

    def test_of_business_days_have_friday_before_monday(self) -> None:
        data = DataConfig(calendar=False, holidays="US")
        # Friday 24 May to Wednesday 29 May; Monday 27 May is Memorial Day.
        rows = rows_of("1bd", datetime(2013, 5, 24), datetime(2013, 5, 29), data)
        assert rows["Memorial Day"].tolist() == [0, 1, 0, 0]
        assert rows["day before a holiday"].tolist() == [1, 0, 0, 0]
        assert rows["day after a holiday"].tolist() == [0, 0, 1, 0]

    def test_on_a_weekend_are_none_to_business_days(self) -> None:
        data = DataConfig(calendar=False, holidays="US")
        # Saturday 4 July 2020 is kept on Friday.
        rows = rows_of("1bd", datetime(2020, 7, 1), datetime(2020, 7, 7), data)
        assert rows["Independence Day"].tolist() == [0, 0, 1, 0, 0]
        assert rows["day before a holiday"].tolist() == [0, 1, 0, 0, 0]
        assert rows["day after a holiday"].tolist() == [0, 0, 0, 1, 0]
        grid = grid_of("1bd")
        first, last = grid.floor(datetime(2021, 12, 1)), grid.floor(datetime(2021, 12, 29))
        assert holiday_names(grid, first, last, "DE") == ()  # 25 and 26 December 2021 are a weekend.

    def test_keep_their_columns_in_other_years(self) -> None:
        grid = grid_of("1d")
        data = DataConfig(calendar=False, holidays="US")
        names = holiday_names(grid, grid.floor(datetime(2013, 1, 1)), grid.floor(datetime(2013, 12, 31)), "US")
        later = data.model_copy(update={"holiday_names": names})
        rows = rows_of("1d", datetime(2022, 6, 1), datetime(2022, 6, 30), later)
        assert tuple(rows) == names + AROUND_HOLIDAYS
        # Juneteenth came later: it is not among the names.
        assert not np.any(list(rows.values()))

    @pytest.mark.parametrize("index", [-700_000, -80_000, 270_000, 2_900_000, 5_000_000])
    def test_there_are_none_in_years_without_any(self, index: int) -> None:
        grid = grid_of("1d")
        assert holiday_names(grid, index, index + 400, "US") == ()
        data = DataConfig(calendar=False, holidays="US", holiday_names=("Christmas Day",))
        names, values = calendar_features(grid, index, index + 400, data)
        assert names == ("Christmas Day", *AROUND_HOLIDAYS)
        assert not values.any()

    @pytest.mark.parametrize(
        ("country", "message"),
        [
            ("us", r"unknown country 'us'; .*; did you mean US\?"),
            ("Germany", r"unknown country 'Germany'; .*; did you mean DE\?"),
            ("QQ", r"unknown country 'QQ'; give a code of two letters, .* a part of it$"),
            ("US-ny", r"US has no part 'ny', it has .*; did you mean NY\?"),
            ("DE-Bayren", r"DE has no part 'Bayren', it has .*; did you mean Bayern\?"),
            ("DE-", r"DE has no part '', it has BB, BE, .*more$"),
        ],
    )
    def test_of_an_unknown_country_are_refused(self, country: str, message: str) -> None:
        with pytest.raises(ConfigError, match=f"data.holidays: {message}"):
            holiday_names(grid_of("1d"), 0, 9, country)

    def test_unknown_to_the_country_are_refused(self) -> None:
        data = DataConfig(holidays="US", holiday_names=("Thanksgiving Day", "Chrismas Day"))
        with pytest.raises(ConfigError, match=r"'Chrismas Day' unknown in US, .*; did you mean Christmas Day\?"):
            calendar_features(grid_of("1d"), 0, 9, data)

    def test_need_a_package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "holidays", None)
        with pytest.raises(ConfigError, match=r"pip install 'gatecast\[holidays\]'"):
            holiday_names(grid_of("1d"), 123, 124, "AQ")
