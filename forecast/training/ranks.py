"""The processes that train one model on one or several machines.

Rank 0 leads: it makes all choices, and calls the others for a share of its work. They wait for a call, for the result,
or for its failure. Small messages go through the store of the rendezvous, where a wait ends when a process fails; work
and results go through a group of gloo, gradients through the group of the device (gloo or NCCL).
"""

import functools
import itertools
import json
import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import timedelta
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final, TypeVar

import torch
from torch import distributed
from torch.distributed import DistError
from torch.distributed.distributed_c10d import PrefixStore, _get_default_store
from torch.distributed.rendezvous import rendezvous

from forecast import errors
from forecast.config import FitConfig
from forecast.errors import ConfigError, EngineError, GatecastError
from forecast.models.runtime.shares import shared_by
from forecast.redaction import redacted
from forecast.training.launcher import Placement, placement

if TYPE_CHECKING:
    from forecast.training.split import TrainingData

T = TypeVar("T")
_LOG = logging.getLogger(__name__)

# Time for all processes to start, and for one of them to come to a common step. A process that ends is noticed at once.
_START, _STEP = timedelta(minutes=10), timedelta(minutes=30)
# Seconds for a failure to arrive, for the others to read it before the store ends with rank 0, and between two looks.
_REASON, _GRACE, _LONGEST_SLEEP = 1.0, 5.0, 0.5
_FAILURE: Final = "failure"


class Ranks:
    """The processes of a training, from one of them."""

    def __init__(self, place: Placement, store: Any, group: Any, *, device: int, owner: bool) -> None:
        self.launcher, self.rank, self.size = place.launcher, place.rank, place.size
        self.device = device
        """Number of this process's GPU, if it has one."""
        self._store, self._group, self._owner = store, group, owner
        self._turn = 0

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which alone reports, writes and registers."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, by rank."""
        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value, group=self._group)
        return values

    def check_alike(self, facts: dict[str, Any]) -> None:
        """Raise ConfigError in all processes if some have other facts (settings, versions, the panel) than rank 0."""
        expected, *others = self.gather(facts)
        wrong = {
            name: [rank for rank, other in enumerate(others, 1) if other[name] != value]
            for name, value in expected.items()
        }
        if names := [name for name, ranks in wrong.items() if ranks]:
            ranks = sorted({rank for name in names for rank in wrong[name]})
            raise ConfigError(
                f"fit.launcher={self.launcher}: {len(ranks)} of {self.size} processes differ from rank 0 in "
                f"{errors.listing(names)}: ranks {errors.listing(ranks)}; start all with the same command, table and "
                "version, or set fit.launcher=none to train a model in each"
            )

    def run(self, remote: "Callable[[TrainingData], object]", local: Callable[[], T]) -> T:
        """Return the result of `local`, which shares rows with `remote` in all other processes. In rank 0 only."""
        self._send("call", remote)
        with shared_by(self):
            return local()

    def serve(self, training: "TrainingData") -> Any:
        """Work for rank 0 until it sends its result, and return that."""
        while True:
            kind, value = self._receive()
            if kind == "result":
                return value
            with shared_by(self):
                value(training)

    def send_result(self, value: Any) -> None:
        """Give the result to the others, which `serve`."""
        self._send("result", value)

    def close(self) -> None:
        """Wait until rank 0 has come to its end, too."""
        if self.leads:
            self._announce("end")
        else:
            self._receive()

    def explain(self, error: BaseException) -> BaseException:
        """Return the error to raise for one of this process; the others get to know of it.

        If the connection to another one is lost, it is that one's failure.
        """
        if not _is_lost(error):
            text = str(error) if isinstance(error, GatecastError) else f"{type(error).__name__}: {error}"
            text = text if isinstance(error, Exception) else "was interrupted"
            self._report(type(error).__name__, text)
            return error
        with suppress(DistError):
            if self._wait([_FAILURE], _REASON):  # It is reported before the connection ends.
                return self._failure()
        text = (
            f"fit.launcher={self.launcher}: rank {self.rank} of {self.size} has lost another process of the training, "
            f"which was ended or does not answer ({_first_line(error)}); see its output, and run the same command "
            "again: with fit.checkpoint it resumes from the last validation"
        )
        self._report("EngineError", text)
        return EngineError(text)

    def leave(self, *, failed: bool) -> None:
        """End the groups; rank 0, whose store ends with it, gives the others a few seconds to read its last word."""
        # After a failure NCCL may wait for a process that has ended. Gloo ends what others wait for.
        if self._owner and not (failed and distributed.get_backend() == "nccl"):
            distributed.destroy_process_group()
        with suppress(DistError):
            self._store.set(f"left/{self.rank}", "")
            if self.leads:
                self._wait([f"left/{rank}" for rank in range(1, self.size)], _GRACE)

    def _send(self, kind: str, value: Any) -> None:
        buffer = BytesIO()
        torch.save(value, buffer)
        self._announce(kind)
        distributed.broadcast_object_list([buffer.getvalue()], src=0, group=self._group)

    def _announce(self, kind: str) -> None:
        self._store.set(f"turn/{self._turn}", kind)
        self._turn += 1

    def _receive(self) -> tuple[str, Any]:
        """Return the next kind of message of rank 0 and its value, on the CPU. Raises the failure of any process."""
        key = f"turn/{self._turn}"
        while not self._wait([key], _LONGEST_SLEEP):
            if self._store.check([_FAILURE]):
                raise self._failure()
        self._turn += 1
        kind = self._store.get(key).decode()
        if kind == _FAILURE:
            raise self._failure()
        if kind == "end":
            return kind, None
        content: list[Any] = [None]
        distributed.broadcast_object_list(content, src=0, group=self._group)
        return kind, torch.load(BytesIO(content[0]), map_location="cpu", weights_only=False)

    def _wait(self, keys: list[str], seconds: float) -> bool:
        """Return whether the store gets all keys in this time, with ever longer sleeps between looks."""
        until, sleep = time.monotonic() + seconds, 0.01
        while not self._store.check(keys):
            if time.monotonic() >= until:
                return False
            time.sleep(sleep := min(2 * sleep, _LONGEST_SLEEP))
        return True

    def _report(self, kind: str, text: str) -> None:
        """Tell the others about a failure, unless there was one before."""
        with suppress(DistError):
            self._store.compare_set(_FAILURE, "", json.dumps([self.rank, kind, redacted(text)]))
            if self.leads:
                self._announce(_FAILURE)

    def _failure(self) -> GatecastError:
        """Return the failure that was reported first."""
        rank, name, text = json.loads(self._store.get(_FAILURE))
        kind = getattr(errors, name, GatecastError)
        kind = kind if isinstance(kind, type) and issubclass(kind, GatecastError) else GatecastError
        return kind(f"rank {rank} of {self.size}: {text}")


_joined: ContextVar[Ranks | None] = ContextVar("_joined", default=None)
_meetings = itertools.count()


@contextmanager
def joined(fit: FitConfig) -> Iterator[Ranks | None]:
    """Join the processes that the launcher of `fit` has started; None if this one trains alone.

    Inside, a second call gives the same ranks. The end of a process with an error is one for all of them.

    Raises ConfigError if the launcher's variables are missing or wrong, EngineError if a process does not come or is
    lost.
    """
    ranks = _joined.get()
    place = None if ranks else placement(fit.launcher)
    if place is None:
        yield ranks
        return
    if fit.devices > 1:
        raise ConfigError(
            f"fit.devices={fit.devices}: with fit.launcher={fit.launcher} the launcher starts the processes of each "
            "machine; set fit.devices=1 and torchrun --nproc-per-node or srun --ntasks-per-node"
        )
    ranks, failed = _meet(place, fit), False
    token = _joined.set(ranks)
    try:
        yield ranks
        ranks.close()
    except BaseException as error:
        failed, failure = True, ranks.explain(error)
        if failure is error:
            raise
        raise failure from error
    finally:
        _joined.reset(token)
        ranks.leave(failed=failed)


def _meet(place: Placement, fit: FitConfig) -> Ranks:
    """Return the processes after they have met, in the group of the caller if it has one."""
    owner = not distributed.is_initialized()
    cuda = torch.cuda.is_available() and fit.accelerator != "cpu"
    device = _gpu(place) if cuda else 0
    try:
        base = _store(place) if owner else _get_default_store()
        store = PrefixStore(f"gatecast/{next(_meetings)}", base)
        if owner:
            distributed.init_process_group(
                "nccl" if cuda else "gloo",
                store=store,
                rank=place.rank,
                world_size=place.size,
                timeout=_STEP,
                device_id=torch.device("cuda", device) if cuda else None,
            )
        group = distributed.new_group(backend="gloo", timeout=_STEP)
    except (RuntimeError, ValueError) as error:
        raise EngineError(
            f"fit.launcher={place.launcher}: rank {place.rank} of {place.size} can't meet the others at "
            f"{place.address}:{place.port} ({_first_line(error)}); start all of them, on machines that reach "
            "this host and port, or set fit.launcher=none to train in one process"
        ) from error
    _LOG.info("fit: %d processes of %s train one model; this is rank %d", place.size, place.launcher, place.rank)
    return Ranks(place, store, group, device=device, owner=owner)


@functools.cache
def _store(place: Placement) -> Any:
    """Return the store in which the processes meet. It lasts as long as this process: a second training meets there."""
    store, _, _ = next(rendezvous(place.url, rank=place.rank, world_size=place.size, timeout=_START))
    return store


def _gpu(place: Placement) -> int:
    """Return the number of this process's GPU, which becomes the current one. Raises ConfigError if there is none."""
    count = torch.cuda.device_count()
    # A launcher may show each process its own GPU only.
    device = place.local_rank if count > 1 else 0
    if device >= count:
        raise ConfigError(
            f"fit.launcher={place.launcher}: process {place.local_rank} of this machine has no GPU, torch "
            f"finds {count}; start a process for each GPU, or set fit.accelerator=cpu"
        )
    torch.cuda.set_device(device)
    return device


def _is_lost(error: BaseException) -> bool:
    """Return whether an error says that the connection to another process is lost."""
    return isinstance(error, DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _first_line(error: BaseException) -> str:
    """Return what an error of torch says, without its place in the source and general advice."""
    text = next(iter(str(error).splitlines()), "") or type(error).__name__
    return re.sub(r"^\[[^\]]*\] ", "", text).partition(". ")[0]
