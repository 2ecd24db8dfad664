"""Content of a page: sampled forecasts, history, and scores."""

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import polars as pl

    from forecast.artifact import Artifact
    from forecast.data.ingest.loaded import Loaded
    from forecast.data.panel import IntArray, Panel
from pipelines.reports.subject import SCORES

LOGGED: Final = 200_000
"""Approximate number of rows of forecasts in the page that a job logs."""


# ---- Forecasts and history ----


def sample_rows(forecasts: "pl.LazyFrame | None", max_rows: int = LOGGED) -> "tuple[pl.DataFrame, int, pl.Series]":
    """Return about `max_rows` rows of the latest cutoffs of evenly sampled series; number of series; cutoffs."""
    import polars as pl

    from forecast.names import CUTOFF, SERIES_ID, SOURCE, STEP, TIMESTAMP
    from pipelines.jobs.run_logging import pick

    if forecasts is None:
        moment = pl.Datetime("us")
        times = {TIMESTAMP: moment, CUTOFF: moment}
        empty = pl.DataFrame(schema={SERIES_ID: pl.String, **times, STEP: pl.Int32, SOURCE: pl.String})
        return empty, 0, empty[CUTOFF]
    ids, cutoffs = (
        forecasts.select(pl.col(name).unique().sort()).collect(engine="streaming").to_series()
        for name in (SERIES_ID, CUTOFF)
    )
    rows = forecasts.select(pl.len()).collect(engine="streaming").item()
    rows_per_series = max(1, rows // max(1, len(ids) * len(cutoffs)))
    sampled = pick(ids.to_list(), max(1, max_rows // rows_per_series))
    latest = cutoffs.tail(max(1, max_rows // (rows_per_series * max(1, len(sampled)))))
    condition = pl.col(SERIES_ID).is_in(sampled) & pl.col(CUTOFF).is_in(latest.implode())
    return forecasts.filter(condition).collect(engine="streaming"), len(ids), cutoffs


def loss_history(forecasts: "pl.DataFrame", artifact: "Artifact | None", loaded: "Loaded | None") -> "pl.DataFrame":
    """Return the history of series near their forecasts, from the panel, else from the files of a backtest."""
    import polars as pl

    from forecast.names import CUTOFF, SERIES_ID, TARGET, TIMESTAMP
    from forecast.reports.report import context

    if loaded is not None and artifact is not None and forecasts.height:
        first = loaded.panel.grid.floor(forecasts[CUTOFF].min()) - context(forecasts)  # type: ignore[arg-type]
        return _since(loaded.panel, _numbers(loaded.panel, forecasts), first).frame(classes=artifact.classes)
    if TARGET in forecasts.columns:
        return forecasts.select(SERIES_ID, TIMESTAMP, TARGET).unique([SERIES_ID, TIMESTAMP])
    return forecasts.clear().select(SERIES_ID, TIMESTAMP).with_columns(pl.lit(None, pl.String).alias(TARGET))


def _numbers(panel: "Panel", forecasts: "pl.DataFrame") -> "IntArray":
    """Return the numbers of the series with forecasts, in the panel's order."""
    import numpy as np

    from forecast.data.panel import is_among
    from forecast.names import SERIES_ID

    return np.flatnonzero(is_among(panel.series_id, forecasts[SERIES_ID].unique()))


def _since(panel: "Panel", series: "IntArray", first: int) -> "Panel":
    """Return a copy of the observations of some series from grid index `first`; the rest of the panel is not copied."""
    import numpy as np

    begin = np.clip(first - panel.start[series], 0, panel.lengths[series])
    return panel.cut(series, begin, panel.lengths[series] - begin).between(first, panel.last_index)


def score_tables(forecasts: "pl.DataFrame", artifact: "Artifact", loaded: "Loaded") -> "dict[str, pl.LazyFrame]":
    """Return error by step, coverage by level, and scores of forecasts, where actuals are available."""
    import numpy as np
    import polars as pl

    from forecast.data.windows import windows_at
    from forecast.metrics.seasonal_naive import seasonal_naive_errors
    from forecast.metrics.summaries import coverage_by_level, error_by_step
    from forecast.names import CUTOFF, MODEL, SERIES_ID, TARGET, TIMESTAMP, quantile_column
    from forecast.reports.styles import with_model

    panel, season = loaded.panel, loaded.data.season_length
    moments = forecasts[CUTOFF].unique().sort()
    places = {moment: panel.grid.floor(moment) for moment in moments}
    series = _numbers(panel, forecasts)
    actual = _since(panel, series, min(places.values())).frame(classes=artifact.classes)
    observed = with_model(forecasts).join(actual.drop_nulls(TARGET), on=[SERIES_ID, TIMESTAMP])
    if observed.is_empty():
        return {}
    tables_of_scores = {"steps": error_by_step(observed).lazy(), "levels": coverage_by_level(observed).lazy()}
    if artifact.classes is not None or season is None:
        return tables_of_scores
    scales = []
    for moment, index in places.items():
        cutoff = pl.lit(moment).cast(moments.dtype).alias(CUTOFF)
        windows = windows_at(panel, index)
        windows = windows[np.flatnonzero(np.isin(windows.series, series))]
        ids = panel.series_id[windows.series].tolist()
        scale = seasonal_naive_errors(panel, windows, season)[0]
        scales.append(pl.DataFrame({SERIES_ID: ids, "scale": np.where(scale > 0, scale, np.nan)}).with_columns(cutoff))
    error = (pl.col(TARGET) - pl.col(quantile_column(0.5))).abs().mean()
    scores = observed.group_by(SERIES_ID, CUTOFF, MODEL).agg(error.alias("error"))
    scored = scores.join(pl.concat(scales), on=[SERIES_ID, CUTOFF]).with_columns(mase=pl.col("error") / pl.col("scale"))
    return {**tables_of_scores, SCORES: scored.lazy()}
