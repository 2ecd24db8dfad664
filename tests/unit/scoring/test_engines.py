"""Shards written by processes, by a cluster and by shares of a job are those of one process, byte by byte."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import workloads
from folders import contents
from workloads import Killer

from forecast.config import EngineSettings, JobShare, ScoreOutput, ScoreSettings
from forecast.data.files import locked
from forecast.data.ingest.loaded import Loaded
from forecast.engines.engine import Engine, open_engine
from forecast.engines.processes import Processes
from forecast.errors import EngineError, OutputError
from forecast.scoring.job import ScoreJob
from forecast.scoring.parts import Output
from forecast.training.result import FitResult

NAMES = {"model": "m", "model_version": "3", "model_digest": "ab12"}

pytestmark = pytest.mark.distributed


def job(fitted: FitResult, loaded: Loaded, folder: Path, engine: Engine | None = None, **output: Any) -> ScoreJob:
    settings = ScoreSettings(shard_size=3)
    return ScoreJob(fitted.artifact, loaded, settings, ScoreOutput(path=str(folder), **output), NAMES, engine=engine)


def write(fitted: FitResult, loaded: Loaded, folder: Path, engine: Engine | None = None, **output: Any) -> Output:
    with locked(folder):
        return job(fitted, loaded, folder, engine, **output).write(loaded.panel.last_index)


@pytest.fixture(scope="module")
def processes() -> Iterator[Engine]:
    with Processes(2) as engine:
        yield engine


@pytest.fixture(scope="module")
def local(trained: FitResult, weekly_loaded: Loaded, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("local")
    write(trained, weekly_loaded, folder)
    return contents(folder)


def test_processes_write_the_same_bytes(
    trained: FitResult, weekly_loaded: Loaded, tmp_path: Path, processes: Engine, local: dict[str, str]
) -> None:
    output = write(trained, weekly_loaded, tmp_path, processes)
    assert contents(tmp_path) == local
    assert not output.was_complete
    assert write(trained, weekly_loaded, tmp_path, processes).was_complete


def test_sixteen_shares_and_a_commit_write_the_same_bytes(
    trained: FitResult, weekly_loaded: Loaded, tmp_path: Path, local: dict[str, str]
) -> None:
    cutoff = weekly_loaded.panel.last_index
    for index in reversed(range(16)):
        with locked(tmp_path, shared=True):
            job(trained, weekly_loaded, tmp_path).write_share(cutoff, JobShare(index, 16))
    assert not list(tmp_path.glob("manifests/*"))
    with locked(tmp_path):
        job(trained, weekly_loaded, tmp_path).write(cutoff, commit=True)
    assert contents(tmp_path) == local
    with locked(tmp_path, shared=True):
        again = job(trained, weekly_loaded, tmp_path).write_share(cutoff, JobShare(0, 2))
    assert (again.n_shards, again.n_written) == (1, 0)


def test_a_commit_without_all_parts_publishes_nothing(
    trained: FitResult, weekly_loaded: Loaded, tmp_path: Path
) -> None:
    cutoff = weekly_loaded.panel.last_index
    job(trained, weekly_loaded, tmp_path).write_share(cutoff, JobShare(0, 2))
    with pytest.raises(OutputError, match=r"2 of 3 parts of the cutoff are missing: 1, 2"):
        job(trained, weekly_loaded, tmp_path).write(cutoff, commit=True)
    assert not list(tmp_path.glob("manifests/*"))
    assert not list(tmp_path.glob("forecasts/*"))


@pytest.mark.parametrize(("deaths", "failed"), [(2, []), (3, [1])])
def test_a_killed_process_takes_only_its_own_task_with_it(
    tmp_path: Path, processes: Engine, deaths: int, failed: list[int]
) -> None:
    outcomes = {outcome.task: outcome for outcome in processes.run(Killer(tmp_path, deaths), range(4))}
    assert [task for task, outcome in sorted(outcomes.items()) if outcome.failure] == failed
    assert {task: outcome.result for task, outcome in outcomes.items() if not outcome.failure} == {
        task: task * task for task in range(4) if task not in failed
    }


@pytest.fixture(scope="module")
def cluster() -> Iterator[Engine]:
    pytest.importorskip("ray")
    root = str(Path(workloads.__file__).parent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]))
        yield from _started()


def _started() -> Iterator[Engine]:
    with open_engine(EngineSettings(kind="ray", workers=2)) as engine:
        assert engine is not None
        yield engine


def test_a_cluster_writes_the_same_bytes(
    trained: FitResult, weekly_loaded: Loaded, tmp_path: Path, cluster: Engine, local: dict[str, str]
) -> None:
    write(trained, weekly_loaded, tmp_path, cluster)
    assert contents(tmp_path) == local


@pytest.mark.parametrize(("deaths", "failed"), [(2, []), (3, [1])])
def test_a_lost_worker_takes_only_its_own_task_with_it(
    tmp_path: Path, cluster: Engine, deaths: int, failed: list[int]
) -> None:
    outcomes = {outcome.task: outcome for outcome in cluster.run(Killer(tmp_path, deaths), range(4))}
    assert [task for task, outcome in sorted(outcomes.items()) if outcome.failure] == failed


def test_a_cluster_that_does_not_answer_is_an_error_within_seconds() -> None:
    settings = EngineSettings(kind="ray", address="127.0.0.1:9")
    with pytest.raises(EngineError, match=r"engine.address=127.0.0.1:9: the Ray cluster does not answer"):
        open_engine(settings).__enter__()
