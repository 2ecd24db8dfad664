"""The HTML page of a panel's profile: row counts, data quality, and properties of the series."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import polars as pl

from forecast.data.ages import EndedSeries, ended_series
from forecast.data.ingest.rejects import Counts
from forecast.data.panel import Panel
from forecast.data.profiling.profile import frequencies
from forecast.data.profiling.quality import DEMAND, part_of, quality, summary
from forecast.names import CLASS, SERIES_ID, TARGET, TIMESTAMP
from forecast.redaction import redacted
from forecast.reports.page import bar, card, milliseconds, page, rounded, runs, table
from forecast.reports.styles import clock_label, wall_clock

if TYPE_CHECKING:
    from forecast.data.ingest.loaded import Loaded

MAX_ROWS: Final = 10_000
"""Most series in the table of the page; more make it slow to open."""
_MAX_STEPS: Final = 20_000
"""Most steps drawn of a series."""
_BINS: Final = 20
_WIDTHS: Final = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05)
_EXAMPLES: Final = 5
_MAX_ENDED: Final = 100
_STRENGTHS: Final = (
    "Strength of season and trend: the share of the variance that they explain, from 0 to 1. Kinds of demand: rare "
    "(intermittent, lumpy) or not, of varying size (erratic, lumpy) or not. "
)

_COLUMNS: Final = (
    SERIES_ID, "first", "last", "length", "gaps", "longest_gap", "zeros", "trailing_zeros", "negatives", "mean", "std",
    "min", "max", "outliers", "adi", "cv2", "demand", "seasonality", "trend",
)  # fmt: skip
"""Columns of the profile that the page's table shows."""
_CLASS_COLUMNS: Final = SERIES_ID, "first", "last", "length", "gaps", "longest_gap", "classes", CLASS, "share"


def profile_page(
    loaded: "Loaded", profile: pl.DataFrame, missing: pl.DataFrame | None, ended: EndedSeries | None = None
) -> str:
    """Return the page as one file that works offline.

    `profile` describes `loaded.panel`; `ended` holds its ended series (with the default criterion if None). `missing`
    has a row for each series and known covariate with missing cells (series_id, covariate, missing_history, as from
    `missing_known`); None if there are no known covariates.
    """
    data, panel = loaded.data, loaded.panel
    source = redacted(str(data.path) if data.uri is None else data.uri.get_secret_value())
    season = "no season" if data.season_length == 1 else f"a season of {data.season_length:,} steps"
    assert data.season_length is not None
    ended = ended or ended_series(panel, data.season_length)
    worst = _worst_first(profile)
    content = {
        "charts": list(_charts(profile, data.season_length)),
        "examples": [] if loaded.classes else list(_examples(panel, profile)),
        "clock": clock_label(panel.frame(np.arange(0))),
        "columns": worst.columns,
        "rows": worst.rows(),
    }
    left_out = profile.height - worst.height
    return page(
        "profile",
        title="Data profile",
        subtitle=f"{source}: every {panel.grid.frequency}, {season}",
        facts=_facts(loaded, profile),
        data=[("page", content)],
        rows=_rows(loaded.counts),
        classes=_classes(loaded),
        strengths="" if loaded.classes else _STRENGTHS,
        summary=card(
            "summary",
            "At a glance",
            table({"Measure": "", "Found": "wide"}, [*summary(profile).rows(), ("Ended", str(ended))]),
        ),
        ended=_ended(ended),
        quality=_quality(loaded),
        missing=_missing(missing, panel),
        note=f"These are the {worst.height:,} worst series (most missing steps, constant, "
        f"{'largest share of one class' if loaded.classes else 'most zeros'}, shortest); "
        f"the other {left_out:,} are in profile.parquet."
        if left_out
        else "",
    )


def _facts(loaded: "Loaded", profile: pl.DataFrame) -> dict[str, str]:
    counts, (steps, gaps) = loaded.counts, profile.select(pl.col("length", "gaps").sum()).row(0)
    return {
        "Series": f"{counts.series_kept:,}",
        "Series rejected": f"{counts.series_rejected:,}",
        "Rows read": f"{counts.rows_in:,}",
        "Rows rejected": f"{counts.rows_rejected:,} ({part_of(counts.rows_rejected, counts.rows_in)})",
        "Steps": f"{steps:,}",
        "Steps missing": f"{gaps:,} ({part_of(gaps, steps)})",
    }


def _rows(counts: Counts) -> str:
    """Return the table of row counts by outcome, for each source table."""

    def lines(total: int, parts: dict[str, int]) -> str:
        rows = [(name, f"{n:,}", bar(n / total) if n else "") for name, n in parts.items()]
        return table({"Rows": "wide", "Number": "number", "": "bar"}, [*rows, ("Read", f"{total:,}", "")], total=True)

    body = lines(
        counts.rows_in,
        {
            "Kept": counts.rows_kept - counts.rows_masked,
            **({"Kept without their target: out of stock": counts.rows_masked} if counts.rows_masked else {}),
            "Rejected": counts.rows_rejected,
            "Without a target, after the end of their series: for known covariates only": counts.rows_future,
            "After data.until": counts.rows_after_until,
        },
    )
    if counts.known_rows_in:
        body += "<h3>data.known_path</h3>" + lines(
            counts.known_rows_in,
            {
                "Kept": counts.known_rows_kept,
                "Rejected": counts.known_rows_rejected,
                "Of series that are not in the panel": counts.known_rows_unused,
            },
        )
    return card("rows", "Where the rows went", body)


def _quality(loaded: "Loaded") -> str:
    issues = quality(loaded.rejects, loaded.counts)
    if issues.is_empty():
        return card("quality", "Rejected rows", "<p>None: every row was used.</p>")
    heads = {"Reason": "wide", "Rows": "number", "Series": "number", "Share": "number", "For example": "wide"}
    rows = [
        (row["reason"], f"{row['rows']:,}", f"{row['series']:,}", part_of(row["share"], 1), row["examples"])
        for row in issues.iter_rows(named=True)
    ]
    return card("quality", "Rejected rows", table(heads, rows), "All of them are in rejects.parquet.")


def _ended(ended: EndedSeries) -> str:
    """Return the section on series that have ended; empty if there are none."""
    if ended.series.is_empty():
        return ""
    latest = ended.series.head(_MAX_ENDED).with_columns(wall_clock("last").dt.to_string("%Y-%m-%d %H:%M"))
    rows = [(name, last, f"{age:,}") for name, last, age in latest.iter_rows()]
    heads = {"Series": "wide", "Last value": "", "Steps before the end of the panel": "number"}
    left_out = ended.series.height - latest.height
    note = f" The other {left_out:,} ended earlier; they are in ended.parquet." if left_out else ""
    return card("ended", "Series that have ended", table(heads, rows), f"Scoring rejects them (score.max_age).{note}")


def _classes(loaded: "Loaded") -> str:
    if loaded.classes is None:
        return ""
    rows = [
        (row[CLASS], f"{row['values']:,}", bar(row["share"]), part_of(row["share"], 1), f"{row['series']:,}")
        for row in frequencies(loaded.panel, loaded.classes).iter_rows(named=True)
    ]
    heads = {"Class": "wide", "Values": "number", "": "bar", "Share": "number", "Series": "number"}
    return card("classes", "Classes", table(heads, rows), "The series are those that have the class.")


def _missing(missing: pl.DataFrame | None, panel: Panel) -> str:
    if missing is None:
        return ""
    heading = "Missing cells of known covariates"
    if missing.is_empty():
        return card("missing", heading, "<p>None: all are there, at every step of every series.</p>")
    by_covariate = (
        missing.sort("missing_history", SERIES_ID, descending=[True, False])
        .group_by("covariate", maintain_order=True)
        .agg(
            pl.len().alias("series"),
            pl.col("missing_history").sum(),
            pl.col(SERIES_ID).head(_EXAMPLES).str.join(", ").alias("examples"),
        )
        .sort("covariate")
    )

    rows = [
        (
            row["covariate"],
            f"{row['series']:,}",
            f"{row['missing_history']:,} ({part_of(row['missing_history'], len(panel.target))})",
            row["examples"],
        )
        for row in by_covariate.iter_rows(named=True)
    ]
    heads = {"Covariate": "wide", "Series": "number", "Cells": "number", "Most in": "wide"}
    return card("missing", heading, table(heads, rows), "A model is told where a covariate is missing.")


def _worst_first(profile: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of the page's table, the series that most likely need attention first."""
    of_classes = CLASS in profile.columns
    worst = profile.sort(
        pl.col("gaps") / pl.col("length"), "constant", "share" if of_classes else "zeros", "length", SERIES_ID,
        descending=[True, True, True, False, False],
    )  # fmt: skip
    rows = worst.head(MAX_ROWS).select(*(_CLASS_COLUMNS if of_classes else _COLUMNS))
    times = rows.select(wall_clock(name) for name in ("first", "last"))
    whole_days = times.equals(times.select(pl.all().dt.truncate("1d")))
    form = "%Y-%m-%d" if whole_days else "%Y-%m-%d %H:%M"
    floats = [name for name, kind in rows.schema.items() if kind.is_float()]
    return rows.with_columns(pl.col("first", "last").dt.to_string(form), *map(rounded, floats))


# ---- Charts ----


def _charts(profile: pl.DataFrame, season_length: int | None) -> Iterator[dict[str, Any]]:
    """Yield title, axis, edges (or labels) and counts of each histogram; title and a note alone for an empty one."""
    lengths = profile["length"].to_numpy()
    width = -(-(lengths.max() - lengths.min() + 1) // (2 * _BINS))
    edges = np.arange(lengths.min(), lengths.max() + width + 1, width)
    yield _histogram("Length", "Steps", lengths, edges)

    gaps = profile.filter(pl.col("gaps") > 0).select(pl.col("gaps") / pl.col("length")).to_series().to_numpy()
    if len(gaps):
        nice = next(width for width in _WIDTHS if gaps.max() <= _BINS * width)
        note = f"The {len(gaps):,} series with gaps, of {profile.height:,}."
        yield _histogram("Missing steps", "Share of steps", gaps, nice * np.arange(_BINS + 1), note, share=True)
    else:
        yield {"title": "Missing steps", "note": "No series has gaps."}
    if CLASS in profile.columns:
        return

    zeros = profile["zeros"].to_numpy()
    shares = np.linspace(0, 1, _BINS + 1)
    if zeros.any():
        yield _histogram("Zeros", "Share of observed values", zeros, shares, share=True)
    else:
        yield {"title": "Zeros", "note": "No value is zero."}

    counts = dict(profile["demand"].value_counts().iter_rows())
    kinds = [kind for kind in DEMAND if kind in counts] + ["none"] * (None in counts)
    note = "None: with negative values, or only zeros." if None in counts else ""
    values = [counts[None if kind == "none" else kind] for kind in kinds]
    yield {"title": "Demand", "axis": "", "labels": kinds, "counts": values, "note": note}

    for name, title in (("seasonality", "Season"), ("trend", "Trend")):
        strengths = profile[name].drop_nulls()
        unknown = profile.height - strengths.len()
        note = f"Not known for {unknown:,} series: too short, too few values, or constant." if unknown else ""
        if name == "seasonality" and season_length == 1:
            note = "A season is one step: there is none."
        if strengths.is_empty():
            yield {"title": title, "note": note}
        else:
            yield _histogram(title, "Strength", strengths.to_numpy(), shares, note)


def _histogram(
    title: str, axis: str, values: Any, edges: Any, note: str = "", *, share: bool = False
) -> dict[str, Any]:
    counts = np.histogram(values, edges)[0].tolist()
    ends = np.round(edges, 6).tolist()
    return {"title": title, "axis": axis, "edges": ends, "counts": counts, "note": note, "share": share}


def _examples(panel: Panel, profile: pl.DataFrame) -> Iterator[dict[str, Any]]:
    """Yield distinct series that are extreme by some criterion: name, reason, times and values."""
    criteria = (
        ("length", 0, "Longest: {length:,} steps"),
        ("gaps", 0, "Most gaps: {gaps:,} of {length:,} steps are missing"),
        ("adi", 1, "Rarest demand: one value in {adi:.3g} is not zero"),
        ("cv2", 0, "Most varying demand: squared coefficient of variation {cv2:.3g}"),
        ("seasonality", 0, "Strongest season: {seasonality:.3f}"),
        ("trend", 0, "Strongest trend: {trend:.3f}"),
    )
    numbers: list[int] = []
    remaining = profile.with_row_index("number")
    for name, above, why in criteria:
        candidates = remaining.filter(pl.col(name) > above, ~pl.col("number").is_in(numbers))
        candidates = candidates.sort(name, SERIES_ID, descending=[True, False]).head(1)
        for row in candidates.iter_rows(named=True):
            numbers.append(row["number"])
            history = panel.frame(np.array([row["number"]])).tail(_MAX_STEPS)
            points = history.select(milliseconds(TIMESTAMP), rounded(TARGET))
            note = f"; the last {_MAX_STEPS:,} are drawn" if row["length"] > _MAX_STEPS else ""
            yield {
                "name": row[SERIES_ID],
                "why": why.format_map(row) + note,
                "t": runs(points[TIMESTAMP].to_list()),
                "y": points[TARGET].to_list(),
            }
