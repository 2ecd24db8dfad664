"""Evaluation of forecasts against later observations: accuracy by age, segment and time, and series with alarms.

Each step is scored with its forecast and with the seasonal naive forecast from the same cutoff. Only sums are kept, and
the latest forecast of each observation, so memory does not grow with the number of cutoffs, and metrics of any group
are exact. The panel is cut at the last evaluated step, so no later value is used.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final, NamedTuple

import numpy as np
import polars as pl

from forecast.artifact import Artifact
from forecast.config import MonitorSettings
from forecast.data.ages import ENDED
from forecast.data.ingest.loaded import Loaded
from forecast.data.panel import Panel
from forecast.data.time.frequency import DAY, BoolArray
from forecast.metrics.seasonal_naive import seasonal_naive_errors
from forecast.monitoring.alarms import alarms_of
from forecast.monitoring.anomalies import LatestForecasts
from forecast.monitoring.coverage import coverage_of
from forecast.monitoring.cutoffs import (
    Cutoff,
    RowOutcomes,
    cutoffs_in_windows,
    cutoffs_on_grid,
    observed_parts,
    samples,
    visible_cutoffs,
)
from forecast.monitoring.drift import Span, cycles, drift
from forecast.monitoring.forecasts import ScoredForecasts
from forecast.monitoring.freshness import freshness_of
from forecast.monitoring.labels import AGE, ALARM, IN_SAMPLE, TIME
from forecast.monitoring.result import MonitorResult
from forecast.monitoring.segments import segments_of
from forecast.monitoring.shadow import compared_steps, no_pairs, window_scores
from forecast.monitoring.step_scores import (
    SUMS,
    TABLES,
    Evaluation,
    age_groups,
    bands,
    metrics_by_group,
    no_steps,
    score_steps,
)
from forecast.monitoring.value_added import no_values, overridden_values, value_added
from forecast.names import (
    CHAMPION,
    CUTOFF,
    MODEL,
    SERIES_ID,
    SHADOW,
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
    comparison = _comparison(shadow, cutoffs, compared_versions, panel)
    levels = comparison.levels(forecasts.levels([cutoff.content for cutoff in inside or visible[-1:]]))
    segments = segments_of(artifact, loaded, settings.segments)
    evaluation = Evaluation(artifact, span, levels, season, age_groups(settings.ages, horizon), settings.by)
    sums = _Sums(panel, evaluation, comparison.steps(panel, end, settings.rollback_blocks))
    for cutoff in cutoffs:
        sums.add(forecasts, cutoff, comparison)
    scores = sums.scores()
    alarms = alarms_of(sums.tables["days"], settings.alarms, backtest, recent)
    return MonitorResult(
        span=span,
        as_of=panel.grid.timestamps(np.array([end]))[0],
        recent=panel.grid.timestamps(np.array([span.recent]))[0],
        by=settings.by,
        counts=_counts(inside, in_sample, scores[SERIES_ID].n_unique(), sums.outcomes),
        versions=dict(Counter(cutoff.version for cutoff in cutoffs)),
        cutoffs=samples(inside, panel),
        freshness=freshness,
        coverage_80=coverage_of(sums.tables["days"]),
        bands=tuple(band for band, _, _ in bands(levels)),
        scores=scores,
        metrics=metrics_by_group(scores, sums.tables[TIME], segments, list(evaluation.ages)),
        alarms=alarms,
        anomalies=sums.latest.verdicts(settings.anomaly_rate, evaluation.ages),
        anomaly_rate=settings.anomaly_rate,
        fva=value_added(pl.concat(sums.overridden), segments),
        observed=len(sums.observed),
        least_observed=min(settings.alarms.min_steps, recent),
        drift=drift(panel, loaded.data, loaded.categories, cycles(panel, loaded.data, span)),
        pairs=pl.concat(sums.pairs),
        shown=_latest_per_step(forecasts, cutoffs or visible[-1:], alarms, levels, panel, span),
    )


class _Comparison(NamedTuple):
    """The shadow, and the cutoffs that both versions have forecast, by grid index."""

    shadow: ScoredForecasts | None
    pairs: dict[int, tuple[Cutoff, Cutoff]]

    def levels(self, levels: tuple[float, ...]) -> tuple[float, ...]:
        """Return those of the levels that the shadow has, too."""
        if self.shadow is None or not self.pairs:
            return levels
        shadow_levels = self.shadow.levels([cutoff.content for _, cutoff in self.pairs.values()])
        return tuple(level for level in levels if level in shadow_levels)

    def steps(self, panel: Panel, end: int, blocks: int) -> int:
        """Return the number of steps of each cutoff that are compared."""
        champions, shadows = ([pair[side] for pair in self.pairs.values()] for side in (0, 1))
        return compared_steps(champions, shadows, panel, end, blocks)


class _Sums:
    """Totals over all cutoffs: sums by table, pairs of champion and shadow, and the number of forecasts by outcome."""

    def __init__(self, panel: Panel, evaluation: Evaluation, n_compared: int) -> None:
        self.outcomes = RowOutcomes()
        self.observed: set[int] = set()
        """Grid indices of the recent window with an observation and a forecast, of any series."""
        self.latest = LatestForecasts(panel, evaluation.span, evaluation.levels)
        self._panel, self._evaluation, self._n_compared = panel, evaluation, n_compared
        self.pairs = [no_pairs(panel)]
        self.overridden = [no_values()]
        empty = no_steps(panel, evaluation)
        self.tables = {name: empty.group_by(keys).agg(SUMS.sum()) for name, (keys, _) in TABLES.items()}

    def scores(self) -> pl.DataFrame:
        """Return the sums of each series, with age groups by name."""
        ages = pl.col(AGE).replace_strict(dict(enumerate(self._evaluation.ages)), return_dtype=pl.String)
        return self.tables["scores"].sort(TABLES["scores"][0]).with_columns(ages)

    def add(self, forecasts: ScoredForecasts, cutoff: Cutoff, comparison: _Comparison) -> None:
        """Add the forecasts of a cutoff; those that the shadow has forecast, too, are kept with those of the shadow."""
        paired = cutoff.position in comparison.pairs
        span, levels = self._evaluation.span, self._evaluation.levels
        hidden: dict[str, BoolArray] = {}
        for part in observed_parts(forecasts, cutoff, self._panel, span, levels, self.outcomes):
            observed_steps = cutoff.position + 1 + np.flatnonzero(np.isfinite(part.actual).any(0))
            self.observed.update(observed_steps[observed_steps >= span.recent].tolist())
            scales = seasonal_naive_errors(part.panel, part.windows, self._evaluation.season)
            self.latest.add(part, cutoff, scales[0])
            steps = score_steps(part, cutoff, self._evaluation, scales)
            for name, (keys, models) in TABLES.items():
                sums = steps.filter(pl.col(MODEL).is_in(models)).group_by(keys).agg(SUMS.sum())
                self.tables[name] = pl.concat([self.tables[name], sums])
            self.overridden.append(overridden_values(part, cutoff, self._evaluation))
            if paired:
                hidden |= dict(zip(part.series_id, part.overridden, strict=True)) if part.overridden.any() else {}
                of_model = part.without(part.overridden)
                self.pairs.append(window_scores(of_model, levels, self._evaluation.season, self._n_compared, CHAMPION))
        self.tables = {
            name: table.group_by(TABLES[name][0], maintain_order=True).agg(SUMS.sum())
            for name, table in self.tables.items()
        }
        counts = self.outcomes.counts
        due = counts["rows_scored"] + counts["rows_not_yet_observed"] + counts["rows_missing"]
        assert counts["rows"] == due, "a forecast was lost"
        if comparison.shadow is not None and paired:
            self._add_shadow(comparison.shadow, comparison.pairs[cutoff.position][1], hidden)

    def _add_shadow(self, shadow: ScoredForecasts, cutoff: Cutoff, hidden: Mapping[str, BoolArray]) -> None:
        """Add the scores of the shadow at a cutoff that both versions have forecast.

        `hidden` are the steps of the champion's forecasts that a person has overridden, [horizon], by series.
        """
        span, levels = self._evaluation.span, self._evaluation.levels
        for part in observed_parts(shadow, cutoff, self._panel, span, levels, RowOutcomes()):
            masks = np.zeros_like(part.actual, np.bool_)
            for row, name in enumerate(part.series_id.to_list() if hidden else []):
                if name in hidden:
                    mask = hidden[name][: masks.shape[1]]
                    masks[row, : len(mask)] = mask
            compared = part.without(masks)
            self.pairs.append(window_scores(compared, levels, self._evaluation.season, self._n_compared, SHADOW))


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


def _comparison(
    shadow: ScoredForecasts | None, cutoffs: Sequence[Cutoff], compared_versions: tuple[str, str] | None, panel: Panel
) -> _Comparison:
    """Return the cutoffs that both versions have forecast, neither of them in sample."""
    if shadow is None or compared_versions is None:
        return _Comparison(shadow, {})
    shadow_cutoffs = cutoffs_on_grid(shadow, panel)
    shadow_by_index = {cutoff.position: cutoff for cutoff in shadow_cutoffs if cutoff.sample(panel) != IN_SAMPLE}
    pairs = {
        cutoff.position: (cutoff, shadow_by_index[cutoff.position])
        for cutoff in cutoffs
        if cutoff.position in shadow_by_index
        and compared_versions == (cutoff.version, shadow_by_index[cutoff.position].version)
    }
    return _Comparison(shadow, pairs)


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
