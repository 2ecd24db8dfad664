"""A panel as it was read, with its rejects."""

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
    """A panel, and what reading it has settled and refused."""

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
    """The digest of the panel, if it is known."""

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


def with_unread(found: Loaded, tables: Tables) -> Loaded:
    """Return the panel with the lines of its source that could not be read among the rejects."""
    if tables.unread is None:
        return found
    unread = tables.unread
    n = unread.rejects.height
    counts = found.counts + Counts(
        rows_in=n,
        rows_rejected=n,
        series_in=unread.n_series,
        series_rejected=unread.n_series,
        lines_in=unread.n_lines,
        lines_rejected=n,
    )
    rejects = pl.concat([found.rejects, unread.rejects], how="diagonal").sort(found.rejects.columns)
    return replace(found, rejects=rejects, counts=counts)


def reclassed(found: Loaded, categories: validate.Categories) -> Loaded:
    """Return the panel with the codes of the classes in `categories`, those of training; others are rejects."""
    target = found.data.columns.target
    own, classes = (known.get(target) for known in (found.categories, categories))
    if own == classes:
        return found
    panel, rejects, counts = with_classes(found.panel, found.rejects, found.counts, own, classes)
    rest = {name: values for name, values in found.categories.items() if name != target}
    kept = rest if classes is None else {**rest, target: classes}
    return replace(found, panel=panel, rejects=rejects, counts=counts, categories=kept, stored_digest=None)


def used_categories(
    categories: validate.Categories, data: DataConfig, panels: Sequence[Panel]
) -> dict[str, tuple[str, ...]]:
    """Return the categories without those values of static covariates that no series has: they can't be learnt."""
    used = dict(categories)
    names = [name for name in data.static_covariates if name in categories]
    for column, name in enumerate(names):
        codes = np.unique(np.concatenate([panel.static_categories[:, column] for panel in panels]))
        used[name] = tuple(categories[name][code - 1] for code in codes if code)
    return used


def recoded(found: Loaded, categories: validate.Categories) -> Loaded:
    """Return the panel with the codes that a model was trained with, 0 for values that it has not seen."""
    found = reclassed(found, categories)
    own, data, panel = found.categories, found.data, found.panel
    if dict(categories) == own:
        return found
    if categories.keys() != own.keys():
        raise DataError(
            f"text covariates of the panel are {listing(own) or 'none'}, of the model {listing(categories) or 'none'}; "
            "prepare the panel from a table like the one of training"
        )
    panel = with_codes(panel, own, categories, data)
    return replace(found, panel=panel, categories=dict(categories), stored_digest=None)
