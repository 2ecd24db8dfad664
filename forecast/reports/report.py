"""One HTML page per result that works offline: tables, a browser of the series, and charts, in a single file.

Series travel as compressed chunks, unpacked by the page when one of them is looked at, so the page opens as fast with
10,000 series as with ten. No text from data reaches the markup unescaped, and the page can't load anything.
"""

import html
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from forecast import names
from forecast.data.files import write_text_atomic
from forecast.names import LOG_LOSS, MODEL
from forecast.reports.figures import (
    CALIBRATION_STYLES,
    LOSS_STYLES,
    Band,
    ModelStyle,
    bands,
    class_styles,
    clock_label,
    model_styles,
    uplift,
    with_model,
)
from forecast.reports.page import ABSENT, bar, card, milliseconds, page, percent, rounded, runs, table

_CHUNK: Final = 100
"""Series in one compressed chunk: small enough to unpack in milliseconds, large enough to compress well."""
_MINUS: Final = "\u2212"
_METRICS: Final = {
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
}
"""Labels of the metrics that are better when smaller."""
_LARGER: Final = {"accuracy": "Accuracy", "macro_f1": "Macro F1"}
"""Of those that are better when larger."""
_COUNTS: Final = {
    "n_series": "Series",
    "n_windows": "Windows",
    "n_steps": "Steps",
    "n_undefined": "Without MASE",
    "me": "Error of the mean",
}


def write_report(
    path: Path,
    *,
    title: str,
    subtitle: str,
    facts: Mapping[str, str],
    history: pl.DataFrame,
    forecasts: pl.DataFrame,
    summary: pl.DataFrame | Sequence[Mapping[str, object]] = (),
    stages: Sequence[tuple[str, float]] = (),
    scores: pl.DataFrame | None = None,
    decisions: pl.DataFrame | None = None,
    rejects: pl.DataFrame | None = None,
    error_by_step: pl.DataFrame | None = None,
    calibration: pl.DataFrame | None = None,
    confusion: pl.DataFrame | None = None,
    wins: pl.DataFrame | None = None,
    segments: pl.DataFrame | None = None,
    calibrated: pl.DataFrame | None = None,
    coverage: pl.DataFrame | None = None,
    loss: pl.DataFrame | None = None,
    lineage: pl.DataFrame | None = None,
    settings: Mapping[str, Mapping[str, str]] | None = None,
) -> None:
    """Write the report to `path`, all of it or nothing.

    `summary` has a row per model, with a column `model`. `history` has series_id, timestamp, target (null: a gap), and
    the actuals of the horizon where they are known; only what is near a forecast is kept. `forecasts` are as written by
    scoring, of one or more cutoffs; a column `model` tells variants apart, otherwise the source does. `scores` has
    series_id, model and mase, to rank the series by. `error_by_step` and `calibration` are as in
    `forecast.reports.figures`, `confusion` and `wins` are as in `forecast.metrics`, `segments` has segment, value and
    the columns of the summary, `stages` are names and seconds. `calibrated` and `coverage` are the quantiles and the
    coverage of a `CalibrationResult`; `loss` has model (those of `LOSS_STYLES`), step and loss; `lineage` has a row per
    version, and is shown as it is; `settings` are those of each job, by its name. Of classes, targets and forecasts are
    the names, and scores have log_loss and n_steps in place of mase. Times are shown as local time of their time zone.
    What there is nothing of has no section.

    Raises OutputError if the file can't be written.
    """
    forecasts = with_model(forecasts)
    extra = [frame[MODEL] for frame in (error_by_step, calibration) if frame is not None]
    models = model_styles(name for column in (forecasts[MODEL], *extra) for name in column.unique())
    intervals = bands(forecasts.columns)
    classes = class_styles(forecasts.columns) if names.CLASS in forecasts.columns else []
    series_ids = _natural_order(set(history[names.SERIES_ID].unique()) | set(forecasts[names.SERIES_ID].unique()))
    meta = {
        "models": [{"label": style.label, "colour": style.colour} for style in models],
        "bands": [band.coverage for band in intervals],
        "classes": [{"label": style.label, "colour": style.colour} for style in classes],
        "clock": clock_label(forecasts),
        "chunk": _CHUNK,
        "ids": series_ids,
        "steps": _lines(error_by_step, models, names.STEP, "error_rate" if classes else "mae"),
        "calibration": _lines(calibration, models, "level", "coverage", factor=100),
        "calibrated": _lines(calibrated, CALIBRATION_STYLES, "level", "coverage", factor=100),
        "loss": _lines(loss, LOSS_STYLES, names.STEP, "loss"),
        **_scores(scores, series_ids),
        **_decisions(decisions, series_ids),
    }
    chunks = _series(series_ids, history, forecasts, models, intervals, classes)
    made = page(
        "report",
        title=title,
        subtitle=subtitle,
        facts=facts,
        data=itertools.chain([("page", meta)], ((f"chunk-{number}", chunk) for number, chunk in enumerate(chunks))),
        summary=_summary(summary),
        wins=_wins(wins),
        segments=_segments(segments),
        confusion=_confusion(confusion, classes),
        coverage=_coverage(coverage),
        lineage=_lineage(lineage),
        rejects=_rejects(rejects),
        stages=_stages(stages),
        settings=_settings(settings or {}),
    )
    write_text_atomic(made, path)


def _natural_order(ids: set[str]) -> list[str]:
    """Sort so that D2 comes before D10."""
    return sorted(
        ids,
        key=lambda name: (
            [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)],
            name,
        ),
    )


# ---- Series ----


def _series(
    series_ids: Sequence[str],
    history: pl.DataFrame,
    forecasts: pl.DataFrame,
    models: Sequence[ModelStyle],
    intervals: Sequence[Band],
    classes: Sequence[ModelStyle],
) -> Iterator[list[dict[str, object]]]:
    """Yield the series in chunks: t, y history; f forecasts, each of m model, c cutoff, t, q median, b intervals.

    Of classes y and q are codes, q that of the most probable one, and p the probabilities of each class.
    """
    rank = pl.DataFrame({names.SERIES_ID: series_ids}, schema={names.SERIES_ID: pl.String}).with_row_index("series")
    median = names.CLASS if classes else names.quantile_column(0.5)
    shares = [names.class_column(style.name) for style in classes]
    quantiles = [median, *shares, *(column for band in intervals for column in (band.low, band.high))]
    if median not in forecasts.columns:  # There are no forecasts.
        forecasts = forecasts.with_columns(pl.lit(None, pl.Float64).alias(median))
    if classes:
        codes = {style.name: code for code, style in enumerate(classes)}
        history = history.with_columns(pl.col(names.TARGET).replace_strict(codes, return_dtype=pl.Int32))
        forecasts = forecasts.with_columns(pl.col(names.CLASS).replace_strict(codes, return_dtype=pl.Int32))
    order = pl.DataFrame({MODEL: [style.name for style in models]}, schema={MODEL: pl.String}).with_row_index("number")
    drawn = (
        forecasts.join(rank, on=names.SERIES_ID)
        .join(order, on=MODEL)
        .select("series", "number", *map(milliseconds, (names.CUTOFF, names.TIMESTAMP)), *map(rounded, quantiles))
        .sort("series", "number", names.CUTOFF, names.TIMESTAMP)
    )
    past = (
        history.join(rank, on=names.SERIES_ID)
        .select("series", milliseconds(names.TIMESTAMP), rounded(names.TARGET))
        .sort("series", names.TIMESTAMP)
    )
    past = _near(past, drawn, context=context(forecasts)).group_by("series", maintain_order=True).agg(pl.all())
    drawn = drawn.group_by("series", "number", names.CUTOFF, maintain_order=True).agg(pl.all())
    for first in range(0, len(series_ids), _CHUNK):
        chunk = [{"t": [], "y": [], "f": []} for _ in series_ids[first : first + _CHUNK]]  # type: list[dict[str, Any]]
        inside = pl.col("series").is_between(first, first + _CHUNK - 1)
        for index, times, values in past.filter(inside).iter_rows():
            chunk[index - first] |= {"t": runs(times), "y": values}
        for row in drawn.filter(inside).iter_rows(named=True):
            found = {"m": row["number"], "c": row[names.CUTOFF], "t": runs(row[names.TIMESTAMP]), "q": row[median]}
            found["b"] = [[row[band.low], row[band.high]] for band in intervals]
            found["p"] = [row[share] for share in shares]
            chunk[row["series"] - first]["f"].append(found)
        yield chunk


def context(forecasts: pl.DataFrame) -> int:
    """Return how many steps of history to keep before the first cutoff: a few horizons, a week of hours at least."""
    return max(168, 4 * (0 if forecasts.is_empty() else forecasts[names.STEP].n_unique()))


def _near(past: pl.DataFrame, drawn: pl.DataFrame, *, context: int) -> pl.DataFrame:
    """Return the history from `context` rows before a series' first cutoff to its last forecast step."""
    span = drawn.group_by("series").agg(
        pl.col(names.CUTOFF).min().alias("first"), pl.col(names.TIMESTAMP).max().alias("last")
    )
    past = past.join(span, on="series", how="left", maintain_order="left")
    past = past.filter((pl.col(names.TIMESTAMP) <= pl.col("last")).fill_null(value=True))
    before = (pl.col(names.TIMESTAMP) <= pl.col("first")).fill_null(value=True).sum().over("series")
    row = pl.int_range(pl.len()).over("series")
    return past.filter(row >= before.cast(pl.Int64) - context).drop("first", "last")


# ---- Data of the other charts ----


def _lines(
    frame: pl.DataFrame | None, styles: Sequence[ModelStyle], x: str, y: str, factor: float = 1
) -> list[dict[str, object]] | None:
    """Return a line for each style that there is something of."""
    if frame is None or frame.is_empty():
        return None
    frame = frame.with_columns(pl.col(x, y) * factor).select(MODEL, rounded(x), rounded(y)).sort(x)
    parts = ((style, frame.filter(pl.col(MODEL) == style.name)) for style in styles)
    return [
        {"label": style.label, "colour": style.colour, "x": part[x].to_list(), "y": part[y].to_list()}
        for style, part in parts
        if part.height
    ]


def _scores(scores: pl.DataFrame | None, series_ids: Sequence[str]) -> dict[str, object]:
    """Return the mean score of each series by the best of its models, and that model's name, if it is one for all."""
    if scores is None or scores.is_empty():
        return {}
    styles = model_styles(scores[MODEL].unique())
    rank = pl.col(MODEL).replace_strict({style.name: at for at, style in enumerate(styles)}, return_dtype=pl.Int32)
    best = scores.filter(rank == rank.max().over(names.SERIES_ID))
    scored = styles[-1].label if best[MODEL].n_unique() == 1 else "the model that forecasts it"
    metric, each = "mase", pl.col("mase").fill_nan(None) if "mase" in scores.columns else None
    if each is None:
        metric, each = LOG_LOSS, pl.col(LOG_LOSS) / pl.col("n_steps")
    mean = best.group_by(names.SERIES_ID).agg(each.mean().alias("score"))
    values = dict(mean.select(names.SERIES_ID, rounded("score")).iter_rows())
    return {"score": [values.get(name) for name in series_ids], "scored": scored, "metric": _METRICS[metric]}


def _decisions(decisions: pl.DataFrame | None, series_ids: Sequence[str]) -> dict[str, object]:
    """Return the table of decisions, and the uplift and a verdict in words for each series of the browser."""
    if decisions is None or decisions.is_empty():
        return {}
    decisions = decisions.with_columns(uplift(decisions).alias("uplift"))
    floats = [name for name, kind in decisions.schema.items() if kind.is_numeric()]
    shown = decisions.with_columns(map(rounded, floats)).with_columns(pl.col(pl.Boolean).cast(pl.String))
    rows = {row[names.SERIES_ID]: row for row in shown.iter_rows(named=True)}
    found = [rows.get(name) for name in series_ids]
    tuned = [row is not None and (row["blend"] or 0) > 0 for row in found]
    verdicts = [
        ""
        if row is None
        else f"Fine-tuned, gain at the gate {percent(row['gain'] or 0)}{_later(row['uplift'])}"
        if on
        else f"Base kept: {row[names.REASON]}"
        for row, on in zip(found, tuned, strict=True)
    ]
    return {
        "decisions": {"columns": shown.columns, "rows": shown.rows()},
        "gain": [None if row is None else row["gain"] for row in found],
        "uplift": [row["uplift"] if row is not None and on else None for row, on in zip(found, tuned, strict=True)],
        "tuned": tuned,
        "verdicts": verdicts,
        "colours": [style.colour for style in model_styles([names.SOURCE_PRETRAINED, names.SOURCE_FINE_TUNED])],
    }


def _later(share: float | None) -> str:
    return "" if share is None else f", uplift later {percent(share)}"


# ---- Markup ----


def _summary(summary: pl.DataFrame | Sequence[Mapping[str, object]]) -> str:
    rows = list(summary.iter_rows(named=True)) if isinstance(summary, pl.DataFrame) else [dict(row) for row in summary]
    if not rows:
        return ""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    styles = {style.name: style for style in model_styles(str(row.get(MODEL)) for row in rows)}
    base = next((row for row in rows if row.get(MODEL) == names.SOURCE_SEASONAL_NAIVE), None)
    numeric = {name for name in columns if any(_is_number(row.get(name)) for row in rows)}
    numbers = {name: [float(str(row[name])) for row in rows if _is_number(row.get(name))] for name in numeric}
    best = {name: min(numbers[name]) for name in columns if name in numeric and name.lower() in _METRICS}
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
    """Return the words for a column.

    >>> [_heading(name) for name in ("mase", "wql_last_week", "coverage80", "series_id", "Total time")]
    ['MASE', 'WQL last week', 'Coverage of 80 %', 'Series id', 'Total time']
    """
    coverage = re.fullmatch(r"coverage_?(\d+\.?\d*)", name.lower())
    if coverage:
        return f"Coverage of {coverage[1]} %"
    words = name.replace("_", " ")
    metric, _, rest = words.partition(" ")
    if rest and metric.lower() in _METRICS:
        return f"{_METRICS[metric.lower()]} {rest}"
    return (_METRICS | _LARGER | _COUNTS).get(name.lower(), words[:1].upper() + words[1:])


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
    """Return by how much something has changed.

    >>> _signed(1.25)
    '+25 %'
    """
    return f"{ratio - 1:+.0%}".replace("-", _MINUS).replace("%", " %")


def _confusion(counts: pl.DataFrame | None, classes: Sequence[ModelStyle]) -> str:
    if counts is None:
        return ""
    said = [style.name for style in classes]
    cells = {(row[MODEL], row[names.TARGET], row[names.CLASS]): row["n"] for row in counts.iter_rows(named=True)}
    rows = []
    for model in model_styles(counts[MODEL].unique()):
        for came in said:
            found = [cells.get((model.name, came, name), 0) for name in said]
            share = found[said.index(came)] / max(1, sum(found))
            rows.append([model.label, came, *(f"{count:,}" for count in found), bar(share)])
    heads = {"Model": "", "Class that came": "wide", **dict.fromkeys(said, "number"), "Share found": "bar"}
    caption = (
        "How often each class was the most probable one. The bar is the share of those that came that were forecast."
    )
    return card("confusion", "Which class was forecast when", table(heads, rows), caption)


def _wins(wins: pl.DataFrame | None) -> str:
    if wins is None or wins.is_empty():
        return ""
    metrics = [name for name in wins.columns if name in _METRICS or name == "pinball"]
    labels = {name: _METRICS.get(name, "Pinball loss") for name in metrics}
    styles = {style.name: style.label for style in model_styles([*wins[MODEL], *wins["baseline"]])}
    rows = []
    for row in wins.iter_rows(named=True):
        shares = [ABSENT if row[name] is None else percent(row[name]) for name in metrics]
        rows.append([styles[row[MODEL]], styles[row["baseline"]], *shares, f"{row['n_series']:,}"])
    heads = {"Model": "", "Baseline": "wide", **dict.fromkeys((f"By {text}" for text in labels.values()), "number")}
    caption = "The share of series on which a model is better than a baseline, over the windows that both have."
    return card("wins", "Where the models are better", table({**heads, "Series": "number"}, rows), caption)


def _segments(segments: pl.DataFrame | None) -> str:
    if segments is None or segments.is_empty():
        return ""
    shown = [name for name in segments.columns if name in (_METRICS | _LARGER) or name in ("coverage", "n_series")]
    labels = {style.name: style.label for style in model_styles(segments[MODEL].unique())}
    rows = [
        [row["segment"], row["value"], labels[row[MODEL]], *(_number(name, row[name]) for name in shown)]
        for row in segments.iter_rows(named=True)
    ]
    heads = {"Segment": "", "Series that are": "wide", "Model": "", **{_heading(name): "number" for name in shown}}
    return card("segments", "By segment", table(heads, rows))


def _rejects(rejects: pl.DataFrame | None) -> str:
    if rejects is None:
        return ""
    if rejects.is_empty():
        return card("rejects", "Rejected rows and series", "<p>None: every row was used.</p>")
    first = pl.col(names.SERIES_ID).drop_nulls().first()
    found = rejects.group_by(names.REASON).agg(
        pl.len().alias("rows"), pl.col(names.SERIES_ID).n_unique().alias("series"), first.alias("first")
    )
    found = found.sort("rows", names.REASON, descending=[True, False])
    rows = [
        (str(reason), f"{rows:,}", f"{series:,}", example or ABSENT, bar(rows / found["rows"][0]))
        for reason, rows, series, example in found.iter_rows()
    ]
    heads = {"Reason": "wide", "Rejects": "number", "Series": "number", "For example": "", "": "bar"}
    return card("rejects", "Rejected rows and series", table(heads, rows))


def _stages(stages: Sequence[tuple[str, float]]) -> str:
    if not stages:
        return ""
    most = max(1e-9, *(seconds for _, seconds in stages))
    rows = [(name, f"{seconds:,.2f}", bar(seconds / most)) for name, seconds in stages]
    rows.append(("Total", f"{sum(seconds for _, seconds in stages):,.2f}", ""))
    return card("stages", "Time by stage", table({"Stage": "", "Seconds": "number", "": "bar"}, rows, total=True))


def _coverage(coverage: pl.DataFrame | None) -> str:
    """Return how often each interval held what came, and how wide it was, before and after a calibration."""
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


def _lineage(lineage: pl.DataFrame | None) -> str:
    if lineage is None or lineage.is_empty():
        return ""
    heads = {_heading(name): "tree" for name in lineage.columns}
    caption = "Each version below the one that it was made from, with what was changed, and how it was judged."
    return card("lineage", "Versions", table(heads, lineage.iter_rows()), caption)


def _settings(settings: Mapping[str, Mapping[str, str]]) -> str:
    if not settings:
        return ""
    heads = {"Setting": "", "Value": "wide"}
    body = "".join(
        f"<details><summary>{html.escape(name)}</summary>{table(heads, each.items())}</details>"
        for name, each in settings.items()
    )
    return card("settings", "Settings and data", body)
