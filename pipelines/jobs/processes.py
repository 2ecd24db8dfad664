"""Processes and whether they still run: a number is used again, and containers may share a host name."""

import os
import socket
from pathlib import Path

_PROC = Path("/proc")


def identity(pid: int) -> str:
    """Return the boot, the namespace of process numbers and the start of a process; "" where /proc does not tell.

    The start is "-" for a process that has ended.
    """
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink(_PROC / "self/ns/pid")  # noqa: PTH115  no path
    except OSError:
        return ""
    return f"{boot} {namespace} {_start(pid)}"


def is_running(host: str, pid: int, process: str) -> bool | None:
    """Return whether a process still runs, by its `identity`; None where that can't be seen from here.

    Without an identity, its number alone counts.
    """
    if host != socket.gethostname():
        return None
    if not process:
        return _exists(pid)
    present = identity(pid)
    if present.rpartition(" ")[0] != process.rpartition(" ")[0]:
        return None
    return present == process and not process.endswith(" -")


def _start(pid: int) -> str:
    """Return when a process started, in clock ticks since boot; "-" if it has ended."""
    try:
        # The name, which may hold anything, is in parentheses before these: state, ..., the 20th is the start.
        fields = (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return "-"
    return "-" if fields[0] in "ZX" else fields[19]


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # It is somebody else's.
        return True
    return True
