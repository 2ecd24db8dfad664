"""Logarithmic scales."""

import math
from collections.abc import Callable

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from forecast.data.ingest.loaded import Loaded
from forecast.models.inputs.transform import to_data, to_model, unit_of
from forecast.prediction.from_table import forecast
from forecast.training.result import FitResult


@given(
    values=st.lists(st.floats(-1e12, 1e12), min_size=2, max_size=20).map(sorted),
    unit=st.floats(1e-3, 1e3) | st.just(0.0),
)
def test_the_scale_keeps_order_and_can_be_undone(values: list[float], unit: float) -> None:
    given_values = torch.tensor(values, dtype=torch.float64)
    scaled = to_model(given_values, unit)
    assert (scaled.diff() >= 0).all()
    assert torch.allclose(to_data(scaled, unit), given_values, rtol=1e-9, atol=1e-9 * unit)
    assert torch.allclose(to_model(-given_values, unit), -scaled)


def test_far_above_the_unit_it_is_the_logarithm() -> None:
    values = torch.tensor([1.0, 10.0, 1e6], dtype=torch.float64)
    assert torch.allclose(to_model(values, 1e-4), (2e4 * values).log(), rtol=0, atol=1e-8)


def test_the_unit_is_of_what_training_may_see(
    table: Callable[..., pl.DataFrame], loaded: Callable[..., Loaded]
) -> None:
    panel = loaded(table({"a": np.linspace(10, 20, 101), "b": np.linspace(110, 120, 50)}), 1).panel
    unit, positive = unit_of(panel, panel.lengths)
    assert positive
    assert unit == pytest.approx(1.015, abs=0.005)
    assert unit_of(panel, np.array([0, 50]))[0] == pytest.approx(11.01, abs=0.01)
    with_zeros = loaded(table({"a": [0.0, 2.0, 3.0] * 40}), 1).panel
    assert unit_of(with_zeros, with_zeros.lengths) == (2.0, False)
    nothing = loaded(table({"a": [0.0, 0.0]}), 1).panel
    assert unit_of(nothing, nothing.lengths) == (1.0, False)


def test_growth_by_factors_is_forecast_on_a_logarithmic_scale_and_zeros_are_not(
    train: Callable[..., FitResult], table: Callable[..., pl.DataFrame], loaded: Callable[..., Loaded]
) -> None:
    rng = np.random.default_rng(0)
    days = np.arange(140)
    series = {}
    for i in range(6):
        wander = np.cumsum(0.4 * rng.normal(size=140))
        series[f"s{i}"] = np.exp(3 + 1.2 * np.sin(2 * np.pi * days / 7 + i) + wander + 0.3 * rng.normal(size=140))
    found = loaded(table(series), 7)
    made = train(found)
    assert str(made.summary["transform"]).startswith("log")
    plain = train(found, model={"transform": "none"})
    assert plain.summary["transform"] == "none"
    last = made.artifact.trained_until
    error = {}
    for name, result in (("log", made), ("none", plain)):
        median = forecast(result.artifact, found.panel, cutoff=last).frame
        actual = found.panel.frame().join(median, on=["series_id", "timestamp"])
        error[name] = (actual["target"] / actual["q50"]).log().abs().mean()
        assert median.select(pl.col("q10") <= pl.col("q90")).to_series().all()
    assert error["log"] < 0.9 * error["none"]

    zeros = {name: np.where(rng.random(140) < 0.1, 0.0, values) for name, values in series.items()}
    assert train(loaded(table(zeros), 7)).summary["transform"] == "none"
    assert train(loaded(table(zeros), 7), model={"transform": "log"}).artifact.network.shape.unit > 0


def test_a_series_of_zeros_and_negative_values_is_forecast_on_a_logarithmic_scale_too(
    train: Callable[..., FitResult], table: Callable[..., pl.DataFrame], loaded: Callable[..., Loaded]
) -> None:
    rng = np.random.default_rng(1)
    base = train(
        loaded(table({"a": np.exp(rng.normal(size=140)), "b": np.exp(rng.normal(size=140))}), 7),
        model={"transform": "log"},
    )
    odd = loaded(table({"zero": [0.0] * 60, "negative": -np.arange(1.0, 61), "large": [1e17] * 60}), 7)
    frame = forecast(base.artifact, odd.panel).frame
    assert frame["q50"].is_finite().all()
    assert frame.filter(series_id="zero")["q50"].to_list() == [0.0] * 7
    assert frame.filter(series_id="large")["q50"].to_list() == pytest.approx([1e17] * 7, rel=1e-4)
    assert all(math.isfinite(value) for value in frame.filter(series_id="negative")["mean"])
