"""The HTML page of a comparison: how forecasts changed, which part is due to what, and the series that moved most."""

from collections.abc import Mapping
from typing import Any, Final

import polars as pl

from forecast.comparison.decompose import AFTER, BEFORE, CAUSES, CHANGE, OTHER, PARTS, by_series, shares
from forecast.names import SERIES_ID, TIMESTAMP
from forecast.reports.page import ABSENT, card, milliseconds, page, percent, rounded, table
from forecast.reports.styles import clock_label

LABELS: Final = dict(zip(CAUSES, ("New data", "Another version", "Known covariates"), strict=True)) | {
    OTHER: "Revised history or other"
}
_N_ROWS: Final = 100
_N_CHARTS: Final = 6


def compare_page(rows: pl.DataFrame, title: str, subtitle: str, facts: Mapping[str, str]) -> str:
    """Return the page, as one file that works offline; `rows` are as from `decompose`."""
    series = by_series(rows)
    total = rows.group_by(TIMESTAMP).agg(pl.col(BEFORE, AFTER, CHANGE, *PARTS).sum()).sort(TIMESTAMP)
    by_id = rows.filter(pl.col(SERIES_ID).is_in(series[SERIES_ID].head(_N_CHARTS).implode())).partition_by(
        SERIES_ID, as_dict=True
    )
    charts = [_chart(name, by_id[name,]) for name in series[SERIES_ID].head(_N_CHARTS)]
    portion = shares(rows)
    causes = [(LABELS[name], f"{rows[name].sum():+,.6g}", percent(portion[name])) for name in PARTS]
    heads = {"Series": "wide", "Before": "number", "After": "number", "Change": "number", "Share": "number"}
    heads |= {LABELS[name]: "number" for name in PARTS}
    before, change = float(rows[BEFORE].sum()), float(rows[CHANGE].sum())
    return page(
        "compare",
        title=title,
        subtitle=subtitle,
        facts={
            **facts,
            "Total before": f"{before:,.6g}",
            "Total after": f"{rows[AFTER].sum():,.6g}",
            "Change": f"{change:+,.6g}" + (f" ({100 * change / abs(before):+.1f} %)" if before else ""),
        },
        data=[
            (
                "page",
                {
                    "clock": clock_label(rows),
                    "labels": [LABELS[name] for name in PARTS],
                    "total": _chart("", total),
                    "charts": charts,
                },
            )
        ],
        causes=card(
            "causes",
            "Causes",
            table(
                {"Cause": "wide", "Change of the total": "number", "Share of the movement": "number"},
                [*causes, ("All", f"{change:+,.6g}", "")],
                total=True,
            ),
            "The parts of each forecast add up to its change. The share of the movement compares the sums of their "
            "absolute values, in which rises and falls do not cancel.",
        ),
        series=card(
            "series",
            "Series that moved most",
            table(heads, [_line(row) for row in series.head(_N_ROWS).iter_rows(named=True)]),
            f"Sums over the common timestamps; {min(_N_ROWS, series.height):,} of {series.height:,} series.",
        ),
    )


def _chart(name: str, rows: pl.DataFrame) -> dict[str, Any]:
    columns = (BEFORE, AFTER, *PARTS)
    values = rows.sort(TIMESTAMP).select(milliseconds(TIMESTAMP), *map(rounded, columns))
    before, after, *parts = (values[column].to_list() for column in columns)
    return {"name": name, "t": values[TIMESTAMP].to_list(), "before": before, "after": after, "parts": parts}


def _line(row: Mapping[str, Any]) -> tuple[str, ...]:
    before, change = row[BEFORE], row[CHANGE]
    share = f"{100 * change / abs(before):+.1f} %" if before else ABSENT
    parts = (f"{row[name]:+,.5g}" for name in PARTS)
    return row[SERIES_ID], f"{before:,.6g}", f"{row[AFTER]:,.6g}", f"{change:+,.6g}", share, *parts
