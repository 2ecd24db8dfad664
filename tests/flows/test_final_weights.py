"""A version with a final fit through refresh, scoring and export: the final weights forecast, the others are judged."""

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import mlflow
import polars as pl
import pytest
from flow import BACKTEST, END, FINETUNE, HORIZON, NAME, TRAIN, six_series, succeed, written
from polars.testing import assert_frame_equal

import forecast as fc
from forecast.config import RegistryConfig
from forecast.models.runtime.onnx import exported
from forecast.tracking.registry import Registry

MODEL = f"registry.name={NAME}"
EVALUATED = END - timedelta(hours=2 * HORIZON)
QUANTILES = [f"q{level}0" for level in range(1, 10)]


def with_final(settings: tuple[str, ...]) -> list[str]:
    """Return settings of the flows with a final fit, and without training by gradients."""
    kept = [setting for setting in settings if not setting.startswith(("fit.final", "finetune.final", "fit.max_steps"))]
    return [*kept, "fit.max_steps=0"] if settings is TRAIN else kept


@pytest.mark.trains
def test_a_refreshed_champion_scores_and_is_exported_with_its_final_weights_and_judged_with_the_others(
    store: str, tmp_path: Path
) -> None:
    table = six_series()
    table.write_parquet(tmp_path / "panel.parquet")
    data = f"data.path={tmp_path / 'panel.parquet'}"
    succeed("train", MODEL, data, *with_final(TRAIN))
    done = succeed("refresh", MODEL, data, *with_final(FINETUNE), *BACKTEST)
    assert f", final fit until {END}, run " in done.out
    assert f"{NAME} v2 is champion" in done.out

    registry = Registry(RegistryConfig(name=NAME, tracking_uri=store))
    champion = registry.resolve("champion")
    artifact = fc.load(registry.download(champion))
    assert artifact.bank
    assert artifact.final
    until = (champion.tags["trained_until"], champion.tags["final_until"])
    assert until == (EVALUATED.isoformat(), END.isoformat())

    succeed("score", MODEL, data, f"output.path={tmp_path / 'out'}")
    scored = written(tmp_path / "out").select("series_id", "step", *QUANTILES)
    tonight = fc.forecast(artifact.final, table).frame.select(scored.columns)
    assert_frame_equal(scored, tonight)
    assert not scored.equals(fc.forecast(replace(artifact, final=None), table).frame.select(scored.columns))

    judged = registry.read_table(champion.tags["backtest_run"], "forecasts.parquet").filter(model="fine_tuned")
    assert judged["cutoff"].min() == EVALUATED
    first = judged.filter(pl.col("cutoff") == EVALUATED).select(scored.columns)
    evaluated = fc.forecast(artifact, table, cutoff=EVALUATED).frame.select(scored.columns)
    assert_frame_equal(first.sort("series_id", "step"), evaluated, check_exact=False, rel_tol=1e-5)

    page = Path(mlflow.artifacts.download_artifacts(run_id=champion.run_id, artifact_path="report.html")).read_text()
    assert f"<dt>final fit until</dt><dd>{END}</dd>" in page

    pytest.importorskip("onnx")
    onnx = f"output.path={tmp_path / 'onnx'}", "export.format=onnx"
    done = succeed("models", "export", MODEL, "registry.alias=champion", *onnx)
    assert f"weights of the final fit until {END}" in done.out
    assert (tmp_path / "onnx" / "model.onnx").read_bytes() == exported(artifact.final.network)
    assert json.loads((tmp_path / "onnx" / "onnx.json").read_text())["trained_until"] == END.isoformat()
