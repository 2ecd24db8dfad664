"""A pretrained network of the package on the command line: scored at once, or registered and taken on from there."""

import json
from datetime import timedelta
from pathlib import Path

import mlflow
import numpy as np
import polars as pl
import pytest
from flow import BACKTEST, END, FINETUNE, HORIZON, NAME, START, panel, refuse, six_series, succeed, written
from polars.testing import assert_frame_equal

import forecast as fc
from forecast.checkpoints import NANO

BUILTIN = f"registry.alias={NANO}", f"window.horizon={HORIZON}"
MEMBER = BUILTIN[1], "window.context_length=48", "model.smoothing=false", "fit.max_steps=0", "fit.final=false"
"""Settings of a training whose result is a mean with the pretrained network."""


def test_a_table_and_a_horizon_are_scored_without_a_registry(store: str, tmp_path: Path) -> None:  # noqa: ARG001
    table = tmp_path / "loads.csv"
    six_series().write_csv(table)
    score = "score", f"data.path={table}", f"output.path={tmp_path / 'out'}", *BUILTIN
    line = succeed(*score).out
    assert line.startswith(f"{NANO} v")
    assert f"6 series = 6 forecast + 0 rejected, 6 pretrained, {6 * HORIZON} rows" in line
    assert "all done before, nothing was written" in succeed(*score).out
    (manifest,) = (json.loads(path.read_text()) for path in (tmp_path / "out" / "manifests").iterdir())
    assert (manifest["model"], manifest["series"]["forecast"]) == (NANO, 6)
    scored = written(tmp_path / "out").select("series_id", "step", "mean", "q10", "q90").sort("series_id", "step")
    python = fc.forecast(NANO, table, horizon=HORIZON).frame.select(scored.columns)
    assert_frame_equal(scored, python, check_exact=False)


def test_known_covariates_are_read_and_a_registered_version_forecasts_the_same(
    store: str,  # noqa: ARG001
    tmp_path: Path,
) -> None:
    hours = pl.datetime_range(START, END + timedelta(hours=HORIZON), "1h", eager=True)
    signal = np.random.default_rng(1).normal(size=len(hours)).round(2)
    plan = pl.DataFrame({"timestamp": hours, "signal": signal})
    moved = six_series().join(plan, on="timestamp").with_columns(pl.col("target") + 8 * pl.col("signal")).drop("signal")
    table, future, short = (str(tmp_path / f"{name}.csv") for name in ("panel", "future", "short"))
    moved.write_csv(table)
    plan.write_csv(future)
    plan.head(-3).write_csv(short)
    source, known = f"data.path={table}", f"data.known_path={future}"
    columns = "data.known_covariates=[signal]", *BUILTIN
    scored = succeed("score", source, known, *columns, f"output.path={tmp_path / 'direct'}")
    assert "6 forecast + 0 rejected" in scored.out
    assert "of the loss on" in scored.err
    succeed("models", "add", f"registry.name={NAME}", source, known, columns[0], BUILTIN[1])
    later = "score", f"registry.name={NAME}", "registry.alias=pretrained", source
    succeed(*later, f"output.path={tmp_path / 'registered'}")
    direct, registered = (
        written(tmp_path / name).select("series_id", "step", "mean", "q10", "q90") for name in ("direct", "registered")
    )
    assert_frame_equal(direct, registered, check_row_order=False)
    expected = moved["target"].mean() + 8 * float(signal[-HORIZON:].mean())
    assert abs(direct["mean"].mean() - expected) < 2
    absent = refuse(3, *later, f"data.known_path={short}", f"output.path={tmp_path / 'no'}", "score.missing_known=fail")
    assert "signal" in absent


def test_a_cutoff_at_rows_that_few_series_reach_is_scored(store: str, tmp_path: Path) -> None:  # noqa: ARG001
    late = panel().filter(pl.col("series_id") == "s00").tail(1).with_columns(pl.col("timestamp").dt.offset_by("30d"))
    table = tmp_path / "late.parquet"
    pl.concat([panel(), late]).write_parquet(table)
    place = f"data.path={table}", f"output.path={tmp_path / 'out'}"
    assert "20 forecast + 0 rejected" in succeed("score", *place, *BUILTIN).out
    cutoff = f"score.cutoff={late['timestamp'][0].isoformat()}"
    assert f"cutoff {late['timestamp'][0].isoformat()}" in succeed("score", *place, *BUILTIN, cutoff).out


def test_what_it_can_not_do_is_told_before_anything_is_read(store: str, tmp_path: Path) -> None:  # noqa: ARG001
    place = f"output.path={tmp_path / 'out'}", "data.path=nowhere.csv"
    assert "window.horizon: missing" in refuse(2, "score", *place, BUILTIN[0])
    assert "models add" in refuse(2, "score", *place, *BUILTIN, "score.state=state")
    own = refuse(2, "score", *place, "data.freq=1h", "registry.alias=champion")
    assert "data.freq: fixed by the trained model" in own
    wrong = refuse(2, "models", "add", "data.path=nowhere.csv", BUILTIN[1], "add.checkpoint=gatecast-mini")
    assert f"there are {NANO}, {NANO}-1" in wrong
    assert "there are" in refuse(2, "train", "data.path=nowhere.csv", BUILTIN[1], "model.init=gatecast-mini")
    assert not (tmp_path / "out").exists()


def test_it_is_registered_fine_tuned_judged_promoted_and_scored(store: str, tmp_path: Path) -> None:  # noqa: ARG001
    name, data = f"registry.name={NAME}", f"data.path={tmp_path / 'panel.parquet'}"
    six_series().write_parquet(tmp_path / "panel.parquet")
    assert f"{NAME} v1 (pretrained): {NANO}-" in succeed("models", "add", name, data, BUILTIN[1]).out
    shown = succeed("models", "show", name, "registry.alias=pretrained").out
    assert f"checkpoint      {NANO}-" in shown
    succeed("finetune", name, data, *FINETUNE, "registry.alias=pretrained")
    succeed("backtest", name, data, *BACKTEST, "registry.alias=challenger")
    succeed("promote", name, "promote.force=true")
    succeed("score", name, data, f"output.path={tmp_path / 'out'}")
    forecasts = written(tmp_path / "out")
    assert forecasts["series_id"].n_unique() == 6
    assert forecasts["mean"].is_finite().all()
    assert set(forecasts["source"]) <= {"pretrained", "fine_tuned"}
    succeed("report", name, "registry.alias=champion", data, f"output.path={tmp_path / 'report'}")
    begin = "train", name, data, *MEMBER
    assert "% the pretrained network" in succeed(*begin, f"model.init=models:/{NAME}@champion").out
    shown = succeed("models", "show", name, "registry.alias=pretrained").out
    assert f"init_version {NAME} v2" in " ".join(shown.split())
    assert "no alias 'best'" in refuse(4, *begin, f"model.init=models:/{NAME}@best")
    assert f"there are: {NAME}; set model.init" in refuse(4, *begin, "model.init=models:/nothing@best")


@pytest.mark.trains
def test_it_is_fine_tuned_by_gradient_and_scored(store: str, tmp_path: Path) -> None:  # noqa: ARG001
    name, data = f"registry.name={NAME}", f"data.path={tmp_path / 'panel.parquet'}"
    panel().filter(pl.col("series_id") < "s04").write_parquet(tmp_path / "panel.parquet")
    succeed("models", "add", name, data, BUILTIN[1])
    kept = "finetune.gate=strict", "finetune.min_gain=0", "finetune.min_windows_better=0"
    kind = "finetune.kind=embedding", "finetune.steps=20"
    succeed("finetune", name, data, *FINETUNE, *kind, *kept, "registry.alias=pretrained")
    succeed("backtest", name, data, *BACKTEST, "registry.alias=challenger")
    succeed("score", name, data, f"output.path={tmp_path / 'out'}", "registry.alias=challenger", "score.state=state")
    forecasts = written(tmp_path / "out")
    assert forecasts.height == 4 * HORIZON
    assert forecasts["mean"].is_finite().all()
    assert "fine_tuned" in forecasts["source"]
    served = pl.from_pandas(mlflow.pyfunc.load_model(f"models:/{NAME}@challenger").predict(panel().to_pandas()))
    keys = "series_id", "step"
    scored = forecasts.select(*keys, "q50", "mean").sort(keys)
    served = served.filter(pl.col("series_id") < "s04").select(scored.columns).sort(keys)
    assert_frame_equal(scored, served, check_dtypes=False, rel_tol=1e-5)


def test_training_takes_it_as_a_member_by_default_and_the_mean_is_exported_and_scored_as_a_graph(
    store: str,  # noqa: ARG001
    tmp_path: Path,
) -> None:
    name, data = f"registry.name={NAME}", f"data.path={tmp_path / 'panel.parquet'}"
    panel().filter(pl.col("series_id") < "s04").write_parquet(tmp_path / "panel.parquet")
    assert "% the pretrained network" in succeed("train", name, data, *MEMBER).out
    succeed("score", name, data, f"output.path={tmp_path / 'out'}", "registry.alias=pretrained", "score.state=state")
    assert written(tmp_path / "out").height == 4 * HORIZON
    pytest.importorskip("onnxruntime", reason="gatecast[onnx] is not installed")
    version = name, "registry.alias=pretrained"
    small = "export.format=onnx_int8", f"output.path={tmp_path / 'onnx'}"
    assert "int8" in succeed("models", "export", *version, data, *small).out
    forecasts = []
    for runtime in ("torch", "onnx"):
        succeed("score", *version, data, f"output.path={tmp_path / runtime}", f"score.runtime={runtime}")
        forecasts.append(written(tmp_path / runtime).select("series_id", "step", "mean", "q10", "q90"))
    assert_frame_equal(*forecasts, check_row_order=False, rel_tol=1e-4)
