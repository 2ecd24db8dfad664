"""Tables with a time zone where training had none, and without one where it had one."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import forecast as fc
from forecast.artifact import Artifact
from forecast.artifact import load as load_artifact
from forecast.config import SourceConfig
from forecast.errors import DataError

ZONE = "Europe/Berlin"
QUICK: dict[str, Any] = {
    "model": {"hidden_size": 4, "smoothing": False, "init": None},
    "fit": {"max_steps": 0},
}


@pytest.fixture(scope="module")
def naive(table: Callable[..., pl.DataFrame], weekly: Callable[..., dict[str, np.ndarray]]) -> pl.DataFrame:
    return table(weekly(3, 90))


@pytest.fixture(scope="module")
def zoned(naive: pl.DataFrame) -> pl.DataFrame:
    return naive.with_columns(pl.col("timestamp").dt.replace_time_zone(ZONE))


@pytest.fixture(scope="module")
def of_zoned(zoned: pl.DataFrame) -> Artifact:
    return fc.train(zoned, horizon=7, **QUICK).artifact


@pytest.fixture(scope="module")
def of_local(naive: pl.DataFrame) -> Artifact:
    return fc.train(naive, horizon=7, data={"time_zone": ZONE}, **QUICK).artifact


def kinds(table: pl.DataFrame, folder: Path) -> list[object]:
    """Return a table as users have it: frames, a file with text, a file with times."""
    text = table.with_columns(pl.col("timestamp").dt.to_string("iso"))
    text.write_csv(folder / "table.csv")
    table.write_parquet(folder / "table.parquet")
    return [table, table.to_pandas(), table.to_arrow(), text, folder / "table.csv", folder / "table.parquet"]


def test_a_table_without_a_zone_is_refused_where_training_had_one(
    of_zoned: Artifact, naive: pl.DataFrame, tmp_path: Path
) -> None:
    for table in kinds(naive, tmp_path):
        with pytest.raises(DataError) as refusal:
            fc.forecast(of_zoned, table)
        assert "column 'timestamp': its timestamps have no time zone, and those of training had one" in str(
            refusal.value
        )
        assert f".dt.tz_localize('{ZONE}')" in str(refusal.value)
        assert "data.local_time=true" in str(refusal.value)
    with pytest.raises(DataError, match="have no time zone"):
        fc.backtest(of_zoned, naive)


def test_a_table_with_a_zone_is_refused_where_training_had_none(
    zoned: pl.DataFrame, naive: pl.DataFrame, tmp_path: Path
) -> None:
    artifact = fc.train(naive, horizon=7, **QUICK).artifact
    for table in kinds(zoned, tmp_path):
        with pytest.raises(DataError, match="that the model was trained on had no time zone; drop the time zone"):
            fc.forecast(artifact, table)


def test_tables_with_a_zone_are_the_same_in_any(of_zoned: Artifact, zoned: pl.DataFrame, tmp_path: Path) -> None:
    expected = fc.forecast(of_zoned, zoned).frame
    assert expected["timestamp"].dtype == pl.Datetime("us", ZONE)
    other = zoned.with_columns(pl.col("timestamp").dt.convert_time_zone("Asia/Tokyo"))
    for table in [*kinds(zoned, tmp_path), *kinds(other, tmp_path)]:
        assert fc.forecast(of_zoned, table).frame.equals(expected)


def test_local_time_is_taken_where_it_was_in_training_or_is_asked_for(
    of_local: Artifact, of_zoned: Artifact, naive: pl.DataFrame, zoned: pl.DataFrame, tmp_path: Path
) -> None:
    expected = fc.forecast(of_local, naive).frame
    assert fc.forecast(of_local, zoned).frame.equals(expected)
    of_local.save(tmp_path / "model")
    assert fc.forecast(fc.load(tmp_path / "model"), naive).frame.equals(expected)
    naive.write_parquet(tmp_path / "naive.parquet")
    source = SourceConfig(path=str(tmp_path / "naive.parquet"), local_time=True)
    assert of_zoned.open(source).panel.digest() == of_local.open(source).panel.digest()


def test_models_of_earlier_releases_take_both(of_zoned: Artifact, naive: pl.DataFrame, zoned: pl.DataFrame) -> None:
    old = replace(of_zoned, data=of_zoned.data.model_copy(update={"local_time": None}))
    assert fc.forecast(old, naive).frame.equals(fc.forecast(old, zoned).frame)


def test_a_prepared_panel_keeps_what_its_table_had(
    of_zoned: Artifact, naive: pl.DataFrame, zoned: pl.DataFrame, tmp_path: Path
) -> None:
    expected = fc.forecast(of_zoned, zoned).frame
    fc.prepare(zoned, tmp_path / "zoned", horizon=7)
    assert fc.forecast(of_zoned, tmp_path / "zoned").frame.equals(expected)
    # Who prepared it has said which zone it is.
    fc.prepare(naive, tmp_path / "local", horizon=7, data={"time_zone": ZONE})
    assert fc.forecast(of_zoned, tmp_path / "local").frame.equals(expected)
    again = fc.train(tmp_path / "zoned", horizon=7, **QUICK).artifact
    assert again.data.local_time is False
    again.save(tmp_path / "model")
    assert load_artifact(tmp_path / "model").data.local_time is False
    with pytest.raises(DataError, match="have no time zone"):
        fc.forecast(again, naive)


def test_a_cutoff_is_a_moment_of_any_zone(of_zoned: Artifact, zoned: pl.DataFrame) -> None:
    local = fc.forecast(of_zoned, zoned, cutoff=datetime(2024, 3, 1)).frame
    utc = fc.forecast(of_zoned, zoned, cutoff=datetime(2024, 2, 29, 23, tzinfo=UTC)).frame
    assert local.equals(utc)
