"""The two gates: whether a series leaves the base, and whether a version becomes champion."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from forecast.config import FinetuneSettings
from forecast.errors import GateRefused
from forecast.metrics import LOG_LOSS, MODEL, summarise
from forecast.names import CHAMPION, CUTOFF, SERIES_ID, SOURCE_FINE_TUNED, SOURCE_PRETRAINED, SOURCE_SEASONAL_NAIVE

Array = npt.NDArray[np.floating]

# A metric that is worse by a smaller share is no reason to refuse a version that is better by more in the other.
_SAME = 1e-3


@dataclass(frozen=True)
class Choice:
    """What the gate decided for each of S series."""

    strength: npt.NDArray[np.int64]
    """[S], the candidate that gains most on the gate windows, chosen or not."""
    gain: Array
    """[S], share of the base loss that it saves there."""
    chosen: npt.NDArray[np.bool_]
    """[S], whether it clears the gate."""


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
    return Choice(best, gain, (gain >= settings.min_gain) & (better >= settings.min_windows_better) & enough)


@dataclass(frozen=True)
class Verdict:
    """Challenger against incumbent on the same windows."""

    incumbent: str
    metrics: Mapping[str, tuple[float, float]]
    """Of challenger and incumbent: MASE and WQL, or log-loss where classes are forecast."""
    n_windows: int
    p_value: float
    """One-sided paired test over series: the challenger's first metric is not lower (normal approximation); NaN for
    one."""

    def __str__(self) -> str:
        numbers = (f"{name} {mine:.4f} against {theirs:.4f}" for name, (mine, theirs) in self.metrics.items())
        return f"{', '.join(numbers)} of {self.incumbent} on {self.n_windows:,} windows (p = {self.p_value:.3g})"


def judge(scores: pl.DataFrame, challenger: str) -> Verdict:
    """Return the verdict on a challenger, from the scores of its backtest, against the champion in it.

    Where there is none, against seasonal naive, which it must beat. A fine-tuned challenger must not be worse than its
    base either, if that is in the backtest. Raises GateRefused as `compare`.
    """
    there = set(scores[MODEL].unique())
    if CHAMPION in there:
        verdict = compare(scores, challenger, CHAMPION)
    else:
        verdict = compare(scores, challenger, SOURCE_SEASONAL_NAIVE, must_beat=True)
    if challenger == SOURCE_FINE_TUNED and SOURCE_PRETRAINED in there:
        compare(scores, challenger, SOURCE_PRETRAINED)
    return verdict


def compare(scores: pl.DataFrame, challenger: str, incumbent: str, *, must_beat: bool = False) -> Verdict:
    """Return the verdict on the windows that both have a score for.

    Raises GateRefused if the challenger is worse than the incumbent in MASE or in WQL (in log-loss, of classes), or,
    where it `must_beat` it, better in none. Worse by less than a thousandth counts only if it is not better by more
    in the other one.
    """
    keys = [SERIES_ID, CUTOFF]
    ours, theirs = scores.filter(pl.col(MODEL) == challenger), scores.filter(pl.col(MODEL) == incumbent)
    ours, theirs = ours.join(theirs, on=keys, how="semi"), theirs.join(ours, on=keys, how="semi")
    if not len(ours):
        raise GateRefused(
            f"{challenger} and {incumbent} have no backtest window in common; run forecast backtest again"
        )
    if LOG_LOSS in scores.columns:
        judged, each = {"log-loss": LOG_LOSS}, pl.col(LOG_LOSS) / pl.col("n_steps")
    else:
        judged, each = {"MASE": "mase", "WQL": "wql"}, pl.col("mase").fill_nan(None)
    mine, other = (summarise(part).row(0, named=True) for part in (ours, theirs))
    per_window = [part.select(*keys, score=each) for part in (ours, theirs)]
    paired = (
        per_window[0]
        .join(per_window[1], on=keys, suffix="_other")
        .drop_nulls()
        .group_by(SERIES_ID)
        .agg((pl.col("score") - pl.col("score_other")).mean().alias("difference"))["difference"]
    )
    error = float(paired.std() or 0.0) / max(len(paired), 1) ** 0.5  # type: ignore[arg-type]
    mean = float(paired.mean() or 0.0)  # type: ignore[arg-type]
    p_value = _normal_below(mean / error) if error > 0 else float("nan")
    # A metric that is not defined on these windows (of constant or short series) says nothing about either.
    metrics = {label: (_number(mine[name]), _number(other[name])) for label, name in judged.items()}
    verdict = Verdict(incumbent, metrics, len(ours), p_value)
    gained = any(a < b * (1 - _SAME) for a, b in metrics.values())
    worse = [
        name
        for name, (a, b) in metrics.items()
        if not (a <= b * (1 + _SAME * gained) or (math.isnan(a) and math.isnan(b)))
    ]
    if worse:
        raise GateRefused(f"{challenger} is worse than {incumbent} in {' and '.join(worse)}: {verdict}")
    if must_beat and not any(a < b for a, b in metrics.values()):
        raise GateRefused(f"{challenger} does not beat {incumbent}: {verdict}")
    return verdict


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _normal_below(deviate: float) -> float:
    from statistics import NormalDist

    return NormalDist().cdf(deviate)
