"""Scores of champion and shadow on the steps that both have forecast."""

from collections.abc import Sequence

import numpy as np
import polars as pl

from forecast.data.panel import Panel
from forecast.data.time.frequency import DAY
from forecast.metrics.scores import score_windows
from forecast.metrics.seasonal_naive import seasonal_naive_errors
from forecast.metrics.significance import count_blocks
from forecast.monitoring.cutoffs import Cutoff, Part, no_part
from forecast.names import CUTOFF, MODEL, OBSERVED_UNTIL, SERIES_ID


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
