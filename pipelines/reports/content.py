"""What is shown of a subject."""

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import polars as pl

    from forecast.artifact import Artifact
    from forecast.data.ingest.loaded import Loaded
from pipelines.reports.subject import SCORES

LOGGED: Final = 200_000


# ---- What is drawn ----


def few(forecasts: "pl.LazyFrame | None", most: int = LOGGED) -> "tuple[pl.DataFrame, int, pl.Series]":
    """Return about so many rows, of the latest cutoffs of series evenly picked; how many series, and the cutoffs."""
    import polars as pl

    from forecast.names import CUTOFF, SERIES_ID, SOURCE, STEP, TIMESTAMP
    from pipelines.jobs.run_logging import pick

    if forecasts is None:
        moment = pl.Datetime("us")
        times = {TIMESTAMP: moment, CUTOFF: moment}
        nothing = pl.DataFrame(schema={SERIES_ID: pl.String, **times, STEP: pl.Int32, SOURCE: pl.String})
        return nothing, 0, nothing[CUTOFF]
    ids, cutoffs = (
        forecasts.select(pl.col(name).unique().sort()).collect(engine="streaming").to_series()
        for name in (SERIES_ID, CUTOFF)
    )
    rows = forecasts.select(pl.len()).collect(engine="streaming").item()
    each = max(1, rows // max(1, len(ids) * len(cutoffs)))
    some = pick(ids.to_list(), max(1, most // each))
    latest = cutoffs.tail(max(1, most // (each * max(1, len(some)))))
    shown = pl.col(SERIES_ID).is_in(some) & pl.col(CUTOFF).is_in(latest.implode())
    return forecasts.filter(shown).collect(engine="streaming"), len(ids), cutoffs


def loss_history(forecasts: "pl.DataFrame", artifact: "Artifact | None", loaded: "Loaded | None") -> "pl.DataFrame":
    """Return the history of series near their forecasts: from the panel, else what a backtest has written of it."""
    import numpy as np
    import polars as pl

    from forecast.names import CUTOFF, SERIES_ID, TARGET, TIMESTAMP
    from forecast.reports.report import context

    if loaded is not None and artifact is not None and forecasts.height:
        first = loaded.panel.grid.floor(forecasts[CUTOFF].min()) - context(forecasts)  # type: ignore[arg-type]
        near = loaded.panel.between(first, loaded.panel.last_index)
        drawn = np.flatnonzero(np.isin(near.series_id, forecasts[SERIES_ID].unique().to_list()))
        return near.frame(drawn, artifact.classes)
    if TARGET in forecasts.columns:
        return forecasts.select(SERIES_ID, TIMESTAMP, TARGET).unique([SERIES_ID, TIMESTAMP])
    return forecasts.clear().select(SERIES_ID, TIMESTAMP).with_columns(pl.lit(None, pl.String).alias(TARGET))


def judged_tables(forecasts: "pl.DataFrame", artifact: "Artifact", loaded: "Loaded") -> "dict[str, pl.LazyFrame]":
    """Return steps, levels and scores of forecasts, as far as it is known what came."""
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
    actual = panel.between(min(places.values()), panel.last_index).frame(classes=artifact.classes)
    known = with_model(forecasts).join(actual.drop_nulls(TARGET), on=[SERIES_ID, TIMESTAMP])
    if known.is_empty():
        return {}
    found = {"steps": error_by_step(known).lazy(), "levels": coverage_by_level(known).lazy()}
    if artifact.classes is not None or season is None:
        return found
    scales = []
    for moment, place in places.items():
        at = pl.lit(moment).cast(moments.dtype).alias(CUTOFF)
        windows = windows_at(panel, place)
        ids = panel.series_id[windows.series].tolist()
        scale = seasonal_naive_errors(panel, windows, season)[0]
        scales.append(pl.DataFrame({SERIES_ID: ids, "scale": np.where(scale > 0, scale, np.nan)}).with_columns(at))
    error = (pl.col(TARGET) - pl.col(quantile_column(0.5))).abs().mean()
    scores = known.group_by(SERIES_ID, CUTOFF, MODEL).agg(error.alias("error"))
    scored = scores.join(pl.concat(scales), on=[SERIES_ID, CUTOFF]).with_columns(mase=pl.col("error") / pl.col("scale"))
    return {**found, SCORES: scored.lazy()}
