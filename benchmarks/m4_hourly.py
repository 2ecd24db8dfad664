"""M4 Hourly: what one model, and its per-series heads, reach in a few minutes of two cores.

The data are read from the folder `GATECAST_BENCH_DATA` (`../shared/data` beside the checkout when not set): m4_hourly
with train.parquet and test.parquet, columns series_id, timestamp, value. Without it the benchmark says so and ends.
"""

import os
import resource
from pathlib import Path

import numpy as np
import polars as pl

from forecast.config import DataConfig, FinetuneSettings, FitConfig, ModelConfig, WindowConfig
from forecast.data.io import scan
from forecast.data.load import load_panel
from forecast.data.windows import windows_at_ends
from forecast.finetune import finetune
from forecast.fit import fit
from forecast.metrics import score_windows, seasonal_naive, seasonal_naive_errors
from forecast.predict import predict

HORIZON, SEASON, MINUTES = 48, 24, 2.5
NAIVE2 = {"smape": 18.383, "mase": 2.395}  # the denominators of OWA (M4 competition)


def main() -> None:
    """Print sMAPE, MASE and OWA of seasonal naive, the shared model, and the model with per-series heads."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("GATECAST_BENCH_DATA", beside)) / "m4_hourly"
    if not folder.is_dir():
        print("skipped: set GATECAST_BENCH_DATA to a folder that holds m4_hourly")
        return
    columns = {"target": "value"}
    data = DataConfig.model_validate({"freq": "1h", "season_length": SEASON, "calendar": False, "columns": columns})
    loaded = load_panel(scan(folder / "train.parquet"), data, HORIZON)
    test = pl.read_parquet(folder / "test.parquet").sort("series_id", "timestamp")["value"].to_numpy()
    actual = test.reshape(loaded.panel.n_series, HORIZON)
    windows = windows_at_ends(loaded.panel)
    model = ModelConfig()
    levels = model.quantile_levels
    scale, _ = seasonal_naive_errors(loaded.panel, windows, SEASON)

    def report(name: str, quantiles: np.ndarray) -> None:
        scores = score_windows(actual, quantiles.astype(float), levels=levels, scale=scale)
        smape, mase = scores["smape"].mean(), np.nanmean(scores["mase"])
        owa = (smape / NAIVE2["smape"] + mase / NAIVE2["mase"]) / 2
        print(f"{name:<16} sMAPE {smape:6.3f}  MASE {mase:.3f}  OWA {owa:.3f}  CPU {_cpu():.0f} s")

    report("seasonal naive", seasonal_naive(loaded.panel, windows, horizon=HORIZON, season=SEASON, levels=levels))
    trained = fit(
        loaded.panel,
        data=loaded.data,
        categories=loaded.categories,
        window=WindowConfig(context_length=336, horizon=HORIZON),
        model=model,
        fit=FitConfig(max_steps=4000, max_minutes=MINUTES, holdout_windows=0, validation_windows=2),
    )
    report("pretrained", predict(trained.artifact, loaded.panel, windows).base)
    settings = FinetuneSettings(holdout_windows=0, gate_windows=4, report_windows=1, origins=300)
    tuned = finetune(trained.artifact, loaded.panel, settings)
    report("fine-tuned", predict(tuned.artifact, loaded.panel, windows).tuned)
    print(f"{tuned.summary['series_tuned']} of {tuned.summary['series']} series tuned")


def _cpu() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_utime
