"""Targets that are classes, from tables and prepared panels."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from forecast.config import DataConfig, SourceConfig
from forecast.data.ingest.classes import with_trained_classes
from forecast.data.ingest.load import load_panel
from forecast.data.ingest.loaded import Loaded
from forecast.data.prepared.append import append
from forecast.data.prepared.open import open_prepared
from forecast.data.prepared.prepare import prepare
from forecast.data.read import read_panel
from forecast.data.sources.open import Tables
from forecast.errors import DataError

START = datetime(2024, 1, 1)
SKY = ["clear", "rain", None, "clear", "snow", "clear", "rain", "clear"]
CODES = [0, 1, np.nan, 0, 2, 0, 1, 0]
DATA = DataConfig(freq="1d")


def sky(labels: list[Any] | None = None, name: str = "a", first: int = 0) -> pl.DataFrame:
    labels = SKY if labels is None else labels
    times = [START + timedelta(days=first + step) for step in range(len(labels))]
    return pl.DataFrame({"series_id": [name] * len(labels), "timestamp": times, "target": labels})


def load(table: pl.DataFrame, categories: dict[str, tuple[str, ...]] | None = None, **data: Any) -> Loaded:
    return load_panel(table.lazy(), DataConfig.model_validate({"freq": "1d"} | data), 2, categories)


@pytest.mark.parametrize("dtype", [pl.String, pl.Categorical, pl.Enum(["snow", "rain", "clear"])])
def test_text_is_read_as_codes_of_its_sorted_values(dtype: Any) -> None:
    found = load(sky().cast({"target": dtype}))
    assert found.categories == {"target": ("clear", "rain", "snow")}
    np.testing.assert_array_equal(found.panel.target, CODES)
    assert found.panel.frame(classes=found.categories["target"])["target"].to_list() == SKY


def test_truth_values_are_classes_and_the_numbers_they_stand_for() -> None:
    found = load(sky([True, None, False, True]))
    assert found.categories == {"target": ("false", "true")}
    np.testing.assert_array_equal(found.panel.target, [1, np.nan, 0, 1])
    panel, categories = with_trained_classes(found.panel, found.categories, "target", "quantile")
    assert categories == {}
    assert panel is found.panel
    summed = load(sky([True] * 80), freq="2d", aggregate="sum")
    assert summed.categories == {}
    assert set(summed.panel.target) == {2.0}


def test_a_class_that_training_did_not_see_is_a_reject() -> None:
    table = pl.concat([sky(["hail" if label is None else label for label in SKY] * 8), sky(["hail"], "b")])
    known = {"target": ("clear", "rain", "snow")}
    found = load(table, known, max_reject_share=0.2)
    assert found.categories == known
    np.testing.assert_array_equal(found.panel.target[:64], CODES * 8)
    rejects = found.rejects
    assert set(rejects["reason"]) == {"unknown class 'hail'"}
    assert rejects["timestamp"].head(2).to_list() == [START + timedelta(days=2), START + timedelta(days=10)]
    counts = found.counts
    assert (counts.rows_in, counts.rows_kept, counts.rows_rejected) == (65, 56, 9)
    with pytest.raises(
        DataError, match=r"9 of 65 rows .* more than data.max_reject_share=0.05.*\n.*unknown class 'hail'"
    ):
        load(table, known)


def test_codes_are_those_of_training_whatever_the_table_holds() -> None:
    found = load(sky(["snow", "clear"]), {"target": ("clear", "rain", "snow")})
    np.testing.assert_array_equal(found.panel.target, [2, 0])
    numbers = load(sky([10, 3, None, -1]), {"target": ("-1", "3", "10")})
    np.testing.assert_array_equal(numbers.panel.target, [2, 1, np.nan, 0])


def test_whole_numbers_become_classes_where_a_head_asks_for_them() -> None:
    found = load(sky([10, 3, None, -1]))
    assert found.categories == {}
    panel, categories = with_trained_classes(found.panel, {}, "target", "categorical")
    assert categories == {"target": ("-1", "3", "10")}
    np.testing.assert_array_equal(panel.target, [2, 1, np.nan, 0])


@pytest.mark.parametrize(
    ("labels", "head", "message"),
    [
        (
            SKY,
            "normal",
            r"holds 3 classes \(clear, rain, snow\), and model.head=normal forecasts numbers; set model.he",
        ),
        (SKY, "bernoulli", r"for 2 classes at most, .* holds 3: clear, rain, snow; set model.head=categorical"),
        (["clear", "clear"], "categorical", r"for two classes or more, .* holds only clear"),
        ([1.0, 2.5, 3.5], "categorical", r"holds fractional numbers: 2.5, 3.5; set model.head=quantile"),
        (list(range(1001)), "categorical", r"for 1,000 classes at most, .* holds 1,001: 0, 1, .*; set model.head=quan"),
        ([1, 2, 3], "bernoulli", r"for 2 classes at most"),
    ],
)
def test_a_head_that_does_not_fit_its_target_is_refused(labels: list[Any], head: str, message: str) -> None:
    found = load(sky(labels))
    with pytest.raises(DataError, match=message):
        with_trained_classes(found.panel, found.categories, "target", head)


def test_a_model_of_numbers_refuses_classes_and_classes_refuse_to_be_averaged() -> None:
    with pytest.raises(DataError, match=r"must hold numbers, but is String"):
        load(sky(), {})
    with pytest.raises(DataError, match=r"data.aggregate=sum, data.lags=\(1,\) can't be"):
        load(sky(), aggregate="sum", freq="2d", lags=[1])
    last = load(sky(["clear", "rain"] * 40), aggregate="last", freq="2d")
    assert last.categories == {"target": ("clear", "rain")}
    assert len(set(last.panel.target)) == 1


def test_numbers_badly_written_are_no_classes() -> None:
    with pytest.raises(DataError, match=r"1 of 4 rows are no number, e.g. 'n/a'"):
        load(sky(["1.5", "2.5", "n/a", "3.5"]))
    assert load(sky(["4xx", "5xx", "200"])).categories == {"target": ("200", "4xx", "5xx")}


@pytest.mark.parametrize("labels", [SKY, [3, 1, None, 2], [True, False, None, True]])
def test_a_csv_file_says_the_same(labels: list[Any], tmp_path: Path) -> None:
    table = sky(labels)
    table.write_csv(tmp_path / "table.csv")
    data = DATA.model_copy(update={"path": str(tmp_path / "table.csv")})
    trained = load(table)
    panel, categories = with_trained_classes(trained.panel, trained.categories, "target", "categorical")
    for known, wanted in [(None, trained.panel), (categories, panel)]:
        np.testing.assert_array_equal(read_panel(data, 2, known).panel.target, wanted.target)


def test_a_wide_table_holds_classes_in_all_series_or_in_none() -> None:
    wide = sky().drop("series_id").rename({"target": "north"}).with_columns(south=pl.col("north").reverse())
    found = load(wide, layout="wide")
    assert found.categories == {"target": ("clear", "rain", "snow")}
    np.testing.assert_array_equal(found.panel.target, CODES + CODES[::-1])
    with pytest.raises(DataError, match=r"1 of 2 columns can't be series, .*'north'"):
        load(wide.with_columns(south=pl.lit(1.0)), layout="wide")


def test_a_prepared_panel_is_like_its_table_and_takes_new_classes(tmp_path: Path) -> None:
    folder = tmp_path / "panel"
    prepare(Tables(sky().lazy()), DATA, 2, folder)
    found = open_prepared(folder, DATA, 2)
    assert found.categories == {"target": ("clear", "rain", "snow")}
    np.testing.assert_array_equal(found.panel.target, CODES)
    more = append(folder, Tables(sky(["rain", "hail"], first=7).lazy()), SourceConfig(), revisions="accept")
    assert more.revisions.select("before", "after").row(0) == ("clear", "rain")
    grown = open_prepared(folder, DATA, 2)
    assert grown.panel.frame(classes=grown.categories["target"])["target"].to_list() == [*SKY[:7], "rain", "hail"]
    _, categories = with_trained_classes(grown.panel, grown.categories, "target", "categorical")
    assert categories == {"target": ("clear", "hail", "rain", "snow")}
    lenient = DATA.model_copy(update={"max_reject_share": 0.5})
    trained = open_prepared(folder, lenient, 2, {"target": ("clear", "rain", "snow")})
    np.testing.assert_array_equal(trained.panel.target, [*CODES[:7], 1, np.nan])
    assert trained.rejects["reason"].to_list() == ["unknown class 'hail'"]
    with pytest.raises(DataError, match=r"must hold classes \(text or truth values\), but is Int64"):
        append(folder, Tables(sky([1, 2], first=9).lazy()), SourceConfig())
