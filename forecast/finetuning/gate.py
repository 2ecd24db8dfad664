"""The strict gate, which judges each series by its own mean loss alone; `pooled_gate` pools the evidence."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from forecast.config import FinetuneSettings
from forecast.promotion import Array


@dataclass(frozen=True)
class Choice:
    """Decision of the gate for each of S series."""

    strength: npt.NDArray[np.int64]
    """[S], index of the candidate that gains most on the gate windows, whether chosen or not."""
    gain: Array
    """[S], share of the base loss that this candidate saves there."""
    chosen: npt.NDArray[np.bool_]
    """[S], whether this candidate clears the gate."""
    posterior_gain: Array
    """[S], expected gain by the evidence of all series; NaN from a strict gate."""
    harm_probability: Array
    """[S], probability that the gain is below 0; NaN from a strict gate."""


def choose_strict(base: Array, candidates: Array, settings: FinetuneSettings) -> Choice:
    """Return, per series, the best candidate and whether it clears the gate.

    `base` is the loss on each gate window [S, windows], NaN where nothing was observed; `candidates` that of each
    strength [S, windows, strengths]. A candidate is accepted if it saves at least `min_gain` of the loss and is better
    on a share `min_windows_better` of the windows. Windows without an observation, or on which both losses are 0, do
    not count; half of the windows must have an observation.
    """
    observed = ~np.isnan(base)
    total = np.where(observed, base, 0.0).sum(1)
    losses = np.where(observed[..., None], np.where(np.isfinite(candidates), candidates, np.inf), 0.0)
    sums = losses.sum(1)
    best = sums.argmin(1)
    series = np.arange(len(base))
    best_losses = losses[series, :, best]
    with np.errstate(invalid="ignore", divide="ignore"):
        gain = np.where(total > 0, 1.0 - sums[series, best] / total, 0.0)
        is_counted = observed & ((base > 0) | (best_losses > 0))
        better = (is_counted & (best_losses < base)).sum(1) / is_counted.sum(1)
    enough = 2 * observed.sum(1) >= base.shape[1]
    chosen = (gain >= settings.min_gain) & (better >= settings.min_windows_better) & enough
    undefined = np.full(len(base), np.nan)
    return Choice(best, gain, chosen, undefined, undefined)
