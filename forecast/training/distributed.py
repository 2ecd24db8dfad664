"""A training in several processes: one per device, or those that a launcher has started on several machines."""

import copy
import hashlib
import multiprocessing
import os
import socket
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.multiprocessing.spawn import ProcessException, spawn

from forecast.config import FitConfig
from forecast.errors import GatecastError
from forecast.models.inputs.batch import PanelTensors
from forecast.models.network.ensemble import Member
from forecast.models.runtime.torch_setup import only_deterministic, prepare, seed_generators
from forecast.training.best_weights import BestWeights
from forecast.training.budget import Budget
from forecast.training.checkpoint import Checkpoint
from forecast.training.split import TrainingData
from forecast.training.trainer import TrainingJob, train

# --- the processes of a launcher


def train_on_ranks(
    job: TrainingJob, data: PanelTensors, keeper: BestWeights, checkpoint: Checkpoint | None
) -> dict[str, float]:
    """As `train`, in rank 0, with the processes that a launcher has started: a step equals one of `train_on_devices`.

    The others get the network and the checkpoint from here, and have the panel. Only this process writes.
    """
    assert job.ranks is not None
    remote = partial(
        _train_here,
        network=job.network,
        config=job.config,
        elapsed=job.budget.elapsed,
        loss=keeper.best_loss,
        checkpoint=checkpoint,
    )
    return job.ranks.run(remote, partial(train, job, data, keeper, checkpoint))


def _train_here(
    training: TrainingData,
    *,
    network: Member,
    config: FitConfig,
    elapsed: float,
    loss: float,
    checkpoint: Checkpoint | None,
) -> None:
    """Train in a process that rank 0 has called, whose weights are the result."""
    assert training.ranks is not None
    seed_generators(config.seed + training.ranks.rank)
    network = network.to(training.device)
    budget = Budget(config.max_steps, config.max_minutes)
    budget.resume(elapsed)
    split, panel = training.split, training.panel
    job = TrainingJob(network, config, panel, split.train_lengths, split.validation, budget, ranks=training.ranks)
    keeper = BestWeights(network, loss, config.patience, None)
    data = PanelTensors.of(panel, network, training.device)
    train(job, data, keeper, checkpoint, rank=training.ranks.rank)


# --- several devices


def train_on_devices(
    job: TrainingJob, keeper: BestWeights, checkpoint: Checkpoint | None, progress: Callable[[float, str], None] | None
) -> dict[str, float]:
    """As `train`, with a process for each of `devices`, whose gradients are averaged at each step.

    A step of n processes is that of one whose `batch_size` is n times as large: the same windows, the same loss.
    The processes are started here, not by Lightning: its launchers run the script again, which a library call need not
    come from, or fork, which hangs once torch has threads. `keeper` gets the state of the first process's. If this
    process ends, so do they.
    """
    with tempfile.TemporaryDirectory() as folder:
        # The result comes back as the state of the finished training.
        checkpoint = checkpoint or Checkpoint(Path(folder), {})
        job.budget.hold()
        started = _Start(
            job=replace(job, network=copy.deepcopy(job.network).cpu()),
            loss=keeper.best_loss,
            checkpoint=(checkpoint.path, checkpoint.settings),
            threads=max(1, torch.get_num_threads() // job.config.devices),
            port=_free_port(),
            wants_progress=progress is not None,
        )
        messages = torch.multiprocessing.get_context("spawn").SimpleQueue()
        processes = spawn(_run, (started, messages), nprocs=job.config.devices, join=False)
        try:
            weights, gpu_figures = _listen(processes, messages, progress)
        finally:
            for process in processes.processes:
                process.kill()
                process.join()
        assert len(set(weights)) == 1, "the processes of a training ended with different weights"
        Checkpoint(checkpoint.path.parent, checkpoint.settings, name=checkpoint.path.stem).attach(keeper, None)
    return gpu_figures


@dataclass(frozen=True)
class _Start:
    """What a process of several is told."""

    job: TrainingJob
    loss: float
    checkpoint: tuple[Path, dict[str, Any]]
    threads: int
    port: int
    wants_progress: bool


def _run(rank: int, start: _Start, messages: Any) -> None:
    """Train in one of several processes."""
    from pytorch_lightning import seed_everything  # which DDP repeats

    os.environ |= {
        "LOCAL_RANK": str(rank),
        "NODE_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(start.port),
    }
    threading.Thread(target=_end_with_parent, daemon=True).start()
    prepare()
    torch.set_num_threads(start.threads)
    job = start.job
    cuda = torch.cuda.is_available() and job.config.accelerator != "cpu"
    device = torch.device("cuda", rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    seed_everything(job.config.seed + rank, verbose=False)
    # The processes are handed one network in shared memory.
    job = replace(job, network=copy.deepcopy(job.network).to(device))
    path, settings = start.checkpoint

    def progress(share: float, text: str) -> None:
        messages.put(("progress", (share, text)))

    try:
        keeper = BestWeights(
            job.network, start.loss, job.config.patience, progress if start.wants_progress and not rank else None
        )
        checkpoint = Checkpoint(path.parent, settings, name=path.stem, required=True)
        with only_deterministic(job.config.deterministic and cuda):
            data = PanelTensors.of(job.panel, job.network, device)
            gpu_figures = train(job, data, keeper, checkpoint, rank=rank)
        messages.put(("done", (rank, _hash(job.network), gpu_figures)))
    except GatecastError as error:
        messages.put(("error", error))
        raise


def _end_with_parent() -> None:
    """End this process as soon as the one that started it has ended, even by a kill that leaves no time to tell."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _listen(
    processes: Any, messages: Any, progress: Callable[[float, str], None] | None
) -> tuple[list[str], dict[str, float]]:
    """Return the hashes of the weights, and what the first process has found, once all have ended.

    Raises the error that ended one of them.
    """
    weights: list[str] = []
    gpu_figures: dict[str, float] = {}
    errors: list[GatecastError] = []

    def hear() -> None:
        while not messages.empty():
            kind, value = messages.get()
            if kind == "progress" and progress:
                progress(*value)
            elif kind == "error":
                errors.append(value)
            elif kind == "done":
                rank, digest, values = value
                weights.append(digest)
                if not rank:
                    gpu_figures.update(values)

    try:
        while not processes.join(timeout=0.1):
            hear()
    except ProcessException:
        hear()
        if errors:
            raise errors[0] from None
        raise
    hear()
    return weights, gpu_figures


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _hash(network: nn.Module) -> str:
    hasher = hashlib.sha256()
    for values in network.state_dict().values():
        hasher.update(values.detach().cpu().numpy().tobytes())
    return hasher.hexdigest()
