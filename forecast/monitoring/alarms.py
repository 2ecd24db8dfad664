"""Alarms: series whose recent accuracy is out of line with their history."""

from collections.abc import Sequence
from typing import Final

import polars as pl

from forecast.config import AlarmSettings
from forecast.monitoring.labels import AGE, ALARM, FEW, HISTORY, NO_REFERENCE, NO_SCALE, NORMAL, RECENT
from forecast.names import SERIES_ID

_MAD: Final = 1.4826
"""Ratio of the standard deviation to the median absolute deviation, for a normal distribution."""
_FEW_PERIODS: Final = 4
"""Number of reference periods at which the distance to the limit is twice that of many: a short history may be calm by
chance."""


def alarms_of(days: pl.DataFrame, settings: AlarmSettings, backtest: pl.DataFrame | None, recent: int) -> pl.DataFrame:
    """Return each series with its recent MASE, the reference and the limit; alarms first.

    The reference is the median MASE over the days of the history, of forecasts of the same age; ages are weighted as
    among the recent steps. Where ages with enough days cover too few recent steps, the reference is the windows of the
    backtest, for all recent steps. An alarm exceeds `ratio` times the median, the median plus `deviations` robust
    deviations, and `least`. `recent` is the number of steps of the window; no series needs more.
    """
    least_steps = min(settings.min_steps, recent)
    sums = pl.col("scaled", "n_scaled", "n_steps").sum()
    recent_by_age = days.filter(window=RECENT).group_by(SERIES_ID, AGE).agg(sums)
    by_series = recent_by_age.group_by(SERIES_ID).agg(sums)
    scored = days.filter(window=HISTORY).with_columns(score=pl.col("scaled") / pl.col("n_scaled"))
    by_age = _robust(scored.filter(pl.col("score").is_finite()), [SERIES_ID, AGE])
    by_age = by_age.filter(pl.col("periods") >= settings.min_periods)
    weight = pl.col("n_scaled")
    same_ages = recent_by_age.join(by_age, on=[SERIES_ID, AGE]).group_by(SERIES_ID)
    mean = [((pl.col(name) * weight).sum() / weight.sum()).alias(name) for name in ("median", "deviation")]
    from_history = same_ages.agg(sums, *mean, pl.col("periods").min()).filter(pl.col("n_steps") >= least_steps)
    from_history = from_history.filter(pl.col("n_scaled") > 0).with_columns(reference=pl.lit(HISTORY))
    backtest_scores = pl.DataFrame({SERIES_ID: [], "score": []}, schema={SERIES_ID: pl.String, "score": pl.Float64})
    if backtest is not None:
        backtest_scores = backtest.select(SERIES_ID, pl.col("mase").fill_nan(None).alias("score")).drop_nulls()
    from_backtest = by_series.join(_robust(backtest_scores, [SERIES_ID]).filter(pl.col("periods") >= 2), on=SERIES_ID)
    from_backtest = from_backtest.join(from_history, on=SERIES_ID, how="anti").with_columns(
        reference=pl.lit("backtest")
    )
    with_reference = pl.concat([from_history, from_backtest], how="diagonal_relaxed")
    without_reference = by_series.join(with_reference, on=SERIES_ID, how="anti")
    alarms = pl.concat([with_reference, without_reference], how="diagonal_relaxed")
    median = pl.col("median")
    widening = 1 + _FEW_PERIODS / pl.col("periods")
    limit = pl.when(median.is_not_null()).then(
        pl.max_horizontal(
            median * (1 + (settings.ratio - 1) * widening),
            median + settings.deviations * _MAD * pl.col("deviation") * widening,
            pl.lit(settings.least),
        )
    )
    status = (
        pl.when(pl.col("mase").is_null())
        .then(pl.lit(NO_SCALE))
        .when(pl.col("n_steps") < least_steps)
        .then(pl.lit(FEW))
        .when(pl.col("limit").is_null())
        .then(pl.lit(NO_REFERENCE))
        .when(pl.col("mase") > pl.col("limit"))
        .then(pl.lit(ALARM))
        .otherwise(pl.lit(NORMAL))
    )
    alarms = alarms.with_columns((pl.col("scaled") / pl.col("n_scaled")).fill_nan(None).alias("mase"), limit=limit)
    columns = [SERIES_ID, "status", "mase", "reference", "median", "deviation", "limit", "periods", "n_steps"]
    return worst_first(alarms.with_columns(status=status).select(columns))


def worst_first(alarms: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of `alarms_of` in their order: alarms first, each part by how far the MASE is above the limit."""
    excess = pl.col("mase") / pl.col("limit")
    return alarms.sort([pl.col("status") != ALARM, -excess, pl.col(SERIES_ID)], nulls_last=True)


def _robust(scores: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
    """Return the median, the median absolute deviation and the number of the scores, by `keys`."""
    score = pl.col("score")
    return scores.group_by(keys).agg(
        score.median().alias("median"), (score - score.median()).abs().median().alias("deviation"), periods=pl.len()
    )
