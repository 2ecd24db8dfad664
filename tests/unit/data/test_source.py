"""Which tables a config opens, and when they have changed. Delta Lake, S3 and databases: flows/test_sources.py."""

import os
from pathlib import Path

import polars as pl
import pytest

from forecast.config import DataConfig, SourceConfig
from forecast.data.sources.open import fingerprint, open_tables
from forecast.errors import DataError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for number in range(2):
        (tmp_path / "rows").mkdir(exist_ok=True)
        (tmp_path / "rows" / f"{number}.csv").write_text("shop,day,sold,tag,code\n007,2024-01-01,1,x,010\n")
    (tmp_path / "known.csv").write_text("shop,day,price,code\n007,2024-01-01,1.5,010\n")
    (tmp_path / "static.csv").write_text("shop,code\n007,010\n")
    return tmp_path


CONFIG = DataConfig.model_validate(
    {
        "path": "rows",
        "known_path": "known.csv",
        "static_path": "static.csv",
        "columns": {"series_id": "shop", "timestamp": "day", "target": "sold"},
        "past_covariates": ["tag"],
        "known_covariates": ["price"],
        "static_covariates": ["code"],
    }
)


@pytest.mark.usefixtures("folder")
def test_ids_and_named_columns_are_text_in_all_tables() -> None:
    tables = open_tables(CONFIG, text=["code"])
    assert tables.known is not None
    assert tables.static is not None
    for table in (tables.rows, tables.known, tables.static):
        assert table.select("shop", "code").unique().collect().rows() == [("007", "010")]
    assert open_tables(CONFIG).rows.collect_schema()["code"] == pl.Int64
    alone = open_tables(DataConfig(path="rows"))
    assert alone.known is None
    assert alone.static is None


def test_only_columns_that_are_used_have_to_be_alike(folder: Path) -> None:
    (folder / "rows" / "1.csv").write_text("shop,day,sold,tag,code\n7,2024-01-01,1,x,none\n")
    assert "code" not in open_tables(CONFIG).rows.collect_schema()  # It comes from static.csv.
    with pytest.raises(DataError, match=r"data\.path=rows: column 'code' differs"):
        open_tables(CONFIG.model_copy(update={"static_path": None}))
    with pytest.raises(DataError, match=r"data\.path=rows: column 'code' differs"):
        open_tables(DataConfig(path="rows", layout="wide"))  # Every column may be a series.


@pytest.mark.parametrize("name", ["known", "static"])
def test_a_message_names_the_key_of_the_table(folder: Path, name: str) -> None:
    (folder / f"{name}.csv").unlink()
    with pytest.raises(DataError, match=rf"data\.{name}_path={name}\.csv: no such file or folder"):
        open_tables(CONFIG)
    with pytest.raises(DataError, match=rf"data\.{name}_path={name}\.csv: no such file or folder"):
        fingerprint(CONFIG)


def test_the_fingerprint_changes_with_any_file(folder: Path) -> None:
    source = SourceConfig(path="rows", known_path="known.csv", static_path="static.csv")
    seen = [fingerprint(source)]
    for change in (
        lambda: os.utime(folder / "rows" / "0.csv", ns=(1, 1)),
        lambda: (folder / "known.csv").write_text("shop,price\n"),
        lambda: (folder / "rows" / "2.csv").write_text("shop,day,sold,tag,code\n"),
        lambda: (folder / "rows" / "2.csv").rename(folder / "rows" / "3.csv"),
        (folder / "static.csv").touch,
    ):
        change()
        seen.append(fingerprint(source))
        assert seen[-1] == fingerprint(source)
    assert len(set(seen)) == len(seen)
    (folder / "rows" / "_SUCCESS").touch()  # No part of the table.
    assert fingerprint(source) == seen[-1]
    assert fingerprint(SourceConfig(path="rows")) != fingerprint(SourceConfig(path="rows", known_path="rows"))
    assert fingerprint(SourceConfig.model_validate({"uri": "sqlite:///a.db", "query": "select 1"})) is None
