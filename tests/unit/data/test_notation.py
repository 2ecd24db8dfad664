"""Text that means numbers: read where it can mean one thing only, whatever the source; else told."""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecast.config import DataConfig, SourceConfig
from forecast.config import load as validated
from forecast.data.ingest.load import load_panel
from forecast.data.ingest.loaded import Loaded
from forecast.data.prepared.append import append
from forecast.data.prepared.open import open_prepared
from forecast.data.prepared.prepare import prepare
from forecast.data.read import read_panel
from forecast.data.sources import numerals
from forecast.data.sources.open import Tables
from forecast.errors import ConfigError, DataError

DAYS = [datetime(2024, 1, 1) + timedelta(days=k) for k in range(8)]


def rows(**columns: Sequence[Any]) -> pl.DataFrame:
    (length,) = {len(values) for values in columns.values()}
    base = {"series_id": ["a"] * length, "timestamp": DAYS[:length], "target": [1.0] * length}
    return pl.DataFrame(base | columns, strict=False)


def config(**data: Any) -> DataConfig:
    return DataConfig.model_validate({"freq": "1d"} | data)


def load(frame: pl.DataFrame, categories: dict[str, tuple[str, ...]] | None = None, **data: Any) -> Loaded:
    return load_panel(frame.lazy(), config(**data), 2, categories)


def grouped(value: float, thousands: str, decimal: str) -> str:
    return f"{value:,.2f}".replace(",", "T").replace(".", decimal).replace("T", thousands)


READ: dict[str, tuple[list[str | None], list[float]]] = {
    "plain": (["1", "2.5", "-3e2", "+4"], [1, 2.5, -300, 4]),
    "thousands with commas": (["1,234.5", "12,345", "7"], [1234.5, 12345, 7]),
    "several groups of commas": (["1,234,567", "1,234"], [1234567, 1234]),
    "thousands with points": (["1.234,5", "12.345", "7"], [1234.5, 12345, 7]),
    "several groups of points": (["1.234.567", "1.234"], [1234567, 1234]),
    "decimal commas": (["1,5", "2,25", "3"], [1.5, 2.25, 3]),
    "a decimal comma tells what three digits are": (["1,234", "0,5"], [1.234, 0.5]),
    "a leading zero is no group": (["0,123", "1,234"], [0.123, 1.234]),
    "groups of India": (["12,34,567.5", "1,234"], [1234567.5, 1234]),
    "spaces": (["1 234", "1\u00a0234", "12\u202f345"], [1234, 1234, 12345]),
    "spaces with decimal commas": (["1 234,5", "2"], [1234.5, 2]),
    "apostrophes": (["1'234.5", "2\u2019345"], [1234.5, 2345]),
    "a minus sign": (["\u22121,5", "2,5"], [-1.5, 2.5]),
    "missing values": (["1", "NA", "N/A", "", None, "3"], [1, np.nan, np.nan, np.nan, np.nan, 3]),
    "missing values beside commas": (["1,5", "NA", "NaN", "3"], [1.5, np.nan, np.nan, 3]),
}


@pytest.mark.parametrize("case", READ)
@pytest.mark.parametrize("place", ["target", "past", "known", "wide"])
def test_text_that_means_one_number_is_that_number(case: str, place: str) -> None:
    text, expected = READ[case]
    text, expected = [*text, text[0]], [*expected, expected[0]]
    if place == "wide":
        table = pl.DataFrame({"timestamp": DAYS[: len(text)], "a": text})
        panel = load(table, layout="wide").panel
        found = panel.target
    elif place == "target":
        found = load(rows(target=text)).panel.target
    else:
        signs = any("," in (value or "") or "." in (value or "") for value in text) or case == "missing values"
        if not signs:
            pytest.skip("whole numbers as text may be names")
        panel = load(rows(x=text), **{f"{place}_covariates": ["x"]}).panel
        found = (panel.past if place == "past" else panel.known)[0][: len(text)]
    assert np.array_equal(found, np.array(expected, dtype=np.float32), equal_nan=True)


@given(
    values=st.lists(st.floats(-9e6, 9e6).map(lambda value: round(value, 2)), min_size=1, max_size=6),
    signs=st.sampled_from([(",", "."), (".", ","), (" ", ","), (" ", "."), ("'", "."), ("", "."), ("", ",")]),
)
def test_numbers_are_what_they_were_before_they_were_written(values: list[float], signs: tuple[str, str]) -> None:
    text = pl.Series([grouped(value, *signs) for value in values])
    for form in (None, signs[1]):
        data = config(decimal=form, max_reject_share=1.0)
        frame = rows(target=text.to_list())
        found = load_panel(frame.lazy(), data, 2).panel.target
        # Levels that float32 has too few digits for are held in float64.
        assert np.array_equal(found.astype(np.float32), np.array(values, dtype=np.float32))


@pytest.mark.parametrize("text", [["1,234"], ["1,234", "5"], ["1.234", "1,234"], ["1,234", "NA", "22,345"]])
@pytest.mark.parametrize("layout", ["long", "wide"])
def test_text_that_may_mean_two_numbers_is_told_with_the_setting(text: list[str], layout: str) -> None:
    frame = rows(target=text)
    if layout == "wide":
        frame = frame.select("timestamp", pl.col("target").alias("a"))
    with pytest.raises(DataError, match=r"may have thousands separators or decimals \('1.*set data\.decimal=\."):
        load(frame, layout=layout)
    point, comma = (load(frame, layout=layout, decimal=sign).panel.target[0] for sign in (".", ","))
    first = text[0]
    assert (point, comma) == ((1234.0, np.float32(1.234)) if "," in first else (np.float32(1.234), 1234.0))


def test_each_column_has_signs_of_its_own() -> None:
    frame = rows(target=["1,5", "2,5"], x=["1,234.5", "2,000.25"])
    found = load(frame, past_covariates=["x"])
    assert found.panel.target.tolist() == [1.5, 2.5]
    assert found.panel.past.tolist() == [[1234.5, 2000.25]]
    assert found.data.decimal is None


def test_the_setting_holds_for_all_columns_and_names_what_it_does_not_fit() -> None:
    frame = rows(target=["1.234", "5"], x=["1,5", "2,5"])
    found = load(frame, past_covariates=["x"], decimal=",")
    assert found.panel.target.tolist() == [1234, 5]
    assert found.panel.past.tolist() == [[1.5, 2.5]]
    with pytest.raises(DataError, match=r"'x' \(data\.past_covariates\).* 0 of 2 values .* sign '\.'.*'1,5'"):
        load(frame, past_covariates=["x"], decimal=".")


def test_a_value_that_is_none_is_named_with_the_settings_that_help() -> None:
    with pytest.raises(DataError, match=r"3 of 4 values .* sign ',', the others are not \('-'.*data\.null_values"):
        load(rows(target=["1,5", "2,5", "-", "3,5"]))
    found = load(rows(target=["1,5", "2,5", "-", "3,5"]), null_values=["-"])
    assert np.array_equal(found.panel.target, [1.5, 2.5, np.nan, 3.5], equal_nan=True)
    with pytest.raises(DataError, match=r"1 of 4 rows are no number, e\.g\. 'x'; data\.null_values"):
        load(rows(target=["1", "2", "x", "3"]))


def test_null_values_hold_for_numbers_and_categories_and_times_but_not_for_names() -> None:
    frame = rows(
        series_id=["-9"] * 5, target=[1.0, -9.0, 3.0, 4.0, 5.0], n=[1, -9, 3, 4, 5], kind=["a", "-9", "b", "b", "a"]
    )
    found = load(frame, past_covariates=["n"], known_covariates=["kind"], null_values=["-9"])
    assert found.panel.series_id.tolist() == ["-9"]
    assert np.isnan(found.panel.target).tolist() == [False, True, False, False, False]
    assert np.isnan(found.panel.past[0]).tolist() == [False, True, False, False, False]
    assert found.categories == {"kind": ("a", "b")}
    times = rows(timestamp=[*map(str, DAYS[:3]), "-9"])
    rejects = load(times, null_values=["-9"], max_reject_share=0.5).rejects
    assert rejects["reason"].to_list() == ["null timestamp"]


def test_covariates_that_may_be_names_stay_text() -> None:
    with pytest.raises(DataError, match="most of its 2 values are numbers"):
        load(rows(x=["007", "010", "007"]), past_covariates=["x"])
    size = load(rows(code=["12", "12", "12"]), static_covariates=["code"])
    assert size.categories == {"code": ("12",)}
    assert load(rows(size=["1,5", "NA", "1,5"]), static_covariates=["size"]).panel.static_numbers.tolist() == [[1.5]]


@pytest.mark.parametrize("kind", [pl.Categorical, pl.Enum(["1,5", "2,5", "NA"])])
def test_a_target_of_a_categorical_type_may_be_numbers(kind: Any) -> None:
    frame = rows(target=["1,5", "NA", "2,5"]).with_columns(pl.col("target").cast(kind))
    assert np.array_equal(load(frame).panel.target, [1.5, np.nan, 2.5], equal_nan=True)


def test_classes_stay_classes() -> None:
    found = load(rows(target=["NA", "no", "yes", "no"]))
    assert found.categories == {"target": ("NA", "no", "yes")}
    again = load(rows(target=["1", "2", "1"]), categories={"target": ("1", "2", "3")})
    assert again.classes == ("1", "2", "3")
    assert again.panel.target.tolist() == [0, 1, 0]


def test_a_class_with_a_nul_is_told() -> None:
    with pytest.raises(DataError, match=r"1 of 2 classes have a NUL in their name.*'yes\\x00'"):
        load(rows(target=["no", "yes\0", "no"]))


def test_the_sign_of_training_holds_where_a_later_table_does_not_tell(tmp_path: Path) -> None:
    stored = load(rows(target=["1.234,5", "2"])).data
    assert stored.decimal == ","
    later = stored.without_source().with_source(SourceConfig())
    assert load_panel(rows(target=["1.234", "5.678"]).lazy(), later, 2, {}).panel.target.tolist() == [1234, 5678]
    assert stored.with_source(SourceConfig(decimal=".")).decimal == "."

    prepare(Tables(rows(target=["1.234,5", "2"]).lazy()), config(), 2, tmp_path, chunk_rows=1)
    more = rows(target=["0", "0", "3.456"]).tail(1)
    assert append(tmp_path, Tables(more.lazy()), SourceConfig()).loaded.panel.target.tolist() == [1234.5, 2, 3456]
    assert open_prepared(tmp_path, config(), 2).data.decimal == ","


def test_parts_of_a_prepared_panel_are_read_alike(tmp_path: Path) -> None:
    series = ["a"] * 3 + ["b"] * 3
    frame = pl.DataFrame(
        {"series_id": series, "timestamp": DAYS[:3] * 2, "target": ["1,234", "2,345", "3,456", "1", "0,5", "2"]}
    )
    found = prepare(Tables(frame.lazy()), config(), 2, tmp_path, chunk_rows=3).loaded
    assert found.panel.target.tolist() == np.array([1.234, 2.345, 3.456, 1, 0.5, 2], dtype=np.float32).tolist()


# ---- CSV ----


def test_a_header_that_looks_wrong_is_told_with_what_may_be_wrong(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("series_id;timestamp, UTC;target\na;2024-01-01,5;1\n")
    with pytest.raises(DataError, match=r"no column 'timestamp'[\s\S]*set data\.separator"):
        read_panel(config(path=str(tmp_path / "a.csv")), 2)
    (tmp_path / "a.csv").write_text(",series_id,target\n2024-01-01,a,1\n")
    with pytest.raises(DataError, match=r"no column 'timestamp'[\s\S]*one column has no name"):
        read_panel(config(path=str(tmp_path / "a.csv")), 2)


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_the_separator_is_found_in_the_header(tmp_path: Path, separator: str) -> None:
    lines = [["series_id", "timestamp", "target"], *([name, str(day.date()), "1.5"] for name in "ab" for day in DAYS)]
    (tmp_path / "a.csv").write_text("\n".join(separator.join(line) for line in lines))
    for given_separator in (None, separator):
        data = config(path=str(tmp_path / "a.csv"), separator=given_separator)
        assert read_panel(data, 2).panel.target.tolist() == [1.5] * 16


def test_a_separator_that_is_not_clear_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("series_id;timestamp|x;target\na;2024-01-01;1\na;2024-01-02;2\n")
    with pytest.raises(DataError, match=r"header of .*a\.csv has no comma, but ';', '\|': set data\.separator"):
        read_panel(config(path=str(tmp_path / "a.csv")), 2)
    data = config(path=str(tmp_path / "a.csv"), separator=";", columns={"timestamp": "timestamp|x"})
    assert read_panel(data, 2).panel.target.tolist() == [1, 2]
    with pytest.raises(ConfigError, match="separator"):
        validated(DataConfig, {"separator": ";;"})


def csv_of(folder: Path, name: str, target: Sequence[str], first: int = 0) -> None:
    lines = [f"a;{DAYS[first + k]:%Y-%m-%d};{value}" for k, value in enumerate(target)]
    (folder / name).write_text("series_id;timestamp;target\n" + "\n".join(lines) + "\n")


def test_a_decimal_comma_in_the_settings_holds_for_what_looks_like_decimal_points(tmp_path: Path) -> None:
    csv_of(tmp_path, "a.csv", ["1.234", "2.000"])
    found = read_panel(config(path=str(tmp_path), decimal=","), 2)
    assert found.panel.target.tolist() == [1234, 2000]
    assert read_panel(config(path=str(tmp_path)), 2).panel.target.tolist() == [np.float32(1.234), 2.0]


def test_files_with_and_without_missing_values_or_commas_are_one_table(tmp_path: Path) -> None:
    csv_of(tmp_path, "1.csv", ["1", "NA"])
    csv_of(tmp_path, "2.csv", ["2.5", "3"], first=2)
    assert np.array_equal(read_panel(config(path=str(tmp_path)), 2).panel.target, [1, np.nan, 2.5, 3], equal_nan=True)
    csv_of(tmp_path, "2.csv", ["2,5", "-"], first=2)
    found = read_panel(config(path=str(tmp_path), null_values=["-"], max_reject_share=1.0), 2)
    assert np.array_equal(found.panel.target, [1, np.nan, 2.5], equal_nan=True)
    csv_of(tmp_path, "1.csv", ["1.234", "2.345"])
    csv_of(tmp_path, "2.csv", ["1,234", "2,345"], first=2)
    with pytest.raises(DataError, match=r"may have thousands separators or decimals"):
        read_panel(config(path=str(tmp_path)), 2)


def test_series_with_commas_beside_series_with_points_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("timestamp;a;b\n2024-01-01;1.234;1,5\n2024-01-02;2.345;2,5\n")
    with pytest.raises(DataError, match=r"some series have decimal commas \('1,5'.*read with decimal points \(a\)"):
        read_panel(config(path=str(tmp_path / "a.csv"), layout="wide"), 2)
    found = read_panel(config(path=str(tmp_path / "a.csv"), layout="wide", decimal=","), 2)
    assert found.panel.target.tolist() == [1234, 2345, 1.5, 2.5]


def test_columns_of_the_same_name_are_told_where_they_are_wanted(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("series_id,timestamp,target,x,x\na,2024-01-01,1,2,3\na,2024-01-02,2,2,3\n")
    assert read_panel(config(path=str(tmp_path / "a.csv")), 2).panel.target.tolist() == [1, 2]
    with pytest.raises(DataError, match=r"column 'x' is there 2 times"):
        read_panel(config(path=str(tmp_path / "a.csv"), past_covariates=["x"]), 2)


def test_words_for_missing_values_are_those_of_other_tools() -> None:
    frame = pl.DataFrame({"x": [*numerals.MISSING, " NA ", "0"]})
    assert frame.select(numerals.strip_missing(pl.col("x"))).to_series().drop_nulls().to_list() == ["0"]


@pytest.mark.parametrize("source", ["parquet", "csv", "sqlite", "frame"])
def test_every_source_reads_the_same_text_alike(
    tmp_path: Path, source: str, table: Callable[..., pl.DataFrame]
) -> None:
    import sqlite3

    frame = table({"a": np.arange(1, 5) * 1234.5}).with_columns(
        pl.col("timestamp").dt.to_string("%Y-%m-%d %H:%M:%S UTC"),
        target=pl.Series([grouped(value, ".", ",") for value in np.arange(1, 5) * 1234.5]),
    )
    given_data: dict[str, Any] = {}
    if source == "parquet":
        frame.write_parquet(tmp_path / "a.parquet")
        given_data = {"path": str(tmp_path / "a.parquet")}
    elif source == "csv":
        frame.write_csv(tmp_path / "a.csv")
        given_data = {"path": str(tmp_path / "a.csv")}
    elif source == "sqlite":
        with sqlite3.connect(tmp_path / "a.db") as connection:
            connection.execute("create table t (series_id, timestamp, target)")
            connection.executemany("insert into t values (?, ?, ?)", frame.iter_rows())
        given_data = {"uri": f"sqlite:///{tmp_path}/a.db", "query": "select * from t"}
    found = load(frame) if source == "frame" else read_panel(config(**given_data), 2)
    assert found.panel.target.tolist() == [1234.5, 2469.0, 3703.5, 4938.0]
    assert found.data.time_zone == "UTC"
