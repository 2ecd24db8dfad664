"""Forecasts against what came since: accuracy by age, segment and time beside seasonal naive, and who stands out.

Of each step the forecast, the observation and what seasonal naive would have said at the same cutoff are scored; only
sums are kept, so that memory does not grow with the number of cutoffs, and any group of them is exact. Nothing after
the last step that is looked at is used: the panel is cut there.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Final

import numpy as np
import polars as pl

from forecast.artifact import Artifact
from forecast.config import MonitorSettings
from forecast.data.load import Loaded
from forecast.data.panel import Panel
from forecast.drift import Span, cycles, drift
from forecast.frequency import DAY
from forecast.metrics import MODEL
from forecast.monitor.alarms import alarms_of
from forecast.monitor.cutoffs import Cutoff, observed_parts, placed, visible, within
from forecast.monitor.forecasts import Written
from forecast.monitor.labels import AGE, ALARM, TIME
from forecast.monitor.result import Monitored
from forecast.monitor.segments import segments_of
from forecast.monitor.shadow import no_pairs, reach_of, window_scores
from forecast.monitor.step_scores import SUMS, TABLES, age_groups, bands, metrics_by_group, score_steps
from forecast.names import (
    CHAMPION,
    CUTOFF,
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
) -> Monitored:
    """Return what the observations in a panel, which ends at `settings.as_of`, say about forecasts.

    `artifact` says how the panel was read. `backtest` has series_id and mase of the version that made the latest
    forecasts, a row per window.
    `judged` are the versions of champion and shadow that are compared where both have forecast. Raises DataError for
    forecasts that do not fit the panel, and if there are none that may be looked at; ConfigError for unknown segments.
    """
    panel, season = loaded.panel, loaded.data.season_length
    assert season is not None
    horizon = max(int(content["horizon"]) for content in written.contents)
    recent, end = settings.recent or _default_recent(panel, season, horizon), panel.last_index
    span = Span(end - recent - (settings.history or 4 * recent) + 1, end - recent + 1, end)
    cutoffs = within(visible(written, panel, settings.as_of), span, panel, written)
    others = {} if shadow is None or judged is None else {each.place: each for each in placed(shadow, panel)}
    both = {
        each.place: others[each.place]
        for each in cutoffs
        if each.place in others and judged == (each.version, others[each.place].version)
    }
    champions = [each for each in cutoffs if each.place in both]
    reach = reach_of(champions, list(both.values()), panel, span.last, settings.rollback_blocks)
    levels = written.levels([each.content for each in cutoffs])
    if shadow is not None and both:
        theirs = shadow.levels([each.content for each in both.values()])
        levels = tuple(level for level in levels if level in theirs)
    segments = segments_of(artifact, loaded, settings.segments)
    ages = age_groups(settings.ages, horizon)

    counts = Counter(dict.fromkeys(("rows", "rows_scored", "rows_not_yet_observed", "rows_missing", "rows_recent"), 0))
    unknown: set[str] = set()
    observed: set[int] = set()
    tables: dict[str, pl.DataFrame] = {}
    pairs = [no_pairs(panel)]
    for cutoff in cutoffs:
        other = both.get(cutoff.place)
        for part in observed_parts(written, cutoff, panel, span, levels, counts, unknown):
            at = cutoff.place + 1 + np.flatnonzero(np.isfinite(part.actual).any(0))
            observed.update(at[at >= span.recent].tolist())
            steps = score_steps(part, cutoff, span, levels, season, ages, settings.by)
            for name, (keys, models) in TABLES.items():
                made = steps.filter(pl.col(MODEL).is_in(models)).group_by(keys).agg(SUMS.sum())
                tables[name] = pl.concat([tables[name], made]) if name in tables else made
            if other is not None:
                pairs.append(window_scores(part, levels, season, reach, CHAMPION))
        tables = {
            name: table.group_by(TABLES[name][0], maintain_order=True).agg(SUMS.sum()) for name, table in tables.items()
        }
        if other is not None and shadow is not None:
            for part in observed_parts(shadow, other, panel, span, levels, Counter(), set()):
                pairs.append(window_scores(part, levels, season, reach, SHADOW))
    due = counts["rows_scored"] + counts["rows_not_yet_observed"] + counts["rows_missing"]
    assert counts["rows"] == due, "a forecast was lost"
    scores = tables["scores"].sort(TABLES["scores"][0]).with_columns(pl.col(AGE).replace_strict(dict(enumerate(ages))))
    alarms = alarms_of(tables["days"], settings.alarms, backtest, recent)
    named = alarms.filter(status=ALARM)[SERIES_ID].to_list()
    return Monitored(
        span=span,
        as_of=panel.grid.timestamps(np.array([end]))[0],
        recent=panel.grid.timestamps(np.array([span.recent]))[0],
        by=settings.by,
        counts={
            "cutoffs": len(cutoffs),
            "series": tables["scores"][SERIES_ID].n_unique(),
            "series_unknown": len(unknown),
            **counts,
        },
        versions=dict(Counter(each.version for each in cutoffs)),
        bands=tuple(band for band, _, _ in bands(levels)),
        scores=scores,
        metrics=metrics_by_group(scores, tables[TIME], segments, list(ages)),
        alarms=alarms,
        observed=len(observed),
        least_observed=min(settings.alarms.min_steps, recent),
        drift=drift(panel, loaded.data, loaded.categories, cycles(panel, loaded.data, span)),
        pairs=pl.concat(pairs),
        shown=_freshest(written, cutoffs, named[:_SHOWN], levels, panel, span),
    )


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
