"""Identity of processes: process numbers are reused, and containers may share a host name."""

import os
import socket
from pathlib import Path

_PROC = Path("/proc")


def identity(pid: int) -> str:
    """Return the boot, the namespace of process numbers and the start of a process; "" without /proc.

    The start is "-" for an ended process.
    """
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink(_PROC / "self/ns/pid")  # noqa: PTH115  no path
    except OSError:
        return ""
    return f"{boot} {namespace} {_start(pid)}"


def is_running(host: str, pid: int, process: str) -> bool | None:
    """Return whether a process still runs, by its `identity`; None if it is not visible from here.

    Without an identity, its number alone is compared.
    """
    if host != socket.gethostname():
        return None
    if not process:
        return _exists(pid)
    current_identity = identity(pid)
    if current_identity.rpartition(" ")[0] != process.rpartition(" ")[0]:
        return None
    return current_identity == process and not process.endswith(" -")


def _start(pid: int) -> str:
    """Return the start of a process in clock ticks since boot; "-" if it has ended."""
    try:
        # After the name in parentheses, which may contain anything: the state, ..., and as the 20th the start.
        fields = (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return "-"
    return "-" if fields[0] in "ZX" else fields[19]


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # It belongs to another user.
        return True
    return True
