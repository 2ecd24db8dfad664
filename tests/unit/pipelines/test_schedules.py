import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forecast.errors import ConfigError
from pipelines.jobs.command_line import CONF
from pipelines.scheduling.schedule_file import Due, Schedule, read

BERLIN = ZoneInfo("Europe/Berlin")


def schedule(cron: str, zone: str = "Europe/Berlin", **more: object) -> Schedule:
    return Schedule.model_validate({"cron": cron, "time_zone": zone, "flow": "promote"} | more)


def local(cron: str, first: str, last: str, zone: str = "Europe/Berlin") -> list[str]:
    """When a schedule is due from one local midnight to another, as a clock on the wall shows it."""
    after, until = (datetime.fromisoformat(day).replace(tzinfo=ZoneInfo(zone)) for day in (first, last))
    return [f"{at.astimezone(ZoneInfo(zone)):%d %H:%M%z}" for at in schedule(cron, zone).moments(after, until)]


def test_a_named_hour_is_neither_lost_nor_run_twice_when_the_clock_changes() -> None:
    assert local("30 2 * * *", "2024-03-30", "2024-04-02") == ["30 02:30+0100", "31 03:30+0200", "01 02:30+0200"]
    assert local("30 2 * * *", "2024-10-26", "2024-10-29") == ["26 02:30+0200", "27 02:30+0200", "28 02:30+0100"]
    assert local("30 1 * * *", "2024-11-02", "2024-11-05", "America/New_York") == [
        "02 01:30-0400",
        "03 01:30-0400",
        "04 01:30-0500",
    ]


def test_every_hour_is_every_hour_when_the_clock_changes() -> None:
    spring = local("30 * * * *", "2024-03-31", "2024-03-31T05:00")
    assert spring == ["31 00:30+0100", "31 01:30+0100", "31 03:30+0200", "31 04:30+0200"]
    autumn = local("30 * * * *", "2024-10-27T01:00", "2024-10-27T04:00")
    assert autumn == ["27 01:30+0200", "27 02:30+0200", "27 02:30+0100", "27 03:30+0100"]


@given(
    st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC)),
    st.sampled_from(["30 2 * * *", "0 3 * * *", "15 0 * * *", "59 23 * * *"]),
    st.sampled_from(["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Havana", "UTC"]),
)
def test_a_daily_schedule_is_due_once_on_each_day(start: datetime, cron: str, zone: str) -> None:
    found = schedule(cron, zone).moments(start, start + timedelta(days=40))
    days = [moment.astimezone(ZoneInfo(zone)).date() for moment in found]
    assert days == [days[0] + timedelta(days=number) for number in range(len(days))]
    assert len(days) in (39, 40, 41)


@settings(max_examples=30)
@given(st.datetimes(datetime(2024, 3, 29), datetime(2024, 11, 1), timezones=st.just(UTC)))
def test_moments_do_not_depend_on_where_a_range_is_cut(cut: datetime) -> None:
    both, first, last = schedule("*/20 * * * *"), cut - timedelta(hours=5), cut + timedelta(hours=5)
    assert both.moments(first, cut) + both.moments(cut, last) == both.moments(first, last)
    assert both.moments(last, first) == []
    assert both.next(first) == both.moments(first, last)[0]
    assert both.last(last) == both.moments(first, last)[-1]


def test_weekdays_are_those_of_cron() -> None:
    assert local("0 4 * * 0", "2024-03-01", "2024-03-11") == local("0 4 * * sun", "2024-03-01", "2024-03-11")
    assert local("0 4 * * 7", "2024-03-01", "2024-03-11") == ["03 04:00+0100", "10 04:00+0100"]
    assert [day[:2] for day in local("0 4 * * 5-7", "2024-03-01", "2024-03-09")] == ["01", "02", "03", "08"]
    assert [day[:2] for day in local("0 4 * * */2", "2024-03-03", "2024-03-10")] == ["03", "05", "07", "09"]


def test_the_next_29_february_is_found() -> None:
    leap = schedule("0 4 29 2 *", "UTC")
    assert leap.next(datetime(2024, 3, 1, tzinfo=UTC)) == datetime(2028, 2, 29, 4, tzinfo=UTC)
    assert leap.last(datetime(2024, 2, 28, tzinfo=UTC)) == datetime(2020, 2, 29, 4, tzinfo=UTC)


def test_cutoffs() -> None:
    due = datetime(2024, 3, 31, 0, 30, tzinfo=UTC)
    daily = schedule("30 2 * * *", cutoff="previous_day")
    assert daily.cutoff_of(due).isoformat() == "2024-03-30T23:59:59+01:00"
    assert daily.given(datetime(2024, 3, 31)).isoformat() == "2024-03-31T23:59:59+02:00"
    assert schedule("30 2 * * *").cutoff_of(due).isoformat() == "2024-03-31T01:30:00+01:00"
    assert schedule("30 2 * * *").given(datetime(2024, 3, 31, 12)).isoformat() == "2024-03-31T12:00:00+02:00"
    score = {"flow": "score", "overrides": ["a=b"], "cutoff": "previous_day"}
    end = daily.cutoff_of(due)
    assert schedule("30 2 * * *", **score).settings(end) == ["a=b", "score.cutoff=2024-03-30T23:59:59+01:00"]
    assert schedule("30 2 * * *", **score, naive=True).settings(end)[1] == "score.cutoff=2024-03-30T23:59:59"
    assert schedule("30 2 * * *", flow="train").settings(end) == ["data.until=2024-03-30T23:59:59+01:00"]
    assert daily.settings(end) == []


def test_a_trigger_looks_again_after_a_while() -> None:
    now = datetime(2024, 3, 1, 2, 29, 50, tzinfo=BERLIN)
    due = Due(schedule("30 2 * * *"), 30)
    assert due.get_next_fire_time(None, now) == now + timedelta(seconds=10)
    assert due.get_next_fire_time(None, now + timedelta(seconds=10)) == now + timedelta(seconds=40)


GOOD = """
schedules:
  nightly: {cron: 30 2 * * *, flow: score, overrides: [data.path=panel, output.path=scores]}
"""
BAD = """
schedules:
  often: {cron: 61 2 * * *, flow: promote}
  mixed: {cron: 0 0 1 * 1, flow: promote}
  short: {cron: 0 0, flow: promote}
  never: {cron: 0 0 30 2 *, flow: promote}
  friday: {cron: 0 0 * * fry, flow: promote}
  nowhere: {cron: 0 0 * * *, time_zone: Europe/Berlim, flow: promote}
  unknown: {cron: 0 0 * * *, flow: scroe}
  first: {cron: 0 0 * * *, flow: score, overrides: [data.path=panel, output.path=scores]}
  second: {cron: 0 1 * * *, flow: score, overrides: [data.path=panel, output.path=./scores/]}
  wrong: {cron: 0 1 * * *, flow: score, overrides: [data.pat=panel, output.path=other], catchup: all}
  settings: {cron: 0 1 * * *, flow: score, overrides: [data.pat=panel, output.path=other]}
"""


def test_all_mistakes_of_a_file_are_told_together(tmp_path: Path) -> None:
    file = tmp_path / "schedule.yaml"
    file.write_text(BAD)
    with pytest.raises(ConfigError) as raised:
        read(file)
    message = str(raised.value)
    assert "10 schedule(s) are wrong" in message
    for expected in (
        "often: 1 mistake",
        "not a cron expression",
        "has a day and a weekday",
        "has 2 fields",
        "is never due: there is no such day",
        "weekday 'fry'",
        "no such time zone; give an IANA name such as Europe/Berlin (given: 'Europe/Berlim')",
        "no such verb; there are: train, ",
        "second: writes",
        "as first does; choose another output.path",
        "catchup: unknown key; did you mean catch_up?",
        "data.pat: unknown key; did you mean data.path?",
    ):
        assert expected in message


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("output.path=a", "output.path=./a/", "as first does; choose another output.path"),
        (
            "output.path=a output.sink=sql output.uri=sqlite:///s.db",
            "output.path=a output.sink=sql output.uri=sqlite:///t.db",
            "as first does; choose another output.path",
        ),
        (
            "output.path=a output.sink=sql output.uri=sqlite:///s.db",
            "output.path=b output.sink=sql output.uri=sqlite:///./s.db",
            "second: writes the table forecasts of sqlite:///{here}/s.db, as first does; choose another output.table",
        ),
        (
            "output.path=a output.sink=sql output.uri=postgresql://me:hunter2@db/any",
            "output.path=b output.sink=sql output.uri=postgresql+psycopg://you@db:5432/any?sslmode=require",
            "writes the table forecasts of postgresql://db:5432/any, as first does; choose another output.table",
        ),
        (  # Rejects of the one are forecasts of the other.
            "output.path=a output.sink=sql output.uri=sqlite:///s.db",
            "output.path=b output.sink=sql output.uri=sqlite:///s.db output.table=forecasts_rejects",
            "writes the table forecasts_rejects of sqlite:///{here}/s.db, as first does; choose another output.table",
        ),
        (
            "output.path=a output.sink=sql output.uri=sqlite:///s.db",
            "output.path=b output.sink=sql output.uri=sqlite:///t.db",
            None,
        ),
        (
            "output.path=a output.sink=sql output.uri=postgresql://db/any",
            "output.path=b output.sink=sql output.uri=postgresql://db/other",
            None,
        ),
        (
            "output.path=a output.sink=sql output.uri=postgresql://db/any",
            "output.path=b output.sink=sql output.uri=postgresql://db/any output.table=others",
            None,
        ),
    ],
)
def test_schedules_do_not_share_a_folder_or_a_table(
    first: str, second: str, expected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "schedule.yaml"
    entries = {
        name: {"cron": "0 1 * * *", "flow": "score", "overrides": ["data.path=panel", *text.split()]}
        for name, text in (("first", first), ("second", second))
    }
    file.write_text(json.dumps({"schedules": entries}))
    if expected is None:
        assert [*read(file)[0]] == ["first", "second"]
        return
    with pytest.raises(ConfigError) as raised:
        read(file)
    assert expected.format(here=tmp_path) in str(raised.value)
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "No such file"),
        ("schedules: [", "schedule.path"),
        ("[a, b]", "not a mapping"),
        ("schedules: {}", "has no schedules"),
        (GOOD + "notfy: {}", "notfy: unknown key; did you mean notify?"),
        (GOOD + "notify: {webhook: {url: 'ftp://x'}}", "has to begin with http:// or https://"),
        (GOOD + "notify: {webhook: {url: 'http://x', secret_env: NOT_SET_AT_ALL}}", "NOT_SET_AT_ALL is not set"),
        (GOOD + "notify: {webhook: {url: '${oc.env:NOT_SET_AT_ALL}'}}", "NOT_SET_AT_ALL"),
    ],
)
def test_a_file_that_can_not_be_used_is_told(tmp_path: Path, text: str | None, expected: str) -> None:
    file = tmp_path / "schedule.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=expected):
        read(file)


def test_shared_settings_come_first(tmp_path: Path) -> None:
    file = tmp_path / "schedule.yaml"
    file.write_text("overrides: [registry.name=loads]\ntime_zone: Europe/Berlin\n" + GOOD)
    found, _ = read(file)
    assert found["nightly"].overrides == ("registry.name=loads", "data.path=panel", "output.path=scores")
    assert found["nightly"].zone == BERLIN


def test_the_example_is_right() -> None:
    found, notify = read(CONF / "schedule.yaml")
    assert {schedule.flow for schedule in found.values()} == {"data append", "score", "monitor", "refresh"}
    assert notify.events == ("failure", "breach", "rollback")
