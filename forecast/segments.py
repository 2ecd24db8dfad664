"""Segments of the series of a panel, and the static covariates that name them."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import polars as pl

from forecast.artifact import Artifact
from forecast.data.panel import Panel
from forecast.data.profiling.profile import profile
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


SEGMENTS: Final = ("length", "volume", "intermittency")
_THIRDS: Final = ("low", "middle", "high")


def segments_of(artifact: Artifact, panel: Panel, cutoff: int, names: Sequence[str]) -> pl.DataFrame:
    """Return series_id and the group of each series in each segment, as text."""
    columns: dict[str, Any] = {SERIES_ID: panel.series_id.tolist()}
    static = artifact.data.static_covariates
    coded = [name for name in static if name in artifact.categories]
    described = [name for name in names if name not in static]
    if described:
        found = profile(
            panel.between(int(panel.start.min()), cutoff), artifact.network.shape.season_length, artifact.classes
        )
        if artifact.classes is None:
            size = _volumes(panel.between(int(panel.start.min()), cutoff))
            found = found.with_columns(volume=size).rename({"demand": "intermittency"})
        known = pl.DataFrame(columns, schema={SERIES_ID: pl.String}).join(found, on=SERIES_ID, how="left")
    for name in names:
        if name in coded:
            values = ("not seen in training", *artifact.categories[name])
            columns[name] = [values[code] for code in panel.static_categories[:, coded.index(name)].tolist()]
        elif name in static:
            number = [other for other in static if other not in coded].index(name)
            columns[name] = _thirds(panel.static_numbers[:, number].astype(np.float64), "missing")
        elif name == "intermittency":
            columns[name] = known[name].fill_null("no demand").to_list()
        else:
            columns[name] = _thirds(known[name].cast(pl.Float64).fill_null(np.nan).to_numpy(), "no history")
    return pl.DataFrame(columns, schema_overrides=dict.fromkeys(columns, pl.String))


def _volumes(panel: Panel) -> np.ndarray:
    """Return the mean of |y| of each series, [S]."""
    there = np.isfinite(panel.target)
    sums = np.add.reduceat(np.where(there, np.abs(panel.target), 0.0).astype(np.float64), panel.offsets[:-1])
    means: np.ndarray = sums / np.add.reduceat(there, panel.offsets[:-1], dtype=np.int64)
    return means


def _thirds(values: np.ndarray, missing: str) -> list[str]:
    """Return in which third of the series each value is, with its bounds; equal values are in the same one."""
    there = np.isfinite(values)
    names = np.full(len(values), missing, dtype=object)
    found, position, count = np.unique(values[there], return_inverse=True, return_counts=True)
    middle = np.cumsum(count) - count / 2  # The middle rank of those that are equal.
    third = (len(_THIRDS) * middle / max(there.sum(), 1)).astype(int)
    for number, name in enumerate(_THIRDS):
        inside = found[third == number]
        if len(inside):
            names[np.flatnonzero(there)[third[position] == number]] = f"{name}: {inside[0]:.6g} to {inside[-1]:.6g}"
    return [str(name) for name in names]
