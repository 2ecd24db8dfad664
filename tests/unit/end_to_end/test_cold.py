"""Series without any observation, forecast from the series that are most like them."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal
from pydantic import ValidationError

import forecast as fc
from forecast.artifact import Artifact
from forecast.config import ScoreOutput, ScoreSettings, SourceConfig
from forecast.data.files import locked
from forecast.data.ingest.cold import with_cold_series
from forecast.data.ingest.loaded import Loaded
from forecast.errors import ConfigError
from forecast.prediction.cold import ColdProfile
from forecast.scoring.job import ScoreJob
from forecast.scoring.parts import Output

NAMES = {"model": "m", "model_version": "3", "model_digest": "ab12"}
WEEK = np.array([1.0, 2, 3, 4, 5, 20, 30])
QUANTILES = [f"q{level}0" for level in range(1, 10)]


@pytest.fixture(scope="module")
def sales(table: Callable[..., pl.DataFrame]) -> pl.DataFrame:
    """48 series with one week of their own, of two kinds: the second is ten times as large. promo is known."""
    rng = np.random.default_rng(0)
    series = {
        f"s{number:02d}": np.tile(WEEK, 12) * (10 if number % 2 else 1) + rng.normal(scale=0.1, size=84)
        for number in range(48)
    }
    return table(series, promo={name: np.zeros(84) for name in series})


@pytest.fixture(scope="module")
def static(sales: pl.DataFrame) -> pl.DataFrame:
    """The kind of each series, and of three that have no rows: small, large, and of an unknown kind."""
    names = [*sales["series_id"].unique().sort(), "a_small", "b_large", "z_other"]
    kinds = [*["small", "large"] * 24, "small", "large", None]
    return pl.DataFrame({"series_id": names, "kind": kinds})


@pytest.fixture(scope="module")
def files(sales: pl.DataFrame, static: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> SourceConfig:
    """The tables, and a series that has rows but no target."""
    folder = tmp_path_factory.mktemp("cold")
    nulls = sales.filter(pl.col("series_id") == "s00").with_columns(series_id=pl.lit("n_null"), target=None)
    pl.concat([sales, nulls], how="vertical_relaxed").write_parquet(folder / "rows.parquet")
    kinds = pl.concat([static, pl.DataFrame({"series_id": ["n_null"], "kind": ["large"]})])
    kinds.write_parquet(folder / "static.parquet")
    return SourceConfig(
        path=str(folder / "rows.parquet"), static_path=str(folder / "static.parquet"), max_reject_share=1.0
    )


@pytest.fixture(scope="module")
def artifact(sales: pl.DataFrame, static: pl.DataFrame) -> Artifact:
    data = {"static_covariates": ["kind"], "known_covariates": ["promo"]}
    return fc.train(sales, static=static, horizon=10, context_length=28, data=data, fit={"max_steps": 0}).artifact


def read(artifact: Artifact, files: SourceConfig, *, cold: bool = True) -> Loaded:
    loaded = artifact.open(files)
    return with_cold_series(loaded, artifact.reading(files)) if cold else loaded


def write(artifact: Artifact, loaded: Loaded, folder: Path, **score: Any) -> Output:
    settings = ScoreSettings.model_validate({"shard_size": 20} | score)
    with locked(folder):
        return ScoreJob(artifact, loaded, settings, ScoreOutput(path=str(folder)), NAMES).write(loaded.panel.last_index)


def rows_of(folder: Path, kind: str = "forecasts") -> pl.DataFrame:
    return pl.read_parquet(sorted(folder.glob(f"{kind}/*/*.parquet")), hive_partitioning=False)


def test_a_series_without_history_is_forecast_from_those_like_it(
    artifact: Artifact, files: SourceConfig, tmp_path: Path
) -> None:
    content = write(artifact, read(artifact, files), tmp_path, cold_start=True).content
    assert content["series"] == {"in": 52, "forecast": 52, "rejected": 0}
    assert content["sources"] == {"cold": 4, "pretrained": 48}
    frame = rows_of(tmp_path)
    assert frame.select("series_id", "step").equals(frame.select("series_id", "step").sort("series_id", "step"))
    week = np.resize(WEEK, 10)
    for name, scale in {"a_small": 1, "b_large": 10, "n_null": 10}.items():
        rows = frame.filter(pl.col("series_id") == name)
        np.testing.assert_allclose(rows["q50"], scale * week, atol=0.1)
        np.testing.assert_allclose(rows["mean"], scale * week, atol=0.1)
        assert set(rows["source"]) == {"cold"}
    # Of an unknown kind, it may be of either.
    rows = frame.filter(pl.col("series_id") == "z_other")
    np.testing.assert_allclose(rows["q10"], week, atol=0.3)
    np.testing.assert_allclose(rows["q90"], 10 * week, atol=0.3)


def test_other_series_are_as_without_them(artifact: Artifact, files: SourceConfig, tmp_path: Path) -> None:
    write(artifact, read(artifact, files), tmp_path / "cold", cold_start=True)
    content = write(artifact, read(artifact, files, cold=False), tmp_path / "plain").content
    assert content["series"] == {"in": 49, "forecast": 48, "rejected": 1}
    assert content["rejects"] == {"no observed target": 1}
    assert "cold_digest" not in content
    warm = rows_of(tmp_path / "cold").filter(pl.col("source") != "cold")
    plain = rows_of(tmp_path / "plain")
    assert warm.drop("mean", *QUANTILES).equals(plain.drop("mean", *QUANTILES))
    np.testing.assert_allclose(warm.select("mean", *QUANTILES), plain.select("mean", *QUANTILES), rtol=1e-5)


def test_intervals_cover_withheld_series(artifact: Artifact, files: SourceConfig) -> None:
    loaded = read(artifact, files, cold=False)
    panel = loaded.panel
    profile = ColdProfile(panel, panel.last_index, 7)
    levels = [0.1, 0.5, 0.9]
    inside = []
    for number in range(panel.n_series):
        codes, numbers = panel.static_categories[number], panel.static_numbers[number]
        quantiles, _ = profile.forecast(codes, numbers, 7, levels)
        actual = panel.target[panel.offsets[number + 1] - 7 : panel.offsets[number + 1]]
        inside.append((actual >= quantiles[:, 0]) & (actual <= quantiles[:, 2]))
    assert np.mean(inside) == pytest.approx(0.8, abs=0.07)


def test_nothing_after_the_cutoff_is_in_a_pool(artifact: Artifact, files: SourceConfig, tmp_path: Path) -> None:
    loaded = read(artifact, files)
    cutoff = loaded.panel.last_index - 14
    with locked(tmp_path):
        settings = ScoreSettings(cold_start=True)
        ScoreJob(artifact, loaded, settings, ScoreOutput(path=str(tmp_path)), NAMES).write(cutoff)
    rows = rows_of(tmp_path).filter(pl.col("series_id") == "a_small")
    np.testing.assert_allclose(rows["q50"], np.resize(WEEK, 10), atol=0.1)


def test_what_does_not_fit_is_refused(artifact: Artifact, files: SourceConfig, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="cold_start does not go with state, scenario and shadow"):
        ScoreSettings(cold_start=True, state="state")
    fc.prepare(
        files.path,
        tmp_path / "panel",
        horizon=10,
        static=files.static_path,
        data={"static_covariates": ["kind"], "known_covariates": ["promo"], "max_reject_share": 1.0},
    )
    source = files.model_copy(update={"path": str(tmp_path / "panel"), "static_path": None})
    with pytest.raises(ConfigError, match="is a prepared panel, which holds series with observations only"):
        read(artifact, source)


def test_a_function_forecasts_series_of_a_table_without_any_history(
    artifact: Artifact, sales: pl.DataFrame, static: pl.DataFrame, files: SourceConfig
) -> None:
    cutoff = sales["timestamp"].max()
    promo = pl.DataFrame({"timestamp": pl.datetime_range(cutoff, cutoff + timedelta(days=10), "1d", eager=True)})
    known = promo.with_columns(promo=0.0)
    plain = fc.forecast(artifact, sales, known=known, static=static).frame
    frame = fc.forecast(artifact, sales, known=known, static=static, cold_start=True).frame
    assert_frame_equal(frame.filter(pl.col("source") != "cold"), plain, rel_tol=1e-5)
    cold = frame.filter(source="cold")
    assert set(cold["series_id"]) == {"a_small", "b_large", "z_other"}
    small, large = (cold.filter(series_id=name)["mean"].to_numpy() for name in ("a_small", "b_large"))
    np.testing.assert_allclose(large, 10 * small, rtol=0.05)
    assert files.path is not None
    assert files.static_path is not None
    from_files = fc.forecast(artifact, files.path, static=files.static_path, cold_start=True).frame
    assert {"a_small", "b_large", "z_other", "n_null"} == set(from_files.filter(source="cold")["series_id"])


def test_a_pretrained_network_has_no_cold_start(sales: pl.DataFrame) -> None:
    with pytest.raises(ConfigError, match="cold_start: it is for trained models"):
        fc.forecast("gatecast-nano", sales, horizon=7, cold_start=True)
