"""Names of columns, metrics, aliases and files, each defined once."""

import re
from collections.abc import Iterable
from typing import Final

# The three columns of a panel.
SERIES_ID: Final = "series_id"
TIMESTAMP: Final = "timestamp"
TARGET: Final = "target"

# Columns of forecasts, besides SERIES_ID and TIMESTAMP.
CUTOFF: Final = "cutoff"
STEP: Final = "step"
MEAN: Final = "mean"
CLASS: Final = "class"
SOURCE: Final = "source"
MODEL_VERSION: Final = "model_version"
MODEL_NAME: Final = "model_name"
MODEL_DIGEST: Final = "model_digest"
MODEL_COLUMNS: Final = (MODEL_NAME, MODEL_VERSION, MODEL_DIGEST)
"""Columns of written forecasts that identify the model."""

# Column of scores: the mean weight of the observed steps of a window (data.weight).
WEIGHT: Final = "weight"

# Column of scores: the timestamp of the last observed target of a window.
OBSERVED_UNTIL: Final = "observed_until"

# Columns of rejects, besides SERIES_ID and TIMESTAMP.
REASON: Final = "reason"
VALUE: Final = "value"

OBJECT_STORES: Final = ("s3://", "gs://", "abfss://")
"""How addresses in an object store begin."""

# Sources of forecasts (values of the SOURCE column), best first.
SOURCE_FINE_TUNED: Final = "fine_tuned"
SOURCE_PRETRAINED: Final = "pretrained"
SOURCE_SEASONAL_NAIVE: Final = "seasonal_naive"
SOURCE_LAST_VALUE: Final = "last_value"
SOURCE_CLOSED: Final = "closed"
SOURCE_COLD: Final = "cold"
"""The source of a step where nothing is available (data.available): the forecast is 0."""

SOURCE_OVERRIDE: Final = "override"
"""A value that a person has set; the columns below keep what the model forecast, and who set it."""
MODEL_MEAN: Final = "model_mean"
OVERRIDE_AUTHOR: Final = "override_author"
OVERRIDE_NOTE: Final = "override_note"

# Baselines of backtests, besides SOURCE_SEASONAL_NAIVE.
NAIVE: Final = "naive"
AUTO_ETS: Final = "auto_ets"
THETA: Final = "dynamic_optimized_theta"
BASELINES: Final = (NAIVE, SOURCE_SEASONAL_NAIVE, AUTO_ETS, THETA)
"""In display order."""

# A model that was trained on the panel, beside one that was not.
TRAINED: Final = "trained"

# Registry aliases.
PRETRAINED: Final = "pretrained"
CHALLENGER: Final = "challenger"
CHAMPION: Final = "champion"
PREVIOUS: Final = "previous"
"""Used like an alias: the version that the champion replaced."""

# The folder of forecasts by score.shadow in output.path, and the name of that model where it is compared.
SHADOW: Final = "shadow"

# The column with the name of a scenario in its forecasts, and the folder of all scenarios in output.path.
SCENARIO: Final = "scenario"
SCENARIOS: Final = "scenarios"

# Metrics of training; early stopping monitors VAL_LOSS.
VAL_LOSS: Final = "val/loss"
TRAIN_LOSS: Final = "train/loss"

# Largest magnitude of a target: beyond it the squares of a float32 overflow.
MAX_MAGNITUDE: Final = 1e18


def quantile_column(level: float) -> str:
    """Return the column name of a quantile level.

    >>> quantile_column(0.1), quantile_column(0.975)
    ('q10', 'q97.5')
    """
    return f"q{level * 100:.6g}"


def quantile_columns(names: Iterable[str]) -> list[str]:
    """Return the names of quantile columns, by level.

    >>> quantile_columns(["mean", "q90", "q10", "quality", "q2.5"])
    ['q2.5', 'q10', 'q90']
    """
    columns = (name for name in names if name[:1] == "q" and name[1:].replace(".", "", 1).isdecimal())
    return sorted(columns, key=lambda name: float(name[1:]))


def class_column(name: str) -> str:
    """Return the column name of the probability of a class.

    >>> class_column("rain")
    'p_rain'
    """
    return f"p_{name}"


def sample_column(number: int) -> str:
    """Return the column name of a sample path.

    >>> sample_column(7)
    'sample_007'
    """
    return f"sample_{number:03d}"


MODEL = "model"
LOG_LOSS = "log_loss"
CRPS = "crps"

BACKTEST_RUN: Final = "backtest_run"
"""Tag of a version: the run of its latest backtest."""


def metric_name(name: str) -> str:
    """Return a name with the characters that MLflow allows.

    >>> metric_name("target beyond 1e+18")
    'target beyond 1e_18'
    """
    return re.sub(r"[^-/. \w]", "_", name)
