"""`engine.*` and `shard`: where the work of a job runs."""

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from forecast.config.base import Config


@dataclass(frozen=True)
class JobShare:
    """A share of a job's work: number `index` of `count`, counted from 0."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def of(self, n_tasks: int) -> range:
        """Return the numbers of the tasks in this share: neighbours, and at most one more than in another share."""
        return range(self.index * n_tasks // self.count, (self.index + 1) * n_tasks // self.count)


def _parse(value: Any) -> Any:
    if not isinstance(value, str) or value == "commit":
        return value
    match = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", value)
    if match is None:
        raise ValueError("must be INDEX/COUNT: 3/16 is the fourth of 16")
    index, count = map(int, match.groups())
    if index >= count:
        last = f"; the last of {count:,} is {count - 1}/{count}" if count else ""
        raise ValueError(f"{value.strip()} is out of range: shards are counted from 0{last}")
    return JobShare(index, count)


ShardSetting = Annotated[
    JobShare | Literal["commit"] | None,
    BeforeValidator(_parse),
    PlainSerializer(lambda value: value and str(value), return_type=str | None, when_used="json"),
]
"""A share of a job as INDEX/COUNT, or `commit` to join all shares."""


class EngineSettings(Config):
    """Where the work of a job runs. The results are the same."""

    kind: Literal["local", "processes", "ray"] = "local"
    """`local`: this process. `processes`: a process per core of this machine. `ray`: tasks on a Ray cluster
    (gatecast[ray])."""
    workers: Annotated[int, Field(ge=1)] | None = None
    """Number of processes; of a Ray cluster, the number of tasks that run or wait at a time. By default one per core,
    and two per CPU of the cluster."""
    address: str | None = None
    """The cluster: HOST:PORT of its head, ray://HOST:PORT of its client server, or auto for the one of this machine. A
    cluster of this machine alone is started when neither this nor RAY_ADDRESS is given."""
    num_gpus: Annotated[float, Field(ge=0)] = 0
    """GPUs of each task on Ray; a fraction shares one."""

    @model_validator(mode="after")
    def _of_the_kind(self) -> Self:
        if self.kind == "local" and self.workers is not None:
            raise ValueError("workers are those of processes and ray; choose engine=processes")
        if self.kind != "ray" and (self.address is not None or self.num_gpus):
            raise ValueError("address and num_gpus are those of ray; choose engine=ray")
        return self
