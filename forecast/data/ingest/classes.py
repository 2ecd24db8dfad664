"""Targets that are classes: codes in the panel (0, 1, 2, ...), their names among the categories of the target.

Text and truth values are read as codes. Whole numbers stay numbers until a model is trained on them as classes.
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

# Unknown classes that the rejects name, each as a separate reason.
_MAX_NAMED: Final = 20


def with_trained_classes(
    panel: Panel, categories: Mapping[str, tuple[str, ...]], target: str, head: str
) -> tuple[Panel, dict[str, tuple[str, ...]]]:
    """Return the panel with the target that `model.head` needs, and the categories with the classes in it, sorted.

    Raises DataError if head and target do not fit together.
    """
    table_classes = categories.get(target)
    covariate_categories = {name: values for name, values in categories.items() if name != target}
    if head not in CLASS_HEADS:
        if table_classes not in (None, TRUTH):
            raise DataError(
                f"column {target!r} (data.columns.target) holds {len(table_classes or ()):,} classes "
                f"({listing(table_classes or ())}), and "
                f"model.head={head} forecasts numbers; set model.head=categorical, or make the column numbers"
            )
        return panel, covariate_categories
    values = _distinct(panel)
    names = _names(values, table_classes)
    if table_classes is None and (values % 1 != 0).any():
        raise DataError(
            f"model.head={head} is for classes, but column {target!r} (data.columns.target) holds fractional numbers: "
            f"{listing(f'{value:g}' for value in values[values % 1 != 0])}; set model.head=quantile, normal or "
            "student_t, or make the column text or whole numbers"
        )
    max_classes = 2 if head == "bernoulli" else MAX_CLASSES
    if len(names) > max_classes:
        suggestion = "categorical" if 2 < len(names) <= MAX_CLASSES else "quantile, poisson or negative_binomial"
        raise DataError(
            f"model.head={head} is for {max_classes:,} classes at most, but column {target!r} (data.columns.target) "
            f"holds {len(names):,}: {listing(names)}; set model.head={suggestion}"
        )
    if len(names) < 2:
        raise DataError(
            f"model.head={head} is for two classes or more, but column {target!r} (data.columns.target) holds only "
            f"{listing(names)}"
        )
    classes = tuple(names) if table_classes is None else tuple(sorted(names))
    return _coded(panel, values, [classes.index(name) for name in names]), {**covariate_categories, target: classes}


def with_classes(
    panel: Panel, rejects: pl.DataFrame, counts: Counts, panel_classes: Classes, classes: Classes
) -> tuple[Panel, pl.DataFrame, Counts]:
    """Return the panel with the codes of the classes a model was trained on; other classes are rejects.

    `panel_classes` are those of the codes in the panel. Raises DataError for classes where the model forecasts numbers.
    """
    if classes is None and panel_classes not in (None, TRUTH):
        raise DataError(
            f"the target holds {len(panel_classes or ()):,} classes ({listing(panel_classes or ())}), and the model "
            "forecasts numbers; train one with model.head=categorical"
        )
    if classes is None or panel_classes == classes:
        return panel, rejects, counts
    values = _distinct(panel)
    names = _names(values, panel_classes)
    codes = {name: code for code, name in enumerate(classes)}
    unknown = [number for number, name in enumerate(names) if name not in codes]
    parts = [rejects]
    for order, number in enumerate(unknown):
        entries = np.flatnonzero(panel.target == values[number])
        series = np.searchsorted(panel.offsets, entries, side="right") - 1
        parts.append(
            pl.DataFrame(
                {
                    SERIES_ID: pl.Series(panel.series_id[series].tolist(), dtype=pl.String),
                    TIMESTAMP: panel.grid.timestamps(panel.start[series] + entries - panel.offsets[series]),
                    REASON: [f"unknown class {names[number]!r}" if order < _MAX_NAMED else "unknown class"]
                    * len(entries),
                    VALUE: pl.repeat(None, len(entries), dtype=pl.Float64, eager=True),
                }
            )
        )
    if unknown:
        n_unknown = sum(part.height for part in parts[1:])
        rejects = pl.concat(parts).sort(rejects.columns)
        counts = replace(
            counts,
            rows_kept=counts.rows_kept - n_unknown,
            rows_rejected=counts.rows_rejected + n_unknown,
            steps_filled=counts.steps_filled + n_unknown,
        )
    return _coded(panel, values, [codes.get(name, np.nan) for name in names]), rejects, counts


def _distinct(panel: Panel) -> FloatArray:
    """Return the distinct targets, sorted."""
    values = [np.unique(shard.target[~np.isnan(shard.target)]) for shard in panel.shards()]
    return np.unique(np.concatenate(values))


def _names(values: FloatArray, classes: Classes) -> list[str]:
    """Return the class names of target values: those of the codes, or the numbers as text."""
    if classes is not None:
        return [classes[int(value)] for value in values]
    return [f"{value:.0f}" if value % 1 == 0 else f"{value:g}" for value in values.tolist()]


def _coded(panel: Panel, values: FloatArray, codes: list[float] | list[int]) -> Panel:
    """Return the panel with codes in place of values."""
    if np.array_equal(values, codes):
        return panel
    observed = ~np.isnan(panel.target)
    target = panel.target.astype(np.float32)
    target[observed] = np.array(codes, dtype=np.float32)[np.searchsorted(values, target[observed])]
    return replace(panel, target=target)
