import json
from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecast.data.time.frequency import Frequency, business_days, clock
from forecast.data.time.grid import Grid
from forecast.data.time.inference import infer_frequency
from forecast.errors import ConfigError, DataError

ALL = ["15m", "1h", "6h", "1d", "2d", "1bd", "3bd", "1w", "2w", "1mo", "2mo", "1bm", "3bm", "1q", "1y"]
WEEKS = ["mon-fri", "sun-thu", "mon-sat", "sat-wed", "mon,wed,fri", "tue", "mon-sun"]


@pytest.mark.parametrize(
    ("text", "season_length"),
    [
        ("1m", 1440), ("15m", 96), ("30m", 48), ("1h", 24), ("2h", 12), ("7h", 3), ("24h", 7), ("48h", 4),
        ("1d", 7), ("7d", 1), ("30d", 1), ("1bd", 5), ("1w", 52), ("4w", 13), ("1mo", 12), ("2mo", 6), ("1q", 4),
        ("1y", 1), ("5y", 1), ("1bm", 12), ("3bm", 4),
    ],
)  # fmt: skip
def test_a_frequency_keeps_its_name_and_has_a_season(text: str, season_length: int) -> None:
    assert str(Frequency.parse(text)) == text
    assert Frequency.parse(text).season_length == season_length


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("H", "1h"), ("D", "1d"), ("MS", "1mo"), ("M", "1mo"), ("15min", "15m"), ("W", "1w"), ("B", "1bd"),
        ("QE", "1q"), ("0d", "1d"), ("BME", "1bm"), ("BMS", "1bm"), ("BM", "1bm"),
    ],
)  # fmt: skip
def test_a_name_of_another_library_gets_a_hint(text: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=rf"data\.freq: unknown frequency '{text}', did you mean {hint}\?"):
        Frequency.parse(text)


@pytest.mark.parametrize("text", ["", "often", "1.5h", "-1d", "1w-MON"])
def test_an_unknown_frequency_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ConfigError, match=r"Give a number and a unit: 15m \(minutes\), 1h, 1d"):
        Frequency.parse(text)


def grid_of(freq: str, *timestamps: str, time_zone: str | None = None) -> Grid:
    series = pl.Series(timestamps).str.to_datetime(time_unit="us")
    frequency = Frequency.parse(freq)
    return Grid.through(clock(series, frequency, time_zone).to_numpy(), frequency, time_zone)


@given(
    freq=st.sampled_from(ALL),
    anchor=st.datetimes(datetime(1800, 1, 1), datetime(2400, 1, 1)).map(
        lambda moment: moment.replace(second=0, microsecond=0)
    ),
    zone=st.sampled_from([None, "UTC", "Europe/Paris", "America/Sao_Paulo", "Asia/Kolkata", "Australia/Lord_Howe"]),
    first=st.integers(-200_000, 200_000),
)
def test_index_and_timestamp_are_inverse(freq: str, anchor: datetime, zone: str | None, first: int) -> None:
    frequency = Frequency.parse(freq)
    grid = Grid.through(np.array([int((anchor - datetime(1970, 1, 1)).total_seconds()) * 1_000_000]), frequency, zone)
    index = np.arange(first, first + 400)
    if frequency.base == "month":
        index = index // 100  # Python's datetime ends with the year 9999.
    timestamps = grid.timestamps(np.unique(index))
    assert timestamps.is_sorted()
    assert grid.index(timestamps).to_list() == np.unique(index).tolist()
    assert timestamps.dtype == pl.Datetime("us", zone)


@given(freq=st.sampled_from(ALL), phase=st.integers(0, 11), zone=st.sampled_from([None, "Europe/Paris"]))
def test_a_grid_survives_json(freq: str, phase: int, zone: str | None) -> None:
    frequency = Frequency.parse(freq)
    grid = Grid(frequency, {"microsecond": (phase,), "month": (phase, 31, 0)}.get(frequency.base, (phase, 0)), zone)
    again = Grid.from_json(json.loads(json.dumps(grid.to_json())))
    assert again == grid
    assert str(again) == str(grid)


def test_the_text_of_a_grid_is_stable() -> None:
    assert str(grid_of("1mo", "2013-01-31T06:00:00", time_zone="Europe/Paris")) == "1mo 0,31,21600000000 Europe/Paris"
    assert str(grid_of("15m", "2013-01-31T06:05:00")) == "15m 300000000 naive"


def test_local_days_of_23_and_25_hours_are_one_step_each() -> None:
    local = pl.datetime_range(datetime(2013, 3, 30), datetime(2013, 4, 2), "1d", time_zone="Europe/Paris", eager=True)
    utc = local.dt.convert_time_zone("UTC")
    assert utc.diff().drop_nulls().to_list() == [timedelta(hours=24), timedelta(hours=23), timedelta(hours=24)]
    for column in (local, utc):
        grid = Grid.through(
            clock(column, Frequency(1, "d"), "Europe/Paris").to_numpy(), Frequency(1, "d"), "Europe/Paris"
        )
        index = grid.index(column)
        assert index.diff().drop_nulls().to_list() == [1, 1, 1]
        assert (grid.timestamps(index.to_numpy()) == local).all()


@pytest.mark.parametrize(
    ("day", "hours"), [(datetime(2013, 3, 31), 23), (datetime(2013, 4, 1), 24), (datetime(2013, 10, 27), 25)]
)
def test_hours_of_a_local_day_are_regular(day: datetime, hours: int) -> None:
    column = pl.datetime_range(day, day + timedelta(days=1), "1h", closed="left", time_zone="Europe/Paris", eager=True)
    assert len(column) == hours
    grid = Grid(Frequency(1, "h"), (0,), "Europe/Paris")
    assert grid.index(column).diff().drop_nulls().to_list() == [1] * (hours - 1)
    assert (grid.timestamps(grid.index(column).to_numpy()) == column).all()


def test_a_day_without_midnight_starts_at_one() -> None:
    # In Sao Paulo the clock went from 2017-10-14 23:59 to 2017-10-15 01:00.
    days = pl.datetime_range(datetime(2017, 10, 13), datetime(2017, 10, 17), "1d", eager=True)
    grid = Grid(Frequency(1, "d"), (0, 0), "America/Sao_Paulo")
    index = grid.index(days)
    assert index.diff().drop_nulls().to_list() == [1, 1, 1, 1]
    local = grid.timestamps(index.to_numpy())
    assert local.dt.hour().to_list() == [0, 0, 1, 0, 0]
    assert (grid.index(local) == index).all()


def test_naive_hours_of_a_time_zone_are_read_once_and_skipped_ones_are_null() -> None:
    texts = ["2013-03-31T01:00", "2013-03-31T02:00", "2013-03-31T03:00", "2013-10-27T02:00"]
    grid = Grid(Frequency(1, "h"), (0,), "Europe/Paris")
    index = grid.index(pl.Series(texts).str.to_datetime(time_unit="us"))
    assert index[1] is None
    assert index[2] - index[0] == 1
    assert grid.timestamps(np.array([index[3]])).dt.dst_offset()[0] == timedelta(hours=1)


@pytest.mark.parametrize(
    ("freq", "timestamps", "off_grid"),
    [
        ("1mo", ["2012-01-31", "2012-02-29", "2013-02-28", "2012-04-30"], "2012-02-28"),
        ("1mo", ["2013-04-30", "2013-06-30"], "2013-07-30"),
        ("1mo", ["2013-01-30", "2013-02-28", "2013-03-30"], "2013-03-31"),
        ("1q", ["2012-03-31", "2012-06-30", "2012-09-30", "2012-12-31"], "2012-05-31"),
        ("1y", ["2012-02-29", "2013-02-28"], "2012-02-28"),
        ("1y", ["2012-12-31", "2013-12-31"], "2012-12-30"),
        ("1w", ["2013-01-02", "2013-01-09"], "2013-01-10"),
        ("2w", ["2013-01-02", "2013-01-16"], "2013-01-09"),
        ("1bd", ["2013-01-03", "2013-01-04", "2013-01-07"], "2013-01-05"),
        ("1bm", ["2013-02-28", "2013-03-29", "2013-04-30", "2013-06-28"], "2013-05-30"),
        ("1bm", ["2013-02-01", "2013-06-03", "2013-09-02"], "2013-09-01"),
        ("3bm", ["2013-03-29", "2013-06-28"], "2013-04-30"),
        ("1d", ["2013-01-01T06:00", "2013-01-02T06:00"], "2013-01-03T07:00"),
        ("15m", ["2013-01-01T00:05", "2013-01-01T00:20"], "2013-01-01T00:30"),
    ],
)
def test_rows_lie_on_the_grid_of_most_rows(freq: str, timestamps: list[str], off_grid: str) -> None:
    grid = grid_of(freq, *timestamps)
    column = pl.Series([*timestamps, off_grid]).str.to_datetime(time_unit="us")
    index = grid.index(column)
    assert index.null_count() == 1
    assert index[-1] is None
    assert (grid.timestamps(index.drop_nulls().to_numpy()) == column[:-1]).all()


def test_business_days_skip_weekends() -> None:
    grid = grid_of("1bd", "2013-01-03")
    friday = grid.index(pl.Series(["2013-01-04"]).str.to_datetime(time_unit="us")).to_numpy()
    assert grid.timestamps(friday + np.array([0, 1, 5, -5])).dt.to_string("%Y-%m-%d").to_list() == [
        "2013-01-04", "2013-01-07", "2013-01-11", "2012-12-28",
    ]  # fmt: skip


def mask_of(week: str) -> list[bool]:
    return [day in business_days(week) for day in range(7)]


@pytest.mark.parametrize("week", WEEKS)
def test_business_days_are_those_of_the_week(week: str) -> None:
    days = np.arange("2012-12-20", "2014-02-10", dtype="M8[D]")
    open_days = days[np.is_busday(days, weekmask=mask_of(week))]
    frequency = Frequency.parse("1bd", week)
    grid = Grid(frequency, (0, 0), None)
    index = grid.index(pl.Series(days).cast(pl.Datetime("us")))
    assert index.is_not_null().to_list() == np.is_busday(days, weekmask=mask_of(week)).tolist()
    assert index.drop_nulls().diff().drop_nulls().unique().to_list() == [1]
    assert grid.timestamps(index.drop_nulls().to_numpy()).dt.date().to_list() == open_days.tolist()
    before = np.busday_offset(days, 0, roll="backward", weekmask=mask_of(week))
    floor = grid.floor_of(days.astype("M8[us]").astype(np.int64))
    assert grid.timestamps(floor).dt.date().to_list() == before.tolist()
    assert frequency.season_length == len(business_days(week))


@pytest.mark.parametrize("week", WEEKS)
@pytest.mark.parametrize("last", [True, False])
def test_business_months_end_or_begin_on_a_business_day(week: str, last: bool) -> None:
    months = np.arange("1965-01", "2031-01", dtype="M8[M]")
    mask = mask_of(week)
    if last:
        expected = np.busday_offset((months + 1).astype("M8[D]") - 1, 0, roll="backward", weekmask=mask)
    else:
        expected = np.busday_offset(months.astype("M8[D]"), 0, roll="forward", weekmask=mask)
    rows = pl.Series(expected).cast(pl.Datetime("us"))
    frequency = Frequency.parse("1bm", week)
    grid = Grid.through(clock(rows, frequency, None).to_numpy(), frequency, None)
    assert grid.index(rows).diff().drop_nulls().unique().to_list() == [1]
    assert (grid.timestamps(grid.index(rows).to_numpy()) == rows).all()
    moments = rows + timedelta(hours=5)
    assert [grid.floor(moment) for moment in moments[:40]] == grid.index(rows)[:40].to_list()


def test_the_week_is_part_of_a_grid_and_the_usual_one_leaves_no_trace() -> None:
    usual, other = (Grid(Frequency.parse("1bd", week), (0, 0), None) for week in ("mon-fri", "sun-thu"))
    assert usual == Grid(Frequency(1, "bd"), (0, 0), None)
    assert usual.to_json() == {"frequency": "1bd", "phase": [0, 0], "time_zone": None}
    assert str(usual) == "1bd 0,0 naive"
    assert str(other) == "1bd 0,0 naive mon,tue,wed,thu,sun"
    assert Grid.from_json(json.loads(json.dumps(other.to_json()))) == other


@pytest.mark.parametrize(
    ("week", "days"),
    [
        ("Mon-Fri", (0, 1, 2, 3, 4)), ("sunday-thursday", (0, 1, 2, 3, 6)), ("fri-mon", (0, 4, 5, 6)),
        ("mon, wed,FRI", (0, 2, 4)), ("sat sun", (5, 6)), ("tue", (1,)), ("[mon,wed]", (0, 2)),
    ],
)  # fmt: skip
def test_a_week_is_named_by_its_days(week: str, days: tuple[int, ...]) -> None:
    assert business_days(week) == days


@pytest.mark.parametrize("week", ["", "1111100", "mon-", "mon-tue-wed", "mon,xyz"])
def test_an_unknown_week_is_refused_with_examples(week: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.weekmask: .* is no day of the week; .* mon-fri, sun-thu, mon-sat"):
        business_days(week)


@pytest.mark.parametrize("freq", ["1d", "1h", "1w", "1mo"])
def test_a_week_needs_business_days(freq: str) -> None:
    with pytest.raises(ConfigError, match=rf"data\.weekmask=sun-thu: steps of {freq} have no business days"):
        Frequency.parse(freq, "sun-thu")


def test_years_beyond_nanoseconds_work() -> None:
    years = pl.datetime_range(datetime(1600, 1, 1), datetime(2900, 1, 1), "1y", eager=True)
    grid = grid_of("1y", "1750-01-01")
    assert grid.index(years).to_list() == list(range(-370, 931))
    assert (grid.timestamps(np.arange(-370, 931)) == years).all()


@pytest.mark.parametrize(
    ("freq", "moment", "found"),
    [
        ("1h", "2013-01-01T05:59", "2013-01-01T05:00"),
        ("1d", "2013-01-01T05:59", "2013-01-01T00:00"),
        ("1bd", "2013-01-06T05:59", "2013-01-04T00:00"),
        ("1w", "2013-01-07T05:59", "2013-01-01T00:00"),
        ("1mo", "2013-01-31T05:59", "2013-01-01T00:00"),
        ("1q", "2013-03-31", "2013-01-01T00:00"),
        ("1y", "2012-12-31", "2012-01-01T00:00"),
        ("1y", "2013-01-01", "2013-01-01T00:00"),
    ],
)
def test_floor_is_the_last_step_at_or_before(freq: str, moment: str, found: str) -> None:
    grid = grid_of(freq, "2013-01-01")
    assert grid.timestamps(np.array([grid.floor(datetime.fromisoformat(moment))]))[0] == datetime.fromisoformat(found)


@given(
    freq=st.sampled_from(ALL),
    moment=st.datetimes(datetime(1900, 1, 1), datetime(2300, 1, 1)),
    day=st.integers(1, 31),
)
def test_floor_leaves_less_than_a_step(freq: str, moment: datetime, day: int) -> None:
    grid = grid_of(freq, f"2013-01-{day:02}T06:00:00")
    index = grid.floor(moment)
    before, after = grid.timestamps(np.array([index, index + 1]))
    assert before <= moment < after


def test_a_moment_is_local_unless_it_says_otherwise() -> None:
    grid = Grid(Frequency(1, "h"), (0,), "America/New_York")
    local = grid.floor(datetime(2013, 7, 1, 12))
    assert local == grid.floor(datetime(2013, 7, 1, 16, tzinfo=UTC))
    assert local == grid.floor(datetime(2013, 7, 1, 18, tzinfo=timezone(timedelta(hours=2))))
    assert local == grid.floor(datetime(2013, 7, 1, 12, tzinfo=ZoneInfo("America/New_York")))
    daily = Grid(Frequency(1, "d"), (0, 0), "America/New_York")
    assert daily.floor(datetime(2013, 7, 1, 3, tzinfo=UTC)) + 1 == daily.floor(datetime(2013, 7, 1))
    with pytest.raises(ConfigError, match="the panel has none"):
        Grid(Frequency(1, "h"), (0,), None).floor(datetime(2013, 7, 1, tzinfo=UTC))
    with pytest.raises(ConfigError, match="does not exist in America/New_York"):
        grid.floor(datetime(2013, 3, 10, 2, 30))


def infer(column: pl.Series, time_zone: str | None = None) -> str:
    return str(
        infer_frequency(np.zeros(len(column), dtype=np.int64), column.cast(pl.Datetime("us", _zone(column))), time_zone)
    )


def _zone(column: pl.Series) -> str | None:
    return column.dtype.time_zone if isinstance(column.dtype, pl.Datetime) else None


@given(
    freq=st.sampled_from(
        ["1m", "15m", "1h", "6h", "12h", "1d", "1bd", "1w", "2w", "1mo", "2mo", "1bm", "2bm", "1q", "1y", "5y"]
    ),
    anchor=st.datetimes(datetime(1800, 1, 1), datetime(2300, 1, 1)).map(
        lambda moment: moment.replace(second=0, microsecond=0)
    ),
    gaps=st.sets(st.integers(1, 58), max_size=12),
    zone=st.sampled_from([None, "Europe/Paris", "America/New_York"]),
    aware=st.booleans(),
)
def test_the_frequency_is_found_despite_gaps(
    freq: str, anchor: datetime, gaps: set[int], zone: str | None, aware: bool
) -> None:
    frequency = Frequency.parse(freq)
    grid = Grid.through(np.array([int((anchor - datetime(1970, 1, 1)).total_seconds()) * 1_000_000]), frequency, zone)
    column = grid.timestamps(np.array([step for step in range(60) if step not in gaps]))
    column = column if aware or zone is None or frequency.sub_daily else column.dt.replace_time_zone(None)
    assert infer(column.shuffle(seed=1), zone) == freq


@pytest.mark.parametrize(
    ("first", "last", "step", "found"),
    [
        (datetime(2013, 1, 1), datetime(2013, 2, 1), "4d", "4d"),
        (datetime(2012, 1, 1), datetime(2016, 1, 1), "364d", "52w"),
        (datetime(2012, 1, 1), datetime(2016, 1, 1), "1y", "1y"),
        (datetime(2013, 1, 7), datetime(2013, 1, 11), "1d", "1d"),
        (datetime(2013, 1, 6), datetime(2013, 1, 11), "1d", "1d"),
        (datetime(2013, 1, 5), datetime(2013, 1, 11), "1d", "1d"),
        (datetime(2013, 1, 7), datetime(2013, 1, 12), "1d", "1d"),
    ],
)
def test_plain_ranges_are_recognised(first: datetime, last: datetime, step: str, found: str) -> None:
    assert infer(pl.datetime_range(first, last, step, eager=True)) == found


def test_month_ends_are_monthly_and_quarterly() -> None:
    months = pl.datetime_range(datetime(2012, 1, 1), datetime(2014, 1, 1), "1mo", eager=True).dt.month_end()
    assert infer(months) == "1mo"
    assert infer(months.gather_every(3, 2)) == "1q"


def test_a_weekend_day_at_the_very_start_makes_days_of_business_days() -> None:
    week = pl.datetime_range(datetime(2013, 1, 7), datetime(2013, 1, 11), "1d", eager=True)
    weeks = pl.concat([week, week + timedelta(days=7), week + timedelta(days=14)])
    assert infer(weeks) == "1bd"
    assert infer(pl.concat([week[:1] - timedelta(days=1), weeks])) == "1d"


def test_periods_of_four_and_five_weeks_are_named_with_a_way_out() -> None:
    days = np.cumsum([0, *[28, 28, 35] * 8]) * 86_400_000_000
    column = pl.Series(days + 86_400_000_000 * 19000).cast(pl.Datetime("us"))
    with pytest.raises(
        DataError, match=r"are 28d \(67%\), 35d \(33%\): periods of 4 and 5 weeks \(a 4-4-5 calendar\).*data\.freq=1w"
    ):
        infer(column)
    months = pl.datetime_range(datetime(2022, 1, 1), datetime(2024, 1, 1), "1mo", eager=True)
    assert len(months) == len(column)
    assert infer(months) == "1mo"


def test_a_frequency_that_can_not_be_told_shows_the_evidence() -> None:
    hours = np.cumsum([0, 3, 2, 3, 2, 2, 5, 3, 2, 7])
    column = pl.Series(hours * 3_600_000_000).cast(pl.Datetime("us"))
    with pytest.raises(DataError, match=r"are 2h \(44%\), 3h \(33%\), 5h \(11%\), 7h \(11%\); give data\.freq"):
        infer(column)
    with pytest.raises(DataError, match=r"no series has two rows; give data\.freq"):
        infer(column[:1])
    seconds = pl.Series(np.arange(10) * 5_000_000).cast(pl.Datetime("us"))
    with pytest.raises(DataError, match=r"5s \(100%\)"):
        infer(seconds)
