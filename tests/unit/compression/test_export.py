"""What an export of 8 bits tells of itself."""

import json
from pathlib import Path

import polars as pl
import pytest

import forecast as fc
from forecast.backtesting.backtest import backtest
from forecast.backtesting.result import Contender
from forecast.compression.onnx_export import GRAPH, SIDECAR, export_onnx
from forecast.config import BacktestSettings
from forecast.data.ingest.loaded import Loaded
from forecast.training.result import FitResult


def test_8_bits_are_judged_on_the_last_horizon_of_a_table(
    trained: FitResult, weekly_loaded: Loaded, tmp_path: Path
) -> None:
    cost = export_onnx(trained.artifact, tmp_path, int8=True, panel=weekly_loaded.panel)
    assert cost is not None
    assert cost.windows == weekly_loaded.panel.n_series
    assert cost.bytes == (tmp_path / GRAPH).stat().st_size
    assert 0 < cost.mean_difference <= cost.max_difference < 0.5
    judged = backtest({"pretrained": Contender(trained.artifact, weekly_loaded.panel)}, BacktestSettings(n_windows=1))
    assert cost.float_wql == pytest.approx(judged.summary.filter(model="pretrained")["wql"].item(), rel=1e-4)
    assert cost.wql == pytest.approx(cost.float_wql, rel=0.2)
    assert json.loads((tmp_path / SIDECAR).read_text())["quantised"]["wql"] == cost.wql


def test_without_a_table_windows_are_made_up(trained: FitResult, tmp_path: Path) -> None:
    cost = export_onnx(trained.artifact, tmp_path, int8=True)
    assert cost is not None
    assert (cost.wql, cost.windows) == (None, 256)
    assert 0 < cost.mean_difference <= cost.max_difference < 1
    assert "made-up windows" in cost.line
    plain = tmp_path / "float"
    plain.mkdir()
    assert export_onnx(trained.artifact, plain) is None
    assert (plain / GRAPH).stat().st_size == cost.float_bytes


def test_8_bits_of_the_pretrained_network_forecast_nearly_the_same(weekly_table: pl.DataFrame, tmp_path: Path) -> None:
    cost = export_onnx(fc.pretrained("gatecast-nano", weekly_table, horizon=7), tmp_path, int8=True)
    assert cost is not None
    assert cost.bytes < 0.7 * cost.float_bytes
    assert cost.windows == 256
    assert 0 < cost.mean_difference < 0.05
    assert set(json.loads((tmp_path / SIDECAR).read_text())["inputs"]) == {
        "target",
        "observed",
    }  # It reads no calendar.
