"""The HTML report of a result: tables, a browser of the series, and charts, in a single file that works offline.

Series are compressed in chunks, which the page unpacks on demand, so 10,000 series open as fast as ten. Every text from
data is escaped, and the page can load nothing.
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import polars as pl

from forecast import names
from forecast.data.files import write_text_atomic
from forecast.names import LOG_LOSS, MODEL
from forecast.reports.diagnostic_figures import uplift
from forecast.reports.page import milliseconds, page, percent, rounded, runs
from forecast.reports.report_tables import (
    METRICS,
    confusion_table,
    coverage_table,
    lead_card,
    lineage_table,
    rejects_table,
    segments_table,
    settings_table,
    stages_table,
    summary_table,
    wins_table,
)
from forecast.reports.styles import (
    CALIBRATION_STYLES,
    LOSS_STYLES,
    Band,
    ModelStyle,
    bands,
    class_styles,
    clock_label,
    model_styles,
    with_model,
)

_CHUNK: Final = 100
"""Series in one compressed chunk: small enough to unpack in milliseconds, large enough to compress well."""


@dataclass(frozen=True, kw_only=True)
class ReportContent:
    """Content of a report; sections without content are omitted.

    For classes, targets and forecasts are class names. Times are shown as local time of their time zone.
    """

    title: str
    subtitle: str
    facts: Mapping[str, str]
    lead: Sequence[str] = ()
    """Sentences that open the page."""
    history: pl.DataFrame
    """series_id, timestamp, target (null: a gap), and the actuals of the horizon where available; only rows near a
    forecast are kept."""
    forecasts: pl.DataFrame
    """As written by scoring, of one or more cutoffs. A column `model` tells variants apart, else the source does."""
    summary: pl.DataFrame | Sequence[Mapping[str, object]] = ()
    """A row per model, with a column `model`."""
    stages: Sequence[tuple[str, float]] = ()
    """Names and seconds."""
    scores: pl.DataFrame | None = None
    """series_id, model and mase, to rank the series by; for classes log_loss and n_steps in place of mase."""
    decisions: pl.DataFrame | None = None
    rejects: pl.DataFrame | None = None
    error_by_step: pl.DataFrame | None = None
    calibration: pl.DataFrame | None = None
    """These two as in `forecast.reports.figures`."""
    confusion: pl.DataFrame | None = None
    wins: pl.DataFrame | None = None
    """These two as in `forecast.metrics`."""
    segments: pl.DataFrame | None = None
    """segment, value and the columns of the summary."""
    calibrated: pl.DataFrame | None = None
    coverage: pl.DataFrame | None = None
    """Quantiles and coverage of a `CalibrationResult`."""
    loss: pl.DataFrame | None = None
    """model (those of `LOSS_STYLES`), step and loss."""
    lineage: pl.DataFrame | None = None
    """A row per version, shown as it is."""
    settings: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Settings of each job, by its name."""


def write_report(path: Path, content: ReportContent) -> None:
    """Write the report to `path` atomically. Raises OutputError if the file can't be written."""
    forecasts = with_model(content.forecasts)
    extra = [frame[MODEL] for frame in (content.error_by_step, content.calibration) if frame is not None]
    models = model_styles(name for column in (forecasts[MODEL], *extra) for name in column.unique())
    intervals = bands(forecasts.columns)
    classes = class_styles(forecasts.columns) if names.CLASS in forecasts.columns else []
    series_ids = _natural_order({*content.history[names.SERIES_ID].unique(), *forecasts[names.SERIES_ID].unique()})
    meta = {
        "models": [{"label": style.label, "colour": style.colour} for style in models],
        "bands": [band.coverage for band in intervals],
        "classes": [{"label": style.label, "colour": style.colour} for style in classes],
        "clock": clock_label(forecasts),
        "chunk": _CHUNK,
        "ids": series_ids,
        "steps": _lines(content.error_by_step, models, names.STEP, "error_rate" if classes else "mae"),
        "calibration": _lines(content.calibration, models, "level", "coverage", factor=100),
        "calibrated": _lines(content.calibrated, CALIBRATION_STYLES, "level", "coverage", factor=100),
        "loss": _lines(content.loss, LOSS_STYLES, names.STEP, "loss"),
        **_scores(content.scores, series_ids),
        **_decisions(content.decisions, series_ids),
    }
    chunks = _series(series_ids, content.history, forecasts, models, intervals, classes)
    markup = page(
        "report",
        title=content.title,
        subtitle=content.subtitle,
        facts=content.facts,
        data=itertools.chain([("page", meta)], ((f"chunk-{number}", chunk) for number, chunk in enumerate(chunks))),
        lead=lead_card(content.lead),
        summary=summary_table(content.summary),
        wins=wins_table(content.wins),
        segments=segments_table(content.segments),
        confusion=confusion_table(content.confusion, classes),
        coverage=coverage_table(content.coverage),
        lineage=lineage_table(content.lineage),
        rejects=rejects_table(content.rejects),
        stages=stages_table(content.stages),
        settings=settings_table(content.settings),
    )
    write_text_atomic(markup, path)


def _natural_order(ids: set[str]) -> list[str]:
    """Sort ids by their numeric parts: D2 before D10."""
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

    For classes, y and q are codes, q that of the most probable class, and p holds the probabilities of each class.
    """
    rank = pl.DataFrame({names.SERIES_ID: series_ids}, schema={names.SERIES_ID: pl.String}).with_row_index("series")
    median = names.CLASS if classes else names.quantile_column(0.5)
    shares = [names.class_column(style.name) for style in classes]
    quantiles = [median, *shares, *(column for band in intervals for column in (band.low, band.high))]
    if median not in forecasts.columns:  # Without forecasts.
        forecasts = forecasts.with_columns(pl.lit(None, pl.Float64).alias(median))
    if classes:
        codes = {style.name: code for code, style in enumerate(classes)}
        history = history.with_columns(pl.col(names.TARGET).replace_strict(codes, return_dtype=pl.Int32))
        forecasts = forecasts.with_columns(pl.col(names.CLASS).replace_strict(codes, return_dtype=pl.Int32))
    order = pl.DataFrame({MODEL: [style.name for style in models]}, schema={MODEL: pl.String}).with_row_index("number")
    with_forecasts = (
        forecasts.join(rank, on=names.SERIES_ID)
        .join(order, on=MODEL)
        .select("series", "number", *map(milliseconds, (names.CUTOFF, names.TIMESTAMP)), *map(rounded, quantiles))
        .sort("series", "number", names.CUTOFF, names.TIMESTAMP)
    )
    observed = (
        history.join(rank, on=names.SERIES_ID)
        .select("series", milliseconds(names.TIMESTAMP), rounded(names.TARGET))
        .sort("series", names.TIMESTAMP)
    )
    observed = (
        _near(observed, with_forecasts, context=context(forecasts))
        .group_by("series", maintain_order=True)
        .agg(pl.all())
    )
    with_forecasts = with_forecasts.group_by("series", "number", names.CUTOFF, maintain_order=True).agg(pl.all())
    for first in range(0, len(series_ids), _CHUNK):
        chunk: list[dict[str, Any]] = [{"t": [], "y": [], "f": []} for _ in series_ids[first : first + _CHUNK]]
        inside = pl.col("series").is_between(first, first + _CHUNK - 1)
        for index, times, values in observed.filter(inside).iter_rows():
            chunk[index - first] |= {"t": runs(times), "y": values}
        for row in with_forecasts.filter(inside).iter_rows(named=True):
            entry = {"m": row["number"], "c": row[names.CUTOFF], "t": runs(row[names.TIMESTAMP]), "q": row[median]}
            entry["b"] = [[row[band.low], row[band.high]] for band in intervals]
            entry["p"] = [row[share] for share in shares]
            chunk[row["series"] - first]["f"].append(entry)
        yield chunk


def context(forecasts: pl.DataFrame) -> int:
    """Return the steps of history to keep before the first cutoff: a few horizons, a week of hours at least."""
    return max(168, 4 * (0 if forecasts.is_empty() else forecasts[names.STEP].n_unique()))


def _near(history: pl.DataFrame, forecasts: pl.DataFrame, *, context: int) -> pl.DataFrame:
    """Return the history from `context` rows before a series' first cutoff to its last forecast step."""
    span = forecasts.group_by("series").agg(
        pl.col(names.CUTOFF).min().alias("first"), pl.col(names.TIMESTAMP).max().alias("last")
    )
    history = history.join(span, on="series", how="left", maintain_order="left")
    history = history.filter((pl.col(names.TIMESTAMP) <= pl.col("last")).fill_null(value=True))
    before = (pl.col(names.TIMESTAMP) <= pl.col("first")).fill_null(value=True).sum().over("series")
    row = pl.int_range(pl.len()).over("series")
    return history.filter(row >= before.cast(pl.Int64) - context).drop("first", "last")


# ---- Data of the other charts ----


def _lines(
    frame: pl.DataFrame | None, styles: Sequence[ModelStyle], x: str, y: str, factor: float = 1
) -> list[dict[str, object]] | None:
    """Return a line of `y` over `x` for each style with data."""
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
    """Return the mean score of each series by its best model, and that model's name if it is the same for all."""
    if scores is None or scores.is_empty():
        return {}
    styles = model_styles(scores[MODEL].unique())
    rank = pl.col(MODEL).replace_strict(
        {style.name: index for index, style in enumerate(styles)}, return_dtype=pl.Int32
    )
    best = scores.filter(rank == rank.max().over(names.SERIES_ID))
    scored = styles[-1].label if best[MODEL].n_unique() == 1 else "the model that forecasts it"
    metric, score = "mase", pl.col("mase").fill_nan(None) if "mase" in scores.columns else None
    if score is None:
        metric, score = LOG_LOSS, pl.col(LOG_LOSS) / pl.col("n_steps")
    mean = best.group_by(names.SERIES_ID).agg(score.mean().alias("score"))
    values = dict(mean.select(names.SERIES_ID, rounded("score")).iter_rows())
    return {"score": [values.get(name) for name in series_ids], "scored": scored, "metric": METRICS[metric]}


def _decisions(decisions: pl.DataFrame | None, series_ids: Sequence[str]) -> dict[str, object]:
    """Return the table of decisions, and uplift and verdict as text for each series of the browser."""
    if decisions is None or decisions.is_empty():
        return {}
    decisions = decisions.with_columns(uplift(decisions).alias("uplift"))
    floats = [name for name, kind in decisions.schema.items() if kind.is_numeric()]
    shown = decisions.with_columns(map(rounded, floats)).with_columns(pl.col(pl.Boolean).cast(pl.String))
    rows = {row[names.SERIES_ID]: row for row in shown.iter_rows(named=True)}
    entries = [rows.get(name) for name in series_ids]
    tuned = [row is not None and (row["blend"] or 0) > 0 for row in entries]
    verdicts = [
        ""
        if row is None
        else f"Fine-tuned, gain at the gate {percent(row['gain'] or 0)}{_later(row['uplift'])}"
        if on
        else f"Base kept: {row[names.REASON]}"
        for row, on in zip(entries, tuned, strict=True)
    ]
    return {
        "decisions": {"columns": shown.columns, "rows": shown.rows()},
        "gain": [None if row is None else row["gain"] for row in entries],
        "uplift": [row["uplift"] if row is not None and on else None for row, on in zip(entries, tuned, strict=True)],
        "tuned": tuned,
        "verdicts": verdicts,
        "colours": [style.colour for style in model_styles([names.SOURCE_PRETRAINED, names.SOURCE_FINE_TUNED])],
    }


def _later(share: float | None) -> str:
    return "" if share is None else f", uplift later {percent(share)}"
