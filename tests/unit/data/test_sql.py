"""SQLite, and what is refused before a server is asked; PostgreSQL is in tests/flows/test_sources.py."""

import sqlite3
import tempfile
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecast.data.sources.sql import read_sql
from forecast.errors import ConfigError, DataError


def database(folder: Path, **columns: list[Any]) -> str:
    """Return the URI of a database with a table t."""
    file = folder / "a b%20ü.db"
    file.unlink(missing_ok=True)
    connection = sqlite3.connect(file)
    connection.execute(f"create table t ({', '.join(columns)})")
    marks = ", ".join("?" * len(columns))
    connection.executemany(f"insert into t values ({marks})", zip(*columns.values(), strict=True))
    connection.commit()
    connection.close()
    return f"sqlite:///{file}"


integers = st.none() | st.integers(-(2**63), 2**63 - 1)
floats = st.none() | st.floats(allow_nan=False)
texts = st.none() | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


@given(st.lists(st.tuples(integers, floats, texts), min_size=1))
def test_values_come_back_as_they_are(rows: list[tuple[int | None, float | None, str | None]]) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("forecast.data.sources.sql._SQLITE_ROWS", 2)
        with tempfile.TemporaryDirectory() as folder:
            a, b, c = zip(*rows, strict=True)
            found = read_sql(database(Path(folder), a=list(a), b=list(b), c=list(c)), "select * from t").collect()
    assert found.rows() == rows


def test_the_type_of_a_column_fits_all_its_values(tmp_path: Path) -> None:
    # ADBC's driver, and others, take it from the first rows.
    many: list[Any] = [None] * 60_000
    uri = database(
        tmp_path,
        number=[*many, 1, 0.5],
        text=[*many, 7, "007"],
        whole=[1] * 60_002,
        none=[None] * 60_002,
        time=["2024-01-01"] * 60_002,
    )
    found = read_sql(uri, "select * from t")
    types = {"number": pl.Float64, "text": pl.String, "whole": pl.Int64, "none": pl.Float64, "time": pl.String}
    assert found.collect_schema() == types
    assert found.tail(2).collect().select("number", "text").rows() == [(1.0, "7"), (0.5, "007")]
    assert found.select(pl.len()).collect().item() == 60_002


def test_the_query_runs_once_and_all_passes_see_its_rows(tmp_path: Path) -> None:
    uri = database(tmp_path, a=[1, 2])
    found = read_sql(uri, "with x as (select a from t) select a, a * 2 as b from x order by a; ")
    with sqlite3.connect(uri.removeprefix("sqlite:///")) as connection:
        connection.execute("delete from t")
    assert found.filter(pl.col("a") == 2).collect().rows() == [(2, 4)]
    assert found.collect().rows() == [(1, 2), (2, 4)]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("selec a", 'near "selec": syntax error'),
        ("select * from missing -- all of it", "no such table: missing"),
        ("select missing from t", "no such column: missing"),
        ("delete from t", 'near "delete": syntax error'),
        ("select * from t where a > 5", "data.query returns no rows"),
        ("select x'00' as b, a from t", r"1 column\(s\) that hold blobs: b; leave them out"),
    ],
)
def test_what_sqlite_refuses_is_told(tmp_path: Path, query: str, message: str) -> None:
    uri = database(tmp_path, a=[1])
    with pytest.raises(DataError, match=message):
        read_sql(uri, query)
    assert read_sql(uri, "select a from t").collect().rows() == [(1,)]


def test_a_file_that_is_no_database_is_refused_and_none_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"data\.uri=sqlite:///new\.db: no such file \(from "):
        read_sql("sqlite:///new.db", "select 1 a")
    (tmp_path / "a.db").write_text("not a database at all" * 100)
    with pytest.raises(DataError, match="file is not a database"):
        read_sql("sqlite:///a.db", "select * from t")
    assert [file.name for file in tmp_path.iterdir()] == ["a.db"]


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("mysql://me:wr0ng@host/db", "a database of kind 'mysql' is not known; give postgresql://"),
        ("panel.db", "not the URI of a database; give postgresql://"),
        ("sqlite://panel.db", "as sqlite:///relative.db or sqlite:////absolute.db"),
        ("sqlite:///", "as sqlite:///relative.db or sqlite:////absolute.db"),
        ("postgresql://me:wr0ng", "not of the form postgresql://user:password@host:5432/database"),
        ("postgresql://me:wr0ng/x@host/db", "%2F %40 %3A"),
        ("postgresql://me:wr0ng@host:port/db", "%2F %40 %3A"),
        ("postgresql://me:wr 0ng@host/db", "%2F %40 %3A"),
    ],
)
def test_a_uri_that_is_not_understood_is_not_shown(uri: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_sql(uri, "select 1")
    assert message in str(caught.value)
    assert "0ng" not in str(caught.value)
    assert caught.value.__cause__ is None
