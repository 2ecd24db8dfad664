"""The change between two forecasts of the same timestamps, divided among its causes.

The parts are Shapley values (Shapley 1953): the average, over all orders in which the causes may change, of what each
changes. They do not depend on an order, and their sum is exact. Two forecasts that differ in k causes need 2^k
forecasts, of which the first and the last should be those that are compared.
"""

from collections.abc import Callable, Sequence
from itertools import combinations
from math import factorial
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from forecast.names import MEAN, SERIES_ID, TIMESTAMP

Values = npt.NDArray[np.float64]

DATA: Final = "data"
MODEL: Final = "model"
COVARIATES: Final = "covariates"
CAUSES: Final = (DATA, MODEL, COVARIATES)
OTHER: Final = "other"
"""What forecasting again does not give: a revised history, other settings, overrides, and rounding."""
PARTS: Final = (*CAUSES, OTHER)
BEFORE: Final = "mean_before"
AFTER: Final = "mean_after"
CHANGE: Final = "change"
_KEYS: Final = [SERIES_ID, TIMESTAMP]
_ROUNDING: Final = 1e-13
"""Relative rounding error of a sum, which is no part."""


def shapley(causes: Sequence[str], value: Callable[[frozenset[str]], Values]) -> dict[str, Values]:
    """Return the Shapley value of each cause; `value` gives the forecast once some causes have changed."""
    count = len(causes)
    values = {part: value(part) for size in range(count + 1) for part in map(frozenset, combinations(causes, size))}
    return {
        cause: sum(
            (
                factorial(len(part))
                * factorial(count - len(part) - 1)
                / factorial(count)
                * (values[part | {cause}] - values[part])
                for part in values
                if cause not in part
            ),
            np.zeros_like(values[frozenset()]),
        )
        for cause in causes
    }


def decompose(
    before: pl.DataFrame, after: pl.DataFrame, causes: Sequence[str], forecast: Callable[[frozenset[str]], pl.DataFrame]
) -> pl.DataFrame:
    """Return series_id, timestamp, mean_before, mean_after, change and the PARTS, which add up to the change.

    `before` and `after` are stored forecasts; only timestamps that both have are compared. `forecast` computes them
    again, with the `causes` in its argument as of `after` and the others as of `before`. Rows that can't be computed
    again have all of their change in `other`.
    """
    stored = before.select(*_KEYS, pl.col(MEAN).alias(BEFORE)).join(
        after.select(*_KEYS, pl.col(MEAN).alias(AFTER)), on=_KEYS
    )
    stored = stored.sort(_KEYS)

    def value(changed: frozenset[str]) -> Values:
        rows = stored.select(_KEYS).join(forecast(changed).select(*_KEYS, MEAN), on=_KEYS, how="left")
        return rows.sort(_KEYS)[MEAN].cast(pl.Float64).fill_null(np.nan).to_numpy()

    change = (stored[AFTER] - stored[BEFORE]).cast(pl.Float64).to_numpy()
    parts: dict[str, Any] = shapley(causes, value) if causes else {}
    complete = np.isfinite(sum(parts.values(), np.zeros(len(change))))
    columns = {cause: np.where(complete, parts.get(cause, 0.0), 0.0) for cause in CAUSES}
    rest = change - sum(columns.values(), np.zeros(len(change)))
    size = stored.select(pl.col(BEFORE).abs() + pl.col(AFTER).abs()).to_series().to_numpy()
    columns[OTHER] = np.where(np.abs(rest) > _ROUNDING * size, rest, 0.0)
    return stored.with_columns(pl.Series(CHANGE, change), *(pl.Series(name, part) for name, part in columns.items()))


def by_series(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the sums over the timestamps of each series, those with the largest change first."""
    sums = rows.group_by(SERIES_ID).agg(pl.len().alias("steps"), pl.col(BEFORE, AFTER, CHANGE, *PARTS).sum())
    return sums.sort(pl.col(CHANGE).abs(), SERIES_ID, descending=[True, False])


def shares(rows: pl.DataFrame) -> dict[str, float]:
    """Return the share of each part in the movement: the mean of its absolute values, relative to all parts."""
    sizes = {name: float(rows[name].abs().sum()) for name in PARTS}
    total = sum(sizes.values())
    return {name: size / total if total else 0.0 for name, size in sizes.items()}
