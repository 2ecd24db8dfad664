"""What fine-tuning gives."""

from dataclasses import dataclass

import polars as pl

from forecast.artifact import Artifact

TOO_SHORT = "too short"
NOT_SELECTED = "not selected"
UNCHANGED = "unchanged"


@dataclass(frozen=True, repr=False)
class FinetuneResult:
    """A fine-tuned model and why each series is in it or not."""

    artifact: Artifact
    decisions: pl.DataFrame
    """series_id, base_loss, tuned_loss, gain, posterior_gain, harm_probability, how it was changed, blend, reason,
    report_base_loss, report_tuned_loss.

    A row per series. `gain` is of the gate windows of the series, `posterior_gain` what is to be expected of it by the
    windows of all series, and `harm_probability` that of a gain below 0; the latter are null where the gate is strict.
    How: of kind `head` penalty and width (a null penalty: no shift, only another width), of the others learning_rate
    and steps.
    """
    summary: dict[str, float | int]
    shown: pl.DataFrame
    """Forecasts on the report windows, with the changes that are judged there, of the series that gain and lose most.

    series_id, timestamp, cutoff, step, model (`pretrained` and `fine_tuned`), and q50, or class and a column per class.
    """

    def __repr__(self) -> str:
        changed = len(self.artifact.bank.series_id) if self.artifact.bank else 0
        return f"FinetuneResult({changed:,} of {self.decisions.height:,} series with changes, {self.artifact!r})"
