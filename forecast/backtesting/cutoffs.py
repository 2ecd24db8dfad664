"""The cutoffs of a backtest."""

from collections.abc import Sequence
from datetime import datetime

import numpy as np

from forecast.config import BacktestSettings
from forecast.data.panel import Panel
from forecast.errors import ConfigError, DataError, listing

_N_WINDOWS = 4


def rolling_cutoffs(
    panel: Panel, *, horizon: int, settings: BacktestSettings, trained_until: int | None = None
) -> list[int]:
    """Return the grid indices of the cutoffs, oldest first, all with a full horizon in the panel.

    Raises ConfigError for given ones that are not on its grid or not within it; DataError if the panel is too short, or
    a model that has seen the steps up to `trained_until` knows what lies behind one of them.
    """
    last, what = panel.last_index - horizon, "backtest.cutoffs"
    if settings.cutoffs is not None:
        cutoffs = sorted(_indices(panel, settings.cutoffs))
        outside = [cutoff for cutoff in cutoffs if not int(panel.start.min()) <= cutoff <= last]
        if outside:
            begin, end = panel.grid.timestamps(np.array([panel.start.min(), last])).to_list()
            raise ConfigError(
                f"{what}: {len(outside)} of {len(cutoffs)} have no history or no full horizon of {horizon} steps in "
                f"the panel ({moments_of(panel, outside)}); give some from {begin} to {end}"
            )
    else:
        what = "backtest.n_windows"
        step, first = settings.step_size or horizon, int(panel.start.min())
        # As many as there are by default, of those that the model has not seen.
        unseen = (last - max(first, trained_until or first)) // step + 1
        count = settings.n_windows or min(_N_WINDOWS, max(unseen, 1))
        cutoffs = [last - k * step for k in reversed(range(count))]
        if cutoffs[0] < int(panel.start.min()):
            raise DataError(
                f"{count} windows {step} steps apart begin before the panel does; lower backtest.n_windows or "
                "backtest.step_size"
            )
    seen = [cutoff for cutoff in cutoffs if trained_until is not None and cutoff < trained_until]
    if seen:
        until = panel.grid.timestamps(np.array([trained_until]))[0]
        change = "lower backtest.n_windows" if settings.cutoffs is None else f"give later {what}"
        raise DataError(
            f"the model was trained on data up to {until}, and {len(seen)} of {len(cutoffs)} cutoffs lie before that "
            f"({moments_of(panel, seen)}): their scores would flatter it; {change}, or train with a larger "
            "fit.holdout_windows (backtest.refit=scratch trains anew at each cutoff)"
        )
    return cutoffs


def _indices(panel: Panel, moments: Sequence[datetime]) -> list[int]:
    found = [panel.grid.floor(moment) for moment in moments]
    own = panel.grid.clock(np.array(found))
    off = [moment for moment, clock in zip(moments, own.tolist(), strict=True) if panel.grid.clock_of(moment) != clock]
    if off:
        raise ConfigError(
            f"backtest.cutoffs: {len(off)} of {len(moments)} are no timestamps of the panel, which is on {panel.grid}: "
            f"{listing(map(str, off))}"
        )
    if len(set(found)) < len(found):
        raise ConfigError("backtest.cutoffs: must not repeat")
    return found


def moments_of(panel: Panel, cutoffs: Sequence[int]) -> str:
    """Return the timestamps of cutoffs, as text."""
    return listing(panel.grid.timestamps(np.array(cutoffs)).to_list())
