"""The HTML page of a day's monitoring: what was judged, how accuracy goes over time, and the series that stand out."""

import html
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import polars as pl

from forecast.metrics.summaries import summarise
from forecast.monitoring.freshness import Age
from forecast.monitoring.labels import AGE, ALL, FORECAST, HISTORY, RECENT, TIME
from forecast.monitoring.result import Monitored
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
from forecast.reports.page import ABSENT, card, milliseconds, page, percent, table
from forecast.reports.styles import clock_label

_POINTS: Final = {
    "day": "Each point is the steps of a day, by forecasts of all ages.",
    "cutoff": "Each point is the forecasts of a cutoff, as far as they are observed.",
}


def monitor_page(
    found: Monitored,
    checks: Sequence[Check],
    *,
    model: str,
    history: pl.DataFrame,
    facts: Mapping[str, Any],
    plotly: str | None = None,
) -> str:
    """Return the page, which works offline.

    `history` has series_id, timestamp and target of the series in `found.shown`. `facts` are what the job has done:
    comparison, rollback, no_rollback and on_breach, each a text or None. `plotly` is where plotly.min.js is, relative
    to the page; when None, the page carries it.
    """
    counts, breached = found.counts, sum(check.breached for check in checks)
    left_out = counts["cutoffs_in_sample"]
    content = {
        "clock": clock_label(found.shown),
        "colour": COLOURS[FORECAST],
        "recent": pl.DataFrame({TIMESTAMP: [found.recent.replace(tzinfo=None)]}).select(milliseconds(TIMESTAMP)).item(),
        "time": over_time(found),
        "ages": list(by_age(found)),
        "alarms": alarm_series(found, history),
    }
    return page(
        "monitor",
        title=f"Forecasts of {model}, as of {found.as_of:%Y-%m-%d %H:%M}",
        subtitle=f"{breached:,} of {len(checks):,} thresholds breached, {len(found.alarmed):,} series with an alarm",
        facts={
            "Cutoffs": ", ".join(f"{count:,} by v{version}" for version, count in found.versions.items()) or "0",
            **({"Left out, in sample": f"{left_out:,} cutoffs"} if left_out else {}),
            "Series": f"{counts['series']:,}",
            "Recent window": f"{found.span.last - found.span.recent + 1:,} steps",
            "History": f"{found.span.recent - found.span.first:,} steps",
            "Latest scores": _moment(found.freshness.scores, found.freshness.scores_age),
            "Latest observations": _moment(found.freshness.observations, found.freshness.observations_age),
            "Steps scored": f"{counts['rows_scored']:,}",
            "Of them recent": f"{counts['rows_recent']:,}",
        },
        data=[("page", content)],
        plotly=plotly,
        verdict=_verdict(checks, found.freshness.findings, facts),
        accuracy=_accuracy(found),
        rows=_rows(found),
        by=_POINTS[found.by],
        shadow=_shadow(found, facts),
        drift=_drift(found),
        segments=_segments(found),
        note=_note(found),
    )


# ---- Markup ----


def _moment(moment: datetime, age: Age) -> str:
    """Return a moment on the clock of the wall, with its age if it has one."""
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
    kept = facts["no_rollback"] and f"No rollback: {facts['no_rollback']}"
    texts = [*findings, facts["rollback"], kept, started]
    told = " ".join(f"{html.escape(text[:1].upper() + text[1:])}." for text in texts if text)
    return card("verdict", "Thresholds", table(heads, rows) if rows else "<p>None is set.</p>", told)


def _accuracy(found: Monitored) -> str:
    rows = []
    for window in (RECENT, HISTORY):
        for model, label in MODELS.items():
            values = found.metrics.filter(group=ALL, window=window, model=model)
            if values.height:
                rows.append((f"{label}, {window}", *_metrics(values.row(0, named=True), found)))
    heads = {"": "wide", "MASE": "number", "WQL": "number", "Bias": "number", _interval(found): "number"}
    caption = (
        "Bias is the mean of forecast minus observation, over the mean size. Seasonal naive is of the same cutoffs."
    )
    return card("accuracy", "Accuracy", table(heads, rows) if rows else "<p>Nothing is observed yet.</p>", caption)


def _interval(found: Monitored) -> str:
    return f"In {100 * found.bands[0]:g} %"


def _metrics(row: Mapping[str, Any], found: Monitored) -> tuple[str, ...]:
    """Return MASE, WQL, bias, and coverage of the widest interval, as texts."""
    numbers = (_number(row["mase"]), _number(row["wql"]), _share(row["bias"]))
    return (*numbers, _share(row[found.coverage]))


def _number(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.4g}"


def _share(value: float | None) -> str:
    return ABSENT if value is None else percent(value)


def _rows(found: Monitored) -> str:
    counts = found.counts
    rows = [
        ("Scored", f"{counts['rows_scored']:,}"),
        ("Not yet observed", f"{counts['rows_not_yet_observed']:,}"),
        ("Observation missing", f"{counts['rows_missing']:,}"),
        ("Forecasts", f"{counts['rows']:,}"),
    ]
    unknown = counts["series_unknown"]
    notes = [f"{unknown:,} series are not in the table: their observations are missing."] if unknown else []
    notes += [html.escape(f"{found.left_out}.")] if found.left_out else []
    body = table({"Steps": "wide", "Number": "number"}, rows, total=True)
    return card("rows", "Where the forecasts went", body, " ".join(notes))


def _shadow(found: Monitored, facts: Mapping[str, Any]) -> str:
    if found.pairs.is_empty():
        return ""
    summary = summarise(found.pairs).rows_by_key(MODEL, named=True, unique=True)
    rows = [
        (label, *(_number(summary[name][metric]) for metric in ("mase", "wql")), f"{summary[name]['n_windows']:,}")
        for name, label in ((CHAMPION, "These forecasts"), (SHADOW, "The shadow"))
        if name in summary
    ]
    heads = {"": "wide", "MASE": "number", "WQL": "number", "Forecasts": "number"}
    note = f"Of those that both have made: {html.escape(facts['comparison'])}." if facts["comparison"] else ""
    return card("shadow", "Beside the shadow", table(heads, rows), note)


def _drift(found: Monitored) -> str:
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
        for row in found.drift.iter_rows(named=True)
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


def _segments(found: Monitored) -> str:
    chosen = found.metrics.filter(~pl.col("group").is_in([ALL, AGE, TIME]), pl.col("window") == RECENT)
    if chosen.is_empty():
        return ""
    own = chosen.filter(model=FORECAST)
    naive = {
        (row["group"], row["value"]): row for row in chosen.filter(model=SOURCE_SEASONAL_NAIVE).iter_rows(named=True)
    }
    rows = [
        (
            row["group"],
            row["value"],
            f"{row['n_series']:,}",
            *_metrics(row, found),
            *(_number(naive.get((row["group"], row["value"]), {}).get(name)) for name in ("mase", "wql")),
        )
        for row in own.iter_rows(named=True)
    ]
    heads = {
        "Segment": "",
        "Value": "wide",
        "Series": "number",
        "MASE": "number",
        "WQL": "number",
        "Bias": "number",
        _interval(found): "number",
        "Naive MASE": "number",
        "Naive WQL": "number",
    }
    built_in = set(own["group"].unique()) <= {*BUILT_IN}
    caption = "Thirds of the series by length and mean size, and kinds of demand." if built_in else ""
    return card("segments", "By segment, recently", table(heads, rows), caption)


def _note(found: Monitored) -> str:
    states = found.alarms.group_by("status").len().sort("status").iter_rows()
    counted = ", ".join(f"{count:,} {status}" for status, count in states)
    left = len(found.alarmed) - found.shown[SERIES_ID].n_unique()
    more = f" The forecasts of {left:,} more are in scores.parquet alone." if left else ""
    return f"Series: {counted}.{more}"
