"""Profile of the series of a panel: lengths, gaps, zeros, kinds of demand, season and trend.

Computed on the flat buffer in shards of whole series, so memory does not grow with the panel.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import polars as pl

from forecast.data.ingest.outliers import find_outliers
from forecast.data.panel import IntArray, Panel
from forecast.data.profiling.strength import Array, count_per_series, strengths, sum_per_series
from forecast.names import CLASS, SERIES_ID

# Thresholds of adi for intermittent and of cv2 for erratic demand (Syntetos, Boylan & Croston 2005).
_RARE: Final = 1.32
_VARYING: Final = 0.49

_SHARD: Final = 1 << 19
"""Steps processed at a time: few enough for the cache, enough to outweigh the overhead of a call."""


def profile(panel: Panel, season_length: int, classes: Sequence[str] | None = None) -> pl.DataFrame:
    """Return a row for each series, in the panel's order.

    Shares are of the observed values. A value that is not defined for a series is null.

    first, last         timestamps of the first and last step
    length              steps from first to last
    observed, gaps      steps with and without a value: observed + gaps = length
    longest_gap         most missing steps in a row
    zeros, negatives    shares
    leading_zeros       steps before the first value that is not zero, gaps included; all of them if there is none
    trailing_zeros      likewise after the last one
    mean, std, min, max of the values; std with divisor `observed`
    adi                 average inter-demand interval: observed steps per value that is not zero
    cv2                 (std / mean)^2 of the values that are not zero
    demand              one of DEMAND, by whether adi > 1.32 and cv2 > 0.49 (Syntetos, Boylan & Croston, "On the
                        categorization of demand patterns", JORS 56, 2005). These three are null for series that have
                        negative values or only zeros: they are no demand.
    seasonality, trend  strength in [0, 1], see `strengths`
    constant            all values are the same
    outliers            values that forecasts leave out of their inputs (`forecast.data.ingest.outliers`)

    With `classes`, whose codes have no size, the columns from zeros on, except `constant`, are replaced by

    classes             how many of them the series has
    class, share        the most frequent class (of several, the one with the lowest code), and its share
    """
    if classes is None:
        return pl.concat([_profile(shard, season_length) for shard in panel.shards(_SHARD)])
    return pl.concat([_profile_of_classes(shard, classes) for shard in panel.shards(_SHARD)])


def frequencies(panel: Panel, classes: Sequence[str]) -> pl.DataFrame:
    """Return class, values, share of all observed values, and number of series with it; most values first."""
    counts = pl.concat([_class_counts(shard) for shard in panel.shards(_SHARD)])
    by_code = counts.group_by("code").agg(pl.col("values").sum(), series=pl.len().cast(pl.Int64))
    by_code = by_code.sort("values", "code", descending=[True, False])
    name = pl.Series(CLASS, classes, dtype=pl.String).gather(by_code["code"])
    return by_code.select(name, "values", (pl.col("values") / pl.col("values").sum()).alias("share"), "series")


def _class_counts(panel: Panel) -> pl.DataFrame:
    """Count the values of each class in each series: columns series (by number), code and values."""
    observed = np.isfinite(panel.target)
    series = np.repeat(np.arange(panel.n_series), panel.lengths)[observed]
    steps = pl.DataFrame({"series": series, "code": panel.target[observed].astype(np.int64)})
    return steps.group_by("series", "code").agg(pl.len().cast(pl.Int64).alias("values"))


def _profile_of_classes(panel: Panel, classes: Sequence[str]) -> pl.DataFrame:
    most_frequent = (
        _class_counts(panel)
        .sort("series", "values", "code", descending=[False, True, False])
        .group_by("series", maintain_order=True)
        .agg(pl.len().cast(pl.Int64).alias("classes"), pl.col("code", "values").first())
    )
    return pl.DataFrame(_steps(panel)).with_columns(
        most_frequent["classes"],
        pl.Series(classes, dtype=pl.String).gather(most_frequent["code"]).alias(CLASS),
        (most_frequent["values"] / pl.col("observed")).alias("share"),
        (most_frequent["classes"] == 1).alias("constant"),
    )


def _steps(panel: Panel) -> dict[str, Any]:
    """Return the columns on the times, lengths and gaps of each series."""
    lengths, begin = panel.lengths, panel.offsets[:-1]
    is_observed = np.isfinite(panel.target)
    observed = count_per_series(is_observed, begin)
    # Runs of missing steps lie between one observed step and the next of the same series.
    number = np.cumsum(observed) - observed
    n_missing = np.diff(np.flatnonzero(is_observed), prepend=0) - 1
    n_missing[number] = 0
    return {
        SERIES_ID: pl.Series(panel.series_id.tolist(), dtype=pl.String),
        "first": panel.grid.timestamps(panel.start),
        "last": panel.grid.timestamps(panel.start + lengths - 1),
        "length": lengths,
        "observed": observed,
        "gaps": lengths - observed,
        "longest_gap": np.maximum.reduceat(n_missing, number),
    }


def _profile(panel: Panel, season_length: int) -> pl.DataFrame:
    lengths, begin = panel.lengths, panel.offsets[:-1]
    is_observed = np.isfinite(panel.target)
    target = panel.target.astype(np.float64)
    values = np.where(is_observed, target, 0.0)
    steps = _steps(panel)
    observed = steps["observed"]
    demands, leading, trailing = _nonzero_extent(panel, values)
    mean = sum_per_series(values, begin) / observed
    deviation = np.where(is_observed, target - np.repeat(mean, lengths), 0.0)
    squares = sum_per_series(deviation**2, begin)
    std = np.sqrt(squares / observed)
    smallest, largest = np.fmin.reduceat(target, begin), np.fmax.reduceat(target, begin)
    constant = smallest == largest
    std[constant] = 0.0

    negative = count_per_series(values < 0, begin)
    is_demand = (negative == 0) & (demands > 0)
    adi, cv2 = np.full((2, len(mean)), np.nan)
    np.divide(observed, demands, out=adi, where=is_demand)
    # Sum of squares about the mean of all values, minus that of the zeros, shifted to the mean of the others.
    zeros = observed - demands
    spread = np.maximum(squares - zeros * mean**2, 0.0) / np.maximum(demands, 1) - (mean * adi - mean) ** 2
    np.divide(np.maximum(spread, 0.0), (mean * adi) ** 2, out=cv2, where=is_demand)

    with np.errstate(invalid="ignore", divide="ignore"):
        scale = np.where(constant, 0.0, 1.0 / std)
    largest_size = np.maximum(np.abs(smallest), np.abs(largest))
    rounding = (float(np.finfo(np.float32).eps) * largest_size * scale) ** 2
    seasonality, trend = strengths(
        panel, np.where(is_observed, deviation * np.repeat(scale, lengths), np.nan), season_length, ~constant, rounding
    )
    return (
        pl.DataFrame(
            {
                **steps,
                "zeros": zeros / observed,
                "leading_zeros": leading,
                "trailing_zeros": trailing,
                "negatives": negative / observed,
                "mean": mean,
                "std": std,
                "min": smallest,
                "max": largest,
                "adi": adi,
                "cv2": cv2,
                "seasonality": seasonality,
                "trend": trend,
                "constant": constant,
                "outliers": np.bincount(find_outliers(panel).series, minlength=panel.n_series),
            }
        )
        .with_columns(pl.col("adi", "cv2", "seasonality", "trend").fill_nan(None))
        .with_columns(demand=_kind_of_demand())
        .select(*_COLUMNS)
    )


def _nonzero_extent(panel: Panel, values: Array) -> tuple[IntArray, IntArray, IntArray]:
    """Return the number of nonzero values of each series, and the steps before the first and after the last, [S]."""
    begin, end = panel.offsets[:-1], panel.offsets[1:]
    nonzero = np.flatnonzero(values)
    first, last = np.searchsorted(nonzero, [begin, end])
    edges = np.append(nonzero, 0)
    leading = np.where(last > first, edges[first] - begin, panel.lengths)
    trailing = np.where(last > first, end - 1 - edges[last - 1], panel.lengths)
    return last - first, leading, trailing


def _kind_of_demand() -> pl.Expr:
    """Return the kind of demand from the columns adi and cv2, null if adi is."""
    rare, varying = pl.col("adi") > _RARE, pl.col("cv2") > _VARYING
    return (
        pl.when(rare & varying)
        .then(pl.lit("lumpy"))
        .when(rare)
        .then(pl.lit("intermittent"))
        .when(varying)
        .then(pl.lit("erratic"))
        .when(pl.col("adi").is_not_null())
        .then(pl.lit("smooth"))
    )


_COLUMNS: Final = (
    SERIES_ID, "first", "last", "length", "observed", "gaps", "longest_gap", "zeros", "leading_zeros", "trailing_zeros",
    "negatives", "mean", "std", "min", "max", "adi", "cv2", "demand", "seasonality", "trend", "constant",
    "outliers",
)  # fmt: skip
