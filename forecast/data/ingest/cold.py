"""Series without any observation, of which only covariates are known: their place in a panel."""

from dataclasses import replace

import numpy as np
import polars as pl

from forecast.config import DataConfig
from forecast.data.ingest import validate
from forecast.data.ingest.covariates import encode_static
from forecast.data.ingest.load import as_long
from forecast.data.ingest.loaded import Loaded
from forecast.data.ingest.rejects import NO_TARGET
from forecast.data.panel import IntArray, Panel, as_names, concatenated
from forecast.data.read import text_columns
from forecast.data.sources.open import Tables, is_prepared, open_tables
from forecast.errors import ConfigError
from forecast.names import REASON, SERIES_ID


def with_cold_series(loaded: Loaded, source: DataConfig | Tables) -> Loaded:
    """Return the panel with the series of its tables that have no observation, as series of gaps.

    They are the series of the static table that the panel lacks, and those whose rows have no target. `source` has the
    tables, or their paths. Raises ConfigError for a prepared panel, which holds observed series only.
    """
    if isinstance(source, DataConfig) and source.path is not None and is_prepared(source.path):
        raise ConfigError(
            f"cold_start: {source.path} is a prepared panel, which holds series with observations only; give the "
            "table that it was prepared from"
        )
    no_target = loaded.rejects.filter(pl.col(REASON) == NO_TARGET)[SERIES_ID].unique()
    static = _static_values(loaded, source, no_target)
    names = static[SERIES_ID]
    if not len(names):
        return loaded
    codes, numbers = encode_static(static, loaded.data, loaded.categories)
    panel = concatenated([loaded.panel, _gaps(loaded.panel, names, codes, numbers)])
    rejected = pl.col(SERIES_ID).is_in(no_target.implode()) & (pl.col(REASON) == NO_TARGET)
    counts = replace(
        loaded.counts,
        series_in=loaded.counts.series_in + len(names) - len(no_target),
        series_kept=loaded.counts.series_kept + len(names),
        series_rejected=loaded.counts.series_rejected - len(no_target),
    )
    order = np.argsort(panel.series_id, kind="stable")
    rejects = loaded.rejects.filter(~rejected)
    return replace(loaded, panel=panel.take(order), rejects=rejects, counts=counts, stored_digest=None)


def _static_values(loaded: Loaded, source: DataConfig | Tables, no_target: pl.Series) -> pl.DataFrame:
    """Return the static covariates of the series without an observation, a row each, sorted."""
    data, categories = loaded.data, loaded.categories
    if not data.static_covariates:
        return no_target.sort().to_frame()
    if isinstance(source, DataConfig):
        source = open_tables(source, text_columns(data, categories))
    tables, _ = as_long(source, data, categories)
    columns = validate.columns_of(data, "series_id", "static_covariates")
    table = tables.rows if tables.static is None else tables.static
    values = validate.static_values(validate.read(table, columns, categories), data)
    values = values.filter(~pl.col(SERIES_ID).is_in(loaded.panel.series_id.tolist()))
    others = no_target.to_frame().join(values, on=SERIES_ID, how="anti")
    if tables.static is None:
        values = values.filter(pl.col(SERIES_ID).is_in(no_target.implode()))
    return pl.concat([values, others], how="diagonal").sort(SERIES_ID)


def _gaps(panel: Panel, names: pl.Series, codes: IntArray, numbers: np.ndarray) -> Panel:
    """Return a panel of series without an observation that span `panel`. No forecast reads their known covariates."""
    start, end = int(panel.start.min()), panel.last_index
    n, length = len(names), end - start + 1
    ahead = length + panel.horizon
    return replace(
        panel,
        series_id=as_names(names.to_list()),
        offsets=np.arange(n + 1) * length,
        start=np.full(n, start),
        target=np.full(n * length, np.nan, panel.target.dtype),
        past=np.full((len(panel.past), n * length), np.nan, np.float32),
        known=np.zeros((len(panel.known), n * ahead), np.float32),
        available=np.ones((len(panel.available), n * ahead), np.float32),
        static_categories=codes,
        static_numbers=numbers,
    )
