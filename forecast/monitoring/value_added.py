"""Forecast value added: whether overrides, the model or seasonal naive were right.

All three are judged on the same observations, those of overridden values, by the distance of their points: the value of
the override, the mean of the model, and the median of seasonal naive from the same cutoff (Gilliland 2010, "The
Business Forecasting Deal").
"""

from typing import Final

import numpy as np
import polars as pl

from forecast.data.sources.frames import column
from forecast.metrics.significance import paired_test
from forecast.monitoring.cutoffs import Cutoff, Part
from forecast.monitoring.labels import ALL
from forecast.monitoring.step_scores import Evaluation
from forecast.names import OVERRIDE_AUTHOR, SERIES_ID
from forecast.prediction.naive import naive_forecasts

AUTHOR: Final = "author"
_VALUES: Final = pl.Schema(
    {
        SERIES_ID: pl.String,
        OVERRIDE_AUTHOR: pl.String,
        "position": pl.Int64,
        "target_position": pl.Int64,
        "actual": pl.Float64,
        "override": pl.Float64,
        "model": pl.Float64,
        "naive": pl.Float64,
    }
)


def no_values() -> pl.DataFrame:
    """Return an empty table of `overridden_values`."""
    return _VALUES.to_frame()


def overridden_values(part: Part, cutoff: Cutoff, evaluation: Evaluation) -> pl.DataFrame:
    """Return a row for each observation of an overridden value: what was observed, and the three points.

    `position` and `target_position` are the grid indices of cutoff and step.
    """
    if part.model_mean is None:
        return no_values()
    assert part.mean is not None
    assert part.author is not None
    row, step = np.nonzero(np.isfinite(part.actual) & np.isfinite(part.model_mean))
    if not len(row):
        return no_values()
    series, place = np.unique(row, return_inverse=True)
    levels, horizon = evaluation.levels, part.actual.shape[1]
    windows, season = part.windows[series], evaluation.season
    naive = naive_forecasts(evaluation.artifact, part.panel, windows, season=season, horizon=horizon, levels=levels)
    return pl.DataFrame(
        {
            SERIES_ID: part.series_id.gather(row),
            OVERRIDE_AUTHOR: part.author[row, step].tolist(),
            "position": np.full(len(row), cutoff.position, np.int64),
            "target_position": cutoff.position + 1 + step.astype(np.int64),
            "actual": part.actual[row, step],
            "override": part.mean[row, step],
            "model": part.model_mean[row, step],
            "naive": naive[place, step, list(levels).index(0.5)],
        },
        schema=_VALUES,
    )


def value_added(values: pl.DataFrame, segments: pl.DataFrame) -> pl.DataFrame:
    """Return the errors of overrides, model and seasonal naive over all values, by author and by segment.

    n_values          observed values with an override; one that several cutoffs have forecast counts each time
    mae_override      mean of |override - y|, in units of the target; likewise mae_model and mae_naive
    bias_override     mean of override - y; likewise bias_model
    value_added       1 - mae_override / mae_model: above 0 if people were better than the model, null if that is 0
    better            share of the values where the override was closer than the model
    p_value           one-sided `paired_test` over cutoffs that the override is better; null with too few of them
    """
    joined = values.join(segments, on=SERIES_ID, how="left", maintain_order="left")
    parts = [joined.with_columns(group=pl.lit(ALL), value=pl.lit(""))]
    parts += [joined.with_columns(group=pl.lit(AUTHOR), value=pl.col(OVERRIDE_AUTHOR))]
    parts += [
        joined.with_columns(group=pl.lit(name), value=column(name)) for name in segments.columns if name != SERIES_ID
    ]
    errors = {name: pl.col(name) - pl.col("actual") for name in ("override", "model", "naive")}
    grouped = pl.concat(parts).group_by("group", "value", maintain_order=True)
    result = grouped.agg(
        pl.len().alias("n_values").cast(pl.Int64),
        pl.col(SERIES_ID).n_unique().cast(pl.Int64).alias("n_series"),
        pl.col("position").n_unique().cast(pl.Int64).alias("n_cutoffs"),
        *(error.abs().mean().alias(f"mae_{name}") for name, error in errors.items()),
        *(errors[name].mean().alias(f"bias_{name}") for name in ("override", "model")),
        better=(errors["override"].abs() < errors["model"].abs()).mean(),
        test=pl.struct("position", "target_position", difference=errors["override"].abs() - errors["model"].abs()),
    )
    tests = [_p_value(rows.struct.unnest()) for rows in result["test"]]
    added = 1 - pl.col("mae_override") / pl.col("mae_model")
    result = result.drop("test").with_columns(
        pl.when(pl.col("mae_model") > 0).then(added).alias("value_added"),
        pl.Series("p_value", tests, dtype=pl.Float64).fill_nan(None),
    )
    rank = pl.when(pl.col("group") == ALL).then(0).when(pl.col("group") == AUTHOR).then(1).otherwise(2)
    last = ["better", "value_added", "p_value"]
    return result.sort(rank, "group", "n_values", "value", descending=[False, False, True, False]).select(
        pl.exclude(last), *last
    )


def _p_value(values: pl.DataFrame) -> float:
    """Return the p-value that the differences of values are below 0, by `paired_test` over cutoffs."""
    cutoffs = values.group_by("position").agg(
        pl.col("difference").sum(), pl.len(), last=pl.col("target_position").max()
    )
    cutoffs = cutoffs.sort("position")
    total, weight = (cutoffs[name].to_numpy().astype(np.float64) for name in ("difference", "len"))
    begin, end = (cutoffs[name].to_numpy() for name in ("position", "last"))
    return paired_test(total, weight, begin, end).p_value
