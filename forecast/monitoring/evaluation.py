"""Forecasts against what came since: accuracy by age, segment and time beside seasonal naive, and who stands out.

Of each step the forecast, the observation and what seasonal naive would have said at the same cutoff are scored; only
sums are kept, so that memory does not grow with the number of cutoffs, and any group of them is exact. Nothing after
the last step that is looked at is used: the panel is cut there.
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
from forecast.monitoring.alarms import alarms_of
from forecast.monitoring.coverage import coverage_of
from forecast.monitoring.cutoffs import Cutoff, observed_parts, placed, samples, visible, within
from forecast.monitoring.drift import Span, cycles, drift
from forecast.monitoring.forecasts import Written
from forecast.monitoring.freshness import freshness_of
from forecast.monitoring.labels import AGE, ALARM, IN_SAMPLE, TIME
from forecast.monitoring.result import Monitored
from forecast.monitoring.segments import segments_of
from forecast.monitoring.shadow import no_pairs, reach_of, window_scores
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
"""Weeks, months or longer steps that are recent."""
_SHOWN: Final = 200
"""Alarmed series whose forecasts are kept to be looked at."""


def monitor(
    artifact: Artifact,
    loaded: Loaded,
    written: Written,
    shadow: Written | None,
    settings: MonitorSettings,
    *,
    backtest: pl.DataFrame | None = None,
    judged: tuple[str, str] | None = None,
    now: datetime | None = None,
) -> Monitored:
    """Return what the observations in a panel, which ends at `settings.as_of`, say about forecasts.

    `artifact` says how the panel was read. `backtest` has series_id and mase of the version that made the latest
    forecasts, a row per window.
    `judged` are the versions of champion and shadow that are compared where both have forecast. `now` is the clock
    where `settings.as_of` is None; the last step of the panel when not given.

    Raises DataError for forecasts that do not fit the panel, and if there are none that may be looked at, or none in
    the windows although no threshold on their age is breached; ConfigError for unknown segments.
    """
    panel, season = loaded.panel, loaded.data.season_length
    assert season is not None
    horizon = max(int(content["horizon"]) for content in written.contents)
    recent, end = settings.recent or _default_recent(panel, season, horizon), panel.last_index
    span = Span(end - recent - (settings.history or 4 * recent) + 1, end - recent + 1, end)
    known = visible(written, panel, settings.as_of)
    freshness = freshness_of(known, panel, settings, now)
    inside = within(known, span, panel, written, empty=freshness.breached)
    cutoffs = [each for each in inside if each.sample(panel) != IN_SAMPLE]
    in_sample = [each for each in inside if each.sample(panel) == IN_SAMPLE]
    both = {} if shadow is None or judged is None else _shared(cutoffs, placed(shadow, panel), judged, panel)
    levels = written.levels([each.content for each in inside or known[-1:]])
    if shadow is not None and both:
        theirs = shadow.levels([other.content for _, other in both.values()])
        levels = tuple(level for level in levels if level in theirs)
    segments = segments_of(artifact, loaded, settings.segments)
    ages = age_groups(settings.ages, horizon)
    evaluation = Evaluation(artifact, span, levels, season, ages, settings.by)
    champions, others = ([pair[place] for pair in both.values()] for place in (0, 1))
    sums = _Sums(panel, evaluation, reach_of(champions, others, panel, end, settings.rollback_blocks))
    for cutoff in cutoffs:
        sums.add(written, cutoff, paired=cutoff.place in both)
        if shadow is not None and cutoff.place in both:
            sums.add_shadow(shadow, both[cutoff.place][1])
    scores = sums.tables["scores"].sort(TABLES["scores"][0])
    scores = scores.with_columns(pl.col(AGE).replace_strict(dict(enumerate(ages)), return_dtype=pl.String))
    alarms = alarms_of(sums.tables["days"], settings.alarms, backtest, recent)
    named = alarms.filter(status=ALARM)[SERIES_ID].to_list()
    return Monitored(
        span=span,
        as_of=panel.grid.timestamps(np.array([end]))[0],
        recent=panel.grid.timestamps(np.array([span.recent]))[0],
        by=settings.by,
        counts={
            "cutoffs": len(cutoffs),
            "cutoffs_in_sample": len(in_sample),
            "series": scores[SERIES_ID].n_unique(),
            "series_unknown": len(sums.unknown),
            "series_ended": inside[-1].content.get("rejects", {}).get(ENDED, 0) if inside else 0,
            **sums.counts,
            "rows_in_sample": sum(each.content["rows"]["written"] for each in in_sample),
        },
        versions=dict(Counter(each.version for each in cutoffs)),
        cutoffs=samples(inside, panel),
        freshness=freshness,
        coverage_80=coverage_of(sums.tables["days"]),
        bands=tuple(band for band, _, _ in bands(levels)),
        scores=scores,
        metrics=metrics_by_group(scores, sums.tables[TIME], segments, list(ages)),
        alarms=alarms,
        observed=len(sums.observed),
        least_observed=min(settings.alarms.min_steps, recent),
        drift=drift(panel, loaded.data, loaded.categories, cycles(panel, loaded.data, span)),
        pairs=pl.concat(sums.pairs),
        shown=_freshest(written, cutoffs or known[-1:], named[:_SHOWN], levels, panel, span),
    )


class _Sums:
    """What is kept of all cutoffs: tables of sums, pairs of champion and shadow, and where the forecasts went."""

    def __init__(self, panel: Panel, evaluation: Evaluation, reach: int) -> None:
        names = ("rows", "rows_scored", "rows_not_yet_observed", "rows_missing", "rows_recent")
        self.counts = Counter(dict.fromkeys(names, 0))
        self.unknown: set[str] = set()
        """Series that are not in the panel."""
        self.observed: set[int] = set()
        """Grid indices of the recent window with an observation and a forecast, of any series."""
        self._panel, self._evaluation, self._reach = panel, evaluation, reach
        self.pairs = [no_pairs(panel)]
        empty = no_steps(panel, evaluation)
        self.tables = {name: empty.group_by(keys).agg(SUMS.sum()) for name, (keys, _) in TABLES.items()}

    def add(self, written: Written, cutoff: Cutoff, *, paired: bool) -> None:
        """Add the forecasts of a cutoff; with `paired`, their scores are compared with those of the shadow."""
        span, levels = self._evaluation.span, self._evaluation.levels
        for part in observed_parts(written, cutoff, self._panel, span, levels, self.counts, self.unknown):
            at = cutoff.place + 1 + np.flatnonzero(np.isfinite(part.actual).any(0))
            self.observed.update(at[at >= span.recent].tolist())
            steps = score_steps(part, cutoff, self._evaluation)
            for name, (keys, models) in TABLES.items():
                sums = steps.filter(pl.col(MODEL).is_in(models)).group_by(keys).agg(SUMS.sum())
                self.tables[name] = pl.concat([self.tables[name], sums])
            if paired:
                self.pairs.append(window_scores(part, levels, self._evaluation.season, self._reach, CHAMPION))
        self.tables = {
            name: table.group_by(TABLES[name][0], maintain_order=True).agg(SUMS.sum())
            for name, table in self.tables.items()
        }
        due = self.counts["rows_scored"] + self.counts["rows_not_yet_observed"] + self.counts["rows_missing"]
        assert self.counts["rows"] == due, "a forecast was lost"

    def add_shadow(self, shadow: Written, cutoff: Cutoff) -> None:
        """Add the scores of the shadow at a cutoff that both have."""
        span, levels = self._evaluation.span, self._evaluation.levels
        for part in observed_parts(shadow, cutoff, self._panel, span, levels, Counter(), set()):
            self.pairs.append(window_scores(part, levels, self._evaluation.season, self._reach, SHADOW))


def _shared(
    cutoffs: Sequence[Cutoff], others: Sequence[Cutoff], judged: tuple[str, str], panel: Panel
) -> dict[int, tuple[Cutoff, Cutoff]]:
    """Return the cutoffs of both versions by place, where both have forecast and neither in sample."""
    by_place = {each.place: each for each in others if each.sample(panel) != IN_SAMPLE}
    return {
        each.place: (each, by_place[each.place])
        for each in cutoffs
        if each.place in by_place and judged == (each.version, by_place[each.place].version)
    }


def _default_recent(panel: Panel, season: int, horizon: int) -> int:
    """Return the steps of the recent window: a season up to a week, or a horizon if that is longer.

    Of weeks and longer steps, whose season is a year, a few steps.
    """
    frequency = panel.grid.frequency
    if frequency.base == "microsecond":
        week = max(1, 7 * DAY // frequency.size)
    elif frequency.base == "business day" or (frequency.base == "day" and frequency.size < 7):
        week = frequency.season_length
    else:
        return _FEW_STEPS
    return max(min(season, week), horizon)


def _freshest(
    written: Written,
    cutoffs: Sequence[Cutoff],
    series: Sequence[str],
    levels: Sequence[float],
    panel: Panel,
    span: Span,
) -> pl.DataFrame:
    """Return the forecast of each step in the windows from the latest cutoff before it, of some series."""
    columns = [SERIES_ID, TIMESTAMP, CUTOFF, *(quantile_column(level) for level in levels)]
    first, last = panel.grid.timestamps(np.array([span.first, span.last])).to_list()
    parts = []
    for cutoff in cutoffs if series else cutoffs[:1]:
        now = panel.grid.timestamps(np.array([cutoff.place])).alias(CUTOFF)
        for frame in written.rows(cutoff.content, series):
            local = pl.col(TIMESTAMP).cast(now.dtype)
            dated = frame.with_columns(local, pl.lit(now.item()).cast(now.dtype).alias(CUTOFF))
            parts.append(dated.select(columns).filter(pl.col(TIMESTAMP).is_between(first, last)))
    return (
        pl.concat(parts)
        .sort(SERIES_ID, TIMESTAMP, CUTOFF)
        .unique([SERIES_ID, TIMESTAMP], keep="last", maintain_order=True)
    )
