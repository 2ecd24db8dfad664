"""Forecasts of skewed, independent values: sums of means are sums of outcomes, and quantiles hold their share."""

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest

from forecast.data.ingest.loaded import Loaded
from forecast.data.windows import WindowIndex
from forecast.prediction.predict import predict
from forecast.training.result import FitResult

Table, Load, Train = Callable[..., pl.DataFrame], Callable[..., Loaded], Callable[..., FitResult]
N_SERIES, LENGTH, HORIZON = 60, 240, 2
LEARNING: dict[str, Any] = {"max_steps": 30, "learning_rate": 1e-2, "ema_decay": 0.9, "validation_every": 10}


def negative_binomial(rng: np.random.Generator) -> np.ndarray:
    return rng.negative_binomial(0.6, 0.6 / (0.6 + 3.0), (N_SERIES, LENGTH)).astype(float)


def sparse(rng: np.random.Generator) -> np.ndarray:
    return rng.poisson(0.3, (N_SERIES, LENGTH)).astype(float)


def amounts(rng: np.random.Generator) -> np.ndarray:
    count = rng.poisson(0.8, (N_SERIES, LENGTH))
    return np.where(count > 0, rng.gamma(np.maximum(count, 1), 4.0), 0.0)


def log_normal(rng: np.random.Generator) -> np.ndarray:
    return rng.lognormal(3.0, 1.0, (N_SERIES, LENGTH))


CASES = {
    "poisson": ("poisson", sparse, "none"),
    "negative_binomial": ("negative_binomial", negative_binomial, "none"),
    "tweedie": ("tweedie", amounts, "none"),
    "normal": ("normal", negative_binomial, "none"),
    "normal, sparse": ("normal", sparse, "none"),
    "student_t": ("student_t", sparse, "none"),
    "quantile": ("quantile", negative_binomial, "none"),
    "quantile, sparse": ("quantile", sparse, "none"),
    "quantile, amounts": ("quantile", log_normal, "none"),
    "quantile, log": ("quantile", log_normal, "log"),
}

MISSHAPEN = ("normal", "normal, sparse", "student_t")
"""Symmetric distributions of counts: their quantiles can't all be right."""


@pytest.mark.parametrize("steps", [0, LEARNING["max_steps"]])
@pytest.mark.parametrize("case", CASES)
def test_sums_of_means_are_sums_of_outcomes(train: Train, table: Table, loaded: Load, case: str, steps: int) -> None:
    head, draw, transform = CASES[case]
    values = draw(np.random.default_rng(7))
    panel = loaded(table({f"s{i:02d}": row for i, row in enumerate(values)}), HORIZON, calendar=False, season_length=1)
    model = {"head": head, "transform": transform, "hidden_size": 16}
    fitted = train(panel, context=40, model=model, **{**LEARNING, "max_steps": steps}).artifact
    cutoffs = np.arange(60, LENGTH - HORIZON, 8)
    windows = WindowIndex(np.repeat(np.arange(N_SERIES), len(cutoffs)), np.tile(cutoffs, N_SERIES))
    forecasts = predict(fitted, panel.panel, windows)
    assert forecasts.tuned_mean.mean() == pytest.approx(values[:, 40:].mean(), rel=0.03)
    if case in MISSHAPEN:
        return
    actual = np.stack([values[i, c + 1 : c + 1 + HORIZON] for i, c in zip(windows.series, windows.cutoff, strict=True)])
    for place, level in ((4, 0.5), (8, 0.9)):
        quantile = forecasts.tuned[..., place]
        # A quantile is the least value that reaches its level: of discrete values more lie up to it, fewer below.
        assert (actual < quantile - 0.1).mean() < level + 0.06
        assert (actual <= quantile + 0.1).mean() > level - 0.06
