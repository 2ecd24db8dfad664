"""Data sets of gluonts: lines of JSON become rows, and what can't is a reject."""

import gzip
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from forecast.config import DataConfig
from forecast.data.ingest.loaded import Loaded
from forecast.data.prepared import prepare
from forecast.data.read import read_panel
from forecast.data.sources import json_lines
from forecast.data.sources.open import open_tables
from forecast.errors import ConfigError, DataError

START = datetime(2024, 1, 1)
A = {"item_id": "a", "start": "2024-01-01 00:00:00", "target": [1.0, 2.0, 3.0, 4.0]}
B = {"item_id": "b", "start": "2024-01-01 02:00:00", "target": [5, "NaN", None, 8]}


def write(folder: Path, *entries: Any, name: str = "data.json") -> str:
    text = "\n".join(entry if isinstance(entry, str) else json.dumps(entry) for entry in entries)
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


def config(path: str, **data: Any) -> DataConfig:
    return DataConfig.model_validate({"path": path, "freq": "1h", "max_reject_share": 1} | data)


def load(path: str, horizon: int = 1, **data: Any) -> Loaded:
    return read_panel(config(path, **data), horizon)


def rows(path: str, **data: Any) -> pl.DataFrame:
    return open_tables(config(path, **data)).rows.collect()


@pytest.mark.parametrize("name", ["data.json", "data.jsonl", "data.json.gz", "DATA.JSONL.GZ"])
def test_a_line_is_a_series(tmp_path: Path, name: str) -> None:
    found = rows(write(tmp_path, A, "", B, name=name))
    assert found.to_dict(as_series=False) == {
        "item_id": [*"aaaabbbb"],
        "timestamp": [START.replace(hour=hour) for hour in (0, 1, 2, 3, 2, 3, 4, 5)],
        "target": [1, 2, 3, 4, 5, None, None, 8],
    }


def test_a_panel_survives_the_way_through_lines(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    hours = [pl.datetime_range(START, interval="1h", end=START.replace(day=3), eager=True)[k:] for k in range(3)]
    parts = [
        pl.DataFrame({"series_id": f"s{k}", "timestamp": times, "target": rng.normal(size=len(times))})
        for k, times in enumerate(hours)
    ]
    entries = [
        {"item_id": f"s{k}", "start": str(part["timestamp"][0]), "target": part["target"].to_list()}
        for k, part in enumerate(parts)
    ]
    pl.concat(parts).write_parquet(tmp_path / "rows.parquet")
    expected = load(str(tmp_path / "rows.parquet"))
    found = load(write(tmp_path, *entries))
    assert found.digest == expected.digest
    assert found.counts.rows_in == expected.counts.rows_in
    assert found.data.columns.series_id == "item_id"


@pytest.mark.parametrize(
    ("freq", "start", "expected"),
    [
        ("1mo", "2024-01-31", ["2024-01-01", "2024-02-01", "2024-03-01"]),
        ("1mo", "2024-01", ["2024-01-01", "2024-02-01", "2024-03-01"]),
        ("1q", "2023-11-15", ["2023-10-01", "2024-01-01", "2024-04-01"]),
        ("1y", "2023", ["2023-01-01", "2024-01-01", "2025-01-01"]),
        ("1w", "2024-01-03/2024-01-09", ["2024-01-01", "2024-01-08", "2024-01-15"]),
        ("2w", "2024-01-08", ["2024-01-08", "2024-01-22", "2024-02-05"]),
        ("1bd", "2024-01-04", ["2024-01-04", "2024-01-05", "2024-01-08"]),
        ("1d", "2024-02-28T12:00", ["2024-02-28", "2024-02-29", "2024-03-01"]),
    ],
)
def test_series_start_with_a_period_and_go_on_by_the_calendar(
    tmp_path: Path, freq: str, start: str, expected: list[str]
) -> None:
    found = rows(write(tmp_path, {"start": start, "target": [1, 2, 3]}), freq=freq)
    assert found["timestamp"].dt.to_string("%Y-%m-%d").to_list() == expected
    assert found["item_id"].unique().to_list() == ["line 1"]


def test_covariates_are_columns_and_known_ones_reach_over_the_horizon(tmp_path: Path) -> None:
    covariates = {
        "feat_static_cat": [3, 0],
        "feat_static_real": [0.5],
        "feat_dynamic_real": [[1, 2, 3, 4, 5, 6], [0, 0, "NaN", 0, 0, 0]],
        "past_feat_dynamic_real": [[9, 9, 9, 9]],
    }
    path = write(tmp_path, A | covariates)
    table = rows(path)
    assert table.select("feat_static_cat_0", "feat_static_cat_1", "feat_static_real_0").unique().row(0) == (
        "3",
        "0",
        0.5,
    )
    assert table["target"].to_list() == [1, 2, 3, 4, None, None]
    assert table["feat_dynamic_real_1"].to_list() == [0, 0, None, 0, 0, 0]
    found = load(
        path,
        horizon=2,
        known_covariates=["feat_dynamic_real_0"],
        past_covariates=["past_feat_dynamic_real_0"],
        static_covariates=["feat_static_cat_0", "feat_static_real_0"],
    )
    assert found.panel.known[0].tolist() == [1, 2, 3, 4, 5, 6]
    assert found.categories == {"feat_static_cat_0": ("3",)}
    assert found.panel.static_numbers.tolist() == [[0.5]]
    assert (found.counts.rows_kept, found.counts.rows_future) == (4, 2)


BAD = [
    ('{"item_id": "c", "target": [1, 2', "line is not JSON"),
    ("[1, 2, 3]", "line is not an object with start and target"),
    ({"item_id": "d", "start": "2024-01-01"}, "target is not a list of numbers"),
    ({"item_id": "e", "start": "2024-01-01", "target": [1, "x"]}, "target is not a list of numbers"),
    ({"item_id": "f", "start": "2024-01-01", "target": [[1, 2], [3, 4]]}, "target has more than one dimension"),
    ({"item_id": "g", "start": "2024-01-01", "target": []}, "target is empty"),
    ({"item_id": "h", "start": "tomorrow", "target": [1]}, "start is not ISO 8601"),
    ({"item_id": "i", "target": [1]}, "start is not ISO 8601"),
    ({"item_id": "j", "start": "2024-01-01T00:00:00+01:00", "target": [1]}, "start has an offset from UTC"),
    (A | {"item_id": "k", "feat_dynamic_real": [[1, 2]]}, "feat_dynamic_real has not the length of target"),
    (A | {"item_id": "l", "feat_static_real": [1.0]}, "has other covariates than the first line"),
]


def test_bad_lines_are_rejects_with_a_reason(tmp_path: Path) -> None:
    path = write(tmp_path, A, *(line for line, _ in BAD), B)
    found = load(path)
    names = ["line 2", "line 3", *"defghijkl"]
    expected = dict(zip(names, (reason for _, reason in BAD), strict=True))
    assert dict(found.rejects.select("series_id", "reason").iter_rows()) == expected
    counts = found.counts
    assert (counts.rows_in, counts.rows_kept, counts.rows_rejected) == (8 + 11, 8, 11)
    assert (counts.series_in, counts.series_kept, counts.series_rejected) == (13, 2, 11)
    assert (counts.lines_in, counts.lines_rejected) == (13, 11)
    # A panel that is prepared in parts keeps the same.
    done = prepare.prepare(open_tables(config(path)), config(path), 1, tmp_path / "panel", chunk_rows=4)
    assert_frame_equal(done.loaded.rejects, found.rejects)
    assert done.loaded.counts == counts
    assert done.loaded.digest == found.digest


def test_too_many_bad_lines_stop_the_job_however_long_the_others_are(tmp_path: Path) -> None:
    path = write(tmp_path, A | {"target": [1.0] * 1000}, "{", B)
    with pytest.raises(DataError, match=r"33\.3%[\s\S]*1 of 3 lines\n  line is not JSON: 1, e\.g\. line 2"):
        load(path, max_reject_share=0.2)
    with pytest.raises(DataError, match=r"data\.on_error=fail"):
        load(path, on_error="fail")


def test_lines_of_which_none_can_be_read_are_an_error_that_shows_one(tmp_path: Path) -> None:
    path = write(tmp_path, '{"unique_id": "a", "ds": "2024-01-01", "y": 1}', "{")
    with pytest.raises(
        DataError, match=r"none of 2 lines .*target is not a list of numbers, line is not JSON"
    ) as found:
        load(path)
    assert '{"item_id": "a", "start"' in str(found.value)
    with pytest.raises(DataError, match="no line; a line of gluonts is"):
        load(write(tmp_path, ""))
    with pytest.raises(ConfigError, match=r"data\.freq: missing"):
        load(path, freq=None)
    with pytest.raises(ConfigError, match=r"data\.layout=wide"):
        load(path, layout="wide")
    (tmp_path / "broken.json.gz").write_bytes(gzip.compress(json.dumps(A).encode() * 99)[:-20])
    with pytest.raises(DataError, match=r"broken\.json\.gz"):
        load(str(tmp_path / "broken.json.gz"))


def test_many_files_and_blocks_are_one_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [{"start": "2024-01-01", "target": [float(k)] * 3} for k in range(5)]
    write(tmp_path, *entries[:2], name="0.json")
    write(tmp_path, *entries[2:], name="1.json")
    whole = rows(str(tmp_path / "*.json"))
    assert whole["item_id"].unique(maintain_order=True).to_list() == [
        "0.json:1",
        "0.json:2",
        *(f"1.json:{k}" for k in (1, 2, 3)),
    ]
    assert whole["target"].to_list() == [float(k) for k in range(5) for _ in range(3)]
    monkeypatch.setattr(json_lines, "_BLOCK", 4)
    assert_frame_equal(rows(str(tmp_path / "*.json")), whole)


def test_columns_are_called_as_the_settings_say(tmp_path: Path) -> None:
    found = rows(write(tmp_path, A), columns={"series_id": "meter", "timestamp": "hour", "target": "load"})
    assert found.columns == ["meter", "hour", "load"]
