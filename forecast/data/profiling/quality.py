"""Summaries for the profile of a panel: reasons of rejects, and key figures of its series."""

from typing import Final

import polars as pl
import polars.selectors as cs

from forecast.data.ingest.rejects import NO_TARGET, SHOWN, Counts, offenders
from forecast.names import CLASS, REASON, SERIES_ID

DEMAND: Final = ("smooth", "erratic", "intermittent", "lumpy")
"""Kinds of demand, easiest to forecast first."""

_TIME: Final = "%Y-%m-%d %H:%M:%S"


def quality(rejects: pl.DataFrame, counts: Counts) -> pl.DataFrame:
    """Return reason, rows, series, share and examples of each reason for rejects, most rows first.

    The share is that of all rows of the table they are from (reasons of data.known_path name it). Series without an
    observed target are one reject each; their rows are the remainder of `counts.rows_rejected`, so that the rows of
    all reasons add up to it and to `counts.known_rows_rejected`.
    """
    by_reason = rejects.group_by(REASON, maintain_order=True)
    texts = {str(reason): ", ".join(offenders(part.head(SHOWN), _short)) for (reason,), part in by_reason}
    examples = pl.DataFrame(
        {REASON: list(texts), "examples": list(texts.values())}, schema={REASON: pl.String, "examples": pl.String}
    )
    is_known = pl.col(REASON).str.starts_with("data.known_path: ")
    empty = pl.col(REASON) == NO_TARGET
    n_series = pl.col(SERIES_ID).drop_nulls().n_unique().cast(pl.Int64)
    table = rejects.group_by(REASON).agg(rows=pl.len().cast(pl.Int64), series=n_series)
    rows_of_empty = counts.rows_rejected - pl.col("rows").filter(~is_known & ~empty).sum()
    return (
        table.with_columns(rows=pl.when(empty).then(rows_of_empty).otherwise("rows"))
        .with_columns(
            share=pl.col("rows")
            / pl.when(is_known).then(max(counts.known_rows_in, 1)).otherwise(max(counts.rows_in, 1))
        )
        .join(examples, on=REASON)
        .sort("rows", REASON, descending=[True, False])
    )


def summary(profile: pl.DataFrame) -> pl.DataFrame:
    """Return key figures of the series as texts: columns `measure` and `found`."""
    n, column = profile.height, profile.get_column
    steps, observed = int(column("length").sum()), int(column("observed").sum())

    def share(mask: pl.Series | int) -> str:
        number = mask if isinstance(mask, int) else int(mask.sum())
        return f"{number:,} ({part_of(number, n)})"

    def middle(name: str) -> str:
        values = column(name).drop_nulls()
        if values.is_empty():
            return "not known for any series"
        low, half, high = (values.quantile(level, "linear") for level in (0.25, 0.5, 0.75))
        fewest = "" if values.len() == n else f"; known for {share(values.len())}"
        return f"median {half:.2f}, half of the series {low:.2f} to {high:.2f}{fewest}"

    rows = {"Series": f"{n:,}"}
    if n:
        low, high = pl.all().min().name.prefix("min_"), pl.all().max().name.prefix("max_")
        ends = profile.select("first", "last", "length", "longest_gap").select(low, high)
        edge = ends.with_columns(cs.datetime().dt.to_string(_TIME)).row(0, named=True)
        half = column("length").quantile(0.5, "lower")
        rows |= {
            "Time": f"{_short(edge['min_first'])} to {_short(edge['max_last'])}",
            "Steps": f"{steps:,}, {part_of(observed, steps)} observed",
            "Length": f"{edge['min_length']:,} to {edge['max_length']:,}, median {half:,.0f}",
            "With gaps": f"{share(column('gaps') > 0)}, longest gap {edge['max_longest_gap']:,}",
            "Constant": share(column("constant")),
        }
    if n and CLASS in profile.columns:
        fewest, most = profile.select(pl.col("classes").min().alias("few"), pl.col("classes").max().alias("many")).row(
            0
        )
        rows["Classes"] = f"{fewest:,} to {most:,} in a series"
    elif n:
        zeros = float((column("zeros") * column("observed")).sum())
        kinds = dict(column("demand").value_counts().iter_rows())
        demand = [f"{kind} {share(kinds[kind])}" for kind in DEMAND if kind in kinds]
        rows |= {
            "Zeros": f"{part_of(zeros, observed)} of the values, in {share(column('zeros') > 0)} of the series",
            "Negatives": f"in {share(column('negatives') > 0)} of the series",
            "Outliers": f"{int(column('outliers').sum()):,} values, in {share(column('outliers') > 0)} of the series",
            "Demand": ", ".join(demand) or "none: no series is without negative values and not all zeros",
            "Seasonality": middle("seasonality"),
            "Trend": middle("trend"),
        }
    schema = {"measure": pl.String, "found": pl.String}
    return pl.DataFrame({"measure": list(rows), "found": list(rows.values())}, schema=schema)


def part_of(part: float, total: float) -> str:
    """Return a share as text; 0 % and 100 % stand for exact values only.

    >>> [part_of(part, 10_000) for part in (0, 1, 1234, 9_999, 10_000)]
    ['0 %', '<0.1 %', '12.3 %', '>99.9 %', '100 %']
    """
    if part in (0, total):
        return "100 %" if part else "0 %"
    share = 100 * part / total
    return "<0.1 %" if share < 0.1 else ">99.9 %" if share > 99.9 else f"{share:.1f} %"


def _short(time: str) -> str:
    return time.removesuffix(" 00:00:00")
