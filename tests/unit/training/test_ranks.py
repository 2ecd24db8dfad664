"""Training on several machines: processes with the environment of torchrun and of Slurm on different hosts."""

import os
import random
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import rank_program
import torch

from forecast.config import BacktestSettings, DistilConfig, FitConfig, TuneConfig
from forecast.config import load as load_config
from forecast.errors import ConfigError
from forecast.models.linear.ridge import Samples, huber_reweight, solve_ridge, spectra
from forecast.models.runtime.shares import all_rows, share_of, shared_by
from forecast.training.launcher import Placement, placement
from forecast.training.ranks import joined

ROOT = Path(__file__).parents[3]
TORCHRUN = {
    "RANK": "1",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "GROUP_RANK": "0",
    "MASTER_ADDR": "a",
    "MASTER_PORT": "1",
}
SBATCH = {"SLURM_JOB_ID": "70001", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_JOB_NODELIST": "gpu[07-09]"}
SRUN = SBATCH | {
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
}


# --- the place of a process


def test_a_process_finds_its_place_in_the_environment_of_its_launcher() -> None:
    for launcher in ("auto", "torchrun"):
        assert placement(launcher, TORCHRUN) == Placement("torchrun", 1, 4, 1, "a", 1)
        # One agent of torchrun on each node of a step.
        assert placement(launcher, SRUN | TORCHRUN) == Placement("torchrun", 1, 4, 1, "a", 1)
    for launcher in ("auto", "slurm"):
        place = placement(launcher, SRUN)
        assert place is not None
        assert (place.launcher, place.rank, place.size, place.local_rank, place.address) == ("slurm", 3, 4, 1, "gpu07")
        assert 12_000 <= place.port < 28_000
        assert place.url == f"tcp://gpu07:{place.port}"
        chosen = placement(launcher, SRUN | {"MASTER_ADDR": "b", "MASTER_PORT": "5"})
        assert chosen == Placement("slurm", 3, 4, 1, "b", 5)


@pytest.mark.parametrize(
    ("launcher", "environment"),
    [
        ("none", TORCHRUN),
        ("none", SRUN),
        ("auto", {}),
        ("auto", SBATCH),  # a batch script without srun
        ("auto", SRUN | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}),  # a shell by srun --pty
        ("auto", TORCHRUN | {"WORLD_SIZE": "1", "RANK": "0"}),
        ("torchrun", TORCHRUN | {"WORLD_SIZE": "1", "RANK": "0"}),
    ],
)
def test_a_process_trains_alone(launcher: str, environment: dict[str, str]) -> None:
    assert placement(launcher, environment) is None


@pytest.mark.parametrize(
    ("launcher", "environment", "message"),
    [
        ("torchrun", SRUN, r"fit.launcher=torchrun: the environment lacks RANK, WORLD_SIZE, .*start .* by torchrun"),
        (
            "slurm",
            SBATCH,
            r"lacks SLURM_STEP_NUM_TASKS, SLURM_STEP_NODELIST; start .* by srun, or set fit.launcher=none",
        ),
        ("auto", TORCHRUN | {"RANK": "4"}, r"RANK=4 is not one of WORLD_SIZE=4"),
        ("auto", TORCHRUN | {"MASTER_PORT": "x"}, r"MASTER_PORT='x' .* is not a whole number"),
    ],
)
def test_an_environment_that_says_no_place_is_refused(launcher: str, environment: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        placement(launcher, environment)


def test_devices_are_for_one_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(ConfigError, match=r"fit.devices=2: .*--nproc-per-node"),
        joined(FitConfig(launcher="auto", devices=2)),
    ):
        pass


def test_only_training_takes_a_launcher() -> None:
    table = {"data": {"path": "panel.parquet"}, "window": {"horizon": 7}, "output": {"path": "x"}}
    several = {"fit": {"launcher": "slurm"}}
    for kind, values in (
        (TuneConfig, table | several),
        (DistilConfig, {"data": table["data"]} | several),
        (BacktestSettings, {"refit": "scratch"} | several),
    ):
        with pytest.raises(ConfigError, match=r"fit.*launcher=slurm is for forecast train"):
            load_config(kind, values)


# --- shares and sums


class Threads:
    """Two threads in place of processes."""

    size = 2

    def __init__(self, rank: int, values: dict[int, Any], barrier: threading.Barrier) -> None:
        self.rank, self._values, self._barrier = rank, values, barrier

    def gather(self, value: Any) -> list[Any]:
        self._values[self.rank] = value
        self._barrier.wait(10)
        values = [self._values[rank] for rank in range(self.size)]
        self._barrier.wait(10)
        return values


def on_two(work: Callable[[], Any]) -> list[Any]:
    """What `work` returns in two threads that share rows."""
    results: dict[int, Any] = {}
    values: dict[int, Any] = {}
    barrier = threading.Barrier(2)

    def run(rank: int) -> None:
        with shared_by(Threads(rank, values, barrier)):
            results[rank] = work()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return [results[rank] for rank in range(2)]


def samples(n: int = 9_001, context: int = 12, horizon: int = 3) -> Samples:
    """Noisy linear windows in float64, of which some targets are missing."""
    rng = np.random.default_rng(0)
    window = torch.from_numpy(rng.normal(size=(n, context)))
    target = window @ torch.from_numpy(rng.normal(size=(context, horizon)))
    target += torch.from_numpy(rng.standard_t(2, size=(n, horizon)))
    observed = torch.from_numpy((rng.random((n, horizon)) > 0.05).astype(float))
    ones = torch.ones(n, dtype=torch.float64)
    spread, number = torch.ones(n, horizon, dtype=torch.float64), torch.arange(n)
    fields = (ones, spread, 0 * ones, ones, number % 7, number, 0 * ones, 0 * spread)
    return Samples(window, target * observed, observed, *fields)


def test_normal_equations_over_processes_are_those_of_one() -> None:
    rows, prior = samples(), torch.zeros(13, 3, dtype=torch.float64)

    def solve() -> tuple[torch.Tensor, ...]:
        weighted = huber_reweight(rows, prior)
        (spectrum,) = spectra(weighted, [True])
        return (weighted.weight, spectrum.values, *solve_ridge(weighted, prior, (1e-3, 1.0), spectrum=spectrum))

    alone = solve()
    first, second = on_two(solve)
    for expected, *results in zip(alone, first, second, strict=True):
        for result in results:
            torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10)
    assert all(torch.equal(*results) for results in zip(first, second, strict=True))


@pytest.mark.parametrize("n_rows", [0, 1, 2, 7])
def test_each_row_has_one_process(n_rows: int) -> None:
    rows = torch.arange(n_rows)

    def read() -> list[torch.Tensor]:
        part = rows[share_of(n_rows)]
        return all_rows([(batch, 2 * batch) for batch in part.split(2) if len(batch)], rows.device)

    for columns in [read(), *on_two(read)] if n_rows else []:
        assert [values.tolist() for values in columns] == [rows.tolist(), (2 * rows).tolist()]
    assert on_two(lambda: len(range(n_rows)[share_of(n_rows)])) == [n_rows // 2, -(-n_rows // 2)]


# --- two nodes


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def on_two_nodes(commands: list[list[str]], environments: list[dict[str, str]], folder: Path) -> list[tuple[int, str]]:
    """Exit code and output of a process on each node."""
    common = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, *command],
            env=common | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=folder,
        )
        for command, environment in zip(commands, environments, strict=True)
    ]
    try:
        outputs = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, output) for process, output in zip(processes, outputs, strict=True)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, table: Callable[..., pl.DataFrame], weekly: Any) -> Path:
    """A table with missing steps."""
    folder = tmp_path_factory.mktemp("ranks")
    series = weekly(8, 140, seed=3)
    series["s03"][[20, 21, 90, 110, 111]] = np.nan
    series["s05"] = series["s05"][:90]
    table(series).write_parquet(folder / "panel.parquet")
    return folder


@pytest.fixture(scope="module")
def by_slurm(folder: Path) -> list[tuple[int, str]]:
    """The program on two nodes of a step of Slurm."""
    job = {
        "SLURM_JOB_ID": str(random.randrange(100_000)),
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NODELIST": "127.0.0.1,node[2-3]",
        "SLURM_LOCALID": "0",
        "MASTER_PORT": free_port(),
    }
    nodes = [job | {"SLURM_PROCID": str(rank), "SLURM_NODEID": str(rank)} for rank in range(2)]
    return on_two_nodes([[rank_program.__file__, str(folder)]] * 2, nodes, folder)


@pytest.mark.distributed
@pytest.mark.trains
@pytest.mark.usefixtures("by_slurm")
@pytest.mark.parametrize("name", ["closed_form", "network"])
def test_two_nodes_train_as_one_process_with_batches_of_twice_the_size(folder: Path, name: str) -> None:
    (weights, curve, summary), (other_weights, *_) = (
        torch.load(folder / f"{name}-{rank}.pt", weights_only=False) for rank in range(2)
    )
    fit = rank_program.CLOSED_FORM if name == "closed_form" else rank_program.NETWORK
    one = rank_program.train(folder, fit, batch_size=8)
    assert summary["ranks"] == 2
    assert summary["steps"] == one.summary["steps"] == fit["max_steps"]
    assert summary["best_step"] == one.summary["best_step"]
    assert (summary["best_step"] > 0) == (name == "network")
    for (step, values), (expected_step, expected) in zip(curve, one.curve, strict=True):
        assert (step, values) == (expected_step, pytest.approx(expected, rel=1e-4))
    for key, values in one.artifact.network.state_dict().items():
        torch.testing.assert_close(weights[key], values, rtol=1e-3, atol=1e-5)
        assert torch.equal(weights[key], other_weights[key])  # all ranks return the model of rank 0


@pytest.mark.distributed
def test_a_killed_rank_ends_the_other_with_an_error(folder: Path, by_slurm: list[tuple[int, str]]) -> None:
    (first, output), (second, _) = by_slurm
    assert (first, second) == (0, -9), output
    message = (folder / "error-0.txt").read_text()
    assert message.startswith("fit.launcher=slurm: rank 0 of 2 has lost another process")
    assert not (folder / "error-1.txt").exists()


@pytest.mark.distributed
@pytest.mark.trains
def test_torchrun_on_two_nodes_registers_one_version(folder: Path) -> None:
    port = free_port()
    settings = ["data.path=panel.parquet", "window.horizon=7", "registry.name=joint", "model.init=none"]
    settings += ["fit.max_steps=4", "fit.validation_every=2", "fit.batch_size=4", "model.hidden_size=8"]
    settings += ["registry.tracking_uri=sqlite:///mlflow.db", "ledger.uri=sqlite:///ledger.db"]
    meeting = ["--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={port}"]
    commands = [
        ["-m", "torch.distributed.run", *meeting, f"--node-rank={node}", "-m", "pipelines.cli", "train", *settings]
        for node in range(2)
    ]
    (code, output), (other_code, other_output) = on_two_nodes(commands, [{}, {}], folder)
    assert (code, other_code) == (0, 0), output + other_output
    lines = [text.count("joint v1 (pretrained)") for text in (output, other_output)]
    assert sorted(lines) == [0, 1], output + other_output
    for file, table, rows in (("mlflow", "model_versions", 1), ("mlflow", "runs", 1), ("ledger", "gatecast_runs", 1)):
        with closing(sqlite3.connect(folder / f"{file}.db")) as database:
            assert database.execute(f"select count(*) from {table}").fetchone() == (rows,)
