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
    apply_matrix,
    error_matrix,
    reconciling_matrix,
    spread_quantiles,
    sum_matrices,
)
from forecast.reconciliation.hierarchy import BOTTOM, LEVEL, MEDIAN, Array, Hierarchy, aggregated, first_line


@dataclass(frozen=True, repr=False)
class Reconciled:
    """Forecasts that add up."""

    frame: pl.DataFrame
    """series_id (a series, or a sum such as `state=TX/store=7`), level, then the columns of the forecasts, without
    sample paths; the sums from the top down. `source` of sums is the method."""
    summary: pl.DataFrame
    """level, nodes, moved: the mean of |reconciled - forecast| of the medians, null where there was no forecast."""
    incoherence: dict[str, float]
    """The largest difference between a sum and the sum of its series, of mean and median: `absolute`, `relative`."""
    counts: dict[str, int]
    """nodes, series, dropped; ended, if there are any, the series that add nothing any more; errors, the past forecasts
    whose errors were used; negative, values that are below 0 now."""

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
    """Return forecasts of one cutoff that add up, at all nodes.

    `forecasts` are those of `score`: of all series, and, but for `bottom_up`, of all sums, by their ids. Means and
    medians are those of the series after reconciliation, b = P y, and the sums of these, S b; P is by
    hierarchicalforecast (Wickramasuriya, Athanasopoulos & Hyndman 2019, JASA, for `mint_shrink`). Of top_down and
    middle_out, P holds the proportions of the means.

    Quantiles do not add up. With Gaussian errors of covariance W, those of the reconciled forecasts have S P W P' S'
    (Wickramasuriya 2024, JASA): a node's quantiles are its own, around the new median, as much wider or narrower as
    its standard deviation is; those of a normal distribution where it had none. Standard deviations are the widths
    between the outermost quantiles; correlations those of the `errors` (cutoff, step, and a column for each node),
    shrunk towards none (Schaefer & Strimmer 2005), and none without.

    Series that have `ended` and have no forecast add nothing: sums are those of the others, whatever the method.

    Raises ConfigError if hierarchicalforecast is not installed, or `errors` are missing that the method needs;
    DataError for series without a place in the hierarchy, or nodes without a forecast; OutputError if sums are further
    off than `settings.tolerance`.
    """
    hierarchy, dropped, n_ended = _complete(forecasts, hierarchy, settings, set(ended))
    quantiles = [name for name in forecasts.columns if name[0] == "q" and name[1:].replace(".", "", 1).isdigit()]
    if MEDIAN not in quantiles or MEAN not in forecasts.columns:
        raise DataError(f"the forecasts need the columns {MEAN} and {MEDIAN}; classes do not add up")
    base = sum_matrices(forecasts, hierarchy, [MEAN, *quantiles])
    error = None if errors is None else error_matrix(errors, hierarchy)
    mapping = reconciling_matrix(base[MEAN], hierarchy, settings, error)
    mean, median = (hierarchy.sums(apply_matrix(mapping, base[name])) for name in (MEAN, MEDIAN))
    values = {MEAN: mean, MEDIAN: median}
    levels = np.array([float(name[1:]) / 100 for name in quantiles])
    if len(quantiles) > 1:
        values |= spread_quantiles(base, median, levels, quantiles, mapping, hierarchy, error)
    frame = _frame(forecasts, hierarchy, {name: values[name] for name in (MEAN, *quantiles)}, settings.method)
    moved = np.abs(median - base[MEDIAN]).mean(1)
    summary = (
        pl.DataFrame({LEVEL: hierarchy.level, "moved": pl.Series(moved).fill_nan(None)})
        .group_by(LEVEL, maintain_order=True)
        .agg(pl.len().alias("nodes"), pl.col("moved").mean())
    )
    off = incoherence(frame, hierarchy)
    if not off["relative"] <= settings.tolerance:
        raise OutputError(
            f"sums are up to {off['absolute']:.3g} ({off['relative']:.2%}) off those of their series; raise "
            "reconcile.tolerance, if that is near enough"
        )
    counts = {
        "nodes": len(hierarchy.nodes),
        "series": len(hierarchy.series),
        "dropped": dropped,
        **({"ended": n_ended} if n_ended else {}),
        "errors": 0 if error is None else error.shape[1],
        "negative": int(sum(((found < 0) & ~(base[name] < 0)).sum() for name, found in values.items())),
    }
    return Reconciled(frame, summary, off, counts)


def incoherence(frame: pl.DataFrame, hierarchy: Hierarchy) -> dict[str, float]:
    """Return how far the sums in a table are off those of the series in it, of mean and median: the largest one.

    `relative` is the share of the sum of the sizes.
    """
    found = sum_matrices(frame, hierarchy, [MEAN, MEDIAN])
    series = [values[-len(hierarchy.series) :] for values in found.values()]
    off = [np.abs(hierarchy.sums(own) - values) for own, values in zip(series, found.values(), strict=True)]
    relative = [
        np.divide(part, np.maximum(hierarchy.sums(np.abs(own)), TINY)) for part, own in zip(off, series, strict=True)
    ]
    return {"absolute": float(np.max(off)), "relative": float(np.max(relative))}


def _complete(
    forecasts: pl.DataFrame, hierarchy: Hierarchy, settings: ReconcileSettings, ended: set[str]
) -> tuple[Hierarchy, int, int]:
    """Return the hierarchy of the series that are forecast, how many others are left out, and how many have ended."""
    there = set(forecasts[SERIES_ID].unique())
    if strange := sorted(there - set(hierarchy.nodes)):
        raise DataError(
            f"{len(strange):,} of {len(there):,} series that are forecast are not in the hierarchy: "
            f"{listing(strange)}; add them to its table (reconcile.table)"
        )
    absent = set(hierarchy.series) - there
    lacking, over = sorted(absent - ended), sorted(absent & ended)
    if len(over) == len(hierarchy.series):
        raise DataError(f"all {len(over):,} series of the hierarchy have ended (score.max_age): {listing(over)}")
    if lacking and (settings.missing == "fail" or len(absent) == len(hierarchy.series)):
        raise DataError(
            f"{len(lacking):,} of {len(hierarchy.series):,} series of the hierarchy have no forecast: "
            f"{listing(lacking)}; score them, or set reconcile.missing=drop for sums without them"
        )
    if lacking and settings.method != "bottom_up":
        raise ConfigError(
            f"reconcile.missing=drop is for bottom_up: the forecasts of sums have the {len(lacking):,} series in "
            f"them that are missing: {listing(lacking)}"
        )
    if absent:
        kept = np.array([name not in absent for name in hierarchy.series])
        summing = hierarchy.summing[:, kept]
        filled = np.flatnonzero(summing.sum(1) > 0)
        names, level = ([values[k] for k in filled] for values in (hierarchy.nodes, hierarchy.level))
        hierarchy = Hierarchy(names, level, summing[filled])
    if settings.method != "bottom_up" and (gone := sorted(set(hierarchy.nodes) - there)):
        raise DataError(
            f"reconcile.method={settings.method} needs forecasts of the sums too, and {len(gone):,} of "
            f"{len(hierarchy.nodes) - len(hierarchy.series):,} have none: {listing(gone)}; train and score with the "
            "table that fc.aggregate() makes, or set reconcile.method=bottom_up" + _ended_sums(set(gone) & ended)
        )
    return hierarchy, len(lacking), len(over)


def _ended_sums(names: set[str]) -> str:
    """Return what to do about sums that have ended though some of their series have not."""
    if not names:
        return ""
    return (
        f"; {len(names):,} of these have ended, for a sum has no value where one of its series has none: "
        "fc.aggregate(..., max_age=STEPS) makes sums of the series that go on"
    )


def _frame(forecasts: pl.DataFrame, hierarchy: Hierarchy, values: Mapping[str, Array], method: str) -> pl.DataFrame:
    n, horizon = values[MEAN].shape
    ahead = forecasts.unique(STEP).sort(STEP)
    index = np.tile(np.arange(horizon), n)
    nodes = pl.DataFrame({SERIES_ID: hierarchy.nodes, LEVEL: hierarchy.level})
    given = forecasts.unique(SERIES_ID).select(SERIES_ID, SOURCE)
    said = nodes.join(given, on=SERIES_ID, how="left", maintain_order="left").select(
        SERIES_ID, LEVEL, pl.when(pl.col(LEVEL) == BOTTOM).then(SOURCE).otherwise(pl.lit(method)).alias(SOURCE)
    )
    said = said[np.repeat(np.arange(n), horizon)]
    others = [name for name in (MODEL_VERSION, MODEL_NAME, MODEL_DIGEST) if name in forecasts.columns]
    return pl.DataFrame(
        [
            said[SERIES_ID],
            said[LEVEL],
            *(ahead[name].gather(index) for name in (TIMESTAMP, CUTOFF, STEP)),
            *(pl.Series(name, found.ravel()) for name, found in values.items()),
            said[SOURCE],
            *(ahead[name].gather(index) for name in others),
        ]
    )


def past_errors(
    past: pl.DataFrame, actuals: pl.DataFrame, hierarchy: Hierarchy, ended: Collection[str] = ()
) -> pl.DataFrame:
    """Return the errors of the means of past forecasts: cutoff, step, and a column for each node that was forecast.

    `actuals` has series_id, timestamp and target of the series, of which those that have `ended` add nothing after
    their last one. Raises DataError if its timestamps are of another kind.
    """
    came = aggregated(actuals, hierarchy, ended=ended)
    own, other = (frame.schema[TIMESTAMP] for frame in (past, came))
    zones = [getattr(dtype, "time_zone", None) for dtype in (own, other)]
    if zones[0] != zones[1]:
        raise DataError(
            f"reconcile.actuals: its timestamps are in {zones[1] or 'no time zone'}, those of the forecasts in "
            f"{zones[0] or 'none'}"
        )
    try:
        came = came.cast({TIMESTAMP: own})
    except pl.exceptions.PolarsError as error:
        kinds = f"{own} in the forecasts, {other} in the table"
        raise DataError(
            f"reconcile.actuals: its timestamps are of another kind ({kinds}): {first_line(error)}"
        ) from None
    rows = past.join(came, on=[SERIES_ID, TIMESTAMP], how="inner")
    return (
        rows.select(CUTOFF, STEP, SERIES_ID, error=pl.col(TARGET) - pl.col(MEAN))
        .drop_nulls()
        .pivot(on=SERIES_ID, index=[CUTOFF, STEP], values="error")
        .sort(CUTOFF, STEP)
    )
