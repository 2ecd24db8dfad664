"""Shares of rows, and sums over the processes of a training. One process alone has all rows.

Parts are gathered by rank and summed in this order in each process: the result does not depend on who was first.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import torch
from torch import Tensor


class Gather(Protocol):
    """The processes that compute together."""

    @property
    def rank(self) -> int:
        """Number of this process."""

    @property
    def size(self) -> int:
        """Number of processes."""

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, by rank."""


_current: ContextVar[Gather | None] = ContextVar("_current", default=None)


@contextmanager
def shared_by(processes: Gather) -> Iterator[None]:
    """Share rows among processes, each of which makes the same calls of this module in the same order."""
    token = _current.set(processes)
    try:
        yield
    finally:
        _current.reset(token)


def share_of(n_rows: int) -> slice:
    """Return the rows of this process: consecutive ones, by rank."""
    processes = _current.get()
    if processes is None:
        return slice(0, n_rows)
    return slice(*(n_rows * number // processes.size for number in (processes.rank, processes.rank + 1)))


def total(part: Tensor) -> Tensor:
    """Return the sum of the parts of all processes."""
    processes = _current.get()
    if processes is None:
        return part
    first, *parts = processes.gather(part.cpu())
    for values in parts:
        first = first + values
    assert isinstance(first, Tensor)
    return first.to(part.device)


def all_rows(batches: Sequence[Sequence[Tensor]], device: torch.device) -> list[Tensor]:
    """Return the columns of all processes, each the rows of their `batches` one after another, by rank.

    A process without rows has no batches.
    """
    processes = _current.get()
    columns = [torch.cat(values) for values in zip(*batches, strict=True)]
    if processes is None:
        return columns
    parts = [part for part in processes.gather([values.cpu() for values in columns]) if part]
    return [torch.cat(values).to(device) for values in zip(*parts, strict=True)]
