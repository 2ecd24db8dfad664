"""What is tried for each series of a group, and what is kept of it."""

from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from forecast.config import FinetuneSettings
from forecast.models.adapters.bank import Bank
from forecast.models.adapters.stacked import Changes
from forecast.models.heads.base import Head
from forecast.models.heads.categorical import CategoricalHead
from forecast.models.network.ensemble import Forecaster

# Shares of `blend` that are tried.
SHARES = (1.0, 0.5)

POOLED = "pooled"
LOSS, TOLD, IS_CONSTANT, IS_DIVERGED = "loss", "told", "is_constant", "is_diverged"

Columns: TypeAlias = dict[str, Any]
"""Numbers of each series of a group, as arrays."""
Present: TypeAlias = tuple[Bank, Tensor] | None
"""What series have now: a bank, and the row of each."""


class TuningSettings(FinetuneSettings):
    """Settings whose windows are numbers."""

    gate_windows: int
    report_windows: int
    holdout_windows: int


class Fit(NamedTuple):
    """Changes of the series that are kept."""

    changes: Changes
    finite: np.ndarray
    """[G], whether the changes of a series are finite; those of the others are left out."""
    told: np.ndarray
    """[G, report window, horizon, column], the median, or all probabilities, on the report windows."""


def window_losses(head: Head, columns: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Return the mean weighted loss of each held-out window, [G, window]; NaN where nothing was observed."""
    error = head.column_errors(columns, target)
    total = weight.sum(-1)
    mean: Tensor = (error * weight).sum(-1) / total.clamp(min=1e-9)
    return mean.masked_fill(total == 0, torch.nan)


def stated(head: Head, columns: Tensor) -> np.ndarray:
    """Return the median in columns, [..., 1]; of classes all probabilities."""
    some = columns if isinstance(head, CategoricalHead) else columns[..., head.median, None]
    return some.detach().cpu().contiguous().numpy()


def is_constant(head: Head, loss: np.ndarray, target: Tensor, weight: Tensor, settings: TuningSettings) -> np.ndarray:
    """Return which series have nothing to gain on their gate windows: no loss, no observation, or one class alone."""
    constant: np.ndarray = np.nansum(loss[:, : settings.gate_windows, 0], axis=1) == 0
    if isinstance(head, CategoricalHead):
        # Where one class came alone, any forecast gains by being surer of it.
        judged = slice(settings.gate_windows)
        came = target[:, judged].masked_fill(weight[:, judged] == 0, torch.nan).flatten(1).cpu().numpy()
        constant |= np.fmax.reduce(came, axis=1) == np.fmin.reduce(came, axis=1)
    return constant


def n_origin_steps(network: Forecaster, settings: TuningSettings) -> int:
    """Return how many of the latest steps of a series the closed form looks at."""
    return settings.origins + (settings.gate_windows + settings.report_windows + 1) * network.shape.horizon
