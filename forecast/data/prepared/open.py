"""A prepared panel opened, with settings that may differ from those it was prepared with."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl

from forecast.config import AUTO, NOTATION, DataConfig
from forecast.data.availability import reported
from forecast.data.ingest import validate
from forecast.data.ingest.covariates import with_calendar
from forecast.data.ingest.extent import common_end, observed_steps
from forecast.data.ingest.load import warn_extent
from forecast.data.ingest.loaded import Loaded, recode, used_categories
from forecast.data.ingest.rejects import LATE, NO_TARGET, check_rejects
from forecast.data.panel import Panel, concatenated, is_among
from forecast.data.prepared.remote import open_remote_panel
from forecast.data.prepared.storage import open_panel
from forecast.errors import ConfigError, DataError
from forecast.names import REASON, SERIES_ID, TARGET, TIMESTAMP, VALUE

_LOG = logging.getLogger(__name__)

# Settings that determine the buffers: a verb can't change them.
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
    "available",
    "weight",
)


def open_prepared(
    folder: Path | str,
    data: DataConfig,
    horizon: int,
    categories: validate.Categories | None = None,
    *,
    in_memory: bool = True,
) -> Loaded:
    """Return the panel that `prepare` wrote, memory-mapped, for forecasts of up to `horizon` steps.

    A panel at an s3:// address is read into memory, or, without `in_memory`, by the ranges in use: see `RangeArray`.
    Calendar, holidays and season, which are not in the buffers, follow `data`; `categories` are those of a trained
    model, if there is one. Raises ConfigError for settings that contradict the panel, DataError if it is damaged or was
    prepared for a shorter horizon.
    """
    if "://" not in str(folder):
        return resolve_panel(folder, open_panel(Path(folder)), data, horizon, categories)
    return resolve_panel(folder, open_remote_panel(str(folder), in_memory=in_memory), data, horizon, categories)


def resolve_panel(
    folder: Path | str, stored: Loaded, data: DataConfig, horizon: int, categories: validate.Categories | None = None
) -> Loaded:
    """Return a stored panel as `open_prepared` does."""
    if categories is not None and data.weight is not None and stored.data.weight is None:
        _LOG.warning("data.weight: %s has no weights; nothing is weighted, which changes no forecast", folder)
        data = data.model_copy(update={"weight": None})
    _check_same(folder, data, stored.data)
    panel = stored.panel
    if not len(panel.known) and not len(panel.available):
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
    named_columns = {role: name for role, name in data.columns.model_dump().items() if name != AUTO}
    fixed["columns"] = stored.data.columns.model_copy(update=named_columns)
    data = data.model_copy(update={**fixed, "season_length": data.season_length or stored.data.season_length})
    loaded = replace(stored, panel=panel, data=data)
    if data.until is not None:
        loaded = _truncate_until(loaded, panel.grid.floor(data.until))
    loaded = _reject_late_steps(loaded)
    if categories is None and loaded.panel.n_series < panel.n_series:
        categories = used_categories(loaded.categories, data, [loaded.panel])
    if categories is not None:
        loaded = recode(loaded, categories)
    if loaded.counts.rows_rejected > stored.counts.rows_rejected:  # Classes that training did not see, or late rows.
        check_rejects(loaded.rejects, loaded.counts, data, panel.grid)
    warn_extent(loaded)
    panel, data = with_calendar(loaded.panel, data, loaded.counts)
    return replace(loaded, panel=panel, data=data)


def _check_same(folder: Path | str, data: DataConfig, prepared: DataConfig) -> None:
    """Raise ConfigError for settings that contradict those of the buffers."""
    wrong = []
    for name in _FIXED:
        setting, prepared_setting = getattr(data, name), getattr(prepared, name)
        if setting != DataConfig.model_fields[name].default and setting != prepared_setting:
            wrong.append(f"data.{name}: {folder} was prepared with {prepared_setting!r}, not {setting!r}")
    if wrong:
        raise ConfigError("\n".join([*wrong, "leave these settings out, or prepare the panel again"]))


def _truncate_until(loaded: Loaded, last: int) -> Loaded:
    """Return the panel as of grid index `last`; known covariates are kept."""
    panel, n_hidden = _truncate(loaded.panel, last)
    if not panel.n_series:
        raise DataError(f"no series has begun by data.until={loaded.data.until}")
    names = loaded.panel.series_id[~is_among(loaded.panel.series_id, panel.series_id)].tolist()
    new_rejects = pl.DataFrame(
        {SERIES_ID: names, REASON: [NO_TARGET] * len(names)}, schema={SERIES_ID: pl.String, REASON: pl.String}
    )
    counts = replace(
        loaded.counts,
        rows_kept=loaded.counts.rows_kept - n_hidden,
        rows_after_until=loaded.counts.rows_after_until + n_hidden,
        steps_filled=int(np.isnan(panel.target).sum()),
        series_kept=panel.n_series,
        series_rejected=loaded.counts.series_rejected + len(names),
    )
    rejects = pl.concat([loaded.rejects, new_rejects], how="diagonal").sort(loaded.rejects.columns)
    return replace(loaded, panel=panel, counts=counts, rejects=rejects, stored_digest=None)


def _reject_late_steps(loaded: Loaded) -> Loaded:
    """Return the panel without the steps beyond the end on which its series agree: they become rejects."""
    panel = loaded.panel
    last = panel.start + panel.lengths - 1
    end = common_end(panel.start, last, observed_steps(panel), loaded.data.end_share)
    beyond = np.flatnonzero(last > end)
    if not len(beyond):
        return loaded
    later_panel = panel.take(beyond)
    late = later_panel.frame().filter(pl.Series(reported(later_panel)))
    late = late.filter(panel.grid.index(late[TIMESTAMP]) > end)
    shorter, n_late = _truncate(panel, end)
    names = panel.series_id[~is_among(panel.series_id, shorter.series_id)].tolist()
    rows = late.select(SERIES_ID, TIMESTAMP, pl.lit(LATE).alias(REASON), pl.col(TARGET).cast(pl.Float64).alias(VALUE))
    new_rejects = pl.DataFrame(
        {SERIES_ID: names, REASON: [NO_TARGET] * len(names)}, schema_overrides={SERIES_ID: pl.String}
    )
    counts = replace(
        loaded.counts,
        rows_kept=loaded.counts.rows_kept - n_late,
        rows_rejected=loaded.counts.rows_rejected + n_late,
        steps_filled=int(np.isnan(shorter.target).sum()),
        series_kept=shorter.n_series,
        series_rejected=loaded.counts.series_rejected + len(names),
    )
    rejects = pl.concat([loaded.rejects, rows, new_rejects], how="diagonal_relaxed").sort(loaded.rejects.columns)
    return replace(loaded, panel=shorter, counts=counts, rejects=rejects, stored_digest=None)


def _truncate(panel: Panel, last: int) -> tuple[Panel, int]:
    """Return a copy of the panel up to grid index `last`, and the number of later targets and unavailable steps.

    A series ends with its last target or unavailable step there; known covariates are kept; series without a target
    are left out.
    """
    panels, n_hidden = [], 0
    for shard in panel.shards():
        index = np.arange(len(shard.target)) - np.repeat(shard.offsets[:-1] - shard.start, shard.lengths)
        rows = reported(shard)
        visible = rows & (index <= last)
        n_hidden += int((rows & ~visible).sum())
        final = np.maximum.reduceat(np.where(visible, index, shard.start.repeat(shard.lengths) - 1), shard.offsets[:-1])
        lengths = final - shard.start + 1
        remaining = np.flatnonzero(lengths > 0)
        panels.append(shard.cut(remaining, np.zeros_like(remaining), lengths[remaining]))
    return concatenated(panels), n_hidden
