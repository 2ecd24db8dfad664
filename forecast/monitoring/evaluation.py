"""Evaluation of forecasts against later observations: accuracy by age, segment and time, and series with alarms.

Each step is scored with its forecast and with the seasonal naive forecast from the same cutoff. Only sums are kept, and
the latest forecast of each observation, so memory does not grow with the number of cutoffs, and metrics of any group
are exact. The panel is cut at the last evaluated step, so no later value is used.
"""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Final

import numpy as np
import polars as pl

from forecast.artifact import Artifact
from forecast.config import MonitorSettings
from forecast.data.ages import ENDED
from forecast.data.ingest.loaded import Loaded
from forecast.data.panel import Panel
from forecast.data.time.frequency import DAY
from forecast.monitoring.cutoffs import (
    Cutoff,
    RowOutcomes,
    cutoffs_in_windows,
    samples,
    visible_cutoffs,
)
from forecast.monitoring.drift import Span, cycles, drift
from forecast.monitoring.forecasts import Block, ScoredForecasts
from forecast.monitoring.freshness import freshness_of
from forecast.monitoring.labels import ALARM, IN_SAMPLE
from forecast.monitoring.result import MonitorResult
from forecast.monitoring.segments import segments_of
from forecast.monitoring.shadow import comparison_of
from forecast.monitoring.step_scores import (
    Evaluation,
    age_groups,
    bands,
)
from forecast.monitoring.sums import Totals, blocks
from forecast.names import (
    CUTOFF,
    SERIES_ID,
    TIMESTAMP,
    quantile_column,
)

_FEW_STEPS: Final = 4
"""Length of the recent window for steps of a week or longer."""
_SHOWN: Final = 200
"""Alarmed series whose forecasts are kept for the page."""


def monitor(
    artifact: Artifact,
    loaded: Loaded,
    forecasts: ScoredForecasts,
    shadow: ScoredForecasts | None,
    settings: MonitorSettings,
    *,
    backtest: pl.DataFrame | None = None,
    compared_versions: tuple[str, str] | None = None,
    now: datetime | None = None,
) -> MonitorResult:
    """Return the evaluation of forecasts against the observations of a panel, which ends at `settings.as_of`.

    `artifact` says how the panel was read. `backtest` has series_id and mase of the version that made the latest
    forecasts, a row per window. `compared_versions` are the versions of champion and shadow to compare on cutoffs that
    both have forecast. `now` is the clock where `settings.as_of` is None; if it is None too, the last step of the panel
    is.

    Raises DataError for forecasts that do not fit the panel, if none are visible, or if none are in the windows
    although no threshold on their age is breached; ConfigError for unknown segments.
    """
    panel, season = loaded.panel, loaded.data.season_length
    assert season is not None
    horizon = max(int(content["horizon"]) for content in forecasts.contents)
    recent, end = settings.recent or _default_recent(panel, season, horizon), panel.last_index
    span = Span(end - recent - (settings.history or 4 * recent) + 1, end - recent + 1, end)
    visible = visible_cutoffs(forecasts, panel, settings.as_of)
    freshness = freshness_of(visible, panel, settings, now)
    inside = cutoffs_in_windows(visible, span, panel, forecasts, empty=freshness.breached)
    in_sample = [cutoff for cutoff in inside if cutoff.sample(panel) == IN_SAMPLE]
    cutoffs = [cutoff for cutoff in inside if cutoff.sample(panel) != IN_SAMPLE]
    comparison = comparison_of(shadow, cutoffs, compared_versions, panel)
    levels = comparison.levels(forecasts.levels([cutoff.content for cutoff in inside or visible[-1:]]))
    segments = segments_of(artifact, loaded, settings.segments)
    evaluation = Evaluation(artifact, span, levels, season, age_groups(settings.ages, horizon), settings.by)
    totals = Totals(panel, evaluation, comparison, settings, segments, backtest)
    reads_blocks = forecasts.reads_blocks and (shadow is None or shadow.reads_blocks)
    for block, shard in blocks(panel, span) if reads_blocks else [(Block(), panel)]:
        totals.add(forecasts, cutoffs, block, shard)
    alarms = totals.alarms
    return MonitorResult(
        span=span,
        as_of=panel.grid.timestamps(np.array([end]))[0],
        recent=panel.grid.timestamps(np.array([span.recent]))[0],
        by=settings.by,
        counts=_counts(inside, in_sample, totals.n_series, totals.outcomes),
        versions=dict(Counter(cutoff.version for cutoff in cutoffs)),
        cutoffs=samples(inside, panel),
        freshness=freshness,
        coverage_80=totals.coverage.coverage(),
        bands=tuple(band for band, _, _ in bands(levels)),
        scores=totals.scores,
        metrics=totals.metrics,
        alarms=alarms,
        anomalies=totals.anomalies,
        anomaly_rate=settings.anomaly_rate,
        fva=totals.value_added,
        observed=len(totals.observed),
        least_observed=min(settings.alarms.min_steps, recent),
        drift=drift(panel, loaded.data, loaded.categories, cycles(panel, loaded.data, span)),
        pairs=totals.pairs,
        shown=_latest_per_step(forecasts, cutoffs or visible[-1:], alarms, levels, panel, span),
    )


def _counts(
    inside: Sequence[Cutoff], in_sample: Sequence[Cutoff], n_series: int, outcomes: RowOutcomes
) -> dict[str, int]:
    """Return the numbers of cutoffs `inside` the windows, of series, and of rows by outcome.

    Cutoffs `in_sample` are not evaluated.
    """
    return {
        "cutoffs": len(inside) - len(in_sample),
        "cutoffs_in_sample": len(in_sample),
        "series": n_series,
        "series_unknown": len(outcomes.unknown_series),
        "series_ended": inside[-1].content.get("rejects", {}).get(ENDED, 0) if inside else 0,
        **outcomes.counts,
        "rows_in_sample": sum(cutoff.content["rows"]["written"] for cutoff in in_sample),
    }


def _default_recent(panel: Panel, season: int, horizon: int) -> int:
    """Return the number of steps of the recent window: a season up to a week, or a horizon if that is longer.

    For steps of a week or longer, whose season is a year, it is _FEW_STEPS.
    """
    frequency = panel.grid.frequency
    if frequency.base == "microsecond":
        week = max(1, 7 * DAY // frequency.size)
    elif frequency.base == "business day" or (frequency.base == "day" and frequency.size < 7):
        week = frequency.season_length
    else:
        return _FEW_STEPS
    return max(min(season, week), horizon)


def _latest_per_step(
    forecasts: ScoredForecasts,
    cutoffs: Sequence[Cutoff],
    alarms: pl.DataFrame,
    levels: Sequence[float],
    panel: Panel,
    span: Span,
) -> pl.DataFrame:
    """Return the forecasts of the first series with an alarm, in the windows; each step is from its latest cutoff."""
    series = alarms.filter(status=ALARM)[SERIES_ID].head(_SHOWN).to_list()
    columns = [SERIES_ID, TIMESTAMP, CUTOFF, *(quantile_column(level) for level in levels)]
    first, last = panel.grid.timestamps(np.array([span.first, span.last])).to_list()
    parts = []
    for cutoff in cutoffs if series else cutoffs[:1]:
        cutoff_time = panel.grid.timestamps(np.array([cutoff.position])).alias(CUTOFF)
        for frame in forecasts.rows(cutoff.content, series):
            local = pl.col(TIMESTAMP).cast(cutoff_time.dtype)
            dated = frame.with_columns(local, pl.lit(cutoff_time.item()).cast(cutoff_time.dtype).alias(CUTOFF))
            parts.append(dated.select(columns).filter(pl.col(TIMESTAMP).is_between(first, last)))
    return (
        pl.concat(parts)
        .sort(SERIES_ID, TIMESTAMP, CUTOFF)
        .unique([SERIES_ID, TIMESTAMP], keep="last", maintain_order=True)
    )
