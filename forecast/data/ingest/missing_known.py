"""Known covariates that are missing over the horizon: counting them, and carrying the last value forward."""

from dataclasses import replace

import numpy as np
import polars as pl

from forecast.config import DataConfig
from forecast.data.ingest.regularise import ranges
from forecast.data.ingest.rows import BoolArray
from forecast.data.panel import Panel, is_among
from forecast.errors import DataError, listing
from forecast.names import SERIES_ID


def series_missing_known(panel: Panel, data: DataConfig, *, cutoff: int, horizon: int) -> BoolArray:
    """Return a mask of series that miss a known covariate in the `horizon` steps after grid index `cutoff`, [S]."""
    counts = missing_known(panel, data, horizon=horizon, cutoff=cutoff)
    return is_among(panel.series_id, counts.filter(counts["missing_horizon"] > 0)[SERIES_ID])


def check_known(panel: Panel, data: DataConfig, *, cutoff: int, horizon: int) -> None:
    """Raise DataError if a known covariate is missing in the `horizon` steps after grid index `cutoff`."""
    missing = missing_known(panel, data, horizon=horizon, cutoff=cutoff).filter(pl.col("missing_horizon") > 0)
    if missing.height:
        names = missing[SERIES_ID].unique(maintain_order=True)
        raise DataError(
            f"{missing['missing_horizon'].sum():,} cells of {listing(missing['covariate'].unique().sort())} are "
            f"missing over the horizon, in {len(names):,} series: {listing(names)}; mend the table, or set "
            "score.missing_known to mask, quarantine or carry_forward"
        )


def carry_forward(panel: Panel, *, cutoff: int, horizon: int, context: int) -> tuple[Panel, int]:
    """Return the panel with missing cells of the horizon filled by the last value before, and their number.

    A cell stays missing where the series has no value of the covariate before it, or ends more than `context` steps
    before the cutoff: no model sees such a series.
    """
    gap = np.clip(cutoff + 1 - panel.start - panel.lengths, 0, context)
    reach = max(panel.horizon, int(gap.max()) + horizon)
    number, n_known = np.arange(panel.n_series), panel.lengths + panel.horizon
    begin = panel.offsets[:-1] + number * reach
    values = np.full((len(panel.known), len(panel.target) + panel.n_series * reach), np.nan, np.float32)
    entries = ranges(begin, n_known)
    values[:, entries] = panel.known
    available = np.full((len(panel.available), values.shape[1]), np.nan, np.float32)
    available[:, entries] = panel.available
    column = np.arange(values.shape[1])
    series = np.repeat(number, panel.lengths + reach)
    ahead = column - begin[series] + panel.start[series] - cutoff
    inside = (ahead >= 1) & (ahead <= horizon) & (panel.start <= cutoff)[series]
    n_carried = 0
    for row in values:
        present = ~np.isnan(row)
        latest = np.maximum.accumulate(np.where(present, column, -1))
        empty = np.flatnonzero(inside & ~present & (latest >= begin[series]))
        row[empty] = row[latest[empty]]
        n_carried += len(empty)
    return replace(panel, known=values, available=available, horizon=reach), n_carried


def missing_known(panel: Panel, data: DataConfig, *, horizon: int, cutoff: int | None = None) -> pl.DataFrame:
    """Count the missing cells of each known covariate up to a cutoff and over the `horizon` steps after it.

    The cutoff is a grid index, or the end of each series when None. Columns series_id, covariate, missing_history,
    missing_horizon; only series and covariates with missing cells.
    """
    parts = []
    for shard in panel.shards():
        n_known = shard.lengths + panel.horizon
        begin = np.cumsum(n_known) - n_known
        n_history = shard.lengths if cutoff is None else np.clip(cutoff + 1 - shard.start, 0, None)
        middle, end = begin + np.minimum(n_history, n_known), begin + np.minimum(n_history + horizon, n_known)
        for name, values in zip(data.known_covariates, shard.known, strict=True):
            n_missing = np.append(0, np.cumsum(np.isnan(values)))
            history = n_missing[middle] - n_missing[begin]
            ahead = n_missing[end] - n_missing[middle] + horizon - (end - middle)
            incomplete = (n_history > 0) & ((history > 0) | (ahead > 0))
            parts.append(
                pl.DataFrame(
                    {
                        SERIES_ID: pl.Series(shard.series_id[incomplete].tolist(), dtype=pl.String),
                        "covariate": pl.repeat(name, int(incomplete.sum()), dtype=pl.String, eager=True),
                        "missing_history": history[incomplete],
                        "missing_horizon": ahead[incomplete],
                    }
                )
            )
    schema = {SERIES_ID: pl.String, "covariate": pl.String, "missing_history": pl.Int64, "missing_horizon": pl.Int64}
    return pl.concat([pl.DataFrame(schema=schema), *parts])
