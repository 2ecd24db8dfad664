"""What makes torch fast on a CPU and keeps it quiet."""

import ctypes
import functools
import logging
import os
import platform
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


@functools.cache
def prepare() -> None:
    """Let the allocator keep large blocks instead of returning them after each step.

    On glibc only; returning and faulting in the pages again took a third of the time of a training step.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    gigabyte = 1 << 30
    libc.mallopt(_M_MMAP_THRESHOLD, gigabyte)
    libc.mallopt(_M_TRIM_THRESHOLD, 2 * gigabyte - 1)
    libc.mallopt(_M_TOP_PAD, 64 << 20)


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Let this thread take numbers below 1.2e-38 for 0, where the processor can.

    Arithmetic with them takes a hundred times as long. Those of a saturated recurrent cell add nothing to its output.
    """
    before = bool(torch.tensor(1e-39) * 1.0 == 0)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def quieten_lightning() -> None:
    """Silence Lightning's advice."""
    for name in ("lightning.pytorch", "pytorch_lightning", "lightning.fabric", "lightning_fabric"):
        for logger in (name, f"{name}.utilities.rank_zero"):
            logging.getLogger(logger).setLevel(logging.ERROR)


def seed_generators(seed: int) -> None:
    """Seed the random numbers of Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  of libraries
    torch.manual_seed(seed)


@contextmanager
def only_deterministic(wanted: bool) -> Iterator[None]:
    """Take algorithms that give the same bits each time, wherever torch has one, for as long as it lasts.

    A running sum on a GPU is not refused, as torch would: only those of a single row differ from run to run.
    """
    if not wanted:  # The call below imports torch's compiler, which takes more than a second.
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used.
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
