"""Named tuples of tensors, one inside another: what is done to each tensor of them; and constants of a trace."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


@contextmanager
def untraced() -> Iterator[None]:
    """Compute constants: a trace, for an ONNX graph, takes the results and not the operations, which ONNX may lack."""
    state = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch._C._set_tracing_state(state)  # type: ignore[attr-defined]


def join(values: Sequence[T]) -> T:
    """Return named tuples of one kind as one, whose tensors are theirs behind one another; a None stays one."""
    joined: T = _combined(values, torch.cat)
    return joined


def each(values: T, change: Callable[[Tensor], Tensor]) -> T:
    """Return `change` of each tensor of a named tuple."""
    changed: T = _combined([values], lambda parts: change(parts[0]))
    return changed


def _combined(values: Sequence[Any], how: Callable[[Any], Tensor]) -> Any:
    first = values[0]
    if first is None:
        return None
    if isinstance(first, Tensor):
        return how(values)
    return type(first)._make(_combined(parts, how) for parts in zip(*values, strict=True))
