"""Hierarchical reconciliation: forecasts of series and of their sums that add up."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from forecast.config import ReconcileSettings
from forecast.errors import ConfigError, DataError, OutputError, listing
from forecast.names import (
    CUTOFF,
    MEAN,
    MODEL_DIGEST,
    MODEL_NAME,
    MODEL_VERSION,
    SERIES_ID,
    SOURCE,
    STEP,
    TARGET,
    TIMESTAMP,
)
from forecast.reconciliation.covariance import (
    TINY,
    Reconciler,
    error_matrix,
    reconciling_matrix,
    spread_quantiles,
    sum_matrices,
)
from forecast.reconciliation.hierarchy import BOTTOM, LEVEL, MEDIAN, Array, Hierarchy, aggregated, first_line


@dataclass(frozen=True, repr=False)
class Reconciled:
    """Reconciled forecasts of a hierarchy."""

    frame: pl.DataFrame
    """series_id (a series, or a sum such as `state=TX/store=7`), level, then the columns of the forecasts, without
    sample paths; the sums from the top down. `source` of sums is the method."""
    summary: pl.DataFrame
    """level, nodes, moved: the mean of |reconciled - forecast| of the medians, null where there was no forecast."""
    incoherence: dict[str, float]
    """The largest difference between a sum and the sum of its series, of mean and median: `absolute`, `relative`."""
    counts: dict[str, int]
    """nodes, series, dropped; ended (if any), series that have ended and count as 0; errors, past forecasts whose
    errors were used; negative, values that reconciliation moved below 0."""

    def __repr__(self) -> str:
        off = self.incoherence
        parts = [f"{number:,} {name}" for name, number in self.counts.items() if number]
        return f"Reconciled({', '.join(parts)}; sums at most {off['absolute']:.2g} off)"


def reconcile(
    forecasts: pl.DataFrame,
    hierarchy: Hierarchy,
    settings: ReconcileSettings,
    *,
    errors: pl.DataFrame | None = None,
    ended: Collection[str] = (),
) -> Reconciled:
    """Return reconciled forecasts of one cutoff for all nodes.

    `forecasts` are those of `score`: of all series and, except for `bottom_up`, of all sums, by their ids. Means and
    medians of the series are b = P y, those of the sums S b; P is computed by
    hierarchicalforecast (Wickramasuriya, Athanasopoulos & Hyndman 2019, JASA, for `mint_shrink`). Of top_down and
    middle_out, P holds the proportions of the means.

    Quantiles do not add up. With Gaussian errors of covariance W, those of the reconciled forecasts have S P W P' S'
    (Wickramasuriya 2024, JASA): the quantiles of a node are shifted to the new median and scaled by the ratio
    of the new to the old standard deviation; without spread before, they are those of a normal distribution. Standard
    deviations follow from the width between the outermost quantiles, correlations from `errors` (cutoff, step, and a
    column for each node), shrunk towards 0 (Schaefer & Strimmer 2005); without `errors` they are 0.

    Series that have `ended` and have no forecast count as 0 in sums, with any method.

    Raises ConfigError if hierarchicalforecast is not installed, or the method needs `errors`; DataError for
    series outside the hierarchy, or nodes without a forecast; OutputError if sums differ by more than
    `settings.tolerance`.
    """
    hierarchy, dropped, n_ended = _complete(forecasts, hierarchy, settings, set(ended))
    quantiles = [name for name in forecasts.columns if name[0] == "q" and name[1:].replace(".", "", 1).isdigit()]
    if MEDIAN not in quantiles or MEAN not in forecasts.columns:
        raise DataError(f"the forecasts need the columns {MEAN} and {MEDIAN}; classes do not add up")
    base = sum_matrices(forecasts, hierarchy, [MEAN, *quantiles])
    error = None if errors is None else error_matrix(errors, hierarchy)
    mapping = reconciling_matrix(base[MEAN], hierarchy, settings, error)
    reconciler = Reconciler(hierarchy, mapping, error)
    mean, median = (reconciler.reconcile(base[name]) for name in (MEAN, MEDIAN))
    values = {MEAN: mean, MEDIAN: median}
    if len(quantiles) > 1:
        levels = {name: float(name[1:]) / 100 for name in quantiles}
        values |= spread_quantiles(base, median, levels, reconciler)
    frame = _frame(forecasts, hierarchy, {name: values[name] for name in (MEAN, *quantiles)}, settings.method)
    gap = incoherence(frame, hierarchy)
    if not gap["relative"] <= settings.tolerance:
        raise OutputError(
            f"sums are up to {gap['absolute']:.3g} ({gap['relative']:.2%}) off those of their series; raise "
            "reconcile.tolerance, if that is near enough"
        )
    counts = {
        "nodes": len(hierarchy.nodes),
        "series": len(hierarchy.series),
        "dropped": dropped,
        **({"ended": n_ended} if n_ended else {}),
        "errors": 0 if error is None else error.shape[1],
        "negative": int(sum(((matrix < 0) & ~(base[name] < 0)).sum() for name, matrix in values.items())),
    }
    return Reconciled(frame, _summary(hierarchy, np.abs(median - base[MEDIAN]).mean(1)), gap, counts)


def _summary(hierarchy: Hierarchy, changes: Array) -> pl.DataFrame:
    """Return level, nodes and the mean of the changes of medians, [N], by level."""
    return (
        pl.DataFrame({LEVEL: hierarchy.level, "moved": pl.Series(changes).fill_nan(None)})
        .group_by(LEVEL, maintain_order=True)
        .agg(pl.len().alias("nodes"), pl.col("moved").mean())
    )


def incoherence(frame: pl.DataFrame, hierarchy: Hierarchy) -> dict[str, float]:
    """Return the largest difference, of mean and median, between a sum in a table and the sum of its series.

    `relative` divides it by the sum of the absolute values of the series.
    """
    matrices = sum_matrices(frame, hierarchy, [MEAN, MEDIAN])
    series = [values[-len(hierarchy.series) :] for values in matrices.values()]
    differences = [
        np.abs(hierarchy.sums(series_values) - values)
        for series_values, values in zip(series, matrices.values(), strict=True)
    ]
    relative = [
        np.divide(difference, np.maximum(hierarchy.sums(np.abs(series_values)), TINY))
        for difference, series_values in zip(differences, series, strict=True)
    ]
    return {"absolute": float(np.max(differences)), "relative": float(np.max(relative))}


def _complete(
    forecasts: pl.DataFrame, hierarchy: Hierarchy, settings: ReconcileSettings, ended: set[str]
) -> tuple[Hierarchy, int, int]:
    """Return the hierarchy of series with a forecast, the number of series left out, and the number that have ended."""
    forecast_ids = set(forecasts[SERIES_ID].unique())
    if foreign := sorted(forecast_ids - set(hierarchy.nodes)):
        raise DataError(
            f"{len(foreign):,} of {len(forecast_ids):,} series that are forecast are not in the hierarchy: "
            f"{listing(foreign)}; add them to its table (reconcile.table)"
        )
    absent = set(hierarchy.series) - forecast_ids
    absent_series, ended_series = sorted(absent - ended), sorted(absent & ended)
    if len(ended_series) == len(hierarchy.series):
        raise DataError(
            f"all {len(ended_series):,} series of the hierarchy have ended (score.max_age): {listing(ended_series)}"
        )
    if absent_series and (settings.missing == "fail" or len(absent) == len(hierarchy.series)):
        raise DataError(
            f"{len(absent_series):,} of {len(hierarchy.series):,} series of the hierarchy have no forecast: "
            f"{listing(absent_series)}; score them, or set reconcile.missing=drop for sums without them"
        )
    if absent_series and settings.method != "bottom_up":
        raise ConfigError(
            f"reconcile.missing=drop is for bottom_up: the forecasts of sums have the {len(absent_series):,} series in "
            f"them that are missing: {listing(absent_series)}"
        )
    if absent:
        has_forecast = np.array([name not in absent for name in hierarchy.series])
        summing = hierarchy.summing[:, has_forecast]
        nonempty = np.flatnonzero(summing.sum(1) > 0)
        names, level = ([values[k] for k in nonempty] for values in (hierarchy.nodes, hierarchy.level))
        hierarchy = Hierarchy(names, level, summing[nonempty])
    if settings.method != "bottom_up" and (absent_nodes := sorted(set(hierarchy.nodes) - forecast_ids)):
        raise DataError(
            f"reconcile.method={settings.method} needs forecasts of the sums too, and {len(absent_nodes):,} of "
            f"{len(hierarchy.nodes) - len(hierarchy.series):,} have none: {listing(absent_nodes)}; train and score "
            "with the table that fc.aggregate() makes, or set reconcile.method=bottom_up"
            + _ended_sums(set(absent_nodes) & ended)
        )
    return hierarchy, len(absent_series), len(ended_series)


def _ended_sums(names: set[str]) -> str:
    """Return advice on sums that have ended although some of their series have not."""
    if not names:
        return ""
    return (
        f"; {len(names):,} of these have ended, for a sum has no value where one of its series has none: "
        "fc.aggregate(..., max_age=STEPS) makes sums of the series that go on"
    )


def _frame(forecasts: pl.DataFrame, hierarchy: Hierarchy, values: Mapping[str, Array], method: str) -> pl.DataFrame:
    n, horizon = values[MEAN].shape
    steps = forecasts.unique(STEP).sort(STEP)
    index = np.tile(np.arange(horizon), n)
    nodes = pl.DataFrame({SERIES_ID: hierarchy.nodes, LEVEL: hierarchy.level})
    sources = forecasts.unique(SERIES_ID).select(SERIES_ID, SOURCE)
    node_sources = nodes.join(sources, on=SERIES_ID, how="left", maintain_order="left").select(
        SERIES_ID, LEVEL, pl.when(pl.col(LEVEL) == BOTTOM).then(SOURCE).otherwise(pl.lit(method)).alias(SOURCE)
    )
    node_sources = node_sources[np.repeat(np.arange(n), horizon)]
    optional_columns = [name for name in (MODEL_VERSION, MODEL_NAME, MODEL_DIGEST) if name in forecasts.columns]
    return pl.DataFrame(
        [
            node_sources[SERIES_ID],
            node_sources[LEVEL],
            *(steps[name].gather(index) for name in (TIMESTAMP, CUTOFF, STEP)),
            *(pl.Series(name, matrix.ravel()) for name, matrix in values.items()),
            node_sources[SOURCE],
            *(steps[name].gather(index) for name in optional_columns),
        ]
    )


def past_errors(
    past: pl.DataFrame, actuals: pl.DataFrame, hierarchy: Hierarchy, ended: Collection[str] = ()
) -> pl.DataFrame:
    """Return the errors of the means of past forecasts: cutoff, step, and a column for each node that was forecast.

    `actuals` has series_id, timestamp and target; series that have `ended` count as 0 after their last value. Raises
    DataError if its timestamps have another type or time zone.
    """
    actual = aggregated(actuals, hierarchy, ended=ended)
    forecast_dtype, actual_dtype = (frame.schema[TIMESTAMP] for frame in (past, actual))
    zones = [getattr(dtype, "time_zone", None) for dtype in (forecast_dtype, actual_dtype)]
    if zones[0] != zones[1]:
        raise DataError(
            f"reconcile.actuals: its timestamps are in {zones[1] or 'no time zone'}, those of the forecasts in "
            f"{zones[0] or 'none'}"
        )
    try:
        actual = actual.cast({TIMESTAMP: forecast_dtype})
    except pl.exceptions.PolarsError as error:
        kinds = f"{forecast_dtype} in the forecasts, {actual_dtype} in the table"
        raise DataError(
            f"reconcile.actuals: its timestamps are of another kind ({kinds}): {first_line(error)}"
        ) from None
    rows = past.join(actual, on=[SERIES_ID, TIMESTAMP], how="inner")
    return (
        rows.select(CUTOFF, STEP, SERIES_ID, error=pl.col(TARGET) - pl.col(MEAN))
        .drop_nulls()
        .pivot(on=SERIES_ID, index=[CUTOFF, STEP], values="error")
        .sort(CUTOFF, STEP)
    )
