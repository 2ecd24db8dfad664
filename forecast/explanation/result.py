"""The result of an explanation, and the names of its columns."""

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
    """Attributions of one forecast to its inputs."""

    series_id: str
    method: str
    output: str
    """The explained column: a quantile, or `mean`."""
    forecast: float
    baseline: float | None
    """The forecast of the baseline; forecast = baseline + attributions + error. None for occlusion."""
    error: float | None
    """Error of the integral, which has a finite number of points. None for occlusion."""
    frame: pl.DataFrame
    """series_id, cutoff, step (a number, or `mean`), input, kind, lag, steps, timestamp, attribution, value, category.

    `lag` 0 is the cutoff, 1 the step before it, -1 the first of the horizon; null for static covariates, and for inputs
    whose steps are occluded together. `steps` is the number of steps back in time from `lag`. Numbers have a `value`,
    text has a `category`.
    """
    summary: pl.DataFrame
    """input, kind, attribution (the sum over its steps), magnitude (of their absolute values); the largest first."""
    attention: pl.DataFrame | None
    """Attention weights of each encoder step (`prediction.attention`); None for a model without attention."""

    def __repr__(self) -> str:
        return f"Explanation({self.line})"

    @property
    def line(self) -> str:
        """The explanation in one line."""
        (cutoff,), (step,) = self.frame[CUTOFF].unique(), self.frame[STEP].unique()
        scope = "over all steps" if step == MEAN else f"at step {step}"
        parts = listing(
            f"{name} {attribution:+.4g}" for name, attribution in self.summary[INPUT, ATTRIBUTION].head(5).iter_rows()
        )
        baseline = "" if self.baseline is None else f" = {self.baseline:.4g} without its inputs"
        error = "" if self.error is None else f", error of the integral {self.error:+.2g}"
        return f"{self.series_id} from {cutoff}, {self.output} {scope} {self.forecast:.4g}{baseline}; {parts}{error}"
