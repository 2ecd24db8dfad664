"""Forecasts of series without any observation: the recent values of the series that are most like them."""

import hashlib
from collections.abc import Sequence
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from forecast.data.panel import Panel
from forecast.prediction.result import DoubleArray

_NEIGHBOURS: Final = 20
"""Nearest series in a pool; all that are as near as the last of them belong to it, up to _MOST."""
_MOST: Final = 2_000
_SEASONS: Final = 4
"""Latest seasons whose values are in a pool."""


class ColdProfile:
    """The pools of a panel at a cutoff, a grid index; `season` is a number of steps.

    The nearest series are those that share most information with a series: for each static category that both have, the
    negative logarithm of its share of the panel (Goodall 1966), and for each number 1 less the distance in ranks. At a
    step of the horizon, the forecast is the distribution of what they had at the same phase of the latest seasons.
    Without static covariates all series are as near.
    """

    def __init__(self, panel: Panel, cutoff: int, season: int) -> None:
        self.season = season
        steps = np.arange(cutoff - _SEASONS * season + 1, cutoff + 1)
        entry = steps - panel.start[:, None]
        inside = (entry >= 0) & (entry < panel.lengths[:, None])
        values = np.asarray(panel.target)[np.where(inside, entry + panel.offsets[:-1, None], 0)]
        values = np.where(inside, values, np.nan)
        warm = np.isfinite(values).any(1)
        self._recent = values[warm].astype(np.float64)
        self._categories, self._numbers = panel.static_categories[warm], panel.static_numbers[warm]

    @classmethod
    def of(cls, panel: Panel, cutoff: int, season_length: int) -> Self:
        """Return the pools for a model's season; below a daily step the season is a week, as its days differ."""
        return cls(panel, cutoff, season_length * (7 if panel.grid.frequency.sub_daily else 1))

    def digest(self) -> str:
        """Return a hash of all that forecasts depend on, besides the covariates of a series."""
        hasher = hashlib.sha256(self._recent.tobytes())
        hasher.update(self._categories.tobytes())
        hasher.update(self._numbers.tobytes())
        return hasher.hexdigest()

    def forecast(
        self, categories: np.ndarray, numbers: np.ndarray, horizon: int, levels: Sequence[float]
    ) -> tuple[DoubleArray, DoubleArray]:
        """Return quantiles, [horizon, level], and means, [horizon], for the static covariates of one series.

        NaN where the pool has no value at a phase.
        """
        near = self._nearest(categories, numbers)
        pool = self._recent[near].reshape(-1, self.season)
        quantiles, mean = np.full((self.season, len(levels)), np.nan), np.full(self.season, np.nan)
        for phase, column in enumerate(pool.T):
            values = column[np.isfinite(column)]
            if len(values):
                quantiles[phase], mean[phase] = np.quantile(values, levels), values.mean()
        phases = np.arange(horizon) % self.season
        return quantiles[phases], mean[phases]

    def _nearest(self, categories: np.ndarray, numbers: np.ndarray) -> npt.NDArray[np.int64]:
        n = len(self._recent)
        similarity = np.zeros(n)
        for column, code in zip(self._categories.T, categories, strict=True):
            same = (column == code) & (code > 0)
            similarity += np.log(n / max(1, int(same.sum()))) * same
        for values, value in zip(self._numbers.T, numbers, strict=True):
            known = np.sort(values[np.isfinite(values)])
            if np.isfinite(value) and len(known):
                distance = np.searchsorted(known, values) - np.searchsorted(known, value)
                similarity += np.where(np.isfinite(values), 1 - np.abs(distance) / len(known), 0.0)
        if n <= _NEIGHBOURS:
            return np.arange(n)
        return np.flatnonzero(similarity >= np.partition(similarity, -_NEIGHBOURS)[-_NEIGHBOURS])[:_MOST]
