"""Past features: lagged targets and rolling statistics, computed within each series."""

from typing import Final

import numpy as np
import polars as pl

from forecast.config import DataConfig
from forecast.data.panel import FloatArray, IntArray, TargetArray
from forecast.names import TARGET

_MAX_ADDED: Final = 16
"""Up to this many values are added one by one; beyond, two cumulative sums are faster."""


def past_features(target: TargetArray, offsets: IntArray, data: DataConfig) -> tuple[tuple[str, ...], FloatArray]:
    """Return names and values [features, N] of data.lags and data.rolling, for series end to end as in `Panel`.

    A feature of a step uses that step and earlier ones of the same series. Statistics are of the observed values among
    the latest n steps, at least one (two for std); NaN if there are fewer.
    """
    names = feature_names(data)
    lengths = np.diff(offsets)
    steps = pl.DataFrame(
        {
            TARGET: pl.Series(target, dtype=pl.Float32).fill_nan(None),
            "series": pl.Series(np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)).set_sorted(),
            "step": np.arange(len(target)) - np.repeat(offsets[:-1], lengths),
        }
    )
    features = steps.select(expression(name).alias(name) for name in names)
    values = np.empty((len(names), len(target)), dtype=np.float32)
    for row, feature in zip(values, features.iter_columns(), strict=True):
        row[:] = feature.to_numpy()
    return names, values


def feature_names(data: DataConfig) -> tuple[str, ...]:
    """Return the names of the features of `past_features`.

    >>> feature_names(DataConfig(lags=(24,), rolling=("mean_7",)))
    ('lag 24', 'mean 7')
    """
    return (*(f"lag {steps}" for steps in data.lags), *(statistic.replace("_", " ") for statistic in data.rolling))


def longest_reach(data: DataConfig) -> int:
    """Return the largest number of steps that a feature looks back.

    >>> longest_reach(DataConfig(lags=(24,), rolling=("mean_28",)))
    27
    """
    return max([0, *data.lags, *(int(statistic.partition("_")[2]) - 1 for statistic in data.rolling)])


def expression(name: str) -> pl.Expr:
    """Return the feature `name` as Float32, over the regular steps of consecutive series.

    Columns are the target (null: not observed), `series` (its number) and `step` (0 is its first).
    """
    statistic, _, length = name.partition(" ")
    steps = int(length)
    target = pl.col(TARGET)
    if statistic == "lag":
        return _before(target, steps)
    if statistic == "min":
        return target.rolling_min(steps, min_samples=1).over("series")
    if statistic == "max":
        return target.rolling_max(steps, min_samples=1).over("series")
    if statistic == "median":
        return target.cast(pl.Float64).rolling_median(steps, min_samples=1).over("series").cast(pl.Float32)
    if statistic == "std":
        return target.cast(pl.Float64).rolling_std(steps, min_samples=2).over("series").cast(pl.Float32)
    n_values = target.cum_count().over("series")
    n_observed = n_values - _before(n_values, steps).fill_null(0)
    total = _total(target.cast(pl.Float64).fill_null(0.0), steps)
    return pl.when(n_observed > 0).then(total / n_observed if statistic == "mean" else total).cast(pl.Float32)


def _total(values: pl.Expr, steps: int) -> pl.Expr:
    """Return the sum of the latest values.

    Nothing is subtracted: a running sum, as in `rolling_sum`, would lose the digits of all values after a spike.
    The algorithm for more than a few steps: M. van Herk, A fast algorithm for local minimum and maximum filters
    on rectangular and octagonal kernels, Pattern Recognition Letters 13 (1992). Series are cut into blocks of `steps`;
    the latest values are the end of one block and the beginning of the next.
    """
    if steps <= _MAX_ADDED:
        return sum((_before(values, lag).fill_null(0.0) for lag in range(1, steps)), start=values)
    step = pl.col("step")
    block = (step % steps == 0).cum_sum().set_sorted()
    head, tail = values.cum_sum().over(block), values.cum_sum(reverse=True).over(block)
    spans_blocks = (step >= steps) & ((step + 1) % steps != 0)
    return head + pl.when(spans_blocks).then(tail.shift(steps - 1)).otherwise(0.0)


def _before(values: pl.Expr, steps: int) -> pl.Expr:
    """Return the values `steps` steps before, null before the first of a series."""
    return pl.when(pl.col("step") >= steps).then(values.shift(steps))
