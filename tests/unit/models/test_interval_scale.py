"""Intervals hold what they say on windows that nothing was fitted on."""

from datetime import datetime

import numpy as np
import polars as pl
import pytest
import torch

import forecast as fc
from forecast.artifact import load
from forecast.models.heads.factory import make_head
from forecast.models.postprocess.interval_scale import after_refit
from forecast.training.result import FitResult

LEVELS = (0.025, 0.1, 0.25, 0.5, 0.75, 0.9, 0.975)


def panel(n_series: int, length: int, horizon: int, seed: int) -> tuple[pl.DataFrame, np.ndarray]:
    """Return hours of a daily wave with autoregressive noise, and what comes after them, [series, step]."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(n_series, length + horizon))
    for step in range(1, length + horizon):
        noise[:, step] += 0.8 * noise[:, step - 1]
    values = 50 + 5 * np.sin(2 * np.pi * np.arange(length + horizon) / 24) + noise
    moments = pl.datetime_range(datetime(2024, 1, 1), datetime(2026, 1, 1), "1h", eager=True)[:length]
    table = pl.concat(
        pl.DataFrame({"series_id": f"s{row:03d}", "timestamp": moments, "target": values[row, :length]})
        for row in range(n_series)
    )
    return table, values[:, length:]


def closed_form(table: pl.DataFrame, horizon: int, **fit: object) -> FitResult:
    settings = {"max_steps": 0, "holdout_windows": 0, "validation_windows": 4} | fit
    return fc.train(table, horizon=horizon, data={"freq": "1h"}, model={"smoothing": False, "init": None}, fit=settings)


def coverage(result: FitResult, table: pl.DataFrame, future: np.ndarray) -> float:
    frame = fc.forecast(result.artifact, table).frame.sort("series_id", "step")
    low, high = (frame[name].to_numpy().reshape(future.shape) for name in ("q10", "q90"))
    return float(((low <= future) & (future <= high)).mean())


def test_a_line_fitted_on_few_windows_has_wider_intervals_than_its_errors_on_them() -> None:
    scales, before, after = [], [], []
    for seed in range(4):
        table, future = panel(4, 500, 24, seed)
        result = closed_form(table, 24)
        scales.append(float(result.summary["interval_scale"]))
        after.append(coverage(result, table, future))
        result.artifact.network.interval_scale.fill_(1.0)
        before.append(coverage(result, table, future))
    assert np.mean(scales) > 1.1
    assert np.mean(before) < np.mean(after)
    assert 0.72 < np.mean(after) < 0.88


def test_intervals_that_hold_what_they_say_stay_as_they_are() -> None:
    table, future = panel(24, 600, 24, 0)
    result = closed_form(table, 24)
    assert 0.95 < float(result.summary["interval_scale"]) < 1.12
    assert 0.75 < coverage(result, table, future) < 0.85


def test_the_scale_is_kept_with_the_model(tmp_path) -> None:  # type: ignore[no-untyped-def]
    table, _ = panel(4, 500, 24, 0)
    artifact = closed_form(table, 24).artifact
    artifact.network.interval_scale.fill_(1.5)
    artifact.save(tmp_path)
    again = load(tmp_path)
    assert float(again.network.interval_scale) == 1.5
    assert fc.forecast(again, table).frame.equals(fc.forecast(artifact, table).frame)


@pytest.mark.parametrize("kind", ["quantile", "normal", "student_t"])
def test_a_stretched_distribution_keeps_its_median_and_multiplies_its_distances(kind: str) -> None:
    head = make_head(kind, LEVELS)
    generator = torch.Generator().manual_seed(0)
    if kind == "quantile":
        arguments = torch.randn(5, 3, len(LEVELS), generator=generator, dtype=torch.float64).sort(-1).values
    else:
        arguments = torch.rand(5, 3, head.n_parameters, generator=generator, dtype=torch.float64) + 2.5
    before = head.quantiles(arguments)
    after = head.quantiles(head.scale_width(arguments, torch.tensor(1.7)))
    torch.testing.assert_close(after[..., 3], before[..., 3])
    torch.testing.assert_close(after - after[..., [3]], 1.7 * (before - before[..., [3]]), rtol=1e-6, atol=1e-6)
    assert torch.equal(head.scale_width(arguments, torch.tensor(1.0)), arguments)


@pytest.mark.parametrize("kind", ["poisson", "negative_binomial", "tweedie"])
def test_a_distribution_without_a_scale_stays_as_it_is(kind: str) -> None:
    head = make_head(kind, LEVELS)
    arguments = torch.rand(4, head.n_parameters) + 1
    assert torch.equal(head.scale_width(arguments, torch.tensor(1.7)), arguments)


def test_more_windows_bring_the_scale_nearer_to_one() -> None:
    scales = [after_refit(1.9, share) for share in (1.0, 0.8, 0.5, 0.1)]
    assert scales[0] == pytest.approx(1.9)
    assert scales == sorted(scales, reverse=True)
    assert scales[-1] > 1
