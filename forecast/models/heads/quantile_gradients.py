"""Quantiles and pinball loss with gradients in closed form, for training.

Values are those of `QuantileHead.ordered` and `quantiles.pinball`, but for rounding. The levels are the first axis in
memory, so that an operation runs over all forecasts of a level at once: several times faster on a CPU.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


def ordered_quantiles(parameters: Float[Tensor, "*axes parameter"], median: int) -> Float[Tensor, "*axes parameter"]:
    """Return the median, the parameter at index `median`, plus softplus increments outwards."""
    result: Tensor = _OrderedQuantiles.apply(parameters, median)  # type: ignore[no-untyped-call]
    return result


def pinball_loss(
    quantiles: Float[Tensor, "*axes quantile"], target: Float[Tensor, "*axes"], levels: Float[Tensor, " quantile"]
) -> Float[Tensor, "*axes"]:
    """Return twice the pinball loss, averaged over the levels (Koenker & Bassett 1978).

    Its derivative where a target equals a quantile is that of a target above it.
    """
    loss: Tensor = _PinballLoss.apply(quantiles, target, levels)[0]  # type: ignore[no-untyped-call]
    return loss


class _OrderedQuantiles(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(parameters: Tensor, median: int) -> Tensor:
        by_level = parameters.movedim(-1, 0).contiguous()
        middle = by_level[median : median + 1]
        down = functional.softplus(by_level[:median]).flip(0).cumsum(0).flip(0)
        up = functional.softplus(by_level[median + 1 :]).cumsum(0)
        return torch.cat([middle - down, middle, middle + up]).movedim(0, -1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        parameters, ctx.median = inputs
        ctx.save_for_backward(parameters)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (parameters,), gradient = ctx.saved_tensors, gradients[0].movedim(-1, 0)
        # The derivative of softplus.
        slope = parameters.movedim(-1, 0).to(gradient.dtype).contiguous().sigmoid()
        below, above = gradient[: ctx.median], gradient[ctx.median + 1 :]
        down = -below.cumsum(0) * slope[: ctx.median]
        up = above.flip(0).cumsum(0).flip(0) * slope[ctx.median + 1 :]
        return torch.cat([down, gradient.sum(0, keepdim=True), up]).movedim(0, -1), None


class _PinballLoss(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(quantiles: Tensor, target: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss, and its derivative by the error of each quantile times half their number."""
        error = target - quantiles.movedim(-1, 0)
        slope = levels.view(-1, *[1] * target.ndim) - (error < 0).to(error.dtype)
        return 2.0 * (slope * error).mean(0), slope

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:  # noqa: ARG004
        slope = output[1]
        ctx.mark_non_differentiable(slope)
        ctx.save_for_backward(slope)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        (slope,) = ctx.saved_tensors
        by_level = slope * (gradients[0] * (2.0 / len(slope)))
        by_target = by_level.sum(0) if ctx.needs_input_grad[1] else None
        return -by_level.movedim(0, -1), by_target, None
