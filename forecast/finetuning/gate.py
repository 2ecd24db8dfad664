"""The gate by the mean loss of each series alone."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from forecast.config import FinetuneSettings
from forecast.promotion import Array


@dataclass(frozen=True)
class Choice:
    """What the gate decided for each of S series."""

    strength: npt.NDArray[np.int64]
    """[S], the candidate that gains most on the gate windows, chosen or not."""
    gain: Array
    """[S], share of the base loss that it saves there."""
    chosen: npt.NDArray[np.bool_]
    """[S], whether it clears the gate."""
    posterior_gain: Array
    """[S], the gain to be expected by the evidence of all series; NaN where the gate does not pool it."""
    harm_probability: Array
    """[S], that the gain is below 0, likewise."""


def choose(base: Array, candidates: Array, settings: FinetuneSettings) -> Choice:
    """Return, per series, the best candidate and whether it clears the gate.

    `base` is the loss on each gate window [S, windows], NaN where nothing was observed; `candidates` that of each
    strength [S, windows, strengths]. A series leaves the base if the best strength saves at least `min_gain` of the
    loss and is better on `min_windows_better` of the windows. Windows without an observation, and those on which
    neither has a loss, speak for neither; half of the windows must have an observation.
    """
    observed = ~np.isnan(base)
    total = np.where(observed, base, 0.0).sum(1)
    losses = np.where(observed[..., None], np.where(np.isfinite(candidates), candidates, np.inf), 0.0)
    sums = losses.sum(1)
    best = sums.argmin(1)
    rows = np.arange(len(base))
    mine = losses[rows, :, best]
    with np.errstate(invalid="ignore", divide="ignore"):
        gain = np.where(total > 0, 1.0 - sums[rows, best] / total, 0.0)
        judged = observed & ((base > 0) | (mine > 0))
        better = (judged & (mine < base)).sum(1) / judged.sum(1)
    enough = 2 * observed.sum(1) >= base.shape[1]
    chosen = (gain >= settings.min_gain) & (better >= settings.min_windows_better) & enough
    unknown = np.full(len(base), np.nan)
    return Choice(best, gain, chosen, unknown, unknown)
