"""Segments of the series of a panel: by static covariates, length, volume and intermittency."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import polars as pl

from forecast.artifact import Artifact
from forecast.data.panel import Panel
from forecast.data.profiling.profile import profile
from forecast.names import SERIES_ID


def static_frame(artifact: Artifact, panel: Panel) -> pl.DataFrame:
    """Return series_id and the static covariates, a row per series; null if missing or unknown from training."""
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


SEGMENTS: Final = ("length", "volume", "intermittency")
"""Segments besides static covariates, all computed up to the cutoff.

length and volume are thirds of the series, by number of steps and by the mean of |y|; intermittency is `demand` of
`profile`, the classes of Syntetos, Boylan & Croston (2005).
"""
_THIRDS: Final = ("low", "middle", "high")


def segments_of(artifact: Artifact, panel: Panel, cutoff: int, names: Sequence[str]) -> pl.DataFrame:
    """Return series_id and a column per segment in `names` with the group of each series, as text."""
    columns: dict[str, Any] = {SERIES_ID: panel.series_id.tolist()}
    static = artifact.data.static_covariates
    coded = [name for name in static if name in artifact.categories]
    profiled = [name for name in names if name not in static]
    if profiled:
        profiles = profile(
            panel.between(int(panel.start.min()), cutoff), artifact.network.shape.season_length, artifact.classes
        )
        if artifact.classes is None:
            size = _volumes(panel.between(int(panel.start.min()), cutoff))
            profiles = profiles.with_columns(volume=size).rename({"demand": "intermittency"})
        joined = pl.DataFrame(columns, schema={SERIES_ID: pl.String}).join(profiles, on=SERIES_ID, how="left")
    for name in names:
        if name in coded:
            values = ("not seen in training", *artifact.categories[name])
            columns[name] = [values[code] for code in panel.static_categories[:, coded.index(name)].tolist()]
        elif name in static:
            number = [covariate for covariate in static if covariate not in coded].index(name)
            columns[name] = _thirds(panel.static_numbers[:, number].astype(np.float64), "missing")
        elif name == "intermittency":
            columns[name] = joined[name].fill_null("no demand").to_list()
        else:
            columns[name] = _thirds(joined[name].cast(pl.Float64).fill_null(np.nan).to_numpy(), "no history")
    return pl.DataFrame(columns, schema_overrides=dict.fromkeys(columns, pl.String))


def _volumes(panel: Panel) -> np.ndarray:
    """Return the mean of |y| of each series, [S]."""
    observed = np.isfinite(panel.target)
    sums = np.add.reduceat(np.where(observed, np.abs(panel.target), 0.0).astype(np.float64), panel.offsets[:-1])
    means: np.ndarray = sums / np.add.reduceat(observed, panel.offsets[:-1], dtype=np.int64)
    return means


def _thirds(values: np.ndarray, missing: str) -> list[str]:
    """Return the third in which each value lies, with its bounds, as text; equal values are in the same third."""
    present = np.isfinite(values)
    names = np.full(len(values), missing, dtype=object)
    distinct, position, count = np.unique(values[present], return_inverse=True, return_counts=True)
    middle = np.cumsum(count) - count / 2  # The middle rank of equal values.
    third = (len(_THIRDS) * middle / max(present.sum(), 1)).astype(int)
    for number, name in enumerate(_THIRDS):
        inside = distinct[third == number]
        if len(inside):
            names[np.flatnonzero(present)[third[position] == number]] = f"{name}: {inside[0]:.6g} to {inside[-1]:.6g}"
    return [str(name) for name in names]
