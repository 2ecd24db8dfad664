"""A forecast far beyond all that a series has been is not published."""

from datetime import datetime

import numpy as np
import polars as pl
import pytest

import forecast as fc
from forecast.artifact import Artifact

HORIZON, LENGTH = 7, 120


def table(**series: np.ndarray) -> pl.DataFrame:
    days = pl.datetime_range(datetime(2024, 1, 1), datetime(2025, 1, 1), "1d", eager=True)
    parts = (
        pl.DataFrame({"series_id": name, "timestamp": days[: len(values)], "target": values})
        for name, values in series.items()
    )
    return pl.concat(parts)


@pytest.fixture(scope="module")
def panel() -> pl.DataFrame:
    rng = np.random.default_rng(0)
    week = 10 * np.sin(2 * np.pi * np.arange(LENGTH) / 7)
    return table(
        wide=50 + week + rng.normal(size=LENGTH),
        narrow=50 + 0.1 * (week + rng.normal(size=LENGTH)),
        constant=np.full(LENGTH, 3.0),
    )


@pytest.fixture(scope="module")
def artifact(panel: pl.DataFrame) -> Artifact:
    return fc.train(
        panel, horizon=HORIZON, data={"freq": "1d"}, fit={"max_steps": 0, "final": False}, model={"init": None}
    ).artifact


def test_a_model_that_runs_away_gives_way_to_the_last_season(panel: pl.DataFrame, artifact: Artifact) -> None:
    sound = fc.forecast(artifact, panel).frame
    assert set(sound["source"]) == {"pretrained"}
    shift = artifact.network.output_bias.detach().clone()
    artifact.network.output_bias.data[:, artifact.network.head.location_index] += 1e4
    try:
        wild = fc.forecast(artifact, panel).frame
    finally:
        artifact.network.output_bias.data.copy_(shift)
    assert wild.height == sound.height
    for name in ("wide", "narrow"):
        rows = wild.filter(series_id=name)
        assert set(rows["source"]) == {"seasonal_naive"}
        last = panel.filter(series_id=name)["target"].to_numpy()[-7:]
        np.testing.assert_allclose(rows["q50"].to_numpy(), last, rtol=1e-6)
    assert set(wild.filter(series_id="constant")["source"]) == {"pretrained"}


def test_the_limit_is_ten_ranges_of_what_came_before_the_cutoff(panel: pl.DataFrame, artifact: Artifact) -> None:
    early = datetime(2024, 4, 1)
    plain = fc.forecast(artifact, panel, cutoff=early).frame
    # What comes later is neither a reason to accept a forecast nor one to refuse it.
    later = pl.col("timestamp") > early
    shaken = panel.with_columns(pl.when(later).then(pl.col("target") * 1e3).otherwise("target").alias("target"))
    assert fc.forecast(artifact, shaken, cutoff=early).frame.equals(plain)


def test_a_level_that_moves_within_the_limit_is_forecast_by_the_model(artifact: Artifact) -> None:
    steps = np.concatenate([np.linspace(0, 1, 100), np.linspace(1, 5, 20)])
    frame = fc.forecast(artifact, table(steep=steps, short=np.array([1.0, 2.0, 90.0]))).frame
    assert set(frame["source"]) == {"pretrained"}
