"""Scoring on a Ray cluster of a head without CPUs and two nodes, parts of which are lost during the job."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import workloads
from folders import contents
from workloads import KillingEngine

from forecast import artifact as artifacts
from forecast.config import EngineSettings, ScoreOutput, ScoreSettings, SourceConfig
from forecast.data.prepared.prepare import prepare
from forecast.data.sources.open import open_tables
from forecast.engines.engine import Engine, open_engine
from forecast.errors import EngineError
from forecast.scoring.job import ScoreJob
from forecast.scoring.shard_writer import WriteTask
from forecast.training.result import FitResult

pytestmark = pytest.mark.distributed


def write(folder: Path, out: Path, engine: Engine | None, progress: Callable[[int], None] | None = None) -> None:
    """Run the job of the model and the panel in a folder."""
    artifact = artifacts.load(folder / "model")
    loaded = artifact.open(SourceConfig(path=str(folder / "panel")))
    names = {"model": "m", "model_version": "3", "model_digest": "ab12"}
    job = ScoreJob(artifact, loaded, ScoreSettings(shard_size=1), ScoreOutput(path=str(out)), names, engine=engine)
    job.write(loaded.panel.last_index, progress)


def kill_at_the_second_shard(_: int, reports: list[int] = []) -> None:  # noqa: B006  counts the calls
    reports.append(1)
    if len(reports) == 2:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def folder(trained: FitResult, weekly_table: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a prepared panel, and the output of one process."""
    folder = tmp_path_factory.mktemp("cluster")
    weekly_table.write_parquet(folder / "table.parquet")
    trained.artifact.save(folder / "model")
    data = trained.artifact.data.with_source(SourceConfig(path=str(folder / "table.parquet")))
    prepare(open_tables(data), data, trained.artifact.horizon, folder / "panel")
    write(folder, folder / "local", None)
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        roots = [str(Path(workloads.__file__).parent), str(Path(workloads.__file__).parents[2])]
        patch.setenv("PYTHONPATH", os.pathsep.join([*roots, os.environ.get("PYTHONPATH", "")]))
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        cluster.add_node(num_cpus=1)
        yield cluster
        cluster.shutdown()


@pytest.fixture(scope="module")
def engine(cluster: Any) -> Iterator[Engine]:
    with open_engine(EngineSettings(kind="ray", address=cluster.address)) as engine:
        assert engine is not None
        yield engine


def test_a_driver_that_is_killed_leaves_its_parts_to_the_next(
    cluster: Any, engine: Engine, folder: Path, tmp_path: Path
) -> None:
    script = (
        "import sys; from pathlib import Path; from forecast.config import EngineSettings\n"
        "from forecast.engines.engine import open_engine\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from test_cluster import kill_at_the_second_shard, write\n"
        "with open_engine(EngineSettings(kind='ray', address=sys.argv[2])) as engine:\n"
        "    write(Path(sys.argv[3]), Path(sys.argv[4]), engine, kill_at_the_second_shard)\n"
    )
    command = [sys.executable, "-c", script, str(Path(__file__).parent), cluster.address, str(folder), str(tmp_path)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    parts = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("forecasts/**/part-*")}
    assert 2 <= len(parts) < 8
    assert not list(tmp_path.glob("manifests/*"))
    write(folder, tmp_path, engine)
    assert contents(tmp_path) == contents(folder / "local")
    published = {path.name: path.stat().st_mtime_ns for path in tmp_path.rglob("forecasts/**/part-*")}
    assert {path.name: time for path, time in parts.items()}.items() <= published.items()


def test_a_worker_that_is_killed(engine: Engine, folder: Path, tmp_path: Path) -> None:
    killing = KillingEngine(engine, tmp_path)
    write(folder, tmp_path / "out", killing)
    assert killing.marker.exists()
    assert contents(tmp_path / "out") == contents(folder / "local")


def test_a_node_that_is_removed(cluster: Any, engine: Engine, folder: Path, tmp_path: Path) -> None:
    nodes = [cluster.add_node(num_cpus=1)]
    cluster.wait_for_nodes()

    def remove(_: int) -> None:
        if nodes:
            cluster.remove_node(nodes.pop(), allow_graceful=False)

    write(folder, tmp_path, engine, remove)
    assert not nodes
    assert contents(tmp_path) == contents(folder / "local")


def test_a_folder_that_the_workers_do_not_see(engine: Engine, folder: Path, tmp_path: Path) -> None:
    class Elsewhere:
        """An engine on whose machines the folder of the output is missing."""

        n_workers = engine.n_workers

        def run(self, work: Any, tasks: Any) -> Any:
            if isinstance(tasks[0], WriteTask):
                (tmp_path / "out" / ".staging").rename(tmp_path / "away")
            yield from engine.run(work, tasks)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("forecast.engines.ray_cluster.PAUSES", (0.0, 0.0, 0.0))
        with pytest.raises(EngineError, match=r"all 8 shards failed: a worker does not see .*must be on a disk that"):
            write(folder, tmp_path / "out", Elsewhere())
    assert not list(tmp_path.glob("out/manifests/*"))
