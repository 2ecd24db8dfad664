"""Weights of steps and series (data.weight): what an error costs, in the loss, in gates and in metrics."""

import logging
from collections.abc import Sequence

import numpy as np
import polars as pl

from forecast.config import DataConfig
from forecast.data.ingest import validate
from forecast.data.panel import FloatArray, Panel
from forecast.data.sources.open import Tables
from forecast.errors import DataError, listing
from forecast.names import SERIES_ID

_LOG = logging.getLogger(__name__)


def has_static_weight(tables: Tables, data: DataConfig) -> bool:
    """Return whether data.weight is a column of the table of static covariates, and not of the rows."""
    return (
        tables.static is not None
        and data.weight in validate.schema_of(tables.static)
        and data.weight not in validate.schema_of(tables.rows)
    )


def without_missing_weight(tables: Tables, data: DataConfig) -> DataConfig:
    """Return the settings of a trained model without data.weight where no table has it: forecasts need no weights."""
    if data.weight is None or data.weight in validate.schema_of(tables.rows) or has_static_weight(tables, data):
        return data
    _LOG.warning("data.weight: no column %r in the table; nothing is weighted, which changes no forecast", data.weight)
    return data.model_copy(update={"weight": None})


def static_weights(tables: Tables, data: DataConfig, names: pl.Series) -> FloatArray:
    """Return the weight of each series in the table of static covariates, [S], NaN where there is none.

    Raises DataError for weights that are negative or infinite, or differ within a series.
    """
    assert tables.static is not None
    table = validate.read(tables.static, validate.columns_of(data, "series_id", "weight"), {}).drop_nulls()
    table = table.filter(pl.col(validate.WEIGHT).is_not_nan()).unique()
    wrong = table.filter((pl.col(validate.WEIGHT) < 0) | pl.col(validate.WEIGHT).is_infinite()).sort(SERIES_ID)
    if wrong.height:
        examples = listing(f"{name} ({value:g})" for name, value in wrong.iter_rows())
        raise DataError(
            f"data.weight={data.weight} is negative or not finite in {wrong.height:,} of {table.height:,} series: "
            f"{examples}; give numbers from 0 on"
        )
    several = table.filter(pl.col(SERIES_ID).is_duplicated())[SERIES_ID].unique().sort()
    if len(several):
        raise DataError(
            f"data.weight={data.weight} has more than one value in {len(several):,} series: {listing(several)}; "
            "give one each, or a weight per step in the rows"
        )
    weights = names.to_frame(SERIES_ID).join(table, on=SERIES_ID, how="left", maintain_order="left")
    return weights[validate.WEIGHT].fill_null(np.nan).to_numpy().astype(np.float32)


def warn_of_missing(panel: Panel, data: DataConfig) -> None:
    """Log the observed targets without a weight."""
    observed = ~np.isnan(panel.target)
    n_missing = int((observed & np.isnan(panel.weight[0])).sum()) if len(panel.weight) else 0
    if n_missing:
        _LOG.warning(
            "data.weight=%s is missing in %s of %s rows with a target, which count 0; give 0 if that is meant",
            data.weight,
            f"{n_missing:,}",
            f"{int(observed.sum()):,}",
        )


def check_weights(panels: Sequence[Panel], data: DataConfig) -> None:
    """Raise DataError if the weights of all observed targets are 0."""
    if data.weight is None or any(_total(panel) > 0 for panel in panels):
        return
    raise DataError(
        f"data.weight={data.weight} is 0 or missing in all rows with a target, so nothing counts; give numbers of "
        "which some are above 0, or leave it out"
    )


def _total(panel: Panel) -> float:
    """Return the sum of the weights of observed targets."""
    return float(np.nansum(panel.weight[:, ~np.isnan(panel.target)], dtype=np.float64))
