"""Models that were written before still load, and forecast the same.

The numbers were written on one processor, and others round otherwise: they agree to one part in a thousand. The same
bytes are promised on the same machine, with the same versions and number of threads.

`python tests/unit/test_golden.py` writes them again, for a new `forecast.artifact_files.FORMAT_VERSION`.
"""

import shutil
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from forecast.config import SourceConfig

GOLDEN = Path(__file__).parent / "golden"
HORIZON, LENGTH = 7, 150
MODELS: dict[str, dict[str, Any]] = {
    "head": {"cell": "lstm", "ensemble": 2, "kind": "head", "calibrated": True},
    "lora": {"cell": "gru", "kind": "lora", "decoder": "segment"},
    "counts": {"cell": "gru", "head": "negative_binomial"},
    "classes": {"cell": "rnn", "head": "categorical"},
}


MANIFEST = [
    *("cutoff", "layout", "horizon", "model", "model_version", "model_digest", "runtime", "config_digest", "code"),
    *("data_digest", "key", "trained_until", "run_id", "written_at", "series", "rows", "sources", "rejects", "bounded"),
    *("carried_forward", "state", "columns", "past", "tables", "files"),
]


def make_table(name: str) -> pl.DataFrame:
    """Five daily series by formula alone, with a gap, and covariates that reach into the future."""
    step = np.arange(LENGTH)
    parts = []
    for number in range(5):
        wave = np.sin(2 * np.pi * (step + number) / 7) + 0.5 * np.sin(1.7 * step * (number + 1))
        promo = ((step * (number + 3)) % 11 < 2).astype(float)
        values: np.ndarray = 20.0 * (number + 1) * (1 + 0.3 * wave + 0.4 * promo)
        if name == "counts":
            values = np.floor(values / 10)
        target = pl.Series(values) if name != "classes" else pl.Series(np.where(wave + promo > 0.4, "wet", "dry"))
        known = step < LENGTH - HORIZON
        part = pl.DataFrame(
            {
                "series_id": [f"s{number}"] * LENGTH,
                "timestamp": [datetime(2024, 1, 1) + timedelta(days=day) for day in range(LENGTH)],
                "target": target,
                "promo": promo,
                "load": np.where(known, np.cos(0.3 * step), np.nan),
                "kind": ["even" if number % 2 == 0 else "odd"] * LENGTH,
            }
        )
        gap = (pl.col("timestamp") > datetime(2024, 2, 1)) & (pl.col("timestamp") < datetime(2024, 2, 4))
        parts.append(part.with_columns(pl.when(pl.Series(known) & ~gap).then("target").alias("target")))
    return pl.concat(parts).with_columns(pl.col("load").fill_nan(None))


def forecasts(model: Path, table: Path) -> pl.DataFrame:
    from forecast.artifact import load
    from forecast.prediction.from_table import forecast

    artifact = load(model)
    made = forecast(artifact, artifact.open(SourceConfig(path=str(table))).panel, model_version="1").frame
    return made.with_columns(pl.col("^timestamp|cutoff$").cast(pl.Datetime("us")))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.trains
def test_a_model_that_was_written_before_forecasts_the_same(name: str, tmp_path: Path) -> None:
    make_table(name).write_parquet(tmp_path / "table.parquet")
    check_rows(name, forecasts(GOLDEN / name / "model", tmp_path / "table.parquet"))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.trains
def test_scoring_writes_the_same_rows_and_counts_in_shards(name: str, tmp_path: Path) -> None:
    from forecast.artifact import load
    from forecast.config import ScoreOutput, ScoreSettings
    from forecast.scoring.job import ScoreJob

    make_table(name).write_parquet(tmp_path / "table.parquet")
    artifact = load(GOLDEN / name / "model")
    loaded = artifact.open(SourceConfig(path=str(tmp_path / "table.parquet")))
    settings, output = ScoreSettings(shard_size=2, runtime="torch"), ScoreOutput(path=str(tmp_path / "scores"))
    names = {"model": "m", "model_version": "1", "model_digest": "ab12"}
    content = ScoreJob(artifact, loaded, settings, output, names).write(loaded.panel.last_index).content
    files = [tmp_path / "scores" / file for file in content["files"]]
    rows = pl.read_parquet(files, hive_partitioning=False).with_columns(
        pl.col("^timestamp|cutoff$").cast(pl.Datetime("us"))
    )
    assert len(files) == 3
    assert rows.columns[-2:] == ["model_name", "model_digest"] == content["columns"][-2:]
    assert rows["model_name"].unique().to_list() == ["m"]
    check_rows(name, rows.drop("model_name", "model_digest"))
    assert content["sources"] == dict(rows.filter(step=1).group_by("source").len().iter_rows())
    assert content["series"] == {"in": 5, "forecast": 5, "rejected": 0}
    assert content["rows"]["written"] == len(rows)
    assert list(content) == MANIFEST


def check_rows(name: str, found: pl.DataFrame) -> None:
    """Compare forecasts with those that were written before."""
    expected = pl.read_csv(GOLDEN / name / "forecasts.csv", schema_overrides=found.schema)
    assert len(found) == 5 * HORIZON
    assert found.columns == expected.columns
    for column, kind in found.schema.items():
        if kind.is_float():
            scale = float(np.abs(expected[column].to_numpy()).mean())
            np.testing.assert_allclose(found[column], expected[column], rtol=1e-3, atol=1e-4 * scale, err_msg=column)
        else:
            assert found[column].to_list() == expected[column].to_list(), column


def write(name: str, folder: Path) -> None:
    """Train a model and keep it with its forecasts."""
    from forecast.calibration.calibrate import calibrate
    from forecast.config import CalibrateSettings, DataConfig, FinetuneSettings, FitConfig, ModelConfig, WindowConfig
    from forecast.data.read import read_panel
    from forecast.finetuning.finetune import finetune
    from forecast.training.fit import fit

    shutil.rmtree(folder / name, ignore_errors=True)
    folder = folder / name
    folder.mkdir(parents=True)
    given = dict(MODELS[name])
    kind, calibrated = given.pop("kind", None), given.pop("calibrated", False)
    make_table(name).write_parquet(folder / "table.parquet")
    covariates = {"past_covariates": ["load"], "known_covariates": ["promo"], "static_covariates": ["kind"]}
    data = DataConfig.model_validate({"path": str(folder / "table.parquet"), "freq": "1d", **covariates})
    loaded = read_panel(data, HORIZON)
    learning = {"max_steps": 60, "learning_rate": 2e-2, "ema_decay": 0.9, "validation_every": 10, "holdout_windows": 4}
    artifact = fit(
        loaded.panel,
        data=loaded.data,
        categories=loaded.categories,
        window=WindowConfig(context_length=21, horizon=HORIZON),
        fit=FitConfig.model_validate({**learning, "accelerator": "cpu", "ensemble": given.pop("ensemble", 1)}),
        model=ModelConfig.model_validate({"hidden_size": 6, **given}),
    ).artifact
    if kind:
        # Every series is kept.
        gate = {"min_gain": -1e9, "min_windows_better": 0.0}
        tuning = FinetuneSettings(kind=kind, gate_windows=2, report_windows=1, holdout_windows=4).model_copy(
            update=gate
        )
        artifact = finetune(artifact, loaded.panel, tuning).artifact
        assert artifact.bank is not None
        assert artifact.bank.series_id
    if calibrated:
        artifact = calibrate(
            artifact, loaded.panel, CalibrateSettings(holdout_windows=0, n_windows=15, step_size=1)
        ).artifact
    artifact.save(folder / "model")
    forecasts(folder / "model", folder / "table.parquet").write_csv(folder / "forecasts.csv", float_precision=5)
    (folder / "table.parquet").unlink()


if __name__ == "__main__":
    for each in MODELS:
        write(each, GOLDEN)
