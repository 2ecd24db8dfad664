"""Columns that no setting names need not be readable, and every column is the one with just that name."""

import sqlite3
from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from pyarrow import feather, parquet

import forecast as fc
from forecast.config import DataConfig
from forecast.data.ingest.load import load_panel
from forecast.data.read import read_panel
from forecast.data.sources.frames import to_lazy
from forecast.data.sources.sql import read_sql
from forecast.errors import DataError

N = 6
TIMES = [datetime(2024, 1, 1) + timedelta(days=k) for k in range(N)]
NAMED = pa.table({"series_id": ["a"] * N, "timestamp": pa.array(TIMES, pa.timestamp("us")), "target": np.arange(6.0)})
USED = ["series_id", "timestamp", "target"]
ODD: dict[str, pa.Array] = {
    "a zone that is no place": pa.array(TIMES, pa.timestamp("us", "+05:30")),
    "a list of such times": pa.array([[moment] for moment in TIMES], pa.list_(pa.timestamp("us", "+05:30"))),
    "wide decimals": pa.array([Decimal("1.5")] * N, pa.decimal256(50, 3)),
    "intervals": pa.array([(1, 2, 3)] * N, pa.month_day_nano_interval()),
    "a union": pa.UnionArray.from_sparse(pa.array([0] * N, pa.int8()), [pa.array(range(N)), pa.array(["x"] * N)]),
    "runs": pa.RunEndEncodedArray.from_arrays(pa.array([N], pa.int32()), pa.array([1])),
    "views of lists": pa.array([[1]] * N, pa.list_view(pa.int64())),
    "maps": pa.array([[("a", 1)]] * N, pa.map_(pa.string(), pa.int64())),
    "durations": pa.array([1] * N, pa.duration("s")),
    "bytes": pa.array([b"\xff"] * N),
    "JSON": pa.ExtensionArray.from_storage(pa.json_(), pa.array(["{}"] * N)),
    "nothing": pa.nulls(N),
}
CONFIG = DataConfig(freq="1d")


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("source", ["frame", "parquet", "arrow"])
def test_a_column_of_any_type_is_no_matter_unless_it_is_named(tmp_path: Path, kind: str, source: str) -> None:
    table = NAMED.append_column("note", ODD[kind])
    path = str(tmp_path / f"a.{source}")
    try:
        if source == "parquet":
            parquet.write_table(table, path)
        elif source == "arrow":
            feather.write_feather(table, path, compression="uncompressed")
    except pa.ArrowNotImplementedError:
        pytest.skip("there is no such file")

    def panel(**data: Any) -> Any:
        config = CONFIG.model_copy(update=data)
        if source == "frame":
            names = [*USED, *config.past_covariates, config.columns.target]
            return load_panel(to_lazy(table, names), config, 2).panel
        return read_panel(config.model_copy(update={"path": path}), 2).panel

    assert panel().target.tolist() == list(range(N))
    if kind in ("nothing",):
        return
    with pytest.raises(DataError, match="'note'"):
        panel(past_covariates=("note",))


def test_pandas_columns_of_several_types_are_no_matter_unless_they_are_named() -> None:
    frame = NAMED.to_pandas().assign(
        note=[1, "a", None, 2.5, b"x", (1,)],
        zone=pd.to_datetime(["2024-01-01T00:00:00+05:30"] * N),
        thing=[object()] * N,
        complex=[1j] * N,
    )
    assert to_lazy(frame, USED).collect().columns[:3] == USED
    assert load_panel(to_lazy(frame, USED), CONFIG, 2).panel.target.tolist() == list(range(N))
    with pytest.raises(DataError, match=r"column 'note' holds values of several types \(.*int, str.*\); make it one"):
        to_lazy(frame, [*USED, "note"])
    with pytest.raises(DataError, match=r"column 'zone' has the time zone '\+05:30'|'UTC\+05:30'"):
        to_lazy(frame)


@pytest.mark.parametrize(
    "make", [lambda table: table, lambda table: table.to_pandas(), lambda table: table.to_batches()[0]]
)
def test_columns_of_the_same_name_are_no_matter_unless_they_are_named(make: Callable[[pa.Table], Any]) -> None:
    note = pa.array(range(N))
    table = make(NAMED.append_column("note", note).append_column("note", note))
    assert load_panel(to_lazy(table, USED), CONFIG, 2).panel.target.tolist() == list(range(N))
    with pytest.raises(DataError, match="column 'note' is there 2 times; rename the others"):
        to_lazy(table, [*USED, "note"])


def test_a_parquet_file_with_a_name_twice_is_read_where_that_is_not_wanted(tmp_path: Path) -> None:
    table = NAMED.append_column("note", pa.array(range(N))).append_column("note", pa.array(range(N)))
    folder = tmp_path / "part=7"
    folder.mkdir()
    parquet.write_table(table, folder / "a.parquet", store_schema=False)
    parquet.write_table(NAMED, folder / "b.parquet")
    data = CONFIG.model_copy(update={"path": str(tmp_path), "max_reject_share": 1.0})
    assert read_panel(data, 2).panel.target.tolist() == list(range(N))
    with pytest.raises(DataError, match=r"a\.parquet: column 'note' is there 2 times"):
        read_panel(data.model_copy(update={"past_covariates": ("note",)}), 2)


def test_columns_of_a_query_that_can_not_be_read_are_no_matter_unless_they_are_named(tmp_path: Path) -> None:
    file = tmp_path / "a.db"
    with sqlite3.connect(file) as connection:
        connection.execute("create table t (series_id, timestamp, target, note)")
        connection.executemany("insert into t values ('a', ?, ?, ?)", [(f"{t:%F}", 1.5, b"\xff") for t in TIMES])
    uri = f"sqlite:///{file}"
    assert read_sql(uri, "select * from t", USED).collect().columns == USED
    with pytest.raises(DataError, match=r"1 column\(s\) that hold blobs: note"):
        read_sql(uri, "select * from t", [*USED, "note"])


def test_a_wide_table_needs_all_its_columns() -> None:
    frame = pd.DataFrame({"timestamp": TIMES, "a": np.arange(6.0), "b": [1, "x"] * 3})
    with pytest.raises(DataError, match=r"column 'b' holds values of several types \(int, str\)"):
        fc.train(frame, horizon=1, data={"layout": "wide"})


# ---- Names ----

ODD_NAMES = [
    "*",
    "^.*$",
    "^t.*$",
    "",
    " ",
    "a\0b",
    "\0",
    "a.b",
    "Ünï",
    "series_id",
    "target",
    "past x",
    "{}",
    "${x}",
    "'\"`;--",
]


@pytest.mark.parametrize("name", ODD_NAMES)
@pytest.mark.parametrize("role", ["series_id", "timestamp", "target", "past", "known", "static", "aggregate", "wide"])
@pytest.mark.parametrize("kind", ["numbers", "text"])
def test_a_column_is_the_one_with_just_that_name(
    name: str, role: str, kind: str, table: Callable[..., pl.DataFrame]
) -> None:
    text = kind == "text"
    extra = {"a": ["u", "v"] * 4 if text else np.arange(8.0), "b": ["v", "u"] * 4 if text else np.arange(8.0) * 2}
    if role == "static":
        extra = {"a": ["u"] * 8 if text else np.ones(8), "b": ["v"] * 8 if text else np.zeros(8)}
    rows = table({"a": np.arange(8.0), "b": np.arange(8.0) + 10}, tail=extra)
    rows = rows.rename({"series_id": "s0", "timestamp": "t0", "target": "y0"})
    columns = {"series_id": "s0", "timestamp": "t0", "target": "y0"}
    data: dict[str, Any] = {"freq": "1d"}
    covariate = {"past": "past_covariates", "known": "known_covariates", "static": "static_covariates"}.get(role)
    if role in ("series_id", "timestamp", "target"):
        rows = rows.rename({columns[role]: name})
        columns[role] = name
    elif role == "wide":
        rows = rows.pivot(on="s0", index="t0", values="y0").rename({"a": name})
        data["layout"] = "wide"
    else:
        rows = rows.rename({"tail": name})
        data[covariate or "past_covariates"] = [name]
        if role == "aggregate":
            data |= {"aggregate": "mean", "freq": "2d", "max_reject_share": 1.0}
    if role == "wide" and name == "":
        with pytest.raises(DataError, match="have no name of their own and no row numbers"):
            load_panel(rows.lazy(), DataConfig.model_validate(data | {"columns": columns}), 1)
        return
    found = load_panel(rows.lazy(), DataConfig.model_validate(data | {"columns": columns}), 1)
    panel = found.panel
    plain = load_panel(
        table({"a": np.arange(8.0), "b": np.arange(8.0) + 10}, tail=extra).lazy(),
        DataConfig.model_validate(
            {"freq": "2d", "aggregate": "mean", "past_covariates": ["tail"], "max_reject_share": 1.0}
            if role == "aggregate"
            else {"freq": "1d"} | ({covariate: ["tail"]} if covariate else {})
        ),
        1,
    ).panel
    expected = sorted(["b", name]) if role == "wide" else ["a", "b"]
    assert panel.series_id.tolist() == expected
    order = np.argsort([expected.index(name), expected.index("b")]) if role == "wide" else np.arange(2)
    for buffer in ("target", "past", "known", "static_numbers", "static_categories"):
        assert np.array_equal(getattr(panel, buffer), getattr(plain.take(order), buffer), equal_nan=True), buffer


def test_models_of_such_columns_are_registered_and_forecast(tmp_path: Path, table: Callable[..., pl.DataFrame]) -> None:
    from forecast.config import RegistryConfig, TrainConfig
    from forecast.prediction.from_table import example
    from forecast.tracking.registry import Registry

    names = {"series_id": "*", "timestamp": "^t.*$", "target": "\0nul", "kind": "^.*$", "size": "a\0"}
    rows = table(
        {"a": np.arange(60.0) % 7, "b": np.arange(60.0) % 5},
        kind={"a": ["u"] * 60, "b": ["v"] * 60},
        size={"a": np.arange(60.0), "b": np.arange(60.0)},
    ).rename(names)
    data = {
        "columns": {role: names[role] for role in ("series_id", "timestamp", "target")},
        "static_covariates": [names["kind"]],
        "past_covariates": [names["size"]],
    }
    small = {"hidden_size": 4, "decoder_size": 2, "embedding_size": 2}
    made = fc.train(rows, horizon=4, context_length=8, data=data, model=small, fit={"max_steps": 0}).artifact
    registry = Registry(RegistryConfig(tracking_uri=f"sqlite:///{tmp_path}/m.db", name="odd"))
    digest = made.save(tmp_path / "model")
    config = TrainConfig.model_validate({"data": {"path": "x", **data}, "window": {"horizon": 4}})
    with registry.run("train", config) as run:
        version = registry.register(run, tmp_path / "model", digest=digest, tags={}, example=example(made))
    assert version.number == 1
    assert fc.forecast(fc.load(tmp_path / "model"), rows).frame["series_id"].unique().sort().to_list() == ["a", "b"]


# ---- Row numbers ----


@pytest.mark.parametrize("name", ["", "Unnamed: 0", "__index_level_0__"])
@pytest.mark.parametrize("layout", ["wide", "long"])
def test_row_numbers_of_pandas_are_no_series(tmp_path: Path, name: str, layout: str, caplog: Any) -> None:
    wide = pd.DataFrame({"timestamp": TIMES, "a": np.arange(6.0), "b": np.arange(6.0) * 2}, index=np.arange(6) * 3)
    frame = wide if layout == "wide" else wide.melt("timestamp", var_name="series_id", value_name="target")
    path = tmp_path / "a.csv"
    frame.to_csv(path, index_label=name)
    data = CONFIG.model_copy(update={"path": str(path), "layout": layout})
    panel = read_panel(data, 2).panel
    assert panel.series_id.tolist() == ["a", "b"]
    assert panel.target.tolist() == [*range(6), *range(0, 12, 2)]
    assert (layout == "wide") == ("row numbers of pandas" in caplog.text)


def test_two_exports_leave_two_columns_of_row_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    frame = pd.DataFrame({"timestamp": [f"{t:%F}" for t in TIMES], "a": np.arange(6.0)})
    frame.to_csv(path)
    pd.read_csv(path).to_csv(path)
    data = CONFIG.model_copy(update={"path": str(path), "layout": "wide"})
    assert read_panel(data, 2).panel.series_id.tolist() == ["a"]


def test_a_column_without_a_name_that_holds_values_is_told() -> None:
    frame = pl.DataFrame({"timestamp": TIMES, "": np.arange(6) - 0.5, "a": np.arange(6.0)})
    with pytest.raises(DataError, match=r"1 column\(s\) have no name of their own and no row numbers: '' \(Float64\)"):
        load_panel(frame.lazy(), DataConfig(layout="wide"), 2)
