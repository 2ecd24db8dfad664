"""Coverage and loss before and after."""

from collections.abc import Sequence

import numpy as np
import polars as pl

from forecast.artifact import Artifact
from forecast.calibration.windows import AFTER, BEFORE, Array, Window, pinball
from forecast.data.panel import Panel
from forecast.names import MODEL


def summary_of(made: Sequence[tuple[Window, Array]], below: pl.DataFrame, levels: Sequence[float]) -> dict[str, float]:
    """Return the error of the coverage and the loss, before and after."""
    found = {}
    for (name,), part in below.group_by(MODEL, maintain_order=True):
        found[f"error_{name}"] = float((part["coverage"] - part["level"]).abs().mean())  # type: ignore[arg-type]
        losses = [
            pinball(window.actual, after if name == AFTER else window.stated, np.array(levels))
            for window, after in made
        ]
        found[f"pinball_{name}"] = float(np.concatenate(losses).mean())
    return found


def coverage_of(
    made: Sequence[tuple[Window, Array]], levels: Sequence[float], panel: Panel, artifact: Artifact
) -> pl.DataFrame:
    """Return the coverage of levels and intervals, by segment."""
    pairs = [(k, len(levels) - 1 - k) for k in range(len(levels) // 2) if abs(levels[k] + levels[-1 - k] - 1) < 1e-9]
    each = []
    for window, shifted in made:
        known = np.isfinite(window.actual) & np.isfinite(window.stated).all(-1)
        row, step = np.nonzero(known)
        actual = window.actual[known]
        for low, high in pairs:
            values: dict[str, object] = {"series": window.series[row], "step": step + 1}
            for name, stated in ((BEFORE, window.stated), (AFTER, shifted)):
                lower, upper = stated[..., low][known], stated[..., high][known]
                values[f"coverage_{name}"] = (actual >= lower) & (actual <= upper)
                values[f"width_{name}"] = (upper - lower).astype(np.float64)
            level = round(levels[high] - levels[low], 9)
            each.append(pl.DataFrame(values).with_columns(level=pl.lit(level)))
    if not each:
        return pl.DataFrame(schema=_COVERAGE)
    frame = pl.concat(each)
    groups = [
        frame.with_columns(by=pl.lit("all"), value=pl.lit("")),
        frame.with_columns(by=pl.lit("step"), value=pl.col("step")),
    ]
    for name, codes in _segments(panel, artifact).items():
        groups.append(frame.with_columns(by=pl.lit(name), value=codes.gather(frame["series"])))
    found = [
        group.with_columns(pl.col("value").cast(pl.String))
        .group_by("by", "value", "level", maintain_order=True)
        .agg(pl.len().cast(pl.Int64).alias("n"), pl.col("^(coverage|width)_.*$").mean())
        for group in groups
    ]
    return pl.concat(found).select(list(_COVERAGE))


def _segments(panel: Panel, artifact: Artifact) -> dict[str, pl.Series]:
    """Return the values of each categorical static covariate, by series."""
    names = [name for name in artifact.data.static_covariates if name in artifact.categories]
    return {
        name: pl.Series(["", *artifact.categories[name]]).gather(panel.static_categories[:, k])
        for k, name in enumerate(names)
    }


_COVERAGE = {
    "by": pl.String,
    "value": pl.String,
    "level": pl.Float64,
    "n": pl.Int64,
    "coverage_before": pl.Float64,
    "coverage_after": pl.Float64,
    "width_before": pl.Float64,
    "width_after": pl.Float64,
}
