"""Types and losses that the trials in closed form and by gradient share."""

from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from forecast.config import TuningSettings
from forecast.models.adapters.bank import AdapterBank
from forecast.models.adapters.stacked import Deltas
from forecast.models.heads.base import Head
from forecast.models.heads.categorical import CategoricalHead
from forecast.models.network.ensemble import Forecaster

# Shares of `blend` that are tried.
SHARES = (1.0, 0.5)

POOLED = "pooled"
LOSS, POINT_FORECAST, IS_CONSTANT, IS_DIVERGED = "loss", "told", "is_constant", "is_diverged"

Columns: TypeAlias = dict[str, Any]
"""Columns of a table with a row per series, as arrays."""
ExistingChanges: TypeAlias = tuple[AdapterBank, Tensor] | None
"""Existing changes: a bank, and the row of each series."""


class Fit(NamedTuple):
    """Fitted changes of a group of series."""

    changes: Deltas
    finite: np.ndarray
    """[G], whether the changes of a series are finite; `changes` omits all others."""
    point_forecast: np.ndarray
    """[G, report window, horizon, column], the median, or all class probabilities, on the report windows."""


def window_losses(head: Head, columns: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Return the mean weighted loss of each held-out window, [G, window]; NaN where nothing was observed."""
    error = head.column_errors(columns, target)
    total = weight.sum(-1)
    mean: Tensor = (error * weight).sum(-1) / total.clamp(min=1e-9)
    return mean.masked_fill(total == 0, torch.nan)


def point_forecast(head: Head, columns: Tensor) -> np.ndarray:
    """Return the median of forecast columns, [..., 1]; for classes all probabilities, [..., class]."""
    point = columns if isinstance(head, CategoricalHead) else columns[..., head.median, None]
    return point.detach().cpu().contiguous().numpy()


def is_constant(head: Head, loss: np.ndarray, target: Tensor, weight: Tensor, settings: TuningSettings) -> np.ndarray:
    """Return a mask of series without anything to gain on their gate windows: no loss, no observation, or one class."""
    constant: np.ndarray = np.nansum(loss[:, : settings.gate_windows, 0], axis=1) == 0
    if isinstance(head, CategoricalHead):
        # With one class alone, any change that makes the forecast more confident gains.
        gate = slice(settings.gate_windows)
        actual = target[:, gate].masked_fill(weight[:, gate] == 0, torch.nan).flatten(1).cpu().numpy()
        constant |= np.fmax.reduce(actual, axis=1) == np.fmin.reduce(actual, axis=1)
    return constant


def n_origin_steps(network: Forecaster, settings: TuningSettings) -> int:
    """Return the number of latest steps of a series that the closed form is fitted and judged on."""
    return settings.origins + (settings.gate_windows + settings.report_windows + 1) * network.shape.horizon
