"""Anomalies: observations that are improbable under the forecasts made for them. Alarms are of whole series.

Each observation has one verdict, by the latest forecast made for it. Its normal deviate under the written quantiles is
compared with those of earlier observations (split conformal p-values; Vovk, Gammerman & Shafer 2005, "Algorithmic
Learning in a Random World"), so the rate of false alarms holds where intervals are too narrow or tails are heavy.
"""

from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from forecast.data.panel import IntArray, Panel
from forecast.metrics.seasonal_naive import Array
from forecast.monitoring.cutoffs import Cutoff, Part
from forecast.monitoring.drift import Span
from forecast.monitoring.labels import ANOMALY, FEW, NORMAL
from forecast.names import CUTOFF, SERIES_ID, STEP, TARGET, TIMESTAMP

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


class LatestForecasts:
    """The latest forecast of each observation in a span, by series and grid index, as arrays of [S, steps].

    Cutoffs are added in order, the earliest first.
    """

    def __init__(self, panel: Panel, span: Span, levels: Sequence[float]) -> None:
        shape = panel.n_series, span.last - span.first + 1
        self._panel, self._span, self._levels = panel, span, levels
        self.deviate, self.median, self.actual = np.full((3, *shape), np.nan, np.float32)
        self.step: npt.NDArray[np.int32] = np.zeros(shape, np.int32)
        """Steps after the cutoff, 0 without a forecast."""

    @property
    def first_recent(self) -> int:
        """The column at which the recent window begins."""
        return max(0, self._span.recent - self._span.first)

    def add(self, part: Part, cutoff: Cutoff, scale: Array) -> None:
        """Add forecasts; `scale` is the mean seasonal difference of each series up to the cutoff, [n].

        Observations whose latest forecast a person has overridden have no verdict.
        """
        row, step = np.nonzero(np.isfinite(part.actual))
        ids = part.panel.series_id[part.windows.series]
        place = np.searchsorted(self._panel.series_id, ids)[row], cutoff.position + 1 + step - self._span.first
        actual, quantiles = part.actual[row, step], part.quantiles[row, step]
        least = _LEAST_SPREAD * np.nan_to_num(scale)[row]
        deviates = normal_deviates(actual, quantiles, self._levels, least)
        self.deviate[place] = np.where(part.overridden[row, step], np.nan, deviates)
        self.median[place], self.actual[place] = quantiles[:, list(self._levels).index(0.5)], actual
        self.step[place] = step + 1

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

        size = self._sizes(self._group_of(ages))
        row, column = np.nonzero(np.isfinite(size[:, self.first_recent :]))
        if rate is None:
            row, column = row[:0], column[:0]
        column = column + self.first_recent
        p_value = self._p_values(size, self._group_of(ages), (row, column), rate or 1.0)
        step, index = self.step[row, column].astype(np.int64), self._span.first + column.astype(np.int64)
        verdict = np.where(np.isnan(p_value), FEW, np.where(p_value <= (rate or 0.0), ANOMALY, NORMAL))
        grid = self._panel.grid
        frame = pl.DataFrame(
            {
                SERIES_ID: pl.Series(self._panel.series_id[row].tolist(), dtype=pl.String),
                TIMESTAMP: grid.timestamps(index),
                TARGET: self.actual[row, column].astype(np.float64),
                "median": self.median[row, column].astype(np.float64),
                CUTOFF: grid.timestamps(index - step),
                STEP: step,
                "pit": ndtr(self.deviate[row, column].astype(np.float64)),
                "size": size[row, column].astype(np.float64),
                "p_value": pl.Series(p_value, nan_to_null=True),
                "verdict": pl.Series(verdict.tolist(), dtype=pl.String),
            }
        )
        order = [pl.col("verdict") != ANOMALY, -pl.col("size").abs(), pl.col(SERIES_ID), pl.col(TIMESTAMP)]
        return frame.sort(order)

    def _group_of(self, ages: Mapping[str, int]) -> IntArray:
        """Return the number of the group of ages of each forecast, [S, steps]."""
        return np.searchsorted(np.array(list(ages.values())), self.step)

    def _sizes(self, group: IntArray) -> npt.NDArray[np.float32]:
        """Return the deviates over their scale in the history, by age and then by series, [S, steps]."""
        size, past = self.deviate.copy(), slice(0, self.first_recent)
        observed = np.isfinite(size[:, past])
        overall = _scale(np.abs(size[:, past][observed]))
        for number in np.unique(group):
            member = observed & (group[:, past] == number)
            enough = np.count_nonzero(member) >= _MIN_AGE
            size[group == number] /= _scale(np.abs(size[:, past][member])) if enough else overall
        absolute, count = np.sort(np.abs(size[:, past]), axis=1), observed.sum(1)  # NaN comes last.
        place = np.clip(np.ceil(_LEVEL * count).astype(np.int64) - 1, 0, None)
        series = np.zeros(len(size)) if not past.stop else absolute[np.arange(len(size)), place] / _NORMAL
        series = (count * np.nan_to_num(series) + _SHRINKAGE) / (count + _SHRINKAGE)
        size /= series[:, None].astype(np.float32)
        return size

    def _p_values(
        self, size: npt.NDArray[np.float32], group: IntArray, place: tuple[IntArray, IntArray], rate: float
    ) -> Array:
        """Return the two-sided p-values of the observations at `place`, [n]; NaN with too few earlier ones."""
        past = size[:, : self.first_recent]
        observed = np.isfinite(past)
        value, number = size[place], group[place]
        p_value = np.full(len(value), np.nan)
        for age in np.unique(number):
            member, reference = number == age, past[observed & (group[:, : self.first_recent] == age)]
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
