"""Anomalies: observations that are improbable under the forecasts made for them. Alarms are of whole series.

Each observation has one verdict, by the latest forecast made for it. Its normal deviate under the written quantiles is
compared with those of earlier observations (split conformal p-values; Vovk, Gammerman & Shafer 2005, "Algorithmic
Learning in a Random World"), so the rate of false alarms holds where intervals are too narrow or tails are heavy.
"""

from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from forecast.data.panel import IntArray, Panel
from forecast.metrics.seasonal_naive import Array
from forecast.monitoring.cutoffs import Cutoff, Part
from forecast.monitoring.drift import Span
from forecast.monitoring.labels import ANOMALY, FEW, NORMAL
from forecast.names import CUTOFF, SERIES_ID, STEP, TARGET, TIMESTAMP

Float32Array = npt.NDArray[np.float32]

_LEAST_SPREAD: Final = 0.1
"""Lower bound of a standard deviation, as a share of the mean seasonal difference: quantiles may all be equal."""
_MAX_DEVIATE: Final = 1e6
_LEVEL: Final = 0.9
"""Quantile of the absolute deviates that gives their scale; that of a standard normal is _NORMAL."""
_NORMAL: Final = NormalDist().inv_cdf((1 + _LEVEL) / 2)
_SHRINKAGE: Final = 20
"""Number of observations of a series at which its scale and that of all series count the same."""
_MIN_AGE: Final = 50
"""Observations of an age that its scale needs; with fewer, it is that of all ages."""


def normal_deviates(actual: Array, quantiles: Array, levels: Sequence[float], least: Array) -> Array:
    """Return the normal deviate of each observation, [n], under its quantiles, [n, level].

    Deviates are linear between the quantiles. Beyond the outer ones they grow as in a normal distribution, with the
    standard deviation that the distance of the outer quantile from the median implies, and at least `least`, [n].
    Where several quantiles equal the observation, it has the mean of their deviates.

    >>> standard = np.array([[-1.2816, 0, 1.2816]])
    >>> normal_deviates(np.array([3.0]), standard, (0.1, 0.5, 0.9), np.zeros(1)).round(2)
    array([3.])
    """
    normal = np.array([NormalDist().inv_cdf(level) for level in levels])
    rows, last, middle = np.arange(len(actual)), len(levels) - 1, list(levels).index(0.5)
    n_below, n_up_to = (quantiles < actual[:, None]).sum(1), (quantiles <= actual[:, None]).sum(1)
    left, right = np.clip(n_below - 1, 0, last), np.clip(n_below, 0, last)
    low, high = quantiles[rows, left], quantiles[rows, right]
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(high > low, (actual - low) / (high - low), 0.0)
        inside = normal[left] + share * (normal[right] - normal[left])
        ties = (normal[np.clip(n_below, 0, last)] + normal[np.clip(n_up_to - 1, 0, last)]) / 2
        deviate = np.where(n_up_to > n_below, ties, inside)
        for outer, beyond in ((0, n_up_to == 0), (last, n_below > last)):
            spread = np.maximum((quantiles[:, outer] - quantiles[:, middle]) / normal[outer], least)
            deviate = np.where(beyond, normal[outer] + (actual - quantiles[:, outer]) / spread, deviate)
    clipped: Array = np.clip(deviate, -_MAX_DEVIATE, _MAX_DEVIATE)
    return clipped


class _StepForecasts(NamedTuple):
    """The latest forecasts of a step of the grid, [S] all; NaN and 0 without one."""

    deviate: Float32Array
    step: npt.NDArray[np.int32]
    """Steps after the cutoff."""
    median: Float32Array
    """Empty in the history, like `actual`: only those of recent steps are shown."""
    actual: Float32Array


class LatestForecasts:
    """The latest forecast of each observation in a span, by grid index and series.

    Only steps with a forecast take memory. The cutoffs of a series are added in order, the earliest first.
    """

    def __init__(self, panel: Panel, span: Span, levels: Sequence[float]) -> None:
        self._panel, self._span, self._levels = panel, span, levels
        self._by_index: dict[int, _StepForecasts] = {}

    def add(self, part: Part, cutoff: Cutoff, scale: Array) -> None:
        """Add forecasts; `scale` is the mean seasonal difference of each series up to the cutoff, [n].

        Observations whose latest forecast a person has overridden have no verdict.
        """
        first = np.searchsorted(self._panel.series_id, part.panel.series_id[0])
        observed, middle = np.isfinite(part.actual), list(self._levels).index(0.5)
        least = _LEAST_SPREAD * np.nan_to_num(scale)[np.nonzero(observed)[0]]
        deviates = np.full(observed.shape, np.nan)
        deviates[observed] = normal_deviates(part.actual[observed], part.quantiles[observed], self._levels, least)
        deviates[part.overridden] = np.nan
        for column in np.flatnonzero(observed.any(0)).tolist():
            row = np.flatnonzero(observed[:, column])
            series, latest = first + part.windows.series[row], self._at(cutoff.position + 1 + column)
            latest.deviate[series], latest.step[series] = deviates[row, column], column + 1
            if len(latest.median):
                latest.median[series] = part.quantiles[row, column, middle]
                latest.actual[series] = part.actual[row, column]

    def _at(self, index: int) -> _StepForecasts:
        """Return the forecasts of a grid index, to be written to."""
        if index not in self._by_index:
            n_series = self._panel.n_series
            n_shown = n_series if index >= self._span.recent else 0
            deviate, median, actual = (np.full(size, np.nan, np.float32) for size in (n_series, n_shown, n_shown))
            self._by_index[index] = _StepForecasts(deviate, np.zeros(n_series, np.int32), median, actual)
        return self._by_index[index]

    def verdicts(self, rate: float | None, ages: Mapping[str, int]) -> pl.DataFrame:
        """Return a row for each recent observation with a forecast: anomalies first, the largest first.

        pit         probability of a lower value under the forecast (probability integral transform)
        size        standard deviations from the forecast: the deviate over its scale among earlier observations of the
                    same age, and of the same series as far as it has many; above 0 if the observation is higher
        p_value     two-sided; the share of earlier observations of the same age that were as far off, or farther
        verdict     anomaly if the p-value is at most `rate`; few observations if too few are earlier to tell

        `ages` are the last steps of groups of ages, by name. An age with too few earlier observations is compared with
        all ages. None of `rate` gives no rows.
        """
        from scipy.special import ndtr

        indices = sorted(self._by_index) if rate is not None else []
        n_past = sum(index < self._span.recent for index in indices)
        size, group = self._sizes(indices, n_past, list(ages.values()))
        row, series = np.nonzero(np.isfinite(size[n_past:]))
        p_value = _p_values(size, group, n_past, (row + n_past, series), rate or 1.0)
        size = size[n_past:][row, series]
        verdicts = pl.Series([ANOMALY, NORMAL, FEW])
        verdict = np.where(np.isnan(p_value), 2, p_value > (rate or 0.0))
        order = np.lexsort((row, series, -np.abs(size), verdict > 0))
        index = np.array(indices[n_past:], np.int64)[row][order]
        recent = [self._by_index[number] for number in indices[n_past:]]
        deviate, step, median, actual = (
            np.concatenate([np.zeros(0), *(values[name][np.isfinite(values.deviate)] for values in recent)])[order]
            for name in range(4)
        )
        step = step.astype(np.int64)
        grid, names = self._panel.grid, pl.Series(self._panel.series_id.tolist(), dtype=pl.String)
        return pl.DataFrame(
            {
                SERIES_ID: names.gather(series[order]),
                TIMESTAMP: grid.timestamps(index),
                TARGET: actual,
                "median": median,
                CUTOFF: grid.timestamps(index - step),
                STEP: step,
                "pit": ndtr(deviate),
                "size": size[order].astype(np.float64),
                "p_value": pl.Series(p_value[order], nan_to_null=True),
                "verdict": verdicts.gather(verdict[order]),
            }
        )

    def _sizes(
        self, indices: Sequence[int], n_past: int, age_ends: Sequence[int]
    ) -> tuple[Float32Array, npt.NDArray[np.int16]]:
        """Return the deviates over their scale in the history, by age and then by series, and the groups of ages.

        Both are [steps, S], of the grid `indices`, of which the first `n_past` are the history.
        """
        size = np.zeros((len(indices), self._panel.n_series), np.float32)
        group = np.zeros(size.shape, np.int16)
        for row, index in enumerate(indices):
            size[row] = self._by_index[index].deviate
            group[row] = np.searchsorted(age_ends, self._by_index[index].step)
        observed = np.isfinite(size[:n_past])
        overall = _scale(np.abs(size[:n_past][observed]))
        for number in np.unique(group):
            member = observed & (group[:n_past] == number)
            enough = np.count_nonzero(member) >= _MIN_AGE
            size[group == number] /= _scale(np.abs(size[:n_past][member])) if enough else overall
        absolute, count = np.sort(np.abs(size[:n_past]), axis=0), observed.sum(0)  # NaN comes last.
        rank = np.clip(np.ceil(_LEVEL * count).astype(np.int64) - 1, 0, None)
        series = absolute[rank, np.arange(len(rank))] / _NORMAL if n_past else np.zeros(len(rank))
        series = (count * np.nan_to_num(series) + _SHRINKAGE) / (count + _SHRINKAGE)
        size /= series.astype(np.float32)
        return size, group


def _p_values(
    size: Float32Array,
    group: npt.NDArray[np.int16],
    n_past: int,
    cells: tuple[IntArray, IntArray],
    rate: float,
) -> Array:
    """Return the two-sided p-values of the observations in `cells`, [n]; NaN with too few earlier ones."""
    past = size[:n_past]
    observed = np.isfinite(past)
    value, number = size[cells], group[cells]
    p_value = np.full(len(value), np.nan)
    for age in np.unique(number):
        member, reference = number == age, past[observed & (group[:n_past] == age)]
        if len(reference) + 1 < 2 / rate:
            reference = past[observed]
        if len(reference) + 1 >= 2 / rate:
            p_value[member] = conformal_p_values(value[member], reference)
    return p_value


def conformal_p_values(value: npt.NDArray[np.floating], reference: npt.NDArray[np.floating]) -> Array:
    """Return the two-sided p-value of each value, [n], among the values of a reference, [m]; equal ones count half.

    >>> conformal_p_values(np.array([9.0, 2.0]), np.array([1.0, 2.0, 3.0])).tolist()
    [0.5, 1.0]
    """
    ordered, n = np.sort(reference), len(reference)
    below = (np.searchsorted(ordered, value, "left") + np.searchsorted(ordered, value, "right")) / 2
    return np.minimum(1.0, 2 * (1 + np.minimum(below, n - below)) / (n + 1))


def _scale(absolute: npt.NDArray[np.floating]) -> float:
    """Return the standard deviation of a normal distribution with the same _LEVEL of absolute values, 1 without any."""
    scale = float(np.quantile(absolute, _LEVEL)) / _NORMAL if len(absolute) else 1.0
    return scale or 1.0
