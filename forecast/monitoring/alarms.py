"""Alarms: series whose recent accuracy is unlike that of their history."""

from collections.abc import Sequence
from typing import Final

import polars as pl

from forecast.config import AlarmSettings
from forecast.monitoring.labels import AGE, ALARM, FEW, HISTORY, NO_REFERENCE, NO_SCALE, NORMAL, RECENT
from forecast.names import SERIES_ID

_MAD: Final = 1.4826
"""Of a normal distribution, the standard deviation over the median absolute deviation."""
_FEW_PERIODS: Final = 4
"""Periods of a reference of which the distance that is an alarm is twice that of many: few may be calm by chance."""


def alarms_of(days: pl.DataFrame, settings: AlarmSettings, backtest: pl.DataFrame | None, recent: int) -> pl.DataFrame:
    """Return each series with what its recent MASE is held against, alarms first.

    Like is compared with like: its reference is the MASE of the days of its history by forecasts of the same age, each
    age as often as among the recent steps. Where the ages with enough days have too few recent steps, it is the windows
    of its backtest, for all recent steps. An alarm is above `ratio` times the median, above the median by `deviations`
    robust deviations, and above `least`. `recent` are the steps of the window, of which no more can be asked for.
    """
    least_steps = min(settings.min_steps, recent)
    sums = pl.col("scaled", "n_scaled", "n_steps").sum()
    now = days.filter(window=RECENT).group_by(SERIES_ID, AGE).agg(sums)
    every = now.group_by(SERIES_ID).agg(sums)
    scored = days.filter(window=HISTORY).with_columns(score=pl.col("scaled") / pl.col("n_scaled"))
    by_age = _robust(scored.filter(pl.col("score").is_finite()), [SERIES_ID, AGE])
    by_age = by_age.filter(pl.col("periods") >= settings.min_periods)
    weight = pl.col("n_scaled")
    alike = now.join(by_age, on=[SERIES_ID, AGE]).group_by(SERIES_ID)
    mean = [((pl.col(name) * weight).sum() / weight.sum()).alias(name) for name in ("median", "deviation")]
    own = alike.agg(sums, *mean, pl.col("periods").min()).filter(pl.col("n_steps") >= least_steps)
    own = own.filter(pl.col("n_scaled") > 0).with_columns(reference=pl.lit(HISTORY))
    tested = pl.DataFrame({SERIES_ID: [], "score": []}, schema={SERIES_ID: pl.String, "score": pl.Float64})
    if backtest is not None:
        tested = backtest.select(SERIES_ID, pl.col("mase").fill_nan(None).alias("score")).drop_nulls()
    other = every.join(_robust(tested, [SERIES_ID]).filter(pl.col("periods") >= 2), on=SERIES_ID)
    other = other.join(own, on=SERIES_ID, how="anti").with_columns(reference=pl.lit("backtest"))
    judged = pl.concat([own, other], how="diagonal_relaxed")
    none = every.join(judged, on=SERIES_ID, how="anti")
    found = pl.concat([judged, none], how="diagonal_relaxed")
    usual = pl.col("median")
    wider = 1 + _FEW_PERIODS / pl.col("periods")
    limit = pl.when(usual.is_not_null()).then(
        pl.max_horizontal(
            usual * (1 + (settings.ratio - 1) * wider),
            usual + settings.deviations * _MAD * pl.col("deviation") * wider,
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
    found = found.with_columns((pl.col("scaled") / pl.col("n_scaled")).fill_nan(None).alias("mase"), limit=limit)
    columns = [SERIES_ID, "status", "mase", "reference", "median", "deviation", "limit", "periods", "n_steps"]
    excess = pl.col("mase") / pl.col("limit")
    order = [pl.col("status") != ALARM, -excess, pl.col(SERIES_ID)]
    return found.with_columns(status=status).sort(order, nulls_last=True).select(columns)


def _robust(scores: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
    """Return median and median absolute deviation of the scores by `keys`, and how many there are."""
    score = pl.col("score")
    return scores.group_by(keys).agg(
        score.median().alias("median"), (score - score.median()).abs().median().alias("deviation"), periods=pl.len()
    )
