"""The cutoffs of a backtest."""

from collections.abc import Sequence
from datetime import datetime

import numpy as np

from forecast.config import BacktestSettings
from forecast.data.panel import Panel
from forecast.errors import ConfigError, DataError, listing

_DEFAULT_WINDOWS = 4


def rolling_cutoffs(
    panel: Panel, *, horizon: int, settings: BacktestSettings, trained_until: int | None = None
) -> list[int]:
    """Return the grid indices of the cutoffs, oldest first, all with a full horizon in the panel.

    Raises ConfigError for `backtest.cutoffs` that are not on the grid of the panel or outside of it; DataError if the
    panel is too short, or a cutoff lies before `trained_until`, the last step that the model has seen in training.
    """
    last, key = panel.last_index - horizon, "backtest.cutoffs"
    if settings.cutoffs is not None:
        cutoffs = sorted(_indices(panel, settings.cutoffs))
        outside = [cutoff for cutoff in cutoffs if not int(panel.start.min()) <= cutoff <= last]
        if outside:
            begin, end = panel.grid.timestamps(np.array([panel.start.min(), last])).to_list()
            raise ConfigError(
                f"{key}: {len(outside)} of {len(cutoffs)} have no history or no full horizon of {horizon} steps in "
                f"the panel ({moments_of(panel, outside)}); give some from {begin} to {end}"
            )
    else:
        key = "backtest.n_windows"
        step, first = settings.step_size or horizon, int(panel.start.min())
        # By default at most _DEFAULT_WINDOWS cutoffs, all after the training of the model.
        unseen = (last - max(first, trained_until or first)) // step + 1
        count = settings.n_windows or min(_DEFAULT_WINDOWS, max(unseen, 1))
        cutoffs = [last - k * step for k in reversed(range(count))]
        if cutoffs[0] < int(panel.start.min()):
            raise DataError(
                f"{count} windows {step} steps apart begin before the panel does; lower backtest.n_windows or "
                "backtest.step_size"
            )
    overlapping = [cutoff for cutoff in cutoffs if trained_until is not None and cutoff < trained_until]
    if overlapping:
        until = panel.grid.timestamps(np.array([trained_until]))[0]
        change = "lower backtest.n_windows" if settings.cutoffs is None else f"give later {key}"
        raise DataError(
            f"the model was trained on data up to {until}, and {len(overlapping)} of {len(cutoffs)} cutoffs lie before "
            f"that ({moments_of(panel, overlapping)}): their scores would flatter it; {change}, or train with a larger "
            "fit.holdout_windows (backtest.refit=scratch trains anew at each cutoff)"
        )
    return cutoffs


def _indices(panel: Panel, moments: Sequence[datetime]) -> list[int]:
    indices = [panel.grid.floor(moment) for moment in moments]
    clocks = panel.grid.clock(np.array(indices))
    off_grid = [
        moment for moment, clock in zip(moments, clocks.tolist(), strict=True) if panel.grid.clock_of(moment) != clock
    ]
    if off_grid:
        raise ConfigError(
            f"backtest.cutoffs: {len(off_grid)} of {len(moments)} are no timestamps of the panel, which is on "
            f"{panel.grid}: {listing(map(str, off_grid))}"
        )
    if len(set(indices)) < len(indices):
        raise ConfigError("backtest.cutoffs: must not repeat")
    return indices


def moments_of(panel: Panel, cutoffs: Sequence[int]) -> str:
    """Return the timestamps of cutoffs as text."""
    return listing(panel.grid.timestamps(np.array(cutoffs)).to_list())
