"""Rows that are computed a block at a time, so that a result does not depend on the other rows."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from forecast.models.tensors import each, join

# Steps of a window that may be read in place of all.
_LENGTHS = (64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536)

S = TypeVar("S", bound=tuple[Any, ...])
T = TypeVar("T")


def in_blocks(rows: S, function: Callable[[S], T], size: int, *, fill: bool = False) -> T:
    """Return what a function makes of a named tuple of rows, of so many at a time; with `fill`, always of so many."""
    count, results = len(rows[0]), []
    for begin in range(0, max(count, 1), size):
        block = each(rows, lambda values: values[begin : begin + size])  # noqa: B023
        n = min(size, count - begin)
        if fill and n < size:
            block = each(block, lambda values: torch.cat([values, values.new_zeros(size - n, *values.shape[1:])]))  # noqa: B023
        results.append(each(function(block), lambda values: values[:n]))  # noqa: B023
    return join(results)


def in_blocks_by_length(
    windows: S, observed: Bool[Tensor, "window time"], function_for: Callable[[int], Callable[[S], T]], size: int
) -> T:
    """Return what functions make of windows, in full blocks; `function_for` has one for each number of steps to read.

    These are the steps from the first observation of a window on, their number rounded up to one of a few; a window
    without any observation is read whole.
    """
    lengths = _lengths(observed)
    distinct = lengths.unique() if len(lengths) else lengths.new_tensor([observed.shape[1]])
    order, results = lengths.argsort(stable=True), []
    for length in distinct.tolist():
        chosen = order[lengths[order] == length]
        rows = each(windows, lambda part: part[chosen])  # noqa: B023
        results.append(in_blocks(rows, function_for(length), size, fill=True))
    position = order.argsort()
    return each(join(results), lambda part: part[position])


def _lengths(observed: Bool[Tensor, "window time"]) -> Int[Tensor, " window"]:
    context, device = observed.shape[1], observed.device
    lengths = torch.tensor([*(steps for steps in _LENGTHS if steps < context), context], device=device)
    since_first = context - observed.int().argmax(1)
    return torch.where(observed.any(1), lengths[torch.searchsorted(lengths, since_first)], context)
