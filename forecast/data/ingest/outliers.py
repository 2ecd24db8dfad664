"""Outliers: single values that do not reflect the level of a series, such as a glitch of a meter.

A value is judged by earlier observations only: a forecast from an earlier cutoff does not
change with later rows. It is an outlier if it is

- `_SPREADS` times as far from the median of the values before it as the 80 % quantile of their distances, without
  zeros; or, where fewer than `_MIN_SAMPLES` of them differ from the median, `_LARGE` times as far as the median is from
  0; and
- `_LEVELS` times as far from the median as that is from 0; and
- as far from the values one, two and three seasons before: a peak of every season is not an outlier.

On a logarithmic scale, a value is an outlier too if it is as far from the median there, and ten times or a tenth of it:
a zero among thousands is as extreme on that scale as a million is on the linear one.

From the third in a row on the same side on, values are a new level. Codes for a missing value (-999, 9999, ...) are
outliers wherever they are far out, however many follow one another.
"""

import logging
import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from forecast.data.panel import IntArray, Panel, TargetArray

log = logging.getLogger(__name__)

# Verdicts on a value: fine, not used as an input, or not used as a training target either.
FINE: Final = 0
NO_INPUT: Final = 1
NO_TARGET: Final = 2

_SPREADS, _LEVELS, _LARGE = 20.0, 2.0, 50.0
# The least distance of an outlier from the median on a logarithmic scale.
_FACTOR = math.log(10.0)
# A value this many times beyond the bound of an outlier is not a training target: it would dominate a mean.
_ABSURD = 100.0
_QUANTILE = 0.8
_MIN_SAMPLES = 5
# Consecutive values that make a new level.
_PERSISTENT = 3
# Steps that the median is taken over, between these limits; two seasons if they are in between.
_LEAST_WINDOW, _MOST_WINDOW = 25, 1000
# Sampled values of a series in the first pass, which excludes the many series without outliers.
_PROBES = 64
# Number of outliers in the log message.
_MAX_EXAMPLES = 5
_CODES: Final = np.array([sign * (10.0**digits - 1) for digits in range(3, 10) for sign in (-1, 1)])


@dataclass(frozen=True)
class Outliers:
    """The outliers of a panel, in the order of its buffers."""

    series: IntArray
    """[n], number of the series."""
    index: IntArray
    """[n], grid index."""
    value: npt.NDArray[np.float64]
    """[n]"""


def outlier_mask(panel: Panel, unit: float = 0.0) -> npt.NDArray[np.uint8] | None:
    """Return FINE, NO_INPUT or NO_TARGET for each step, [N]; None where all are fine.

    `unit` is that of the logarithmic scale on which values are modelled, 0 for none.
    """
    season = panel.grid.frequency.season_length
    lags = [k * season for k in (1, 2, 3)] if season > 1 else []
    window = 2 * season + 1
    if panel.grid.frequency.sub_daily:
        lags.append(7 * season)
        window = max(window, 7 * season + 1)
    window = min(max(window, _LEAST_WINDOW), _MOST_WINDOW)
    numbers = np.flatnonzero(_suspicious(panel, unit))
    if not len(numbers):
        return None
    lengths = panel.lengths[numbers]
    series = np.repeat(numbers, lengths)
    steps = np.arange(len(series)) + np.repeat(panel.offsets[numbers] - np.cumsum(lengths) + lengths, lengths)
    values = panel.target[steps].astype(np.float64)
    verdict = judge(values, window, lags, series=series)
    if unit:
        verdict = np.maximum(verdict, judge(np.arcsinh(values / unit), window, lags, series=series, floor=_FACTOR))
    if not verdict.any():
        return None
    mask = np.zeros(len(panel.target), np.uint8)
    mask[steps] = verdict
    return mask


def find_outliers(panel: Panel) -> Outliers:
    """Return the outliers of a panel."""
    mask = outlier_mask(panel)
    entries = np.flatnonzero(mask) if mask is not None else np.zeros(0, np.int64)
    series = np.searchsorted(panel.offsets, entries, side="right") - 1
    return Outliers(
        series, panel.start[series] + entries - panel.offsets[series], panel.target[entries].astype(np.float64)
    )


def warn_of_outliers(panel: Panel) -> None:
    """Log the number of outliers in a panel, with examples, if there are any."""
    outliers = find_outliers(panel)
    if not len(outliers.index):
        return
    examples = slice(0, _MAX_EXAMPLES)
    times = panel.grid.timestamps(outliers.index[examples]).to_list()
    names = panel.series_id[outliers.series[examples]].tolist()
    rows = zip(names, times, outliers.value[examples].tolist(), strict=True)
    log.warning(
        "data: %d values of %d series are outliers, which forecasts leave out of their inputs: %s%s",
        len(outliers.index),
        len(np.unique(outliers.series)),
        ", ".join(f"{name} at {time} ({value:g})" for name, time, value in rows),
        ", ..." if len(outliers.index) > _MAX_EXAMPLES else "",
    )


def without_outliers(panel: Panel) -> TargetArray:
    """Return the target of a panel, [N], NaN at outliers."""
    mask = outlier_mask(panel)
    return panel.target if mask is None else np.where(mask > FINE, panel.target.dtype.type(np.nan), panel.target)


def judge(
    values: npt.NDArray[np.float64],
    window: int,
    lags: list[int],
    *,
    series: IntArray | None = None,
    floor: float | None = None,
) -> npt.NDArray[np.uint8]:
    """Return FINE, NO_INPUT or NO_TARGET for each step, [n]; `values` are NaN at unobserved steps.

    `window` is a number of steps, `lags` are those of whole seasons. `series`, [n], is the number of the series of each
    step, one after the other; None: all are of one. `floor` is the least distance from the median at which a value can
    be an outlier; None: a multiple of the median.
    """
    series = np.zeros(len(values), np.int64) if series is None else series
    coded = np.isin(values, _CODES)
    centre, spread = _running_median_and_spread(np.where(coded, np.nan, values), series, window)
    deviation, magnitude = values - centre, np.abs(centre)
    with np.errstate(invalid="ignore"):
        bound = np.where(np.isnan(spread), _LARGE * magnitude, _SPREADS * spread)
        far = (np.abs(deviation) > bound) & (bound > 0)
        code = far & coded
        min_deviation = _LEVELS * magnitude if floor is None else floor
        far &= np.abs(deviation) > min_deviation
        for lag in lags:
            near = np.abs(values[lag:] - values[:-lag]) <= bound[lag:]
            far[lag:] &= ~(near & (series[lag:] == series[:-lag]))
        absurd = np.abs(deviation) > _ABSURD * np.maximum(bound, min_deviation)
    rejected = (far & ~_persistent(far, np.sign(deviation), np.isfinite(values), series)) | code
    return np.where(rejected, np.where(absurd | code, NO_TARGET, NO_INPUT), FINE).astype(np.uint8)


def _running_median_and_spread(
    values: npt.NDArray[np.float64], series: IntArray, window: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the median of the values before each step, and the quantile of their distances from such medians, [n]."""
    distance = (pl.col("value") - pl.col("median")).abs()
    spread = pl.col("distance").rolling_quantile(_QUANTILE, window_size=window, min_samples=_MIN_SAMPLES)
    frame = (
        pl.DataFrame({"series": series, "value": pl.Series(values).fill_nan(None)})
        .with_columns(median=pl.col("value").rolling_median(window, min_samples=_MIN_SAMPLES).shift(1).over("series"))
        .with_columns(distance=pl.when(distance > 0).then(distance))
        .select("median", spread=spread.shift(1).over("series"))
    )
    return frame["median"].to_numpy(), frame["spread"].to_numpy()


def _persistent(
    far: npt.NDArray[np.bool_], side: npt.NDArray[np.float64], observed: npt.NDArray[np.bool_], series: IntArray
) -> npt.NDArray[np.bool_]:
    """Return a mask of steps, [n], that follow at least two observed ones far out on the same side of the median."""
    entries = np.flatnonzero(observed)
    outside = np.where(far[entries], side[entries], 0.0)
    result = np.zeros(len(far), np.bool_)
    persists = outside != 0
    for lag in range(1, _PERSISTENT):
        persists[:lag] = False
        persists[lag:] &= (outside[:-lag] == outside[lag:]) & (series[entries[:-lag]] == series[entries[lag:]])
    result[entries] = persists
    return result


def _suspicious(panel: Panel, unit: float) -> npt.NDArray[np.bool_]:
    """Return whether a series holds a value far from most of a sample of its values, [S]."""
    if not len(panel.target):
        return np.zeros(panel.n_series, np.bool_)
    highest, lowest = (
        function.reduceat(panel.target, panel.offsets[:-1]).astype(np.float64) for function in (np.fmax, np.fmin)
    )
    result = np.zeros(panel.n_series, np.bool_)
    for begin in range(0, panel.n_series, 1 << 16):
        part = slice(begin, min(begin + (1 << 16), panel.n_series))
        share = np.arange(_PROBES) / _PROBES
        entries = panel.offsets[:-1][part, None] + (panel.lengths[part, None] * share).astype(np.int64)
        probes = panel.target[entries].astype(np.float64)
        centre = _row_quantiles(probes, 0.5)
        deviation = np.abs(probes - centre[:, None])
        deviation[deviation == 0] = np.nan
        bound = 0.25 * _SPREADS * _row_quantiles(deviation, _QUANTILE)
        result[part] = (highest[part] - centre > bound) | (centre - lowest[part] > bound)
        if unit:
            scaled = np.arcsinh(np.stack([lowest[part], centre, highest[part]]) / unit)
            result[part] |= np.diff(scaled, axis=0).max(0) > _FACTOR
    return result


def _row_quantiles(values: npt.NDArray[np.float64], level: float) -> npt.NDArray[np.float64]:
    """Return the quantile of each row without its NaN, [n]; 0 for a row of NaN only.

    As `np.nanquantile`, which takes a Python loop over the rows.
    """
    ordered = np.sort(values, axis=1)  # NaN last.
    last = (~np.isnan(ordered)).sum(1) - 1
    position = level * np.maximum(last, 0)
    rows, below = np.arange(len(ordered)), np.floor(position).astype(np.int64)
    low, high = ordered[rows, below], ordered[rows, np.minimum(below + 1, last)]
    quantiles = low + (high - low) * (position - below)
    return np.where(last < 0, 0.0, quantiles)
