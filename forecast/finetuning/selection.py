"""Which series are fine-tuned: those that are named, that a condition holds for, or that are forecast worst."""

import numpy as np
import numpy.typing as npt
import polars as pl

from forecast.artifact import Artifact
from forecast.config import FinetuneSettings
from forecast.data.panel import Panel, as_names
from forecast.errors import ConfigError, listing
from forecast.segments import static_frame


def selected(artifact: Artifact, panel: Panel, settings: FinetuneSettings) -> npt.NDArray[np.bool_]:
    """Return which series `finetune.series` and `finetune.where` name, [S]; all without them.

    Raises ConfigError for series that are not there, a condition that can't be read, and if no series is left.
    """
    ids = panel.series_id.tolist()
    found = np.ones(panel.n_series, dtype=bool)
    if settings.series is not None:
        if unknown := sorted(set(settings.series) - set(ids)):
            raise ConfigError(
                f"finetune.series: {len(unknown):,} of {len(set(settings.series)):,} are not in the table: "
                f"{listing(unknown)}; its {panel.n_series:,} series are {listing(ids)}"
            )
        found &= np.isin(panel.series_id, as_names(settings.series))
    if settings.where is not None:
        found &= _where(static_frame(artifact, panel), settings.where)
    if not found.any():
        given = [f"finetune.{name}" for name in ("series", "where") if getattr(settings, name) is not None]
        raise ConfigError(
            f"{' and '.join(given)}: none of {panel.n_series:,} series is meant; change the condition, or leave it out"
        )
    return found


def worst(losses: npt.NDArray[np.floating], limit: float) -> npt.NDArray[np.bool_]:
    """Return which of S series have the largest losses, [S]: a share of them, or how many; at least one.

    The first ones of equals.
    """
    count = max(1, round(limit * len(losses))) if limit < 1 else int(limit)
    found = np.zeros(len(losses), dtype=bool)
    found[np.argsort(-losses, kind="stable")[:count]] = True
    return found


def _where(frame: pl.DataFrame, condition: str) -> npt.NDArray[np.bool_]:
    try:
        found = frame.select(pl.sql_expr(condition).alias("found"))["found"]
    except pl.exceptions.PolarsError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"finetune.where: {condition!r} can't be used ({reason}); the columns are {listing(frame.columns, 20)}"
        ) from None
    if found.dtype != pl.Boolean or len(found) != len(frame):
        raise ConfigError(
            f"finetune.where: {condition!r} is no condition on each series; compare columns with values, as in "
            f"\"{frame.columns[-1]} = 'x'\""
        )
    return found.fill_null(value=False).to_numpy()
