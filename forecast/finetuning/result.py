"""The result of a fine-tuning, and reasons of series that are not judged."""

from dataclasses import dataclass

import polars as pl

from forecast.artifact import Artifact

TOO_SHORT = "too short"
NOT_SELECTED = "not selected"
UNCHANGED = "unchanged"


@dataclass(frozen=True, repr=False)
class FinetuneResult:
    """A fine-tuned model, and the decision on each series."""

    artifact: Artifact
    decisions: pl.DataFrame
    """series_id, base_loss, tuned_loss, gain, posterior_gain, harm_probability, parameters of the change, blend,
    reason, report_base_loss, report_tuned_loss.

    A row per series. `gain` is measured on the gate windows of the series, `posterior_gain` is its expectation given
    the windows of all series, and `harm_probability` the probability of a gain below 0; the latter two are null with a
    strict gate. Parameters of the change: penalty and width with kind `head` (a null penalty: no shift, only another
    width), learning_rate and steps with all others.
    """
    summary: dict[str, float | int]
    shown: pl.DataFrame
    """Forecasts on the report windows of the series with the best and the worst uplift, without and with changes.

    series_id, timestamp, cutoff, step, model (`pretrained` and `fine_tuned`), and q50, or class and a column per class.
    """

    def __repr__(self) -> str:
        changed = len(self.artifact.bank.series_id) if self.artifact.bank else 0
        return f"FinetuneResult({changed:,} of {self.decisions.height:,} series with changes, {self.artifact!r})"
