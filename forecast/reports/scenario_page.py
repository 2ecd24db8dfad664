"""The HTML page of a scenario: its difference from the plain forecasts, in total and of the largest series."""

from collections.abc import Mapping
from typing import Any, Final

import polars as pl

from forecast.names import CUTOFF, SERIES_ID, STEP, TIMESTAMP
from forecast.reports.page import ABSENT, card, milliseconds, page, percent, rounded, table
from forecast.reports.styles import clock_label
from forecast.scoring.differences import DIFFERENCE, MEAN_BASE, MEAN_SCENARIO, Difference

_N_CHARTS: Final = 6
_COLUMNS: Final = (MEAN_BASE, MEAN_SCENARIO, DIFFERENCE)


def scenario_page(name: str, difference: Difference, content: Mapping[str, Any]) -> str:
    """Return the page of a scenario at one cutoff, as one file that works offline; `content` is its manifest."""
    rows = difference.rows()
    times = rows.select(pl.col(STEP), milliseconds(TIMESTAMP)).unique(STEP).sort(STEP)
    total = difference.by_step.join(times, on=STEP, how="left").sort(STEP)
    order = difference.largest[SERIES_ID].to_list()
    by_series = rows.with_columns(milliseconds(TIMESTAMP)).partition_by(SERIES_ID, as_dict=True)
    charts = [_chart(series, by_series[series,]) for series in order[:_N_CHARTS]]
    share = f"{percent((difference.scenario - difference.base) / abs(difference.base))}" if difference.base else ABSENT
    tables = content.get("tables", {})
    return page(
        "scenario",
        title=f"Scenario {name}",
        subtitle=f"{content['model']} v{content['model_version']}, forecasts from {content[CUTOFF]}",
        facts={
            "Planned": f"{difference.base:,.6g}",
            "Scenario": f"{difference.scenario:,.6g}",
            "Difference": f"{difference.scenario - difference.base:+,.6g} ({share})",
            "Series that differ": f"{difference.n_changed:,} of {difference.n_series:,}",
            **({"Known covariates": tables["data.known_path"]} if "data.known_path" in tables else {}),
        },
        data=[("page", {"clock": clock_label(rows), "total": _chart("", total), "charts": charts})],
        largest=card(
            "largest",
            "Largest differences",
            table(
                {
                    "Series": "wide",
                    "Planned": "number",
                    "Scenario": "number",
                    "Difference": "number",
                    "Share": "number",
                },
                [_line(row) for row in difference.largest.iter_rows(named=True)],
            ),
            "Sums of the means over all steps of the horizon.",
        ),
    )


def _chart(name: str, rows: pl.DataFrame) -> dict[str, Any]:
    values = rows.select(TIMESTAMP, *map(rounded, _COLUMNS))
    base, scenario, difference = (values[column].to_list() for column in _COLUMNS)
    return {
        "name": name,
        "t": values[TIMESTAMP].to_list(),
        "base": base,
        "scenario": scenario,
        "difference": difference,
    }


def _line(row: Mapping[str, Any]) -> tuple[str, ...]:
    base, scenario, difference = (row[name] for name in _COLUMNS)
    share = f"{100 * difference / abs(base):+.1f} %" if base else ABSENT
    return row[SERIES_ID], f"{base:,.6g}", f"{scenario:,.6g}", f"{difference:+,.6g}", share
