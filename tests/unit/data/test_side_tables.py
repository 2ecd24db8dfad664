"""Tables of covariates are remembered from training, and named where they are gone."""

from datetime import datetime
from pathlib import Path

import polars as pl
import pytest

from forecast.config import DataConfig, SourceConfig
from forecast.data.sources.side_tables import side_tables, with_side_tables
from forecast.errors import DataError

DATA = DataConfig(known_covariates=("promo",), static_covariates=("city",))


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.chdir(tmp_path)
    rows = pl.DataFrame({"series_id": ["a"], "timestamp": [datetime(2024, 1, 1)], "target": [1.0]})
    rows.write_csv("rows.csv", separator=";")
    rows.with_columns(promo=1, city=pl.lit("oslo")).write_parquet("whole.parquet")
    rows.with_columns(promo=1).write_parquet("part.parquet")
    for name in ("known.csv", "static.csv"):
        rows.write_csv(name)
    return side_tables(SourceConfig(path="rows.csv", known_path="known.csv", static_path="static.csv"))


def test_paths_are_kept_as_from_any_folder_and_secrets_are_not(paths: dict[str, str], tmp_path: Path) -> None:
    assert paths == {"data.known_path": f"{tmp_path}/known.csv", "data.static_path": f"{tmp_path}/static.csv"}
    address = "s3://bucket/known.parquet"
    assert side_tables(SourceConfig(path="rows.csv", known_path=address)) == {"data.known_path": address}
    secret = "https://me:hunter2@example.com/known.csv"
    assert side_tables(SourceConfig(path="rows.csv", known_path=secret)) == {}


@pytest.mark.parametrize(
    ("source", "known", "static"),
    [
        (SourceConfig(path="rows.csv"), "known.csv", "static.csv"),
        (SourceConfig(path="rows.csv", known_path="other.csv"), "other.csv", "static.csv"),
        (SourceConfig(path="part.parquet"), None, "static.csv"),
        (SourceConfig(path="whole.parquet"), None, None),
    ],
    ids=["neither", "one is given", "one is in the table", "both are in the table"],
)
def test_what_a_source_does_not_name_and_does_not_have_is_that_of_training(
    paths: dict[str, str], source: SourceConfig, known: str | None, static: str | None
) -> None:
    complete = with_side_tables(source, paths, DATA)
    names = [path and Path(path).name for path in (complete.known_path, complete.static_path)]
    assert names == [known, static]
    assert with_side_tables(source, {}, DATA) == source
    assert with_side_tables(source, paths, DataConfig()) == source


def test_a_table_that_is_gone_is_named_where_it_is_needed(paths: dict[str, str]) -> None:
    Path("known.csv").unlink()
    with pytest.raises(DataError, match=r"data.known_path: the table of promo .*/known.csv, is not there any more"):
        with_side_tables(SourceConfig(path="rows.csv"), paths, DATA)
    assert with_side_tables(SourceConfig(path="whole.parquet"), paths, DATA) == SourceConfig(path="whole.parquet")
