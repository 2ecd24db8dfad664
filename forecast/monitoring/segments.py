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


def segments_of(artifact: Artifact, loaded: Loaded, asked: Sequence[str] | None) -> pl.DataFrame:
    """Return series_id and a column of text for each segment."""
    static = list(artifact.data.static_covariates)
    chosen = list(asked) if asked is not None else static or list(BUILT_IN)
    if foreign := [name for name in chosen if name not in (*static, *BUILT_IN)]:
        raise ConfigError(
            f"monitor.segments: {len(foreign):,} of {len(chosen):,} are no static covariates of the model: "
            f"{listing(foreign)}; there are {listing([*static, *BUILT_IN], 20)}"
        )
    frame = static_frame(artifact, loaded.panel)
    if not {*chosen} <= {*static}:
        found = profile(loaded.panel, 1)
        own = found.select(SERIES_ID, "length", volume=pl.col("mean").abs(), demand=pl.col("demand").fill_null("none"))
        frame = frame.join(own.select(SERIES_ID, *(set(chosen) - set(static))), on=SERIES_ID, maintain_order="left")
    # Methods of a series take a name such as ^a.*$ for a pattern.
    values = {name: frame[name].alias("value") for name in chosen}
    columns = [
        (_thirds if found.dtype.is_numeric() else _frequent)(found).alias(name) for name, found in values.items()
    ]
    return pl.DataFrame([frame[SERIES_ID], *columns])


def _thirds(values: pl.Series) -> pl.Series:
    """Return in which third each number is, as text."""
    numbers = values.drop_nulls().to_numpy().astype(np.float64)
    if not len(numbers):
        return pl.repeat("missing", len(values), eager=True).alias(values.name)
    inner = np.quantile(numbers, [1 / 3, 2 / 3], method="lower").tolist()
    edges = sorted({*inner} - {numbers.max()})
    low, high = [numbers.min(), *edges], [*edges, numbers.max()]
    labels = [f"{k}: {first:.4g} to {last:.4g}" for k, (first, last) in enumerate(zip(low, high, strict=True), 1)]
    place = pl.Series(np.searchsorted(edges, values.fill_null(numbers.min()).to_numpy(), side="left"))
    named = pl.Series(labels).gather(place)
    return (
        named.to_frame("name")
        .select(pl.when(values.is_not_null()).then("name").otherwise(pl.lit("missing")))
        .to_series()
        .alias(values.name)
    )


def _frequent(values: pl.Series) -> pl.Series:
    """Return the values that most series have; the others are called so."""
    texts = values.fill_null("missing")
    kept = texts.value_counts(sort=True).head(_MOST_VALUES)[values.name]
    return (
        texts.to_frame()
        .select(
            pl.when(pl.col(values.name).is_in(kept.implode()))
            .then(values.name)
            .otherwise(pl.lit(_OTHERS))
            .alias(values.name)
        )
        .to_series()
    )
