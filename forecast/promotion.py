"""The gate of promotion: comparison of a challenger with the champion on the scores of a backtest."""

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
    WEIGHT,
)

Array = npt.NDArray[np.floating]

# Relative tolerance: a metric that is worse by less does not refuse a version that is better by more in the other one.
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Verdict:
    """Comparison of challenger and incumbent on the same windows."""

    incumbent: str
    metrics: Mapping[str, tuple[float, float]]
    """Values of challenger and incumbent: MASE and WQL, or log-loss for classes."""
    n_windows: int
    p_value: float
    """Of the one-sided paired test over time (`significance.paired_test`) that the challenger's first metric is not
    lower. NaN if the cutoffs form a single block."""
    blocks: int
    """Number of periods of the windows that share no target."""

    def __str__(self) -> str:
        numbers = (f"{name} {value:.4f} against {reference:.4f}" for name, (value, reference) in self.metrics.items())
        time = f"{self.blocks:,} blocks of time, p = {self.p_value:.3g}" if self.blocks > 1 else "1 block of time"
        return f"{', '.join(numbers)} of {self.incumbent} on {self.n_windows:,} windows ({time})"


def judge(scores: pl.DataFrame, challenger: str, until: Sequence[datetime] | None = None) -> Verdict:
    """Return the verdict on a challenger against the champion, from the scores of a backtest with both.

    `until` are the last targets of the cutoffs, the earliest first; when None, no two cutoffs share a target. Without a
    champion, the challenger must beat seasonal naive. A fine-tuned challenger must also not be worse than its base, if
    that is in the backtest. Raises GateRefused as `compare`.
    """
    if until is not None:
        cutoffs = scores[CUTOFF].unique().sort()
        scores = scores.join(pl.DataFrame({CUTOFF: cutoffs, OBSERVED_UNTIL: _like(until, cutoffs)}), on=CUTOFF)
    models = set(scores[MODEL].unique())
    if CHAMPION in models:
        verdict = compare(scores, challenger, CHAMPION)
    else:
        verdict = compare(scores, challenger, SOURCE_SEASONAL_NAIVE, must_beat=True)
    if challenger == SOURCE_FINE_TUNED and SOURCE_PRETRAINED in models:
        compare(scores, challenger, SOURCE_PRETRAINED)
    return verdict


def compare(scores: pl.DataFrame, challenger: str, incumbent: str, *, must_beat: bool = False) -> Verdict:
    """Return the verdict on the windows for which both have a score.

    Raises GateRefused if the challenger is worse than the incumbent in MASE or in WQL (for classes, in log-loss), or,
    with `must_beat`, better in neither. Being worse by less than a thousandth counts only without being better by more
    in the other metric. With weights (data.weight), the weighted metrics decide. The column OBSERVED_UNTIL of the
    scores is the last observed target of each window; without it, cutoffs are assumed to share no targets.
    """
    keys = [SERIES_ID, CUTOFF]
    challenger_scores = scores.filter(pl.col(MODEL) == challenger)
    incumbent_scores = scores.filter(pl.col(MODEL) == incumbent).join(challenger_scores, on=keys, how="semi")
    challenger_scores = challenger_scores.join(incumbent_scores, on=keys, how="semi")
    if not len(challenger_scores):
        raise GateRefused(
            f"{challenger} and {incumbent} have no backtest window in common; run forecast backtest again"
        )
    if LOG_LOSS in scores.columns:
        columns, score = {"log-loss": LOG_LOSS}, pl.col(LOG_LOSS) / pl.col("n_steps")
    else:
        columns, score = {"MASE": "mase", "WQL": "wql"}, pl.col("mase").fill_nan(None)
    if WEIGHT in scores.columns:
        columns = {f"weighted {label}": f"w_{name}" for label, name in columns.items()}
    challenger_summary, incumbent_summary = (
        summarise(part).row(0, named=True) for part in (challenger_scores, incumbent_scores)
    )
    test = _test(challenger_scores.with_columns(score=score), incumbent_scores.with_columns(score=score))
    # A metric that is undefined on these windows (of constant or short series) is NaN for both.
    metrics = {
        label: (_number(challenger_summary[name]), _number(incumbent_summary[name])) for label, name in columns.items()
    }
    verdict = Verdict(incumbent, metrics, len(challenger_scores), *test)
    has_gain = any(a < b * (1 - _TOLERANCE) for a, b in metrics.values())
    worse = [
        name
        for name, (a, b) in metrics.items()
        if not (a <= b * (1 + _TOLERANCE * has_gain) or (math.isnan(a) and math.isnan(b)))
    ]
    if worse:
        raise GateRefused(f"{challenger} is worse than {incumbent} in {' and '.join(worse)}: {verdict}")
    if must_beat and not any(a < b for a, b in metrics.values()):
        raise GateRefused(f"{challenger} does not beat {incumbent}: {verdict}")
    return verdict


def _like(moments: Sequence[datetime], column: pl.Series) -> pl.Series:
    """Return timestamps with the unit and time zone of a column."""
    if isinstance(column.dtype, pl.Datetime) and column.dtype.time_zone:
        return pl.Series([moment.astimezone(UTC) for moment in moments]).cast(column.dtype)
    return pl.Series(moments).cast(column.dtype)


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _test(challenger: pl.DataFrame, incumbent: pl.DataFrame) -> PairedTest:
    """Return the test over cutoffs of the differences in `score`, weighted by its number of steps and its weight."""
    keys, steps = [SERIES_ID, CUTOFF], pl.col("n_steps")
    if WEIGHT in challenger.columns:
        challenger = challenger.with_columns(n_steps=steps * pl.col(WEIGHT))
    until = [OBSERVED_UNTIL] if OBSERVED_UNTIL in challenger.columns else []
    by_cutoff = (
        challenger.select(*keys, "score", "n_steps", *until)
        .join(incumbent.select(*keys, other="score"), on=keys)
        .drop_nulls()
        .group_by(CUTOFF)
        .agg(((pl.col("score") - pl.col("other")) * steps).sum().alias("total"), steps.sum(), pl.col(until).max())
        .sort(CUTOFF)
    )
    if until:
        # A block spans at least a day, even with a shorter horizon.
        block_end = pl.max_horizontal(OBSERVED_UNTIL, pl.col(CUTOFF).dt.offset_by("1d"))
        spans = by_cutoff.select(begin=pl.col(CUTOFF).dt.epoch("us"), end=block_end.dt.epoch("us"))
        begin, end = spans["begin"].to_numpy(), spans["end"].to_numpy()
    else:
        begin = np.arange(len(by_cutoff))
        end = begin + 1
    total, weight = (by_cutoff[name].to_numpy().astype(np.float64) for name in ("total", "n_steps"))
    return paired_test(total, weight, begin, end)
