"""Segments: series by static covariates, length, volume and kind of demand."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import polars as pl

from forecast.artifact import Artifact
from forecast.data.ingest.loaded import Loaded
from forecast.data.profiling.profile import profile
from forecast.errors import ConfigError, listing
from forecast.names import SERIES_ID
from forecast.segments import static_frame

BUILT_IN: Final = ("length", "volume", "demand")
"""Segments of any panel: thirds of the series by steps and by mean size, and kinds of demand (`data.profile`)."""
_MOST_VALUES: Final = 50
_OTHERS: Final = "others"


def segments_of(artifact: Artifact, loaded: Loaded, requested: Sequence[str] | None) -> pl.DataFrame:
    """Return series_id and a text column for each segment. Raises ConfigError for unknown segments."""
    static = list(artifact.data.static_covariates)
    names = list(requested) if requested is not None else static or list(BUILT_IN)
    if foreign := [name for name in names if name not in (*static, *BUILT_IN)]:
        raise ConfigError(
            f"monitor.segments: {len(foreign):,} of {len(names):,} are no static covariates of the model: "
            f"{listing(foreign)}; there are {listing([*static, *BUILT_IN], 20)}"
        )
    frame = static_frame(artifact, loaded.panel)
    if not {*names} <= {*static}:
        profiled = profile(loaded.panel, 1)
        features = profiled.select(
            SERIES_ID, "length", volume=pl.col("mean").abs(), demand=pl.col("demand").fill_null("none")
        )
        frame = frame.join(features.select(SERIES_ID, *(set(names) - set(static))), on=SERIES_ID, maintain_order="left")
    # Polars treats a column named like ^a.*$ as a pattern.
    values = {name: frame[name].alias("value") for name in names}
    columns = [
        (_thirds if column.dtype.is_numeric() else _frequent)(column).alias(name) for name, column in values.items()
    ]
    return pl.DataFrame([frame[SERIES_ID], *columns])


def _thirds(values: pl.Series) -> pl.Series:
    """Return the third of the distribution that each number is in, as text."""
    numbers = values.drop_nulls().to_numpy().astype(np.float64)
    if not len(numbers):
        return pl.repeat("missing", len(values), eager=True).alias(values.name)
    inner = np.quantile(numbers, [1 / 3, 2 / 3], method="lower").tolist()
    edges = sorted({*inner} - {numbers.max()})
    low, high = [numbers.min(), *edges], [*edges, numbers.max()]
    labels = [f"{k}: {first:.4g} to {last:.4g}" for k, (first, last) in enumerate(zip(low, high, strict=True), 1)]
    third = pl.Series(np.searchsorted(edges, values.fill_null(numbers.min()).to_numpy(), side="left"))
    names = pl.Series(labels).gather(third)
    return (
        names.to_frame("name")
        .select(pl.when(values.is_not_null()).then("name").otherwise(pl.lit("missing")))
        .to_series()
        .alias(values.name)
    )


def _frequent(values: pl.Series) -> pl.Series:
    """Return the most frequent values; all others become _OTHERS."""
    texts = values.fill_null("missing")
    frequent = texts.value_counts(sort=True).head(_MOST_VALUES)[values.name]
    return (
        texts.to_frame()
        .select(
            pl.when(pl.col(values.name).is_in(frequent.implode()))
            .then(values.name)
            .otherwise(pl.lit(_OTHERS))
            .alias(values.name)
        )
        .to_series()
    )
