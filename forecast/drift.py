"""Drift of a panel's columns: what is recent against what was before."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from forecast.config import DataConfig
from forecast.data.panel import IntArray, Panel
from forecast.names import TARGET

Array = npt.NDArray[np.float64]

_BINS: Final = 10
_FEW: Final = 100
"""Values that a window needs: of fewer, the index is mostly chance (its mean is about bins / values)."""
_DISCRETE: Final = 12
"""Distinct values up to which a column is compared value by value."""
_SCHEMA: Final = {
    "column": pl.String,
    "role": pl.String,
    "psi": pl.Float64,
    "ks": pl.Float64,
    "missing": pl.Float64,
    "missing_before": pl.Float64,
    "unseen": pl.Float64,
    "unseen_before": pl.Float64,
    "values": pl.Int64,
    "values_before": pl.Int64,
}


class Span(NamedTuple):
    """The windows that are compared, by grid index: history is [first, recent), the recent one [recent, last]."""

    first: int
    recent: int
    last: int


class _Window(NamedTuple):
    """What there is of a column in a window."""

    series: IntArray
    """[values], the number of the series of each observed value."""
    value: Array
    """[values]"""
    expected: int
    """Steps at which a value should be: all since the first one of each series."""

    @property
    def missing(self) -> float:
        return 1 - len(self.value) / self.expected if self.expected else float("nan")


def drift(panel: Panel, data: DataConfig, categories: Mapping[str, Sequence[str]], span: Span) -> pl.DataFrame:
    """Return a row for the target and for each past and known covariate.

    psi             population stability index, sum (p - q) ln(p / q) over bins (Siddiqi 2006, Credit Risk Scorecards):
                    the values of a column of a few values or categories, else tenths of the history; counts + 1/2
    ks              largest distance of the two distribution functions (Kolmogorov & Smirnov); null of categories
    missing         share of the steps, since a series began, that have no value; `_before` in the history
    unseen          share of the values that training has not seen; null where they are no categories
    values          observed values

    Numbers of more than a few values are in standard deviations of their series around its mean, both of the history.
    psi and ks are null if a window has fewer than 100 values.
    """
    columns: list[tuple[str, str, Callable[[Panel], npt.NDArray[np.float32]], int]] = [
        (data.columns.target, TARGET, lambda shard: shard.target, 0)
    ]
    for role, names in (("past", data.past_covariates), ("known", data.known_covariates)):
        for row, name in enumerate(names):
            columns.append((name, role, _row(role, row), panel.horizon if role == "known" else 0))
    rows = []
    for name, role, values, beyond in columns:
        before = _window(panel, values, beyond, span.first, span.recent - 1)
        now = _window(panel, values, beyond, span.recent, span.last)
        coded = name in categories
        psi, ks = _distances(before, now, coded)
        rows.append(
            {
                "column": name,
                "role": role,
                "psi": psi,
                "ks": ks,
                "missing": now.missing,
                "missing_before": before.missing,
                "unseen": _unseen(now) if coded else None,
                "unseen_before": _unseen(before) if coded else None,
                "values": len(now.value),
                "values_before": len(before.value),
            }
        )
    return pl.DataFrame(rows, schema=_SCHEMA).with_columns(pl.col(pl.Float64).fill_nan(None))


def _row(role: str, row: int) -> Callable[[Panel], npt.NDArray[np.float32]]:
    return lambda shard: (shard.past if role == "past" else shard.known)[row]


def _window(
    panel: Panel, values: Callable[[Panel], npt.NDArray[np.float32]], beyond: int, first: int, last: int
) -> _Window:
    """Return the values at grid indices `first` to `last`; a series has `beyond` steps after its end in the buffer."""
    series, found, expected, number = [], [], 0, 0
    for shard in panel.shards():
        held = shard.lengths + beyond
        begin = np.cumsum(held) - held
        low, high = (np.clip(edge - shard.start, 0, held) for edge in (first, last + 1))
        count = high - low
        each = np.repeat(np.arange(shard.n_series), count)
        at = np.arange(len(each)) + np.repeat(begin + low - (np.cumsum(count) - count), count)
        value = values(shard)[at].astype(np.float64)
        there = ~np.isnan(value)
        series.append(each[there] + number)
        found.append(value[there])
        expected += int(np.clip(last + 1 - np.maximum(shard.start, first), 0, None).sum())
        number += shard.n_series
    return _Window(np.concatenate(series), np.concatenate(found), expected)


def _unseen(window: _Window) -> float:
    return float((window.value == 0).mean()) if len(window.value) else float("nan")


def _distances(before: _Window, now: _Window, coded: bool) -> tuple[float | None, float | None]:
    """Return psi and ks."""
    if min(len(before.value), len(now.value)) < _FEW:
        return None, None
    distinct = np.unique(np.concatenate([before.value, now.value]))
    if coded or len(distinct) <= _DISCRETE:
        edges = (distinct[:-1] + distinct[1:]) / 2
        old, new = before.value, now.value
    else:
        old, new = _standardised(before, now)
        if len(new) < _FEW:
            return None, None
        edges = np.unique(np.quantile(old, np.linspace(0, 1, _BINS + 1)[1:-1]))
    shares = []
    for values in (old, new):
        counts = np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1) + 0.5
        shares.append(counts / counts.sum())
    p, q = shares
    psi = float(((q - p) * np.log(q / p)).sum())
    if coded:
        return psi, None
    every = np.sort(np.concatenate([old, new]))
    below = (np.searchsorted(np.sort(values), every, side="right") / len(values) for values in (old, new))
    return psi, float(np.abs(np.subtract(*below)).max())


def _standardised(before: _Window, now: _Window) -> tuple[Array, Array]:
    """Return the values of both windows in the series' own units; series that are new have none."""
    n = 1 + int(max(before.series.max(), now.series.max()))
    count = np.bincount(before.series, minlength=n)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.bincount(before.series, before.value, n) / count
        deviation = before.value - mean[before.series]
        std = np.sqrt(np.bincount(before.series, deviation**2, n) / count)
    pooled = float(np.sqrt((deviation**2).mean())) or 1.0
    std = np.where(std > 0, std, pooled)
    known = count[now.series] > 0
    series = now.series[known]
    return deviation / std[before.series], (now.value[known] - mean[series]) / std[series]
