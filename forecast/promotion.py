"""Whether a challenger may become the champion."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt
import polars as pl

from forecast.errors import GateRefused
from forecast.metrics.significance import PairedTest, paired_test
from forecast.metrics.summaries import summarise
from forecast.names import (
    CHAMPION,
    CUTOFF,
    LOG_LOSS,
    MODEL,
    OBSERVED_UNTIL,
    SERIES_ID,
    SOURCE_FINE_TUNED,
    SOURCE_PRETRAINED,
    SOURCE_SEASONAL_NAIVE,
)

Array = npt.NDArray[np.floating]

# A metric that is worse by a smaller share is no reason to refuse a version that is better by more in the other.
_SAME = 1e-3


@dataclass(frozen=True)
class Verdict:
    """Challenger against incumbent on the same windows."""

    incumbent: str
    metrics: Mapping[str, tuple[float, float]]
    """Of challenger and incumbent: MASE and WQL, or log-loss where classes are forecast."""
    n_windows: int
    p_value: float
    """One-sided paired test over time (`significance.paired_test`): the challenger's first metric is not lower. NaN
    where the cutoffs are one block."""
    blocks: int
    """Stretches of time without a target in common that the windows are of."""

    def __str__(self) -> str:
        numbers = (f"{name} {mine:.4f} against {theirs:.4f}" for name, (mine, theirs) in self.metrics.items())
        time = f"{self.blocks:,} blocks of time, p = {self.p_value:.3g}" if self.blocks > 1 else "1 block of time"
        return f"{', '.join(numbers)} of {self.incumbent} on {self.n_windows:,} windows ({time})"


def judge(scores: pl.DataFrame, challenger: str, until: Sequence[datetime] | None = None) -> Verdict:
    """Return the verdict on a challenger, from the scores of its backtest, against the champion in it.

    `until` are the last targets of the cutoffs, the earliest first; without them no two cutoffs share a target. Where
    there is no champion, it is against seasonal naive, which must be beaten. A fine-tuned challenger must not be worse
    than its base either, if that is in the backtest. Raises GateRefused as `compare`.
    """
    if until is not None:
        cutoffs = scores[CUTOFF].unique().sort()
        scores = scores.join(pl.DataFrame({CUTOFF: cutoffs, OBSERVED_UNTIL: _like(until, cutoffs)}), on=CUTOFF)
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
    in the other one. OBSERVED_UNTIL, where it is in the scores, is the last observed target of each window; without it
    the targets of two cutoffs are taken for different ones.
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
    test = _test(ours.with_columns(score=each), theirs.with_columns(score=each))
    # A metric that is not defined on these windows (of constant or short series) says nothing about either.
    metrics = {label: (_number(mine[name]), _number(other[name])) for label, name in judged.items()}
    verdict = Verdict(incumbent, metrics, len(ours), *test)
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


def _like(moments: Sequence[datetime], column: pl.Series) -> pl.Series:
    """Return moments with the unit and time zone of a column."""
    if isinstance(column.dtype, pl.Datetime) and column.dtype.time_zone:
        return pl.Series([moment.astimezone(UTC) for moment in moments]).cast(column.dtype)
    return pl.Series(moments).cast(column.dtype)


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _test(ours: pl.DataFrame, theirs: pl.DataFrame) -> PairedTest:
    """Return the test over cutoffs of the differences in `score`, each by as many steps as it is the mean of."""
    keys, steps = [SERIES_ID, CUTOFF], pl.col("n_steps")
    until = [OBSERVED_UNTIL] if OBSERVED_UNTIL in ours.columns else []
    nights = (
        ours.select(*keys, "score", "n_steps", *until)
        .join(theirs.select(*keys, other="score"), on=keys)
        .drop_nulls()
        .group_by(CUTOFF)
        .agg(((pl.col("score") - pl.col("other")) * steps).sum().alias("total"), steps.sum(), pl.col(until).max())
        .sort(CUTOFF)
    )
    if until:
        # However short the horizon, a day is one block.
        least = pl.max_horizontal(OBSERVED_UNTIL, pl.col(CUTOFF).dt.offset_by("1d"))
        spans = nights.select(begin=pl.col(CUTOFF).dt.epoch("us"), end=least.dt.epoch("us"))
        begin, end = spans["begin"].to_numpy(), spans["end"].to_numpy()
    else:
        begin = np.arange(len(nights))
        end = begin + 1
    total, weight = (nights[name].to_numpy().astype(np.float64) for name in ("total", "n_steps"))
    return paired_test(total, weight, begin, end)
