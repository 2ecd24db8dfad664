"""Coverage and loss of forecasts before and after calibration."""

from collections.abc import Sequence

import numpy as np
import polars as pl

from forecast.artifact import Artifact
from forecast.calibration.windows import AFTER, BEFORE, Array, Window, pinball
from forecast.data.panel import Panel
from forecast.names import MODEL


def summary_of(
    windows: Sequence[tuple[Window, Array]], quantile_coverage: pl.DataFrame, levels: Sequence[float]
) -> dict[str, float]:
    """Return error_before and _after, the mean coverage error, and pinball_before and _after, the mean loss."""
    summary = {}
    for (name,), part in quantile_coverage.group_by(MODEL, maintain_order=True):
        summary[f"error_{name}"] = float((part["coverage"] - part["level"]).abs().mean())  # type: ignore[arg-type]
        losses = [
            pinball(window.actual, after if name == AFTER else window.quantiles, np.array(levels))
            for window, after in windows
        ]
        summary[f"pinball_{name}"] = float(np.concatenate(losses).mean())
    return summary


def coverage_of(
    windows: Sequence[tuple[Window, Array]], levels: Sequence[float], panel: Panel, artifact: Artifact
) -> pl.DataFrame:
    """Return the table `CalibrationResult.coverage`: coverage and width of each central interval, by segment."""
    pairs = [(k, len(levels) - 1 - k) for k in range(len(levels) // 2) if abs(levels[k] + levels[-1 - k] - 1) < 1e-9]
    parts = []
    for window, shifted in windows:
        observed = np.isfinite(window.actual) & np.isfinite(window.quantiles).all(-1)
        row, step = np.nonzero(observed)
        actual = window.actual[observed]
        for low, high in pairs:
            values: dict[str, object] = {"series": window.series[row], "step": step + 1}
            for name, quantiles in ((BEFORE, window.quantiles), (AFTER, shifted)):
                lower, upper = quantiles[..., low][observed], quantiles[..., high][observed]
                values[f"coverage_{name}"] = (actual >= lower) & (actual <= upper)
                values[f"width_{name}"] = (upper - lower).astype(np.float64)
            level = round(levels[high] - levels[low], 9)
            parts.append(pl.DataFrame(values).with_columns(level=pl.lit(level)))
    if not parts:
        return pl.DataFrame(schema=_COVERAGE)
    frame = pl.concat(parts)
    groups = [
        frame.with_columns(by=pl.lit("all"), value=pl.lit("")),
        frame.with_columns(by=pl.lit("step"), value=pl.col("step")),
    ]
    for name, codes in _segments(panel, artifact).items():
        groups.append(frame.with_columns(by=pl.lit(name), value=codes.gather(frame["series"])))
    means = [
        group.with_columns(pl.col("value").cast(pl.String))
        .group_by("by", "value", "level", maintain_order=True)
        .agg(pl.len().cast(pl.Int64).alias("n"), pl.col("^(coverage|width)_.*$").mean())
        for group in groups
    ]
    return pl.concat(means).select(list(_COVERAGE))


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
