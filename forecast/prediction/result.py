"""Results of forecasting: arrays per window, and tables with rejects."""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt
import polars as pl

from forecast.data.panel import FloatArray
from forecast.errors import listing
from forecast.names import CUTOFF, REASON, SERIES_ID

DoubleArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Predicted:
    """Forecasts of n windows in the units of the target.

    Columns are the quantiles at each level, or the probabilities of each class, followed by sample paths if requested.
    """

    base: FloatArray
    """[n, horizon, column], of the shared network; NaN for windows without an observation."""
    tuned: FloatArray
    """[n, horizon, column], with the changes of the series and calibrated; equal to `base` without either."""
    base_mean: DoubleArray
    tuned_mean: DoubleArray
    """[n, horizon], the means of the distributions; for classes the code of the most probable one."""
    is_tuned: np.ndarray
    """[n], whether the series has changes."""

    def until(self, horizon: int) -> Self:
        """Return the first `horizon` steps."""
        steps = slice(horizon)
        return replace(
            self,
            base=self.base[:, steps],
            tuned=self.tuned[:, steps],
            base_mean=self.base_mean[:, steps],
            tuned_mean=self.tuned_mean[:, steps],
        )


@dataclass(frozen=True, repr=False)
class Forecasts:
    """A batch of forecasts. Series in = series in `frame` + series in `rejects`."""

    frame: pl.DataFrame
    """series_id, timestamp, cutoff, step, mean, one column per quantile, source, model_version; by series and step.

    Sample paths, if requested, are further columns after the quantiles. For classes: `class`, the most probable one,
    and one column per class in place of mean and quantiles.
    """
    rejects: pl.DataFrame
    """series_id, timestamp, reason, value."""

    def __repr__(self) -> str:
        cutoff, n_rejects = self.frame[CUTOFF].first(), self.rejects.height
        count = self.frame[SERIES_ID].n_unique()
        series = "0 series" if cutoff is None else f"{count:,} series from {cutoff!s}, {self.frame.height:,} rows"
        reasons = self.rejects.group_by(REASON).len().sort("len", REASON, descending=[True, False])
        listed = listing(f"{number:,} {reason}" for reason, number in reasons.iter_rows())
        return f"Forecasts({series}, {n_rejects:,} rejects{f': {listed}' if n_rejects else ''})"
