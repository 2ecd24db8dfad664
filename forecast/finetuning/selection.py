"""Selection of series to fine-tune: by id, by a condition on static covariates, or by the largest losses."""

import numpy as np
import numpy.typing as npt
import polars as pl

from forecast.artifact import Artifact
from forecast.config import FinetuneSettings
from forecast.data.panel import Panel, is_among
from forecast.errors import ConfigError, listing
from forecast.segments import static_frame


def select_series(artifact: Artifact, panel: Panel, settings: FinetuneSettings) -> npt.NDArray[np.bool_]:
    """Return a mask of the series that `finetune.series` and `finetune.where` select, [S]; all without them.

    Raises ConfigError for unknown series, a condition that can't be read, and if no series is left.
    """
    ids = panel.series_id.tolist()
    selection = np.ones(panel.n_series, dtype=bool)
    if settings.series is not None:
        if unknown := sorted(set(settings.series) - set(ids)):
            raise ConfigError(
                f"finetune.series: {len(unknown):,} of {len(set(settings.series)):,} are not in the table: "
                f"{listing(unknown)}; its {panel.n_series:,} series are {listing(ids)}"
            )
        selection &= is_among(ids, settings.series)
    if settings.where is not None:
        selection &= _where(static_frame(artifact, panel), settings.where)
    if not selection.any():
        keys = [f"finetune.{name}" for name in ("series", "where") if getattr(settings, name) is not None]
        raise ConfigError(
            f"{' and '.join(keys)}: none of {panel.n_series:,} series is meant; change the condition, or leave it out"
        )
    return selection


def largest_losses(losses: npt.NDArray[np.floating], limit: float) -> npt.NDArray[np.bool_]:
    """Return a mask of the series with the largest losses, [S]; of equal losses the first.

    `limit` is a share of the series if below 1, else their number; at least one is selected.
    """
    count = max(1, round(limit * len(losses))) if limit < 1 else int(limit)
    is_worst = np.zeros(len(losses), dtype=bool)
    is_worst[np.argsort(-losses, kind="stable")[:count]] = True
    return is_worst


def _where(frame: pl.DataFrame, condition: str) -> npt.NDArray[np.bool_]:
    try:
        holds = frame.select(pl.sql_expr(condition).alias("found"))["found"]
    except pl.exceptions.PolarsError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"finetune.where: {condition!r} can't be used ({reason}); the columns are {listing(frame.columns, 20)}"
        ) from None
    if holds.dtype != pl.Boolean or len(holds) != len(frame):
        raise ConfigError(
            f"finetune.where: {condition!r} is no condition on each series; compare columns with values, as in "
            f"\"{frame.columns[-1]} = 'x'\""
        )
    return holds.fill_null(value=False).to_numpy()
