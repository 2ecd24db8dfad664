"""Segments of the series of a panel, and the static covariates that name them."""

import polars as pl

from forecast.artifact import Artifact
from forecast.data.panel import Panel
from forecast.names import SERIES_ID


def static_frame(artifact: Artifact, panel: Panel) -> pl.DataFrame:
    """Return series_id and the static covariates, a row per series; null where missing or never seen in training."""
    names = artifact.data.static_covariates
    coded = [name for name in names if name in artifact.categories]
    numbers = [name for name in names if name not in artifact.categories]
    columns = {
        **{
            name: pl.Series((None, *artifact.categories[name]), dtype=pl.String).gather(codes)
            for name, codes in zip(coded, panel.static_categories.T, strict=True)
        },
        **{
            name: pl.Series(values).fill_nan(None) for name, values in zip(numbers, panel.static_numbers.T, strict=True)
        },
    }
    return pl.DataFrame({SERIES_ID: panel.series_id.tolist(), **{name: columns[name] for name in names}})
