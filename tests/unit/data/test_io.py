import gzip
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from polars.testing import assert_frame_equal
from pyarrow import feather

from forecast.data.files import check_writable, write_parquet_atomic, write_text_atomic
from forecast.data.sources.frames import collect, to_lazy
from forecast.data.sources.tables import scan
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
    assert collect(scan(f"{tmp_path}/p=2/*.parquet")).columns == TABLE.columns
    assert collect(scan(f"{tmp_path}/p=*/*.parquet", text=["p"]))["p"].to_list() == ["1", "1", "2", "2"]


def test_columns_that_folders_hold_are_read_as_text_where_that_is_wanted_and_prune_the_files(tmp_path: Path) -> None:
    ids = ["007", "7", "a/b", "ü %", "null"]
    table = pl.DataFrame({"series_id": ids * 2, "target": range(10)}).with_columns(day=pl.date(2024, 2, 29))
    root = tmp_path / "above=other"  # The folder of the table: no column of it.
    table.write_parquet(root, partition_by=["series_id", "day"], mkdir=True)
    found = scan(root)
    assert_frame_equal(collect(found).sort("target"), table.select("target", "series_id", "day"))
    chosen = found.filter(pl.col("series_id").is_between(pl.lit("007"), pl.lit("6")))
    assert collect(chosen)["target"].to_list() == [0, 5]
    assert "other source" not in chosen.explain()

    shutil.copytree(root, tmp_path / "target=other")
    with pytest.raises(DataError, match=r"a folder above the table is called target=\.\.\., like a column; rename it"):
        scan(tmp_path / "target=other")

    table.write_parquet(root / "b=c" / "x.parquet", mkdir=True)
    with pytest.raises(DataError, match=r"different kinds: .*x\.parquet \(b\), .*\(series_id, day\); all files need"):
        scan(root)


# Files of a folder that differ.


def test_columns_of_other_files_that_nobody_asked_for_are_no_obstacle(tmp_path: Path) -> None:
    TABLE.with_columns(note=1).write_parquet(tmp_path / "1.parquet")
    TABLE.with_columns(extra=1, note=pl.lit("x")).write_parquet(tmp_path / "2.parquet")
    assert_frame_equal(collect(scan(tmp_path, columns=TABLE.columns)), pl.concat([TABLE, TABLE]))
    with pytest.raises(DataError, match=r"column 'extra' is missing in 1 of 2 files: .*1\.parquet"):
        scan(tmp_path, columns=["series_id", "extra"])
    with pytest.raises(
        DataError, match=r"'note' differs: Int32 in .*1\.parquet, String in .*2\.parquet; write it as one"
    ):
        scan(tmp_path, columns=["series_id", "note"])
    with pytest.raises(DataError, match="'extra' is missing"):
        scan(tmp_path)


DAY, HOUR = datetime(2024, 1, 1), datetime(2024, 1, 1, 1)
UPCAST = {
    "whole numbers and floats": ([pl.Series([3], dtype=pl.Int32), pl.Series([0.5])], [3.0, 0.5]),
    "sizes": ([pl.Series([3], dtype=pl.Int8), pl.Series([2**40])], [3, 2**40]),
    "the largest": ([pl.Series([-3]), pl.Series([2**64 - 1], dtype=pl.UInt64)], [-3, 2**64 - 1]),
    "dates and times": ([pl.Series([DAY.date()]), pl.Series([HOUR], dtype=pl.Datetime("ms"))], [DAY, HOUR]),
    "precisions": ([pl.Series([DAY], dtype=pl.Datetime("ns")), pl.Series([HOUR])], [DAY, HOUR]),
    "nothing and numbers": ([pl.Series([None]), pl.Series([0.5]), pl.Series([3])], [None, 0.5, 3.0]),
    "categories and text": ([pl.Series(["a"], dtype=pl.Categorical), pl.Series(["b"])], ["a", "b"]),
}


@pytest.mark.parametrize("case", UPCAST)
@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_types_that_one_type_holds_are_joined(tmp_path: Path, case: str, backwards: bool, suffix: str) -> None:
    parts, expected = UPCAST[case]
    for number, part in enumerate(parts[::-1] if backwards else parts):
        frame = pl.DataFrame({"id": [f"s{number}"], "value": part})
        path = tmp_path / f"{number}.{suffix}"
        frame.write_parquet(path) if suffix == "parquet" else frame.write_ipc(path)
    found = scan(tmp_path)
    assert collect(found)["value"].to_list() == (expected[::-1] if backwards else expected)
    assert "SELECTION" in found.filter(pl.col("id") == "s0").explain()  # What is filtered is filtered while reading.


DIFFERENT = {
    "numbers and text": ([pl.Series([1]), pl.Series(["1"])], "differs: Int64 in .*0.parquet, String in .*1.parquet"),
    "text and dates": (
        [pl.Series(["x"]), pl.Series([DAY])],
        "differs: String in .*0.parquet, Datetime.* in .*1.parquet",
    ),
    "zones": (
        [
            pl.Series([DAY]).dt.replace_time_zone("UTC"),
            pl.Series([DAY]).dt.replace_time_zone("Europe/Paris"),
            pl.Series([DAY]),
            pl.Series([DAY.date()]),
        ],
        "several time zones: UTC in .*0.parquet, Europe/Paris in .*1.parquet, none in .*2.parquet; convert it to one",
    ),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_types_that_no_type_holds_are_refused_with_a_file_of_each(tmp_path: Path, case: str) -> None:
    parts, message = DIFFERENT[case]
    for number, part in enumerate(parts):
        pl.DataFrame({"value": part}).write_parquet(tmp_path / f"{number}.parquet")
    with pytest.raises(DataError, match=f"^data.path={tmp_path}: column 'value' .*{message}"):
        scan(tmp_path)


def test_a_csv_file_without_values_in_a_column_fits_the_others(tmp_path: Path) -> None:
    for number, target in enumerate(["1.5", "", "2"]):
        (tmp_path / f"{number}.csv").write_text(f"series_id,target\n7,{target}\n")
    (tmp_path / "3.csv").write_text("series_id,target\n")
    assert collect(scan(tmp_path))["target"].to_list() == [1.5, None, 2.0]
    (tmp_path / "4.csv").write_text("series_id,target\n7,n/a\n")
    with pytest.raises(DataError, match=r"'target' differs: Float64 in .*0\.csv, Int64 in .*, String in .*4\.csv"):
        scan(tmp_path)


# What can't be read.


BROKEN = {
    "too many": ("a,b\n1,2\n3,4,5\n6,7\n", 1, "line 3 has 3 fields where the header has 2;"),
    "too few": ("a,b\n1,2\n\n3\n4\n", 2, "line 4 has 1 field where the header has 2;"),
    "behind line breaks": ('a,b\n"x\ny\nz",2\n3\n', 1, "line 5 has 1 field where the header has 2;"),
    "blanks": (
        "a b\n1,5 2\n",
        1,
        r"line 2 has 2 fields where the header has 1 \(fields are separated by commas, or by data.separator\);",
    ),
    "an open quote": ('a,b\n1,2\n"x,2\n3,4\n', 1, "line 4 has 1 field where the header has 2;"),
}


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("suffix", ["csv", "csv.gz"])
def test_a_broken_row_of_a_csv_file_is_found(tmp_path: Path, case: str, suffix: str) -> None:
    content, count, message = BROKEN[case]
    (tmp_path / "good.csv").write_text("a,b\n1,2\n")
    path = tmp_path / f"bad.{suffix}"
    path.write_bytes(gzip.compress(content.encode()) if suffix == "csv.gz" else content.encode())
    with pytest.raises(DataError, match=rf"data\.path=.*: {count} row\(s\) of .*bad\.{suffix} are broken: {message}"):
        scan(tmp_path)


def test_a_csv_file_may_have_quotes_line_breaks_and_other_line_ends(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes('\ufeffa,b\r\n"x, ""y""\r\nz",2\r\nü,3'.encode())
    assert collect(scan(tmp_path / "a.csv")).rows() == [('x, "y"\r\nz', 2), ("ü", 3)]


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_a_time_zone_that_is_an_offset_is_refused_without_a_panic(tmp_path: Path, suffix: str, capfd: Any) -> None:
    moments = pa.array([datetime(2013, 1, 1, tzinfo=UTC)], type=pa.timestamp("us", tz="+05:30"))
    path = tmp_path / f"a.{suffix}"
    table = pa.table({"t": moments})
    pq.write_table(table, path) if suffix == "parquet" else feather.write_feather(table, path, "uncompressed")
    message = rf"{suffix}: column 't' has the time zone '\+05:30', which is no place; convert it to UTC or to"
    with pytest.raises(DataError, match=message):
        scan(path)
    for frame in (table, table.to_batches()[0], table.to_reader(), table.to_pandas(), table.to_pandas().set_index("t")):
        with pytest.raises(DataError, match=r"the table: column 't' has the time zone '\+05:30'"):
            to_lazy(frame)
    assert capfd.readouterr() == ("", "")


def test_the_damaged_files_of_a_folder_are_named(tmp_path: Path) -> None:
    for number in range(4):
        TABLE.write_parquet(tmp_path / f"{number}.parquet")
    for number in (1, 3):
        content = (tmp_path / f"{number}.parquet").read_bytes()
        (tmp_path / f"{number}.parquet").write_bytes(content[: len(content) - 9])
    message = (
        r"2 of 4 files can't be read \(truncated or damaged\?\): .*1\.parquet \(.*\), .*3\.parquet \(.*\); write them"
    )
    with pytest.raises(DataError, match=message):
        scan(tmp_path)
    for number in (1, 3):
        (tmp_path / f"{number}.parquet").write_bytes(b"")
    with pytest.raises(DataError, match=r"2 of 4 files are empty \(0 bytes\): .*1\.parquet, .*3\.parquet; remove"):
        scan(tmp_path, key="data.known_path")


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
    with pytest.raises(DataError, match=r"a\.csv: the file is empty \(0 bytes\)"):
        scan(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_bytes("series_id\nü\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"a\.csv can't be read .*: it is not UTF-8"):
        collect(scan(tmp_path / "a.csv"))
    (tmp_path / "a.feather").write_bytes(b"ARROW1 half a file")
    with pytest.raises(DataError, match=r"a\.feather can't be read .*: its end is missing, or it is another kind"):
        scan(tmp_path / "a.feather")
    (tmp_path / "a.feather").unlink()
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
