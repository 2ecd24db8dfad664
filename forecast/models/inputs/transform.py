"""The scale on which targets are modelled: linear or logarithmic.

A logarithmic scale is asinh(value / unit), which is log(2 value / unit) far above the unit, and defined for zeros and
negative values too (Johnson 1949). It is monotone, so quantiles stay quantiles.
"""

from typing import Final

import numpy as np
import torch
from torch import Tensor

from forecast.data.panel import IntArray, Panel

# The unit of a panel of positive values is this share of a low quantile, so that the scale is that of logarithms.
_LOW_SHARE: Final = 0.01
_BELOW: Final = 0.1
_SAMPLED: Final = 1_000_000


def asinh(values: Tensor) -> Tensor:
    """Return asinh, several times faster on a CPU than torch's own, which takes one value at a time. Not for gradients.

    log1p(m + m^2 / (1 + sqrt(m^2 + 1))) of the size m (fdlibm's s_asinh.c), without its overflow.
    """
    size = values.abs()
    return torch.log1p(size + size * (size / (1.0 + torch.hypot(size, torch.ones_like(size))))).copysign(values)


def to_model(values: Tensor, unit: float) -> Tensor:
    """Return values on the scale of the model; unchanged if `unit` is 0."""
    return asinh(values / unit) if unit else values


def to_data(values: Tensor, unit: float, level: Tensor | None = None) -> Tensor:
    """Return the inverse of `to_model`; with a `level`, on the scale of the model, this is added first, in float64."""
    if level is not None:
        values = values.double() + level
    return torch.sinh(values) * unit if unit else values


def unit_of(panel: Panel, limits: IntArray) -> tuple[float, bool]:
    """Return the unit of a logarithmic scale for a panel, and whether all its values are positive.

    They depend on the first `limits` steps of each series. The unit is far below nearly all values if all are positive,
    and else a low quantile of the sizes of those that are not zero.
    """
    positive, sizes = True, [np.empty(0, dtype=np.float32)]
    for target in panel.observed_targets(limits):
        positive &= bool((target > 0).all())
        sizes.append(np.abs(target[:: max(1, len(panel.target) // _SAMPLED)]))
    size = np.concatenate(sizes)
    size = size[size > 0]
    if not len(size):
        return 1.0, False
    low = float(np.quantile(size, _LOW_SHARE))
    return low * _BELOW if positive else low, positive
