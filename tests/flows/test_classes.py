"""Every verb on a target of classes."""

import json
from datetime import datetime, timedelta
from pathlib import Path

import mlflow.pyfunc
import numpy as np
import polars as pl
import pytest
from flow import refuse, succeed, written

from forecast.config import RegistryConfig
from forecast.tracking.registry import Registry

NAMES = ("down", "idle", "up")
DATA = ("data.columns.target=state", "data.past_covariates=[load]")
SMALL = ("model.hidden_size=8", "model.smoothing=false", "model.init=none", "fit.max_steps=0", "fit.accelerator=cpu")
MODEL = ("window.horizon=6", "window.context_length=24", "model.head=categorical", "fit.holdout_windows=4")
NAME = "registry.name=states"


def states(name: str = "state") -> pl.DataFrame:
    """Hourly states of eight machines that mostly stay, and a load that tells a little."""
    rng = np.random.default_rng(0)
    after = np.array([[0.7, 0.2, 0.1], [0.1, 0.7, 0.2], [0.05, 0.15, 0.8]])
    parts = []
    for machine in range(8):
        codes = [2]
        for _ in range(239):
            codes.append(rng.choice(3, p=after[codes[-1]]))
        times = [datetime(2024, 1, 1) + timedelta(hours=step) for step in range(240)]
        values = {"series_id": f"m{machine}", "timestamp": times, name: [NAMES[code] for code in codes]}
        parts.append(pl.DataFrame({**values, "load": np.array(codes) + rng.normal(size=240)}))
    return pl.concat(parts)


def test_every_verb_takes_classes(store: str, tmp_path: Path) -> None:
    table, prepared, out = tmp_path / "table.csv", tmp_path / "panel", tmp_path / "out"
    states().write_csv(table)
    succeed("data", "prepare", f"data.path={table}", *DATA, "window.horizon=6", f"output.path={prepared}")
    shown = succeed("data", "profile", f"data.path={table}", *DATA, f"output.path={tmp_path / 'profile'}").out
    counts = states()["state"].value_counts()
    assert all(f"{count:,}" in shown for count in counts["count"])
    assert "Zeros" not in shown
    succeed("train", NAME, f"data.path={prepared}", *DATA, *MODEL, *SMALL)
    fine = "finetune.gate_windows=2", "finetune.report_windows=1", "finetune.min_gain=0"
    succeed("finetune", NAME, f"data.path={table}", *fine)
    done = succeed("backtest", NAME, "registry.alias=challenger", f"data.path={table}", f"output.path={out / 'test'}")
    assert "log-loss" in done.lines[-1]
    assert "macro F1" in done.lines[-1]
    # The gate was told to keep any gain: it has kept chance.
    message = refuse(5, "promote", NAME)
    assert "fine_tuned is worse than pretrained in log-loss: " in message
    assert "its base, states v1, passes on the same windows (log-loss " in message
    assert f"run forecast backtest {NAME} registry.alias=1 data.path=TABLE, then forecast promote {NAME} " in message
    succeed("backtest", NAME, "registry.alias=1", f"data.path={table}")
    assert "log-loss" in succeed("promote", NAME, "registry.alias=1").out
    scored = succeed("score", NAME, f"data.path={table}", f"output.path={out}")
    assert "8 series = 8 forecast + 0 rejected" in scored.out

    frame = written(out)
    probabilities = frame.select("p_down", "p_idle", "p_up").to_numpy()
    np.testing.assert_allclose(probabilities.sum(1), 1.0, atol=1e-6)
    assert frame["class"].to_list() == [NAMES[code] for code in probabilities.argmax(1)]
    (manifest,) = out.glob("manifests/*.json")
    assert json.loads(manifest.read_text())["series"] == {"in": 8, "forecast": 8, "rejected": 0}

    registry = Registry(RegistryConfig(name="states", tracking_uri=store))
    run = registry.resolve("challenger").tags["backtest_run"]
    confusion = registry.read_table(run, "confusion.parquet")
    assert set(confusion["target"]) <= set(NAMES)
    assert pl.read_parquet(out / "test" / "confusion.parquet").equals(confusion)
    summary = pl.read_parquet(out / "test" / "summary.parquet")
    own, naive = (summary.filter(model=name)["log_loss"].item() for name in ("pretrained", "seasonal_naive"))
    assert own < naive

    version = registry.resolve("champion")
    again = mlflow.pyfunc.load_model(f"models:/{version.name}/{version.number}").predict(states().to_pandas())
    stated = again[["p_down", "p_idle", "p_up"]].to_numpy()
    np.testing.assert_allclose(stated, probabilities)


def test_paths_of_classes_go_through_the_registry(store: str, tmp_path: Path) -> None:  # noqa: ARG001
    table, out = tmp_path / "table.parquet", tmp_path / "out"
    states().write_parquet(table)
    paths = "model.decoder=autoregressive", "model.n_paths=16", "model.attention=true"
    succeed("train", NAME, f"data.path={table}", *DATA, *MODEL, *SMALL, *paths)
    version = NAME, "registry.alias=pretrained", f"data.path={table}"
    assert "log-loss" in succeed("backtest", *version).lines[-1]
    assert "8 series = 8 forecast + 0 rejected" in succeed("score", *version, f"output.path={out}").out
    scored = written(out).select("p_down", "p_idle", "p_up").to_numpy()
    np.testing.assert_allclose(scored.sum(1), 1.0, atol=1e-6)
    again = mlflow.pyfunc.load_model("models:/states/1").predict(states().to_pandas())
    np.testing.assert_allclose(again[["p_down", "p_idle", "p_up"]].to_numpy(), scored)


def test_bad_classes_are_told(store: str, tmp_path: Path) -> None:  # noqa: ARG001
    table, other = tmp_path / "table.parquet", tmp_path / "other.parquet"
    states().write_parquet(table)
    broken = pl.int_range(pl.len()) % 40 == 7
    states().with_columns(state=pl.when(broken).then(pl.lit("broken")).otherwise("state")).write_parquet(other)
    message = refuse(3, "train", NAME, f"data.path={table}", *DATA, "window.horizon=6", "fit.accelerator=cpu")
    assert "column 'state' (data.columns.target) holds 3 classes (down, idle, up)" in message
    assert "set model.head=categorical" in message
    message = refuse(
        3, "train", NAME, f"data.path={table}", *DATA, "window.horizon=6", "model.head=bernoulli", "fit.accelerator=cpu"
    )
    assert "holds 3: down, idle, up" in message
    succeed("train", NAME, f"data.path={table}", *DATA, *MODEL, *SMALL)
    score = "score", NAME, "registry.alias=pretrained", f"data.path={other}"
    done = succeed(*score, f"output.path={tmp_path / 'out'}")
    assert "48 rejects" in done.out
    assert set(written(tmp_path / "out", "rejects")["reason"]) == {"unknown class 'broken'"}
    message = refuse(3, *score, f"output.path={tmp_path / 'more'}", "data.max_reject_share=0.01")
    assert "48 of 1,920 rows (2.5%)" in message
    assert "unknown class 'broken'" in message


@pytest.mark.parametrize("head", ["tweedie", "poisson"])
def test_amounts_are_scored_by_their_distribution(store: str, tmp_path: Path, head: str) -> None:  # noqa: ARG001
    rng = np.random.default_rng(0)
    jumps = rng.poisson(0.8, 1920)
    values = np.where(jumps > 0, rng.gamma(np.maximum(jumps, 1)), 0.0) if head == "tweedie" else jumps.astype(float)
    states().drop("state", "load").with_columns(target=pl.Series(values)).write_parquet(tmp_path / "table.parquet")
    data = NAME, f"data.path={tmp_path / 'table.parquet'}"
    shape = "window.horizon=6", "window.context_length=24", f"model.head={head}"
    succeed("train", *data, *shape, *SMALL)
    done = succeed("backtest", *data, "registry.alias=pretrained", f"output.path={tmp_path / 'out'}")
    assert "CRPS" in done.lines[-1]
    summary = pl.read_parquet(tmp_path / "out" / "summary.parquet").rows_by_key("model", named=True, unique=True)
    assert summary["pretrained"]["crps"] < summary["seasonal_naive"]["crps"]
