"""Workers on a Ray cluster: core tasks, at most two in flight for each CPU."""

import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple, Self

from forecast.config import EngineSettings
from forecast.engines import worker
from forecast.engines.engine import ATTEMPTS, PAUSES, Outcome, Queue, Result, Task, TransientError, Work
from forecast.engines.payload import Payload
from forecast.errors import ConfigError, EngineError

_LOG = logging.getLogger(__name__)
_IN_FLIGHT_PER_CPU: Final = 2
_PROBE_SECONDS: Final = 5.0
_SETTINGS: Final = b"\0\0\0\x04\0\0\0\0\0"
"""An empty SETTINGS frame of HTTP/2; the fourth byte is the type."""
_RECOUNT_SECONDS: Final = 10.0


class _Running(NamedTuple):
    task: Any
    attempt: int


class RayCluster:
    """An engine of tasks on a Ray cluster. A lost node takes only its own tasks with it.

    Work is put into the object store once, and read from there by the workers of each node. Files that the tasks write
    and panels that are mapped must be on a disk that all nodes share.
    """

    def __init__(self, settings: EngineSettings) -> None:
        try:
            os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
            import ray
        except ImportError:
            raise ConfigError("engine=ray needs: pip install 'gatecast[ray]'") from None
        self._ray: Any = ray
        self._settings = settings
        self._put: tuple[object, Any, str] | None = None
        self._counted_at = 0.0
        self.n_workers = 0

    def __enter__(self) -> Self:
        address = self._settings.address or os.environ.get("RAY_ADDRESS")
        _probe(address)
        handler = signal.getsignal(signal.SIGTERM)
        try:
            # Without an address, Ray would join whatever cluster was started last on this machine.
            self._ray.init(
                address or "local", log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False
            )
        except (ConnectionError, RuntimeError, TimeoutError, ValueError, self._ray.exceptions.RayError) as error:
            raise EngineError(_no_answer(address, str(error).split("\n", 1)[0])) from error
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # That of Ray aborts the process.
        self._count()
        return self

    def __exit__(self, *error: object) -> None:
        self._ray.shutdown()

    def run(self, work: Work[Task, Result], tasks: Iterable[Task]) -> Iterator[Outcome[Task, Result]]:
        """Yield the outcomes, as `Engine.run`."""
        ray, (payload, key) = self._ray, self._reference(work)
        remote = ray.remote(num_cpus=1, num_gpus=self._settings.num_gpus, max_retries=0)(_run_task)
        queue, running = Queue(tasks), dict[Any, _Running]()
        try:
            while True:
                self._count()
                while len(running) < self.n_workers and (entry := queue.pop()):
                    task, attempt, pause = entry
                    running[remote.remote([payload], key, task, pause)] = _Running(task, attempt)
                if not running:
                    return
                for reference in ray.wait(list(running), timeout=1.0)[0]:
                    task, attempt = running.pop(reference)
                    pause = 0.0
                    try:
                        result = ray.get(reference)
                    except ray.exceptions.RayTaskError as error:
                        failure, pause = str(error.cause), PAUSES[min(attempt, ATTEMPTS - 1)]
                        if not isinstance(error.cause, TransientError):
                            raise error.cause from error
                    except ray.exceptions.RayError as error:
                        failure = f"its worker was lost ({type(error).__name__})"
                        _LOG.warning("engine: a task is tried again, %s", failure)
                    else:
                        yield Outcome(task, result)
                        continue
                    if attempt < ATTEMPTS:
                        queue.retry(task, attempt + 1, pause)
                    else:
                        yield Outcome(task, None, failure)
        finally:
            for reference in running:
                ray.cancel(reference, force=True)

    def _reference(self, work: object) -> tuple[Any, str]:
        """Return the reference of the work in the object store, and its key."""
        if self._put is None or self._put[0] is not work:
            self._put = work, self._ray.put(Payload.of(work)), uuid.uuid4().hex
        return self._put[1:]

    def _count(self) -> None:
        """Count the tasks that may be in flight, as nodes come and go."""
        now = time.monotonic()
        if self.n_workers and now - self._counted_at < _RECOUNT_SECONDS:
            return
        self._counted_at = now
        cpus = int(self._ray.cluster_resources().get("CPU", 0))
        self.n_workers = self._settings.workers or max(1, _IN_FLIGHT_PER_CPU * cpus)


def _run_task(payload: list[Any], key: str, task: object, pause: float) -> Any:
    """Run a task in a worker of the cluster. `payload` holds a reference, which is read once per worker."""
    import ray

    return worker.run(key, lambda: ray.get(payload[0]), task, pause)


def _probe(address: str | None) -> None:
    """Raise EngineError if no server of gRPC, and so no cluster, listens at an address; Ray would wait for minutes.

    A server of HTTP/2 answers the first bytes of a client with its settings (RFC 9113, section 3.4).
    """
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _PROBE_SECONDS) as connection:
            if os.environ.get("RAY_USE_TLS", "0") != "0":
                return
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _SETTINGS)
            answer = connection.recv(9)
    except OSError as error:
        raise EngineError(_no_answer(address, error.strerror or str(error))) from None
    if answer[3:4] != _SETTINGS[3:4]:
        raise EngineError(_no_answer(address, "another service listens there"))


def _no_answer(address: str | None, reason: str) -> str:
    return f"engine.address={address}: the Ray cluster does not answer ({reason}); start it, or mend the address"
