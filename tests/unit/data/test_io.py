import gzip
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from polars.testing import assert_frame_equal

from forecast.data.io import check_writable, collect, scan, to_lazy, write_parquet_atomic, write_text_atomic
from forecast.errors import DataError, OutputError

TABLE = pl.DataFrame({"series_id": ["007", "7"], "timestamp": ["2013-01-01", "2013-01-02"], "target": [1.0, 2.5]})


@pytest.mark.parametrize("name", ["a.parquet", "a.PQ", "a.csv", "a.csv.gz", "a.arrow", "a.ipc", "a.feather"])
def test_each_kind_of_file_is_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if path.suffix.lower() in (".parquet", ".pq"):
        TABLE.write_parquet(path)
    elif ".csv" in name:
        content = TABLE.write_csv().encode()
        path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    else:
        TABLE.write_ipc(path)
    assert_frame_equal(collect(scan(path)), TABLE)


def test_a_csv_column_is_whole_numbers_only_if_all_rows_are(tmp_path: Path) -> None:
    rows = "".join(f"a,2013-01-01,{i}\n" for i in range(2000))
    (tmp_path / "1.csv").write_text("series_id,timestamp,target\n" + rows + "a,2013-01-01,0.5\n")
    (tmp_path / "2.csv").write_text("series_id,timestamp,target\na,2013-01-02,3\n")
    assert collect(scan(tmp_path))["target"][-2:].to_list() == [0.5, 3.0]
    assert collect(scan(tmp_path / "2.csv"))["target"].dtype == pl.Int64
    assert collect(scan(tmp_path / "2.csv", text=["target"]))["target"].to_list() == ["3"]


def test_a_folder_and_a_glob_are_read_without_hidden_files(tmp_path: Path) -> None:
    for part in ("p=1", "p=2"):
        (tmp_path / part).mkdir()
        TABLE.write_parquet(tmp_path / part / "a.parquet")
    (tmp_path / "_SUCCESS").touch()
    (tmp_path / "_log").mkdir()
    pl.DataFrame({"other": [1]}).write_parquet(tmp_path / "_log" / "b.parquet")
    (tmp_path / ".a.parquet.17.tmp").write_text("half a file")
    (tmp_path / "notes.txt").write_text("nothing")
    assert collect(scan(tmp_path)).height == 4
    assert collect(scan(tmp_path))["p"].to_list() == [1, 1, 2, 2]
    assert collect(scan(tmp_path / "*" / "a.parquet")).height == 4
    assert collect(scan(f"{tmp_path}/p=2/*.parquet")).height == 2


def test_an_extra_column_of_a_later_file_is_no_obstacle(tmp_path: Path) -> None:
    TABLE.write_parquet(tmp_path / "1.parquet")
    TABLE.with_columns(extra=1).write_parquet(tmp_path / "2.parquet")
    assert collect(scan(tmp_path)).height == 4


def test_what_can_not_be_read_says_why(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.path=nowhere: no such file or folder"):
        scan("nowhere")
    with pytest.raises(DataError, match="no such file or folder"):
        scan(tmp_path / "*.parquet")
    with pytest.raises(DataError, match="no Parquet, CSV or Arrow file in this folder"):
        scan(tmp_path)
    (tmp_path / "a.xlsx").write_text("x")
    with pytest.raises(DataError, match=r"unknown kind of file; known are \.parquet"):
        scan(tmp_path / "a.xlsx")
    (tmp_path / "a.csv").write_text("")
    with pytest.raises(DataError, match=r"can't be read .*: empty CSV"):
        scan(tmp_path / "a.csv")
    TABLE.write_parquet(tmp_path / "whole.parquet")
    content = (tmp_path / "whole.parquet").read_bytes()
    (tmp_path / "half.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"data\.path=.*half\.parquet can't be read \(truncated or damaged\?\)"):
        scan(tmp_path / "half.parquet")
    with pytest.raises(DataError, match=r"several kinds \(csv, parquet\)"):
        scan(tmp_path)


def test_damage_behind_the_footer_is_found_when_rows_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pl.DataFrame({"a": list(range(10_000))}).write_parquet(path, compression="zstd")
    content = bytearray(path.read_bytes())
    content[4:2000] = bytes(1996)
    path.write_bytes(content)
    with pytest.raises(DataError, match="can't be read"):
        collect(scan(path))


def test_pandas_arrow_and_polars_tables_are_accepted() -> None:
    moments = [datetime(2013, 1, 1, tzinfo=UTC), datetime(2013, 1, 2, tzinfo=UTC)]
    table = pl.DataFrame({"series_id": ["a", "b"], "timestamp": moments, "target": [1.0, None]})
    pandas = pd.DataFrame({"series_id": ["a", "b"], "timestamp": moments, "target": [1.0, float("nan")]})
    arrow = pa.table({"series_id": ["a", "b"], "timestamp": moments, "target": [1.0, None]})
    for frame in (
        table,
        table.lazy(),
        pandas,
        pandas.set_index("series_id"),
        arrow,
        arrow.to_batches()[0],
        arrow.to_reader(),
    ):
        found = collect(to_lazy(frame))
        assert_frame_equal(found.with_columns(pl.col("timestamp").cast(pl.Datetime("us", "UTC"))), table)
    offset = pa.table({"t": pa.array(moments, type=pa.timestamp("us", tz="+05:30"))})
    with pytest.raises(DataError, match=r"the table can't be read .*unable to parse time zone: '\+05:30'"):
        to_lazy(offset)
    with pytest.raises(DataError, match="expected a Polars, pandas or Arrow table, found list"):
        to_lazy([1, 2])


def test_a_written_file_is_whole_and_leaves_no_other(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.parquet"
    write_parquet_atomic(TABLE, path)
    first = path.read_bytes()
    assert_frame_equal(pl.read_parquet(path), TABLE)
    write_parquet_atomic(TABLE, path)
    assert path.read_bytes() == first
    write_text_atomic("ü\n", path.with_name("a.json"))
    assert path.with_name("a.json").read_text(encoding="utf-8") == "ü\n"
    assert sorted(file.name for file in path.parent.iterdir()) == ["a.json", "a.parquet"]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_parquet_atomic(TABLE, path)
    unwritable = pl.DataFrame({"a": [object()]}, schema={"a": pl.Object})
    with pytest.raises(OutputError, match=r"can't write .*a\.parquet"):
        write_parquet_atomic(unwritable, path)
    assert_frame_equal(pl.read_parquet(path), TABLE)
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_can_not_be_written_is_found_early(tmp_path: Path) -> None:
    check_writable(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"can't write into .*file.*choose another output\.path"):
        check_writable(tmp_path / "file")
    with pytest.raises(OutputError, match="can't write into"):
        write_text_atomic("x", tmp_path / "file" / "a.json")
