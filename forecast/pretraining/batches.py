"""Training batches of pretraining: windows sampled from a stream of series."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor

from forecast.models.universal.history import Window
from forecast.models.universal.network import PATCH

HORIZON = 64
"""Steps after the history of each series of the stream."""
CONTEXTS = (64, 128, 256, 512)
"""Lengths of windows; a series has the shortest one that holds its history, so that short series are cheap."""


class Series(NamedTuple):
    """Series of a stream, aligned at their ends; the last `HORIZON` steps follow the longest history."""

    values: npt.NDArray[np.float32]
    """[series, time]"""
    observed: npt.NDArray[np.bool_]
    """[series, time]"""
    season: npt.NDArray[np.int64]
    """[series], season length in steps; 1 without any."""
    second: npt.NDArray[np.int64]
    """[series], length of a second season in steps; 0 without any."""


Source = Callable[[int], Series]
"""Draws the series of an index; the same index always gives the same series."""


class TrainingBatch(NamedTuple):
    """Windows, and targets at some steps ahead of some origins in them."""

    window: Window
    origins: Int[Tensor, " origin"]
    ahead: Int[Tensor, " step"]
    target: Float[Tensor, "series origin step"]
    """NaN where not observed, or beyond the sampled horizon of the series."""


class Pool:
    """The latest draws of a source, from which batches are sampled; the batch of a step is deterministic."""

    def __init__(self, source: Source, seed: int, *, draws: int = 4, steps_per_draw: int = 20) -> None:
        self.source, self.seed, self.draws, self.steps_per_draw = source, seed, draws, steps_per_draw
        self._draws: dict[int, Series] = {}
        self._joined: Series | None = None

    def series(self, step: int) -> Series:
        """Return the series from which the batch of a step is sampled."""
        latest = step // self.steps_per_draw + self.draws - 1
        indices = range(latest - self.draws + 1, latest + 1)
        if self._joined is None or {*indices} != self._draws.keys():
            self._draws = {index: self._draws.get(index) or self.source(index) for index in indices}
            self._joined = Series(*(np.concatenate(parts) for parts in zip(*self._draws.values(), strict=True)))
        return self._joined

    def batch(self, step: int, size: int, n_origins: int, n_steps: int) -> TrainingBatch:
        """Return the batch of a step: `size` series of similar length, each with a random sign."""
        series = self.series(step)
        random = np.random.default_rng([self.seed, step])
        length = series.observed.shape[1] - HORIZON - series.observed.argmax(1)
        contexts = np.asarray([context for context in CONTEXTS if context + HORIZON <= series.values.shape[1]])
        bucket = np.searchsorted(contexts, np.minimum(length, contexts[-1]))
        bucket_of_batch = bucket[random.integers(len(bucket))]
        rows = random.choice(np.flatnonzero(bucket == bucket_of_batch), size)
        sample = Series(*(values[rows] for values in series))
        sample = sample._replace(values=sample.values * random.choice(np.array([-1, 1], np.float32), (size, 1)))
        return training_batch(sample, int(contexts[bucket_of_batch]), n_origins, n_steps, random)


def training_batch(
    series: Series, context: int, n_origins: int, n_steps: int, random: np.random.Generator
) -> TrainingBatch:
    """Return windows of the last `context` steps before the horizon, with origins and steps ahead drawn at random.

    The last origin is the end of the window. Near steps are drawn more often than far ones.
    """
    n_patches = context // PATCH
    patches_back = random.choice(n_patches - 1, min(n_origins, n_patches) - 1, replace=False) + 1
    origins = context - 1 - PATCH * np.sort(np.append(patches_back, 0))[::-1]
    weight = np.arange(1, HORIZON + 1) ** -0.5
    ahead = np.sort(random.choice(HORIZON, n_steps, replace=False, p=weight / weight.sum()) + 1)
    values, observed = series.values[:, -context - HORIZON :], series.observed[:, -context - HORIZON :]
    index = origins[:, None] + ahead
    within = ahead <= _horizons(series.season, random)[:, None]
    target = np.where(observed[:, index] & within[:, None], values[:, index], np.float32(np.nan))
    window = Window(
        torch.from_numpy(values[:, :context].copy()),
        torch.from_numpy(observed[:, :context].copy()),
        torch.from_numpy(series.season.astype(np.int64)),
        torch.from_numpy(series.second.astype(np.int64)),
    )
    return TrainingBatch(
        window, torch.from_numpy(origins.copy()), torch.from_numpy(ahead), torch.from_numpy(target.astype(np.float32))
    )


def _horizons(season: npt.NDArray[np.int64], random: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return a random horizon per series: from four steps to a maximum for its season, sometimes `HORIZON`."""
    seasonal_horizon = np.where(season == 1, 10, np.where(season <= 12, 2 * season + 4, HORIZON))
    seasonal_horizon = np.where(random.random(len(season)) < 0.15, HORIZON, seasonal_horizon)
    shorter = np.exp(random.uniform(np.log(4), np.log(seasonal_horizon)))
    return np.where(random.random(len(season)) < 0.5, seasonal_horizon, shorter).astype(np.int64)
