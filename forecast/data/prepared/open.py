"""A prepared panel opened, with settings that may differ from those it was prepared with."""

from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl

from forecast.config import AUTO, NOTATION, DataConfig
from forecast.data.ingest import validate
from forecast.data.ingest.covariates import with_calendar
from forecast.data.ingest.extent import common_end, observed_steps
from forecast.data.ingest.load import warn_extent
from forecast.data.ingest.loaded import Loaded, recoded, used_categories
from forecast.data.ingest.rejects import LATE, NO_TARGET, check_rejects
from forecast.data.panel import Panel, concatenated
from forecast.data.prepared.storage import open_panel
from forecast.errors import ConfigError, DataError
from forecast.names import REASON, SERIES_ID, TARGET, TIMESTAMP, VALUE

# What is in the buffers: a verb can't choose it anew.
_FIXED: Final = (
    "freq",
    "weekmask",
    "aggregate",
    "time_zone",
    "lags",
    "rolling",
    "past_covariates",
    "known_covariates",
    "static_covariates",
)


def open_prepared(
    folder: Path, data: DataConfig, horizon: int, categories: validate.Categories | None = None
) -> Loaded:
    """Return the panel that `prepare` wrote, memory-mapped, for forecasts of up to `horizon` steps.

    What is not in the buffers (calendar, holidays, season) is as `data` says; `categories` are those of training, when
    there was one. Raises ConfigError for settings other than those it was prepared with, DataError if it is damaged or
    was prepared for a shorter horizon.
    """
    return resolve_panel(folder, open_panel(folder), data, horizon, categories)


def resolve_panel(
    folder: Path, stored: Loaded, data: DataConfig, horizon: int, categories: validate.Categories | None = None
) -> Loaded:
    """Return a stored panel as `open_prepared` does."""
    _check_same(folder, data, stored.data)
    panel = stored.panel
    if not len(panel.known):
        panel = replace(
            panel, horizon=horizon, known=np.empty((0, len(panel.target) + panel.n_series * horizon), np.float32)
        )
    elif horizon > panel.horizon:
        raise DataError(
            f"{folder} holds known covariates for {panel.horizon} steps ahead, {horizon} are wanted; prepare it again "
            f"with window.horizon={horizon}"
        )
    fixed = {name: getattr(stored.data, name) for name in _FIXED}
    fixed |= {name: getattr(stored.data, name) for name in NOTATION if not getattr(data, name)}
    given = {role: name for role, name in data.columns.model_dump().items() if name != AUTO}
    fixed["columns"] = stored.data.columns.model_copy(update=given)
    data = data.model_copy(update={**fixed, "season_length": data.season_length or stored.data.season_length})
    found = replace(stored, panel=panel, data=data)
    if data.until is not None:
        found = _until(found, panel.grid.floor(data.until))
    found = _up_to_end(found)
    if categories is None and found.panel.n_series < panel.n_series:
        categories = used_categories(found.categories, data, [found.panel])
    if categories is not None:
        found = recoded(found, categories)
    if found.counts.rows_rejected > stored.counts.rows_rejected:  # Classes that training did not see, or late rows.
        check_rejects(found.rejects, found.counts, data, panel.grid)
    warn_extent(found)
    panel, data = with_calendar(found.panel, data, found.counts)
    return replace(found, panel=panel, data=data)


def _check_same(folder: Path, stated: DataConfig, prepared: DataConfig) -> None:
    """Raise ConfigError for stated settings that contradict what is in the buffers."""
    wrong = []
    for name in _FIXED:
        wanted, there = getattr(stated, name), getattr(prepared, name)
        if wanted != DataConfig.model_fields[name].default and wanted != there:
            wrong.append(f"data.{name}: {folder} was prepared with {there!r}, not {wanted!r}")
    if wrong:
        raise ConfigError("\n".join([*wrong, "leave these settings out, or prepare the panel again"]))


def _until(found: Loaded, last: int) -> Loaded:
    """Return what was known at grid index `last`; known covariates are kept."""
    panel, n_hidden = _cut(found.panel, last)
    if not panel.n_series:
        raise DataError(f"no series has begun by data.until={found.data.until}")
    gone = np.setdiff1d(found.panel.series_id, panel.series_id).tolist()
    lost = pl.DataFrame(
        {SERIES_ID: gone, REASON: [NO_TARGET] * len(gone)}, schema={SERIES_ID: pl.String, REASON: pl.String}
    )
    counts = replace(
        found.counts,
        rows_kept=found.counts.rows_kept - n_hidden,
        rows_after_until=found.counts.rows_after_until + n_hidden,
        steps_filled=int(np.isnan(panel.target).sum()),
        series_kept=panel.n_series,
        series_rejected=found.counts.series_rejected + len(gone),
    )
    rejects = pl.concat([found.rejects, lost], how="diagonal").sort(found.rejects.columns)
    return replace(found, panel=panel, counts=counts, rejects=rejects, stored_digest=None)


def _up_to_end(found: Loaded) -> Loaded:
    """Return the panel without the steps beyond the end on which its series agree: they are rejects."""
    panel = found.panel
    last = panel.start + panel.lengths - 1
    end = common_end(panel.start, last, observed_steps(panel), found.data.end_share)
    beyond = np.flatnonzero(last > end)
    if not len(beyond):
        return found
    late = panel.take(beyond).frame().drop_nulls(TARGET)
    late = late.filter(panel.grid.index(late[TIMESTAMP]) > end)
    shorter, n_late = _cut(panel, end)
    gone = np.setdiff1d(panel.series_id, shorter.series_id).tolist()
    rows = late.select(SERIES_ID, TIMESTAMP, pl.lit(LATE).alias(REASON), pl.col(TARGET).cast(pl.Float64).alias(VALUE))
    lost = pl.DataFrame({SERIES_ID: gone, REASON: [NO_TARGET] * len(gone)}, schema_overrides={SERIES_ID: pl.String})
    counts = replace(
        found.counts,
        rows_kept=found.counts.rows_kept - n_late,
        rows_rejected=found.counts.rows_rejected + n_late,
        steps_filled=int(np.isnan(shorter.target).sum()),
        series_kept=shorter.n_series,
        series_rejected=found.counts.series_rejected + len(gone),
    )
    rejects = pl.concat([found.rejects, rows, lost], how="diagonal_relaxed").sort(found.rejects.columns)
    return replace(found, panel=shorter, counts=counts, rejects=rejects, stored_digest=None)


def _cut(panel: Panel, last: int) -> tuple[Panel, int]:
    """Return the panel up to the last target at or before grid index `last`, and how many are later, as a copy.

    Known covariates are kept; series without a target are left out.
    """
    panels, n_hidden = [], 0
    for shard in panel.shards():
        index = np.arange(len(shard.target)) - np.repeat(shard.offsets[:-1] - shard.start, shard.lengths)
        observed = ~np.isnan(shard.target)
        seen = observed & (index <= last)
        n_hidden += int((observed & ~seen).sum())
        final = np.maximum.reduceat(np.where(seen, index, shard.start.repeat(shard.lengths) - 1), shard.offsets[:-1])
        lengths = final - shard.start + 1
        kept = lengths > 0
        inside = index <= np.repeat(final, shard.lengths)
        ahead = np.arange(shard.known.shape[1]) - np.repeat(
            shard.offsets[:-1] + shard.horizon * np.arange(shard.n_series), shard.lengths + shard.horizon
        )
        near = (ahead < np.repeat(lengths + shard.horizon, shard.lengths + shard.horizon)) & np.repeat(
            kept, shard.lengths + shard.horizon
        )
        panels.append(
            replace(
                shard,
                series_id=shard.series_id[kept],
                offsets=np.append(0, np.cumsum(lengths[kept])),
                start=shard.start[kept],
                target=shard.target[inside],
                past=shard.past[:, inside],
                known=shard.known[:, near],
                static_categories=shard.static_categories[kept],
                static_numbers=shard.static_numbers[kept],
            )
        )
    return concatenated(panels), n_hidden
