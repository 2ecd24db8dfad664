from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from forecast.config import DataConfig
from forecast.data.ingest.wide import to_long
from forecast.data.sources.tables import scan
from forecast.errors import DataError

START = datetime(2024, 1, 1)
OURS = {name: name for name in ("series_id", "timestamp", "target")}


def config(**data: Any) -> DataConfig:
    return DataConfig.model_validate({"layout": "wide", "columns": OURS} | data)


def wide(columns: Mapping[str, Any]) -> pl.DataFrame:
    height = len(next(iter(columns.values())))
    return pl.DataFrame({"timestamp": [START + timedelta(days=k) for k in range(height)], **columns})


names = st.text(min_size=1, max_size=8).filter(lambda name: name not in ("timestamp", "series_id", "price", "promo"))
values = st.lists(st.none() | st.floats(allow_nan=False) | st.integers(-1000, 1000).map(float), min_size=4, max_size=4)


@given(
    st.dictionaries(names | st.sampled_from(["target", "name", "value", "series a", "shared 0"]), values, min_size=1)
)
def test_each_value_of_each_series_is_a_row(series: dict[str, list[float | None]]) -> None:
    shared = {"price": [1.0, 2.0, None, 4.0], "promo": ["a", None, "b", "a"]}
    table = wide(shared | {name: pl.Series(found, dtype=pl.Float64) for name, found in series.items()})
    data = config(past_covariates=["promo"], known_covariates=["price"])
    long = to_long(table.lazy(), data).collect()
    assert long.columns == ["series_id", "timestamp", "promo", "price", "target"]
    assert long.height == 4 * len(series)
    for name, given_values in series.items():
        part = long.filter(series_id=name)
        assert_frame_equal(part.drop("series_id", "target"), table.select("timestamp", "promo", "price"))
        assert part["target"].to_list() == given_values


def test_the_columns_get_the_names_of_the_config() -> None:
    data = config(columns={"series_id": "meter", "timestamp": "timestamp", "target": "load"})
    long = to_long(wide({"007": [1, 2], "7": [0.5, None]}).lazy(), data)
    assert long.collect_schema() == {"meter": pl.String, "timestamp": pl.Datetime("us"), "load": pl.Float64}
    assert long.filter(pl.col("meter") == "7").collect()["load"].to_list() == [0.5, None]


def test_a_column_without_any_value_is_a_series_without_any(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("timestamp,a,b\n2024-01-01,1,\n2024-01-02,2,\n")
    long = to_long(scan(tmp_path / "a.csv"), config()).collect()
    assert long["target"].to_list() == [1.0, 2.0, None, None]
    assert to_long(wide({"a": [1], "b": [None]}).lazy(), config()).collect()["target"].to_list() == [1.0, None]


def test_known_covariates_may_be_in_another_table() -> None:
    data = config(known_covariates=["price"], known_path="prices.csv")
    assert to_long(wide({"a": [1]}).lazy(), data).collect().columns == ["series_id", "timestamp", "target"]
    shared = to_long(wide({"a": [1], "price": [3]}).lazy(), data).collect()
    assert shared["series_id"].to_list() == ["a"]


@pytest.mark.parametrize(
    ("columns", "settings", "message"),
    [
        (
            {"a": [1], "b": ["x"], "c": [True]},
            {},
            r"2 of 3 columns can't be series, which hold numbers: 'b' \(String\), 'c' \(Boolean\); drop them, or name",
        ),
        ({"a": [1], "series_id": ["x"]}, {}, r"the table has a column 'series_id' .*: set data\.layout=long"),
        ({"price": [1]}, {"past_covariates": ["price"]}, "no column besides the timestamp and the covariates"),
        (
            {"a": [1]},
            {"known_covariates": ["price"], "columns": OURS | {"timestamp": "day"}},
            r"no column 'day' \(data\.columns\.timestamp\)\n.*'price' \(data\.known_covariates\)\n.* timestamp, a",
        ),
    ],
)
def test_a_table_that_is_not_wide_is_refused(
    columns: Mapping[str, Any], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        to_long(wide(columns).lazy(), config(**settings))
