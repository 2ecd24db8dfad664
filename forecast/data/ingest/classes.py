"""Targets that are classes: codes in the panel (0, 1, 2, ...), their names among the categories of the target.

Text and truth values are read as codes. Whole numbers stay what they are until a model is trained on them as classes.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import numpy as np
import polars as pl

from forecast.config import CLASS_HEADS
from forecast.data.ingest.rejects import Counts
from forecast.data.ingest.validate import MAX_CLASSES, TRUTH
from forecast.data.panel import FloatArray, Panel
from forecast.errors import DataError, listing
from forecast.names import REASON, SERIES_ID, TIMESTAMP, VALUE

Classes = tuple[str, ...] | None
"""The classes of a target, by their codes; None for numbers."""

# Unknown classes that have a reason of their own in the rejects.
_NAMED: Final = 20


def with_trained_classes(
    panel: Panel, categories: Mapping[str, tuple[str, ...]], target: str, head: str
) -> tuple[Panel, dict[str, tuple[str, ...]]]:
    """Return the panel as `model.head` takes it, and the categories with the classes that are there, sorted.

    Raises DataError if head and target do not fit together.
    """
    own = categories.get(target)
    rest = {name: values for name, values in categories.items() if name != target}
    if head not in CLASS_HEADS:
        if own not in (None, TRUTH):
            raise DataError(
                f"column {target!r} (data.columns.target) holds {len(own or ()):,} classes ({listing(own or ())}), and "
                f"model.head={head} forecasts numbers; set model.head=categorical, or make the column numbers"
            )
        return panel, rest
    values = _distinct(panel)
    names = _names(values, own)
    if own is None and (values % 1 != 0).any():
        raise DataError(
            f"model.head={head} is for classes, but column {target!r} (data.columns.target) holds fractional numbers: "
            f"{listing(f'{value:g}' for value in values[values % 1 != 0])}; set model.head=quantile, normal or "
            "student_t, or make the column text or whole numbers"
        )
    most = 2 if head == "bernoulli" else MAX_CLASSES
    if len(names) > most:
        other = "categorical" if 2 < len(names) <= MAX_CLASSES else "quantile, poisson or negative_binomial"
        raise DataError(
            f"model.head={head} is for {most:,} classes at most, but column {target!r} (data.columns.target) holds "
            f"{len(names):,}: {listing(names)}; set model.head={other}"
        )
    if len(names) < 2:
        raise DataError(
            f"model.head={head} is for two classes or more, but column {target!r} (data.columns.target) holds only "
            f"{listing(names)}"
        )
    classes = tuple(names) if own is None else tuple(sorted(names))
    return _coded(panel, values, [classes.index(name) for name in names]), {**rest, target: classes}


def with_classes(
    panel: Panel, rejects: pl.DataFrame, counts: Counts, own: Classes, classes: Classes
) -> tuple[Panel, pl.DataFrame, Counts]:
    """Return the panel with the codes of the classes a model was trained on; other classes are rejects.

    `own` are those of the panel as it is. Raises DataError for classes where the model forecasts numbers.
    """
    if classes is None and own not in (None, TRUTH):
        raise DataError(
            f"the target holds {len(own or ()):,} classes ({listing(own or ())}), and the model forecasts numbers; "
            "train one with model.head=categorical"
        )
    if classes is None or own == classes:
        return panel, rejects, counts
    values = _distinct(panel)
    names = _names(values, own)
    places = {name: code for code, name in enumerate(classes)}
    unknown = [number for number, name in enumerate(names) if name not in places]
    parts = [rejects]
    for place, number in enumerate(unknown):
        at = np.flatnonzero(panel.target == values[number])
        series = np.searchsorted(panel.offsets, at, side="right") - 1
        parts.append(
            pl.DataFrame(
                {
                    SERIES_ID: pl.Series(panel.series_id[series].tolist(), dtype=pl.String),
                    TIMESTAMP: panel.grid.timestamps(panel.start[series] + at - panel.offsets[series]),
                    REASON: [f"unknown class {names[number]!r}" if place < _NAMED else "unknown class"] * len(at),
                    VALUE: pl.repeat(None, len(at), dtype=pl.Float64, eager=True),
                }
            )
        )
    if unknown:
        lost = sum(part.height for part in parts[1:])
        rejects = pl.concat(parts).sort(rejects.columns)
        counts = replace(
            counts,
            rows_kept=counts.rows_kept - lost,
            rows_rejected=counts.rows_rejected + lost,
            steps_filled=counts.steps_filled + lost,
        )
    return _coded(panel, values, [places.get(name, np.nan) for name in names]), rejects, counts


def _distinct(panel: Panel) -> FloatArray:
    """Return the distinct targets, sorted."""
    found = [np.unique(shard.target[~np.isnan(shard.target)]) for shard in panel.shards()]
    return np.unique(np.concatenate(found))


def _names(values: FloatArray, own: Classes) -> list[str]:
    """Return the names of values of the target: those of codes, or whole numbers as they are written."""
    if own is not None:
        return [own[int(value)] for value in values]
    return [f"{value:.0f}" if value % 1 == 0 else f"{value:g}" for value in values.tolist()]


def _coded(panel: Panel, values: FloatArray, codes: list[float] | list[int]) -> Panel:
    """Return the panel with codes in place of values."""
    if np.array_equal(values, codes):
        return panel
    there = ~np.isnan(panel.target)
    target = panel.target.astype(np.float32)
    target[there] = np.array(codes, dtype=np.float32)[np.searchsorted(values, target[there])]
    return replace(panel, target=target)
