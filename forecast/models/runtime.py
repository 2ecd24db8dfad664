"""What makes torch fast on a CPU and keeps it quiet."""

import ctypes
import functools
import logging
import platform

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


@functools.cache
def prepare() -> None:
    """Let the allocator keep large blocks instead of returning them after each step, and silence Lightning's advice.

    On glibc only; returning and faulting in the pages again took a third of the time of a training step.
    """
    for name in ("lightning.pytorch", "pytorch_lightning", "lightning.fabric", "lightning_fabric"):
        for logger in (name, f"{name}.utilities.rank_zero"):
            logging.getLogger(logger).setLevel(logging.ERROR)
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    gigabyte = 1 << 30
    libc.mallopt(_M_MMAP_THRESHOLD, gigabyte)
    libc.mallopt(_M_TRIM_THRESHOLD, 2 * gigabyte - 1)
    libc.mallopt(_M_TOP_PAD, 64 << 20)
