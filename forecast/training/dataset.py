"""Origins drawn for training, batch by batch."""

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import IterableDataset

from forecast.data.windows import OriginSampler
from forecast.models.network.losses import Indices


class TrainingWindows(IterableDataset[Indices]):
    """An endless stream of batches, as indices: the batch itself is gathered on the device.

    Of several processes, each takes its share of the batch that all of them train on together: process `rank` every
    `n_ranks`th window, from the same origins. The first `skip` batches are drawn and left out: a training that is gone
    on from has seen them.
    """

    def __init__(
        self,
        sampler: OriginSampler,
        *,
        batch_size: int,
        candidates: np.ndarray,
        origins: int,
        seed: int,
        skip: int = 0,
        rank: int = 0,
        n_ranks: int = 1,
    ) -> None:
        self._sampler = sampler
        self._batch_size = batch_size * n_ranks
        self._share = slice(rank, None, n_ranks)
        self._candidates = candidates
        self._origins = min(origins, len(candidates))
        self._seed = seed
        self._skip = skip

    def __iter__(self) -> Iterator[Indices]:
        rng = np.random.default_rng(self._seed)
        for number in itertools.count():
            draw = self._sampler.draw(self._batch_size, rng)[self._share]
            origins = np.sort(rng.choice(self._candidates, self._origins, replace=False))
            if number < self._skip:
                continue
            yield torch.from_numpy(draw.series), torch.from_numpy(draw.cutoff), torch.from_numpy(origins)
