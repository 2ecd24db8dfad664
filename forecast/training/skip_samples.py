"""The windows that the skip is solved on."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from forecast.data.windows import WindowIndex
from forecast.models.inputs.batch import PanelTensors
from forecast.models.inputs.frame import loss_weights, targets
from forecast.models.inputs.shape import NetworkShape
from forecast.models.linear.ridge import Samples
from forecast.models.network.forecaster import RecurrentForecaster
from forecast.models.network.losses import validation_batches, window_sizes

# Windows that the closed-form solution is fitted on: so many values, between these limits. It is chosen by fits on each
# fourth of them, or such a share that this many are left.
_SKIP_VALUES = 20_000_000
_SKIP_SAMPLES = 40_000, 200_000


def n_samples(shape: NetworkShape) -> int:
    """Return how many windows a line is fitted on, at most."""
    return int(np.clip(_SKIP_VALUES // shape.context_length, *_SKIP_SAMPLES))


def skip_samples(
    networks: Sequence[RecurrentForecaster], data: PanelTensors, windows: WindowIndex, limit: Tensor | None
) -> list[Samples]:
    """Return the samples of each network; they differ in their anchor only, and share gathered windows."""
    shape = networks[0].shape
    origins = torch.zeros(1, dtype=torch.long, device=data.device)
    parts: list[list[tuple[Tensor, ...]]] = [[] for _ in networks]
    position = 0
    for series, cutoff, _ in validation_batches(windows, 512):
        series, cutoff = series.to(data.device), cutoff.to(data.device)
        number = torch.arange(position, position + len(series), device=data.device)
        position += len(series)
        until = cutoff + shape.horizon + 1 if limit is None else limit[series]
        batch = data.gather(series, cutoff, until, **window_sizes(networks[0], 1))
        statistics = networks[0].statistics(batch, shape.context_length)
        level = (
            torch.zeros(len(series), dtype=torch.float64, device=data.device) if batch.level is None else batch.level
        )
        for network, own in zip(networks, parts, strict=True):
            frame = network.frame(batch, origins, statistics)
            target, observed = targets(batch, frame, origins, shape)
            weight = (loss_weights(target, observed, frame, shape) > 0).to(target.dtype)
            # Constant windows, and those without any observed target, have nothing to say.
            told = torch.nonzero(weight[:, 0].amax(-1) > 0).flatten()
            own.append(
                (
                    frame.window[told, 0],
                    target[told, 0],
                    observed[told, 0].to(target.dtype),
                    weight[told, 0].amax(-1),
                    frame.spread[told, 0],
                    frame.location[told, 0],
                    frame.divisor[told, 0],
                    series[told],
                    number[told],
                    level[told],
                    frame.smooth[told, 0],
                )
            )
    return [Samples(*(torch.cat(columns) for columns in zip(*own, strict=True))) for own in parts]
