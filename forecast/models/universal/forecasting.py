"""Forecasts of many series of any length, the same for a series alone as among others."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from forecast.errors import ConfigError, DataError, listing
from forecast.models.universal.history import Window
from forecast.models.universal.network import LEVELS, UniversalNetwork

MAX_HORIZON = 1024
"""Steps that can be forecast."""
CONTEXTS = (64, 128, 256, 512, 1024, 2048)
"""Lengths of windows; of longer series the last steps are read."""
_BLOCK = 64
# Sums and differences of larger values do not fit into 32 bits.
_LARGEST = 1e30

Array = npt.NDArray[np.float64]


@torch.inference_mode()
def forecast_series(
    network: UniversalNetwork,
    series: Sequence[Array],
    season: Sequence[int],
    second: Sequence[int],
    horizon: int,
    *,
    max_context: int = 512,
) -> Array:
    """Return quantiles of the steps after each series, [series, step, level], at `network.LEVELS`, in data units.

    Missing values are NaN. Windows have lengths that depend on their own series alone and are computed in blocks of a
    fixed size, so that a forecast does not depend on which others are asked for. The context has to hold a season:
    of a longer one, three seasons up to 2,048 steps are read.

    Raises ConfigError for a horizon outside 1 to `MAX_HORIZON`; DataError for series without any observation, or with
    values that 32 bits do not hold.
    """
    if not 1 <= horizon <= MAX_HORIZON:
        raise ConfigError(f"horizon={horizon}: a horizon is 1 to {MAX_HORIZON} steps; forecast a coarser frequency")
    _check(series)
    contexts = [
        _context(len(values), max(seasons), max_context)
        for values, *seasons in zip(series, season, second, strict=True)
    ]
    outcome = np.empty((len(series), horizon, len(LEVELS)))
    ahead = torch.arange(1, horizon + 1)
    for context in sorted(set(contexts)):
        rows = [row for row, length in enumerate(contexts) if length == context]
        for begin in range(0, len(rows), _BLOCK):
            part = rows[begin : begin + _BLOCK]
            window = _window([series[row] for row in part], context, _pick(season, part), _pick(second, part))
            forecast = network(window, torch.tensor([context - 1]), ahead)
            quantiles = forecast.quantiles[:, 0].double() + forecast.history.centre[..., None].double()
            outcome[part] = quantiles[: len(part)].numpy()
    return outcome


def _check(series: Sequence[Array]) -> None:
    """Raise DataError if there are series that have no forecast."""
    empty = [row for row, values in enumerate(series) if np.isnan(values).all()]
    large = [row for row, values in enumerate(series) if (np.abs(values) > _LARGEST).any()]
    for rows, what in ((empty, "have no observation"), (large, f"have values beyond {_LARGEST:g}; rescale them")):
        if rows:
            shown = listing([f"number {row}" for row in rows])
            raise DataError(f"{len(rows):,} of {len(series):,} series {what}: {shown}")


def _context(length: int, longest_season: int, most: int) -> int:
    wanted = min(length, max(most, 3 * longest_season))
    return next((context for context in CONTEXTS if context >= wanted), CONTEXTS[-1])


def _pick(values: Sequence[int], rows: Sequence[int]) -> torch.Tensor:
    chosen = [values[row] for row in rows]
    return torch.tensor(chosen + chosen[:1] * (_BLOCK - len(rows)))


def _window(series: Sequence[Array], context: int, season: torch.Tensor, second: torch.Tensor) -> Window:
    """Return a block of windows; rows beyond the last series repeat the first."""
    values = np.full((_BLOCK, context), np.nan)
    for row, past in enumerate(series):
        part = past[-context:]
        values[row, context - len(part) :] = part
    values[len(series) :] = values[0]
    observed = ~np.isnan(values)
    return Window(torch.from_numpy(np.nan_to_num(values)), torch.from_numpy(observed), season, second)
