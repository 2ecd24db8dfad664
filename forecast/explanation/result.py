"""What an explanation gives: its columns and values."""

from dataclasses import dataclass
from typing import Final

import polars as pl

from forecast.errors import listing
from forecast.names import CUTOFF, MEAN, STEP

INPUT, KIND, LAG, STEPS, ATTRIBUTION = "input", "kind", "lag", "steps", "attribution"
MAGNITUDE, CATEGORY = "magnitude", "category"
CALENDAR: Final = "calendar"


@dataclass(frozen=True, repr=False)
class Explanation:
    """How much each input of one forecast has moved it."""

    series_id: str
    method: str
    output: str
    """What is explained: a quantile's column, or `mean`."""
    forecast: float
    baseline: float | None
    """What is forecast from the baseline; forecast = baseline + attributions + error. None for occlusion."""
    error: float | None
    """What the integral leaves over, by its finite number of points."""
    frame: pl.DataFrame
    """series_id, cutoff, step (a number, or `mean`), input, kind, lag, steps, timestamp, attribution, value, category.

    `lag` 0 is the cutoff, 1 the step before it, -1 the first of the horizon; null for static covariates, and where all
    steps of an input are taken together. `steps` go back in time from `lag`. `value` of numbers, `category` of text.
    """
    summary: pl.DataFrame
    """input, kind, attribution (the sum over its steps), magnitude (of their absolute values); the largest first."""
    attention: pl.DataFrame | None
    """Weights of each step of the encoder (`predict.attention`), of a model that has them."""

    def __repr__(self) -> str:
        return f"Explanation({self.line})"

    @property
    def line(self) -> str:
        """What to tell about it."""
        (cutoff,), (step,) = self.frame[CUTOFF].unique(), self.frame[STEP].unique()
        of = "over all steps" if step == MEAN else f"at step {step}"
        parts = listing(f"{name} {moved:+.4g}" for name, moved in self.summary[INPUT, ATTRIBUTION].head(5).iter_rows())
        from_where = "" if self.baseline is None else f" = {self.baseline:.4g} without its inputs"
        rest = "" if self.error is None else f", error of the integral {self.error:+.2g}"
        return f"{self.series_id} from {cutoff}, {self.output} {of} {self.forecast:.4g}{from_where}; {parts}{rest}"
