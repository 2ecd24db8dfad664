"""The place of this process among those of torchrun or Slurm, read from the environment. Nothing here imports torch."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from forecast.errors import ConfigError, listing

_TORCHRUN: Final = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_SLURM: Final = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NODELIST", "SLURM_JOB_ID")
# Ports of Slurm's steps, below those that Linux gives to clients.
_FIRST_PORT, _PORTS = 12_000, 16_000


@dataclass(frozen=True)
class Placement:
    """One of several processes that train one model."""

    launcher: str
    """`torchrun` or `slurm`."""
    rank: int
    size: int
    """Number of processes on all machines."""
    local_rank: int
    """Number of the process on its machine."""
    address: str
    """Host of rank 0."""
    port: int

    @property
    def url(self) -> str:
        """Where the processes meet: torchrun has a server of its own, which `env://` finds."""
        return "env://" if self.launcher == "torchrun" else f"tcp://{self.address}:{self.port}"


def placement(launcher: str, environment: Mapping[str, str] | None = None) -> Placement | None:
    """Return the place of this process by `fit.launcher`; None if it trains alone.

    `auto` takes torchrun or a step of srun if there is one with several processes. A batch script of Slurm is no step:
    without srun there is one process, whatever SLURM_NTASKS says.

    Raises ConfigError if the variables of the launcher are missing or wrong.
    """
    environment = os.environ if environment is None else environment
    match launcher:
        case "torchrun":
            place = _torchrun(environment)
        case "slurm":
            place = _slurm(environment)
        case "auto" if all(name in environment for name in _TORCHRUN):
            place = _torchrun(environment)
        case "auto" if all(name in environment for name in _SLURM[:2]) and environment[_SLURM[1]] != "1":
            place = _slurm(environment)
        case _:
            return None
    return place if place.size > 1 else None


def _torchrun(environment: Mapping[str, str]) -> Placement:
    _check(environment, _TORCHRUN, "torchrun", "start the command by torchrun")
    rank, size = _place(environment, "RANK", "WORLD_SIZE")
    local_rank = _number(environment, "LOCAL_RANK", "0")
    port = _number(environment, "MASTER_PORT")
    return Placement("torchrun", rank, size, local_rank, environment["MASTER_ADDR"], port)


def _slurm(environment: Mapping[str, str]) -> Placement:
    _check(environment, _SLURM, "slurm", "start the command by srun")
    rank, size = _place(environment, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS")
    local_rank = _number(environment, "SLURM_LOCALID", "0")
    address = environment.get("MASTER_ADDR") or _first_host(environment["SLURM_STEP_NODELIST"])
    step = _number(environment, "SLURM_STEP_ID", "0")
    port = _FIRST_PORT + (_number(environment, "SLURM_JOB_ID") + 101 * step) % _PORTS
    return Placement("slurm", rank, size, local_rank, address, _number(environment, "MASTER_PORT", str(port)))


def _check(environment: Mapping[str, str], names: tuple[str, ...], launcher: str, change: str) -> None:
    if missing := [name for name in names if not environment.get(name)]:
        raise ConfigError(
            f"fit.launcher={launcher}: the environment lacks {listing(missing)}; {change}, or set fit.launcher=none to "
            "train in one process"
        )


def _place(environment: Mapping[str, str], rank: str, size: str) -> tuple[int, int]:
    place = _number(environment, rank), _number(environment, size)
    if not 0 <= place[0] < place[1]:
        raise ConfigError(f"fit.launcher: {rank}={place[0]} is not one of {size}={place[1]} processes")
    return place


def _number(environment: Mapping[str, str], name: str, default: str = "") -> int:
    text = environment.get(name) or default
    if not text.isdecimal():
        raise ConfigError(f"fit.launcher: {name}={text!r} in the environment is not a whole number")
    return int(text)


def _first_host(nodes: str) -> str:
    """Return the first host of Slurm's list.

    >>> _first_host("gpu[007-009,12]-ib,login")
    'gpu007-ib'
    >>> _first_host("10.0.0.1,10.0.0.2")
    '10.0.0.1'
    """
    match = re.match(r"([^,\[]*)(?:\[(\w+)[^\]]*\]([^,\[]*))?", nodes)
    assert match is not None
    return "".join(filter(None, match.groups()))
