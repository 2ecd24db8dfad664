"""A panel as read from its source: settings, categories, rejects and counts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import polars as pl

from forecast.config import DataConfig
from forecast.data.ingest import validate
from forecast.data.ingest.categories import with_codes
from forecast.data.ingest.classes import with_classes
from forecast.data.ingest.rejects import Counts
from forecast.data.panel import Panel
from forecast.data.sources.open import Tables
from forecast.errors import DataError, listing


@dataclass(frozen=True, repr=False)
class Loaded:
    """A panel with its resolved settings, categories, rejects and counts."""

    panel: Panel
    data: DataConfig
    """The settings, with frequency, season length, time zone and holidays filled in."""
    categories: dict[str, tuple[str, ...]]
    """Values of each categorical covariate: code = position + 1, 0 for any other value. Classes of the target, if it
    is one of classes: code = position."""
    rejects: pl.DataFrame
    """series_id, timestamp, reason, value: a row for each bad row, and for each series without an observed target."""
    counts: Counts
    stored_digest: str | None = None
    """The digest of the panel, if it was computed before."""

    def __repr__(self) -> str:
        return f"Loaded({self.panel!r}, {self.rejects.height:,} rejects)"

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Classes of the target, by their codes; None for numbers."""
        return self.categories.get(self.data.columns.target)

    @cached_property
    def digest(self) -> str:
        """A hash of the panel's content."""
        return self.stored_digest or self.panel.digest()


def with_unread(loaded: Loaded, tables: Tables) -> Loaded:
    """Return the panel with the unreadable lines of its source added to the rejects."""
    if tables.unread is None:
        return loaded
    unread = tables.unread
    n = unread.rejects.height
    counts = loaded.counts + Counts(
        rows_in=n,
        rows_rejected=n,
        series_in=unread.n_series,
        series_rejected=unread.n_series,
        lines_in=unread.n_lines,
        lines_rejected=n,
    )
    rejects = pl.concat([loaded.rejects, unread.rejects], how="diagonal").sort(loaded.rejects.columns)
    return replace(loaded, rejects=rejects, counts=counts)


def recode_classes(loaded: Loaded, categories: validate.Categories) -> Loaded:
    """Return the panel with the codes of the classes in `categories`, those of training; others are rejects."""
    target = loaded.data.columns.target
    panel_classes, classes = (names_by_column.get(target) for names_by_column in (loaded.categories, categories))
    if panel_classes == classes:
        return loaded
    panel, rejects, counts = with_classes(loaded.panel, loaded.rejects, loaded.counts, panel_classes, classes)
    covariate_categories = {name: values for name, values in loaded.categories.items() if name != target}
    new_categories = covariate_categories if classes is None else {**covariate_categories, target: classes}
    return replace(loaded, panel=panel, rejects=rejects, counts=counts, categories=new_categories, stored_digest=None)


def used_categories(
    categories: validate.Categories, data: DataConfig, panels: Sequence[Panel]
) -> dict[str, tuple[str, ...]]:
    """Return the categories without values of static covariates that no series has: they can't be learnt."""
    result = dict(categories)
    names = [name for name in data.static_covariates if name in categories]
    for column, name in enumerate(names):
        codes = np.unique(np.concatenate([panel.static_categories[:, column] for panel in panels]))
        result[name] = tuple(categories[name][code - 1] for code in codes if code)
    return result


def recode(loaded: Loaded, categories: validate.Categories) -> Loaded:
    """Return the panel with the codes that a model was trained with, 0 for values outside its categories."""
    loaded = recode_classes(loaded, categories)
    panel_categories, data, panel = loaded.categories, loaded.data, loaded.panel
    if dict(categories) == panel_categories:
        return loaded
    if categories.keys() != panel_categories.keys():
        raise DataError(
            f"text covariates of the panel are {listing(panel_categories) or 'none'}, of the model "
            f"{listing(categories) or 'none'}; prepare the panel from a table like the one of training"
        )
    panel = with_codes(panel, panel_categories, categories, data)
    return replace(loaded, panel=panel, categories=dict(categories), stored_digest=None)
