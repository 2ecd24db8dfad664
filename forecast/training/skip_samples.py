"""Samples of windows and targets that the skip is fitted on."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from forecast.data.windows import WindowIndex
from forecast.models.inputs.batch import PanelTensors
from forecast.models.inputs.frame import loss_weights, target_weights, targets
from forecast.models.inputs.shape import NetworkShape
from forecast.models.linear.ridge import Samples
from forecast.models.network.forecaster import RecurrentForecaster
from forecast.models.network.losses import validation_batches, window_sizes
from forecast.models.runtime.shares import all_rows, share_of

# Values in the windows of the closed-form fit, and bounds of the number of windows.
_SKIP_VALUES = 20_000_000
_SKIP_SAMPLES = 40_000, 200_000


def n_samples(shape: NetworkShape) -> int:
    """Return the most windows of a closed-form fit."""
    return int(np.clip(_SKIP_VALUES // shape.context_length, *_SKIP_SAMPLES))


def skip_samples(
    networks: Sequence[RecurrentForecaster], data: PanelTensors, windows: WindowIndex, limit: Tensor | None
) -> list[Samples]:
    """Return the samples of each network; the networks differ in their anchor only and share gathered windows.

    Of several processes, each reads its share of the windows.
    """
    shape = networks[0].shape
    origins = torch.zeros(1, dtype=torch.long, device=data.device)
    parts: list[list[tuple[Tensor, ...]]] = [[] for _ in networks]
    share = share_of(len(windows))
    position = share.start
    for series, cutoff, _ in validation_batches(windows[share], 512):
        series, cutoff = series.to(data.device), cutoff.to(data.device)
        number = torch.arange(position, position + len(series), device=data.device)
        position += len(series)
        until = cutoff + shape.horizon + 1 if limit is None else limit[series]
        batch = data.gather(series, cutoff, until, **window_sizes(networks[0], 1))
        statistics = networks[0].statistics(batch, shape.context_length)
        level = (
            torch.zeros(len(series), dtype=torch.float64, device=data.device) if batch.level is None else batch.level
        )
        for network, samples in zip(networks, parts, strict=True):
            frame = network.frame(batch, origins, statistics)
            target, observed = targets(batch, frame, origins, shape)
            weight = (loss_weights(target, observed, frame, shape) > 0).to(target.dtype)
            data_weight = target_weights(batch, origins, shape)
            if data_weight is not None:  # A window counts with the mean weight of its targets.
                total = (data_weight * observed).sum(-1, keepdim=True)
                weight = weight * total / observed.sum(-1, keepdim=True).clamp(min=1)
            # Constant windows, and those without observed targets, are dropped.
            usable = torch.nonzero(weight[:, 0].amax(-1) > 0).flatten()
            samples.append(
                (
                    frame.window[usable, 0],
                    target[usable, 0],
                    observed[usable, 0].to(target.dtype),
                    weight[usable, 0].amax(-1),
                    frame.spread[usable, 0],
                    frame.location[usable, 0],
                    frame.divisor[usable, 0],
                    series[usable],
                    number[usable],
                    level[usable],
                    frame.smooth[usable, 0],
                )
            )
    return [Samples(*all_rows(samples, data.device)) for samples in parts]
