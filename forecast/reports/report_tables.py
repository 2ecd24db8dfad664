"""Tables of a report, as markup."""

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import polars as pl

from forecast import names
from forecast.names import MODEL
from forecast.reports.page import ABSENT, bar, card, percent, table
from forecast.reports.styles import ModelStyle, model_styles

_MINUS: Final = "\u2212"
METRICS: Final = {
    "mase": "MASE",
    "wql": "WQL",
    "crps": "CRPS",
    "smape": "sMAPE",
    "wape": "WAPE",
    "rmsse": "RMSSE",
    "mae": "MAE",
    "log_loss": "Log-loss",
    "brier": "Brier score",
    "rmse": "RMSE",
    "w_mase": "Weighted MASE",
    "w_wql": "Weighted WQL",
    "w_crps": "Weighted CRPS",
    "w_wape": "Weighted WAPE",
    "w_rmsse": "Weighted RMSSE",
    "w_log_loss": "Weighted log-loss",
    "w_brier": "Weighted Brier score",
}
_LARGER: Final = {"accuracy": "Accuracy", "macro_f1": "Macro F1"}
_COUNTS: Final = {
    "n_series": "Series",
    "n_windows": "Windows",
    "n_steps": "Steps",
    "n_undefined": "Without MASE",
    "me": "Error of the mean",
}


# ---- Markup ----


def lead_card(sentences: Sequence[str]) -> str:
    """Return the sentences that open a page, each in a paragraph; nothing without any."""
    if not sentences:
        return ""
    return card("lead", "Results", "".join(f'<p class="lead">{html.escape(sentence)}</p>' for sentence in sentences))


def summary_table(summary: pl.DataFrame | Sequence[Mapping[str, object]]) -> str:
    """Return the table of the metrics of each model."""
    rows = list(summary.iter_rows(named=True)) if isinstance(summary, pl.DataFrame) else [dict(row) for row in summary]
    if not rows:
        return ""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    styles = {style.name: style for style in model_styles(str(row.get(MODEL)) for row in rows)}
    base = next((row for row in rows if row.get(MODEL) == names.SOURCE_SEASONAL_NAIVE), None)
    numeric = {name for name in columns if any(_is_number(row.get(name)) for row in rows)}
    numbers = {name: [float(str(row[name])) for row in rows if _is_number(row.get(name))] for name in numeric}
    best = {name: min(numbers[name]) for name in columns if name in numeric and name.lower() in METRICS}
    best |= {name: max(numbers[name]) for name in columns if name in numeric and name.lower() in _LARGER}
    head = "".join(f'<th scope="col"{_right(name in numeric)}>{html.escape(_heading(name))}</th>' for name in columns)
    lines = []
    for row in rows:
        cells = []
        for name in columns:
            value = row.get(name)
            if name == MODEL:
                style = styles[str(value)]
                cells.append(
                    f'<td><span class="swatch" style="background:{style.colour}"></span>{html.escape(style.label)}</td>'
                )
                continue
            text = html.escape(_number(name, value))
            if name in best and base is not None and row is not base:
                text += _change(value, base.get(name))
            kinds = " ".join(
                ["number"] * (name in numeric) + ["best"] * (_is_number(value) and value == best.get(name))
            )
            cells.append(f'<td class="{kinds}">{text}</td>')
        lines.append(f"<tr>{''.join(cells)}</tr>")
    caption = "Smaller is better, except for coverage, which should be near its level"
    caption += ", and accuracy and F1." if _LARGER.keys() & best.keys() else "."
    caption += " The best value is bold."
    if base is not None:
        caption += " The small number is the change against the seasonal naive forecast."
    markup = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return card("summary", "Accuracy", markup, caption if best else "")


def _right(yes: bool) -> str:
    return ' class="number"' if yes else ""


def _heading(name: str) -> str:
    """Return the heading of a column.

    >>> [_heading(name) for name in ("mase", "wql_last_week", "coverage80", "series_id", "Total time")]
    ['MASE', 'WQL last week', 'Coverage of 80 %', 'Series id', 'Total time']
    """
    coverage = re.fullmatch(r"coverage_?(\d+\.?\d*)", name.lower())
    if coverage:
        return f"Coverage of {coverage[1]} %"
    words = name.replace("_", " ")
    metric, _, suffix = words.partition(" ")
    if suffix and metric.lower() in METRICS:
        return f"{METRICS[metric.lower()]} {suffix}"
    return (METRICS | _LARGER | _COUNTS).get(name.lower(), words[:1].upper() + words[1:])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))


def _number(name: str, value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not np.isfinite(value):
            return ABSENT
        if name.lower().startswith("coverage"):
            return percent(value)
        return f"{value:,}" if isinstance(value, int) else f"{value:#.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return ABSENT if value is None else str(value)


def _change(value: Any, base: Any) -> str:
    if not (_is_number(value) and _is_number(base) and base > 0):
        return ""
    return f"<small>{_signed(value / base)}</small>"


def _signed(ratio: float) -> str:
    """Return the relative change of a ratio as signed per cent.

    >>> _signed(1.25)
    '+25 %'
    """
    return f"{ratio - 1:+.0%}".replace("-", _MINUS).replace("%", " %")


def confusion_table(counts: pl.DataFrame | None, classes: Sequence[ModelStyle]) -> str:
    """Return the table of actual and predicted classes."""
    if counts is None:
        return ""
    predicted = [style.name for style in classes]
    cells = {(row[MODEL], row[names.TARGET], row[names.CLASS]): row["n"] for row in counts.iter_rows(named=True)}
    rows = []
    for model in model_styles(counts[MODEL].unique()):
        for actual in predicted:
            row_counts = [cells.get((model.name, actual, name), 0) for name in predicted]
            share = row_counts[predicted.index(actual)] / max(1, sum(row_counts))
            rows.append([model.label, actual, *(f"{count:,}" for count in row_counts), bar(share)])
    heads = {"Model": "", "Class that came": "wide", **dict.fromkeys(predicted, "number"), "Share found": "bar"}
    caption = (
        "How often each class was the most probable one. The bar is the share of those that came that were forecast."
    )
    return card("confusion", "Which class was forecast when", table(heads, rows), caption)


def wins_table(wins: pl.DataFrame | None) -> str:
    """Return the table of the share of series on which each model beats a baseline."""
    if wins is None or wins.is_empty():
        return ""
    metrics = [name for name in wins.columns if name in METRICS or name == "pinball"]
    labels = {name: METRICS.get(name, "Pinball loss") for name in metrics}
    styles = {style.name: style.label for style in model_styles([*wins[MODEL], *wins["baseline"]])}
    rows = []
    for row in wins.iter_rows(named=True):
        shares = [ABSENT if row[name] is None else percent(row[name]) for name in metrics]
        rows.append([styles[row[MODEL]], styles[row["baseline"]], *shares, f"{row['n_series']:,}"])
    heads = {"Model": "", "Baseline": "wide", **dict.fromkeys((f"By {text}" for text in labels.values()), "number")}
    caption = "The share of series on which a model is better than a baseline, over the windows that both have."
    return card("wins", "Where the models are better", table({**heads, "Series": "number"}, rows), caption)


def segments_table(segments: pl.DataFrame | None) -> str:
    """Return the table of the metrics of each segment."""
    if segments is None or segments.is_empty():
        return ""
    shown = [name for name in segments.columns if name in (METRICS | _LARGER) or name in ("coverage", "n_series")]
    labels = {style.name: style.label for style in model_styles(segments[MODEL].unique())}
    rows = [
        [row["segment"], row["value"], labels[row[MODEL]], *(_number(name, row[name]) for name in shown)]
        for row in segments.iter_rows(named=True)
    ]
    heads = {"Segment": "", "Series that are": "wide", "Model": "", **{_heading(name): "number" for name in shown}}
    return card("segments", "By segment", table(heads, rows))


def rejects_table(rejects: pl.DataFrame | None) -> str:
    """Return the table of rejects by reason."""
    if rejects is None:
        return ""
    if rejects.is_empty():
        return card("rejects", "Rejected rows and series", "<p>None: every row was used.</p>")
    first = pl.col(names.SERIES_ID).drop_nulls().first()
    by_reason = rejects.group_by(names.REASON).agg(
        pl.len().alias("rows"), pl.col(names.SERIES_ID).n_unique().alias("series"), first.alias("first")
    )
    by_reason = by_reason.sort("rows", names.REASON, descending=[True, False])
    rows = [
        (str(reason), f"{rows:,}", f"{series:,}", example or ABSENT, bar(rows / by_reason["rows"][0]))
        for reason, rows, series, example in by_reason.iter_rows()
    ]
    heads = {"Reason": "wide", "Rejects": "number", "Series": "number", "For example": "", "": "bar"}
    return card("rejects", "Rejected rows and series", table(heads, rows))


def stages_table(stages: Sequence[tuple[str, float]]) -> str:
    """Return the table of the duration of each stage."""
    if not stages:
        return ""
    longest = max(1e-9, *(seconds for _, seconds in stages))
    rows = [(name, f"{seconds:,.2f}", bar(seconds / longest)) for name, seconds in stages]
    rows.append(("Total", f"{sum(seconds for _, seconds in stages):,.2f}", ""))
    return card("stages", "Time by stage", table({"Stage": "", "Seconds": "number", "": "bar"}, rows, total=True))


def coverage_table(coverage: pl.DataFrame | None) -> str:
    """Return the table of coverage and width of the intervals, before and after a calibration."""
    if coverage is None or coverage.is_empty():
        return ""
    rows = [
        [
            "All" if row["by"] == "all" else row["by"],
            row["value"],
            *(percent(row[name]) for name in ("level", "coverage_before", "coverage_after")),
            _signed(row["width_after"] / row["width_before"]) if row["width_before"] > 0 else ABSENT,
            f"{row['n']:,}",
        ]
        for row in coverage.filter(pl.col("by") != "step").iter_rows(named=True)
    ]
    heads = {"Segment": "", "Series that are": "wide"}
    shares = ("Interval", "Held before", "Held after", "Width", "Steps")
    return f'<div class="scroll">{table({**heads, **dict.fromkeys(shares, "number")}, rows)}</div>'


def lineage_table(lineage: pl.DataFrame | None) -> str:
    """Return the table of a model's ancestor versions."""
    if lineage is None or lineage.is_empty():
        return ""
    heads = {_heading(name): "tree" for name in lineage.columns}
    caption = "Each version below the one that it was made from, with what was changed, and how it was judged."
    return card("lineage", "Versions", table(heads, lineage.iter_rows()), caption)


def settings_table(settings: Mapping[str, Mapping[str, str]]) -> str:
    """Return the table of the settings of each job."""
    if not settings:
        return ""
    heads = {"Setting": "", "Value": "wide"}
    body = "".join(
        f"<details><summary>{html.escape(name)}</summary>{table(heads, settings_of_job.items())}</details>"
        for name, settings_of_job in settings.items()
    )
    return card("settings", "Settings and data", body)
