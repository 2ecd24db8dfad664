"""What becomes of known covariates that are missing over the horizon."""

from dataclasses import replace

import numpy as np
import polars as pl

from forecast.config import DataConfig
from forecast.data.ingest.regularise import ranges
from forecast.data.ingest.rows import BoolArray
from forecast.data.panel import Panel
from forecast.names import SERIES_ID


def lacking(panel: Panel, data: DataConfig, *, cutoff: int, horizon: int) -> BoolArray:
    """Return which series miss a cell of a known covariate over the `horizon` steps after grid index `cutoff`, [S]."""
    missing = missing_known(panel, data, horizon=horizon, cutoff=cutoff)
    names = missing.filter(missing["missing_horizon"] > 0)[SERIES_ID].unique()
    return np.isin(panel.series_id, names.to_numpy().astype(panel.series_id.dtype))


def carried_forward(panel: Panel, *, cutoff: int, horizon: int, context: int) -> tuple[Panel, int]:
    """Return the panel with the last value before in the cells that are missing over the horizon, and their number.

    A cell stays missing where the series has no value of the covariate before it, or ends more than `context` steps
    before the cutoff: no model sees such a series.
    """
    gap = np.clip(cutoff + 1 - panel.start - panel.lengths, 0, context)
    reach = max(panel.horizon, int(gap.max()) + horizon)
    number, held = np.arange(panel.n_series), panel.lengths + panel.horizon
    begin = panel.offsets[:-1] + number * reach
    known = np.full((len(panel.known), len(panel.target) + panel.n_series * reach), np.nan, np.float32)
    known[:, ranges(begin, held)] = panel.known
    column = np.arange(known.shape[1])
    each = np.repeat(number, panel.lengths + reach)
    ahead = column - begin[each] + panel.start[each] - cutoff
    inside = (ahead >= 1) & (ahead <= horizon) & (panel.start <= cutoff)[each]
    n_carried = 0
    for row in known:
        there = ~np.isnan(row)
        latest = np.maximum.accumulate(np.where(there, column, -1))
        empty = np.flatnonzero(inside & ~there & (latest >= begin[each]))
        row[empty] = row[latest[empty]]
        n_carried += len(empty)
    return replace(panel, known=known, horizon=reach), n_carried


def missing_known(panel: Panel, data: DataConfig, *, horizon: int, cutoff: int | None = None) -> pl.DataFrame:
    """Return how many cells of each known covariate are missing up to a cutoff, and over the `horizon` steps after it.

    The cutoff is a grid index, or the end of each series when None. Columns series_id, covariate, missing_history,
    missing_horizon; only series and covariates that miss any.
    """
    parts = []
    for shard in panel.shards():
        held = shard.lengths + panel.horizon
        begin = np.cumsum(held) - held
        seen = shard.lengths if cutoff is None else np.clip(cutoff + 1 - shard.start, 0, None)
        middle, end = begin + np.minimum(seen, held), begin + np.minimum(seen + horizon, held)
        for name, values in zip(data.known_covariates, shard.known, strict=True):
            missing = np.append(0, np.cumsum(np.isnan(values)))
            history = missing[middle] - missing[begin]
            ahead = missing[end] - missing[middle] + horizon - (end - middle)
            some = (seen > 0) & ((history > 0) | (ahead > 0))
            parts.append(
                pl.DataFrame(
                    {
                        SERIES_ID: pl.Series(shard.series_id[some].tolist(), dtype=pl.String),
                        "covariate": pl.repeat(name, int(some.sum()), dtype=pl.String, eager=True),
                        "missing_history": history[some],
                        "missing_horizon": ahead[some],
                    }
                )
            )
    schema = {SERIES_ID: pl.String, "covariate": pl.String, "missing_history": pl.Int64, "missing_horizon": pl.Int64}
    return pl.concat([pl.DataFrame(schema=schema), *parts])
