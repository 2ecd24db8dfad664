"""Sums of the scores of all cutoffs, a block of series at a time.

The sums of a block by day and age are reduced to its alarms, its coverage and sums by group before the next block is
read. So memory grows with the tables of the result, not with the number of cutoffs.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np
import polars as pl

from forecast.config import MonitorSettings
from forecast.data.panel import Panel
from forecast.data.time.frequency import BoolArray
from forecast.metrics.seasonal_naive import seasonal_naive_errors
from forecast.monitoring.alarms import alarms_of, worst_first
from forecast.monitoring.anomalies import LatestForecasts
from forecast.monitoring.coverage import CoverageSums
from forecast.monitoring.cutoffs import Cutoff, RowOutcomes, observed_parts
from forecast.monitoring.drift import Span
from forecast.monitoring.forecasts import Block, ScoredForecasts
from forecast.monitoring.labels import AGE, TIME
from forecast.monitoring.shadow import Comparison, no_pairs, window_scores
from forecast.monitoring.step_scores import (
    SUMS,
    TABLES,
    Evaluation,
    metrics_by_group,
    no_steps,
    score_steps,
    sums_by_group,
)
from forecast.monitoring.value_added import no_values, overridden_values, value_added
from forecast.names import CHAMPION, MODEL, SERIES_ID, SHADOW

_BLOCK_CELLS: Final = 1 << 22
"""Series of a block times steps of both windows."""


def blocks(panel: Panel, span: Span) -> Iterator[tuple[Block, Panel]]:
    """Yield blocks of series with their shards of the panel; the first and the last have the ids beyond the panel's."""
    size = max(1, _BLOCK_CELLS // (span.last - span.first + 1))
    for first in range(0, panel.n_series, size):
        end = min(first + size, panel.n_series)
        names = (panel.series_id[number] if 0 < number < panel.n_series else None for number in (first, end))
        yield Block(*names), panel.rows(first, end)


class Totals:
    """Totals over all cutoffs and blocks of series, and the tables of the result."""

    def __init__(
        self,
        panel: Panel,
        evaluation: Evaluation,
        comparison: Comparison,
        settings: MonitorSettings,
        segments: pl.DataFrame,
        backtest: pl.DataFrame | None,
    ) -> None:
        self.outcomes = RowOutcomes()
        self.observed: set[int] = set()
        """Grid indices of the recent window with an observation and a forecast, of any series."""
        self.n_series = 0
        """Series with a scored step."""
        self.coverage = CoverageSums()
        self._panel, self._evaluation, self._comparison = panel, evaluation, comparison
        self._settings, self._segments, self._backtest = settings, segments, backtest
        self._n_compared = comparison.steps(panel, evaluation.span.last, settings.rollback_blocks)
        self._latest = LatestForecasts(panel, evaluation.span, evaluation.levels)
        self._pairs, self._overridden = [no_pairs(panel)], [no_values()]
        self._time = _Sums(TIME, panel, evaluation)
        self._scores: list[pl.DataFrame] = []
        self._groups: list[dict[str, pl.DataFrame]] = []
        self._alarms: list[pl.DataFrame] = []

    @property
    def scores(self) -> pl.DataFrame:
        """The sums of each series by window, age and model."""
        return pl.concat(self._scores, rechunk=False)

    @property
    def alarms(self) -> pl.DataFrame:
        """Each series with its verdict (`alarms_of`)."""
        return worst_first(pl.concat(self._alarms))

    @property
    def metrics(self) -> pl.DataFrame:
        """The metrics by group (`metrics_by_group`)."""
        return metrics_by_group(self._groups, self._time.table, list(self._evaluation.ages))

    @property
    def anomalies(self) -> pl.DataFrame:
        """Recent observations with their verdicts (`LatestForecasts.verdicts`)."""
        return self._latest.verdicts(self._settings.anomaly_rate, self._evaluation.ages)

    @property
    def value_added(self) -> pl.DataFrame:
        """Errors of overrides beside those of the model (`value_added`)."""
        return value_added(pl.concat(self._overridden), self._segments)

    @property
    def pairs(self) -> pl.DataFrame:
        """Windows that champion and shadow have both forecast."""
        return pl.concat(self._pairs)

    def add(self, forecasts: ScoredForecasts, cutoffs: Sequence[Cutoff], block: Block, shard: Panel) -> None:
        """Add the forecasts of a block from all cutoffs; `shard` has its series."""
        series, days = (_Sums(name, self._panel, self._evaluation) for name in ("scores", "days"))
        for cutoff in cutoffs:
            self._add_cutoff(forecasts, cutoff, block, shard, (series, days, self._time))
        ages = pl.col(AGE).replace_strict(dict(enumerate(self._evaluation.ages)), return_dtype=pl.String)
        scores = series.table.sort(TABLES["scores"][0]).with_columns(ages)
        self._scores.append(scores)
        self._groups.append(sums_by_group(scores, self._segments.filter(block.contains())))
        self.n_series += scores[SERIES_ID].n_unique()
        self.coverage.add(days.table)
        span, backtest = self._evaluation.span, self._backtest
        backtest = None if backtest is None else backtest.filter(block.contains())
        self._alarms.append(alarms_of(days.table, self._settings.alarms, backtest, span.last - span.recent + 1))

    def _add_cutoff(
        self, forecasts: ScoredForecasts, cutoff: Cutoff, block: Block, shard: Panel, tables: "Sequence[_Sums]"
    ) -> None:
        """Add the forecasts of a cutoff; those that the shadow has forecast, too, are kept with those of the shadow."""
        paired = cutoff.position in self._comparison.pairs
        span, levels, season = self._evaluation.span, self._evaluation.levels, self._evaluation.season
        hidden: dict[str, BoolArray] = {}
        for part in observed_parts(forecasts, cutoff, shard, span, levels, self.outcomes, block):
            observed_steps = cutoff.position + 1 + np.flatnonzero(np.isfinite(part.actual).any(0))
            self.observed.update(observed_steps[observed_steps >= span.recent].tolist())
            scales = seasonal_naive_errors(part.panel, part.windows, season)
            if self._settings.anomaly_rate is not None:
                self._latest.add(part, cutoff, scales[0])
            steps = score_steps(part, cutoff, self._evaluation, scales)
            for table in tables:
                table.add(steps)
            self._overridden.append(overridden_values(part, cutoff, self._evaluation))
            if paired:
                hidden |= dict(zip(part.series_id, part.overridden, strict=True)) if part.overridden.any() else {}
                of_model = part.without(part.overridden)
                self._pairs.append(window_scores(of_model, levels, season, self._n_compared, CHAMPION))
        for table in tables:
            table.fold()
        counts = self.outcomes.counts
        due = counts["rows_scored"] + counts["rows_not_yet_observed"] + counts["rows_missing"]
        assert counts["rows"] == due, "a forecast was lost"
        if paired:
            self._add_shadow(self._comparison.pairs[cutoff.position][1], hidden, block, shard)

    def _add_shadow(self, cutoff: Cutoff, hidden: Mapping[str, BoolArray], block: Block, shard: Panel) -> None:
        """Add the scores of the shadow at a cutoff that both versions have forecast.

        `hidden` are the steps of the champion's forecasts that a person has overridden, [horizon], by series.
        """
        shadow = self._comparison.shadow
        assert shadow is not None
        span, levels, season = self._evaluation.span, self._evaluation.levels, self._evaluation.season
        for part in observed_parts(shadow, cutoff, shard, span, levels, RowOutcomes(), block):
            masks = np.zeros_like(part.actual, np.bool_)
            for row, name in enumerate(part.series_id.to_list() if hidden else []):
                if name in hidden:
                    mask = hidden[name][: masks.shape[1]]
                    masks[row, : len(mask)] = mask
            compared = part.without(masks)
            self._pairs.append(window_scores(compared, levels, season, self._n_compared, SHADOW))


class _Sums:
    """One of TABLES: sums over steps by its keys."""

    def __init__(self, name: str, panel: Panel, evaluation: Evaluation) -> None:
        self._keys, self._models = TABLES[name]
        self._added: list[pl.DataFrame] = []
        self.table = no_steps(panel, evaluation).group_by(self._keys).agg(SUMS.sum())

    def add(self, steps: pl.DataFrame) -> None:
        """Add rows of `score_steps`; `fold` puts them into the table."""
        self._added.append(steps.filter(pl.col(MODEL).is_in(self._models)).group_by(self._keys).agg(SUMS.sum()))

    def fold(self) -> None:
        """Put what was added into the table."""
        sums = pl.concat([self.table, *self._added])
        self.table, self._added = sums.group_by(self._keys, maintain_order=True).agg(SUMS.sum()), []
