"""Table to panel: CPU time of `load_panel` against reading the same columns, 10,000 series x 1,000 hours."""

import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

from forecast.config import DataConfig
from forecast.data.io import scan
from forecast.data.load import load_panel

N_SERIES, N_STEPS, ROUNDS = 10_000, 1_000, 5


def main() -> None:
    """Print the seconds of both and their ratio, the least of five rounds each."""
    rng = np.random.default_rng(0)
    start = np.datetime64("2024-01-01T00:00:00", "us")
    stamps = start + np.arange(N_STEPS) * np.timedelta64(3_600_000_000, "us")
    table = pl.DataFrame(
        {
            "series_id": np.repeat([f"s{number:05d}" for number in range(N_SERIES)], N_STEPS),
            "timestamp": np.tile(stamps, N_SERIES),
            "target": rng.normal(size=N_SERIES * N_STEPS),
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "panel.parquet"
        table.write_parquet(path)
        read, load = [], []
        for _ in range(ROUNDS):
            begun = time.process_time()
            pl.read_parquet(path)
            read.append(time.process_time() - begun)
            begun = time.process_time()
            loaded = load_panel(scan(path), DataConfig(freq="1h"), 24)
            load.append(time.process_time() - begun)
    assert loaded.counts.rows_kept == len(table)
    print(f"read {min(read):.2f} s CPU, load_panel {min(load):.2f} s CPU, ratio {min(load) / min(read):.2f}")
