"""Scores of champion and shadow on the steps that both have forecast."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import polars as pl

from forecast.data.panel import Panel
from forecast.data.time.frequency import DAY
from forecast.metrics.scores import score_windows
from forecast.metrics.seasonal_naive import seasonal_naive_errors
from forecast.metrics.significance import count_blocks
from forecast.monitoring.cutoffs import Cutoff, Part, cutoffs_on_grid, no_part
from forecast.monitoring.forecasts import ScoredForecasts
from forecast.monitoring.labels import IN_SAMPLE
from forecast.names import CUTOFF, MODEL, OBSERVED_UNTIL, SERIES_ID


class Comparison(NamedTuple):
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


def comparison_of(
    shadow: ScoredForecasts | None, cutoffs: Sequence[Cutoff], compared_versions: tuple[str, str] | None, panel: Panel
) -> Comparison:
    """Return the cutoffs that both versions have forecast, neither of them in sample."""
    if shadow is None or compared_versions is None:
        return Comparison(shadow, {})
    shadow_cutoffs = cutoffs_on_grid(shadow, panel)
    shadow_by_index = {cutoff.position: cutoff for cutoff in shadow_cutoffs if cutoff.sample(panel) != IN_SAMPLE}
    pairs = {
        cutoff.position: (cutoff, shadow_by_index[cutoff.position])
        for cutoff in cutoffs
        if cutoff.position in shadow_by_index
        and compared_versions == (cutoff.version, shadow_by_index[cutoff.position].version)
    }
    return Comparison(shadow, pairs)


def compared_steps(champion: Sequence[Cutoff], shadow: Sequence[Cutoff], panel: Panel, end: int, blocks: int) -> int:
    """Return the number of steps after each cutoff on which champion and shadow are compared.

    These are all steps that both have forecast. They are fewer if those make up less than `blocks` stretches of time
    without a common target, up to grid index `end`: then the largest number that gives as many, as forecasts of the
    same steps are not independent evidence.
    """
    begin = np.array([cutoff.position for cutoff in champion if cutoff.position < end], dtype=np.int64)
    horizon = min((cutoff.horizon for cutoff in (*champion, *shadow)), default=1)
    frequency = panel.grid.frequency
    day = max(1, DAY // frequency.size) if frequency.sub_daily else 1

    def count(steps: int) -> int:
        return count_blocks(begin, np.maximum(np.minimum(begin + steps, end), begin + day))

    return next((steps for steps in range(horizon, 0, -1) if count(steps) >= blocks), horizon)


def window_scores(part: Part, levels: Sequence[float], season: int, steps: int, model: str) -> pl.DataFrame:
    """Return a row for each series with an observation among the first `steps`, in the form of `promotion.compare`."""
    actual = part.actual[:, :steps]
    scale, root = seasonal_naive_errors(part.panel, part.windows, season)
    rows = np.flatnonzero(np.isfinite(actual).any(1))
    scored = score_windows(
        actual[rows],
        part.quantiles[rows, :steps],
        levels=levels,
        scale=scale[rows],
        root_scale=root[rows],
        mean=None if part.mean is None else part.mean[rows, :steps],
    )
    series = part.windows.series[rows]
    cutoff = part.panel.start[series] + part.windows.cutoff[rows]
    last = steps - np.isfinite(actual[rows, ::-1]).argmax(1)
    return pl.DataFrame(
        {
            SERIES_ID: part.series_id.gather(rows),
            CUTOFF: part.panel.grid.timestamps(cutoff),
            OBSERVED_UNTIL: part.panel.grid.timestamps(cutoff + last),
            MODEL: pl.repeat(model, len(rows), dtype=pl.String, eager=True),
            **scored,
        }
    )


def no_pairs(panel: Panel) -> pl.DataFrame:
    """Return an empty table of `window_scores`."""
    return window_scores(no_part(panel, 1), (0.5,), 1, 1, "")
