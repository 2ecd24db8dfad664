"""Champion and shadow on the steps that both have forecast."""

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


def reach_of(champion: Sequence[Cutoff], shadow: Sequence[Cutoff], panel: Panel, end: int, blocks: int) -> int:
    """Return how many steps after each cutoff champion and shadow are compared on: as many as both have forecast.

    Fewer where these are of less than `blocks` stretches of time without a target in common up to grid index `end`: the
    most that give as many, for forecasts of the same steps are no evidence of their own.
    """
    begin = np.array([each.place for each in champion if each.place < end], dtype=np.int64)
    horizon = min((each.horizon for each in (*champion, *shadow)), default=1)
    frequency = panel.grid.frequency
    day = max(1, DAY // frequency.size) if frequency.sub_daily else 1

    def count(steps: int) -> int:
        return count_blocks(begin, np.maximum(np.minimum(begin + steps, end), begin + day))

    return next((steps for steps in range(horizon, 0, -1) if count(steps) >= blocks), horizon)


def window_scores(part: Part, levels: Sequence[float], season: int, steps: int, model: str) -> pl.DataFrame:
    """Return a row for each series with an observed step among the first `steps`, as `gate.compare` takes it."""
    actual = part.actual[:, :steps]
    scale, root = seasonal_naive_errors(part.panel, part.windows, season)
    seen = np.flatnonzero(np.isfinite(actual).any(1))
    scored = score_windows(
        actual[seen],
        part.quantiles[seen, :steps],
        levels=levels,
        scale=scale[seen],
        root_scale=root[seen],
        mean=None if part.mean is None else part.mean[seen, :steps],
    )
    series = part.windows.series[seen]
    cutoff = part.panel.start[series] + part.windows.cutoff[seen]
    last = steps - np.isfinite(actual[seen, ::-1]).argmax(1)
    return pl.DataFrame(
        {
            SERIES_ID: part.series_id.gather(seen),
            CUTOFF: part.panel.grid.timestamps(cutoff),
            OBSERVED_UNTIL: part.panel.grid.timestamps(cutoff + last),
            MODEL: pl.repeat(model, len(seen), dtype=pl.String, eager=True),
            **scored,
        }
    )


def no_pairs(panel: Panel) -> pl.DataFrame:
    """Return the table of `window_scores` without a row."""
    return window_scores(no_part(panel, 1), (0.5,), 1, 1, "")
