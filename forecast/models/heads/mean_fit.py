"""Closed-form parameters of heads that estimate a mean: location by sums of targets, width by likelihood."""

import torch
from jaxtyping import Float
from torch import Tensor

from forecast.models.heads.base import Head
from forecast.models.inputs.frame import Frame

# The range of shifts of the location parameter, in units of spread, and the number of bisections.
_MAX_SHIFT, _HALVINGS = 20.0, 40
# Widths to try, in units of spread.
_WIDTHS = tuple(2.0 ** (k / 3) for k in range(-15, 13))


def location_shift(
    head: Head,
    parameters: Float[Tensor, "window horizon parameter"],
    linear: Float[Tensor, "window horizon"],
    frame: Frame,
    target: Float[Tensor, "window horizon"],
    weight: Float[Tensor, "window horizon"],
) -> float:
    """Return the shift of the location parameter at which the weighted sum of means equals that of the targets.

    `frame` has the axes [window] and [window, horizon], `target` is in its units, as for `Head.errors`. 0 without any
    target. Means increase with their parameter, so bisection finds the shift.
    """
    if not weight.any():
        return 0.0
    low, high = -_MAX_SHIFT, _MAX_SHIFT
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        mean = head.mean(head.arguments(_with(parameters, head.location_index, middle, add=True), linear, frame))
        if float(((mean - target).double() * weight).sum()) > 0:
            high = middle
        else:
            low = middle
    return (low + high) / 2


def widths(
    head: Head,
    parameters: Float[Tensor, "window horizon parameter"],
    linear: Float[Tensor, "window horizon"],
    frame: Frame,
    target: Float[Tensor, "window horizon"],
    weight: Float[Tensor, "window horizon"],
) -> Float[Tensor, " horizon"]:
    """Return the second parameter, the width, at each step: the one of least loss among `_WIDTHS`."""
    tried = [head.width_parameter(width) for width in _WIDTHS]
    losses = []
    for value in tried:
        errors = head.errors(head.arguments(_with(parameters, 1, value), linear, frame), target)
        losses.append((errors * weight).sum(0))
    return parameters.new_tensor(tried)[torch.stack(losses).argmin(0)]


def _with(parameters: Tensor, index: int, value: float, *, add: bool = False) -> Tensor:
    result = parameters.clone()
    result[..., index] = result[..., index] + value if add else value
    return result
