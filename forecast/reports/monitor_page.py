"""The HTML page of a day's monitoring: verdicts, accuracy over time, and the series with alarms."""

import html
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import polars as pl

from forecast.metrics.summaries import summarise
from forecast.monitoring.freshness import Age
from forecast.monitoring.labels import AGE, ALL, FORECAST, HISTORY, RECENT, TIME
from forecast.monitoring.result import MonitorResult
from forecast.monitoring.segments import BUILT_IN
from forecast.monitoring.thresholds import Check
from forecast.names import (
    CHAMPION,
    MODEL,
    SERIES_ID,
    SHADOW,
    SOURCE_SEASONAL_NAIVE,
    TIMESTAMP,
)
from forecast.reports.monitor_charts import COLOURS, MODELS, alarm_series, by_age, over_time
from forecast.reports.monitor_sections import anomalies_card, value_added_card
from forecast.reports.page import ABSENT, card, milliseconds, page, percent, table
from forecast.reports.styles import clock_label

_POINTS: Final = {
    "day": "Each point is the steps of a day, by forecasts of all ages.",
    "cutoff": "Each point is the forecasts of a cutoff, as far as they are observed.",
}


def monitor_page(
    result: MonitorResult,
    checks: Sequence[Check],
    *,
    model: str,
    history: pl.DataFrame,
    facts: Mapping[str, Any],
    plotly: str | None = None,
) -> str:
    """Return the page, which works offline.

    `history` has series_id, timestamp and target of the series in `result.shown`. `facts` are the actions of the job:
    comparison, rollback, no_rollback and on_breach, each a text or None. `plotly` is the path of plotly.min.js relative
    to the page; if None, the script is embedded.
    """
    counts, breached = result.counts, sum(check.breached for check in checks)
    left_out = counts["cutoffs_in_sample"]
    content = {
        "clock": clock_label(result.shown),
        "colour": COLOURS[FORECAST],
        "recent": pl.DataFrame({TIMESTAMP: [result.recent.replace(tzinfo=None)]})
        .select(milliseconds(TIMESTAMP))
        .item(),
        "time": over_time(result),
        "ages": list(by_age(result)),
        "alarms": alarm_series(result, history),
    }
    return page(
        "monitor",
        title=f"Forecasts of {model}, as of {result.as_of:%Y-%m-%d %H:%M}",
        subtitle=f"{breached:,} of {len(checks):,} thresholds breached, {len(result.alarmed):,} series with an alarm",
        facts={
            "Cutoffs": ", ".join(f"{count:,} by v{version}" for version, count in result.versions.items()) or "0",
            **({"Left out, in sample": f"{left_out:,} cutoffs"} if left_out else {}),
            "Series": f"{counts['series']:,}",
            "Recent window": f"{result.span.last - result.span.recent + 1:,} steps",
            "History": f"{result.span.recent - result.span.first:,} steps",
            "Latest scores": _moment(result.freshness.scores, result.freshness.scores_age),
            "Latest observations": _moment(result.freshness.observations, result.freshness.observations_age),
            "Steps scored": f"{counts['rows_scored']:,}",
            "Of them recent": f"{counts['rows_recent']:,}",
        },
        data=[("page", content)],
        plotly=plotly,
        verdict=_verdict(checks, result.freshness.findings, facts),
        accuracy=_accuracy(result),
        rows=_rows(result),
        by=_POINTS[result.by],
        shadow=_shadow(result, facts),
        anomalies=anomalies_card(result),
        fva=value_added_card(result),
        drift=_drift(result),
        segments=_segments(result),
        note=_note(result),
    )


# ---- Markup ----


def _moment(moment: datetime, age: Age) -> str:
    """Return a moment as local time, with its age unless that is 0."""
    text = f"{moment:%Y-%m-%d %H:%M}".removesuffix(" 00:00")
    return f"{text}, {age} ago" if age.steps else text


def _verdict(checks: Sequence[Check], findings: Sequence[str], facts: Mapping[str, Any]) -> str:
    rows = [
        (
            check.what[:1].upper() + check.what[1:],
            _number(check.found),
            check.allowed,
            f"monitor.thresholds.{check.key}",
            check.verdict,
            check.judged,
        )
        for check in checks
    ]
    heads = {
        "In the recent window": "wide",
        "Value": "number",
        "Limit": "number",
        "Setting": "",
        "Verdict": "",
        "Judged": "",
    }
    started = facts["on_breach"] and f"Started: forecast {facts['on_breach']}"
    no_rollback = facts["no_rollback"] and f"No rollback: {facts['no_rollback']}"
    texts = [*findings, facts["rollback"], no_rollback, started]
    notes = " ".join(f"{html.escape(text[:1].upper() + text[1:])}." for text in texts if text)
    return card("verdict", "Thresholds", table(heads, rows) if rows else "<p>None is set.</p>", notes)


def _accuracy(result: MonitorResult) -> str:
    rows = []
    for window in (RECENT, HISTORY):
        for model, label in MODELS.items():
            values = result.metrics.filter(group=ALL, window=window, model=model)
            if values.height:
                row = values.row(0, named=True)
                weighted = [_number(row[name]) for name in ("w_mase", "w_wql") if name in row]
                rows.append((f"{label}, {window}", *_metrics(row, result), *weighted))
    heads = {"": "wide", "MASE": "number", "WQL": "number", "Bias": "number", _interval(result): "number"}
    heads |= dict.fromkeys(("Weighted MASE", "Weighted WQL") if "w_mase" in result.metrics.columns else (), "number")
    caption = (
        "Bias is the mean of forecast minus observation, over the mean size. Seasonal naive is of the same cutoffs."
    )
    return card("accuracy", "Accuracy", table(heads, rows) if rows else "<p>Nothing is observed yet.</p>", caption)


def _interval(result: MonitorResult) -> str:
    return f"In {100 * result.bands[0]:g} %"


def _metrics(row: Mapping[str, Any], result: MonitorResult) -> tuple[str, ...]:
    """Return MASE, WQL, bias, and coverage of the widest interval, as texts."""
    numbers = (_number(row["mase"]), _number(row["wql"]), _share(row["bias"]))
    return (*numbers, _share(row[result.coverage]))


def _number(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.4g}"


def _share(value: float | None) -> str:
    return ABSENT if value is None else percent(value)


def _rows(result: MonitorResult) -> str:
    counts = result.counts
    rows = [
        ("Scored", f"{counts['rows_scored']:,}"),
        ("Not yet observed", f"{counts['rows_not_yet_observed']:,}"),
        ("Observation missing", f"{counts['rows_missing']:,}"),
        ("Forecasts", f"{counts['rows']:,}"),
    ]
    unknown = counts["series_unknown"]
    notes = [f"{unknown:,} series are not in the table: their observations are missing."] if unknown else []
    notes += [html.escape(f"{result.left_out}.")] if result.left_out else []
    body = table({"Steps": "wide", "Number": "number"}, rows, total=True)
    return card("rows", "Where the forecasts went", body, " ".join(notes))


def _shadow(result: MonitorResult, facts: Mapping[str, Any]) -> str:
    if result.pairs.is_empty():
        return ""
    summary = summarise(result.pairs).rows_by_key(MODEL, named=True, unique=True)
    rows = [
        (label, *(_number(summary[name][metric]) for metric in ("mase", "wql")), f"{summary[name]['n_windows']:,}")
        for name, label in ((CHAMPION, "These forecasts"), (SHADOW, "The shadow"))
        if name in summary
    ]
    heads = {"": "wide", "MASE": "number", "WQL": "number", "Forecasts": "number"}
    note = f"Of those that both have made: {html.escape(facts['comparison'])}." if facts["comparison"] else ""
    return card("shadow", "Beside the shadow", table(heads, rows), note)


def _drift(result: MonitorResult) -> str:
    rows = [
        (
            row["column"],
            row["role"],
            _number(row["psi"]),
            _number(row["psi_chance"]),
            _number(row["ks"]),
            *(_share(row[name]) for name in ("missing", "missing_before", "unseen")),
            f"{row['values']:,}",
        )
        for row in result.drift.iter_rows(named=True)
    ]
    heads = {
        "Column": "wide",
        "Role": "",
        "PSI": "number",
        "By chance": "number",
        "KS": "number",
        "Missing": "number",
        "In the history": "number",
        "Unseen": "number",
        "Values": "number",
    }
    caption = (
        "The recent window, in whole cycles, against the same part of earlier ones, each series in its own units. A "
        "stability index of 0.1 is a little, of 0.25 a lot, if it is more than what it reaches by chance in one of a "
        "hundred looks; of fewer than 100 values, or without an earlier cycle, there is none."
    )
    return card("drift", "Drift of the inputs", table(heads, rows), caption)


def _segments(result: MonitorResult) -> str:
    metrics = result.metrics.filter(~pl.col("group").is_in([ALL, AGE, TIME]), pl.col("window") == RECENT)
    if metrics.is_empty():
        return ""
    of_forecast = metrics.filter(model=FORECAST)
    naive = {
        (row["group"], row["value"]): row for row in metrics.filter(model=SOURCE_SEASONAL_NAIVE).iter_rows(named=True)
    }
    rows = [
        (
            row["group"],
            row["value"],
            f"{row['n_series']:,}",
            *_metrics(row, result),
            *(_number(naive.get((row["group"], row["value"]), {}).get(name)) for name in ("mase", "wql")),
        )
        for row in of_forecast.iter_rows(named=True)
    ]
    heads = {
        "Segment": "",
        "Value": "wide",
        "Series": "number",
        "MASE": "number",
        "WQL": "number",
        "Bias": "number",
        _interval(result): "number",
        "Naive MASE": "number",
        "Naive WQL": "number",
    }
    built_in = set(of_forecast["group"].unique()) <= {*BUILT_IN}
    caption = "Thirds of the series by length and mean size, and kinds of demand." if built_in else ""
    return card("segments", "By segment, recently", table(heads, rows), caption)


def _note(result: MonitorResult) -> str:
    states = result.alarms.group_by("status").len().sort("status").iter_rows()
    counted = ", ".join(f"{count:,} {status}" for status, count in states)
    n_omitted = len(result.alarmed) - result.shown[SERIES_ID].n_unique()
    omitted = f" The forecasts of {n_omitted:,} more are in scores.parquet alone." if n_omitted else ""
    return f"Series: {counted}.{omitted}"
