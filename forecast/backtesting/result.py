"""The result of a backtest: scores and forecasts in files, and the tables summarised from them."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, NamedTuple

import numpy as np
import polars as pl

from forecast.artifact import Artifact
from forecast.data.panel import Panel
from forecast.data.sources.frames import column
from forecast.metrics.summaries import (
    confusion,
    coverage_by_interval,
    coverage_by_level,
    error_by_step,
    macro_f1,
    summarise,
    wins,
)
from forecast.names import CUTOFF, LOG_LOSS, MODEL, REASON, SERIES_ID

SCORES: Final = "scores"
FORECASTS: Final = "forecasts"

Progress = Callable[[float, str], None]


class Contender(NamedTuple):
    """A model, and the panel as this model reads it."""

    artifact: Artifact
    panel: Panel
    digest: str = ""
    """Digest of the model; computed from its content where it is needed, when not given."""


@dataclass(frozen=True, repr=False)
class BacktestResult:
    """Scores and forecasts of all models on the same windows: large tables in files, small ones in memory."""

    folder: Path
    """Holds scores.parquet and forecasts.parquet."""
    summary: pl.DataFrame
    """One row per model (`metrics.summarise`)."""
    steps: pl.DataFrame
    """model, step, and the scores at each step of the horizon (`metrics.error_by_step`)."""
    levels: pl.DataFrame
    """model, level, and the coverage of each quantile (`metrics.coverage_by_level`)."""
    intervals: pl.DataFrame
    """model, level, coverage and width of each central interval (`metrics.coverage_by_interval`)."""
    segments: pl.DataFrame
    """segment, value, model, and the columns of `summary`, for each of `backtest.segments`."""
    wins: pl.DataFrame
    """model, baseline, and the share of series on which the model is better (`metrics.wins`)."""
    failures: pl.DataFrame
    """series_id, cutoff, model, reason: baselines that could not be fitted, and have no row for this window."""
    skipped: pl.DataFrame
    """series_id, reason: series without a scored window."""
    confusion: pl.DataFrame | None = None
    """model, target, class, n: steps per actual class (target) and most probable class. None for numbers."""
    temporary: "tempfile.TemporaryDirectory[str] | None" = field(default=None, repr=False)
    """The temporary folder, which is deleted with this object; None for a permanent one."""

    def __repr__(self) -> str:
        metric = "mase" if "mase" in self.summary.columns else self.summary.columns[-1]
        parts = [
            f"{model} {value:.4g}" for model, value in self.summary.select("model", metric).drop_nulls().iter_rows()
        ]
        return f"BacktestResult({metric}: {', '.join(parts)}; {self.skipped.height:,} series skipped)"

    def scan(self, table: Literal["scores", "forecasts"]) -> pl.LazyFrame:
        """Return a large table as a lazy frame over its file."""
        return pl.scan_parquet(self.folder / f"{table}.parquet", glob=False, hive_partitioning=False)

    @property
    def cutoffs(self) -> pl.Series:
        """Read the cutoffs of the windows, oldest first."""
        return self.scan(SCORES).select(pl.col(CUTOFF).unique().sort()).collect(engine="streaming")[CUTOFF]

    @property
    def scores(self) -> pl.DataFrame:
        """Read series_id, cutoff, model, and the columns of `metrics.score_windows` or of `metrics.score_classes`.

        Heads of targets of 0 and more have crps (`metrics.score_points`).
        """
        return self.scan(SCORES).collect()

    @property
    def forecasts(self) -> pl.DataFrame:
        """Read series_id, timestamp, cutoff, step, model, target, mean, and one column per quantile.

        For classes: `class`, the most probable one, and one column per class in place of mean and quantiles.
        """
        return self.scan(FORECASTS).collect()

    def tables(self) -> dict[str, pl.DataFrame]:
        """Return the tables in memory by name."""
        names = ("summary", "steps", "levels", "intervals", "segments", "wins", "failures", "skipped")
        tables = {name: getattr(self, name) for name in names}
        return tables if self.confusion is None else {**tables, "confusion": self.confusion}


def result_of(
    folder: Path,
    temporary: "tempfile.TemporaryDirectory[str] | None",
    groups: pl.DataFrame,
    panel: Panel,
    scored: np.ndarray,
    failures: pl.DataFrame,
) -> BacktestResult:
    """Return the result with its tables summarised from the files, which are read in blocks."""
    scores, forecasts = (pl.scan_parquet(folder / f"{name}.parquet", glob=False) for name in (SCORES, FORECASTS))
    summary = summarise(scores)
    counts = None
    if LOG_LOSS in summary.columns:
        counts = confusion(forecasts)
        summary = summary.join(macro_f1(counts), on=MODEL, maintain_order="left")
        first_columns = [MODEL, LOG_LOSS, "brier", "accuracy", "macro_f1"]
        summary = summary.select(*first_columns, pl.exclude(first_columns))
    parts = [
        summarise(scores.join(groups.lazy().select(SERIES_ID, value=column(name)), on=SERIES_ID), by=["value"]).select(
            pl.lit(name).alias("segment"), pl.all()
        )
        for name in groups.columns[1:]
    ]
    without_score = panel.series_id[~scored].tolist()
    skipped = {SERIES_ID: without_score, REASON: ["no history or no observation at any cutoff"] * len(without_score)}
    return BacktestResult(
        folder=folder,
        summary=summary,
        steps=error_by_step(forecasts),
        levels=coverage_by_level(forecasts),
        intervals=coverage_by_interval(forecasts),
        segments=pl.concat(parts) if parts else pl.DataFrame(schema={"segment": pl.String, "value": pl.String}),
        wins=wins(scores),
        failures=failures,
        skipped=pl.DataFrame(skipped, schema={SERIES_ID: pl.String, REASON: pl.String}),
        confusion=counts,
        temporary=temporary,
    )
