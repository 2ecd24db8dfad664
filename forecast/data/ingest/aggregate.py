"""Finer rows put together to the steps of the grid: hours to days, single sales to weeks."""

from collections.abc import Container
from typing import Final

import numpy as np
import polars as pl

from forecast.config import DataConfig
from forecast.data.ingest.rows import BoolArray, Rows, Runs, cells, span
from forecast.data.ingest.timestamps import Settled, period_ends

NOT_OVER: Final = "in a period that is not over"
INCOMPLETE: Final = "in a period with missing rows"


def faults(rows: Rows, settled: Settled, n_series: int) -> list[tuple[str, BoolArray]]:
    """Return the rows whose period can't be used, with the reason.

    A period that is not over when the data end would look low, and so would a sum with rows missing (of regular rows:
    of irregular ones nobody knows how many there should be). Rows without a target are always fine.
    """
    assert settled.over is not None
    observed = ~np.isnan(rows.target)
    ends, expected = period_ends(rows.index, settled)
    not_over = observed & (ends > settled.over)
    incomplete = np.zeros_like(not_over)
    if expected is not None and settled.data.aggregate == "sum":
        position, size = cells(rows, *span(rows.runs, rows.index, n_series))
        count = np.bincount(position[observed], minlength=size)[position]
        incomplete = observed & ~not_over & (count < expected)
    return [(NOT_OVER, not_over), (INCOMPLETE, incomplete)]


def put_together(rows: Rows, data: DataConfig, categorical: Container[str]) -> Rows:
    """Return one row per series and period: the target as `data.aggregate` says, covariates by their mean.

    Categorical covariates, which are codes, get the last one. Missing values are left out.
    """
    names = [f"past {name}" for name in data.past_covariates][: len(rows.past)]
    names += [f"known {name}" for name in data.known_covariates][: len(rows.known)]
    table = pl.DataFrame(
        {
            "series": rows.runs.each(),
            "index": rows.index,
            "instant": rows.instant,
            "after": np.zeros(len(rows), dtype=np.bool_) if rows.after is None else rows.after,
            "target": pl.Series(rows.target).fill_nan(None),
            **{name: pl.Series(values).fill_nan(None) for name, values in zip(names, rows.columns()[1:], strict=True)},
        }
    )

    def last(name: str) -> pl.Expr:
        return pl.col(name).sort_by("instant").drop_nulls().last()

    def combined(name: str) -> pl.Expr:
        return last(name) if name.partition(" ")[2] in categorical else pl.col(name).mean()

    target = {
        "sum": pl.when(pl.col("target").count() > 0).then(pl.col("target").sum()),
        "mean": pl.col("target").mean(),
        "last": last("target"),
    }[data.aggregate or "sum"]
    merged = (
        table.group_by("series", "index")
        .agg(target.alias("target"), pl.col("after").any(), pl.len().alias("rows"), *map(combined, names))
        .sort("series", "index")
    )
    columns = [merged[name].cast(pl.Float32).fill_null(np.nan).to_numpy() for name in names]
    return Rows(
        runs=Runs.of_numbers(merged["series"].to_numpy()),
        index=merged["index"].to_numpy(),
        target=merged["target"].cast(pl.Float64).fill_null(np.nan).to_numpy(),
        past=columns[: len(rows.past)],
        known=columns[len(rows.past) :],
        after=None if rows.after is None else merged["after"].to_numpy(),
        merged=merged["rows"].cast(pl.Int64).to_numpy(),
    )
