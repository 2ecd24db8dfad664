"""Weights (data.weight): read by step or series, checked, stored, and without a unit."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from forecast.config import DataConfig, SourceConfig
from forecast.data.ingest.load import load_panel
from forecast.data.ingest.loaded import Loaded
from forecast.data.prepared.append import append
from forecast.data.prepared.open import open_prepared
from forecast.data.prepared.prepare import prepare
from forecast.data.sources.open import Tables
from forecast.errors import DataError

FIRST = datetime(2024, 1, 1)


def rows(weights: list[float | None], name: str = "a", first: int = 0) -> pl.DataFrame:
    n = len(weights)
    moments = [FIRST + timedelta(days=first + k) for k in range(n)]
    return pl.DataFrame(
        {"series_id": name, "timestamp": moments, "target": np.arange(n) + 1.0, "revenue": weights},
        schema_overrides={"revenue": pl.Float64},
    )


def load(
    table: pl.DataFrame, static: pl.DataFrame | None = None, categories: dict[str, Any] | None = None, **data: Any
) -> Loaded:
    config = DataConfig.model_validate({"freq": "1d", "weight": "revenue", "max_reject_share": 1.0} | data)
    return load_panel(Tables(table.lazy(), None, None if static is None else static.lazy()), config, 2, categories)


def weights(loaded: Loaded) -> list[float]:
    return np.nan_to_num(loaded.panel.weight[0], nan=-1).tolist()


def test_weights_are_read_by_step_or_by_series() -> None:
    table = pl.concat([rows([2, 3, 4]), rows([5, 6], "b")])
    assert weights(load(table)) == [2, 3, 4, 5, 6]
    static = pl.DataFrame({"series_id": ["b", "a", "z"], "revenue": [7.0, 8.0, 9.0]})
    assert weights(load(table.drop("revenue"), static)) == [8, 8, 8, 7, 7]
    wide = table.pivot("series_id", index="timestamp", values="target")
    with pytest.raises(ValueError, match="give it at static_path"):
        DataConfig(layout="wide", weight="revenue")
    data = DataConfig(layout="wide", weight="revenue", static_path="given", freq="1d")
    assert load_panel(Tables(wide.lazy(), None, static.lazy()), data, 2).panel.weight.tolist() == [[8, 8, 8, 7, 7]]
    hourly = pl.concat([rows([2, 4, 9, 9])]).with_columns(
        timestamp=pl.Series([FIRST + timedelta(hours=12 * k) for k in range(4)])
    )
    assert weights(load(hourly, aggregate="sum")) == [3, 9]


def test_a_null_counts_as_zero_and_is_told(caplog: pytest.LogCaptureFixture) -> None:
    loaded = load(rows([2, None, 4]))
    assert weights(loaded) == [2, -1, 4]
    assert "data.weight=revenue is missing in 1 of 3 rows with a target, which count 0" in caplog.text


@pytest.mark.parametrize(("value", "reason"), [(-1.0, "revenue negative"), (float("inf"), "revenue not finite")])
def test_bad_weights_are_rejects_and_errors_in_a_table_of_series(value: float, reason: str) -> None:
    loaded = load(rows([2, value, 4]))
    assert loaded.rejects.select("reason", "value").rows() == [(reason, value)]
    static = pl.DataFrame({"series_id": ["a"], "revenue": [value]})
    with pytest.raises(DataError, match=r"negative or not finite in 1 of 1 series: a \("):
        load(rows([1]).drop("revenue"), static)


def test_weights_that_are_all_zero_text_missing_or_contradictory_are_refused() -> None:
    with pytest.raises(DataError, match=r"data.weight=revenue is 0 or missing in all rows with a target"):
        load(rows([0, 0, None]))
    with pytest.raises(DataError, match=r"no column 'revenue' \(data.weight"):
        load(rows([1]).drop("revenue"))
    with pytest.raises(DataError, match=r"'revenue' \(data.weight\) must hold numbers"):
        load(rows([1, 2]).with_columns(revenue=pl.Series(["much", "little"])))
    twice = pl.DataFrame({"series_id": ["a", "a"], "revenue": [1.0, 2.0]})
    with pytest.raises(DataError, match="more than one value in 1 series: a"):
        load(rows([1]).drop("revenue"), twice)


def test_a_later_table_without_the_column_is_read_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert len(load(rows([1, 2]).drop("revenue"), categories={}).panel.weight) == 0
    assert "no column 'revenue' in the table; nothing is weighted" in caplog.text


def test_a_prepared_panel_has_the_weights_and_grows_with_them(tmp_path: Path) -> None:
    table = pl.concat([rows([2, 3, 4]), rows([5, 6], "b")])
    data = DataConfig(freq="1d", weight="revenue")
    direct = load_panel(table.lazy(), data, 2)
    folder = tmp_path / "panel"
    loaded = prepare(Tables(table.lazy()), data, 2, folder, fingerprint="x", chunk_rows=3).loaded
    assert (loaded.digest, weights(loaded)) == (direct.digest, [2, 3, 4, 5, 6])
    append(folder, Tables(rows([7, 8], first=3).lazy()), SourceConfig())
    assert weights(open_prepared(folder, data, 2)) == [2, 3, 4, 7, 8, 5, 6]
    other = tmp_path / "without"
    prepare(Tables(table.lazy()), DataConfig(freq="1d"), 2, other, fingerprint="x")
    assert not list(other.glob("data-*/weight.npy"))
    assert len(open_prepared(other, data, 2, categories={}).panel.weight) == 0
