"""Aggregation of higher-frequency rows to the steps of the grid: hours to days, single sales to weeks."""

from collections.abc import Container
from typing import Final

import numpy as np
import polars as pl

from forecast.config import DataConfig
from forecast.data.ingest.rows import BoolArray, Rows, Runs, cells, span
from forecast.data.ingest.timestamps import ResolvedTime, period_ends

NOT_OVER: Final = "in a period that is not over"
INCOMPLETE: Final = "in a period with missing rows"


def faults(rows: Rows, resolved: ResolvedTime, n_series: int) -> list[tuple[str, BoolArray]]:
    """Return reasons why a period can't be used, each with a mask of the rows in such periods, [rows].

    A period that is not over when the data end would look low, and so would a sum with missing rows. Missing rows are
    detected for regular rows only: the expected number of irregular ones is unknown. Rows without a target have no
    fault.
    """
    assert resolved.complete_until is not None
    observed = ~np.isnan(rows.target)
    ends, expected = period_ends(rows.index, resolved)
    not_over = observed & (ends > resolved.complete_until)
    incomplete = np.zeros_like(not_over)
    if expected is not None and resolved.data.aggregate == "sum":
        position, size = cells(rows, *span(rows.runs, rows.index, n_series))
        count = np.bincount(position[observed], minlength=size)[position]
        incomplete = observed & ~not_over & (count < expected)
    return [(NOT_OVER, not_over), (INCOMPLETE, incomplete)]


def aggregate_rows(rows: Rows, data: DataConfig, categorical: Container[str]) -> Rows:
    """Return one row per series and period: the target as `data.aggregate` says, covariates by their mean.

    Categorical covariates, which are codes, get the last code. Missing values are skipped, and so are targets where
    nothing was available; a sum with such a row is missing. A period is available if one of its rows is.
    """
    names = [f"past {name}" for name in (*data.past_covariates, str(data.weight))][: len(rows.past)]
    names += [f"known {name}" for name in data.known_covariates][: len(rows.known)]
    table = pl.DataFrame(
        {
            "series": rows.runs.series_by_row(),
            "index": rows.index,
            "instant": rows.instant,
            "after": np.zeros(len(rows), dtype=np.bool_) if rows.after is None else rows.after,
            "target": pl.Series(rows.target).fill_nan(None),
            "available": np.ones(len(rows), np.float32) if rows.available is None else rows.available,
            **{name: pl.Series(values).fill_nan(None) for name, values in zip(names, rows.columns()[1:], strict=True)},
        }
    )

    def last_value(name: str) -> pl.Expr:
        return pl.col(name).sort_by("instant").drop_nulls().last()

    def aggregated(name: str) -> pl.Expr:
        return last_value(name) if name.partition(" ")[2] in categorical else pl.col(name).mean()

    # A period without any available row keeps its target, which is masked later: it shows that the series goes on.
    closed, visible = pl.col("available").max() == 0, pl.col("target").filter(pl.col("available") != 0)
    partly = ~closed & (pl.col("available").min() == 0)
    target = {
        "sum": pl.when((pl.col("target").count() > 0) & ~partly).then(pl.col("target").sum()),
        "mean": pl.when(closed).then(pl.col("target").mean()).otherwise(visible.mean()),
        "last": pl.when(closed | ~partly)
        .then(last_value("target"))
        .otherwise(visible.sort_by(pl.col("instant").filter(pl.col("available") != 0)).drop_nulls().last()),
    }[data.aggregate or "sum"]
    periods = (
        table.group_by("series", "index")
        .agg(
            target.alias("target"),
            pl.col("after").any(),
            pl.len().alias("rows"),
            pl.col("available").max(),
            *map(aggregated, names),
        )
        .sort("series", "index")
    )
    columns = [periods[name].cast(pl.Float32).fill_null(np.nan).to_numpy() for name in names]
    return Rows(
        runs=Runs.of_numbers(periods["series"].to_numpy()),
        index=periods["index"].to_numpy(),
        target=periods["target"].cast(pl.Float64).fill_null(np.nan).to_numpy(),
        past=columns[: len(rows.past)],
        known=columns[len(rows.past) :],
        after=None if rows.after is None else periods["after"].to_numpy(),
        merged=periods["rows"].cast(pl.Int64).to_numpy(),
        available=None if rows.available is None else periods["available"].to_numpy(),
    )
