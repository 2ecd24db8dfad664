"""Errors of tasks, workers and clusters: which are tried again, and what reaches the caller."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import workloads
from workloads import Failure

from forecast.config import EngineSettings
from forecast.engines import payload, processes, ray_cluster
from forecast.engines.engine import Engine, open_engine
from forecast.engines.processes import Processes
from forecast.errors import ConfigError, DataError, EngineError, OutputError

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module", params=["processes", "ray"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    with pytest.MonkeyPatch.context() as patch:
        root = str(Path(workloads.__file__).parent)
        patch.setenv("PYTHONPATH", os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]))
        if request.param == "ray":
            pytest.importorskip("ray")
        for module in (processes, ray_cluster):
            patch.setattr(module, "PAUSES", (0.0, 0.0, 0.0))
        with open_engine(EngineSettings(kind=request.param, workers=2)) as opened:
            assert opened is not None
            yield opened


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("data", DataError, "a column is missing"),
        ("bug", ZeroDivisionError, "a bug"),
        ("unpicklable", RuntimeError, "UnpicklableError: 7: a driver's error"),
        ("full disk", OutputError, "can't write the part"),
    ],
)
def test_an_error_that_another_attempt_does_not_mend_is_raised_at_once(
    engine: Engine, tmp_path: Path, kind: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        list(engine.run(Failure(tmp_path, kind), range(4)))
    assert len(list(tmp_path.glob("1-*"))) == 1


@pytest.mark.parametrize(("times", "failures"), [(2, {}), (3, {1: "the disk is away"})])
def test_reading_and_writing_is_tried_three_times(
    engine: Engine, tmp_path: Path, times: int, failures: dict[int, str]
) -> None:
    outcomes = list(engine.run(Failure(tmp_path, "network", times), range(4)))
    assert {outcome.task: outcome.failure for outcome in outcomes if outcome.failure} == failures
    assert sorted(outcome.task for outcome in outcomes) == [0, 1, 2, 3]


def test_a_worker_with_another_version_is_refused(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(payload, "gatecast_version", lambda: "9.9.9")  # In the process of the job alone.
    with pytest.raises(ConfigError, match=r"a worker has gatecast .*, the job 9\.9\.9; install the same version"):
        list(engine.run(Failure(tmp_path, "data"), range(4)))


def test_processes_leave_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a process nor the saved work, even if the job is killed."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    job = (
        "import os, signal, sys; from pathlib import Path; from workloads import Killer\n"
        "from forecast.engines.processes import Processes\n"
        "if __name__ == '__main__':\n"
        "    with Processes(1) as engine:\n"
        "        print(next(engine.run(Killer(Path(sys.argv[1]), 0), range(4))).result, flush=True)\n"
        "        print(*[pid for pool in engine._pools.values() for pid in pool._processes], flush=True)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    script = tmp_path / "job.py"
    script.write_text(job)
    root = str(Path(workloads.__file__).parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([root, os.environ.get("PYTHONPATH", ""), str(Path.cwd())]))
    ended = subprocess.run([sys.executable, str(script), str(tmp_path)], stdout=subprocess.PIPE, text=True, check=False)
    assert ended.returncode < 0
    workers = [int(pid) for pid in ended.stdout.splitlines()[1].split()]
    assert workers
    ticks = iter(range(1000))
    while any(Path(f"/proc/{pid}/cmdline").exists() for pid in workers) or list(tmp_path.glob("gatecast-*")):
        assert next(ticks) < 600
        threading.Event().wait(0.05)


def test_an_array_from_a_panel_that_was_replaced_is_an_error(tmp_path: Path) -> None:
    import numpy as np

    np.save(tmp_path / "target.npy", np.arange(10_000.0))
    saved = payload.Payload.of(np.load(tmp_path / "target.npy", mmap_mode="r")[100:9_000])
    assert not saved.buffers
    np.testing.assert_array_equal(saved.load(), np.arange(100.0, 9_000.0))
    (tmp_path / "target.npy").unlink()
    payload._map.cache_clear()
    with pytest.raises(DataError, match=r"a worker does not see .*target.npy: the panel was replaced during the job"):
        saved.load()


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", None])
@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_of_another_service_is_an_error_within_seconds(
    answer: bytes | None, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    monkeypatch.setattr(ray_cluster, "_PROBE_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            if answer is not None:
                connection.recv(100)
                connection.sendall(answer)
                connection.close()
            else:
                threading.Event().wait(1.0)
                connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        settings = EngineSettings(kind="ray", address=f"{scheme}127.0.0.1:{server.getsockname()[1]}")
        with pytest.raises(EngineError, match=r"the Ray cluster does not answer \((another service|timed out)"):
            open_engine(settings).__enter__()
        thread.join()


def test_ray_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"engine=ray needs: pip install 'gatecast\[ray\]'"):
        open_engine(EngineSettings(kind="ray")).__enter__()


def test_the_number_of_processes_is_that_of_the_cores() -> None:
    assert Processes().n_workers == len(os.sched_getaffinity(0))
