"""Sections of the monitoring page on single observations."""

import math
from typing import Final

import polars as pl

from forecast.monitoring.labels import ALL, ANOMALY, FEW
from forecast.monitoring.result import MonitorResult
from forecast.names import SERIES_ID, STEP, TARGET, TIMESTAMP
from forecast.reports.page import ABSENT, card, percent, table

_SHOWN: Final = 25
"""Largest anomalies on the page."""


def anomalies_card(result: MonitorResult) -> str:
    """Return the section of the largest anomalies, empty if none is judged."""
    counts, rate = result.anomaly_counts, result.anomaly_rate
    total = sum(counts.values())
    if rate is None or not total:
        return ""
    anomalies = result.anomalies.filter(verdict=ANOMALY)
    judged = total - counts[FEW]
    form = "%Y-%m-%d" if result.anomalies[TIMESTAMP].dt.time().n_unique() == 1 else "%Y-%m-%d %H:%M"
    rows = [
        (
            row[SERIES_ID],
            f"{row[TIMESTAMP]:{form}}",
            f"{row[TARGET]:.4g}",
            f"{row['median']:.4g}",
            f"{row['size']:+.3g}",
            f"{row['p_value']:.2g}",
            f"{row[STEP]:,}",
        )
        for row in anomalies.head(_SHOWN).iter_rows(named=True)
    ]
    heads = {
        "Series": "wide",
        "Time": "",
        "Observed": "number",
        "Forecast": "number",
        "Size": "number",
        "P-value": "number",
        "Age": "number",
    }
    texts = []
    if judged:
        texts.append(
            f"{anomalies.height:,} of {judged:,} recent observations are anomalies "
            f"({percent(anomalies.height / judged)}); about {round(rate * judged):,} would be by chance "
            f"(monitor.anomaly_rate={rate:g})."
        )
        day, most = _busiest(anomalies)
        if most > 1:
            texts.append(f"The day with most is {day}, with {most:,}.")
    if counts[FEW]:
        texts.append(f"{counts[FEW]:,} are not judged: {few_observations(rate)}.")
    texts.append(
        "Size is in standard deviations of the earlier errors of such forecasts, above 0 if the observation is higher."
    )
    if len(anomalies) > _SHOWN:
        texts.append(f"The {_SHOWN} largest are shown; anomalies.parquet has all.")
    body = table(heads, rows) if rows else "<p>There is none.</p>"
    return card("anomalies", "Anomalies", body, " ".join(texts))


def value_added_card(result: MonitorResult) -> str:
    """Return the section on overrides, empty without any."""
    if result.fva.is_empty():
        return ""
    rows = [
        (
            "All" if row["group"] == ALL else row["group"],
            row["value"] or "",
            f"{row['n_values']:,}",
            f"{row['n_series']:,}",
            *(_number(row[f"mae_{name}"]) for name in ("override", "model", "naive")),
            *(_number(row[f"bias_{name}"]) for name in ("override", "model")),
            *(ABSENT if row[name] is None else percent(row[name]) for name in ("value_added", "better")),
            _number(row["p_value"]),
        )
        for row in result.fva.iter_rows(named=True)
    ]
    numbers = (
        "Values",
        "Series",
        "Override",
        "Model",
        "Naive",
        "Bias",
        "Model's bias",
        "Value added",
        "Better",
        "P-value",
    )
    heads = {"Group": "", "": "wide", **dict.fromkeys(numbers, "number")}
    caption = (
        "Values that people have set in place of forecasts, and what was observed since: the mean absolute error of "
        "the override, of the model and of seasonal naive on the same values, in units of the target. Value added is "
        "by how much overrides are closer than the model; better is the share of values where they are. A small "
        "p-value says that this is more than chance."
    )
    return card("fva", "Forecast value added", table(heads, rows), caption)


def _number(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.4g}"


def _busiest(anomalies: pl.DataFrame) -> tuple[str, int]:
    """Return the local day with most anomalies, the earliest of several, and their number."""
    days = (
        anomalies.group_by(pl.col(TIMESTAMP).dt.date().cast(pl.String))
        .len()
        .sort("len", TIMESTAMP, descending=[True, False])
    )
    return days.row(0) if days.height else ("", 0)


def few_observations(rate: float) -> str:
    """Return what is missing to judge observations.

    >>> few_observations(0.01)
    'they need 199 earlier observations with forecasts; raise monitor.history or monitor.anomaly_rate'
    """
    needed = math.ceil(2 / rate) - 1
    return f"they need {needed:,} earlier observations with forecasts; raise monitor.history or monitor.anomaly_rate"
