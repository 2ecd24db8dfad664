"""Panels that are usual and hard: short ones, new series, glitches, tiny variation, levels beyond float32."""

from collections.abc import Callable
from datetime import timedelta

import numpy as np
import polars as pl
import pytest

from forecast.artifact import Artifact
from forecast.config import FinetuneSettings
from forecast.data.ingest.loaded import Loaded
from forecast.data.windows import windows_at
from forecast.finetuning.finetune import finetune
from forecast.models.inputs.batch import PanelTensors
from forecast.models.network.carried_state import StateStore, advance, segments_since
from forecast.prediction.from_table import forecast
from forecast.prediction.predict import predict
from forecast.training.result import FitResult

Table = Callable[..., pl.DataFrame]
Load = Callable[..., Loaded]
Train = Callable[..., FitResult]
LENGTH, HORIZON = 200, 7


def wave(first: int, last: int, season: int = 7) -> np.ndarray:
    return 10 * np.sin(2 * np.pi * np.arange(first, last) / season)


def noisy(seed: int, length: int = LENGTH, season: int = 7) -> np.ndarray:
    return 100 + wave(0, length, season) + np.random.default_rng(seed).normal(size=length)


AHEAD = 100 + wave(LENGTH, LENGTH + HORIZON)


def forecast_of(artifact: Artifact, panel: Loaded, name: str) -> pl.DataFrame:
    return forecast(artifact, panel.panel).frame.filter(pl.col("series_id") == name)


@pytest.mark.parametrize(
    ("freq", "every", "length", "horizon", "season", "n_series"),
    [
        ("1d", timedelta(days=1), 60, 7, 7, 10),
        ("1d", timedelta(days=1), 45, 3, 7, 2),
        ("1h", timedelta(hours=1), 100, 6, 24, 4),
        ("1w", timedelta(weeks=1), 130, 8, 52, 5),
        ("1w", timedelta(weeks=1), 115, 4, 52, 3),
    ],
)
@pytest.mark.parametrize("n_steps", [0, 4])
def test_forecasts_of_short_panels_stay_near_their_values(
    table: Table, loaded: Load, train: Train, freq: str, every: timedelta, length: int, horizon: int, season: int,
    n_series: int, n_steps: int,
) -> None:  # fmt: skip
    values = {f"s{i}": 10 * i + noisy(i, length, season) for i in range(n_series)}
    found = loaded(table(values, every=every), horizon, freq=freq)
    made = train(found, context=None, max_steps=n_steps)
    frame = forecast(made.artifact, found.panel).frame
    low, high = found.panel.target.min(), found.panel.target.max()
    margin = 0.5 * (high - low)
    assert frame["q10"].min() > low - margin
    assert frame["q90"].max() < high + margin


@pytest.fixture(scope="module")
def counts(table: Table, loaded: Load, train: Train) -> tuple[Artifact, dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    series = {f"s{i:02d}": rng.poisson(20, LENGTH).astype(float) for i in range(20)}
    return train(loaded(table(series), HORIZON)).artifact, series


@pytest.mark.parametrize("n_observed", [1, 2, 3, 8])
def test_a_new_series_is_no_more_certain_than_old_ones(
    table: Table, loaded: Load, counts: tuple[Artifact, dict[str, np.ndarray]], n_observed: int
) -> None:
    artifact, series = counts
    rng = np.random.default_rng(n_observed)
    new = {f"n{i:03d}": rng.poisson(20, n_observed).astype(float) for i in range(100)}
    late = dict.fromkeys(new, LENGTH - n_observed)
    frame = forecast(artifact, loaded(table(series | new, late=late), HORIZON).panel).frame
    width = frame.with_columns(new=pl.col("series_id").str.starts_with("n"), width=pl.col("q90") - pl.col("q10"))
    old_width, new_width = width.group_by("new").agg(pl.col("width").mean()).sort("new")["width"]
    assert new_width > 0.95 * old_width
    outcome = rng.poisson(20, (100, HORIZON)).ravel()
    own = frame.filter(pl.col("series_id").str.starts_with("n"))
    covered = (own["q10"].to_numpy() <= outcome) & (outcome <= own["q90"].to_numpy())
    assert 0.6 < covered.mean() < 0.95


def test_new_series_of_any_level_take_the_relative_scale_of_the_panel(table: Table, loaded: Load, train: Train) -> None:
    rng = np.random.default_rng(0)
    series = {f"s{i}": 10.0**i * (10 + rng.normal(size=LENGTH)) for i in range(5)}
    artifact = train(loaded(table(series), HORIZON), model={"transform": "none"}).artifact
    new = {"large": [100_000.0], "small": [10.0], "zero": [0.0]}
    found = loaded(table(series | new, late=dict.fromkeys(new, LENGTH - 1)), HORIZON)
    width = {name: float((frame["q90"] - frame["q10"]).mean()) for name, frame in
             ((name, forecast_of(artifact, found, name)) for name in new)}  # fmt: skip
    assert 0.1 < width["large"] / 100_000 < 0.6
    assert width["small"] == pytest.approx(width["large"] / 10_000, rel=1e-3)
    assert width["zero"] > 0


@pytest.fixture(scope="module", params=["none", "log", "normal"])
def weekly_model(request: pytest.FixtureRequest, table: Table, loaded: Load, train: Train) -> Artifact:
    series = {f"s{i}": noisy(i) for i in range(8)}
    model = {"head": "normal"} if request.param == "normal" else {"transform": request.param}
    return train(loaded(table(series), HORIZON), model=model).artifact


def test_a_glitch_in_the_past_does_not_ruin_a_forecast(table: Table, loaded: Load, weekly_model: Artifact) -> None:
    glitches = [(1e6, 1), (1e6, 3), (1e6, 50), (1e9, 20), (1000, 5), (-9999, 20), (-9999, 1), (-999, 2), (400, 10)]
    series = {"fine": noisy(0)}
    for number, (value, back) in enumerate(glitches):
        series[f"odd{number}"] = noisy(number)
        series[f"odd{number}"][-back] = value
    series["codes"] = noisy(20)
    series["codes"][-12:-8] = -9999
    frame = forecast(weekly_model, loaded(table(series), HORIZON).panel).frame
    for name in series:
        part = frame.filter(pl.col("series_id") == name)
        for column in ("q50", "mean"):
            assert np.abs(part[column].to_numpy() - AHEAD).mean() < 3, (name, column)
        assert (part["q90"] - part["q10"]).max() < 40, name


def test_a_glitch_in_the_past_does_not_ruin_a_training(table: Table, loaded: Load, train: Train) -> None:
    series = {f"s{i}": noisy(i) for i in range(6)}
    series["s0"][100] = 1e6
    for head in ("quantile", "normal", "poisson"):
        found = loaded(table({name: values.round() for name, values in series.items()}), HORIZON)
        frame = forecast(train(found, model={"head": head}, max_steps=10).artifact, found.panel).frame
        assert np.abs(frame["mean"].to_numpy().reshape(-1, HORIZON) - AHEAD).mean() < 5, head


def nearly_constant(kind: str, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return {
        "small": 100 + 1e-6 * wave(0, LENGTH),
        "meter": 2e9 + np.cumsum(rng.integers(1, 5, LENGTH)),
        "level": 1e5 + 0.01 * rng.normal(size=LENGTH),
        "mostly": np.where(np.arange(LENGTH) % 60 == 59, 1.0, 0.0) + 5,
    }[kind]


@pytest.mark.parametrize("kind", ["small", "meter", "level", "mostly"])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_nearly_constant_series_is_forecast_at_its_level(
    table: Table, loaded: Load, train: Train, kind: str, seed: int
) -> None:
    values = nearly_constant(kind, seed)
    found = loaded(table({**{f"z{i}": noisy(10 * seed + i) for i in range(3)}, "odd": values}), HORIZON)
    frame = forecast_of(train(found).artifact, found, "odd")
    size = max(values[-30:].max() - values[-30:].min(), 1e-5)
    assert np.abs(frame["q50"].to_numpy() - values[-1]).max() < 2 * size


@pytest.mark.parametrize("level", [1.7e9, -1.7e9, 1e12])
@pytest.mark.parametrize("transform", ["none", "auto"])
def test_any_level_keeps_its_variation(table: Table, loaded: Load, train: Train, level: float, transform: str) -> None:
    series = {"constant": np.full(LENGTH, level + 1), "high": level - 100 + noisy(0), "low": noisy(1)}
    found = loaded(table(series), HORIZON)
    assert found.panel.target.dtype == np.float64
    artifact = train(found, model={"transform": transform}).artifact
    frame = forecast_of(artifact, found, "high")
    for column in ("q50", "mean"):
        assert np.abs(frame[column].to_numpy() - level + 100 - AHEAD).mean() < 1.5, column
    assert 1 < (frame["q90"] - frame["q10"]).mean() < 10
    assert forecast_of(artifact, found, "constant")["q50"].unique().to_list() == [level + 1]

    every_series = {"min_gain": -1e9, "min_windows_better": 0.0}
    tuned = finetune(artifact, found.panel, FinetuneSettings().model_copy(update=every_series)).artifact
    assert tuned.bank is not None
    error = forecast_of(tuned, found, "high")["q50"].to_numpy() - level + 100 - AHEAD
    assert np.abs(error).mean() < 2.5

    index = found.panel.last_index
    windows = windows_at(found.panel, index)
    carried = StateStore.blank(artifact.network, found.panel.n_series)
    segments = segments_since(found.panel, windows, artifact.network.shape.segment_length)
    advance(artifact.network, PanelTensors.of(found.panel, artifact.network), windows, segments, carried)
    step_by_step = predict(artifact, found.panel, windows, carried=carried).tuned
    np.testing.assert_allclose(step_by_step - level, predict(artifact, found.panel, windows).tuned - level, atol=0.2)


def test_ordinary_panels_stay_in_float32(table: Table, loaded: Load) -> None:
    ordinary = {"a": noisy(0), "large": 1e7 * noisy(1), "constant": np.full(LENGTH, 0.1), "whole": np.full(50, 2.0**30)}
    assert loaded(table(ordinary), HORIZON).panel.target.dtype == np.float32


NOISE: dict[str, Callable[[np.random.Generator, tuple[int, int]], np.ndarray]] = {
    "normal": lambda rng, shape: 100 + 5 * rng.normal(size=shape),
    "poisson": lambda rng, shape: rng.poisson(20, shape).astype(float),
    "lognormal": lambda rng, shape: np.exp(rng.normal(size=shape)),
}


@pytest.mark.parametrize("kind", NOISE)
def test_intervals_of_daily_noise_hold_about_what_they_say(table: Table, loaded: Load, train: Train, kind: str) -> None:
    values = NOISE[kind](np.random.default_rng(0), (40, LENGTH + HORIZON))
    found = loaded(table({f"s{i:02d}": row[:LENGTH] for i, row in enumerate(values)}), HORIZON)
    frame = forecast(train(found, context=56).artifact, found.panel).frame
    outcome = values[:, LENGTH:].ravel()
    covered = (frame["q10"].to_numpy() <= outcome) & (outcome <= frame["q90"].to_numpy())
    assert 0.68 < covered.mean() < 0.92  # 280 of 0.8 have a standard error of 0.024.


def test_a_normal_distribution_of_rare_counts_is_as_wide_as_they_vary(table: Table, loaded: Load, train: Train) -> None:
    values = np.random.default_rng(5).poisson(0.15, (30, LENGTH)).astype(float)
    found = loaded(table({f"s{i:02d}": row for i, row in enumerate(values)}), HORIZON)
    frame = forecast(train(found, context=56, model={"head": "normal"}, max_steps=20).artifact, found.panel).frame
    assert frame["mean"].mean() == pytest.approx(values.mean(), rel=0.3)
    assert 0.1 < (frame["q90"] - frame["q10"]).mean() < 4
