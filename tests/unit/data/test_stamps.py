"""Timestamps as other tools write them."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from forecast.config import DataConfig, load
from forecast.data.ingest import stamps
from forecast.data.ingest.load import load_panel
from forecast.data.ingest.loaded import Loaded
from forecast.data.prepared.prepare import prepare
from forecast.data.sources.open import Tables
from forecast.errors import ConfigError, DataError

MOMENTS = [datetime(2023, 1, 31, 12) + timedelta(days=k) for k in range(5)]
NOONS = [datetime(2023, 1, 31) + timedelta(days=k) for k in range(5)]


def read(values: Sequence[Any] | pl.Series, **data: Any) -> Loaded:
    frame = pl.DataFrame({"series_id": "a", "timestamp": values, "target": [float(k) for k in range(len(values))]})
    return load_panel(frame.lazy(), DataConfig.model_validate(data), 2)


def times(found: Loaded) -> list[datetime]:
    return found.panel.frame()["timestamp"].to_list()


@pytest.mark.parametrize(
    "form",
    ["%Y-%m-%d %H:%M:%S UTC", "%Y-%m-%d %H:%M:%S.000 UTC", "%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%d %H:%M:%S GMT",
     "%Y%m%dT%H%M%SZ", "%Y-%m-%d %H:%M:%S+00", "%Y-%m-%d %H:%M:%S+00:00", "%Y/%m/%d %H:%M:%S UTC"],
)  # fmt: skip
def test_times_of_utc_are_instants(form: str) -> None:
    found = read([moment.strftime(form) for moment in MOMENTS])
    assert found.data.time_zone == "UTC"
    assert times(found) == [moment.replace(tzinfo=UTC) for moment in MOMENTS]


@pytest.mark.parametrize("form", ["%Y-%m-%d", "%Y%m%d", "%Y/%m/%d", "%Y.%m.%d", "%Y-%m-%dT00:00", "%Y%m%dT0000"])
def test_dates_are_read_without_a_setting(form: str) -> None:
    found = read([moment.strftime(form) for moment in NOONS])
    assert times(found) == NOONS
    assert (found.data.freq, found.data.time_zone) == ("1d", None)


@pytest.mark.parametrize("kind", [pl.Int16, pl.Int64, pl.UInt32, pl.Float64, pl.String])
def test_years_are_their_first_day(kind: Any) -> None:
    found = read(pl.Series(range(1990, 2024)).cast(kind))
    assert found.data.freq == "1y"
    assert times(found) == [datetime(year, 1, 1) for year in range(1990, 2024)]


@pytest.mark.parametrize("kind", [pl.Int32, pl.Int64, pl.Float64, pl.String])
def test_dates_may_be_whole_numbers(kind: Any) -> None:
    found = read(pl.Series([int(f"{moment:%Y%m%d}") for moment in NOONS]).cast(kind))
    assert times(found) == NOONS


def test_quarters_are_their_first_day() -> None:
    found = read([f"{year}{mark}{quarter}" for year in (2022, 2023) for mark in ("Q",) for quarter in range(1, 5)])
    assert found.data.freq == "1q"
    assert times(found)[:3] == [datetime(2022, 1, 1), datetime(2022, 4, 1), datetime(2022, 7, 1)]
    assert stamps.parse(pl.Series(["2022-Q2"])).to_list() == [datetime(2022, 4, 1)]


@pytest.mark.parametrize(
    ("form", "values", "expected"),
    [
        ("%d/%m/%Y", [f"{moment:%d/%m/%Y}" for moment in NOONS], NOONS),
        ("%m/%d/%Y %H:%M", [f"{moment:%m/%d/%Y %H:%M}" for moment in MOMENTS], MOMENTS),
        ("%d.%m.%y", [f"{moment:%d.%m.%y}" for moment in NOONS], NOONS),
        ("%Y%m", [202301, 202302, 202303], [datetime(2023, k, 1) for k in (1, 2, 3)]),
        ("%b %Y", ["Jan 2023", "Feb 2023", "Mar 2023"], [datetime(2023, k, 1) for k in (1, 2, 3)]),
        ("%Y%m%d%H", [int(f"{moment:%Y%m%d%H}") for moment in MOMENTS], MOMENTS),
    ],
)
def test_a_format_says_how_to_read_them(form: str, values: list[Any], expected: list[datetime]) -> None:
    assert times(read(values, timestamp_format=form)) == expected


@pytest.mark.parametrize("unit", stamps.EPOCH_UNITS)
@pytest.mark.parametrize("kind", [pl.Int64, pl.String, pl.Float64])
def test_numbers_may_count_from_1970(unit: str, kind: Any) -> None:
    factor = 1000 ** stamps.EPOCH_UNITS.index(unit)
    values = pl.Series([int(moment.replace(tzinfo=UTC).timestamp()) * factor for moment in MOMENTS]).cast(kind)
    assert times(read(values, timestamp_format=unit)) == [moment.replace(tzinfo=UTC) for moment in MOMENTS]


def test_what_a_format_does_not_read_is_a_reject() -> None:
    values = [*(f"{moment:%d/%m/%Y}" for moment in NOONS), "2023-02-09", "soon", None]
    rejects = read(values, timestamp_format="%d/%m/%Y", max_reject_share=0.9).rejects
    assert sorted(rejects["reason"]) == ["null timestamp", "timestamp is not ISO 8601", "timestamp is not ISO 8601"]
    found = read([1_675_166_400, 1_675_252_800, None], timestamp_format="s", max_reject_share=0.9)
    assert found.rejects["reason"].to_list() == ["null timestamp"]
    zoned = [*(f"{moment:%d/%m/%Y %H:%M} +0100" for moment in MOMENTS), "soon"]
    found = read(zoned, timestamp_format="%d/%m/%Y %H:%M %z", max_reject_share=0.9)
    assert times(found)[0] == datetime(2023, 1, 31, 11, tzinfo=UTC)
    assert found.counts.rows_rejected == 1


UNREAD = {
    "one format": (["31/01/2023", "01/02/2023"], r"'31/01/2023'\); set data\.timestamp_format='%d/%m/%Y', which reads"),
    "two formats": (["01/02/2023", "02/02/2023"], r"'%d/%m/%Y', '%m/%d/%Y' all read it: set data\.timestamp_format"),
    "months as numbers": ([202301, 202302], r"2 numbers from 202301 to 202302, which are neither years .*%Y%m"),
    "seconds": ([1_675_166_400, 1_675_252_800], r"from 1970 on, set data\.timestamp_format=s \(of s, ms"),
    "milliseconds": ([1_675_166_400_000], r"data\.timestamp_format=ms"),
    "steps": ([1, 2, 3], "3 numbers from 1 to 3, which are neither years nor dates"),
    "fractions of years": ([2023.0, 2023.5], "neither years nor dates"),
    "no times": (["soon"], r"e\.g\. 'soon'\); set data\.timestamp_format \(strftime"),
    "no date": ([20231341], "neither years nor dates"),
}


@pytest.mark.parametrize("case", UNREAD)
def test_what_can_not_be_read_says_which_setting_helps(case: str) -> None:
    values, message = UNREAD[case]
    with pytest.raises(DataError, match=message):
        read(values)


def test_a_format_that_does_not_fit_or_does_not_exist_is_told() -> None:
    with pytest.raises(DataError, match=r"timestamp_format=%d/%m/%Y reads none of 2 values, e\.g\. '2023-01-01'"):
        read(["2023-01-01", "2023-01-02"], timestamp_format="%d/%m/%Y")
    with pytest.raises(DataError, match=r"timestamp_format=s reads none of 1 values"):
        read(["soon"], timestamp_format="s")
    with pytest.raises(ConfigError, match=r"timestamp_format: must be a format of strftime"):
        load(DataConfig, {"timestamp_format": "dd/mm/yyyy"})


def test_a_prepared_panel_knows_the_latest_time_however_it_is_written(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {
            "series_id": ["a"] * 5,
            "timestamp": [f"{moment:%d/%m/%Y %H:%M}" for moment in MOMENTS],
            "target": [1.0, 2.0, 3.0, 4.0, 5.0],
        }
    )
    data = DataConfig(freq="2d", aggregate="mean", max_reject_share=1.0, timestamp_format="%d/%m/%Y %H:%M")
    whole = load_panel(frame.lazy(), data, 1)
    found = prepare(Tables(frame.lazy()), data, 1, tmp_path, chunk_rows=2).loaded
    assert found.panel.digest() == whole.panel.digest()
