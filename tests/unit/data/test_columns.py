"""Tables as other libraries keep them are read without settings."""

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from forecast.config import DataConfig
from forecast.data.ingest.load import load_panel
from forecast.data.sources.columns import recognise
from forecast.data.sources.frames import to_lazy
from forecast.errors import ConfigError, DataError

SERIES = {"a": [1.0, 2.0, 3.0, 4.0], "b": [5.0, 6.0, float("nan"), 8.0]}


def config(**data: Any) -> DataConfig:
    return DataConfig.model_validate(data)


def names(there: list[str], **data: Any) -> tuple[str, str, str]:
    found = recognise(there, config(**data)).columns
    return found.series_id, found.timestamp, found.target


@pytest.mark.parametrize(
    ("columns", "settings", "expected"),
    [
        ("series_id timestamp target", {}, "series_id timestamp target"),
        ("unique_id ds y x", {}, "unique_id ds y"),
        ("item_id timestamp target feat", {}, "item_id timestamp target"),
        ("series_id time y", {}, "series_id time y"),
        # All of our own names win: what else there is may be a covariate, or of no use.
        ("series_id timestamp target item_id y", {}, "series_id timestamp target"),
        # What a setting names wins, and what is a covariate is nothing else.
        ("unique_id ds y sold", {"columns": {"target": "sold"}}, "unique_id ds sold"),
        ("shop unique_id ds y", {"columns": {"series_id": "shop"}}, "shop ds y"),
        ("unique_id item_id ds y", {"static_covariates": ["item_id"]}, "unique_id ds y"),
        ("unique_id ds y target", {"past_covariates": ["target"]}, "unique_id ds y"),
        # What is under no known name is missed by the reader.
        ("shop day sold", {}, "series_id timestamp target"),
        # A column of a wide table may be a series whatever its name.
        ("time y target unique_id", {"layout": "wide"}, "series_id time target"),
    ],
)
def test_columns_are_known_by_their_names(columns: str, settings: Mapping[str, Any], expected: str) -> None:
    assert " ".join(names(columns.split(), **settings)) == expected


def test_what_may_be_two_columns_is_refused_with_all_of_them() -> None:
    with pytest.raises(DataError) as caught:
        names(["unique_id", "item_id", "ds", "target", "y"])
    assert str(caught.value) == (
        "the series_id may be in column 'unique_id' or 'item_id': set data.columns.series_id\n"
        "the target may be in column 'target' or 'y': set data.columns.target"
    )


def test_a_covariate_called_as_the_only_name_that_is_left_is_used_twice() -> None:
    with pytest.raises(ConfigError, match="used twice: target"):
        names(["unique_id", "ds", "target"], past_covariates=["target"])


def long(**renamed: str) -> pd.DataFrame:
    days = pd.date_range("2024-01-01", periods=4)
    parts = [pd.DataFrame({"series_id": name, "timestamp": days, "target": values}) for name, values in SERIES.items()]
    return pd.concat(parts, ignore_index=True).rename(columns=renamed)


def indexed() -> pd.DataFrame:
    return long(series_id="item_id").set_index("timestamp").rename_axis(None)


def wide() -> pd.DataFrame:
    return pd.DataFrame(SERIES, index=pd.date_range("2024-01-01", periods=4, name="time"))


@pytest.mark.parametrize(
    ("make", "data"),
    [
        (lambda: long(series_id="unique_id", timestamp="ds", target="y"), {}),
        (lambda: long(series_id="unique_id", timestamp="ds", target="y").set_index("unique_id"), {}),
        (lambda: long(series_id="item_id"), {}),
        (indexed, {}),
        (lambda: long(series_id="item_id").set_index(["item_id", "timestamp"]), {}),
        (wide, {"layout": "wide"}),
        (lambda: wide().rename_axis(None), {"layout": "wide"}),
        (lambda: wide().rename_axis(columns="component"), {"layout": "wide"}),
        (lambda: wide().to_period("D"), {"layout": "wide"}),
    ],
    ids=[
        "neuralforecast",
        "by unique_id",
        "gluonts",
        "by time",
        "AutoGluon",
        "darts",
        "index",
        "components",
        "periods",
    ],
)
def test_frames_of_other_libraries_give_the_same_panel(make: Callable[[], pd.DataFrame], data: dict[str, Any]) -> None:
    expected = load_panel(to_lazy(long()), config(freq="1d"), 1)
    found = load_panel(to_lazy(make()), config(freq="1d", **data), 1)
    assert found.panel.digest() == expected.panel.digest()
    assert_frame_equal(found.rejects, expected.rejects)


def test_a_table_with_a_column_per_series_is_told_how_to_read_it() -> None:
    with pytest.raises(DataError, match=r"no column 'series_id'[^$]*if each column is a series, set data\.layout=wide"):
        load_panel(to_lazy(wide()), config(), 1)


def test_ids_that_look_like_numbers_stay_text_in_csv_files_whatever_their_column(tmp_path: Any) -> None:
    from forecast.data.read import read_panel

    table = long(series_id="unique_id", timestamp="ds", target="y").replace({"unique_id": {"a": "007", "b": "7"}})
    pl.from_pandas(table).write_csv(tmp_path / "rows.csv")
    found = read_panel(config(path=str(tmp_path / "rows.csv")), 1)
    assert found.panel.series_id.tolist() == ["007", "7"]
    assert found.data.columns.series_id == "unique_id"
